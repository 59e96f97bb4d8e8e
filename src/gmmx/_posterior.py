"""The posterior of x under a mixture prior and a linear observation with Gaussian noise."""

import abc
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from . import _checks
from ._algebra import condition
from ._algebra.condition import Conditional, given_observation
from ._batch import MixtureBatch
from ._chunks import rows_per_chunk
from ._mixture import GaussianMixture
from ._noise import as_noise, is_matrix


class AbstractPosterior(eqx.Module):
    """p(x | y) where y = Ax + b + ε, ε ~ N(0, C), at y of shape `(*batch, m)`.

    With a mixture prior it is a mixture of K components again: component k has the weight
    p(k | y), a mean m_k that is linear in y and a covariance that does not depend on y. Nothing is
    computed before it is asked for, and no array of samples × components × features is stored but
    by `mixture`.
    """

    y: eqx.AbstractVar[Float[Array, "*batch m"]]
    """The observations, zero where none was made"""
    n_missing: eqx.AbstractVar[Float[Array, "*#batch"]]
    """How many coordinates of y were not observed"""

    @abc.abstractmethod
    def _each(self, fn: Callable[..., PyTree], *rows: Array) -> PyTree:
        """`fn(conditional, y, *rows)` for y as `(n, m)`, its results with the batch's axes.

        `fn` is one of the functions of `_algebra.condition`.
        """

    @abc.abstractmethod
    def mixture(self) -> GaussianMixture | MixtureBatch:
        """The whole posterior: a `GaussianMixture`, or a `MixtureBatch` where y is a batch."""

    @property
    @abc.abstractmethod
    def n_features(self) -> int:
        """d, the features of x"""

    def log_evidence(self) -> Float[Array, "*batch"]:
        """log p(y), the density of what was observed."""
        # A coordinate that was not observed stands as zero under a standard normal.
        return self._each(condition.log_evidence) + self.n_missing * math.log(2 * math.pi) / 2

    def responsibilities(self) -> Float[Array, "*batch k"]:
        """p(k | y)"""
        return self._each(condition.responsibilities)

    def mean(self) -> Float[Array, "*batch d"]:
        """E[x | y], the estimate of least mean squared error (MMSE)."""
        return self._each(condition.mean)

    def mode(self) -> Float[Array, "*batch d"]:
        """m_k of the component that is most probable given y.

        This is the maximum a posteriori by component, as it is used in the half-quadratic
        splitting over image patches (EPLL; Zoran & Weiss 2011). The maximum of the mixture's
        density lies elsewhere where components overlap.
        """
        return self._each(condition.mode)

    def covariance(self) -> Float[Array, "*batch d d"]:
        """Cov[x | y], within and between the components."""
        return self._each(condition.covariance)

    def sample(
        self, n_samples: int, *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch n d"]:
        """Draws of x given each y, `(*batch, n_samples, d)`.

        Without a key `jax.random.key(0)` is used: the draws are the same each time.
        """
        n_samples = _checks.check_count(n_samples, "n_samples")
        label_key, noise_key = jax.random.split(jax.random.key(0) if key is None else key)
        shape, dtype = (*self.y.shape[:-1], n_samples), self.y.dtype
        uniform = jax.random.uniform(label_key, shape, dtype)
        noise = jax.random.normal(noise_key, (*shape, self.n_features), dtype)
        return self._each(condition.draw, uniform, noise)


class Posterior(AbstractPosterior):
    """The posterior where one operator and one noise covariance serve every sample."""

    y: Float[Array, "*batch m"]
    n_missing: Float[Array, ""]
    conditional: Conditional
    """What p(x | y) is as a function of y"""

    @property
    def observed(self) -> GaussianMixture:
        """p(y), a mixture of m features: the prior of Ax + b + ε.

        Coordinates of infinite noise stand in it as standard normal ones.
        """
        return self.conditional.observed

    @property
    def n_features(self) -> int:
        return self.conditional.means.shape[-1]

    def _each(self, fn: Callable[..., PyTree], *rows: Array) -> PyTree:
        return condition.over_rows(fn, self.conditional, self.y, *rows)

    def mixture(self) -> GaussianMixture | MixtureBatch:
        return condition.mixture(self.conditional, self.y)


class Operator(eqx.Module):
    """A and C of y = Ax + ε, or a part of the two."""

    matrix: Float[Array, "*b m d"] | None
    """A; the identity if there is none"""
    noise: Float[Array, "..."] | None
    """C: variances, or a matrix"""


class PosteriorPerSample(AbstractPosterior):
    """The posterior where each sample has an operator or a noise covariance of its own.

    Samples are taken a few at a time, so that the factors of all of them are never stored.
    """

    y: Float[Array, "*batch m"]
    n_missing: Float[Array, "*#batch"]
    prior: GaussianMixture
    shared: Operator
    """What is the same for all samples"""
    own: Operator
    """What is not: the batch's axes first"""

    @property
    def n_features(self) -> int:
        return self.prior.n_features

    def _each(self, fn: Callable[..., PyTree], *rows: Array) -> PyTree:
        batch, m = self.y.shape[:-1], self.y.shape[-1]
        n, columns = math.prod(batch), 4 * self.prior.n_components * (m + self.n_features) ** 2
        own, y, rows = jax.tree.map(
            lambda leaf: leaf.reshape(n, *leaf.shape[len(batch) :]), (self.own, self.y, rows)
        )
        at_once = rows_per_chunk(n, columns, self.y.dtype.itemsize, least=1)
        values = _over_samples(fn, self.prior, self.shared, own, y, rows, at_once)
        return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), values)

    def mixture(self) -> GaussianMixture | MixtureBatch:
        return MixtureBatch(*self._each(_parts), shared=False)


@partial(jax.jit, static_argnames=("fn", "at_once"))
def _over_samples(
    fn: Callable[..., PyTree],
    prior: GaussianMixture,
    shared: Operator,
    own: Operator,
    y: Float[Array, "n m"],
    rows: tuple[Array, ...],
    at_once: int,
) -> PyTree:
    """`fn` at each sample under its own operator."""

    def one(sample: tuple[Operator, Array, tuple[Array, ...]]) -> PyTree:
        own, y, rows = sample
        operator = eqx.combine(own, shared)
        nothing = jnp.zeros_like(y)
        given = given_observation(prior, operator.matrix, nothing, operator.noise)
        value = fn(given, y[None], *(row[None] for row in rows))
        return jax.tree.map(lambda leaf: leaf[0], value)

    return jax.lax.map(one, (own, y, rows), batch_size=at_once)


def _parts(given: Conditional, y: Float[Array, "1 m"]) -> tuple[Array, Array, PyTree]:
    """Logits, means and structure of the posterior of one sample, with an axis in front."""
    parts = condition.mixture(given, y[0])
    return jax.tree.map(lambda leaf: leaf[None], (parts.logits, parts.means, parts.structure))


def posterior(
    gmm: GaussianMixture, y: Any, A: Any, noise_covariance: Any, b: Any
) -> AbstractPosterior:
    """See `GaussianMixture.posterior`."""
    y, matrix, noise, offset = _check_observation(gmm, y, A, noise_covariance, b)
    gmm, y, matrix, noise, offset = _checks.same_dtype(gmm, y, matrix, noise, offset)
    m, batch = y.shape[-1], y.shape[:-1]
    dense = is_matrix(noise, m, batch)
    noise = noise if dense else jnp.broadcast_to(noise, (*noise.shape[:-1], m))
    missing = jnp.zeros(m, bool) if dense else jnp.isinf(noise)
    n_missing = jnp.sum(missing, axis=-1).astype(y.dtype)
    if offset.ndim > 1:
        y, offset = y - offset, jnp.zeros(m, y.dtype)
    # Values that were not observed may be anything, NaN as well.
    y = jnp.where(missing, 0, y)
    _checks.check_finite(y, "y")
    own_matrix = matrix is not None and matrix.ndim > 2
    own_noise = noise.ndim > (2 if dense else 1)
    if not (own_matrix or own_noise):
        given = given_observation(gmm, matrix, jnp.broadcast_to(offset, (m,)), noise)
        return Posterior(y, n_missing, given)
    y = jnp.where(missing, 0, y - offset)
    shared = Operator(None if own_matrix else matrix, None if own_noise else noise)
    own = Operator(matrix if own_matrix else None, noise if own_noise else None)
    return PosteriorPerSample(y, n_missing, gmm, shared, own)


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
                f"A has shape {matrix.shape}; (m, {d}) was wanted, a row for each observed number "
                "and a column for each feature, or (*batch, m, d) for one a sample. A=None is the "
                "identity."
            )
        _checks.check_finite(matrix, "A")
    m = d if matrix is None else matrix.shape[-2]
    if y.ndim == 0 or y.shape[-1] != m:
        raise ValueError(
            f"y has shape {y.shape}, but {m} numbers are observed of each sample: its last axis "
            "has to be of that length."
        )
    batch = y.shape[:-1]
    if matrix is not None and matrix.shape[:-2] not in ((), batch):
        raise ValueError(
            f"A has the leading axes {matrix.shape[:-2]} and y {batch}; none, for one A for all "
            "samples, or the same as y's were wanted."
        )
    offset = _checks.as_floating(offset, "b", of_numbers=dtype)
    if offset.shape not in ((), (m,), (*batch, m)):
        raise ValueError(f"b has shape {offset.shape}; (), ({m},) or that of y was wanted.")
    _checks.check_finite(jnp.atleast_1d(offset), "b")
    return y, matrix, as_noise(noise, m, dtype, batch), offset
