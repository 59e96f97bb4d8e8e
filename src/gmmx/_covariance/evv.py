"""Covariances of one volume."""

from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import exp_diagonal, log_diagonal
from .base import AbstractCovariance
from .decomposition import best_factors, equal_volume, unit_volume


class EVVCovariance(AbstractCovariance):
    """Covariances of the same determinant: Σ_k = λC_k, |C_k| = 1 (mclust's EVV)."""

    log_volume: Float[Array, ""]
    """log λ"""
    log_cholesky: Float[Array, "k d d"]
    """The factors of C_k⁻¹ with their diagonals in logarithms, these to a constant"""

    covariance_type: ClassVar[str] = "EVV"
    closed_under_scaling: ClassVar[bool] = True
    log_scale: ClassVar[tuple[str, int]] = ("log_volume", 2)

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        _, unit = unit_volume(exp_diagonal(self.log_cholesky))
        return unit * jnp.exp(-self.log_volume / 2)

    @classmethod
    def fitted(
        cls,
        weight: Float[Array, " k"],
        factors: Float[Array, "k d d"],
        scatter: Float[Array, "k d d"],
    ) -> Self:
        log_volume, unit = unit_volume(best_factors(weight, factors, scatter))
        return cls(equal_volume(weight, log_volume), log_diagonal(unit))

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return 1 - n_components + n_components * n_features * (n_features + 1) // 2
