"""Covariances of one shape."""

from typing import ClassVar, Self

from jaxtyping import Array, Float

from .._orthogonal import axes_of, principal_axes, reflections
from .axes import factors_along
from .base import AbstractCovariance
from .decomposition import best_factors, equal_shape, mean_off, unit_volume


class VEVCovariance(AbstractCovariance):
    """Variances in the same ratios along own axes: Σ_k = λ_kD_kAD_kᵀ (mclust's VEV)."""

    log_volume: Float[Array, " k"]
    """log λ_k"""
    log_shape: Float[Array, " d"]
    """The logarithms of A's diagonal, to a constant"""
    orientation: Float[Array, "k d d"]
    """D_k by its `reflections`; the strictly upper triangle is read"""

    covariance_type: ClassVar[str] = "VEV"
    log_scale: ClassVar[tuple[str, int]] = ("log_volume", 2)

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        log_variances = self.log_volume[:, None] + mean_off(self.log_shape)
        return factors_along(axes_of(self.orientation), log_variances)

    @classmethod
    def fitted(
        cls,
        weight: Float[Array, " k"],
        factors: Float[Array, "k d d"],
        scatter: Float[Array, "k d d"],
    ) -> Self:
        # As VEI has it, of the variances of the best covariances, in their order.
        axes, log_variances = principal_axes(best_factors(weight, factors, scatter))
        log_volume, log_shape = equal_shape(weight, log_variances, unit_volume(factors)[0])
        return cls(log_volume, log_shape, reflections(axes))

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        own = 1 + n_features * (n_features - 1) // 2
        return n_features - 1 + n_components * own

    @classmethod
    def fewest_samples(cls, n_features: int) -> int:
        return 2
