"""The log-density of every component at every row, in the way that is accurate and fast there."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._accuracy import PACKED, WHITENED, Plan, accurate_way, reach
from ._chunks import map_rows
from ._frame import Frame

if TYPE_CHECKING:
    from ._mixture import GaussianMixture


def log_constant(gmm: "GaussianMixture") -> Float[Array, " k"]:
    """log w_k + log|W_k| − d/2 log 2π."""
    d = gmm.n_features
    return gmm.log_weights + gmm.structure.half_log_det(d) - d * math.log(2 * math.pi) / 2


def log_joint_of(constant: Float[Array, " k"], y: Float[Array, "k d n"]) -> Float[Array, "k n"]:
    """log w_k N(x; μ_k, Σ_k) from y = W_k(x − μ_k)."""
    return constant[:, None] - jnp.sum(y**2, axis=1) / 2


@partial(jax.jit, static_argnames="reduce")
def evaluate(
    gmm: "GaussianMixture", x: Float[Array, "n d"], reduce: Callable[[Float[Array, "n k"]], PyTree]
) -> PyTree:
    """`reduce` of log w_k N(x_i; μ_k, Σ_k), (n k), without holding all of it at once.

    Compiled as one program, so that a call from Python is not dispatched operation by operation;
    inside a caller's transformation it is inlined.
    """
    plan = Plan.of(gmm, x, products=1)
    constant = log_constant(gmm)

    # A gradient keeps the n × k log-joints and builds everything else again, chunk by chunk. The
    # checkpoints stand inside the branches, since a branch would else fill in zeros for all that
    # another one keeps.
    def in_rows(whiten: Callable, gmm: "GaussianMixture", x: Array) -> Array:
        def block(rows: Array) -> Array:
            return log_joint_of(constant, whiten(gmm.structure, rows, gmm.means)).T

        return map_rows(block, x, min(plan.whitened_rows, x.shape[0]))

    @jax.checkpoint
    def whitened(x: Array) -> Array:
        return in_rows(type(gmm.structure).whiten, gmm, x)

    if plan.fastest == WHITENED:
        return map_rows(lambda block: reduce(whitened(block)), x, plan.rows)

    frame = Frame.of_model(gmm, turned=plan.fastest == PACKED)
    seen = frame.model(gmm)

    @jax.checkpoint
    def centred(x: Array) -> Array:
        return in_rows(type(gmm.structure).whiten_centred, seen, frame.apply(x))

    ways = [whitened, centred]
    if plan.fastest == PACKED:
        coefficients = seen.structure.packed_coefficients(seen.means, constant)

        @jax.checkpoint
        def packed(x: Array) -> Array:
            features = seen.structure.packed_features(coefficients, frame.apply(x))
            return seen.structure.packed_log_density(coefficients, features)

        ways.append(packed)

    def rows(x: Float[Array, "r d"]) -> PyTree:
        reaches = reach(frame.apply(jax.lax.stop_gradient(x)))
        way = accurate_way(seen, reaches[None], plan.fastest)[0]
        return jax.checkpoint(reduce)(jax.lax.switch(way, ways, x))

    return map_rows(rows, x, plan.rows)


@jax.jit
def packed_share(gmm: "GaussianMixture", x: Float[Array, "n d"]) -> Float[Array, ""]:
    """The part of the rows whose log-density is taken packed."""
    plan = Plan.of(gmm, x, products=1)
    if plan.fastest < PACKED:
        return jnp.zeros((), x.dtype)
    frame = Frame.of_model(gmm, turned=True)
    seen = frame.model(gmm)

    def rows(x: Float[Array, "r d"]) -> Array:
        way = accurate_way(seen, reach(frame.apply(x))[None], plan.fastest)[0]
        return jnp.full(x.shape[0], way == PACKED, x.dtype)

    return jnp.mean(map_rows(rows, x, plan.rows))
