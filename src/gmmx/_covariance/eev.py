"""Covariances of one volume and shape."""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._orthogonal import axes_of, principal_axes, reflections
from .axes import factors_along
from .base import AbstractCovariance
from .decomposition import best_factors


class EEVCovariance(AbstractCovariance):
    """The same variances along axes of each component: Σ_k = λD_kAD_kᵀ (mclust's EEV)."""

    log_variances: Float[Array, " d"]
    """The logarithms of λA's diagonal"""
    orientation: Float[Array, "k d d"]
    """D_k by its `reflections`; the strictly upper triangle is read"""

    covariance_type: ClassVar[str] = "EEV"
    log_scale: ClassVar[tuple[str, int]] = ("log_variances", 2)

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        return factors_along(axes_of(self.orientation), self.log_variances[None])

    @classmethod
    def fitted(
        cls,
        weight: Float[Array, " k"],
        factors: Float[Array, "k d d"],
        scatter: Float[Array, "k d d"],
    ) -> Self:
        # λA = Σ n_kΩ_k/n, where Ω_k holds the variances of the best covariance, in their order.
        axes, log_variances = principal_axes(best_factors(weight, factors, scatter))
        share = (weight / jnp.sum(weight))[:, None]
        return cls(jax.nn.logsumexp(log_variances, axis=0, b=share), reflections(axes))

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return n_features + n_components * n_features * (n_features - 1) // 2

    @classmethod
    def fewest_samples(cls, n_features: int) -> int:
        return 1
