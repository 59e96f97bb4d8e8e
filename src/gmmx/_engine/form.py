"""A mixture as the engine sees it: constants, means and factors in a frame."""

from typing import Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._components import AbstractComponents
from .._covariance.factors import AnyFactors, Factors, LowRankFactors
from .._linalg import product
from .frame import Frame


class Form(eqx.Module):
    """log w_k N(x; μ_k, Σ_k) = constant_k − ½‖W_k(z − μ_k)‖², of one of five kinds.

    The factors are dense or axis-aligned, `(j, d, d)` or `(j, d)`, and each component's own or
    shared, j = K or j = 1 < K; or they are of low rank.
    """

    constant: Float[Array, " k"]
    """log w_k + log|W_k| − d/2 log 2π, W_k in the units of x"""
    means: Float[Array, "k d"]
    """μ_k in the frame"""
    factors: AnyFactors
    """W_kL"""
    log_background_weight: Float[Array, ""] | None = None
    """log w_0 of a background; None without one"""

    @classmethod
    def of(cls, gmm: AbstractComponents, frame: Frame) -> Self:
        """The mixture in a frame."""
        factors, background = gmm.factors(), gmm.log_background_weight
        means, constant = frame.apply(gmm.means), gmm.log_constant(factors)
        return cls(constant, means, frame.factors(factors), background)

    @property
    def axis_aligned(self) -> bool:
        """Whether the factors are diagonals."""
        return not isinstance(self.factors, LowRankFactors) and self.factors.ndim == 2

    @property
    def shared(self) -> bool:
        """Whether components share one factor."""
        return len(self.factors) < len(self.means)

    def precisions(self) -> Factors:
        """Λ = WᵀW, or its diagonal."""
        if self.axis_aligned:
            return self.factors**2
        return product(self.factors.mT, self.factors)

    def times(self, matrices: Factors, vectors: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """M_kv_k, for matrices of the shape of the factors."""
        if self.axis_aligned:
            return matrices * vectors
        if self.shared:
            return product(vectors, matrices[0].mT)
        return product(matrices, vectors[:, :, None])[..., 0]

    def whiten(self, vectors: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """W_kv_k"""
        if isinstance(self.factors, LowRankFactors):
            return self.factors.diagonal * vectors
        return self.times(self.factors, vectors)

    def without(
        self, scatter: AnyFactors, a: Float[Array, "k d"], b: Float[Array, "k d"]
    ) -> AnyFactors:
        """S_k − a_kb_kᵀ − b_ka_kᵀ, summed over components where they share a factor."""
        if isinstance(self.factors, LowRankFactors):
            gains = self.factors.latent().gains
            seen_a, seen_b = (product(gains, v[:, :, None]).mT for v in (a, b))
            cross = a[:, :, None] * seen_b + b[:, :, None] * seen_a
            return LowRankFactors(scatter.diagonal - 2 * a * b, scatter.loadings - cross)
        cross = self.outer(a, b)
        return scatter - cross - (cross if self.axis_aligned else cross.mT)

    def outer(self, a: Float[Array, "k d"], b: Float[Array, "k d"]) -> Factors:
        """a_kb_kᵀ, summed over components where they share a factor; a scatter's shape."""
        if self.axis_aligned:
            return jnp.sum(a * b, axis=0, keepdims=True) if self.shared else a * b
        return product(a.T, b)[None] if self.shared else a[:, :, None] * b[:, None, :]

    def extents(self, reach: Float[Array, " d"]) -> Float[Array, "k d"]:
        """How far a component or the rows lie from the origin, feature by feature.

        Zero for a component of weight zero, which takes no part.
        """
        extents = jnp.maximum(reach, jnp.abs(self.means))
        return jnp.where((self.constant == -jnp.inf)[:, None], 0, extents)
