"""What covariances of one variance in all directions share."""

from typing import ClassVar, Self

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .base import AbstractCovariance


class AbstractIsotropic(AbstractCovariance):
    """Variances σ² that are the same for all features: no operation on features changes them."""

    log_cholesky: eqx.AbstractVar[Float[Array, "*k"]]
    """log(1/σ)"""

    axis_aligned: ClassVar[bool] = True
    isotropic: ClassVar[bool] = True

    def marginal(self, indices: np.ndarray, n_components: int, n_features: int) -> Self:
        return self

    def convolve(
        self, noise: Float[Array, "*m"], n_components: int, n_features: int
    ) -> AbstractCovariance:
        if noise.ndim > 0:
            return super().convolve(noise, n_components, n_features)
        return type(self)(self.log_cholesky - jnp.log1p(noise * jnp.exp(2 * self.log_cholesky)) / 2)
