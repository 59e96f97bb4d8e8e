"""Every component a covariance matrix of its own."""

import itertools
from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_positive, check_symmetric
from .._linalg import (
    einsum,
    exp_diagonal,
    inverse_lower,
    inverse_root,
    log_diagonal,
    product,
    whiten_apart,
    whiten_by,
)
from . import packing
from .base import AbstractCovariance


class FullCovariance(AbstractCovariance):
    """Covariances Σ_k, one dense matrix a component (mclust's VVV)."""

    log_cholesky: Float[Array, "k d d"]
    """W_k with its diagonal in logs; the strictly upper triangle is not read."""

    covariance_type: ClassVar[str] = "full"
    closed_under_linear_maps: ClassVar[bool] = True

    @classmethod
    def from_covariances(cls, covariances: Float[Array, "k d d"]) -> Self:
        check_symmetric(covariances)
        factor = inverse_root(covariances)
        check_positive(jnp.diagonal(factor, axis1=-2, axis2=-1), n_own=1)
        return cls(log_diagonal(factor))

    @classmethod
    def from_precisions_cholesky(cls, precisions_cholesky: Float[Array, "k d d"]) -> Self:
        return cls(log_diagonal(precisions_cholesky.mT))

    @classmethod
    def from_scale(cls, scale: Float[Array, " d"], n_components: int) -> Self:
        return cls(jnp.tile(jnp.diag(-jnp.log(scale)), (n_components, 1, 1)))

    @classmethod
    def natural_shape(cls, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_components, n_features, n_features)

    @property
    def _factor(self) -> Float[Array, "k d d"]:
        return exp_diagonal(self.log_cholesky)

    @property
    def covariances(self) -> Float[Array, "k d d"]:
        root = inverse_lower(self._factor)
        return product(root, root.mT)

    @property
    def precisions(self) -> Float[Array, "k d d"]:
        return product(self._factor.mT, self._factor)

    @property
    def precisions_cholesky(self) -> Float[Array, "k d d"]:
        return self._factor.mT

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components * n_features * (n_features + 1) // 2

    def rescale(self, scale: Float[Array, " d"]) -> Self:
        return type(self)(log_diagonal(self._factor / scale))

    def usable_scale(self, scale: Float[Array, " d"]) -> Float[Array, " d"]:
        return scale

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        return self._factor

    def in_frame(self, root: Float[Array, "d d"]) -> Self:
        return type(self)(log_diagonal(product(self._factor, root)))

    def whiten(self, x: Float[Array, "n d"], means: Float[Array, "k d"]) -> Float[Array, "k d n"]:
        return whiten_apart(self._factor, x, means)

    def whiten_centred(
        self, x: Float[Array, "n d"], means: Float[Array, "k d"]
    ) -> Float[Array, "k d n"]:
        # −Wμ is one more column of W, which spares a pass over y.
        factor = self._factor
        k, d = means.shape
        shifted = jnp.concatenate([factor, -product(factor, means[:, :, None])], axis=-1)
        extended = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
        return product(shifted.reshape(k * d, d + 1), extended.T).reshape(k, d, x.shape[0])

    def distances_centred(
        self, x: Float[Array, "n d"], means: Float[Array, "k d"]
    ) -> Float[Array, "n k"]:
        # The upper half of a triangle reads half of the features. Short products do not pay.
        factor, (k, d) = self._factor, means.shape
        edges = (0, d // 2, d) if d >= 32 and k * d >= 512 else (0, d)
        distances = []
        for start, end in itertools.pairwise(edges):
            rows = factor[:, start:end, :end]
            # With the sum along the last axis: a fourth faster than along the middle one.
            y = product(x[:, :end], rows.reshape(-1, end).T).reshape(x.shape[0], k, -1)
            centres = product(rows, means[:, :end, None])[..., 0]
            distances.append(jnp.sum((y - centres) ** 2, axis=-1))
        return sum(distances[1:], distances[0])

    def half_log_det(self, n_features: int) -> Float[Array, " k"]:
        # Not by jnp.trace, which passes over the whole of each matrix.
        return jnp.sum(jnp.diagonal(self.log_cholesky, axis1=-2, axis2=-1), axis=-1)

    def precision_trace(self, n_features: int) -> Float[Array, " k"]:
        return jnp.sum(self._factor**2, axis=(-2, -1))

    def scatter(
        self, y: Float[Array, "k d n"], responsibilities: Float[Array, "k n"]
    ) -> Float[Array, "k d d"]:
        # Not by their roots, whose derivative is infinite where a responsibility is zero.
        return einsum("kdn,ken->kde", responsibilities[:, None] * y, y)

    # Σ z y(Wx − Wμ)ᵀ, of which Σ z yxᵀ is again one product for all components, and the rest is
    # known from sums over x: Σ z y = W Σ z(x − μ).

    def centred_sums(
        self,
        y: Float[Array, "k d n"],
        responsibilities: Float[Array, "k n"],
        x: Float[Array, "n d"],
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Float[Array, "k d d"]]:
        k, d, n = y.shape
        cross = product((responsibilities[:, None] * y).reshape(k * d, n), x).reshape(k, d, d)
        raw = einsum("kn,nd->kd", responsibilities, x)
        return jnp.sum(responsibilities, axis=1), raw, cross

    def centred_moments(
        self,
        sums: tuple[Float[Array, " k"], Float[Array, "k d"], Float[Array, "k d d"]],
        means: Float[Array, "k d"],
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Float[Array, "k d d"]]:
        factor, (weight, raw, cross) = self._factor, sums
        first = raw - weight[:, None] * means
        pair = product(factor, jnp.stack([first, means], axis=-1))
        return weight, first, product(cross, factor.mT) - pair[..., :1] * pair[..., 1:].mT

    def packed_coefficients(
        self, means: Float[Array, "k d"], constant: Float[Array, " k"]
    ) -> Float[Array, "k p"]:
        precisions = self.precisions
        linear = product(precisions, means[..., None])[..., 0]
        constant = constant - jnp.sum(linear * means, axis=-1) / 2
        return jnp.concatenate([-packing.pack(precisions) / 2, linear, constant[:, None]], axis=1)

    def packed_features(self, x: Float[Array, "n d"]) -> Float[Array, "p n"]:
        return packing.monomials(x)

    def packed_log_density(
        self, coefficients: Float[Array, "k p"], features: Float[Array, "p n"]
    ) -> Float[Array, "k n"]:
        return product(coefficients, features)

    def packed_sums(
        self, features: Float[Array, "p n"], responsibilities: Float[Array, "k n"]
    ) -> Float[Array, "p k"]:
        return einsum("pn,kn->pk", features, responsibilities)

    def packed_moments(
        self, sums: Float[Array, "p k"], means: Float[Array, "k d"]
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Float[Array, "k d d"]]:
        d = means.shape[-1]
        weight, raw = sums[-1], sums[-d - 1 : -1].T
        cross = raw[:, :, None] * means[:, None, :]
        square = weight[:, None, None] * means[:, :, None] * means[:, None, :]
        second = packing.unpack(sums[: -d - 1].T, d) - cross - cross.mT + square
        second = product(product(self._factor, second), self._factor.mT)
        return weight, raw - weight[:, None] * means, second

    def cancellation(
        self, reaches: Float[Array, "c d"], means: Float[Array, "k d"]
    ) -> Float[Array, "c k"]:
        reach = jnp.maximum(reaches[:, None], jnp.abs(means))
        return jnp.sum(einsum("ckd,kde->cke", reach, jnp.abs(self.precisions)) * reach, axis=-1)

    def maximise(
        self,
        weight: Float[Array, " k"],
        first: Float[Array, "k d"],
        second: Float[Array, "k d d"],
        shift: Float[Array, "k d"],
        reg_covar: Float[Array, ""],
    ) -> Self:
        factor = self._factor
        empty = weight <= 0
        weight = jnp.where(empty, 1, weight)[:, None, None]
        pair = product(factor, jnp.stack([first, shift], axis=-1))
        first, shift = pair[..., :1], pair[..., 1:]
        cross = first * shift.mT
        scatter = second - cross - cross.mT + weight * shift * shift.mT
        # Σ' = W⁻¹(S + reg WWᵀ)W⁻ᵀ, so with S + reg WWᵀ = CCᵀ the new factor is C⁻¹W: no
        # covariance is formed in the data's units, and the condition number is not squared.
        floor = reg_covar * product(factor, factor.mT)
        log_cholesky = log_diagonal(whiten_by(scatter / weight + floor, factor))
        return type(self)(jnp.where(empty[:, None, None], self.log_cholesky, log_cholesky))
