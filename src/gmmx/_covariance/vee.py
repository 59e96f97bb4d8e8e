"""Covariances of one shape and orientation."""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import exp_diagonal, inverse_lower, inverse_root, log_diagonal, product
from .._orthogonal import lower_root
from .base import AbstractCovariance
from .decomposition import TURNS, best_factors, unit_volume


class VEECovariance(AbstractCovariance):
    """Multiples of one covariance: Σ_k = λ_kC, |C| = 1 (mclust's VEE)."""

    log_volume: Float[Array, " k"]
    """log λ_k"""
    log_cholesky: Float[Array, "d d"]
    """The factor of C⁻¹ with its diagonal in logarithms, these to a constant"""

    covariance_type: ClassVar[str] = "VEE"
    closed_under_scaling: ClassVar[bool] = True

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
        # structure, and all are seen in the frame of Σ n_kΣ_k/n.
        d, share = factors.shape[-1], weight / jnp.sum(weight)
        roots = inverse_lower(best_factors(weight, factors, scatter))
        weighted = jnp.sqrt(share)[:, None, None] * roots
        frame = inverse_lower(lower_root(jnp.concatenate(list(weighted), axis=1)))
        frame_volume, frame = unit_volume(frame)
        roots = product(frame, roots) * jnp.exp(-frame_volume / 2)
        covariances = product(roots, roots.mT)

        def unit_factor(log_volume: Array) -> Array:
            scaled = share * jnp.exp(jnp.min(log_volume) - log_volume)
            return unit_volume(inverse_root(jnp.tensordot(scaled, covariances, 1)))[1]

        def turn(_: int | Array, log_volume: Array) -> Array:
            seen = product(unit_factor(log_volume), roots)
            return jnp.log(jnp.sum(seen**2, axis=(1, 2)) / d)

        log_volume = jax.lax.fori_loop(0, TURNS, turn, unit_volume(factors)[0] - frame_volume)
        unit = product(unit_factor(log_volume), frame)
        return cls(log_volume + frame_volume, log_diagonal(unit))

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return n_components - 1 + n_features * (n_features + 1) // 2

    @classmethod
    def fewest_samples(cls, n_features: int) -> int:
        return 2
