"""Information criteria, in scikit-learn's sign: smaller is better."""

import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from ._mixture import GaussianMixture


def aic(gmm: "GaussianMixture", x: Any) -> Float[Array, ""]:
    """2ν − 2 log L (Akaike 1974)."""
    return 2 * gmm.n_parameters - 2 * jnp.sum(gmm.log_prob(x))


def bic(gmm: "GaussianMixture", x: Any) -> Float[Array, ""]:
    """ν log n − 2 log L (Schwarz 1978)."""
    log_prob = gmm.log_prob(x)
    return gmm.n_parameters * math.log(max(log_prob.size, 1)) - 2 * jnp.sum(log_prob)


def icl(gmm: "GaussianMixture", x: Any) -> Float[Array, ""]:
    """BIC − 2 Σ_i log max_k p(k | x_i) (Biernacki, Celeux & Govaert 2000)."""
    certainty = jnp.max(gmm.predict_proba(x), axis=-1)
    return bic(gmm, x) - 2 * jnp.sum(jnp.log(certainty))
