"""Safetensors files: written whole or not at all, and read as if a stranger had made them.

The format holds arrays and text and nothing that could be run; see
https://github.com/huggingface/safetensors#format.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

# A header is some hundred bytes a tensor. One beyond this is not ours, and is not parsed.
_LARGEST_HEADER = 1 << 20


class FileError(ValueError):
    """A file that cannot be what it should be; the message names it and says what to do."""

    def __init__(self, path: str | os.PathLike[str], message: str):
        super().__init__(f"{os.fspath(path)}: {message}")


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write arrays and text to one file, whole or not at all."""
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    # ascontiguousarray makes a vector of a scalar.
    shaped = {name: value.reshape(tensors[name].shape) for name, value in contiguous.items()}
    write_whole(path, to_bytes(shaped, dict(metadata)))


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that at every moment the old content or the new one is there.

    The content goes to a file beside it, is forced to the disk, and takes the name in one step.
    """
    # A link stays a link, and what it points to is replaced.
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; the name of a file was wanted.")
    if target.exists() and not target.is_file():
        # To take its name would be to remove the device, as /dev/null.
        raise OSError(f"cannot write {path}: it is a pipe or device; name a file.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: make the folder {target.parent} first.")
    # A name is at most 255 bytes, of up to four a character.
    temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk as well, where the system knows how.

    Some file systems do not, nor can a folder be opened that may only be written to. The file is
    there by then, so that is no failure.
    """
    if hasattr(os, "O_DIRECTORY"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read_tensors(
    path: str | os.PathLike[str], kind: str, version: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the text of a file of ours.

    **Arguments:**

    - `kind`: what the header has to name as its format.
    - `version`: the newest format version that is understood.

    **Raises:** `FileError` where it is anything else; `OSError` where it cannot be opened.
    """
    _check_header_size(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            _check_kind(path, metadata, kind, version)
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except SafetensorError as error:
        raise _unreadable(path, str(error)) from error
    # Of a tensor whose type NumPy does not have.
    except (TypeError, KeyError, AttributeError) as error:
        raise FileError(path, f"it holds a tensor that cannot be read ({error}).") from error


def _check_header_size(path: str | os.PathLike[str]) -> None:
    """Refuse what is no safetensors file before anything is allocated for it."""
    if Path(path).is_dir():
        raise FileError(path, "it is a folder; give the name of the file in it.")
    if Path(path).exists() and not Path(path).is_file():
        # A pipe would be waited for, and a device may have no end.
        raise FileError(path, "it is not an ordinary file. Copy its content into one first.")
    with Path(path).open("rb") as file:
        start = file.read(9)
        size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{" or length > size - 8:
        raise _unreadable(path, "its beginning is that of another format, or the rest is missing")
    if length > _LARGEST_HEADER:
        raise FileError(
            path, f"its header claims {length} bytes, which no file of gmmx has. It is not opened."
        )


def _unreadable(path: str | os.PathLike[str], reason: str) -> FileError:
    return FileError(
        path,
        f"it is no safetensors file, or is cut off or damaged ({reason}). Copy it again from "
        "where it came from, or write it again with gmmx.save.",
    )


def _check_kind(
    path: str | os.PathLike[str], metadata: Mapping[str, str], kind: str, version: int
) -> None:
    """Refuse other programs' files, other kinds of ours, and those of a newer gmmx."""
    found = metadata.get("format")
    if found != kind:
        what = "names no format" if found is None else f"names the format {found[:40]!r}"
        raise FileError(path, f"it was not written as {kind!r}: its header {what}.")
    text = metadata.get("format_version", "")
    # int() would take other scripts' digits, spaces and underscores as well.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise FileError(path, f"its format version {text[:40]!r} is not a number.")
    if int(text) > version:
        writer = metadata.get("gmmx_version", "a newer version")[:40]
        raise FileError(
            path,
            f"it is of format version {text} and was written by gmmx {writer}; this gmmx reads "
            f"versions up to {version}. Update it: pip install --upgrade gmmx",
        )


def from_json(path: str | os.PathLike[str], metadata: Mapping[str, str], name: str) -> Any:
    """What a field of the header says, which is text, as JSON; None where there is none."""
    try:
        return json.loads(metadata.get(name, "null"))
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"its header's {name!r} is damaged.") from error
