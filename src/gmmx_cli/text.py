"""Delimited text: its separator, its decimal sign and its first row are found out."""

import codecs
import csv
import re
import shlex
from typing import Any

import polars as pl

from . import words

# Beside empty cells and NaN.
_MISSING = ["NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None", "NaN", "nan"]
_SEPARATORS = "\t;|,"
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)*|[.,]\d+)([eE][-+]?\d+)?|[-+]?inf(inity)?", re.I)
_THOUSANDS = r"^[-+]?\d{1,3}(,\d{3})+$"


def read(
    source: str, content: bytes, separator: str | None, decimal: str | None, usual: str
) -> pl.DataFrame:
    """The columns as text; those of decimal commas have points. What was found out is said.

    **Arguments:**

    - `separator`, `decimal`: None to find out.
    - `usual`: the separator where nothing speaks for another.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # As Excel writes text.
        content = content.decode("utf-16", "replace").encode()
    try:
        found = separator or _separator(content, usual)
        if found == " ":
            # Columns are often aligned by several spaces.
            content = b"\n".join(b" ".join(line.split()) for line in content.splitlines())
        first = _parse(content, found, header=False, n_rows=1).row(0)
        frame = _parse(content, found, header=True)
    except pl.exceptions.NoDataError as error:
        raise ValueError(f"{source} is empty.") from error
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{source} cannot be read as CSV: {_reason(error)}") from error
    if _holds_values(first):
        raise ValueError(
            f"the first row of {source} holds values, {words.listed([c or '' for c in first], 3)}; "
            "expected names of columns. Add a row of names, or save the numbers as .npy."
        )
    numbers = [name for name in first if name and _NUMBER.fullmatch(name.strip())]
    if numbers:
        words.say(f"the first row of {source} is read as names, also {words.listed(numbers)}.")
    # Spaces after the separators are not a part of the names.
    stripped = [name.strip() for name in frame.columns]
    if len(set(stripped)) == len(stripped):
        frame.columns = stripped
    commas = [] if decimal == "." else [c.name for c in frame if _has_decimal_commas(c)]
    if decimal is None and found == ",":
        # Quoted cells such as "1,234" are rather thousands here.
        commas = [name for name in commas if not _has_thousands(frame[name])]
    _say_format(source, found if separator is None and found != usual else None, bool(commas))
    return frame.with_columns(_pointed(frame[name]) for name in commas)


def _parse(content: bytes, separator: str, header: bool, **options: Any) -> pl.DataFrame:
    return pl.read_csv(
        content, separator=separator, has_header=header, infer_schema=False, **options
    )


def _reason(error: Exception) -> str:
    text = str(error).split("\n")[0]
    if "more fields" in text:
        return "a row has more fields than the first row."
    if "utf-8" in text:
        return "it is not in UTF-8. Save it with this encoding."
    return text


def _separator(content: bytes, usual: str) -> str:
    """What splits the first lines into equally many fields."""
    # A character that no line has: each line is one field, also of a compressed file.
    lines = _parse(content, "\x1f", header=False, n_rows=20, quote_char=None).to_series()
    lines = [line for line in lines.drop_nulls() if line.strip()]
    for separator in _SEPARATORS:
        widths = {len(row) for row in csv.reader(lines, delimiter=separator)}
        if len(widths) == 1 and widths.pop() > 1:
            return separator
    seen = [separator for separator in _SEPARATORS if lines and separator in lines[0]]
    if seen:
        return usual if usual in seen else seen[0]
    widths = {len(line.split()) for line in lines}
    return " " if len(lines) > 1 and len(widths) == 1 and widths.pop() > 1 else usual


def _holds_values(row: tuple[str | None, ...]) -> bool:
    """Whether a first row is no row of names: numbers, percentages and gaps only."""
    cells = [(cell or "").strip() for cell in row]
    values = [bool(_NUMBER.fullmatch(cell.removesuffix("%").strip())) for cell in cells]
    gaps = [cell in ("", *_MISSING) for cell in cells]
    return any(values) and all(v or gap for v, gap in zip(values, gaps, strict=True))


def numbers(column: pl.Series) -> pl.Series | None:
    """The column in float64, with null for missing values; None if it does not hold numbers."""
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        column = column.replace(dict.fromkeys(["", *_MISSING]))
        lower = column.str.to_lowercase().drop_nulls()
        if len(lower) and lower.is_in(["true", "false"]).all():
            column = column.str.to_lowercase() == "true"
    elif not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        return None
    try:
        return column.cast(pl.Float64).fill_nan(None)
    except pl.exceptions.PolarsError:
        return None


def example(column: pl.Series) -> str:
    """The first value that is not a number, and its row."""
    if column.dtype != pl.String:
        return f"values of type {column.dtype}"
    cells = column.str.strip_chars()
    bad = cells.cast(pl.Float64, strict=False).is_null() & ~cells.is_in(["", *_MISSING])
    row = int(bad.fill_null(False).arg_max() or 0)
    return f"{column[row][:40]!r} in row {row + 1}"


def _pointed(column: pl.Series) -> pl.Series:
    return column.str.replace(",", ".", literal=True)


def _with_commas(column: pl.Series) -> pl.Series:
    return column.filter(column.str.contains(",", literal=True))


def _has_decimal_commas(column: pl.Series) -> bool:
    """Whether the column holds numbers, but for commas in them."""
    return (
        numbers(column) is None
        and numbers(_pointed(column)) is not None
        and not column.str.contains(".", literal=True).any()
    )


def _has_thousands(column: pl.Series) -> bool:
    return bool(_with_commas(column).str.strip_chars().str.contains(_THOUSANDS).all())


def _say_format(source: str, separator: str | None, decimal_comma: bool) -> None:
    names = {"\t": "tab", " ": "space"}
    found = []
    if separator is not None:
        found.append(f"--separator {shlex.quote(names.get(separator, separator))}")
    if decimal_comma:
        found.append("--decimal ,")
    if found:
        words.say(f"{source} is read with {' '.join(found)}.")
