"""Latent factors that all components have in common."""

from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import einsum, product, whiten_by
from .base import AbstractCovariance, exact
from .factors import LowRankFactors
from .low_rank import AbstractLowRank, second_moments, with_one_variance


class AbstractTiedLoadings(AbstractLowRank):
    """Covariances FFᵀ + Ψ_k: components differ in their noise only.

    Baek, McLachlan & Flack 2010 and McNicholas & Murphy 2008 discuss such mixtures.
    """

    def factors(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, n_components: int, n_features: int
    ) -> LowRankFactors:
        log_diagonal = self.log_cholesky.reshape(n_components, -1)
        log_diagonal = jnp.broadcast_to(log_diagonal, (n_components, n_features))
        apart = log_diagonal - jnp.mean(log_diagonal, axis=0)
        loadings = self.scaled_loadings * jnp.exp(apart)[:, :, None]
        return LowRankFactors(jnp.exp(log_diagonal), loadings)

    @classmethod
    def from_factors(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, factors: LowRankFactors
    ) -> Self:
        factors = with_one_variance(factors) if cls.one_variance else factors
        log_diagonal = jnp.log(factors.diagonal)
        apart = log_diagonal - jnp.mean(log_diagonal, axis=0)
        loadings = jnp.mean(factors.loadings * jnp.exp(-apart)[:, :, None], axis=0)
        return cls(loadings, log_diagonal[:, 0] if cls.one_variance else log_diagonal)

    @classmethod
    def fitted(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, weight: Float[Array, " k"], factors: LowRankFactors, scatter: LowRankFactors
    ) -> Self:
        # Loadings by the variances of noise in hand, then variances by the new loadings: an ECM
        # step (Meng & Rubin 1993). A row f of F solves Σ_k n_kψ_k⁻¹Φ_k f = Σ_k n_kψ_k⁻¹c_k, here
        # in units of the mean of the frames.
        cross, square, second = second_moments(weight, factors, scatter)
        log_diagonal = jnp.log(factors.diagonal)
        apart = jnp.exp(log_diagonal - jnp.mean(log_diagonal, axis=0))
        share = weight / jnp.sum(weight)
        matrix = einsum("k,kd,krs->drs", share, apart**2, second)
        right = einsum("k,kd,kdr->dr", share, apart, cross)
        identity = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
        inverse = whiten_by(matrix, jnp.broadcast_to(identity, matrix.shape))
        loadings = product(inverse.mT, product(inverse, right[:, :, None]))[..., 0]
        own = apart[:, :, None] * loadings
        rest = square - 2 * jnp.sum(own * cross, axis=2) + jnp.sum(own * product(own, second), 2)
        # The latent factors have one covariance in all components, which is free as well.
        pooled = einsum("k,krs->rs", share, second)
        root = whiten_by(pooled, pooled).mT
        return cls.of_parts(factors, product(own, root), rest, square)

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        one = super().n_parameters(1, n_features)
        return one + (n_components - 1) * (1 if cls.one_variance else n_features)

    @classmethod
    def fewest_samples(cls, n_features: int) -> int:
        return 2

    def _of_others(self, factors: LowRankFactors) -> AbstractCovariance:
        # What the given features say of the latent factors differs between components.
        return exact(factors, len(factors))


class TiedLoadingsCovariance(AbstractTiedLoadings):
    """Covariances FFᵀ + Ψ_k with one F and diagonal noise of each component's own."""

    scaled_loadings: Float[Array, "d r"]
    """F in units of the noise, of its geometric mean over components"""
    log_cholesky: Float[Array, "k d"]
    """log 1/√ψ_kj"""

    covariance_type: ClassVar[str] = "tied_loadings"
    closed_under_scaling: ClassVar[bool] = True


class TiedLoadingsSphericalCovariance(AbstractTiedLoadings):
    """Covariances FFᵀ + ψ_kI with one F and one variance of noise for each component."""

    scaled_loadings: Float[Array, "d r"]
    """F in units of the noise, of its geometric mean over components"""
    log_cholesky: Float[Array, " k"]
    """log 1/√ψ_k"""

    covariance_type: ClassVar[str] = "tied_loadings_spherical"
    one_variance: ClassVar[bool] = True
