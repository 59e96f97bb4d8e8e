"""Linear maps of a mixture's variable: fewer features, Ax + b, and x plus noise."""

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._linalg import einsum, inverse_lower, product
from .._noise import as_noise
from .._orthogonal import lower_root
from .indices import split

if TYPE_CHECKING:
    from .._mixture import GaussianMixture


def marginal(gmm: "GaussianMixture", indices: Any) -> "GaussianMixture":
    """The mixture of some of the features."""
    kept, _ = split(indices, gmm.n_features)
    return _marginal(gmm, tuple(kept.tolist()))


# Each operation is compiled as one program, so that a call from Python is not dispatched step by
# step; inside a caller's transformation it is inlined.


@partial(jax.jit, static_argnames="kept")
def _marginal(gmm: "GaussianMixture", kept: tuple[int, ...]) -> "GaussianMixture":
    structure = gmm.structure.marginal(np.asarray(kept), *gmm.means.shape)
    return type(gmm)(gmm.logits, gmm.means[:, np.asarray(kept)], structure)


def affine(gmm: "GaussianMixture", matrix: Any, offset: Any = None) -> "GaussianMixture":
    """The mixture of Ax + b."""
    matrix = _checks.as_floating(matrix, "matrix")
    d = gmm.n_features
    if matrix.ndim != 2 or matrix.shape[1] != d or matrix.shape[0] == 0:
        raise ValueError(
            f"matrix has shape {matrix.shape}; (m, {d}) was wanted, a row for each new feature "
            "and a column for each of the mixture's."
        )
    m = matrix.shape[0]
    if m > d:
        raise ValueError(
            f"matrix has shape {matrix.shape}: {m} features made of {d} have a singular "
            "covariance. For Ax plus noise, take gmm.posterior(y, A, noise_covariance).observed."
        )
    offset = 0.0 if offset is None else offset
    offset = _checks.as_floating(offset, "offset", of_numbers=gmm.dtype)
    if offset.shape not in ((), (m,)):
        raise ValueError(f"offset has shape {offset.shape}; ({m},) was wanted, as Ax has it.")
    _checks.check_finite(matrix, "matrix")
    _checks.check_finite(jnp.atleast_1d(offset), "offset")
    means, factors = _affine(*_checks.same_dtype(gmm, matrix, offset))
    if _checks.is_concrete(factors) and bool(jnp.any(jnp.isnan(factors))):
        raise ValueError(
            "the covariance of Ax is singular: a row of matrix is zero, or depends on the others "
            "to within rounding. Drop it, or add noise: "
            "gmm.posterior(y, A, noise_covariance).observed."
        )
    logits = gmm.logits.astype(means.dtype)
    return type(gmm)(logits, means, gmm.structure.with_distinct_factors(factors))


@jax.jit
def _affine(
    gmm: "GaussianMixture", matrix: Float[Array, "m d"], offset: Float[Array, "*m"]
) -> tuple[Float[Array, "k m"], Float[Array, "j m m"]]:
    """The means and the distinct factors."""
    roots = inverse_lower(gmm.structure.distinct_factors(*gmm.means.shape))
    means = einsum("md,kd->km", matrix, gmm.means) + offset
    return means, inverse_lower(lower_root(product(matrix, roots)))


def convolve(gmm: "GaussianMixture", noise_covariance: Any) -> "GaussianMixture":
    """The mixture of x + ε, ε ~ N(0, C)."""
    noise = as_noise(noise_covariance, gmm.n_features, gmm.dtype, may_be_zero=True)
    return _convolve(*_checks.same_dtype(gmm, noise))


@jax.jit
def _convolve(gmm: "GaussianMixture", noise: Float[Array, "*d"]) -> "GaussianMixture":
    # A negative variance that Python did not see is NaN in every structure.
    noise = noise if noise.ndim == 2 else jnp.where(noise < 0, jnp.nan, noise)
    structure = gmm.structure.convolve(noise, *gmm.means.shape)
    return type(gmm)(gmm.logits, gmm.means, structure)
