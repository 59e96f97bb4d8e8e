"""Compiled programs on disk, for later processes: JAX's persistent compilation cache."""

import contextlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

# In bytes. A program takes 2 to 110 kB and a fit some ten programs.
_LARGEST = 2**29


def enable_compilation_cache(path: str | os.PathLike[str] | None = None) -> Path | None:
    """Keep compiled programs on disk, so that a later process loads them instead of compiling.

    The library never does this by itself, since the setting is JAX's and holds for the whole
    process. Call it once, at the beginning of a program. The command `gmmx` does.

    The environment variable `GMMX_CACHE` is for whoever runs the program: `0` keeps the cache
    off, and a path is the default folder.

    **Arguments:**

    - `path`: the folder. By default the one that JAX is set to use, or else `gmmx` in the user's
        cache folder (`~/.cache/gmmx` on Linux). JAX runs what is in it, so nobody else should be
        able to write to it.

    **Returns:** the folder; None if the cache is off. Warns if the folder cannot be used: then
    everything is compiled as without a cache.

    JAX tells apart its own versions and the machines, so an update needs no new folder, and
    several machines may share one. JAX 0.9 to 0.10.1 may log that the host does not support
    features such as `+prefer-no-gather`. This is a false alarm; with `TF_CPP_MIN_LOG_LEVEL=3` in
    the environment it is not shown.
    """
    chosen = os.environ.get("GMMX_CACHE") or None
    config: Any = jax.config
    if chosen == "0" or not config.jax_enable_compilation_cache:
        return None
    present = config.jax_compilation_cache_dir
    if path is None and chosen is None and present:
        folder = Path(present)
    else:
        default = platformdirs.user_cache_path("gmmx", appauthor=False)
        folder = Path(path or chosen or default).expanduser().absolute()
        try:
            _prepare(folder)
        except OSError as error:
            warnings.warn(
                f"the compilation cache is off: cannot use {folder} ({error.strerror or error}). "
                "Set the environment variable GMMX_CACHE to another folder, or to 0.",
                stacklevel=2,
            )
            return None
        if present != str(folder):
            config.update("jax_compilation_cache_dir", str(folder))
            # Without this JAX stays with the folder that it used first.
            compilation_cache.reset_cache()
    # JAX leaves out programs that took less than a second to compile. A fit has several of them.
    config.update("jax_persistent_cache_min_compile_time_secs", 0)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _prepare(folder: Path) -> None:
    """Make the folder; if it has grown too large, delete what was used longest ago.

    **Raises:** `OSError` where files cannot be written to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    programs = []
    for path in folder.glob("*-cache"):
        # Another process may be doing the same.
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            programs.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    excess = sum(size for _, size, _ in programs) - _LARGEST
    for _, size, path in sorted(programs):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
