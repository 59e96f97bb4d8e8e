"""Axis-aligned covariances of one volume."""

from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import AbstractCovariance
from .decomposition import best_log_variances, equal_volume, mean_off


class EVICovariance(AbstractCovariance):
    """Variances of the same product in all components: Σ_k = λA_k, A_k diagonal (mclust's EVI)."""

    log_volume: Float[Array, ""]
    """log λ"""
    log_shape: Float[Array, "k d"]
    """The logarithms of A_k's diagonal, to a constant"""

    covariance_type: ClassVar[str] = "EVI"
    axis_aligned: ClassVar[bool] = True
    closed_under_scaling: ClassVar[bool] = True
    log_scale: ClassVar[tuple[str, int]] = ("log_volume", 2)

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d"]:
        return jnp.exp(-(self.log_volume + mean_off(self.log_shape)) / 2)

    @classmethod
    def fitted(
        cls, weight: Float[Array, " k"], factors: Float[Array, "k d"], scatter: Float[Array, "k d"]
    ) -> Self:
        log_variances = best_log_variances(weight, factors, scatter)
        log_volume = equal_volume(weight, jnp.mean(log_variances, axis=1))
        return cls(log_volume, mean_off(log_variances))

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return 1 + n_components * (n_features - 1)
