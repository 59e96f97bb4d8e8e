"""Symmetric d×d quadratic forms by their d(d+1)/2 products x_i·x_j, i ≤ j."""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@lru_cache(maxsize=64)
def _layout(d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of each packed product, and the packed position of each matrix entry."""
    row, column = np.triu_indices(d)
    position = np.zeros((d, d), dtype=np.int32)
    position[row, column] = position[column, row] = np.arange(row.size)
    return row, column, position


def monomials(x: Float[Array, "n d"]) -> Float[Array, "p n"]:
    """The products x_i x_j, i ≤ j, then x and 1."""
    d = x.shape[1]
    row, column, _ = _layout(d)
    row, column = np.append(row, np.arange(d + 1)), np.append(column, np.full(d + 1, d))
    extended = jnp.concatenate([x.T, jnp.ones_like(x.T[:1])])
    left, right = (extended.at[of].get(mode="promise_in_bounds") for of in (row, column))
    return left * right


def pack(matrix: Float[Array, "k d d"]) -> Float[Array, "k p"]:
    """Coefficients c of the products with c·φ(x) = xᵀAx for symmetric A."""
    row, column, _ = _layout(matrix.shape[-1])
    return matrix[:, row, column] * np.where(row == column, 1, 2).astype(matrix.dtype)


def unpack(packed: Float[Array, "k p"], d: int) -> Float[Array, "k d d"]:
    """The symmetric matrices Σ xxᵀ from sums of the products."""
    return packed[:, _layout(d)[2]]
