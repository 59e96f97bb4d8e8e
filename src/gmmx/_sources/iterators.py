"""Blocks that a function or an iterator of the user's yields."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from .base import AbstractSource, Block, check_block


class IteratorSource(AbstractSource):
    """Blocks of rows that a function yields: arrays `(n_i, d)`, or pairs of rows and weights.

    **Arguments:**

    - `make`: called with nothing, returns an iterator over all blocks, the same ones each time.
        An iterator itself can be read once: enough for `StepwiseEM`, not for EM.
    """

    def __init__(self, make: Callable[[], Any] | Iterator[Any]):
        self.once = not callable(make)
        self._make = make
        begun = self._begin()
        try:
            first = next(begun)
        except StopIteration:
            raise ValueError("the iterator yields no blocks; expected arrays (n, d).") from None
        self._first = _as_block(first, 0)
        width = self._first.x.shape[1] if self._first.x.ndim == 2 else 0
        check_block(self._first, width)
        # What was taken of an iterator that comes once is put back.
        self._begun = chain([first], begun) if self.once else None

    @property
    def n_features(self) -> int:
        return self._first.x.shape[1]

    @property
    def dtype(self) -> np.dtype:
        return self._first.x.dtype

    def blocks(self, n_rows: int) -> Iterator[Block]:
        begun = self._begin() if self._begun is None else self._begun
        for number, item in enumerate(begun):
            block = _as_block(item, number)
            check_block(block, self.n_features)
            for first in range(0, len(block.x), n_rows):
                rows = slice(first, first + n_rows)
                weights = None if block.weights is None else block.weights[rows]
                yield Block(block.x[rows], weights, block.name, first)

    def _begin(self) -> Iterator[Any]:
        return iter(self._make() if callable(self._make) else self._make)


def _as_block(item: Any, number: int) -> Block:
    x, weights = item if isinstance(item, tuple) else (item, None)
    weights = None if weights is None else np.asarray(weights)
    return Block(np.asarray(x), weights, f"block {number}")
