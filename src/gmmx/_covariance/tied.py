"""One covariance matrix that all components share."""

from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_positive, check_symmetric
from .._linalg import (
    damp,
    einsum,
    exp_diagonal,
    inverse_lower,
    inverse_root,
    log_diagonal,
    product,
    whiten_apart,
    whiten_by,
)
from .base import AbstractCovariance

_Coefficients = tuple[Float[Array, "k p"], Float[Array, "d d"]]


class TiedCovariance(AbstractCovariance):
    """One covariance Σ for every component (mclust's EEE)."""

    log_cholesky: Float[Array, "d d"]
    """W with its diagonal in logs; the strictly upper triangle is not read."""

    covariance_type: ClassVar[str] = "tied"
    closed_under_linear_maps: ClassVar[bool] = True
    separable: ClassVar[bool] = False

    @classmethod
    def from_covariances(cls, covariances: Float[Array, "d d"]) -> Self:
        check_symmetric(covariances)
        factor = inverse_root(covariances)
        check_positive(jnp.diagonal(factor, axis1=-2, axis2=-1), n_own=1)
        return cls(log_diagonal(factor))

    @classmethod
    def from_precisions_cholesky(cls, precisions_cholesky: Float[Array, "d d"]) -> Self:
        return cls(log_diagonal(precisions_cholesky.mT))

    @classmethod
    def from_scale(cls, scale: Float[Array, " d"], n_components: int) -> Self:
        return cls(jnp.diag(-jnp.log(scale)))

    @classmethod
    def natural_shape(cls, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_features, n_features)

    @property
    def _factor(self) -> Float[Array, "d d"]:
        return exp_diagonal(self.log_cholesky)

    @property
    def covariances(self) -> Float[Array, "d d"]:
        root = inverse_lower(self._factor)
        return einsum("ij,lj->il", root, root)

    @property
    def precisions(self) -> Float[Array, "d d"]:
        return einsum("ji,jl->il", self._factor, self._factor)

    @property
    def precisions_cholesky(self) -> Float[Array, "d d"]:
        return self._factor.mT

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_features * (n_features + 1) // 2

    def rescale(self, scale: Float[Array, " d"]) -> Self:
        return type(self)(log_diagonal(self._factor / scale))

    def usable_scale(self, scale: Float[Array, " d"]) -> Float[Array, " d"]:
        return scale

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        return jnp.broadcast_to(self._factor, (n_components, n_features, n_features))

    def distinct_factors(self, n_components: int, n_features: int) -> Float[Array, "1 d d"]:
        return self._factor[None]

    def with_distinct_factors(self, factors: Float[Array, "1 d d"]) -> Self:
        return type(self)(log_diagonal(factors[0]))

    def in_frame(self, root: Float[Array, "d d"]) -> Self:
        return type(self)(log_diagonal(einsum("ij,jl->il", self._factor, root)))

    def whiten(self, x: Float[Array, "n d"], means: Float[Array, "k d"]) -> Float[Array, "k d n"]:
        return whiten_apart(self._factor, x, means)

    def whiten_centred(
        self, x: Float[Array, "n d"], means: Float[Array, "k d"]
    ) -> Float[Array, "k d n"]:
        return product(self._factor, x.T) - product(self._factor, means[:, :, None])

    def damp(
        self, y: Float[Array, "k d n"], variance: Float[Array, "*n"]
    ) -> tuple[Float[Array, "k d n"], Float[Array, "k #n"]]:
        return damp(self._factor[None], y, variance)

    def half_log_det(self, n_features: int) -> Float[Array, ""]:
        return jnp.sum(jnp.diagonal(self.log_cholesky))

    def precision_trace(self, n_features: int) -> Float[Array, ""]:
        return jnp.sum(self._factor**2)

    def scatter(
        self, y: Float[Array, "k d n"], responsibilities: Float[Array, "k n"]
    ) -> Float[Array, "d d"]:
        # As for the full structure: not by the roots of the responsibilities.
        return einsum("kdn,ken->de", responsibilities[:, None] * y, y)

    # −½‖Wx‖² is common to all components, so what differs between them is linear in x, and one
    # transform of x serves them all.

    def packed_coefficients(
        self, means: Float[Array, "k d"], constant: Float[Array, " k"]
    ) -> _Coefficients:
        linear = einsum("ij,kj->ki", self.precisions, means)
        constant = constant - jnp.sum(linear * means, axis=-1) / 2
        return jnp.concatenate([linear, constant[:, None]], axis=1), self._factor

    def packed_features(self, x: Float[Array, "n d"]) -> Float[Array, "p n"]:
        return jnp.concatenate([x.T, jnp.ones_like(x.T[:1])])

    def packed_log_density(
        self, coefficients: _Coefficients, features: Float[Array, "p n"]
    ) -> Float[Array, "k n"]:
        linear, factor = coefficients
        y = product(factor, features[:-1])
        return product(linear, features) - jnp.sum(y**2, axis=0) / 2

    def packed_sums(
        self, features: Float[Array, "p n"], responsibilities: Float[Array, "k n"]
    ) -> tuple[Float[Array, "p k"], Float[Array, "d d"]]:
        x = features[:-1]
        square = einsum("dn,en->de", jnp.sum(responsibilities, axis=0) * x, x)
        return einsum("pn,kn->pk", features, responsibilities), square

    def packed_moments(
        self, sums: tuple[Float[Array, "p k"], Float[Array, "d d"]], means: Float[Array, "k d"]
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Float[Array, "d d"]]:
        raw, weight = sums[0][:-1].T, sums[0][-1]
        whitened, centres = einsum("ij,akj->aki", self._factor, jnp.stack([raw, means]))
        cross = einsum("kd,ke->de", whitened, centres)
        square = einsum("kd,ke->de", weight[:, None] * centres, centres)
        second = einsum("ij,jl,ml->im", self._factor, sums[1], self._factor)
        return weight, raw - weight[:, None] * means, second - cross - cross.mT + square

    def cancellation(
        self, reaches: Float[Array, "c d"], means: Float[Array, "k d"]
    ) -> Float[Array, "c k"]:
        reach = jnp.maximum(reaches[:, None], jnp.abs(means))
        size = jnp.sum(einsum("ckd,de->cke", reach, jnp.abs(self.precisions)) * reach, axis=-1)
        # Twice, since ‖Wx‖² and the linear part are rounded each on its own.
        return 2 * size

    def maximise(
        self,
        weight: Float[Array, " k"],
        first: Float[Array, "k d"],
        second: Float[Array, "d d"],
        shift: Float[Array, "k d"],
        reg_covar: Float[Array, ""],
    ) -> Self:
        factor = self._factor
        first, shift = einsum("ij,akj->aki", factor, jnp.stack([first, shift]))
        cross = einsum("kd,ke->de", first, shift)
        square = einsum("kd,ke->de", weight[:, None] * shift, shift)
        scatter = (second - cross - cross.mT + square) / jnp.sum(weight)
        # As for the full structure: C⁻¹W with CCᵀ = S + reg WWᵀ.
        floor = reg_covar * einsum("ij,lj->il", factor, factor)
        return type(self)(log_diagonal(whiten_by(scatter + floor, factor)))
