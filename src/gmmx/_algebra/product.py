"""The product of two mixtures, which is a mixture of the products of their components."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._components import AbstractComponents, Components
from .._covariance.base import exact
from .._linalg import inverse_lower
from .._linalg import product as matrix_product
from .._orthogonal import condition_factor, lower_root
from .pair import matched


def product(p: Components, q: AbstractComponents) -> Components:
    r"""The density proportional to p(x)q(x), a mixture of all K₁K₂ pairs of components.

    $$\mathcal{N}(x; \mu_i, \Sigma_i)\, \mathcal{N}(x; \mu_j, \Sigma_j)
    = \mathcal{N}(\mu_j; \mu_i, \Sigma_i + \Sigma_j)\,
    \mathcal{N}(x; m_{ij}, (\Lambda_i + \Lambda_j)^{-1})$$

    Component i·K₂ + j comes from component i of p and component j of q. The covariances are full.
    The normaliser is `gmmx.log_overlap(p, q)`, which is also the `logsumexp` of the `logits` of
    the result.

    **Raises:** `ValueError` where the two have different numbers of features.
    """
    return _product(*matched(p, q))


@jax.jit
def _product(p: Components, q: AbstractComponents) -> Components:
    """Each pair is the posterior of x under p_i, where x + ε = μ_j, ε ~ N(0, Σ_j), was observed."""
    d = p.n_features
    factors_p, factors_q = p.dense_factors(), q.dense_factors()
    roots_p, roots_q = inverse_lower(factors_p), inverse_lower(factors_q)

    def with_one_of_q(part: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        log_weight, mean, factor, root = part
        above = jnp.broadcast_to(
            jnp.concatenate([factor, -factor], axis=1), (*p.means.shape, 2 * d)
        )
        below = jnp.pad(factors_p, ((0, 0), (0, 0), (d, 0)))
        _, factors, gains = condition_factor(jnp.concatenate([above, below], axis=1), d)
        root = jnp.broadcast_to(root, roots_p.shape)
        sums = inverse_lower(lower_root(jnp.concatenate([root, roots_p], axis=-1)))
        apart = (mean - p.means)[:, :, None]
        # The precision factor of Σ_i + Σ_j whitens the distance of the means.
        distance = jnp.sum(matrix_product(sums, apart) ** 2, axis=(1, 2))
        log_det = jnp.sum(jnp.log(jnp.diagonal(sums, axis1=-2, axis2=-1)), axis=-1)
        density = log_det - distance / 2 - d * math.log(2 * math.pi) / 2
        means = p.means + matrix_product(gains, apart)[..., 0]
        return log_weight + p.log_weights + density, means, factors

    def by_pair(values: Float[Array, "l k ..."]) -> Float[Array, "kl ..."]:
        return jnp.moveaxis(values, 0, 1).reshape(-1, *values.shape[2:])

    # One component of q at a time: the joint factors of all pairs would take K₁K₂(2d)² numbers.
    parts = jax.lax.map(with_one_of_q, (q.log_weights, q.means, factors_q, roots_q))
    logits, means, factors = map(by_pair, parts)
    return type(p)(logits, means, exact(factors, len(logits)))
