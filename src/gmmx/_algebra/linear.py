"""Linear maps of a mixture's variable: fewer features, Ax + b, and x plus noise."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

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
    structure = gmm.structure.marginal(kept, *gmm.means.shape)
    return type(gmm)(gmm.logits, gmm.means[:, kept], structure)


def affine(gmm: "GaussianMixture", matrix: Any, offset: Any = None) -> "GaussianMixture":
    """The mixture of Ax + b."""
    matrix = _checks.as_floating(matrix, "matrix")
    d = gmm.n_features
    if matrix.ndim != 2 or matrix.shape[1] != d:
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
    offset = _checks.as_floating(0.0 if offset is None else offset, "offset", matrix.dtype)
    if offset.shape not in ((), (m,)):
        raise ValueError(f"offset has shape {offset.shape}; ({m},) was wanted, as Ax has it.")
    _checks.check_finite(matrix, "matrix")
    _checks.check_finite(jnp.atleast_1d(offset), "offset")
    gmm, matrix, offset = _checks.same_dtype(gmm, matrix, offset)
    roots = inverse_lower(gmm.structure.distinct_factors(*gmm.means.shape))
    factors = inverse_lower(lower_root(product(matrix, roots)))
    if _checks.is_concrete(factors) and bool(jnp.any(jnp.isnan(factors))):
        raise ValueError(
            "the covariance of Ax is singular: a row of matrix is zero, or depends on the others "
            "to within rounding. Drop it, or add noise: "
            "gmm.posterior(y, A, noise_covariance).observed."
        )
    means = einsum("md,kd->km", matrix, gmm.means) + offset
    return type(gmm)(gmm.logits, means, gmm.structure.with_distinct_factors(factors))


def convolve(gmm: "GaussianMixture", noise_covariance: Any) -> "GaussianMixture":
    """The mixture of x + ε, ε ~ N(0, C)."""
    noise = as_noise(noise_covariance, gmm.n_features, may_be_zero=True)
    gmm, noise = _checks.same_dtype(gmm, noise)
    structure = gmm.structure.convolve(noise, *gmm.means.shape)
    return type(gmm)(gmm.logits, gmm.means, structure)
