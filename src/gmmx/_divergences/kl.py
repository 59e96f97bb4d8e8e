"""The Kullback–Leibler divergence, which has no closed form: estimated, approximated, bounded."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import _checks
from .._algebra.pair import matched
from .._components import AbstractComponents
from .._engine.density import evaluate, log_prob_of
from .._linalg import inverse_lower, product
from .._pathwise import pathwise
from .._sampling import draw


class MonteCarlo(NamedTuple):
    """An estimate from draws."""

    value: Float[Array, ""]
    standard_error: Float[Array, ""]


def kl_divergence(
    p: AbstractComponents,
    q: AbstractComponents,
    n_samples: int = 10_000,
    *,
    key: PRNGKeyArray | None = None,
) -> MonteCarlo:
    r"""The divergence of p from q, estimated from draws of p.

    $$D(p \| q) = \mathbb{E}_p[\log p(x) - \log q(x)]$$

    Its derivatives in the leaves of both are unbiased as well, since the draws are pathwise.

    **Arguments:**

    - `n_samples`: the number of draws, at least two.
    - `key`: `jax.random.key(0)` by default.

    **Returns:** `(value, standard_error)`, in nats.
    """
    p, q = matched(p, q)
    n_samples = _checks.check_count(n_samples, "n_samples")
    if n_samples < 2:
        raise ValueError("n_samples=1; expected two draws or more, which a standard error needs.")
    key = _checks.as_key(key)
    x, _ = draw(jax.lax.stop_gradient(p), n_samples, key)
    x = pathwise(p, x)
    values = evaluate(p, x, log_prob_of) - evaluate(q, x, log_prob_of)
    return MonteCarlo(jnp.mean(values), jnp.std(values, ddof=1) / n_samples**0.5)


@jax.jit
def pairwise_kl(p: AbstractComponents, q: AbstractComponents) -> Float[Array, "k l"]:
    """D(p_k ‖ q_l) for every component of p and every component of q, in nats."""
    p, q = matched(p, q)
    d, factors = p.n_features, q.dense_factors()
    roots = inverse_lower(p.dense_factors())

    # ½(‖W_lW_k⁻¹‖² + ‖W_l(μ_k − μ_l)‖² − d) + log|W_k| − log|W_l|, one component of p at a time.
    def with_all(component: tuple[Array, Array]) -> Array:
        root, mean = component
        relative = product(factors, jnp.broadcast_to(root, factors.shape))
        apart = product(factors, (mean - q.means)[..., None])
        return jnp.sum(relative**2, axis=(-2, -1)) + jnp.sum(apart**2, axis=(-2, -1))

    distance = jax.lax.map(with_all, (roots, p.means))
    return (distance - d) / 2 + p.half_log_det()[:, None] - q.half_log_det()


def kl_variational(p: AbstractComponents, q: AbstractComponents) -> Float[Array, ""]:
    r"""The variational approximation of D(p ‖ q) (Hershey & Olsen 2007, equation 18).

    $$\sum_k w_k \log \frac{\sum_{k'} w_{k'} e^{-D(p_k \| p_{k'})}}{\sum_l v_l e^{-D(p_k \| q_l)}}$$

    It is zero where p = q, but it bounds D from neither side, and it may be negative.
    """
    p, q = matched(p, q)
    own = jax.nn.logsumexp(p.log_weights - pairwise_kl(p, p), axis=1)
    other = jax.nn.logsumexp(q.log_weights - pairwise_kl(p, q), axis=1)
    return jnp.sum(p.weights * (own - other))


def kl_upper_bound(p: AbstractComponents, q: AbstractComponents) -> Float[Array, ""]:
    r"""The variational upper bound of D(p ‖ q) (Hershey & Olsen 2007, section 8).

    Each component of p is split into parts φ_{l|k} and each of q into parts ψ_{k|l}, and then

    $$D(p \| q) \le \sum_{kl} w_k \varphi_{l|k}
      \Big[\log \frac{w_k \varphi_{l|k}}{v_l \psi_{k|l}} + D(p_k \| q_l)\Big],$$

    minimised over both in turn. The bound is convex in them and holds for any. Derivatives are
    those at the best split, held fixed (the envelope theorem).
    """
    p, q = matched(p, q)
    divergence = pairwise_kl(p, q)
    log_p, log_q = p.log_weights[:, None], q.log_weights[None]
    log_parts, log_shares = _best_split(*jax.lax.stop_gradient((log_p, log_q, divergence)))
    mass = jnp.exp(log_p + log_parts)
    # Where there is no mass the term is zero, and its logarithm is not read.
    some = jax.lax.stop_gradient(mass) != 0
    ratio = jnp.where(some, log_p + log_parts - log_q - log_shares, 0)
    return jnp.sum(jnp.where(some, mass * (ratio + divergence), 0))


@jax.jit
def _best_split(
    log_p: Float[Array, "k 1"], log_q: Float[Array, "1 l"], divergence: Float[Array, "k l"]
) -> tuple[Float[Array, "k l"], Float[Array, "k l"]]:
    """(log φ_{l|k}, log ψ_{k|l}), improved until the bound moves by no more than rounding."""
    # Kept from −∞: the parts of a component of weight zero do not count, but must not be NaN.
    lowest = float(jnp.finfo(divergence.dtype).min) / 8
    log_p, log_q = jnp.maximum(log_p, lowest), jnp.maximum(log_q, lowest)

    def parts(log_shares: Array) -> Array:
        return jax.nn.log_softmax(log_q + log_shares - divergence, axis=1)

    def shares(log_parts: Array) -> Array:
        return jax.nn.log_softmax(log_p + log_parts, axis=0)

    def going(carry: tuple[Array, Array, Array]) -> Array:
        _, change, count = carry
        return (change > 8 * float(jnp.finfo(divergence.dtype).eps)) & (count < 1000)

    def improve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        log_shares, _, count = carry
        better = shares(parts(log_shares))
        change = jnp.max(jnp.abs(jnp.exp(better) - jnp.exp(log_shares)))
        return better, change, count + 1

    uniform = jnp.broadcast_to(jax.nn.log_softmax(log_p, axis=0), divergence.shape)
    start = (uniform, jnp.asarray(jnp.inf, divergence.dtype), jnp.zeros((), jnp.int32))
    log_shares, _, _ = jax.lax.while_loop(going, improve, start)
    return parts(log_shares), log_shares
