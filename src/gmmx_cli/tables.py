"""Reading and writing columns of numbers, in the format that the name of the file ends in."""

import dataclasses
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

_READ = ".csv, .tsv, .txt, .parquet, .npy or .npz"
_WRITTEN = ".csv, .tsv, .parquet or .npy"
# Missing values, in addition to empty cells; Polars reads "nan" as a number.
_MISSING = ["NA", "N/A", "null", "NULL", "None"]


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

    def numbers(self, names: list[str]) -> np.ndarray:
        """The columns with these names, `(n, d)` in float64.

        **Raises:** `ValueError` if a column does not exist, or has text or missing values.
        """
        absent = [name for name in names if name not in self.columns]
        if absent:
            raise ValueError(
                f"{self.source} has no column {_listed(absent)}. It has {_listed(self.columns)}."
            )
        if not names:
            raise ValueError(f"{self.source}: expected at least one column of features.")
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise ValueError(f"column {_listed(twice)} is named more than once.")
        if not len(self.frame):
            raise ValueError(f"{self.source} has no rows.")
        columns = {name: _numeric(self.frame[name]) for name in names}
        text = [name for name, column in columns.items() if column is None]
        if text:
            others = [name for name in names if name not in text]
            fix = f" Use the other columns: --columns {','.join(others)}" if others else ""
            raise ValueError(
                f"{self.source}: column {_listed(text)} holds {_example(self.frame[text[0]])}; "
                f"expected numbers.{fix}"
            )
        for name, column in columns.items():
            self._check_gaps(name, column)
        return np.stack([column.to_numpy() for column in columns.values()], axis=1)  # pyright: ignore[reportOptionalMemberAccess]

    def _check_gaps(self, name: str, column: Any) -> None:
        gaps = column.is_null() | ~column.is_finite().fill_null(True)
        if gaps.any():
            first = int(gaps.arg_max()) + 1
            raise ValueError(
                f"{self.source}: column {name!r} is empty, NaN or infinite in {gaps.sum()} of "
                f"{len(gaps)} rows, first in row {first}. Drop these rows, or fill in the values."
            )


def _numeric(column: pl.Series) -> pl.Series | None:
    """The column in float64, or None if it does not hold numbers."""
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    elif not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        return None
    try:
        return column.cast(pl.Float64)
    except pl.exceptions.PolarsError:
        return None


def _example(column: pl.Series) -> str:
    """The first value that is not a number, and its row."""
    if column.dtype != pl.String:
        return f"values of type {column.dtype}"
    bad = column.str.strip_chars().cast(pl.Float64, strict=False).is_null() & column.is_not_null()
    row = int(bad.arg_max() or 0)
    return f"{column[row][:40]!r} in row {row + 1}"


def _listed(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


# Reading


def read(source: str, array: str | None = None) -> Table:
    """The table in a file; `-` is CSV from the standard input.

    **Arguments:**

    - `array`: which array of an .npz file.
    """
    if source == "-":
        return _named("the standard input", _csv("the standard input", sys.stdin.buffer.read()))
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{source} is a folder; expected a file.")
    if not path.exists():
        raise ValueError(f"there is no file {source}.")
    # For .csv.gz the inner suffix; Polars recognises compression by itself.
    suffix = Path(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix
    match suffix.lower():
        case ".csv" | ".txt":
            return _named(source, _csv(source, path.read_bytes()))
        case ".tsv":
            return _named(source, _csv(source, path.read_bytes(), "\t"))
        case ".parquet" | ".pq":
            return _named(source, _parquet(path))
        case ".npy" | ".npz":
            return _unnamed(source, _numpy(path, array))
    raise ValueError(f"{source} ends in {path.suffix!r}; expected {_READ}. Convert it first.")


def _named(source: str, frame: pl.DataFrame) -> Table:
    return Table(source, frame, named=True)


def _csv(source: str, content: bytes, separator: str = ",") -> pl.DataFrame:
    try:
        frame = pl.read_csv(
            content, separator=separator, infer_schema_length=None, null_values=_MISSING
        )
    except pl.exceptions.NoDataError as error:
        raise ValueError(f"{source} is empty.") from error
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{source} cannot be read as CSV: {_reason(error)}") from error
    # Spaces after the commas are not a part of the names.
    frame = frame.rename({name: name.strip() for name in frame.columns})
    if frame.width == 1 and ";" in frame.columns[0]:
        raise ValueError(
            f"the fields of {source} seem to be separated by semicolons; expected commas, or tabs "
            "in a .tsv file. Convert it first, also decimal commas to points."
        )
    if frame.columns and all(_is_number(name) for name in frame.columns):
        raise ValueError(
            f"the first row of {source} holds numbers; expected names of columns. Add a row of "
            "names, or save the numbers as .npy."
        )
    return frame


def _reason(error: Exception) -> str:
    text = str(error).split("\n")[0]
    if "more fields" in text:
        return "a row has more fields than the first row."
    return text


def _is_number(text: str) -> bool:
    try:
        float(text.split("_duplicated_")[0])
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {_reason(error)}") from error


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
    raise ValueError(f"{path} holds the arrays {_listed(names)}. Choose one: --array NAME")


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
    if path is None:
        return
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} for {path}.")
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; expected a file.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write {path}: the folder {folder} is read-only.")


def write(columns: Mapping[str, Any], path: str | None) -> None:
    """Write columns to a file, or as CSV to the standard output."""
    frame = pl.DataFrame({name: np.asarray(column) for name, column in columns.items()})
    buffer = io.BytesIO()
    match Path(path or ".csv").suffix.lower() or ".csv":
        case ".parquet":
            frame.write_parquet(buffer)
        case ".npy":
            values = np.stack([np.asarray(column) for column in columns.values()], axis=1)
            np.save(buffer, values[:, 0] if len(columns) == 1 else values, allow_pickle=False)
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
