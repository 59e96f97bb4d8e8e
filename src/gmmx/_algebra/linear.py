"""Linear maps of the variable of a mixture: fewer features, Ax + b, and x plus noise."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._components import Components
from .._covariance.base import exact
from .._covariance.low_rank import AbstractLowRank
from .._linalg import einsum, inverse_lower, product
from .._noise import as_noise
from .._orthogonal import lower_root
from .indices import split


def marginal(gmm: Components, indices: Any) -> Components:
    """The mixture of some of the features."""
    kept, _ = split(indices, gmm.n_features)
    return _marginal(gmm, tuple(kept.tolist()))


# Each operation is one program when it is called from Python; inside a transformation it is
# inlined.


@partial(jax.jit, static_argnames="kept")
def _marginal(gmm: Components, kept: tuple[int, ...]) -> Components:
    structure = gmm.structure.marginal(np.asarray(kept), *gmm.means.shape)
    return type(gmm)(gmm.logits, gmm.means[:, np.asarray(kept)], structure)


def affine(gmm: Components, matrix: Any, offset: Any = None) -> Components:
    """The mixture of Ax + b."""
    matrix = _checks.as_floating(matrix, "matrix")
    d = gmm.n_features
    if matrix.ndim != 2 or matrix.shape[1] != d or matrix.shape[0] == 0:
        raise ValueError(
            f"matrix has shape {matrix.shape}; expected (m, {d}), a row for each new feature and "
            "a column for each feature of the mixture."
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
        raise ValueError(f"offset has shape {offset.shape}; expected ({m},), the shape of Ax.")
    _checks.check_finite(matrix, "matrix")
    _checks.check_finite(offset, "offset")
    mapped = _affine(*_checks.same_dtype(gmm, matrix, offset))
    leaves = jax.tree.leaves(mapped.structure)
    if _checks.is_concrete(leaves) and any(np.isnan(leaf).any() for leaf in leaves):
        raise ValueError(
            "the covariance of Ax is singular: a row of matrix is zero, or depends on the others "
            "to within rounding. Drop it, or add noise: "
            "gmm.posterior(y, A, noise_covariance).observed."
        )
    return mapped


@jax.jit
def _affine(gmm: Components, matrix: Float[Array, "m d"], offset: Float[Array, "*m"]) -> Components:
    means = einsum("md,kd->km", matrix, gmm.means) + offset
    if isinstance(gmm.structure, AbstractLowRank):
        roots = gmm.structure.roots_of(matrix)
    else:
        roots = product(matrix, inverse_lower(gmm.distinct_factors()))
    factors = inverse_lower(lower_root(roots))
    return type(gmm)(gmm.logits, means, exact(factors, gmm.n_components))


def convolve(gmm: Components, noise_covariance: Any) -> Components:
    """The mixture of x + ε, ε ~ N(0, C)."""
    noise = as_noise(noise_covariance, gmm.n_features, gmm.dtype, may_be_zero=True)
    return _convolve(*_checks.same_dtype(gmm, noise))


@jax.jit
def _convolve(gmm: Components, noise: Float[Array, "*d"]) -> Components:
    # A negative variance that Python did not see becomes NaN in every structure.
    noise = noise if noise.ndim == 2 else jnp.where(noise < 0, jnp.nan, noise)
    structure = gmm.structure.convolve(noise, *gmm.means.shape)
    return type(gmm)(gmm.logits, gmm.means, structure)
