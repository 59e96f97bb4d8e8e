"""One variance for all components and features."""

from typing import ClassVar, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import log_positive
from .isotropic import AbstractIsotropic


class EIICovariance(AbstractIsotropic):
    """One variance σ² of all features in every component: Σ_k = λI (mclust's EII)."""

    log_cholesky: Float[Array, ""]
    """log(1/σ)"""

    covariance_type: ClassVar[str] = "EII"
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
