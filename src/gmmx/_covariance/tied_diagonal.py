"""One variance for each feature, which all components share."""

from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import log_positive
from .base import AbstractCovariance


class TiedDiagonalCovariance(AbstractCovariance):
    """Variances σ²_j, one for each feature, of every component (mclust's EEI)."""

    log_cholesky: Float[Array, " d"]
    """log(1/σ_j)"""

    covariance_type: ClassVar[str] = "tied_diag"
    aliases: ClassVar[tuple[str, ...]] = ("EEI",)
    axis_aligned: ClassVar[bool] = True
    shared: ClassVar[bool] = True
    closed_under_scaling: ClassVar[bool] = True

    def factors(self, n_components: int, n_features: int) -> Float[Array, "1 d"]:
        return jnp.exp(self.log_cholesky)[None]

    @classmethod
    def fitted(
        cls, weight: Float[Array, " 1"], factors: Float[Array, "1 d"], scatter: Float[Array, "1 d"]
    ) -> Self:
        return cls(jnp.log(factors[0]) - log_positive(scatter[0] / weight) / 2)

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return n_features
