"""Data that are read in blocks: files larger than memory, and patterns of several files."""

import dataclasses
import glob
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from . import words

# The part of the memory that a file may take; a fit holds its rows several times.
_SHARE = 8
# Rows by which precision is judged and pictures are drawn.
_ROWS = 2**16
_WRITTEN = ".csv or .tsv"


def in_blocks(source: str) -> bool:
    """Whether the data are a pattern of files, or one file that is large beside the memory."""
    if source == "-" or Path(source).suffix.lower() in (".npz", ".txt", ".gz", ".zst"):
        return False
    if not Path(source).exists():
        return bool(glob.glob(source))  # noqa: PTH207
    return Path(source).is_file() and Path(source).stat().st_size * _SHARE > _memory()


def _memory() -> int:
    """Bytes of the machine's memory; all there can be where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return sys.maxsize
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass(frozen=True)
class LargeRows:
    """Features of rows that are read in blocks; what the commands ask of `rows.Rows`."""

    names: list[str]
    source: Any
    """A `gmmx.AbstractSource`"""
    weights: None = None
    """They come with the rows"""

    @property
    def x(self) -> np.ndarray:
        """The first rows"""
        return next(iter(self.source.blocks(_ROWS))).x.astype(float)

    def described(self) -> str:
        """Which features there are."""
        more = ", …" * (len(self.names) > 8)
        return f"rows of {', '.join(self.names[:8])}{more}, read in blocks"

    def given(self, gmmx: Any) -> Any:
        """As the library takes them."""
        return self.source

    def scaled(self) -> Self:
        """Refused: the rows are not changed."""
        raise ValueError("--scale is for data that fit into memory; these are read in blocks.")

    def back(self, gmmx: Any, result: Any) -> tuple[Any, Any]:
        """The result and the rows, which are in their own units."""
        return result, self.source


def read(source: str, separator: str | None, asked: Any) -> LargeRows:
    """The rows of large files.

    **Arguments:**

    - `asked`: a `rows.Asked`, which columns.
    """
    for option, value in (
        ("--missing", asked.missing),
        ("--drop-missing", asked.drop_missing),
        ("--noise-columns", asked.noise_columns),
        ("--label-column", asked.label_column),
        ("--separator", separator),
    ):
        if value:
            raise ValueError(f"{option} is for data that fit into memory; {source} is not.")
    import gmmx

    columns, excluded = words.split(asked.columns), words.split(asked.exclude) or []
    names = columns or _columns(source, asked.weights)
    names = [name for name in names if name not in excluded]
    if Path(source).suffix.lower() != ".npy":
        return LargeRows(names, gmmx.rows_from(source, columns=names, weights=asked.weights))
    if asked.weights is not None:
        raise ValueError("--weights names a column of a table; an array read in blocks has none.")
    unknown = [name for name in names if not name.isdecimal()]
    if unknown:
        raise ValueError(f"{source} has no column {unknown[0]!r}: those of an array are numbers.")
    return LargeRows(names, gmmx.rows_from(source, columns=[int(name) for name in names]))


def _columns(source: str, weights: str | None) -> list[str]:
    """The names of all columns but that of the weights; the numbers of those of an array."""
    from gmmx import ArraySource, rows_from

    found = rows_from(source, weights=weights if Path(source).suffix.lower() != ".npy" else None)
    if isinstance(found, ArraySource):
        return [str(i) for i in range(found.n_features)]
    return list(found.columns)  # pyright: ignore[reportAttributeAccessIssue]


def check_output(path: str | None, json: bool) -> None:
    """Check that rows can be written as they come."""
    if json:
        raise ValueError("--json is for data that fit into memory; these are printed as CSV.")
    if path is not None and Path(path).suffix.lower() not in (".csv", ".tsv"):
        raise ValueError(f"--out {path}: rows that are read in blocks go to {_WRITTEN}.")


def write(blocks: Iterator[dict[str, Any]], path: str | None) -> None:
    """Write columns block by block, to a file or as CSV to the standard output."""
    if path is None:
        _write(blocks, sys.stdout.buffer.write, ",")
        sys.stdout.flush()
        return
    from gmmx._files import writing_whole

    with writing_whole(path) as file:
        _write(blocks, file.write, "\t" if Path(path).suffix.lower() == ".tsv" else ",")


def _write(blocks: Iterator[dict[str, Any]], write: Callable[[bytes], Any], separator: str) -> None:
    for number, columns in enumerate(blocks):
        frame = pl.DataFrame({name: np.asarray(values) for name, values in columns.items()})
        write(frame.write_csv(separator=separator, include_header=number == 0).encode())
