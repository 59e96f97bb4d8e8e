"""The kinds of factors that a structure may have, and what the engine asks of each."""

from typing import Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._linalg import inverse_lower, product
from .._orthogonal import lower_root


class Latent(eqx.Module):
    """The latent factors given y: z | y ~ N(Gy, M⁻¹) with M = I + BᵀB = LLᵀ."""

    white: Float[Array, "k r d"]
    """A = L⁻¹Bᵀ, so that (I + BBᵀ)⁻¹ = I − AᵀA"""
    inverse_root: Float[Array, "k r r"]
    """L⁻¹"""

    @property
    def gains(self) -> Float[Array, "k r d"]:
        """G = M⁻¹Bᵀ"""
        return product(self.inverse_root.mT, self.white)

    @property
    def covariance(self) -> Float[Array, "k r r"]:
        """M⁻¹"""
        return product(self.inverse_root.mT, self.inverse_root)


class LowRankFactors(eqx.Module):
    """Σ = W⁻¹(I + BBᵀ)W⁻¹ with a diagonal W: r numbers a feature in place of d.

    With loadings F and variances Ψ of noise, Σ = FFᵀ + Ψ, these are W = Ψ^-½ and B = WF. A scatter
    S of y = W(x − μ) is held in the same shape: its diagonal, and SGᵀ = Σ_i y_i E[z | y_i]ᵀ.
    """

    diagonal: Float[Array, "k d"]
    """W, or the diagonal of S"""
    loadings: Float[Array, "k d r"]
    """B, or SGᵀ"""

    def __len__(self) -> int:
        return len(self.diagonal)

    def __mul__(self, scale: Float[Array, "*k d"]) -> Self:
        """The factors of x/scale. B has no units."""
        return type(self)(self.diagonal * scale, self.loadings)

    def __truediv__(self, scale: Float[Array, "*k d"]) -> Self:
        """The factors of x·scale"""
        return type(self)(self.diagonal / scale, self.loadings)

    @property
    def variances(self) -> Float[Array, "k d"]:
        """The diagonal of I + BBᵀ: what a feature of y has as its variance."""
        return 1 + jnp.sum(self.loadings**2, axis=2)

    def latent(self) -> Latent:
        """What y says of the latent factors.

        By reflections of [I, Bᵀ]: BᵀB, in which small loadings are lost beside large ones, is not
        formed.
        """
        k, _, r = self.loadings.shape
        identity = jnp.broadcast_to(jnp.eye(r, dtype=self.loadings.dtype), (k, r, r))
        root = lower_root(jnp.concatenate([identity, self.loadings.mT], axis=2))
        inverse = inverse_lower(root)
        return Latent(product(inverse, self.loadings.mT), inverse)


Factors = Float[Array, "j d d"] | Float[Array, "j d"]
"""W, lower triangular, or its diagonal where it is one; j is K, or one if components share it"""

AnyFactors = PyTree[Float[Array, "..."]]
"""Those, or a `LowRankFactors`"""


def half_log_det(factors: AnyFactors) -> Float[Array, " j"]:
    """½ log|Λ|"""
    if isinstance(factors, LowRankFactors):
        latent = jnp.diagonal(factors.latent().inverse_root, axis1=1, axis2=2)
        return jnp.sum(jnp.log(factors.diagonal), axis=1) + jnp.sum(jnp.log(latent), axis=1)
    diagonal = jnp.diagonal(factors, axis1=1, axis2=2) if factors.ndim == 3 else factors
    return jnp.sum(jnp.log(diagonal), axis=1)


def precision_diagonal(factors: AnyFactors) -> Float[Array, "j d"]:
    """The diagonal of Λ"""
    if isinstance(factors, LowRankFactors):
        return factors.diagonal**2 * (1 - jnp.sum(factors.latent().white ** 2, axis=1))
    return factors**2 if factors.ndim == 2 else jnp.sum(factors**2, axis=1)


def trace_of(factors: AnyFactors, variances: Float[Array, " d"]) -> Float[Array, " j"]:
    """tr VΛ for a diagonal V"""
    if isinstance(factors, LowRankFactors):
        return precision_diagonal(factors) @ variances
    return jnp.sum(factors**2 * variances, axis=tuple(range(1, factors.ndim)))


def own_scatter(factors: AnyFactors) -> AnyFactors:
    """The scatter of one sample that has the covariance of these factors; it broadcasts."""
    if isinstance(factors, LowRankFactors):
        # (I + BBᵀ)Gᵀ = B
        return LowRankFactors(factors.variances, factors.loadings)
    if factors.ndim == 2:
        return jnp.ones_like(factors)
    return jnp.eye(factors.shape[-1], dtype=factors.dtype)


def diagonal_scatter(factors: AnyFactors, variances: Float[Array, " d"]) -> AnyFactors:
    """The scatter of one sample of uncorrelated features of these variances."""
    if isinstance(factors, LowRankFactors):
        white = factors.diagonal**2 * variances
        return LowRankFactors(white, white[:, :, None] * factors.latent().gains.mT)
    if factors.ndim == 2:
        return factors**2 * variances
    return product(factors * variances, factors.mT)


def relative_variances(factors: AnyFactors, scatter: AnyFactors) -> Float[Array, "j d"]:
    """The variances of the features of y, in units of those that the factors give them."""
    if isinstance(factors, LowRankFactors):
        return scatter.diagonal / factors.variances
    return scatter if scatter.ndim == 2 else jnp.diagonal(scatter, axis1=1, axis2=2)


def largest_factor(factors: AnyFactors) -> Float[Array, ""]:
    """The largest entry of W: over the least deviation of a component in any direction, about."""
    return jnp.max(jnp.abs(factors.diagonal if isinstance(factors, LowRankFactors) else factors))
