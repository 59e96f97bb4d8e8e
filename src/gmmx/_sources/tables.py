"""Tables of files as sources, read lazily by Polars: Parquet, Arrow and CSV."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .base import AbstractSource, Block

SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".csv", ".tsv")
"""Of the files that are read as tables"""


class TableSource(AbstractSource):
    """Rows of Parquet, Arrow (IPC) or CSV files, of which one batch at a time is in memory.

    Needs Polars: `pip install "gmmx[cli]"`.

    **Arguments:**

    - `paths`: of the files, or Polars' lazy frames.
    - `columns`: the names of the features; by default all columns but that of the weights.
    - `weights`: the column that says how often each row counts.
    """

    def __init__(
        self, paths: Sequence[Any], columns: Sequence[str] | None = None, weights: str | None = None
    ):
        self._pl = pl = _polars()
        self._parts: list[tuple[str, Any]] = []
        self._weights, schema = weights, {}
        for number, path in enumerate(paths):
            is_frame = isinstance(path, pl.LazyFrame)
            name = f"frame {number}" if is_frame else str(path)
            with _errors_of(pl, name):
                frame = path if is_frame else _scan(pl, Path(path))
                schema = frame.collect_schema()
            if columns is None:
                columns = [column for column in schema if column != weights]
            for column in [*columns, *([] if weights is None else [weights])]:
                if column not in schema:
                    raise ValueError(
                        f"{name} has no column {column!r}. It has {', '.join(schema)}."
                    )
                if not (schema[column].is_numeric() or schema[column] == pl.Boolean):
                    raise ValueError(
                        f"{name}: column {column!r} holds {schema[column]}; expected numbers. "
                        "Name the columns to use: columns=[…]"
                    )
            self._parts.append((name, frame))
        if not self._parts:
            raise ValueError("there are no files; expected at least one.")
        self._columns = list(columns or [])
        kinds = {schema[column] for column in self._columns}
        self._dtype = np.dtype("float32" if kinds == {pl.Float32} else "float64")

    @property
    def columns(self) -> list[str]:
        """The names of the features"""
        return self._columns

    @property
    def n_features(self) -> int:
        return len(self._columns)

    @property
    def dtype(self) -> np.dtype:
        return self._dtype

    def blocks(self, n_rows: int) -> Iterator[Block]:
        pl = self._pl
        kind = pl.Float32 if self._dtype == np.float32 else pl.Float64
        wanted = [pl.col(name).cast(kind) for name in self._columns]
        if self._weights is not None:
            wanted.append(pl.col(self._weights).cast(pl.Float64).alias("weight of the row"))
        for name, frame in self._parts:
            first = 0
            with _errors_of(pl, name):
                batches = frame.select(wanted).collect_batches(
                    chunk_size=n_rows, maintain_order=True, lazy=True, engine="streaming"
                )
                for batch in batches:
                    if not batch.height:
                        continue
                    # Nulls become NaN, which is refused with its row.
                    x = batch.select(batch.columns[: self.n_features]).to_numpy()
                    weights = None if self._weights is None else batch["weight of the row"]
                    weights = None if weights is None else weights.to_numpy()
                    yield Block(x, weights, name, first)
                    first += batch.height
            if not first:
                raise ValueError(f"{name} holds no rows. Leave it out.")


def _polars() -> Any:
    try:
        import polars as pl
    except ImportError as error:
        raise ImportError('tables are read by Polars: pip install "gmmx[cli]"') from error
    return pl


def _scan(pl: Any, path: Path) -> Any:
    """The file as a lazy frame."""
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return pl.scan_parquet(path, glob=False)
    if suffix in (".arrow", ".feather", ".ipc"):
        return pl.scan_ipc(path)
    separator = "\t" if suffix == ".tsv" else ","
    scan: Callable[..., Any] = lambda **more: pl.scan_csv(  # noqa: E731
        path, separator=separator, glob=False, **more
    )
    # What looks like integers in the first rows may not in the last.
    schema = scan(infer_schema_length=1000).collect_schema()
    return scan(schema_overrides={
        name: pl.Float64 for name, kind in schema.items() if kind.is_numeric()
    })  # fmt: skip


class _errors_of:  # noqa: N801
    """Errors of Polars as errors of the file."""

    def __init__(self, pl: Any, name: str):
        self._pl, self._name = pl, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, self._pl.exceptions.PolarsError):
            reason = str(error).split("\n")[0]
            raise ValueError(f"{self._name} cannot be read: {reason}") from error
