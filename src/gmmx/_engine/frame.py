"""Coordinates in which the data, or the model, are close to isotropic: z = L⁻¹(x − c).

Packed and centred terms cancel where rows lie far from the origin in units of a component's width.
Relative to their mean, and along the axes of their own covariance, they lie closest.
"""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._chunks import chunk_of, fold, rows_per_chunk
from .._components import AbstractComponents
from .._covariance.factors import AnyFactors
from .._data import Samples, completed
from .._linalg import einsum, inverse_lower, product, whiten_by


class Frame(eqx.Module):
    """x = c + Lz; L is a matrix, a diagonal, or the identity (None)."""

    centre: Float[Array, " d"]
    root: Float[Array, "d d"] | Float[Array, " d"] | None
    inverse: Float[Array, "d d"] | None
    """L⁻¹ of a matrix L"""

    @classmethod
    def of_data(cls, x: Samples, weights: Float[Array, " n"] | None, turned: bool) -> Self:
        """The mean of the rows and their deviations or, if `turned`, their covariance."""
        x = completed(x, weights)
        n, d = x.shape
        centre, variance = mean_and_variance(x, weights)
        if not turned:
            return cls.of_moments(centre, variance, None)
        deviation = _deviation(variance)

        def square(i: Array | int, present: Array | None) -> Array:
            z = (chunk_of(x, i, rows) - centre) / deviation
            counted = times(None if weights is None else chunk_of(weights, i, rows), present)
            return einsum("nd,ne->de", z if counted is None else z * counted[:, None], z)

        total = n if weights is None else jnp.sum(weights)
        rows = rows_per_chunk(n, 2 * d, x.dtype.itemsize)
        return cls.of_moments(centre, variance, fold(square, n, rows, x) / total)

    @classmethod
    def of_moments(
        cls,
        centre: Float[Array, " d"],
        variance: Float[Array, " d"],
        correlation: Float[Array, "d d"] | None,
    ) -> Self:
        """Of the mean, the variances and the correlations of the data; None is not turned."""
        deviation = _deviation(variance)
        if correlation is None:
            return cls(centre, deviation, None)
        # With a floor against singular ones: a frame need only be close.
        d, dtype = len(centre), centre.dtype
        identity = jnp.eye(d, dtype=dtype)
        floor = 1e2 * float(jnp.finfo(dtype).eps) * identity
        # One elimination gives both: L⁻¹[I, C] = [L⁻¹, Lᵀ].
        both = jnp.concatenate([identity, correlation + floor], axis=1)
        white = whiten_by(correlation + floor, both)
        return cls(centre, deviation[:, None] * white[:, d:].T, white[:, :d] / deviation)

    @classmethod
    def of_model(cls, gmm: AbstractComponents, turned: bool) -> Self:
        """The mean of the mixture and, if `turned`, the axes of its heaviest component.

        Takes no part in any derivative, since no value depends on the frame.
        """
        gmm = jax.lax.stop_gradient(gmm)
        centre = gmm.weights @ gmm.means
        if not turned:
            return cls(centre, None, None)
        factors = gmm.distinct_factors()
        inverse = factors[jnp.argmax(gmm.logits)] if len(factors) > 1 else factors[0]
        return cls(centre, inverse_lower(inverse), inverse)

    def apply(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """z = L⁻¹(x − c)"""
        return self.vectors(x - self.centre)

    def vectors(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """L⁻¹x: differences of points, into the frame."""
        if self.inverse is not None:
            return einsum("nd,ed->ne", x, self.inverse)
        return x if self.root is None else x / self.root

    def vectors_back(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """Lz: differences of points, in the units of x."""
        if self.root is None or self.root.ndim == 1:
            return z if self.root is None else z * self.root
        return einsum("ke,de->kd", z, self.root)

    def factors(self, factors: AnyFactors) -> AnyFactors:
        """WL, the factors of z."""
        if self.root is None or self.root.ndim == 1:
            return factors if self.root is None else factors * self.root
        return product(factors, self.root)


def _deviation(variance: Float[Array, " d"]) -> Float[Array, " d"]:
    """√variance; one for a constant feature"""
    return jnp.sqrt(jnp.where(variance > 0, variance, 1))


def times(weights: Array | None, present: Array | None) -> Array | None:
    """The weights of rows that are present; None stands for one each."""
    if weights is None or present is None:
        return present if weights is None else weights
    return weights * present


def mean_and_variance(
    x: Samples, weights: Float[Array, " n"] | None
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Of each feature; exactly its value and zero for one that is constant."""
    x = completed(x, weights)
    # Relative to one row, so that an offset is not rounded in the sum.
    centre = x[0] + _mean(x - x[0], weights)
    return centre, _mean((x - centre) ** 2, weights)


def _mean(values: Float[Array, "n d"], weights: Float[Array, " n"] | None) -> Float[Array, " d"]:
    if weights is None:
        return jnp.mean(values, axis=0)
    return weights @ values / jnp.sum(weights)
