"""Covariances of one orientation."""

from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._orthogonal import axes_of, reflections
from .axes import common_axes, factors_along
from .base import AbstractCovariance
from .decomposition import best_factors


class VVECovariance(AbstractCovariance):
    """Variances of each component along common axes: Σ_k = λ_kDA_kDᵀ (mclust's VVE)."""

    log_variances: Float[Array, "k d"]
    """The logarithms of λ_kA_k's diagonal"""
    orientation: Float[Array, "d d"]
    """D by its `reflections`; the strictly upper triangle is read"""

    covariance_type: ClassVar[str] = "VVE"
    log_scale: ClassVar[tuple[str, int]] = ("log_variances", 2)

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        return factors_along(axes_of(self.orientation)[None], self.log_variances)

    @classmethod
    def fitted(
        cls,
        weight: Float[Array, " k"],
        factors: Float[Array, "k d d"],
        scatter: Float[Array, "k d d"],
    ) -> Self:
        share = weight / jnp.sum(weight)

        def cost(log_variances: Array) -> Array:
            return jnp.sum(share[:, None] * log_variances)

        best = best_factors(weight, factors, scatter)
        axes, log_variances = common_axes(factors, best, cost)
        return cls(log_variances, reflections(axes))

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return n_components * n_features + n_features * (n_features - 1) // 2

    @classmethod
    def fewest_samples(cls, n_features: int) -> int:
        return 2
