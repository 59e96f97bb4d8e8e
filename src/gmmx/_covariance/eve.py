"""Covariances of one volume and orientation."""

from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._orthogonal import axes_of, reflections
from .axes import common_axes, factors_along
from .base import AbstractCovariance
from .decomposition import best_factors, equal_volume, mean_off


class EVECovariance(AbstractCovariance):
    """Variances of one product along common axes: Σ_k = λDA_kDᵀ (mclust's EVE)."""

    log_volume: Float[Array, ""]
    """log λ"""
    log_shape: Float[Array, "k d"]
    """The logarithms of A_k's diagonal, to a constant"""
    orientation: Float[Array, "d d"]
    """D by its `reflections`; the strictly upper triangle is read"""

    covariance_type: ClassVar[str] = "EVE"
    log_scale: ClassVar[tuple[str, int]] = ("log_volume", 2)

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        log_variances = self.log_volume + mean_off(self.log_shape)
        return factors_along(axes_of(self.orientation)[None], log_variances)

    @classmethod
    def fitted(
        cls,
        weight: Float[Array, " k"],
        factors: Float[Array, "k d d"],
        scatter: Float[Array, "k d d"],
    ) -> Self:
        def log_volume(log_variances: Array) -> Array:
            return equal_volume(weight, jnp.mean(log_variances, axis=1))

        best = best_factors(weight, factors, scatter)
        axes, log_variances = common_axes(factors, best, log_volume)
        return cls(log_volume(log_variances), mean_off(log_variances), reflections(axes))

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        own, axes = n_features - 1, n_features * (n_features - 1) // 2
        return 1 + n_components * own + axes

    @classmethod
    def fewest_samples(cls, n_features: int) -> int:
        return 2
