"""Bounds of the entropy of a mixture, which has no closed form."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._algebra.merge import collapse
from .._components import AbstractComponents, check_gaussian
from .kl import pairwise_kl
from .overlap import pairwise_sum


class EntropyBounds(NamedTuple):
    """The differential entropy lies between these."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]


def entropy_bounds(p: AbstractComponents) -> EntropyBounds:
    r"""Bounds of the differential entropy −∫ p log p, in nats, in closed form.

    With H_k the entropy of component k, each bound is the better of two:

    $$\begin{aligned}
    H &\ge -\sum_k w_k \log \sum_l w_l\, \mathcal{N}(\mu_k; \mu_l, \Sigma_k + \Sigma_l),
    &\quad H &\ge \sum_k w_k \Big(H_k - \log \sum_l w_l e^{-B(p_k, p_l)}\Big),\\
    H &\le \tfrac12 \log \big((2\pi e)^d |\operatorname{Cov} p|\big),
    &\quad H &\le \sum_k w_k \Big(H_k - \log \sum_l w_l e^{-D(p_k \| p_l)}\Big)
    \end{aligned}$$

    with the Bhattacharyya distance B and the Kullback–Leibler divergence D. The first on the left
    is from Huber et al. 2008; those on the right are from Kolchinsky & Tracey 2017. Both on the
    right are exact where components lie far apart and where they coincide, and the upper one is
    never above that of Huber et al.
    """
    check_gaussian(p)
    d = p.n_features
    total, distance = pairwise_sum(p, p)
    own = p.half_log_det()
    each = d * (1 + math.log(2 * math.pi)) / 2 - own
    overlap = -total - distance / 2 - d * math.log(2 * math.pi) / 2
    # By ½ log|(Σ_k + Σ_l)/2| − ¼ log|Σ_k| − ¼ log|Σ_l|
    bhattacharyya = distance / 4 + total - d * math.log(2) / 2 + (own[:, None] + own) / 2

    def mixed(log_likeness: Float[Array, "k k"]) -> Float[Array, " k"]:
        return -jax.nn.logsumexp(p.log_weights + log_likeness, axis=1)

    lower = jnp.maximum(
        jnp.sum(p.weights * mixed(overlap)), jnp.sum(p.weights * (each + mixed(-bhattacharyya)))
    )
    # Not by the covariance itself, which rounding makes singular where components lie far apart.
    whole = d * (1 + math.log(2 * math.pi)) / 2 - collapse(p).half_log_det()[0]
    by_parts = jnp.sum(p.weights * (each + mixed(-pairwise_kl(p, p))))
    upper = jnp.where(whole < by_parts, whole, by_parts)
    return EntropyBounds(lower, upper)
