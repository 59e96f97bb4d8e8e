"""One variance for each component, the same in all directions."""

from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import log_positive
from .isotropic import AbstractIsotropic


class SphericalCovariance(AbstractIsotropic):
    """Variances σ²_k, one for each component (mclust's VII)."""

    log_cholesky: Float[Array, " k"]
    """log(1/σ_k)"""

    covariance_type: ClassVar[str] = "spherical"
    aliases: ClassVar[tuple[str, ...]] = ("VII",)

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
