"""A mixture given an observation that depends on it linearly: by features, or Ax + b + noise.

Both are p(x | y) of a joint Gaussian mixture of (y, x). The joint precision factors of its
components, made triangular with y first, hold all of it: see `condition_factor`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .. import _checks
from .._chunks import map_rows, rows_per_chunk
from .._components import AbstractComponents, Components
from .._covariance import AbstractCovariance
from .._covariance.base import exact
from .._covariance.gains import LowRankGains
from .._covariance.low_rank import AbstractLowRank
from .._engine.density import evaluate, labels_of, log_prob_of, responsibilities_of
from .._grouped import grouped_product
from .._linalg import einsum, inverse_lower, product
from .._noise import noise_factor, noise_root
from .._orthogonal import condition_factor, lower_root
from .._rows import by_rows
from .indices import split


class Conditional(eqx.Module, Generic[Components]):
    """p(x | y) as a function of y: N(x; μ_k + G_k(y − ν_k), Σ_k) with weights p(k | y)."""

    observed: Components
    """p(y), a mixture of m features, with means ν_k"""
    gains: Float[Array, "k d m"] | LowRankGains
    """G_k"""
    means: Float[Array, "k d"]
    """μ_k, the prior means of x"""
    structure: AbstractCovariance
    """The covariances of x given y and k, which do not depend on y"""
    n_missing: Float[Array, ""]
    """Coordinates of y that are not observed, which are standard normal in `observed`"""

    def component_means(self, y: Float[Array, "*batch m"]) -> Float[Array, "*batch k d"]:
        """μ_k + G_k(y − ν_k), subtracted first: as accurate as y is."""
        apart = y[..., None, :] - self.observed.means
        if isinstance(self.gains, LowRankGains):
            return self.means + self.gains.times(apart)
        return self.means + einsum("kdm,...km->...kd", self.gains, apart)

    def roots(self) -> Float[Array, "k d d"]:
        """Lower triangular R_k with Σ_k = R_kR_kᵀ."""
        k, d = self.means.shape
        return jnp.broadcast_to(inverse_lower(self.structure.dense_factors(k, d)), (k, d, d))


def check_values(
    gmm: AbstractComponents, indices: Any, values: Any
) -> tuple[Conditional, Float[Array, "*batch m"]]:
    """The other features given the named ones, and values: the checked arguments of `condition`."""
    named, rest = split(indices, gmm.n_features)
    if not rest.size:
        raise ValueError(
            f"indices names all {gmm.n_features} features and leaves none to describe. Their "
            "density is gmm.log_prob(x)."
        )
    values = _checks.as_floating(values, "values")
    if np.ndim(indices) == 0:
        # One feature, and its values without an axis of their own.
        values = values[..., None]
    if values.ndim == 0 or values.shape[-1] != named.size:
        raise ValueError(
            f"values has shape {values.shape}, but indices names {named.size} features: expected "
            f"(*batch, {named.size})."
        )
    _checks.check_finite(values, "values")
    gmm, values = _checks.same_dtype(gmm, values)
    return given_features(gmm, tuple(named.tolist()), tuple(rest.tolist())), values


# Each function below that is jitted is one program when it is called from Python.


@partial(jax.jit, static_argnames=("named", "rest"))
def given_features(
    gmm: Components, named: tuple[int, ...], rest: tuple[int, ...]
) -> Conditional[Components]:
    """The other features given the named ones."""
    given, others = np.asarray(named), np.asarray(rest)
    marginal, structure, gains = gmm.structure.conditional(given, others, *gmm.means.shape)
    observed = type(gmm)(gmm.logits, gmm.means[:, given], marginal)
    n_missing = jnp.zeros((), gmm.dtype)
    return Conditional(observed, gains, gmm.means[:, others], structure, n_missing)


@jax.jit
def given_observation(
    gmm: Components,
    matrix: Float[Array, "m d"] | None,
    offset: Float[Array, " m"],
    noise: Float[Array, "*m"],
) -> Conditional[Components]:
    """x given y = Ax + b + ε, ε ~ N(0, C).

    The joint precision of (y, x) is MᵀM with M = [[C^-½, −C^-½A], [0, W]]; it gives the gains and
    the posterior precisions. The covariance of y is RRᵀ with R = [C^½, AW⁻¹]. The precision of y
    is not taken from M: with little noise the columns of M are far larger, and would round it off.

    A coordinate of infinite noise becomes an independent standard normal one; y has to be zero
    there.
    """
    (k, d), m = gmm.means.shape, offset.shape[0]
    if matrix is None and noise.ndim < 2 and isinstance(gmm.structure, AbstractLowRank):
        evidence, posterior, gains = gmm.structure.given_noisy(noise, k, d)
        missing = jnp.isinf(jnp.broadcast_to(noise, (d,)))
        means = jnp.where(missing, 0, gmm.means + offset)
        observed = type(gmm)(gmm.logits, means, evidence)
        n_missing = jnp.sum(missing).astype(gmm.dtype)
        return Conditional(observed, gains, gmm.means, posterior, n_missing)
    matrix = jnp.eye(d, dtype=gmm.dtype) if matrix is None else matrix
    n_missing = jnp.zeros((), gmm.dtype)
    if noise.ndim == 1:
        missing = jnp.isinf(noise)
        n_missing = jnp.sum(missing).astype(gmm.dtype)
        matrix = jnp.where(missing[:, None], 0, matrix)
        offset = jnp.where(missing, 0, offset)
        noise = jnp.where(missing, 1, noise)
    white = noise_factor(noise, m)
    factors = gmm.distinct_factors()
    above = jnp.concatenate([white, -product(white, matrix)], axis=1)
    above = jnp.broadcast_to(above, (factors.shape[0], m, m + d))
    below = jnp.pad(factors, ((0, 0), (0, 0), (m, 0)))
    _, posterior, gains = condition_factor(jnp.concatenate([above, below], axis=1), m)
    root = jnp.broadcast_to(noise_root(noise, m), (factors.shape[0], m, m))
    spread = product(matrix, inverse_lower(factors))
    evidence = inverse_lower(lower_root(jnp.concatenate([root, spread], axis=-1)))
    means = einsum("md,kd->km", matrix, gmm.means) + offset
    observed = type(gmm)(gmm.logits, means, exact(evidence, k))
    gains = jnp.broadcast_to(gains, (k, d, m))
    return Conditional(observed, gains, gmm.means, exact(posterior, k), n_missing)


def over_rows(
    fn: Callable[..., PyTree], given: Conditional, y: Float[Array, "*batch m"], *rows: Array
) -> PyTree:
    """`fn(given, y, *rows)`, a function of rows of y, with the leading axes of y as rows."""
    return by_rows(lambda arrays: fn(given, *arrays), y.shape[:-1], (y, *rows), given)


def parts(
    given: Conditional, y: Float[Array, "*batch m"]
) -> tuple[Float[Array, "*batch k"], Float[Array, "*batch k d"]]:
    """The logits and the means of p(x | y). Its covariances are those of `given`."""
    return over_rows(_parts, given, y)


# Functions of rows of y


@jax.jit
def _parts(
    given: Conditional, y: Float[Array, "n m"]
) -> tuple[Float[Array, "n k"], Float[Array, "n k d"]]:
    return evaluate(given.observed, y, _log_responsibilities), given.component_means(y)


def _log_responsibilities(log_joint: Float[Array, "k n"]) -> Float[Array, "n k"]:
    return jax.nn.log_softmax(log_joint, axis=0).T


def log_evidence(given: Conditional, y: Float[Array, "n m"]) -> Float[Array, " n"]:
    """log p(y), of the coordinates that are observed"""
    # One that is not is zero under a standard normal.
    return evaluate(given.observed, y, log_prob_of) + given.n_missing * math.log(2 * math.pi) / 2


def responsibilities(given: Conditional, y: Float[Array, "n m"]) -> Float[Array, "n k"]:
    """p(k | y)"""
    return evaluate(given.observed, y, responsibilities_of)


@jax.jit
def mean(given: Conditional, y: Float[Array, "n m"]) -> Float[Array, "n d"]:
    """E[x | y]"""
    (n, m), (k, d) = y.shape, given.means.shape

    @jax.checkpoint
    def rows(block: tuple[Array, Array]) -> Array:
        y, shares = block
        # Σ_k z_k G_k(y − ν_k) is one product over k and y's features together.
        apart = shares[:, :, None] * (y[:, None, :] - given.observed.means)
        if isinstance(given.gains, LowRankGains):
            moved = given.gains.total(apart)
        else:
            moved = einsum("nkm,kdm->nd", apart, given.gains)
        return einsum("nk,kd->nd", shares, given.means) + moved

    shares = responsibilities(given, y)
    return map_rows(rows, (y, shares), rows_per_chunk(n, 2 * k * m + d, y.dtype.itemsize))


@jax.jit
def covariance(given: Conditional, y: Float[Array, "n m"]) -> Float[Array, "n d d"]:
    """Cov[x | y] = Σ_k z_k (Σ_k + (m_k − m)(m_k − m)ᵀ)"""
    n, (k, d) = y.shape[0], given.means.shape
    roots = given.roots()
    within = product(roots, roots.mT)

    @jax.checkpoint
    def rows(block: tuple[Array, Array]) -> Array:
        y, shares = block
        means = given.component_means(y)
        apart = means - einsum("nk,nkd->nd", shares, means)[:, None]
        between = einsum("nkd,nke->nde", shares[:, :, None] * apart, apart)
        return einsum("nk,kde->nde", shares, within) + between

    shares = responsibilities(given, y)
    return map_rows(rows, (y, shares), rows_per_chunk(n, 3 * k * d + d * d, y.dtype.itemsize))


@jax.jit
def mode(given: Conditional, y: Float[Array, "n m"]) -> Float[Array, "n d"]:
    """μ_k + G_k(y − ν_k) for the most probable k."""
    return _of_component(given, y, evaluate(given.observed, y, labels_of))


@jax.jit
def draw(
    given: Conditional,
    y: Float[Array, "n m"],
    uniform: Float[Array, "n s"],
    noise: Float[Array, "n s q"],
) -> Float[Array, "n s d"]:
    """Samples of p(x | y) from uniform and standard normal numbers.

    **Arguments:**

    - `noise`: d numbers for each, and r more for the latent factors of low rank.
    """
    n, s, _ = noise.shape
    k, d = given.means.shape
    noise = noise[:, :, : d + (given.structure.n_latent or 0)]
    reached = jnp.cumsum(responsibilities(given, y), axis=-1)
    aim = uniform * reached[:, -1:]
    labels = jnp.sum(reached[:, None, :] <= aim[:, :, None], axis=-1).astype(jnp.int32)
    # No label follows from a sum that is NaN; the draw is NaN as well.
    labels = jnp.where(jnp.isnan(aim), -1, jnp.minimum(labels, k - 1))
    noise = noise.reshape(n * s, -1)
    x = _of_component(given, jnp.repeat(y, s, axis=0), labels.reshape(-1), noise)
    return x.reshape(n, s, d)


def _of_component(
    given: Conditional,
    y: Float[Array, "n m"],
    labels: Int[Array, " n"],
    noise: Float[Array, "n q"] | None = None,
) -> Float[Array, "n d"]:
    """μ_k + G_k(y − ν_k) of the labelled component, plus R_k noise; NaN for a negative label."""
    known = labels >= 0
    labels = jnp.where(known, labels, 0)
    apart, gains, structure = y - given.observed.means[labels], given.gains, given.structure
    if isinstance(gains, LowRankGains):
        moved = gains.grouped(apart, labels)
        if isinstance(structure, AbstractLowRank) and noise is not None:
            moved, noise = moved + structure.place(noise, labels), None
        if noise is not None:
            moved = moved + grouped_product(noise, given.roots(), labels)
    elif noise is None:
        moved = grouped_product(apart, gains, labels)
    else:
        matrices = jnp.concatenate([gains, given.roots()], axis=-1)
        moved = grouped_product(jnp.concatenate([apart, noise], axis=-1), matrices, labels)
    return jnp.where(known[:, None], given.means[labels] + moved, jnp.nan)
