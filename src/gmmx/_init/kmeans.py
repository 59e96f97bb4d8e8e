"""k-means and its seeding in JAX: static shapes, weights, and no empty cluster."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._chunks import chunk_of, fold, map_rows, rows_per_chunk, varying
from .._linalg import einsum

_MAX_ITER = 100
# Draws up to which one comparison with all sums is quicker than a search.
_FEW = 64


def _squared_distances(x: Float[Array, "n d"], centres: Float[Array, "k d"]) -> Float[Array, "n k"]:
    """‖x − c‖², at least zero."""
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
    times squared distance from the seeds so far; the first by weight alone.
    """
    n_trials = 2 + int(math.log(n_clusters))
    heights = jax.random.uniform(key, (n_clusters, n_trials), x.dtype)

    def add(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        seeds, distances = carry
        potential = weights * distances
        # Where every sample is a seed already, any will do.
        potential = jnp.where(jnp.any(potential > 0), potential, weights)
        candidates = x[draw(potential, heights[i])]
        apart = _squared_distances(x, candidates)
        reduced = jnp.where(i == 0, apart, jnp.minimum(distances[:, None], apart))
        best = jnp.argmin(weights @ reduced)
        return seeds.at[i].set(candidates[best]), reduced[:, best]

    seeds = jnp.zeros((n_clusters, x.shape[1]), x.dtype)
    # As if all samples were equally far from the first seed before there is one.
    start = varying((seeds, jnp.ones_like(weights)), (x, weights))
    return jax.lax.fori_loop(0, n_clusters, add, start)[0]


def draw(mass: Float[Array, " n"], heights: Float[Array, " m"]) -> Int[Array, " m"]:
    """Indices drawn with probabilities proportional to `mass`, by uniform numbers."""
    # Scaled by the largest: the sum of tiny or huge masses stays in range.
    cumulative = jnp.cumsum(mass / jnp.max(mass))
    aim = heights * cumulative[-1]
    if heights.size > _FEW:
        below = jnp.searchsorted(cumulative, aim, side="right").astype(jnp.int32)
    else:
        below = jnp.sum(cumulative[:, None] <= aim, axis=0, dtype=jnp.int32)
    # At most n − 1, since an aim may round up to the total itself.
    return jnp.minimum(below, mass.size - 1)


def lloyd(
    x: Float[Array, "n d"],
    weights: Float[Array, " n"],
    seeds: Float[Array, "k d"],
    wanted: Bool[Array, " k"] | None = None,
) -> Int[Array, " n"]:
    """Labels by Lloyd's iteration from the seeds, until the centres rest, at most 100 times.

    Each cluster that is `wanted` has members in the end; by default all are. The seeds of the
    others must lie far from the data, so that they have none.
    """
    k = seeds.shape[0]
    chunk = rows_per_chunk(x.shape[0], x.shape[1] + 3 * k, x.dtype.itemsize)

    def sums(i: Array | int, present: Array | None, centres: Array) -> tuple[Array, Array]:
        rows, counts = chunk_of(x, i, chunk), chunk_of(weights, i, chunk)
        counts = counts if present is None else counts * present
        labels = jnp.argmin(_squared_distances(rows, centres), axis=1)
        members = jnp.where(labels[:, None] == jnp.arange(k), counts[:, None], 0)
        return einsum("nk,nd->kd", members, rows), jnp.sum(members, axis=0)

    def update(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        centres, _, i = carry
        total, count = fold(lambda i, p: sums(i, p, centres), x.shape[0], chunk, x)
        moved = total / jnp.where(count > 0, count, 1)[:, None]
        moved = jnp.where((count > 0)[:, None], moved, centres)
        shift = jnp.sum((moved - centres) ** 2)
        return moved, shift, i + 1

    # The data have unit variances, so a shift is small or not in absolute terms.
    tol = 1e-4
    start = varying((seeds, jnp.asarray(jnp.inf, x.dtype), jnp.zeros((), jnp.int32)), (x, weights))
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

    A cluster of one member keeps it, so that none is emptied in turn.
    """
    counted = weights > 0
    clusters = jnp.arange(n_clusters, dtype=labels.dtype)
    members = jnp.sum((labels[:, None] == clusters) & counted[:, None], axis=0, dtype=jnp.int32)

    def lacking(members: Array) -> Array:
        return (members == 0) if wanted is None else (members == 0) & wanted

    def going(carry: tuple[Array, Array, Array]) -> Array:
        _, members, _ = carry
        return jnp.any(lacking(members)) & jnp.any(members > 1)

    def give(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        labels, members, distances = carry
        cluster = jnp.argmax(lacking(members)).astype(labels.dtype)
        movable = counted & (members[labels] > 1)
        farthest = jnp.argmax(jnp.where(movable, distances, -1))
        members = members.at[labels[farthest]].add(-1).at[cluster].add(1)
        return labels.at[farthest].set(cluster), members, distances.at[farthest].set(0)

    return jax.lax.while_loop(going, give, (labels, members, distances))[0]
