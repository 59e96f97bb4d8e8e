"""One variance for each component, the same in all directions."""

from typing import ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._linalg import log_positive
from .base import AbstractCovariance


class SphericalCovariance(AbstractCovariance):
    """Variances σ²_k, one for each component (mclust's VII)."""

    log_cholesky: Float[Array, " k"]
    """log(1/σ_k)"""

    covariance_type: ClassVar[str] = "spherical"
    aliases: ClassVar[tuple[str, ...]] = ("VII",)
    axis_aligned: ClassVar[bool] = True
    isotropic: ClassVar[bool] = True

    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d"]:
        return jnp.tile(jnp.exp(self.log_cholesky)[:, None], (1, n_features))

    @classmethod
    def fitted(
        cls, weight: Float[Array, " k"], factors: Float[Array, "k d"], scatter: Float[Array, "k d"]
    ) -> Self:
        # In units of the first factor, so that nothing depends on those of the data.
        unit = factors[:, :1]
        variance = jnp.mean(scatter * (unit / factors) ** 2, axis=1) / weight
        return cls(jnp.log(unit[:, 0]) - log_positive(variance) / 2)

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return n_components

    def marginal(self, indices: np.ndarray, n_components: int, n_features: int) -> Self:
        return self

    def convolve(
        self, noise: Float[Array, "*m"], n_components: int, n_features: int
    ) -> AbstractCovariance:
        if noise.ndim > 0:
            return super().convolve(noise, n_components, n_features)
        return type(self)(self.log_cholesky - jnp.log1p(noise * jnp.exp(2 * self.log_cholesky)) / 2)
