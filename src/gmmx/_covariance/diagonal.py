"""One variance for each component and feature, and no correlation."""

from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import log_positive
from .base import AbstractCovariance


class DiagonalCovariance(AbstractCovariance):
    """Variances σ²_kj, one for each component and feature (mclust's VVI)."""

    log_cholesky: Float[Array, "k d"]
    """log(1/σ_kj)"""

    covariance_type: ClassVar[str] = "diag"
    aliases: ClassVar[tuple[str, ...]] = ("VVI",)
    axis_aligned: ClassVar[bool] = True
    closed_under_scaling: ClassVar[bool] = True

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d"]:
        return jnp.exp(self.log_cholesky)

    @classmethod
    def fitted(
        cls, weight: Float[Array, " k"], factors: Float[Array, "k d"], scatter: Float[Array, "k d"]
    ) -> Self:
        return cls(jnp.log(factors) - log_positive(scatter / weight[:, None]) / 2)

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return n_components * n_features
