"""The product of two mixtures, which is a mixture of the products of their components."""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._covariance import structure_named
from .._divergences.pair import matched
from .._linalg import inverse_lower
from .._linalg import product as matrix_product
from .._orthogonal import condition_factor, lower_root

if TYPE_CHECKING:
    from .._mixture import GaussianMixture


def product(p: "GaussianMixture", q: "GaussianMixture") -> "GaussianMixture":
    r"""The density proportional to p(x)q(x), a mixture of all K₁K₂ pairs of components.

    $$\mathcal{N}(x; \mu_i, \Sigma_i)\, \mathcal{N}(x; \mu_j, \Sigma_j)
    = \mathcal{N}(\mu_j; \mu_i, \Sigma_i + \Sigma_j)\,
    \mathcal{N}(x; m_{ij}, (\Lambda_i + \Lambda_j)^{-1})$$

    Its component i·K₂ + j is of p's component i and q's component j. The covariances are full.
    The normaliser is `gmmx.log_overlap(p, q)`; it is also the `logsumexp` of the result's `logits`.

    **Raises:** `ValueError` where the two have different numbers of features.
    """
    logits, means, factors = _pairs(*matched(p, q))
    structure = structure_named("full").from_precisions_cholesky(factors.mT)
    return type(p)(logits, means, structure)


@jax.jit
def _pairs(
    p: "GaussianMixture", q: "GaussianMixture"
) -> tuple[Float[Array, " k"], Float[Array, "k d"], Float[Array, "k d d"]]:
    """Logits, means and precision factors of the pairs.

    As the posterior of x under p when x + ε, ε ~ N(0, Σ_j), was seen to be μ_j.
    """
    d = p.n_features
    factors_p, factors_q = (g.structure.factors(g.n_components, d) for g in (p, q))
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

    # One component of q at a time: the joint factors of all pairs would take K₁K₂(2d)² numbers.
    parts = jax.lax.map(with_one_of_q, (q.log_weights, q.means, factors_q, roots_q))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), parts)
