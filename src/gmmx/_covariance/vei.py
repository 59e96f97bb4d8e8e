"""Axis-aligned covariances of one shape."""

from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import AbstractCovariance
from .decomposition import best_log_variances, equal_shape, mean_off


class VEICovariance(AbstractCovariance):
    """Variances in the same ratios in all components: Σ_k = λ_kA, A diagonal (mclust's VEI)."""

    log_volume: Float[Array, " k"]
    """log λ_k"""
    log_shape: Float[Array, " d"]
    """The logarithms of A's diagonal, to a constant"""

    covariance_type: ClassVar[str] = "VEI"
    axis_aligned: ClassVar[bool] = True
    closed_under_scaling: ClassVar[bool] = True
    log_scale: ClassVar[tuple[str, int]] = ("log_volume", 2)

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d"]:
        return jnp.exp(-(self.log_volume[:, None] + mean_off(self.log_shape)) / 2)

    @classmethod
    def fitted(
        cls, weight: Float[Array, " k"], factors: Float[Array, "k d"], scatter: Float[Array, "k d"]
    ) -> Self:
        log_variances = best_log_variances(weight, factors, scatter)
        before = -2 * jnp.mean(jnp.log(factors), axis=1)
        return cls(*equal_shape(weight, log_variances, before))

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return n_components + n_features - 1
