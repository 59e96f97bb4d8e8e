"""Every component one variance, the same in all directions."""

from typing import ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_positive
from .._linalg import einsum, product
from .base import AbstractCovariance


class SphericalCovariance(AbstractCovariance):
    """Variances σ²_k, one a component (mclust's VII)."""

    log_cholesky: Float[Array, " k"]
    """log(1/σ_k)."""

    covariance_type: ClassVar[str] = "spherical"
    closed_under_linear_maps: ClassVar[bool] = False

    @classmethod
    def from_covariances(cls, covariances: Float[Array, " k"]) -> Self:
        check_positive(covariances, n_own=0)
        return cls(-jnp.log(covariances) / 2)

    @classmethod
    def from_precisions(cls, precisions: Float[Array, " k"]) -> Self:
        return cls.from_covariances(1 / precisions)

    @classmethod
    def from_precisions_cholesky(cls, precisions_cholesky: Float[Array, " k"]) -> Self:
        return cls(jnp.log(precisions_cholesky))

    @classmethod
    def from_scale(cls, scale: Float[Array, " d"], n_components: int) -> Self:
        return cls(jnp.full((n_components,), -jnp.log(jnp.mean(scale**2)) / 2))

    @classmethod
    def natural_shape(cls, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_components,)

    @property
    def covariances(self) -> Float[Array, " k"]:
        return jnp.exp(-2 * self.log_cholesky)

    @property
    def precisions(self) -> Float[Array, " k"]:
        return jnp.exp(2 * self.log_cholesky)

    @property
    def precisions_cholesky(self) -> Float[Array, " k"]:
        return jnp.exp(self.log_cholesky)

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components

    def rescale(self, scale: Float[Array, " d"]) -> Self:
        return type(self)(self.log_cholesky - jnp.log(scale[0]))

    def usable_scale(self, scale: Float[Array, " d"]) -> Float[Array, " d"]:
        return jnp.full_like(scale, jnp.sqrt(jnp.mean(scale**2)))

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        identity = jnp.eye(n_features, dtype=self.log_cholesky.dtype)
        return self.precisions_cholesky[:, None, None] * identity

    def in_frame(self, root: Float[Array, "d d"]) -> Self:
        raise NotImplementedError(
            f"{self.covariance_type} covariances do not stay so under a rotation."
        )

    def marginal(self, indices: np.ndarray, n_components: int, n_features: int) -> Self:
        return self

    def conditional(
        self, given: np.ndarray, rest: np.ndarray, n_components: int, n_features: int
    ) -> "tuple[AbstractCovariance, AbstractCovariance, Float[Array, 'k u o']]":
        # The features are independent within a component.
        marginal, conditional = (
            self.marginal(part, n_components, n_features) for part in (given, rest)
        )
        gains = jnp.zeros((n_components, rest.size, given.size), self.log_cholesky.dtype)
        return marginal, conditional, gains

    def convolve(
        self, noise: Float[Array, "*m"], n_components: int, n_features: int
    ) -> AbstractCovariance:
        if noise.ndim > 0:
            return super().convolve(noise, n_components, n_features)
        return type(self)(self.log_cholesky - jnp.log1p(noise * self.precisions) / 2)

    def whiten(self, x: Float[Array, "n d"], means: Float[Array, "k d"]) -> Float[Array, "k d n"]:
        return (x.T - means[:, :, None]) * self.precisions_cholesky[:, None, None]

    def damp(
        self, y: Float[Array, "k d n"], variance: Float[Array, "*n"]
    ) -> tuple[Float[Array, "k d n"], Float[Array, "k #n"]]:
        ratio = self.precisions[:, None] * variance
        return y / (1 + ratio[:, None]), y.shape[1] * jnp.log1p(ratio) / 2

    def half_log_det(self, n_features: int) -> Float[Array, " k"]:
        return n_features * self.log_cholesky

    def precision_trace(self, n_features: int) -> Float[Array, " k"]:
        return n_features * self.precisions

    def scatter(
        self, y: Float[Array, "k d n"], responsibilities: Float[Array, "k n"]
    ) -> Float[Array, " k"]:
        return jnp.sum(responsibilities * jnp.sum(y**2, axis=1), axis=1)

    def packed_coefficients(
        self, means: Float[Array, "k d"], constant: Float[Array, " k"]
    ) -> Float[Array, "k p"]:
        linear = self.precisions[:, None] * means
        constant = constant - jnp.sum(linear * means, axis=-1) / 2
        return jnp.concatenate([-self.precisions[:, None] / 2, linear, constant[:, None]], axis=1)

    def packed_features(self, x: Float[Array, "n d"]) -> Float[Array, "p n"]:
        square = jnp.sum(x.T**2, axis=0, keepdims=True)
        return jnp.concatenate([square, x.T, jnp.ones_like(square)])

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
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Float[Array, " k"]]:
        square, raw, weight = sums[0], sums[1:-1].T, sums[-1]
        cross = 2 * jnp.sum(raw * means, axis=-1)
        second = (square - cross + weight * jnp.sum(means**2, axis=-1)) * self.precisions
        return weight, raw - weight[:, None] * means, second

    def cancellation(
        self, reaches: Float[Array, "c d"], means: Float[Array, "k d"]
    ) -> Float[Array, "c k"]:
        reach = jnp.maximum(reaches[:, None], jnp.abs(means))
        return jnp.sum(reach**2, axis=-1) * self.precisions

    def maximise(
        self,
        weight: Float[Array, " k"],
        first: Float[Array, "k d"],
        second: Float[Array, " k"],
        shift: Float[Array, "k d"],
        reg_covar: Float[Array, ""],
    ) -> Self:
        empty = weight <= 0
        weight = jnp.where(empty, 1, weight)
        moved = jnp.sum((weight[:, None] * shift - 2 * first) * shift, axis=-1)
        scatter = (second + moved * self.precisions) / (weight * first.shape[-1])
        variance = scatter + reg_covar * self.precisions
        log_cholesky = self.log_cholesky - jnp.log(jnp.where(variance > 0, variance, jnp.nan)) / 2
        return type(self)(jnp.where(empty, self.log_cholesky, log_cholesky))
