"""The start that short runs of EM tell apart."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._components import Components
from .._covariance import AbstractCovariance
from .._data import Samples, completed, take
from .._engine.floor import Floor
from .._engine.form import Form
from .._engine.frame import Frame
from .._engine.kinds import ladder_of, rows_of
from .._engine.memberships import Clusters, Members, clusters_of
from .._engine.moments import maximise
from . import kmeans
from .within import rounded

RUNS = 7
"""How many starts are compared: six by k-means, and shells"""
STEPS = 40
"""The steps of EM that each of them gets"""
# Rows that are enough to tell starts apart, in all and for each component.
_ROWS = 2**14
_ROWS_EACH = 100
# A component that is not there is seeded here, in units in which the data have variance one.
_FAR = 1e6


class Clusterings(eqx.Module):
    """Rows, and the labels of several clusterings of them, of which a fit may start."""

    x: Float[Array, "n d"]
    weights: Float[Array, " n"]
    labels: Int[Array, "runs n"]
    n_clusters: int = eqx.field(static=True)

    def of(self, run: Int[Array, ""], structure: type[AbstractCovariance]) -> Clusters | Members:
        """The clusters of one of them, for this structure."""
        members = jax.nn.one_hot(self.labels[run], self.n_clusters, dtype=self.x.dtype)
        return clusters_of(self.x, members * self.weights[:, None], structure)


def some_rows(
    x: Samples, weights: Float[Array, " n"], k: int, key: PRNGKeyArray
) -> tuple[Any, Float[Array, " m"]]:
    """Of many rows some, drawn by weight, so that each of them counts once."""
    most = max(_ROWS, _ROWS_EACH * k)
    if x.shape[0] <= most:
        return x, weights
    drawn = kmeans.draw(weights, jax.random.uniform(key, (most,), weights.dtype))
    return take(x, drawn), jnp.ones(most, weights.dtype)


def clusterings(
    x: Float[Array, "n d"],
    weights: Float[Array, " n"],
    k: int,
    key: PRNGKeyArray,
    *,
    low_rank: bool,
    wanted: Int[Array, ""] | None = None,
) -> Clusterings:
    """Six runs of k-means, and shells about the mean of all rows.

    k-means takes distances in three ways: with each feature scaled, in the covariance of all rows,
    and in that of near ones, which finds clusters however they are elongated. Shells find clusters
    inside others.

    **Arguments:**

    - `low_rank`: for structures that are made for so many features that a covariance of all rows
        is too large: distances are taken in the first way alone.
    - `wanted`: how many clusters have members, the first ones; all k by default.
    """
    scaled = Frame.of_data(x, weights, turned=False).apply(x)
    views = [scaled]
    if not low_rank:
        white = Frame.of_data(x, weights, turned=True).apply(x)
        views += [rounded(white, weights, k if wanted is None else wanted, key), white]
    seen = jnp.stack(views)
    there: Bool[Array, " k"] | None = None
    if wanted is not None:
        there = jnp.arange(k, dtype=wanted.dtype) < wanted

    def by_kmeans(run: tuple[Array, PRNGKeyArray]) -> Int[Array, " n"]:
        number, key = run
        z = seen[number % len(seen)]
        seeds = kmeans.plusplus(z, weights, k, key)
        seeds = seeds if there is None else jnp.where(there[:, None], seeds, _FAR)
        return kmeans.lloyd(z, weights, seeds, there)

    runs = jnp.arange(RUNS - 1, dtype=jnp.int32), jax.random.split(key, RUNS - 1)
    labels = jax.lax.map(by_kmeans, runs)
    shells = _shells(views[-1], weights, k if wanted is None else wanted).astype(labels.dtype)
    return Clusterings(x, weights, jnp.concatenate([labels, shells[None]]), k)


def _shells(
    z: Float[Array, "n d"], weights: Float[Array, " n"], k: int | Int[Array, ""]
) -> Int[Array, " n"]:
    """The k parts of equal weight by the distance from zero."""
    order = jnp.argsort(jnp.sum(z**2, axis=1))
    cumulative = jnp.cumsum(weights[order] / jnp.max(weights))
    # A row's place is the middle of its weight.
    middle = cumulative - weights[order] / jnp.max(weights) / 2
    shell = jnp.floor(middle / cumulative[-1] * jnp.asarray(k, z.dtype)).astype(jnp.int32)
    return jnp.zeros_like(shell).at[order].set(jnp.clip(shell, 0, k - 1))


def by_short_runs(
    mixture: type[Components],
    structure: type[AbstractCovariance],
    k: int,
    x: Samples,
    weights: Float[Array, " n"],
    key: PRNGKeyArray,
    reg_covar: Float[Array, "*d"],
) -> Components:
    """The likeliest, after a few steps of EM, of several starts (Biernacki et al. 2003).

    A start with a component that has collapsed is taken only where all of them have one.
    """
    key = jax.random.fold_in(key, 1)
    x, weights = some_rows(x, weights, k, key)
    low_rank = structure.n_latent is not None
    starts = clusterings(completed(x, weights), weights, k, key, low_rank=low_rank)

    def start(run: Int[Array, ""]) -> Components:
        return starts.of(run, structure).fit(mixture, structure, reg_covar)

    floor = Floor.of(reg_covar, x, weights)
    runs = jnp.arange(RUNS, dtype=jnp.int32)
    like = jax.eval_shape(start, runs[0])
    ladder = ladder_of(like, x, x.shape[0], products=2).ends()
    rows = rows_of(x, like, weights, ladder)

    def short(run: Int[Array, ""]) -> tuple[Components, Array, Array]:
        def step(_: Array, carry: tuple[Components, Array]) -> tuple[Components, Array]:
            gmm, _ = carry
            form = Form.of(gmm, rows.frame)
            way = ladder.choose(form, rows.reach)
            moments, _ = rows.expect(form, weights, ladder, way)
            return maximise(gmm, form, moments, rows.frame, floor.variances), moments.log_likelihood

        gmm = start(run)
        gmm, value = jax.lax.fori_loop(0, STEPS, step, (gmm, jnp.zeros((), gmm.dtype)))
        sound = ~jnp.any(floor.spurious(gmm, jnp.sum(weights), frozenset()))
        return gmm, jnp.where(jnp.isfinite(value), value, -jnp.inf), sound

    found, values, sound = jax.lax.map(short, runs)
    best = jnp.argmax(jnp.where(sound | ~jnp.any(sound), values, -jnp.inf))
    return jax.tree.map(lambda leaf: leaf[best], found)
