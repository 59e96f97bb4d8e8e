"""One covariance matrix for each component."""

from typing import ClassVar, Self

from jaxtyping import Array, Float

from .._linalg import exp_diagonal, log_diagonal, whiten_by
from .base import AbstractCovariance


class FullCovariance(AbstractCovariance):
    """Covariances Σ_k, one dense matrix for each component (mclust's VVV)."""

    log_cholesky: Float[Array, "k d d"]
    """W_k with its diagonal in logarithms; the strictly upper triangle is not read"""

    covariance_type: ClassVar[str] = "full"
    aliases: ClassVar[tuple[str, ...]] = ("VVV",)
    closed_under_scaling: ClassVar[bool] = True

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        return exp_diagonal(self.log_cholesky)

    @classmethod
    def from_factors(cls, factors: Float[Array, "k d d"]) -> Self:
        return cls(log_diagonal(factors))

    @classmethod
    def fitted(
        cls,
        weight: Float[Array, " k"],
        factors: Float[Array, "k d d"],
        scatter: Float[Array, "k d d"],
    ) -> Self:
        # With S = CCᵀ the new factor is C⁻¹W: no covariance is formed in the units of the data,
        # and the condition number is not squared.
        return cls.from_factors(whiten_by(scatter / weight[:, None, None], factors))

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return n_components * n_features * (n_features + 1) // 2
