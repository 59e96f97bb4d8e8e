"""A mixture as the engine sees it: constants, means and factors in a frame."""

from typing import Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._components import AbstractComponents
from .._covariance.base import Factors
from .._linalg import product
from .frame import Frame


class Form(eqx.Module):
    """log w_k N(x; μ_k, Σ_k) = constant_k − ½‖W_k(z − μ_k)‖², of one of four kinds.

    The factors are dense or axis-aligned, `(j, d, d)` or `(j, d)`, and each component's own or
    shared, j = K or j = 1 < K.
    """

    constant: Float[Array, " k"]
    """log w_k + log|W_k| − d/2 log 2π, W_k in the units of x"""
    means: Float[Array, "k d"]
    """μ_k in the frame"""
    factors: Factors
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
        return self.factors.ndim == 2

    @property
    def shared(self) -> bool:
        """Whether components share one factor."""
        return self.factors.shape[0] < self.means.shape[0]

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
