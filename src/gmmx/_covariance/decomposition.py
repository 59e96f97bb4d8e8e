"""Volumes and shapes: Σ_k = λ_kC_k with |C_k| = 1, and what components may share of them.

In logarithms, so that nothing depends on the units of the data.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import whiten_by

# Turns of what has no closed form. Each raises the likelihood, and the next M-step goes on.
TURNS = 5


def best_factors(
    weight: Float[Array, " k"], factors: Float[Array, "k d d"], scatter: Float[Array, "k d d"]
) -> Float[Array, "k d d"]:
    """The factors M_k of the best covariances W_k⁻¹(scatter_k / n_k)W_k⁻ᵀ of no structure.

    Correlations are reduced by rounding: where components share something, a scatter may be
    singular. All of a factor is NaN where a variance is not positive.
    """
    loose = 1 + 8 * float(jnp.finfo(scatter.dtype).eps) * jnp.eye(scatter.shape[-1])
    best = whiten_by(scatter * loose.astype(scatter.dtype) / weight[:, None, None], factors)
    return jnp.where(jnp.isnan(best[:, -1:, -1:]), jnp.nan, best)


def best_log_variances(
    weight: Float[Array, " k"], factors: Float[Array, "k d"], scatter: Float[Array, "k d"]
) -> Float[Array, "k d"]:
    """The logarithms of the best variances, W_k⁻²(scatter_k / n_k); at least those of rounding."""
    least = float(jnp.finfo(scatter.dtype).eps)
    ratio = scatter / weight[:, None]
    return jnp.log(jnp.where(ratio <= 0, least, ratio)) - 2 * jnp.log(factors)


def mean_off(values: Float[Array, "*k d"]) -> Float[Array, "*k d"]:
    """The values less their mean: log-variances of volume one."""
    return values - jnp.mean(values, axis=-1, keepdims=True)


def unit_volume(factors: Float[Array, "*k d d"]) -> tuple[Array, Array]:
    """log λ_k, and the factors of the covariances C_k = Σ_k/λ_k, of determinant one."""
    half = jnp.mean(jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1)), axis=-1)
    return -2 * half, factors * jnp.exp(-half)[..., None, None]


def equal_volume(weight: Float[Array, " k"], log_volume: Float[Array, " k"]) -> Float[Array, ""]:
    """The logarithm of the one volume, Σ n_kλ_k/n."""
    return jax.nn.logsumexp(log_volume, b=weight / jnp.sum(weight))


def equal_shape(
    weight: Float[Array, " k"],
    log_variances: Float[Array, "k d"],
    log_volume: Float[Array, " k"],
) -> tuple[Float[Array, " k"], Float[Array, " d"]]:
    """Volumes λ_k and the one shape A of diagonal covariances V_k, by turns from given volumes.

    A ∝ Σ n_kV_k/λ_k and λ_k = tr(V_kA⁻¹)/d. **Returns:** their logarithms.
    """
    d, share = log_variances.shape[1], (weight / jnp.sum(weight))[:, None]

    def turn(_: int | Array, both: tuple[Array, Array]) -> tuple[Array, Array]:
        relative = log_variances - both[0][:, None]
        log_shape = mean_off(jax.nn.logsumexp(relative, axis=0, b=share))
        return jax.nn.logsumexp(log_variances - log_shape, axis=1) - math.log(d), log_shape

    return jax.lax.fori_loop(0, TURNS, turn, (log_volume, jnp.zeros_like(log_variances[0])))
