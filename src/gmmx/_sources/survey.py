"""What one pass over the rows of a source finds: their moments, their box and a sample."""

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from .._processes import gathered
from .base import AbstractSource, Block, ahead, checked

# Numbers of a block, which is converted to float64.
_BLOCK = 2**19
SAMPLE = 2**15
"""Rows that are drawn"""


@dataclasses.dataclass
class Survey:
    """Of the rows so far; in NumPy and float64, so that nothing is lost in a sum."""

    n: int = 0
    """The number of rows"""
    counted: int = 0
    """Those of a weight"""
    total: float = 0.0
    """The sum of the weights"""
    mean: Any = 0.0
    scatter: Any = 0.0
    """Σ w (x − m)(x − m)ᵀ, or its diagonal"""
    low: Any = np.inf
    high: Any = -np.inf
    own: int = 0
    """The number of rows of this process"""
    digest: Any = dataclasses.field(default_factory=lambda: hashlib.blake2b(digest_size=12))
    """Of the means of the blocks, to tell these data from others"""

    def add(self, block: Block, turned: bool) -> None:
        """The rows of a block too (Chan, Golub & LeVeque 1983)."""
        x = block.x.astype(np.float64)
        weights = None if block.weights is None else block.weights.astype(np.float64)
        count = float(len(x) if weights is None else weights.sum())
        self.n += len(x)
        self.counted += int(len(x) if weights is None else np.count_nonzero(weights))
        self.low, self.high = np.minimum(self.low, x.min(0)), np.maximum(self.high, x.max(0))
        if not count:
            return
        # Relative to one row, so that a constant feature is exactly that.
        first = x[0].copy()
        x -= first
        apart = x.mean(0) if weights is None else weights @ x / count
        x -= apart
        mean = first + apart
        own = x if weights is None else x * weights[:, None]
        scatter = own.T @ x if turned else np.einsum("nd,nd->d", own, x)
        self._mix(count, mean, scatter)

    def merge(self, other: "Survey") -> None:
        """The rows of another survey too."""
        if other.total:
            self._mix(other.total, other.mean, other.scatter)
        self.n, self.counted = self.n + other.n, self.counted + other.counted
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)

    def _mix(self, count: float, mean: np.ndarray, scatter: np.ndarray) -> None:
        """Moments of so many more rows."""
        between = mean - self.mean if self.total else np.zeros_like(mean)
        share = self.total * count / (self.total + count)
        square = np.outer(between, between) if scatter.ndim == 2 else between**2
        self.scatter = self.scatter + scatter + share * square
        self.mean = self.mean + between * (count / (self.total + count)) if self.total else mean
        self.total += count
        self.digest.update(mean.tobytes())

    @property
    def variance(self) -> Float[np.ndarray, " d"]:
        """Of each feature"""
        scatter = np.diagonal(self.scatter) if self.scatter.ndim == 2 else self.scatter
        return scatter / self.total

    def fingerprint(self) -> str:
        """What tells these rows from others."""
        digest = self.digest.copy()
        for part in (self.mean, self.scatter, self.low, self.high):
            digest.update(np.asarray(part).tobytes())
        return f"{self.n} rows {digest.hexdigest()}"


class Reservoir:
    """Rows drawn without replacement, the more likely the more they weigh.

    Each row gets the key E/w, E exponential, and those of the smallest keys are kept (Efraimidis
    & Spirakis 2006). With the least key τ that was not kept, a row that was counts
    w / (1 − e^(−wτ)) times: sums over the sample are then unbiased for those over all rows. Where
    all rows are kept, they have the weights that they came with, in their order.
    """

    def __init__(self, most: int, seed: Any):
        self._most, self._rng = most, np.random.default_rng(seed)
        self._keys, self._weights = np.zeros(0), np.zeros(0)
        self._x: np.ndarray | None = None
        self._limit = np.inf

    def add(self, block: Block) -> None:
        """Draw among these rows too."""
        weights = np.ones(len(block.x)) if block.weights is None else block.weights
        with np.errstate(divide="ignore"):
            keys = self._rng.exponential(size=len(block.x)) / weights
        chosen = np.flatnonzero(keys < self._limit)
        if not chosen.size:
            return
        self._keys = np.concatenate([self._keys, keys[chosen]])
        self._weights = np.concatenate([self._weights, weights[chosen]])
        rows = np.asarray(block.x[chosen])
        self._x = rows if self._x is None else np.concatenate([self._x, rows])
        if len(self._keys) <= self._most + 1:
            return
        # One more, whose key is the threshold.
        kept = np.sort(np.argpartition(self._keys, self._most)[: self._most + 1])
        self._keys, self._weights, self._x = self._keys[kept], self._weights[kept], self._x[kept]
        self._limit = self._keys.max()

    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows, and how often each counts."""
        assert self._x is not None
        if len(self._keys) <= self._most:
            return self._x, self._weights
        last = int(np.argmax(self._keys))
        weights = np.delete(self._weights, last)
        return np.delete(self._x, last, axis=0), weights / -np.expm1(-weights * self._keys[last])


def survey(
    source: AbstractSource, dtype: Any, turned: bool, seed: Any = 0, most: int = SAMPLE
) -> tuple[Survey, tuple[np.ndarray, np.ndarray]]:
    """One pass over all rows: their moments, and a sample of at most so many with its weights.

    **Arguments:**

    - `dtype`: in which the rows are to be fitted.
    - `turned`: whether the covariance is wanted, or the variances alone.
    - `seed`: of the draws.

    **Raises:** `ValueError` for a row that is not finite, with its file and number.
    """
    if source.together:
        most, seed = most // jax.process_count(), [*np.ravel(seed), jax.process_index()]
    found, reservoir = Survey(), Reservoir(most, seed)
    for block in ahead(checked(source, max(1, _BLOCK // source.n_features), dtype)):
        found.add(block, turned)
        reservoir.add(block)
    if not found.total:
        raise ValueError("the weights of all rows are zero: no row counts.")
    found.own, sample = found.n, reservoir.drawn()
    if source.together:
        found, sample = _of_all(found, sample)
    return found, sample


def _of_all(found: Survey, sample: tuple[np.ndarray, np.ndarray]) -> Any:
    """The survey and the sample of the rows of all processes."""
    counts = np.asarray([found.n, found.counted, found.total])
    moments = (np.asarray(v, np.float64) for v in (found.mean, found.scatter))
    parts = gathered([counts, *moments, found.low, found.high, *sample])
    whole = Survey(own=found.n)
    for (n, counted, total), mean, scatter, low, high, *_ in parts:
        whole.merge(Survey(int(n), int(counted), float(total), mean, scatter, low, high))
    x, weights = (np.concatenate([part[i] for part in parts]) for i in (5, 6))
    return whole, (x, weights)
