"""One covariance matrix that all components share."""

from typing import ClassVar, Self

from jaxtyping import Array, Float

from .._linalg import exp_diagonal, log_diagonal, whiten_by
from .base import AbstractCovariance


class TiedCovariance(AbstractCovariance):
    """One covariance Σ for all components (mclust's EEE)."""

    log_cholesky: Float[Array, "d d"]
    """W with its diagonal in logarithms; the strictly upper triangle is not read"""

    covariance_type: ClassVar[str] = "tied"
    aliases: ClassVar[tuple[str, ...]] = ("EEE",)
    shared: ClassVar[bool] = True
    closed_under_scaling: ClassVar[bool] = True

    def factors(self, n_components: int, n_features: int) -> Float[Array, "1 d d"]:
        return exp_diagonal(self.log_cholesky)[None]

    @classmethod
    def from_factors(cls, factors: Float[Array, "1 d d"]) -> Self:
        return cls(log_diagonal(factors[0]))

    @classmethod
    def fitted(
        cls,
        weight: Float[Array, " 1"],
        factors: Float[Array, "1 d d"],
        scatter: Float[Array, "1 d d"],
    ) -> Self:
        return cls.from_factors(whiten_by(scatter / weight[:, None, None], factors))

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return n_features * (n_features + 1) // 2
