"""The log-density of every component at every row, in the way that is accurate and fast there."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._accuracy import PACKED, WHITENED, Plan, Route, reach
from ._chunks import map_rows
from ._covariance.base import AbstractCovariance
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


def narrow_log_joint(
    gmm: "GaussianMixture",
    constant: Float[Array, " k"],
    x: Float[Array, "n d"],
    log_joint: Float[Array, "n k"],
    at: Int[Array, " m"],
) -> tuple[Float[Array, "n k"], AbstractCovariance, Float[Array, "m d n"]]:
    """The log-joints with those of the components `at` whitened; their covariances and y.

    A component K is none: it is dropped.
    """
    means, own_constant = (jnp.take(a, at, axis=0, mode="clip") for a in (gmm.means, constant))
    own = gmm.structure.take(at)
    y = own.whiten(x, means)
    return log_joint.at[:, at].set(log_joint_of(own_constant, y).T, mode="drop"), own, y


def zeros_like_of(fn: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    """Zeros of the shapes that `fn` returns."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fn, *arguments))


@partial(jax.jit, static_argnames="reduce")
def evaluate(
    gmm: "GaussianMixture", x: Float[Array, "n d"], reduce: Callable[[Float[Array, "n k"]], PyTree]
) -> tuple[PyTree, Bool[Array, ""]]:
    """`reduce` of log w_k N(x_i; μ_k, Σ_k), (n k), without holding all of it at once.

    And whether all of x is finite, which costs nothing here and a pass over x elsewhere.
    Compiled as one program, so that a call from Python is not dispatched operation by operation;
    inside a caller's transformation it is inlined.
    """
    plan = Plan.of(gmm, x, products=1)
    constant = log_constant(gmm)

    # A gradient keeps the n × k log-joints and builds everything else again, chunk by chunk. The
    # checkpoints stand inside the branches, since a branch would else fill in zeros for all that
    # another one keeps.
    @jax.checkpoint
    def whitened(x: Array) -> Array:
        def block(x: Array) -> Array:
            return log_joint_of(constant, gmm.structure.whiten(x, gmm.means)).T

        return map_rows(block, x, min(plan.whitened_rows, x.shape[0]))

    if plan.fastest == WHITENED:
        values = map_rows(lambda block: reduce(whitened(block)), x, plan.rows)
        return values, jnp.all(jnp.isfinite(x))

    frame = Frame.of_model(gmm, turned=plan.fastest == PACKED)
    seen = frame.model(gmm)

    @jax.checkpoint
    def centred(x: Array) -> Array:
        def block(x: Array) -> Array:
            return constant - seen.structure.distances_centred(frame.apply(x), seen.means) / 2

        return map_rows(block, x, min(plan.centred_rows, x.shape[0]))

    coefficients = seen.structure.packed_coefficients(seen.means, constant)

    @jax.checkpoint
    def packed(x: Array, route: Route) -> Array:
        features = seen.structure.packed_features(frame.apply(x))
        log_joint = seen.structure.packed_log_density(coefficients, features)
        return route.by_narrow(
            lambda: log_joint, lambda at: narrow_log_joint(gmm, constant, x, log_joint, at)[0]
        )

    ways = [lambda x, _: whitened(x), lambda x, _: centred(x), packed]

    def rows(x: Float[Array, "r d"]) -> tuple[PyTree, Array]:
        reaches = reach(frame.apply(jax.lax.stop_gradient(x)))
        route = Route.of(seen, reaches[None], plan)
        log_joint = jax.lax.switch(route.ways[0], ways[: plan.fastest + 1], x, route)
        finite = jnp.broadcast_to(jnp.all(jnp.isfinite(reaches)), x.shape[:1])
        return jax.checkpoint(reduce)(log_joint), finite

    values, finite = map_rows(rows, x, plan.rows)
    return values, jnp.all(finite)


@jax.jit
def packed_share(gmm: "GaussianMixture", x: Float[Array, "n d"]) -> Float[Array, ""]:
    """The part of the rows whose log-density is taken packed."""
    plan = Plan.of(gmm, x, products=1)
    if plan.fastest < PACKED:
        return jnp.zeros((), x.dtype)
    frame = Frame.of_model(gmm, turned=True)
    seen = frame.model(gmm)

    def rows(x: Float[Array, "r d"]) -> Array:
        route = Route.of(seen, reach(frame.apply(x))[None], plan)
        return jnp.full(x.shape[0], route.ways[0] == PACKED, x.dtype)

    return jnp.mean(map_rows(rows, x, plan.rows))
