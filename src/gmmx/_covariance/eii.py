"""One variance for all components and features."""

from typing import ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._linalg import log_positive
from .base import AbstractCovariance


class EIICovariance(AbstractCovariance):
    """One variance σ² of all features in every component: Σ_k = λI (mclust's EII)."""

    log_cholesky: Float[Array, ""]
    """log(1/σ)"""

    covariance_type: ClassVar[str] = "EII"
    axis_aligned: ClassVar[bool] = True
    isotropic: ClassVar[bool] = True
    shared: ClassVar[bool] = True

    def factors(self, n_components: int, n_features: int) -> Float[Array, "1 d"]:
        return jnp.full((1, n_features), jnp.exp(self.log_cholesky))

    @classmethod
    def fitted(
        cls, weight: Float[Array, " 1"], factors: Float[Array, "1 d"], scatter: Float[Array, "1 d"]
    ) -> Self:
        # In units of the first factor, so that nothing depends on those of the data.
        unit = factors[0, 0]
        variance = jnp.mean(scatter[0] * (unit / factors[0]) ** 2) / weight[0]
        return cls(jnp.log(unit) - log_positive(variance) / 2)

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        return 1

    def marginal(self, indices: np.ndarray, n_components: int, n_features: int) -> Self:
        return self

    def convolve(
        self, noise: Float[Array, "*m"], n_components: int, n_features: int
    ) -> AbstractCovariance:
        if noise.ndim > 0:
            return super().convolve(noise, n_components, n_features)
        return type(self)(self.log_cholesky - jnp.log1p(noise * jnp.exp(2 * self.log_cholesky)) / 2)
