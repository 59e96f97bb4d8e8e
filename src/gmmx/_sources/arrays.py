"""Arrays as sources: those in memory, and memory-mapped `.npy` files."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .base import AbstractSource, Block, check_block


class ArraySource(AbstractSource):
    """Arrays of rows, one after the other.

    **Arguments:**

    - `arrays`: `(n_i, d)` each, such as those that `numpy.load(path, mmap_mode="r")` gives.
    - `weights`: how often each row counts, `(n_i,)` each; None for once.
    - `names`: of the arrays, for messages.
    - `columns`: the numbers of the features to take; all by default.
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        weights: Sequence[np.ndarray] | None = None,
        names: Sequence[str] | None = None,
        columns: Sequence[int] | None = None,
    ):
        if not arrays:
            raise ValueError("there are no arrays; expected at least one.")
        if weights is not None and len(weights) != len(arrays):
            raise ValueError(
                f"there are {len(arrays)} arrays and {len(weights)} arrays of weights; expected "
                "one for each, in the same order."
            )
        names = names or [f"array {i}" for i in range(len(arrays))]
        found = [None] * len(arrays) if weights is None else weights
        self._parts = [
            Block(x, w, name) for x, w, name in zip(arrays, found, names, strict=True)
        ]  # fmt: skip
        self._width = width = arrays[0].shape[1] if arrays[0].ndim == 2 else 0
        self._columns = None if columns is None else [int(column) for column in columns]
        unknown = [c for c in self._columns or [] if not 0 <= c < width]
        if unknown:
            raise ValueError(f"{names[0]} has no column {unknown[0]}. It has 0 to {width - 1}.")
        for part in self._parts:
            # Weights are looked at as they are read.
            check_block(part._replace(weights=None), width)
            if part.x.dtype != arrays[0].dtype:
                raise ValueError(
                    f"{part.name} has dtype {part.x.dtype}, and {names[0]} has "
                    f"{arrays[0].dtype}. Convert one of them."
                )

    @property
    def n_features(self) -> int:
        return self._width if self._columns is None else len(self._columns)

    @property
    def dtype(self) -> np.dtype:
        return self._parts[0].x.dtype

    def blocks(self, n_rows: int) -> Iterator[Block]:
        for x, weights, name, _ in self._parts:
            if weights is not None and len(weights) != len(x):
                check_block(Block(x, weights, name), self._width)
            for first in range(0, len(x), n_rows):
                rows = slice(first, first + n_rows)
                some = None if weights is None else np.asarray(weights[rows])
                # A view: what is skipped is not read.
                found = np.asarray(x[rows])
                if self._columns is not None:
                    found = found[:, self._columns]
                yield Block(found, some, name, first)


def mapped(path: Any) -> np.ndarray:
    """The array in a `.npy` file, memory-mapped."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    # For a damaged file NumPy raises whatever its parser of text does.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged, or holds no array of numbers. Write it again with numpy.save."
        ) from error
