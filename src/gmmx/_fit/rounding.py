"""Whether a dtype holds a model as exactly as its likelihood needs."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._abstract_mixture import AbstractMixture
from .._covariance.factors import precision_diagonal

# Nats a sample that storing the means may cost before the user is told. Several times as much may
# be lost in all: steps of a slow fit that are shorter than rounding move nothing, and end it.
_TOLERANCE = 2.5e-4


def means_are_rounded(gmm: AbstractMixture) -> Bool[Array, ""]:
    """Whether rounding the means to their dtype may cost a fit more than 1e-3 nats a sample.

    Means moved by half a unit in the last place, δ ≤ ε|μ|/2, cost ½ Σ_k w_k Σ_j Λ_k,jj δ_kj². It
    happens to data that lie far from zero in units of the components' widths: at an offset of
    10⁶ float32 is spaced by 0.06.
    """
    # The most that half a unit is beside a number, and the least, are a factor of two apart.
    half_unit = gmm.means * (float(jnp.finfo(gmm.dtype).eps) * 0.5**1.5)
    cost = jnp.sum(precision_diagonal(gmm.factors()) * half_unit**2, axis=1) / 2
    return jnp.sum(gmm.weights * cost) > _TOLERANCE
