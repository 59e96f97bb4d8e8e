"""The log-density of every component at every row, in the way that is accurate and fast there."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ._accuracy import CENTRED, PACKED, WHITENED, Plan, Route, reach
from ._chunks import map_rows
from ._frame import Frame
from ._linalg import materialised
from ._near import Tiles, by_near
from ._reductions import sum_of_squares

if TYPE_CHECKING:
    from ._mixture import GaussianMixture


def log_constant(gmm: "GaussianMixture") -> Float[Array, " k"]:
    """log w_k + log|W_k| − d/2 log 2π."""
    d = gmm.n_features
    return gmm.log_weights + gmm.structure.half_log_det(d) - d * math.log(2 * math.pi) / 2


def log_joint_of(constant: Float[Array, " k"], y: Float[Array, "k d n"]) -> Float[Array, "k n"]:
    """log w_k N(x; μ_k, Σ_k) from y = W_k(x − μ_k)."""
    return constant[:, None] - sum_of_squares(y, axis=1) / 2


def log_prob_of(log_joint: Float[Array, "k n"]) -> Float[Array, " n"]:
    """log Σ_k w_k N(x; μ_k, Σ_k)."""
    return jax.nn.logsumexp(log_joint, axis=0)


Reduce = Callable[[Float[Array, "k n"]], PyTree]


@partial(jax.jit, static_argnames="reduce")
def evaluate(
    gmm: "GaussianMixture", x: Float[Array, "n d"], reduce: Reduce | None = None
) -> tuple[PyTree, Bool[Array, ""]]:
    """`reduce` of log w_k N(x_i; μ_k, Σ_k), (k n), without holding all of it at once.

    And whether all of x is finite, which costs nothing here and a pass over x elsewhere.
    Compiled as one program, so that a call from Python is not dispatched operation by operation;
    inside a caller's transformation it is inlined.

    **Arguments:**

    - `reduce`: to what depends on a component only where it has a share in the row. Without it
        all of the log-joints are returned, (n k), and all are accurate.
    """
    values, finite, _ = _evaluate(gmm, x, reduce)
    return values, finite


@jax.jit
def packed_share(gmm: "GaussianMixture", x: Float[Array, "n d"]) -> Float[Array, ""]:
    """The part of the rows whose log-density is taken packed."""
    return _evaluate(gmm, x, lambda log_joint: log_joint[:0].T)[2]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _evaluate(
    gmm: "GaussianMixture", x: Float[Array, "n d"], reduce: Reduce | None
) -> tuple[PyTree, Bool[Array, ""], Float[Array, ""]]:
    """What `evaluate` and `packed_share` return."""
    return assess(gmm, x, reduce, reduce is not None)


@_evaluate.defjvp
def _evaluate_jvp(reduce, primals, tangents):
    # On routes without narrow components apart, which a derivative would take a fifth longer for,
    # whether there are any or not.
    return jax.jvp(lambda gmm, x: assess(gmm, x, reduce, False), primals, tangents)


def assess(
    gmm: "GaussianMixture", x: Float[Array, "n d"], reduce: Reduce | None, apart: bool
) -> tuple[PyTree, Bool[Array, ""], Float[Array, ""]]:
    """What `evaluate` returns, and the part of the rows whose log-density is taken packed.

    **Arguments:**

    - `apart`: whether narrow components may be whitened apart, where all else is packed.
    """
    plan = Plan.of(gmm, x, products=1)
    apart = apart and plan.apart
    reduce = (lambda log_joint: log_joint.T) if reduce is None else reduce
    constant = log_constant(gmm)

    # XLA lays out what branches return as any one of them has it, and what follows a packed product
    # took three times as long on its transpose. An array that was flat has only one layout.
    def components_first(log_joint: Float[Array, "n k"]) -> Float[Array, "k n"]:
        return materialised(log_joint.T.reshape(-1)).reshape(log_joint.shape[::-1])

    # A gradient keeps the n × k log-joints and builds everything else again, chunk by chunk. The
    # checkpoints stand inside the branches, since a branch would else fill in zeros for all that
    # another one keeps.
    @jax.checkpoint
    def whitened(x: Array) -> Array:
        def block(x: Array) -> Array:
            return log_joint_of(constant, gmm.structure.whiten(x, gmm.means)).T

        return components_first(map_rows(block, x, min(plan.whitened_rows, x.shape[0])))

    if plan.fastest == WHITENED:
        values = map_rows(lambda block: reduce(whitened(block)), x, plan.rows)
        return values, jnp.all(jnp.isfinite(x)), jnp.zeros((), x.dtype)

    frame = Frame.of_model(gmm, turned=plan.fastest == PACKED)
    seen = frame.model(gmm)

    @jax.checkpoint
    def centred(x: Array) -> Array:
        def block(x: Array) -> Array:
            return constant - seen.structure.distances_centred(frame.apply(x), seen.means) / 2

        return components_first(map_rows(block, x, min(plan.centred_rows, x.shape[0])))

    coefficients = seen.structure.packed_coefficients(seen.means, constant)

    none, all_of_it = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
    slower = [lambda x: (whitened(x), none), lambda x: (centred(x), none)]

    @jax.checkpoint
    def packed(x: Array, route: Route) -> tuple[Array, Array]:
        features = seen.structure.packed_features(frame.apply(x))
        log_joint = seen.structure.packed_log_density(coefficients, features)
        if not apart:
            return log_joint, all_of_it

        def some(tiles: Tiles, log_joint: Array) -> tuple[Array, Array]:
            y = tiles.whiten(gmm, tiles.rows(x))
            return tiles.put(log_joint_of(tiles.of_component(constant), y), log_joint), all_of_it

        def crowded() -> tuple[Array, Array]:
            return jax.lax.switch(jnp.minimum(route.slower[0], CENTRED), slower, x)

        return by_near(log_joint, constant, route, lambda: (log_joint, all_of_it), some, crowded)

    ways = [*(lambda x, _, way=way: way(x) for way in slower), packed]

    def rows(x: Float[Array, "r d"]) -> tuple[PyTree, Array, Array]:
        reaches = reach(frame.apply(jax.lax.stop_gradient(x)))
        route = Route.of(seen, reaches[None], plan.fastest, apart)
        log_joint, share = jax.lax.switch(route.ways[0], ways[: plan.fastest + 1], x, route)
        finite = jnp.broadcast_to(jnp.all(jnp.isfinite(reaches)), x.shape[:1])
        return jax.checkpoint(reduce)(log_joint), finite, jnp.broadcast_to(share, x.shape[:1])

    values, finite, share = map_rows(rows, x, plan.rows)
    return values, jnp.all(finite), jnp.mean(share)
