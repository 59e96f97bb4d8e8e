"""The log-density of every component at every row, in the way that is accurate and fast there."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._accuracy import Plan, packed_is_accurate, reach
from ._chunks import map_rows
from ._frame import Frame

if TYPE_CHECKING:
    from ._mixture import GaussianMixture


def log_constant(gmm: "GaussianMixture") -> Float[Array, " k"]:
    """log w_k + log|W_k| − d/2 log 2π."""
    d = gmm.n_features
    return gmm.log_weights + gmm.structure.half_log_det(d) - d * math.log(2 * math.pi) / 2


def whitened_log_joint(
    gmm: "GaussianMixture", x: Float[Array, "n d"]
) -> tuple[Float[Array, "k n"], Float[Array, "k d n"]]:
    """(log w_k N(x; μ_k, Σ_k), y = W_k(x − μ_k))."""
    y = gmm.structure.whiten(x, gmm.means)
    return log_constant(gmm)[:, None] - jnp.sum(y**2, axis=1) / 2, y


@partial(jax.jit, static_argnames="reduce")
def evaluate(
    gmm: "GaussianMixture", x: Float[Array, "n d"], reduce: Callable[[Float[Array, "n k"]], PyTree]
) -> PyTree:
    """`reduce` of log w_k N(x_i; μ_k, Σ_k), (n k), without holding all of it at once.

    Compiled as one program, so that a call from Python is not dispatched operation by operation;
    inside a caller's transformation it is inlined.
    """
    plan = Plan.of(gmm, x, products=1)

    # A gradient keeps the n × k log-joints and builds everything else again, chunk by chunk. The
    # checkpoints stand inside the branches, since a branch would else fill in zeros for all that
    # the other one keeps.
    @jax.checkpoint
    def whitened(gmm: "GaussianMixture", x: Array) -> Array:
        rows = min(plan.whitened_rows, x.shape[0])
        return map_rows(lambda block: whitened_log_joint(gmm, block)[0].T, x, rows)

    if not plan.packable:
        return map_rows(lambda block: reduce(whitened(gmm, block)), x, plan.rows)

    frame = Frame.of_model(gmm)
    seen = frame.model(gmm)
    coefficients = seen.structure.packed_coefficients(seen.means, log_constant(gmm))

    @jax.checkpoint
    def packed(coefficients: PyTree, x: Array) -> Array:
        features = seen.structure.packed_features(coefficients, frame.apply(x))
        return seen.structure.packed_log_density(coefficients, features)

    def rows(x: Float[Array, "r d"]) -> PyTree:
        reaches = reach(frame.apply(jax.lax.stop_gradient(x)))
        accurate = packed_is_accurate(seen, reaches[None])[0]
        log_joint = jax.lax.cond(
            accurate, lambda: packed(coefficients, x), lambda: whitened(gmm, x)
        )
        return jax.checkpoint(reduce)(log_joint)

    return map_rows(rows, x, plan.rows)


@jax.jit
def packed_share(gmm: "GaussianMixture", x: Float[Array, "n d"]) -> Float[Array, ""]:
    """The part of the rows whose log-density is taken packed; the rest is whitened."""
    plan = Plan.of(gmm, x, products=1)
    if not plan.packable:
        return jnp.zeros((), x.dtype)
    frame = Frame.of_model(gmm)
    seen = frame.model(gmm)

    def rows(x: Float[Array, "r d"]) -> Array:
        accurate = packed_is_accurate(seen, reach(frame.apply(x))[None])[0]
        return jnp.full(x.shape[0], accurate, x.dtype)

    return jnp.mean(map_rows(rows, x, plan.rows))
