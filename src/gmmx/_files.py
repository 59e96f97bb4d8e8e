"""Safetensors files: written whole or not at all, and checked completely when read.

The format holds arrays and text, and no code; see
https://github.com/huggingface/safetensors#format.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

# In bytes. A header takes some hundred bytes for each tensor; a larger one is not parsed.
_LARGEST_HEADER = 1 << 20
# The entry of the header that tells a changed file from the one that was written.
_CHECKSUM = "sha256"


class FileError(ValueError):
    """A file that cannot be used. The message names the file and the remedy."""

    def __init__(self, path: str | os.PathLike[str], message: str):
        super().__init__(f"{os.fspath(path)}: {message}")


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write arrays and text to one file, whole or not at all, with a checksum of both."""
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    # ascontiguousarray turns a scalar into a vector.
    shaped = {name: value.reshape(tensors[name].shape) for name, value in contiguous.items()}
    metadata = {**metadata, _CHECKSUM: _checksum(shaped, metadata)}
    write_whole(path, to_bytes(shaped, metadata))


def _checksum(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Of all names, dtypes, shapes, values and texts, in an order that no writer changes."""
    texts = sorted(item for item in metadata.items() if item[0] != _CHECKSUM)
    arrays = sorted((name, v.dtype.name, list(v.shape)) for name, v in tensors.items())
    digest = hashlib.sha256(json.dumps([texts, arrays]).encode())
    for name, *_ in arrays:
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def check_place(path: str | os.PathLike[str]) -> Path:
    """The file that a write to this path would make or replace.

    **Raises:** `OSError` if it cannot be written.
    """
    # A symbolic link stays, and its target is replaced.
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; expected a file.")
    if target.exists() and not target.is_file():
        # Renaming would remove the device, for instance /dev/null.
        raise OSError(f"cannot write {path}: it is a pipe or a device; expected a file.")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {path}: there is no folder {target.parent}. Make the folder first."
        )
    # Renaming needs no permission for the file itself, and root has every permission.
    if target.exists() and not (stat.S_IMODE(target.stat().st_mode) & 0o222 and _writable(target)):
        raise PermissionError(
            errno.EACCES,
            f"cannot write {path}: the file is read-only. Make it writable, or choose another name",
        )
    if not _writable(target.parent):
        raise PermissionError(
            errno.EACCES, f"cannot write {path}: the folder {target.parent} is read-only"
        )
    return target


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK)


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that it holds the whole old content or the whole new content at any time.

    The content is written to a temporary file in the same folder and synchronised to disk; then
    the file is renamed in one step. A file that is replaced keeps its mode.
    """
    with writing_whole(path) as file:
        file.write(content)


@contextlib.contextmanager
def writing_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """`write_whole` in parts: what is written to the file takes its place at the end."""
    target = check_place(path)
    # A name has at most 255 bytes, and a character up to four.
    temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            if target.exists():
                # Before the content: a private file is never public, not even for a moment.
                _copy_permissions(target, temporary)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _copy_permissions(source: Path, target: Path) -> None:
    """The owner, if the system lets us, and the mode."""
    status = source.stat()
    if hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):
            os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))


def _sync_folder(folder: Path) -> None:
    """Synchronise the folder, and with it the new name, where the system can.

    Some file systems cannot, and a folder without read permission cannot be opened. The file
    exists by then, so this is not an error.
    """
    if hasattr(os, "O_DIRECTORY"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read_tensors(
    path: str | os.PathLike[str], kind: str, version: int, oldest: int = 1
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the text of a file of gmmx.

    **Arguments:**

    - `kind`: the format that the header has to name.
    - `version`: the newest format version that can be read.
    - `oldest`: the oldest one.

    **Raises:** `FileError` if the file is anything else, and `OSError` if it cannot be opened.
    """
    _check_header_size(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            _check_kind(path, metadata, kind)
            _check_version(path, metadata, version, oldest)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _unreadable(path, str(error)) from error
    # For a tensor of a type that NumPy does not have.
    except (TypeError, KeyError, AttributeError) as error:
        raise FileError(path, f"it holds a tensor that cannot be read ({error}).") from error
    # gmmx 1.0 wrote no checksum.
    if metadata.get(_CHECKSUM, (found := _checksum(tensors, metadata))) != found:
        raise FileError(
            path,
            "its content does not match its checksum: it was altered or damaged after it was "
            "written. Copy the original again, or write it again with gmmx.save.",
        )
    return tensors, metadata


def _check_header_size(path: str | os.PathLike[str]) -> None:
    """Refuse other files before any memory is allocated for them."""
    if Path(path).is_dir():
        raise FileError(path, "it is a folder; expected a file.")
    if Path(path).exists() and not Path(path).is_file():
        # Reading a pipe may block, and a device may have no end.
        raise FileError(path, "it is not a regular file. Copy its content to a file first.")
    with Path(path).open("rb") as file:
        start = file.read(9)
        size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{" or length > size - 8:
        raise _unreadable(path, "it begins like another format, or its end is missing")
    if length > _LARGEST_HEADER:
        raise FileError(
            path, f"its header has {length} bytes, too many for a file of gmmx. It is not read."
        )


def _unreadable(path: str | os.PathLike[str], reason: str) -> FileError:
    return FileError(
        path,
        f"it is not a safetensors file, or it is incomplete or damaged ({reason}). Copy the "
        "original again, or write it again with gmmx.save.",
    )


def _check_kind(path: str | os.PathLike[str], metadata: Mapping[str, str], kind: str) -> None:
    """Refuse files of other programs, and files of gmmx of another kind."""
    found = metadata.get("format")
    if found != kind:
        what = "no format" if found is None else f"the format {found[:40]!r}"
        raise FileError(path, f"its header names {what}; expected {kind!r}.")


def _check_version(
    path: str | os.PathLike[str], metadata: Mapping[str, str], version: int, oldest: int
) -> None:
    """Refuse format versions that cannot be read."""
    text = metadata.get("format_version", "")
    # int() also takes digits of other scripts, spaces and underscores.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise FileError(path, f"its format version {text[:40]!r} is not a number.")
    if not oldest <= int(text) <= version:
        writer = metadata.get("gmmx_version", "of another version")[:40]
        readable = f"{oldest} to {version}" if oldest < version else str(version)
        newer = int(text) > version
        fix = (
            "Update gmmx: pip install --upgrade gmmx"
            if newer
            else "Use that gmmx, or write it again."
        )
        raise FileError(
            path,
            f"it has format version {text}, written by gmmx {writer}; this gmmx reads version "
            f"{readable}. {fix}",
        )


def from_json(path: str | os.PathLike[str], metadata: Mapping[str, str], name: str) -> Any:
    """A field of the header, which is text, as JSON; None if it is missing."""
    try:
        return json.loads(metadata.get(name, "null"))
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"{name!r} in its header is damaged.") from error
