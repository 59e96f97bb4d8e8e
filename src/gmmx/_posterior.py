"""The posterior of x under a mixture prior and a linear observation with Gaussian noise."""

import abc
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from . import _checks
from ._algebra import condition, observed
from ._algebra.condition import Conditional, given_observation
from ._batch import MixtureBatch, joined
from ._chunks import rows_per_chunk
from ._data import Data
from ._engine.observed import over_rows
from ._mixture import GaussianMixture
from ._noise import as_noise, is_matrix
from ._rows import by_rows


class AbstractPosterior(eqx.Module):
    """p(x | y) where y = Ax + b + ε, ε ~ N(0, C), at y of shape `(*batch, m)`.

    With a mixture prior it is again a mixture of K components: component k has the weight
    p(k | y), a mean m_k that is linear in y and a covariance that does not depend on y. Each method
    computes what it returns, and only `mixture` stores an array of samples × components × features.
    """

    y: eqx.AbstractVar[Float[Array, "*batch m"]]
    """The observations, zero where nothing was observed"""

    _rows: ClassVar[ModuleType] = condition
    """The module of the functions of rows that `_each` takes"""

    @abc.abstractmethod
    def _each(self, fn: Callable[..., PyTree], *rows: Array) -> PyTree:
        """`fn`, a function of rows, of y as `(n, m)`; its results have the axes of the batch."""

    @abc.abstractmethod
    def mixture(self) -> GaussianMixture | MixtureBatch:
        """The whole posterior: a `GaussianMixture`, or a `MixtureBatch` where y is a batch."""

    @property
    @abc.abstractmethod
    def n_features(self) -> int:
        """d, the features of x"""

    @property
    def n_latent(self) -> int:
        """How many latent factors a draw of x has, see `gmmx.AbstractCovariance`; often none."""
        return 0

    def log_evidence(self) -> Float[Array, "*batch"]:
        """log p(y), the density of what was observed."""
        return self._each(self._rows.log_evidence)

    def responsibilities(self) -> Float[Array, "*batch k"]:
        """p(k | y)"""
        return self._each(self._rows.responsibilities)

    def mean(self) -> Float[Array, "*batch d"]:
        """E[x | y], the estimate of minimum mean squared error (MMSE)."""
        return self._each(self._rows.mean)

    def mode(self) -> Float[Array, "*batch d"]:
        """m_k of the most probable component given y.

        Half-quadratic splitting over image patches uses this maximum a posteriori by component
        (EPLL; Zoran & Weiss 2011). Where components overlap, the maximum of the density of the
        mixture lies elsewhere.
        """
        return self._each(self._rows.mode)

    def covariance(self) -> Float[Array, "*batch d d"]:
        """Cov[x | y], within and between components."""
        return self._each(self._rows.covariance)

    def sample(
        self, n_samples: int, *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch n d"]:
        """Draws of x given each y, `(*batch, n_samples, d)`.

        The key is `jax.random.key(0)` by default, so the draws are the same each time.
        """
        n_samples = _checks.check_count(n_samples, "n_samples")
        label_key, noise_key = jax.random.split(_checks.as_key(key))
        shape, dtype = (*self.y.shape[:-1], n_samples), self.y.dtype
        uniform = jax.random.uniform(label_key, shape, dtype)
        normals = self.n_features + self.n_latent
        noise = jax.random.normal(noise_key, (*shape, normals), dtype)
        return self._each(self._rows.draw, uniform, noise)


class Posterior(AbstractPosterior):
    """The posterior with one operator and one noise covariance for all samples."""

    y: Float[Array, "*batch m"]
    conditional: Conditional[GaussianMixture]
    """p(x | y) as a function of y"""

    @property
    def observed(self) -> GaussianMixture:
        """p(y), a mixture of m features: the prior of Ax + b + ε.

        Coordinates of infinite noise are standard normal in it.
        """
        return self.conditional.observed

    @property
    def n_features(self) -> int:
        return self.conditional.means.shape[-1]

    @property
    def n_latent(self) -> int:
        return self.conditional.structure.n_latent or 0

    def _each(self, fn: Callable[..., PyTree], *rows: Array) -> PyTree:
        return condition.over_rows(fn, self.conditional, self.y, *rows)

    def mixture(self) -> GaussianMixture | MixtureBatch:
        parts = condition.parts(self.conditional, self.y)
        return joined(*parts, self.conditional.structure)


class Operator(eqx.Module):
    """A and C of y = Ax + ε, or one of the two."""

    matrix: Float[Array, "*b m d"] | None
    """A; None is the identity"""
    noise: Float[Array, "..."] | None
    """C: variances, or a matrix"""


class PosteriorPerSample(AbstractPosterior):
    """The posterior with an operator or a noise covariance for each sample.

    Samples are taken a few at a time, so the factors of all of them are never stored.
    """

    y: Float[Array, "*batch m"]
    prior: GaussianMixture
    shared: Operator
    """The part that all samples share"""
    own: Operator
    """The part that each sample has for itself, with the axes of the batch first"""

    @property
    def n_features(self) -> int:
        return self.prior.n_features

    @property
    def n_latent(self) -> int:
        return self.prior.structure.n_latent or 0

    def _each(self, fn: Callable[..., PyTree], *rows: Array) -> PyTree:
        def samples(arrays: tuple[Operator, Array, tuple[Array, ...]]) -> PyTree:
            return _over_samples(fn, self.prior, self.shared, *arrays)

        arrays = (self.own, self.y, rows)
        return by_rows(samples, self.y.shape[:-1], arrays, self.prior, self.shared)

    def mixture(self) -> GaussianMixture | MixtureBatch:
        return MixtureBatch(*self._each(_parts), shared=False)


class PosteriorUnderVariances(AbstractPosterior):
    """The posterior where each sample has its own variances of noise, and no operator.

    Such samples are rows of `gmmx.Data`.
    """

    y: Float[Array, "*batch m"]
    prior: GaussianMixture
    variances: Float[Array, "*batch m"]

    _rows: ClassVar[ModuleType] = observed

    @property
    def n_features(self) -> int:
        return self.prior.n_features

    def _each(self, fn: Callable[..., PyTree], *rows: Array) -> PyTree:
        batch, xp = self.y.shape[:-1], _checks.array_module(self.variances)
        deviations = jnp.asarray(xp.sqrt(xp.asarray(self.variances)))
        flat = (self.y, deviations, *rows)
        y, deviations, *rest = (leaf.reshape(-1, *leaf.shape[len(batch) :]) for leaf in flat)
        # As many rows as numbers would take variances for a matrix.
        data = eqx.tree_at(lambda data: data.deviations, Data(y), deviations)
        values = over_rows(self.prior, data, fn, *rest)
        return values.reshape(*batch, *values.shape[1:])

    def mixture(self) -> GaussianMixture | MixtureBatch:
        own = Operator(None, self.variances)
        return PosteriorPerSample(self.y, self.prior, Operator(None, None), own).mixture()


@partial(jax.jit, static_argnames="fn")
def _over_samples(
    fn: Callable[..., PyTree],
    prior: GaussianMixture,
    shared: Operator,
    own: Operator,
    y: Float[Array, "n m"],
    rows: tuple[Array, ...],
) -> PyTree:
    """`fn` at each sample under its own operator."""

    def one(sample: tuple[Operator, Array, tuple[Array, ...]]) -> PyTree:
        own, y, rows = sample
        operator = eqx.combine(own, shared)
        given = given_observation(prior, operator.matrix, jnp.zeros_like(y), operator.noise)
        value = fn(given, y[None], *(row[None] for row in rows))
        return jax.tree.map(lambda leaf: leaf[0], value)

    (n, m), (k, d) = y.shape, prior.means.shape
    at_once = rows_per_chunk(n, 4 * k * (m + d) ** 2, y.dtype.itemsize, least=1)
    # A gradient factors again, rather than keep the factors of all samples.
    return jax.lax.map(jax.checkpoint(one), (own, y, rows), batch_size=at_once)


def _parts(given: Conditional, y: Float[Array, "1 m"]) -> tuple[Array, Array, PyTree]:
    """Logits, means and structure of the posterior of one sample, with an axis in front."""
    structure = jax.tree.map(lambda leaf: leaf[None], given.structure)
    return (*condition.parts(given, y), structure)


def posterior(
    gmm: GaussianMixture, y: Any, A: Any, noise_covariance: Any, b: Any
) -> AbstractPosterior:
    """See `GaussianMixture.posterior`."""
    y, matrix, noise, offset = _check_observation(gmm, y, A, noise_covariance, b)
    gmm, y, matrix, noise, offset = _checks.same_dtype(gmm, y, matrix, noise, offset)
    m, batch = y.shape[-1], y.shape[:-1]
    dense = is_matrix(noise, m, batch)
    own_matrix = matrix is not None and matrix.ndim > 2
    own_noise = noise.ndim > (2 if dense else 1)
    each = own_matrix or own_noise
    y, noise, offset = _prepared(y, noise, offset, dense, each)
    _checks.check_finite(y, "y")
    if not each:
        return Posterior(y, given_observation(gmm, matrix, offset, noise))
    if matrix is None and not dense and y.size and gmm.structure.n_latent is None:
        return PosteriorUnderVariances(y, gmm, noise)
    shared = Operator(None if own_matrix else matrix, None if own_noise else noise)
    own = Operator(matrix if own_matrix else None, noise if own_noise else None)
    return PosteriorPerSample(y, gmm, shared, own)


def _prepared(
    y: Float[Array, "*batch m"],
    noise: Float[Array, "..."],
    offset: Float[Array, "..."],
    dense: bool,
    each: bool,
) -> tuple[Array, Array, Array]:
    """y, zero where it was not observed; the noise, m variances or a matrix; the shared offset.

    An offset that not all samples share, or where they share no operator, is subtracted from y.
    """
    # On the host where values are concrete, which compiles nothing for another number of samples.
    m, xp = y.shape[-1], _checks.array_module(y, noise, offset)
    values, offset = xp.asarray(y), xp.asarray(offset)
    if each or offset.ndim > 1:
        values, offset = values - offset, xp.zeros((), y.dtype)
    if not dense:
        variances = xp.broadcast_to(xp.asarray(noise), (*noise.shape[:-1], m))
        # Values that were not observed may be anything, NaN as well.
        values = xp.where(xp.isinf(variances), xp.zeros((), y.dtype), values)
        noise = jnp.asarray(variances, y.dtype)
    offset = jnp.asarray(xp.broadcast_to(offset, (m,)), y.dtype)
    return jnp.asarray(values, y.dtype), noise, offset


def _check_observation(
    gmm: GaussianMixture, y: Any, matrix: Any, noise: Any, offset: Any
) -> tuple[Array, Array | None, Array, Array]:
    """The observation as arrays of shapes that fit."""
    d, dtype = gmm.n_features, gmm.dtype
    y = _checks.as_floating(y, "y")
    if matrix is not None:
        matrix = _checks.as_floating(matrix, "A")
        if matrix.ndim < 2 or matrix.shape[-1] != d or matrix.shape[-2] == 0:
            raise ValueError(
                f"A has shape {matrix.shape}; expected (m, {d}), a row for each observed number "
                f"and a column for each feature, or (*batch, m, {d}) for one A a sample. A=None is "
                "the identity."
            )
        _checks.check_finite(matrix, "A")
    m = d if matrix is None else matrix.shape[-2]
    if y.ndim == 0 or y.shape[-1] != m:
        raise ValueError(
            f"y has shape {y.shape}, but {m} numbers are observed of each sample: expected "
            f"(*batch, {m})."
        )
    batch = y.shape[:-1]
    if matrix is not None and matrix.shape[:-2] not in ((), batch):
        raise ValueError(
            f"A has the leading axes {matrix.shape[:-2]} and y has {batch}; expected the same, or "
            "none for one A for all samples."
        )
    offset = _checks.as_floating(offset, "b", of_numbers=dtype)
    if offset.shape not in ((), (m,), (*batch, m)):
        raise ValueError(f"b has shape {offset.shape}; expected (), ({m},) or that of y.")
    _checks.check_finite(offset, "b")
    return y, matrix, as_noise(noise, m, dtype, batch), offset
