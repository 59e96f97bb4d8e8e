"""The ground type: weighted Gaussians, as every calculation below the public mixture has them."""

import dataclasses
import math
from typing import Any, Self, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._covariance import AbstractCovariance
from ._covariance.factors import AnyFactors, half_log_det
from ._data import Samples
from ._linalg import log_weight


class AbstractComponents(eqx.Module):
    """K weighted Gaussians in d dimensions: three leaves, and what everybody derives from them.

    The engine, the algebra, scores and divergences take and return this type. What they return is
    of the type that they were given, so that they need not know `gmmx.GaussianMixture`.
    """

    logits: eqx.AbstractVar[Float[Array, " k"]]
    """Unnormalised log-weights"""
    means: eqx.AbstractVar[Float[Array, "k d"]]
    """μ_k"""
    structure: eqx.AbstractVar[AbstractCovariance]
    """The covariances, see `gmmx.AbstractCovariance`"""

    @property
    def n_components(self) -> int:
        """K"""
        return check_mixture(self).means.shape[0]

    @property
    def n_features(self) -> int:
        """d"""
        return check_mixture(self).means.shape[1]

    @property
    def dtype(self) -> Any:
        """The dtype of the leaves."""
        return self.means.dtype

    @property
    def n_parameters(self) -> int:
        """The number of free parameters: K − 1 weights, K·d means and those of the covariances."""
        k, d = self.means.shape
        return k - 1 + k * d + self.structure.n_parameters(k, d)

    @property
    def log_weights(self) -> Float[Array, " k"]:
        """log w_k"""
        return jax.nn.log_softmax(self._leaf("log_weights", self.logits))

    @property
    def weights(self) -> Float[Array, " k"]:
        """w_k, of sum one"""
        return jax.nn.softmax(self._leaf("weights", self.logits))

    # What a mixture beside a background knows more of, see `gmmx.BackgroundMixture`.

    @property
    def n_labels(self) -> int:
        """What a row may come from: K components, and a background where there is one."""
        return self.n_components

    @property
    def log_background_weight(self) -> Float[Array, ""] | None:
        """log w_0 of a background; None without one."""
        return None

    def log_background(self, x: Samples) -> Float[Array, " n"] | None:
        """log b(x) of the background; None without one."""
        return None

    def background_log_joint(self, x: Samples) -> Float[Array, " n"] | None:
        """log w_0 b(x); None without a background."""
        log_weight, log_prob = self.log_background_weight, self.log_background(x)
        return None if log_weight is None or log_prob is None else log_weight + log_prob

    def parts(self) -> dict[str, tuple[PyTree, ...]]:
        """The leaves that a fit finds, by the names of what they stand for."""
        return {
            "weights": (self.logits,),
            "means": (self.means,),
            "covariances": (self.structure,),
        }

    def of_counts(self, counts: Float[Array, " k"], background: Float[Array, ""] | None) -> Self:
        """With weights in proportion to how many samples each component has."""
        logits = log_weight(counts) - jnp.log(jnp.sum(counts))
        return dataclasses.replace(self, logits=logits)

    def _leaf(self, name: str, leaf: Any) -> Any:
        """A leaf that `name` is computed from; not what `equinox.tree_at` puts in its place."""
        if not hasattr(leaf, "shape"):
            raise ValueError(
                f"{name} is computed from the leaves, so it cannot be replaced. Replace a leaf: "
                "logits (log-weights), means or structure; or make a new mixture by "
                "GaussianMixture.from_parameters."
            )
        return leaf

    def factors(self) -> AnyFactors:
        """The factors W as the structure has them: `(j, d, d)`, or `(j, d)` if diagonal.

        Those of low rank are a `LowRankFactors`.
        """
        return self.structure.factors(*self.means.shape)

    def distinct_factors(self) -> Float[Array, "j d d"]:
        """The factors as matrices, once where components share one."""
        return self.structure.dense_factors(*self.means.shape)

    def dense_factors(self) -> Float[Array, "k d d"]:
        """The factors as matrices, one for each component."""
        k, d = self.means.shape
        return jnp.broadcast_to(self.distinct_factors(), (k, d, d))

    def half_log_det(self) -> Float[Array, " k"]:
        """log|W_k| = ½ log|Λ_k|"""
        return self._half_log_det(self.factors())

    def log_constant(self, factors: AnyFactors) -> Float[Array, " k"]:
        """log w_k + log|W_k| − d/2 log 2π, of the factors of this mixture."""
        half = self._half_log_det(factors)
        return self.log_weights + half - self.n_features * math.log(2 * math.pi) / 2

    def _half_log_det(self, factors: AnyFactors) -> Float[Array, " k"]:
        return jnp.broadcast_to(half_log_det(factors), self.logits.shape)


Components = TypeVar("Components", bound=AbstractComponents)


def check_mixture(gmm: Any) -> AbstractComponents:
    """One mixture; not what a fit gives back, nor a stack."""
    if not isinstance(gmm, AbstractComponents):
        raise ValueError(
            f"gmm is of type {type(gmm).__name__}; expected a GaussianMixture. Of a fit pass "
            "result.gmm."
        )
    if gmm.means.ndim != 2:
        raise ValueError(
            f"gmm is a stack of mixtures: its means have shape {gmm.means.shape}. Take one: "
            "jax.tree.map(lambda leaf: leaf[0], stack)."
        )
    return gmm


def check_gaussian(gmm: AbstractComponents) -> None:
    """Refuse a mixture with a background, where Gaussians alone are expected."""
    if gmm.log_background_weight is not None:
        raise ValueError(
            f"the mixture is a {type(gmm).__name__}; expected Gaussians alone. Pass gmm.mixture."
        )
