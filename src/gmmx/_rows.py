"""Rows filled up to a few sizes, so that data of another length compile nothing.

What is filled in are copies of the last row, of weight zero. Nobody sees them: they take no part in
means, likelihoods or criteria, and results are cut back to the rows that came. Inside a caller's
transformation nothing is filled up.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._checks import array_module, as_floating, as_weights, check_count, is_concrete
from ._data import Data, Samples, of_rows

# Up to the first bound there are two sizes an octave, which fill up by a sixth in the mean; up to
# the second there are eight. Beyond it a program is cheap beside the work, and a copy is not.
_COARSE = 2**13
_FINE = 2**18


def size(n: int) -> int:
    """The size that n rows are filled up to."""
    if n > _FINE:
        return n
    octave = 1 << (n - 1).bit_length()
    step = max(1, octave // (4 if octave <= _COARSE else 16))
    return -(-n // step) * step


def fill(
    x: Samples, weights: Float[Any, " n"] | None = None
) -> tuple[Any, Float[Array, " m"] | None]:
    """The rows and their weights, filled up. Weights of None stay so where nothing is filled in.

    On the host: as operations of JAX each length would be a program of its own.
    """
    n, wanted = x.shape[0], size(x.shape[0])
    if weights is None and n <= _COARSE:
        # Also where nothing is filled in, so that a program serves all lengths up to its size.
        weights = np.ones(n, x.dtype)
    if weights is None and (wanted == n or _is_spread(x)):
        return x, None
    wanted = n if _is_spread(x) else wanted
    filled = np.zeros(wanted, x.dtype)
    filled[:n] = 1 if weights is None else weights
    return fill_rows(x), jax.device_put(filled)


def pad_rows(
    x: Any, multiple: int, *, weights: Any = None
) -> tuple[Float[Array, "m ..."], Float[Array, " m"]]:
    """Rows filled up to a multiple, for a program of your own that is to compile once.

    What is filled in are copies of the last row, of weight zero: pass the weights to `fit`, `score`
    or a loss, and nothing changes.

    **Arguments:**

    - `x`: rows `(n, ...)`, n ≥ 1.
    - `multiple`: of which the number of rows becomes one, such as the size of a full batch.
    - `weights`: of the rows, `(n,)`; one by default.

    **Returns:** the rows `(m, ...)` and their weights `(m,)`.

    **Raises:** `ValueError` where x has no rows, or `multiple` is not a positive integer.
    """
    multiple = check_count(multiple, "multiple")
    x = as_floating(x, "x")
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"x has shape {x.shape}; expected at least one row to copy.")
    n = x.shape[0]
    counts = np.ones(n, x.dtype) if weights is None else as_weights(weights, (n,), x.dtype)
    # On the host where values are known: as operations of JAX each length would be a program.
    xp = array_module(x, counts)
    more = -n % multiple
    padded = xp.pad(xp.asarray(x), [(0, more)] + [(0, 0)] * (x.ndim - 1), mode="edge")
    filled = xp.pad(xp.asarray(counts), (0, more))
    return jnp.asarray(padded, x.dtype), jnp.asarray(filled, x.dtype)


def fill_rows(x: Any) -> Any:
    """The rows alone, an array `(n, ...)` or `Data`, filled up."""
    if isinstance(x, Data):
        return of_rows(fill_rows, x)
    n, wanted = x.shape[0], size(x.shape[0])
    if wanted == n or n == 0 or _is_spread(x):
        return x
    filled = np.empty((wanted, *x.shape[1:]), x.dtype)
    filled[:n] = x
    filled[n:] = filled[n - 1]
    return jax.device_put(filled)


def cut(values: PyTree, n: int) -> PyTree:
    """The first n rows of each array."""

    def leading(leaf: Array) -> Array:
        return leaf if leaf.shape[0] == n else jax.device_put(np.asarray(leaf)[:n])

    return jax.tree.map(leading, values)


def by_rows(
    fn: Callable[..., PyTree], batch: tuple[int, ...], arrays: PyTree, *others: PyTree
) -> PyTree:
    """`fn(arrays)`, a function of rows, with the leading axes `batch` taken as rows.

    **Arguments:**

    - `arrays`: arrays whose first axes are the batch's. They are filled up where Python sees them.
    - `others`: what else `fn` reads; if it is traced, nothing is filled up.
    """
    n = math.prod(batch)
    arrays = jax.tree.map(lambda leaf: leaf.reshape(n, *leaf.shape[len(batch) :]), arrays)
    filling = is_concrete(arrays, others) and not any(map(_is_spread, jax.tree.leaves(arrays)))
    if filling:
        arrays = jax.tree.map(fill_rows, arrays)
    values = fn(arrays)
    if filling:
        values = cut(values, n)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), values)


def _is_spread(x: Any) -> bool:
    """Whether the rows lie on several devices, where they stay."""
    leaves = (leaf for leaf in jax.tree.leaves(x) if isinstance(leaf, jax.Array))
    return any(len(leaf.sharding.device_set) > 1 for leaf in leaves)
