"""What a user has rows in, as a source."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .arrays import ArraySource, mapped
from .base import AbstractSource
from .iterators import IteratorSource
from .tables import SUFFIXES, TableSource


def rows_from(
    what: Any,
    *,
    weights: Any = None,
    columns: Sequence[Any] | None = None,
    mesh: Mesh | None = None,
) -> AbstractSource:
    """Rows that are read in blocks, in place of an array x that has to fit into memory.

    `gmmx.EMFitter().fit(gmmx.rows_from("part-*.npy"), gmm)` reads all files once for each step of
    EM and holds a few blocks of rows at a time. The result is that of the array, up to rounding.

    **Arguments:**

    - `what`: one of
        - a path, a pattern such as `"part-*.npy"`, or a list of paths, of `.npy` files, which are
            memory-mapped, or of tables: `.parquet`, `.arrow`, `.feather`, `.csv` and `.tsv`, which
            need Polars (`pip install "gmmx[cli]"`);
        - an array `(n, d)`, for instance a memory-mapped one, or a list of them;
        - Polars' lazy frame, or a list of them;
        - a function that returns an iterator over arrays `(n_i, d)`, or over pairs of rows and
            weights: a new iterator at each call, over the same rows;
        - an iterator, which is read once: for `gmmx.StepwiseEM` only.
    - `weights`: how often each row counts: the name of a column of tables; for arrays and `.npy`
        files the same as `what`, of weights `(n_i,)`.
    - `columns`: the features to take: names of a table's columns, numbers of an array's. By
        default all but that of the weights.
    - `mesh`: devices over which each block of rows is spread, along all axes of the mesh. One of
        devices of several processes (`jax.distributed`) takes the rows of all processes together:
        each process passes its own rows or files.

    **Returns:** an `AbstractSource`, which `fit`, `initialize`, `select`, densities, `predict` and
    the criteria take in place of x.

    **Raises:** `ValueError` for files that do not exist, or differ in width or dtype. Rows are
    looked at as they are read: NaN is an error that names the file and the row.
    """
    source = _source(what, weights, columns)
    if mesh is not None:
        source.together = mesh.is_multi_process
        own = mesh.local_mesh if source.together else mesh
        source.sharding = NamedSharding(own, P(own.axis_names))
    return source


def _source(what: Any, weights: Any, columns: Sequence[Any] | None) -> AbstractSource:
    if isinstance(what, AbstractSource):
        raise ValueError("these rows are a source already: pass them as they are.")
    if isinstance(what, np.ndarray) or callable(what) or isinstance(what, Iterator):
        return _of_values(what, weights, columns)
    items = what if isinstance(what, list | tuple) else [what]
    if items and all(isinstance(item, np.ndarray) for item in items):
        return _of_values(items, weights, columns)
    if not all(isinstance(item, str | os.PathLike) for item in items):
        return TableSource(items, columns, weights)
    paths = _paths(items)
    kinds = {path.suffix.lower() for path in paths}
    if kinds == {".npy"}:
        named = None if weights is None else _paths(_listed(weights))
        return ArraySource(
            [mapped(path) for path in paths],
            None if named is None else [mapped(path) for path in named],
            [str(path) for path in paths],
            columns,
        )
    unknown = sorted(kinds - set(SUFFIXES))
    if unknown:
        raise ValueError(
            f"files that end in {', '.join(unknown)} cannot be read in blocks, or not together; "
            f"expected .npy files alone, or tables: {', '.join(SUFFIXES)}."
        )
    return TableSource(paths, columns, weights)


def _of_values(
    what: Any, weights: Any, columns: Sequence[Any] | None
) -> AbstractSource:  # fmt: skip
    if not isinstance(what, np.ndarray | list | tuple):
        if columns is not None:
            raise ValueError("of an iterator's blocks take the columns before they are yielded.")
        if weights is not None:
            raise ValueError("weights of an iterator come with its rows: yield pairs (x, weights).")
        return IteratorSource(what)
    found = None if weights is None else _listed(weights)
    return ArraySource(_listed(what), found, columns=columns)


def _listed(what: Any) -> list[Any]:
    return list(what) if isinstance(what, list | tuple) else [what]


def _paths(items: Sequence[Any]) -> list[Path]:
    """The files, those of a pattern in the order of their names."""
    found: list[Path] = []
    for item in items:
        path = Path(item)
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(str(path))))  # noqa: PTH207
        if not matches:
            raise ValueError(f"there is no file {item}.")
        found += matches
    return found
