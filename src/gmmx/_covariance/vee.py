"""Covariances of one shape and orientation."""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import (
    einsum,
    exp_diagonal,
    inverse_lower,
    inverse_root,
    log_diagonal,
    log_positive,
    product,
)
from .base import AbstractCovariance
from .decomposition import TURNS, unit_volume


class VEECovariance(AbstractCovariance):
    """Multiples of one covariance: Σ_k = λ_kC, |C| = 1 (mclust's VEE)."""

    log_volume: Float[Array, " k"]
    """log λ_k"""
    log_cholesky: Float[Array, "d d"]
    """The factor of C⁻¹ with its diagonal in logarithms, these to a constant"""

    covariance_type: ClassVar[str] = "VEE"
    closed_under_scaling: ClassVar[bool] = True
    log_scale: ClassVar[tuple[str, int]] = ("log_volume", 2)

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        _, unit = unit_volume(exp_diagonal(self.log_cholesky))
        return unit * jnp.exp(-self.log_volume / 2)[:, None, None]

    @classmethod
    def fitted(
        cls,
        weight: Float[Array, " k"],
        factors: Float[Array, "k d d"],
        scatter: Float[Array, "k d d"],
    ) -> Self:
        # C ∝ Σ n_kΣ_k/λ_k and λ_k = tr(Σ_kC⁻¹)/d by turns, where Σ_k is the best covariance of no
        # structure; in the frame of the first factor, and in units of the volumes in hand.
        d, share = factors.shape[-1], weight / jnp.sum(weight)
        log_volume, unit = unit_volume(factors)
        seen = product(unit[0], inverse_lower(unit))
        covariances = product(product(seen, scatter / weight[:, None, None]), seen.mT)

        def turn(_: int | Array, both: tuple[Array, Array]) -> tuple[Array, Array]:
            pooled = einsum("k,kij->ij", share * jnp.exp(-both[0]), covariances)
            _, factor = unit_volume(inverse_root(pooled))
            traces = jnp.sum(covariances * product(factor.mT, factor), axis=(1, 2))
            return log_positive(traces / d), factor

        start = jnp.zeros_like(log_volume), unit[0]
        change, factor = jax.lax.fori_loop(0, TURNS, turn, start)
        return cls(log_volume + change, log_diagonal(product(factor, unit[0])))

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return n_components - 1 + n_features * (n_features + 1) // 2

    @classmethod
    def fewest_samples(cls, n_features: int) -> int:
        return 2
