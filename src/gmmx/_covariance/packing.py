"""Symmetric d×d quadratic forms as d(d+1)/2 columns, in an order that needs no gather to build.

Column (s, i) stands for the product x_i·x_{(i+s) mod d}: all products of one shift s are one
slice of the doubled row [x, x] times x, which vectorises, where gathers of pairs do not.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Beyond so many bytes columns are written once, to memory, and not put together in the cache.
_CACHE = 2**25


@lru_cache(maxsize=64)
def _layout(d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of each packed product, and the packed position of each matrix entry."""
    shift = np.repeat(np.arange(d // 2 + 1), d)
    row = np.tile(np.arange(d), d // 2 + 1)
    # With d even the last shift meets every pair twice.
    kept = np.arange(row.size) < d * (d + 1) // 2
    row, column = row[kept], (row[kept] + shift[kept]) % d
    position = np.zeros((d, d), dtype=np.int32)
    position[row, column] = position[column, row] = np.arange(row.size)
    return row, column, position


def monomials(x: Float[Array, "n d"]) -> Float[Array, "n p"]:
    """The products x_i x_j, i ≤ j, then x and 1."""
    n, d = x.shape
    one = jnp.ones_like(x[:, :1])
    if n * (d + 1) * (d + 2) // 2 * x.dtype.itemsize <= _CACHE:
        return jnp.concatenate([_products(x), x, one], axis=1)
    # As products of two columns of [x, 1] they are one pass, though slower an entry.
    row, column, _ = _layout(d)
    row, column = np.append(row, np.arange(d + 1)), np.append(column, np.full(d + 1, d))
    extended = jnp.concatenate([x, one], axis=1)
    left, right = (extended.at[:, of].get(mode="promise_in_bounds") for of in (row, column))
    return left * right


def _products(x: Float[Array, "n d"]) -> Float[Array, "n p"]:
    """The products x_i x_j, i ≤ j."""
    d = x.shape[-1]
    doubled = jnp.concatenate([x, x[:, : d // 2]], axis=1)
    blocks = [x * doubled[:, s : s + d] for s in range((d - 1) // 2 + 1)]
    if d % 2 == 0:
        blocks.append(x[:, : d // 2] * x[:, d // 2 :])
    return jnp.concatenate(blocks, axis=1)


def pack(matrix: Float[Array, "k d d"]) -> Float[Array, "k p"]:
    """Coefficients c of the products with c·φ(x) = xᵀAx for symmetric A."""
    row, column, _ = _layout(matrix.shape[-1])
    return matrix[:, row, column] * np.where(row == column, 1, 2).astype(matrix.dtype)


def unpack(packed: Float[Array, "k p"], d: int) -> Float[Array, "k d d"]:
    """The symmetric matrices Σ xxᵀ from sums of the products."""
    return packed[:, _layout(d)[2]]
