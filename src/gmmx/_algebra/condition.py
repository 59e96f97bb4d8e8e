"""A mixture given an observation that depends on it linearly: by features, or Ax + b + noise.

Both are p(x | y) of a joint Gaussian mixture of (y, x). Its components' joint precision factors,
made triangular with y first, hold all of it: see `condition_factor`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .. import _checks
from .._batch import MixtureBatch
from .._chunks import map_rows, rows_per_chunk
from .._covariance import AbstractCovariance
from .._grouped import grouped_product
from .._linalg import einsum, inverse_lower, product
from .._noise import noise_factor, noise_root
from .._orthogonal import condition_factor, lower_root
from .indices import split

if TYPE_CHECKING:
    from .._mixture import GaussianMixture


class Conditional(eqx.Module):
    """p(x | y) as a function of y: N(x; μ_k + G_k(y − ν_k), Σ_k) of weights p(k | y)."""

    observed: "GaussianMixture"
    """p(y), a mixture of m features, means ν_k"""
    gains: Float[Array, "k d m"]
    """G_k"""
    means: Float[Array, "k d"]
    """μ_k, the prior means of x"""
    structure: AbstractCovariance
    """The covariances of x given y and k, which do not depend on y"""

    def component_means(self, y: Float[Array, "*batch m"]) -> Float[Array, "*batch k d"]:
        """μ_k + G_k(y − ν_k), subtracted first: as accurate as y is."""
        apart = y[..., None, :] - self.observed.means
        return self.means + einsum("kdm,...km->...kd", self.gains, apart)


def check_values(
    gmm: "GaussianMixture", indices: Any, values: Any
) -> tuple[Conditional, Float[Array, "*batch m"]]:
    """What a caller of `condition` gave: the other features given the named ones, and values."""
    named, rest = split(indices, gmm.n_features)
    if not rest.size:
        raise ValueError(
            f"indices names all {gmm.n_features} features: none are left to be described. Their "
            "density is gmm.log_prob(x)."
        )
    values = _checks.as_floating(values, "values")
    if values.ndim == 0 or values.shape[-1] != named.size:
        raise ValueError(
            f"values has shape {values.shape}, but indices names {named.size} features: (*batch, "
            f"{named.size}) was wanted."
        )
    _checks.check_finite(values, "values")
    gmm, values = _checks.same_dtype(gmm, values)
    return given_features(gmm, tuple(named.tolist()), tuple(rest.tolist())), values


# What follows is compiled, each as a program of its own, as the density is.


@partial(jax.jit, static_argnames=("named", "rest"))
def given_features(
    gmm: "GaussianMixture", named: tuple[int, ...], rest: tuple[int, ...]
) -> Conditional:
    """The other features given the named ones."""
    given, others = np.asarray(named), np.asarray(rest)
    marginal, structure, gains = gmm.structure.conditional(given, others, *gmm.means.shape)
    observed = type(gmm)(gmm.logits, gmm.means[:, given], marginal)
    return Conditional(observed, gains, gmm.means[:, others], structure)


@jax.jit
def given_observation(
    gmm: "GaussianMixture",
    matrix: Float[Array, "m d"] | None,
    offset: Float[Array, " m"],
    noise: Float[Array, "*m"],
) -> Conditional:
    """x given y = Ax + b + ε, ε ~ N(0, C).

    The joint precision of (y, x) is MᵀM with M = [[C^-½, −C^-½A], [0, W]]; it gives the gains and
    the posterior precisions. The covariance of y is RRᵀ with R = [C^½, AW⁻¹]: with little noise
    M's columns are far larger than what y's own precision is, and would round it off.

    A coordinate of infinite noise becomes a standard normal one of its own, and y there is to be
    zero.
    """
    (k, d), m = gmm.means.shape, offset.shape[0]
    matrix = jnp.eye(d, dtype=gmm.dtype) if matrix is None else matrix
    if noise.ndim == 1:
        missing = jnp.isinf(noise)
        matrix = jnp.where(missing[:, None], 0, matrix)
        offset = jnp.where(missing, 0, offset)
        noise = jnp.where(missing, 1, noise)
    white = noise_factor(noise, m)
    factors = gmm.structure.distinct_factors(k, d)
    above = jnp.concatenate([white, -product(white, matrix)], axis=1)
    above = jnp.broadcast_to(above, (factors.shape[0], m, m + d))
    below = jnp.pad(factors, ((0, 0), (0, 0), (m, 0)))
    _, posterior, gains = condition_factor(jnp.concatenate([above, below], axis=1), m)
    root = jnp.broadcast_to(noise_root(noise, m), (factors.shape[0], m, m))
    spread = product(matrix, inverse_lower(factors))
    evidence = inverse_lower(lower_root(jnp.concatenate([root, spread], axis=-1)))
    means = einsum("md,kd->km", matrix, gmm.means) + offset
    observed = type(gmm)(gmm.logits, means, gmm.structure.with_distinct_factors(evidence))
    structure = gmm.structure.with_distinct_factors(posterior)
    return Conditional(observed, jnp.broadcast_to(gains, (k, d, m)), gmm.means, structure)


def over_rows(fn: Callable[..., PyTree], given: Conditional, y: Array, *rows: Array) -> PyTree:
    """`fn(given, y, *rows)`, a function of rows of y, with y's leading axes taken as rows."""
    batch = y.shape[:-1]
    n = math.prod(batch)
    y, rows = jax.tree.map(lambda leaf: leaf.reshape(n, *leaf.shape[len(batch) :]), (y, rows))
    values = fn(given, y, *rows)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), values)


# What follows from it, at rows of y.


def log_evidence(given: Conditional, y: Float[Array, "n m"]) -> Float[Array, " n"]:
    """log p(y)"""
    return given.observed.log_prob(y)


def responsibilities(given: Conditional, y: Float[Array, "n m"]) -> Float[Array, "n k"]:
    """p(k | y)"""
    return given.observed.predict_proba(y)


@jax.jit
def mixture(given: Conditional, y: Float[Array, "*batch m"]) -> "GaussianMixture | MixtureBatch":
    """The whole of p(x | y)."""
    logits = jax.nn.log_softmax(given.observed.component_log_prob(y))
    means = given.component_means(y)
    if y.ndim == 1:
        return type(given.observed)(logits, means, given.structure)
    return MixtureBatch(logits, means, given.structure, shared=True)


@jax.jit
def mean(given: Conditional, y: Float[Array, "n m"]) -> Float[Array, "n d"]:
    """E[x | y]"""
    n, (k, d, m) = y.shape[0], given.gains.shape

    @jax.checkpoint
    def rows(block: tuple[Array, Array]) -> Array:
        y, shares = block
        # Σ_k z_k G_k(y − ν_k) is one product over k and y's features together.
        apart = shares[:, :, None] * (y[:, None, :] - given.observed.means)
        moved = einsum("nkm,kdm->nd", apart, given.gains)
        return einsum("nk,kd->nd", shares, given.means) + moved

    shares = given.observed.predict_proba(y)
    return map_rows(rows, (y, shares), rows_per_chunk(n, 2 * k * m + d, y.dtype.itemsize))


@jax.jit
def covariance(given: Conditional, y: Float[Array, "n m"]) -> Float[Array, "n d d"]:
    """Cov[x | y] = Σ_k z_k (Σ_k + (m_k − m)(m_k − m)ᵀ)"""
    n, (k, d, _) = y.shape[0], given.gains.shape
    roots = inverse_lower(given.structure.factors(k, d))
    within = product(roots, roots.mT)

    @jax.checkpoint
    def rows(block: tuple[Array, Array]) -> Array:
        y, shares = block
        means = given.component_means(y)
        apart = means - einsum("nk,nkd->nd", shares, means)[:, None]
        between = einsum("nkd,nke->nde", shares[:, :, None] * apart, apart)
        return einsum("nk,kde->nde", shares, within) + between

    shares = given.observed.predict_proba(y)
    return map_rows(rows, (y, shares), rows_per_chunk(n, 3 * k * d + d * d, y.dtype.itemsize))


@jax.jit
def mode(given: Conditional, y: Float[Array, "n m"]) -> Float[Array, "n d"]:
    """μ_k + G_k(y − ν_k) for the most probable k."""
    return _of_component(given, y, given.observed.predict(y), given.gains)


@jax.jit
def draw(
    given: Conditional,
    y: Float[Array, "n m"],
    uniform: Float[Array, "n s"],
    noise: Float[Array, "n s d"],
) -> Float[Array, "n s d"]:
    """Samples of p(x | y) from uniform and standard normal numbers."""
    (n, s, d), k = noise.shape, given.gains.shape[0]
    reached = jnp.cumsum(given.observed.predict_proba(y), axis=-1)
    aim = uniform * reached[:, -1:]
    labels = jnp.sum(reached[:, None, :] <= aim[:, :, None], axis=-1).astype(jnp.int32)
    # A sum that is NaN is passed by none, and what it draws is NaN as well.
    labels = jnp.where(jnp.isnan(aim), -1, jnp.minimum(labels, k - 1))
    roots = inverse_lower(given.structure.factors(k, d))
    matrices = jnp.concatenate([given.gains, roots], axis=-1)
    x = _of_component(
        given, jnp.repeat(y, s, axis=0), labels.reshape(-1), matrices, noise.reshape(-1, d)
    )
    return x.reshape(n, s, d)


def _of_component(
    given: Conditional,
    y: Float[Array, "n m"],
    labels: Int[Array, " n"],
    matrices: Float[Array, "k d p"],
    noise: Float[Array, "n q"] | None = None,
) -> Float[Array, "n d"]:
    """μ_k + M_k [y − ν_k, noise] of the component that is named, and NaN where none is."""
    known = labels >= 0
    labels = jnp.where(known, labels, 0)
    apart = y - given.observed.means[labels]
    if noise is not None:
        apart = jnp.concatenate([apart, noise], axis=-1)
    moved = grouped_product(apart, matrices, labels)
    return jnp.where(known[:, None], given.means[labels] + moved, jnp.nan)
