"""Reading and writing columns of numbers, in the format that the name of the file ends in."""

import dataclasses
import io
import re
import sys
from pathlib import Path

import numpy as np
import polars as pl

from . import text
from .words import listed, option, say

_READ = ".csv, .tsv, .txt, .parquet, .npy or .npz"
_WRITTEN = ".csv, .tsv, .parquet or .npy"
# Columns in which pandas and R keep the names of the rows.
_NAMELESS = re.compile(r"|_duplicated_\d+|Unnamed: \d+|__index_level_\d+__")


@dataclasses.dataclass(frozen=True)
class Format:
    """How a file is read; None for what is found out."""

    array: str | None = None
    separator: str | None = None
    decimal: str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Named columns; those of an array have the names 0, 1, 2, …"""

    source: str
    frame: pl.DataFrame
    named: bool

    @property
    def columns(self) -> list[str]:
        """The names of the columns"""
        return self.frame.columns

    def features(self, excluded: list[str]) -> list[str]:
        """The columns but for these and those that have no name. The latter are said."""
        self._check_names(excluded)
        nameless = (
            [name for name in self.columns if _NAMELESS.fullmatch(name)] if self.named else []
        )
        left = [name for name in self.columns if name not in (*excluded, *nameless)]
        if nameless and left:
            say(f"{self.source}: left out {_count(len(nameless), 'column')} without a name.")
        return left if left else [name for name in nameless if name not in excluded]

    def numbers(self, names: list[str]) -> np.ndarray:
        """The columns with these names, `(n, d)` in float64; NaN for missing values.

        **Raises:** `ValueError` if a column does not exist, or has text or infinite values.
        """
        self._check_names(names)
        if not names:
            raise ValueError(f"{self.source}: expected at least one column of features.")
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise ValueError(f"column {listed(twice)} is named more than once.")
        if not len(self.frame):
            raise ValueError(f"{self.source} has no rows.")
        columns = {name: text.numbers(self.frame[name]) for name in names}
        wordy = [name for name, column in columns.items() if column is None]
        if wordy:
            others = [name for name in names if name not in wordy]
            fix = f" Use the other columns: {option('--columns', others)}" if others else ""
            raise ValueError(
                f"{self.source}: column {listed(wordy)} holds "
                f"{text.example(self.frame[wordy[0]])}; expected numbers.{fix}"
            )
        x = np.stack([column.to_numpy() for column in columns.values()], axis=1)  # pyright: ignore[reportOptionalMemberAccess]
        self._check_none(np.isinf(x), names, "infinite", "Drop these rows.")
        return x

    def check_complete(self, names: list[str], x: np.ndarray) -> None:
        """Refuse missing values."""
        fix = "Drop these rows with --drop-missing, or use them for what they hold with --missing."
        self._check_none(np.isnan(x), names, "empty or NaN", fix)

    def lost(self, names: list[str], x: np.ndarray) -> np.ndarray:
        """By how much float64 changed whole numbers, which may have more than its 16 digits."""
        change = np.zeros_like(x)
        for j, name in enumerate(names):
            column = self.frame[name]
            if column.dtype == pl.String or column.dtype.is_integer():
                whole = column.cast(pl.Int64, strict=False).is_not_null().to_numpy()
                whole &= np.abs(x[:, j]) < 2**63
                exact = column.filter(whole).cast(pl.Int64).to_numpy()
                change[whole, j] = np.abs(exact - x[whole, j].astype(np.int64))
        return change

    def where(self, kept: np.ndarray) -> "Table":
        """These rows."""
        return dataclasses.replace(self, frame=self.frame.filter(kept))

    def _check_names(self, names: list[str]) -> None:
        absent = [name for name in names if name not in self.columns]
        if absent:
            raise ValueError(
                f"{self.source} has no column {listed(absent)}. It has {listed(self.columns)}."
            )

    def _check_none(self, bad: np.ndarray, names: list[str], what: str, fix: str) -> None:
        if bad.any():
            column = int(bad.any(axis=0).argmax())
            rows = np.flatnonzero(bad[:, column])
            raise ValueError(
                f"{self.source}: column {names[column]!r} is {what} in {len(rows)} of {len(bad)} "
                f"rows, first in row {rows[0] + 1}. {fix}"
            )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# Reading


def read(source: str, how: Format) -> Table:
    """The table in a file; `-` is CSV from the standard input."""
    if source == "-":
        content = sys.stdin.buffer.read()
        return _of_text("the standard input", content, how, ",")
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{source} is a folder; expected a file.")
    if not path.exists():
        raise ValueError(f"there is no file {source}.")
    # For .csv.gz the inner suffix; Polars recognises compression by itself.
    compressed = path.suffix in (".gz", ".zst")
    suffix = (Path(path.stem).suffix if compressed else path.suffix).lower()
    if suffix in (".csv", ".txt", ".tsv"):
        return _of_text(source, path.read_bytes(), how, "\t" if suffix == ".tsv" else ",")
    if how.separator or how.decimal:
        raise ValueError(f"--separator and --decimal are for text files; {source} is none.")
    if suffix in (".parquet", ".pq"):
        return Table(source, _parquet(path), named=True)
    if suffix in (".npy", ".npz"):
        return _unnamed(source, _numpy(path, how.array))
    raise ValueError(f"{source} ends in {path.suffix!r}; expected {_READ}. Convert it first.")


def _of_text(source: str, content: bytes, how: Format, usual: str) -> Table:
    frame = text.read(source, content, how.separator, how.decimal, usual)
    return Table(source, frame, named=True)


def _parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


def _numpy(path: Path, name: str | None) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = list(loaded)
            if name is None and len(names) == 1:
                name = names[0]
            if name in names:
                return loaded[name]
    # For a damaged file NumPy raises whatever its parsers of text and archives do.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged, or does not hold arrays of numbers. Write it again with "
            "numpy.save."
        ) from error
    raise ValueError(f"{path} holds the arrays {listed(names)}. Choose one: --array NAME")


def _unnamed(source: str, array: np.ndarray) -> Table:
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{source} holds an array of shape {array.shape} and dtype {array.dtype}; expected "
            "real numbers of shape (n, d)."
        )
    columns = {str(i): array[:, i].astype(float) for i in range(array.shape[1])}
    return Table(source, pl.DataFrame(columns), named=False)


# Writing


def check_output(path: str | None, endings: str = _WRITTEN, option: str = "--out") -> None:
    """Check, before any work, that a file of this name can be written."""
    if path is None:
        return
    if Path(path).suffix.lower() not in endings.replace(" or", ",").split(", "):
        raise ValueError(f"{option} {path}: expected a name that ends in {endings}.")
    check_place(path)


def check_place(path: str | None) -> None:
    """Check that a file can be written at this path."""
    if path is not None:
        from gmmx import _files

        _files.check_place(path)


def typed(frame: pl.DataFrame) -> pl.DataFrame:
    """With columns of text as numbers, if all of their cells are."""
    return frame.with_columns(
        column
        for name in frame.columns
        if frame[name].dtype == pl.String and (column := text.numbers(frame[name])) is not None
    )


def write(frame: pl.DataFrame, path: str | None) -> None:
    """Write columns to a file, or as CSV to the standard output."""
    buffer = io.BytesIO()
    match Path(path or ".csv").suffix.lower() or ".csv":
        case ".parquet":
            typed(frame).write_parquet(buffer)
        case ".npy":
            values = typed(frame).to_numpy()
            if values.dtype == object:
                raise ValueError(f"{path}: an array holds no text. Write to .csv or .parquet.")
            np.save(buffer, values[:, 0] if frame.width == 1 else values, allow_pickle=False)
        case ".tsv":
            frame.write_csv(buffer, separator="\t")
        case _:
            frame.write_csv(buffer)
    if path is None:
        sys.stdout.buffer.write(buffer.getvalue())
        sys.stdout.flush()
        return
    from gmmx._files import write_whole

    write_whole(path, buffer.getvalue())
