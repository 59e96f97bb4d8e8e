"""Integrals of products of mixtures: closed forms."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._algebra.pair import matched
from .._components import AbstractComponents
from .._linalg import inverse_lower, product, whiten_by


@jax.jit
def pairwise_sum(
    p: AbstractComponents, q: AbstractComponents
) -> tuple[Float[Array, "k l"], Float[Array, "k l"]]:
    """(½ log|Σ_k + Σ_l|, (μ_k − μ_l)ᵀ(Σ_k + Σ_l)⁻¹(μ_k − μ_l)) for every pair of components.

    With S = W_kW_l⁻¹ the sum is W_k⁻¹(I + SSᵀ)W_k⁻ᵀ, so no covariance is formed. One component of
    p is taken at a time, so no K₁ × K₂ × d × d array is stored.
    """
    roots = inverse_lower(q.dense_factors())

    def with_all(component: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, mean = component
        relative = product(factor, roots)
        total = product(relative, relative.mT) + jnp.eye(mean.shape[0], dtype=mean.dtype)
        apart = product(factor, (mean - q.means)[..., None])
        own = jnp.broadcast_to(factor, relative.shape)
        white = whiten_by(total, jnp.concatenate([own, apart], axis=-1))
        diagonal = jnp.diagonal(white, axis1=-2, axis2=-1)
        return -jnp.sum(jnp.log(diagonal), axis=-1), jnp.sum(white[..., -1] ** 2, axis=-1)

    return jax.lax.map(with_all, (p.dense_factors(), p.means))


def pairwise_log_overlap(p: AbstractComponents, q: AbstractComponents) -> Float[Array, "k l"]:
    r"""The logarithms of the overlaps of components.

    $$\log \int \mathcal{N}(x; \mu_k, \Sigma_k)\, \mathcal{N}(x; \mu_l, \Sigma_l)\, dx
      = \log \mathcal{N}(\mu_k; \mu_l, \Sigma_k + \Sigma_l)$$

    **Returns:** `(k, l)`, a row for each component of p and a column for each component of q.
    """
    p, q = matched(p, q)
    half_log_det, distance = pairwise_sum(p, q)
    return -half_log_det - distance / 2 - p.n_features * math.log(2 * math.pi) / 2


def log_overlap(p: AbstractComponents, q: AbstractComponents) -> Float[Array, ""]:
    r"""The logarithm of the overlap of two mixtures, in closed form.

    $$\log \int p\,q\,dx = \log \sum_{kl} w_k v_l\, \mathcal{N}(\mu_k; \mu_l, \Sigma_k + \Sigma_l)$$
    """
    pairs = pairwise_log_overlap(p, q)
    p, q = matched(p, q)
    return jax.nn.logsumexp(pairs + p.log_weights[:, None] + q.log_weights)


def integrated_squared_error(p: AbstractComponents, q: AbstractComponents) -> Float[Array, ""]:
    r"""The integrated squared difference of the densities, in closed form.

    $$\int (p - q)^2\,dx = \int p^2 - 2\int pq + \int q^2$$

    It has the unit of a density. Where p and q nearly agree, rounding leaves an error of either
    sign, a few ε times the largest of the three terms.
    """
    squares = jnp.exp(log_overlap(p, p)) + jnp.exp(log_overlap(q, q))
    return squares - 2 * jnp.exp(log_overlap(p, q))
