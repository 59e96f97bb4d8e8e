"""k-means and its seeding, in JAX: static shapes, any dtype, weights, and no empty cluster."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._chunks import fold, map_rows, rows_per_chunk
from .._linalg import einsum

_MAX_ITER = 100


def _squared_distances(x: Float[Array, "n d"], centres: Float[Array, "k d"]) -> Float[Array, "n k"]:
    """‖x − c‖², less what rounding would make negative."""
    cross = einsum("nd,kd->nk", x, centres)
    sizes = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(centres**2, axis=1)
    return jnp.maximum(sizes - 2 * cross, 0)


def nearest(
    x: Float[Array, "n d"], centres: Float[Array, "k d"]
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Each row's nearest centre and its squared distance."""

    def rows(x: Array) -> tuple[Array, Array]:
        distances = _squared_distances(x, centres)
        return jnp.argmin(distances, axis=1), jnp.min(distances, axis=1)

    chunk = rows_per_chunk(x.shape[0], x.shape[1] + 2 * len(centres), x.dtype.itemsize)
    return map_rows(rows, x, chunk)


def plusplus(
    x: Float[Array, "n d"],
    weights: Float[Array, " n"],
    n_clusters: int,
    key: PRNGKeyArray,
) -> Float[Array, "k d"]:
    """Seeds by greedy k-means++ (Arthur & Vassilvitskii 2007).

    Each seed is the best of 2 + log K candidates, drawn with probability proportional to weight
    times squared distance from the seeds so far.
    """
    n_trials = 2 + int(math.log(n_clusters))
    first_key, rest_key = jax.random.split(key)
    first = x[_draw(weights, (), first_key)]
    seeds = jnp.zeros((n_clusters, x.shape[1]), x.dtype).at[0].set(first)
    distances = _squared_distances(x, first[None])[:, 0]

    def add(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        seeds, distances = carry
        potential = weights * distances
        # Where every sample is a seed already, any will do.
        potential = jnp.where(jnp.any(potential > 0), potential, weights)
        chosen = _draw(potential, (n_trials,), jax.random.fold_in(rest_key, i))
        candidates = x[chosen]
        reduced = jnp.minimum(distances[:, None], _squared_distances(x, candidates))
        best = jnp.argmin(weights @ reduced)
        return seeds.at[i].set(candidates[best]), reduced[:, best]

    return jax.lax.fori_loop(1, n_clusters, add, (seeds, distances))[0]


def _draw(mass: Float[Array, " n"], shape: tuple[int, ...], key: PRNGKeyArray) -> Int[Array, "..."]:
    """Indices drawn with probabilities proportional to `mass`."""
    # Scaled by the largest: the sum of tiny or huge masses stays in range.
    cumulative = jnp.cumsum(mass / jnp.max(mass))
    height = jax.random.uniform(key, shape, mass.dtype) * cumulative[-1]
    # At most n − 1, since a height may round up to the total itself.
    return jnp.minimum(jnp.searchsorted(cumulative, height, side="right"), mass.size - 1)


def lloyd(
    x: Float[Array, "n d"],
    weights: Float[Array, " n"],
    seeds: Float[Array, "k d"],
    wanted: Bool[Array, " k"] | None = None,
) -> Int[Array, " n"]:
    """Labels by Lloyd's iteration from the seeds, until the centres rest or 100 times.

    Each cluster that is `wanted`, all of them if nothing is said, is left with members. The seeds
    of the others have to lie far from the data: then they have none.
    """
    k = seeds.shape[0]
    chunk = rows_per_chunk(x.shape[0], x.shape[1] + 3 * k, x.dtype.itemsize)

    def sums(block: tuple[Array, Array], present: Array | None, centres: Array):
        x, weights = block
        labels = jnp.argmin(_squared_distances(x, centres), axis=1)
        members = jnp.where(labels[:, None] == jnp.arange(k), weights[:, None], 0)
        if present is not None:
            members = members * present[:, None]
        return einsum("nk,nd->kd", members, x), jnp.sum(members, axis=0)

    def update(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        centres, _, i = carry
        total, count = fold(lambda b, p, _: sums(b, p, centres), (x, weights), None, chunk)
        moved = total / jnp.where(count > 0, count, 1)[:, None]
        moved = jnp.where((count > 0)[:, None], moved, centres)
        shift = jnp.sum((moved - centres) ** 2)
        return moved, shift, i + 1

    # The data have unit variances, so a shift is small or not in absolute terms.
    tol = 1e-4
    start = (seeds, jnp.asarray(jnp.inf, x.dtype), jnp.zeros((), jnp.int32))
    centres, _, _ = jax.lax.while_loop(
        lambda carry: (carry[1] > tol**2) & (carry[2] < _MAX_ITER), update, start
    )
    return fill_empty(*nearest(x, centres), weights, k, wanted)


def fill_empty(
    labels: Int[Array, " n"],
    distances: Float[Array, " n"],
    weights: Float[Array, " n"],
    n_clusters: int,
    wanted: Bool[Array, " k"] | None = None,
) -> Int[Array, " n"]:
    """The labels, with each empty cluster given one of the samples farthest from their centres.

    Each cluster that has members keeps its innermost one, so that none is emptied in turn.
    """
    n = labels.shape[0]
    counted = weights > 0
    inside = jnp.where(counted, distances, jnp.inf)
    innermost = jax.ops.segment_min(inside, labels, n_clusters)
    is_innermost = counted & (inside <= innermost[labels])
    # Of equals the first stays.
    order = jnp.where(is_innermost, jnp.arange(n), n)
    keeper = jax.ops.segment_min(order, labels, n_clusters)
    occupied = _occupied(labels, counted, n_clusters)
    if wanted is not None:
        occupied = occupied | ~wanted
    movable = counted & (jnp.arange(n) != keeper[labels])
    _, farthest = jax.lax.top_k(jnp.where(movable, distances, -1), n_clusters)
    rank = jnp.cumsum(~occupied) - 1
    # Cluster j, the rank-th empty one, takes the rank-th farthest sample; the others take none.
    target = jnp.where(occupied, n, farthest[rank])
    return labels.at[target].set(jnp.arange(n_clusters), mode="drop")


def _occupied(
    labels: Int[Array, " n"], counted: Bool[Array, " n"], n_clusters: int
) -> Bool[Array, " k"]:
    return jax.ops.segment_max(counted.astype(jnp.int32), labels, n_clusters) > 0
