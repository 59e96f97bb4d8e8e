"""What a source of rows is, and how its rows are taken: in blocks of one size, read ahead."""

import abc
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jax.sharding import NamedSharding

_Item = TypeVar("_Item")


class Block(NamedTuple):
    """Rows of a source that were read at once."""

    x: np.ndarray
    """`(n, d)`"""
    weights: np.ndarray | None
    """How often each row counts, `(n,)`; None for once each"""
    name: str
    """Where they are from, for instance the name of the file"""
    first: int = 0
    """The number of the first of them there"""


class AbstractSource(abc.ABC):
    """Rows that can be read in blocks, any number of times.

    `gmmx.rows_from` makes one of files, arrays or a function. A subclass gives `n_features`,
    `dtype` and `blocks`.
    """

    sharding: NamedSharding | None = None
    """How each block is spread over devices; None for one device"""
    together: bool = False
    """Whether the other processes of `jax.distributed` have more of the rows"""
    once: bool = False
    """Whether the rows can be read a single time"""

    @property
    @abc.abstractmethod
    def n_features(self) -> int:
        """d"""

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype:
        """Of the rows"""

    @abc.abstractmethod
    def blocks(self, n_rows: int) -> Iterator[Block]:
        """All rows in a fixed order, in blocks of about `n_rows`; none of them is empty.

        **Raises:** `ValueError`, with the name of the file, for what is no block of rows.
        """


def check_block(block: Block, n_features: int) -> Block:
    """A block of the right shape, with weights that count, or an error that names its row."""
    x, weights = block.x, block.weights
    if x.ndim != 2 or x.dtype.kind not in "fiub":
        raise ValueError(
            f"{block.name} holds an array of shape {x.shape} and dtype {x.dtype}; expected real "
            "numbers of shape (n, d)."
        )
    if x.shape[1] != n_features:
        raise ValueError(
            f"{block.name} has {x.shape[1]} features; the rows before it have {n_features}."
        )
    if not len(x):
        raise ValueError(f"{block.name} holds no rows. Leave it out.")
    if weights is None:
        return block
    if weights.shape != (len(x),):
        raise ValueError(
            f"{block.name} has weights of shape {weights.shape}; expected one for each of its "
            f"{len(x)} rows."
        )
    bad = ~((weights >= 0) & (weights < np.inf))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{block.name} holds the weight {weights[row]:g} in row {block.first + row}; expected "
            "how often a row counts, zero or positive."
        )
    return block


def check_no_weights(weights: Any) -> None:
    """Refuse weights beside a source."""
    if weights is not None:
        raise ValueError(
            "weights of rows that are read in blocks come with them: gmmx.rows_from(…, weights=…)."
        )


def check_finite(block: Block, dtype: Any) -> None:
    """Refuse NaN, infinity and numbers too large for the dtype, with their row."""
    limit = np.finfo(dtype).max if block.x.dtype.kind == "f" else np.inf
    # A sum tells with one pass, and most blocks are sound.
    with np.errstate(all="ignore"):
        if np.isfinite(block.x.sum(dtype=np.float64)) and np.abs(block.x).max() <= limit:
            return
    bad = ~(np.abs(block.x.astype(np.float64)) <= limit).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{block.name} holds NaN, infinite or, for {np.dtype(dtype)}, too large values in row "
            f"{block.first + row}. Drop such rows."
        )


def checked(source: AbstractSource, n_rows: int, dtype: Any = None) -> Iterator[Block]:
    """The blocks of a source, or an error that names the file and, of a bad row, its number.

    **Arguments:**

    - `dtype`: in which the values have to be finite; None for rows that were looked at before.
    """
    for block in source.blocks(n_rows):
        check_block(block, source.n_features)
        if dtype is not None:
            check_finite(block, dtype)
        yield block


def filled(
    blocks: Iterable[Block], n_rows: int, dtype: Any, skip: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """All rows in blocks of exactly so many, with their weights and how many rows they are.

    The last one is filled up with copies of its last row, of weight zero.

    **Arguments:**

    - `skip`: the number of rows to leave out at the beginning.
    """
    x = weights = np.empty(0)
    used = 0
    for block in blocks:
        begin = min(skip, len(block.x))
        skip -= begin
        while begin < len(block.x):
            if not used:
                x, weights = np.empty((n_rows, block.x.shape[1]), dtype), np.ones(n_rows, dtype)
            end = min(len(block.x), begin + n_rows - used)
            there = slice(used, used + end - begin)
            x[there] = block.x[begin:end]
            if block.weights is not None:
                weights[there] = block.weights[begin:end]
            begin, used = end, there.stop
            if used == n_rows:
                yield x, weights, used
                used = 0
    if used:
        x[used:], weights[used:] = x[used - 1], 0
        yield x, weights, used


def ahead(items: Iterable[_Item], n: int = 2) -> Iterator[_Item]:
    """The items, of which a thread gets the next n while the caller works."""
    iterator = iter(items)
    end: Any = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="gmmx-reads-ahead")
    try:
        pending = deque(pool.submit(next, iterator, end) for _ in range(n))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, iterator, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
