"""Covariances of noise, in the shapes that a caller gives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks
from ._linalg import inverse_lower, inverse_root, product, whiten_by
from ._orthogonal import lower_root, root_tangent
from ._rows import fill_rows

_FREE = (
    "Without noise, use gmm.condition(indices, values), after gmm.affine(A, b) where features "
    "are combined"
)


def as_noise(
    value: Any, m: int, dtype: Any, batch: tuple[int, ...] = (), *, may_be_zero: bool = False
) -> Float[Array, "*b"]:
    """A noise covariance: σ² `()`, variances `(m,)`, a matrix `(m, m)`, or a batch of these.

    A variance may be infinite, which means not observed, unless the noise may be zero.

    **Arguments:**

    - `dtype`: of a Python number, which has none of its own.
    - `batch`: the leading axes of a batch of covariances. `(m, m)` is always one matrix.

    **Raises:** `ValueError` where the shape does not fit, or a covariance is not positive.
    """
    noise = _checks.as_floating(value, "noise_covariance", of_numbers=dtype)
    shape = noise.shape
    if shape == (1,):
        noise = jnp.broadcast_to(noise, (m,))
    elif shape not in ((), (m,), (m, m), (*batch, 1), (*batch, m), (*batch, m, m)):
        batched = f", ({', '.join(map(str, batch))}, …) for one a sample" if batch else ""
        raise ValueError(
            f"noise_covariance has shape {shape}; expected () for σ², ({m},) for variances or "
            f"({m}, {m}) for a matrix{batched}."
        )
    if _checks.is_concrete(noise):
        try:
            _check_values(noise, is_matrix(noise, m, batch), may_be_zero)
        except ValueError as error:
            if shape == (m, m) == (*batch, m):
                raise ValueError(
                    f"{error} The shape ({m}, {m}) means one matrix: for the variances of {m} "
                    "samples pass y[None] and noise_covariance[None]."
                ) from error
            raise
    return noise


def is_matrix(noise: Float[Array, "*b"], m: int, batch: tuple[int, ...] = ()) -> bool:
    """Whether these are matrices, not variances."""
    return noise.shape in ((m, m), (*batch, m, m)) and noise.shape != (*batch, 1)


def _check_values(noise: Float[Array, "*b"], dense: bool, may_be_zero: bool) -> None:
    values = np.asarray(noise)
    if np.isnan(values).any() or ((dense or may_be_zero) and np.isinf(values).any()):
        raise ValueError("noise_covariance holds values that are NaN or infinite.")
    if dense:
        _checks.check_symmetric(noise)
        matrices = fill_rows(noise.reshape(-1, *noise.shape[-2:]))
        pivots = np.diagonal(np.asarray(inverse_root(matrices)), axis1=-2, axis2=-1)
        if not (pivots > 0).all():
            fix = "Add a small number to its diagonal" if may_be_zero else _FREE
            raise ValueError(f"noise_covariance is not positive definite. {fix}.")
    elif (values < 0).any():
        raise ValueError(f"noise_covariance holds the negative variance {values.min():g}.")
    elif not may_be_zero and (values == 0).any():
        raise ValueError(f"noise_covariance holds a variance of zero. {_FREE}.")


def noise_root(noise: Float[Array, "*b"], m: int) -> Float[Array, "m m"]:
    """L with C = LLᵀ, of one noise covariance."""
    if noise.ndim < 2:
        return jnp.sqrt(noise) * jnp.eye(m, dtype=noise.dtype)
    return jnp.tril(whiten_by(noise, noise).mT)


def noise_factor(noise: Float[Array, "*b"], m: int) -> Float[Array, "m m"]:
    """L⁻¹, so that C⁻¹ = L⁻ᵀL⁻¹, of one noise covariance."""
    if noise.ndim < 2:
        return jnp.eye(m, dtype=noise.dtype) / jnp.sqrt(noise)
    return inverse_root(noise)


@jax.custom_jvp
def noisy_root(roots: Float[Array, "*k m m"], noise: Float[Array, "*b"]) -> Float[Array, "*k m m"]:
    """The lower triangular R with RRᵀ = LLᵀ + C, for each L of the roots and one noise covariance.

    Its derivative goes through the squares, since the root of zero noise has none.
    """
    root = jnp.broadcast_to(noise_root(noise, roots.shape[-1]), roots.shape)
    return lower_root(jnp.concatenate([roots, root], axis=-1))


@noisy_root.defjvp
def _noisy_root_jvp(primals, tangents):
    (roots, noise), (roots_moved, noise_moved) = primals, tangents
    root = noisy_root(roots, noise)
    inverse = inverse_lower(root)
    if noise.ndim < 2:
        noise_moved = noise_moved * jnp.eye(roots.shape[-1], dtype=roots.dtype)
    # Only the upper triangle of a matrix is read.
    noise_moved = jnp.triu(noise_moved) + jnp.triu(noise_moved, 1).mT
    moved = product(product(inverse, roots_moved), product(inverse, roots).mT)
    by_noise = product(product(inverse, noise_moved), inverse.mT)
    return root, root_tangent(root, moved + moved.mT + by_noise)
