"""Where to start a fit."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .. import _checks, _rows
from .._background import BackgroundMixture, UniformBackground, as_background
from .._covariance import structure_named
from .._data import Data, Samples, check_rows, completed, without_weights
from .._engine.floor import RELATIVE
from .._engine.frame import Frame
from .._engine.memberships import fit_memberships
from .._linalg import einsum
from .._mixture import GaussianMixture
from .._programs import Program
from .._sources.base import AbstractSource, check_no_weights
from .._sources.spread import SpreadSource
from .._sources.survey import SAMPLE, survey
from .._spread import spread_of
from . import kmeans
from .clutter import without_clutter
from .short_runs import by_short_runs

# Rows of a source that are drawn for each component, where that is more than are drawn anyway.
_ROWS_EACH = 100


def _by_kmeans(
    x: Float[Array, "n d"], weights: Float[Array, " n"], k: int, key: PRNGKeyArray
) -> Float[Array, "n k"]:
    return _one_hot(kmeans.lloyd(x, weights, kmeans.plusplus(x, weights, k, key)), k, x)


def _by_seeds(
    x: Float[Array, "n d"], weights: Float[Array, " n"], k: int, key: PRNGKeyArray
) -> Float[Array, "n k"]:
    seeds = kmeans.plusplus(x, weights, k, key)
    return _one_hot(kmeans.fill_empty(*kmeans.nearest(x, seeds), weights, k), k, x)


def _at_random(
    x: Float[Array, "n d"], weights: Float[Array, " n"], k: int, key: PRNGKeyArray
) -> Float[Array, "n k"]:
    draws = jax.random.uniform(key, (x.shape[0], k), x.dtype)
    return draws / jnp.sum(draws, axis=1, keepdims=True)


def _from_data(
    x: Float[Array, "n d"], weights: Float[Array, " n"], k: int, key: PRNGKeyArray
) -> Float[Array, "n k"]:
    # Without replacement, in proportion to the weights, by the Gumbel trick.
    gumbel = jax.random.gumbel(key, weights.shape, x.dtype)
    _, chosen = jax.lax.top_k(jnp.log(weights) + gumbel, k)
    return _one_hot(kmeans.fill_empty(*kmeans.nearest(x, x[chosen]), weights, k), k, x)


def _one_hot(labels: Int[Array, " n"], k: int, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    return jax.nn.one_hot(labels, k, dtype=x.dtype)


METHODS = {
    "kmeans": _by_kmeans,
    "kmeans++": _by_seeds,
    "k-means++": _by_seeds,  # scikit-learn's spelling
    "random": _at_random,
    "random_from_data": _from_data,
    "em": by_short_runs,
}


def initialize(
    x: Any,
    n_components: int,
    covariance_type: str = "full",
    *,
    rank: int | None = None,
    method: str = "kmeans",
    key: PRNGKeyArray | None = None,
    weights: Any = None,
    reg_covar: Any = RELATIVE,
    background: Any = None,
) -> GaussianMixture | BackgroundMixture:
    """A mixture to start a fit from: memberships by `method`, then one M-step.

    Distances are taken with each feature scaled to unit variance, so that the units of the
    features do not decide which of them counts.

    **Arguments:**

    - `x`: the data, `(n, d)`; or `gmmx.Data`, of which rough complete rows are made. Components
        of which some rows are known by their labels start from those, by k-means. Of a source
        (`gmmx.rows_from`) the start is that of 32,768 rows, or 100 for each component, which one
        pass draws in proportion to their weights; of a smaller one that of all rows.
    - `rank`: the number of latent factors of a component, for `"low_rank"` and its relatives.
    - `method`: `"kmeans"`, Lloyd's iteration from k-means++ seeds; `"em"`, the likeliest of a few
        such starts after short runs of EM, which also finds clusters that are elongated along no
        axis, at some four times the time; `"kmeans++"`, each sample to
        the nearest of such seeds; `"random_from_data"`, to the nearest of K samples drawn;
        `"random"`, memberships drawn, whose components start near one another.
    - `key`: `jax.random.key(0)` if there is none.
    - `weights`: sample weights `(n,)`.
    - `reg_covar`: added to the variances of the components: a part of each feature's variance in
        the data, or `(d,)`, the variances to add, in the squared units of the data.
    - `background`: True for a uniform one on the box of the data; or a `gmmx.UniformBackground`,
        or another module with a method `log_prob(x)`. The result is a `gmmx.BackgroundMixture`,
        and the components start from the rows that lie densely (Byers & Raftery 1998).

    **Raises:** `ValueError` for data that cannot be fitted and for an unknown method or structure.

    Compiled once for each shape; it composes with `jit` and `vmap`, also over keys.
    """
    n_components = _checks.check_count(n_components, "n_components")
    if method not in METHODS:
        known = ", ".join(repr(name) for name in METHODS)
        raise ValueError(f"method={method!r} is unknown; expected one of {known}.")
    if spread_of(x) is not None:
        # A sample is what leaves the devices.
        x, weights = SpreadSource(x, weights), None
    if isinstance(x, AbstractSource):
        check_no_weights(weights)
        x, weights, background = sample_of(x, n_components, background, key)
    background = as_background(background, x)
    x, weights = without_weights(check_rows(x, n_components + (background is not None)), weights)
    structure = structure_named(covariance_type, rank, x.shape[1])
    weights = _checks.check_weights(weights, x.shape[0], x.dtype)
    if isinstance(x, Data) and not x.decides:
        x = eqx.tree_at(lambda data: data.labels, x, None, is_leaf=lambda leaf: leaf is None)
    key = _checks.as_key(key)
    _checks.check_floor(reg_covar)
    floor = jnp.asarray(reg_covar, x.dtype)
    start = _start
    if _checks.is_concrete(x, weights, key, floor):
        x, weights = _rows.fill(x, weights)
        start = _start.at(x.size * n_components)
    return start(structure, METHODS[method], n_components, x, weights, key, floor, background)


def sample_of(source: AbstractSource, k: int, background: Any, key: Any) -> tuple[Any, Any, Any]:
    """Some of the rows, their weights, and the background on the box of all rows."""
    seed = np.asarray(jax.random.key_data(_checks.as_key(key))).ravel()
    dtype = jax.dtypes.canonicalize_dtype(_checks.promote(source.dtype, jnp.float32))
    found, (x, weights) = survey(source, dtype, False, seed, max(SAMPLE, _ROWS_EACH * k))
    if background is True:
        background = UniformBackground(*(np.asarray(v, dtype) for v in (found.low, found.high)))
    return x, None if (weights == weights[0]).all() else weights, background


@Program
def _start(structure, memberships, n_components, x, weights, key, reg_covar, background):
    """One M-step from `memberships` of the scaled samples, one of `METHODS`."""
    weights = jnp.ones(x.shape[0], x.dtype) if weights is None else weights
    prior = x.log_prior(n_components + (background is not None)) if isinstance(x, Data) else None
    members = partial(_of_clusters, structure, memberships, n_components, x)
    if background is None:
        return members(prior, weights, key, reg_covar)
    kept, share = without_clutter(scaled(x, weights), weights, jax.random.fold_in(key, 2))
    if prior is not None:
        # What a label says of the background goes before what a density does.
        prior, behind = prior[:, :-1], prior[:, -1]
        kept = jnp.where(behind == -jnp.inf, weights, kept)
        kept = jnp.where(jnp.all(prior == -jnp.inf, axis=1), 0, kept)
    gmm = members(prior, kept, key, reg_covar)
    return BackgroundMixture.of(gmm, background, share)


def _of_clusters(structure, memberships, n_components, x, prior, weights, key, reg_covar):
    """The start of the components, of the rows that have a weight."""
    if prior is None and memberships is by_short_runs:
        return by_short_runs(GaussianMixture, structure, n_components, x, weights, key, reg_covar)
    x = completed(x, weights)
    if prior is None:
        members = memberships(scaled(x, weights), weights, n_components, key)
    else:
        members = _by_labels(scaled(x, weights), weights, jnp.exp(prior), key)
    members = members * weights[:, None]
    return fit_memberships(GaussianMixture, structure, x, members, reg_covar)


def _by_labels(
    x: Float[Array, "n d"],
    weights: Float[Array, " n"],
    possible: Float[Array, "n k"],
    key: PRNGKeyArray,
) -> Float[Array, "n k"]:
    """k-means from the means of the rows that are known, memberships as the labels allow them."""
    k = possible.shape[1]
    # A row that is of no component has no weight.
    possible = jnp.where(jnp.any(possible > 0, axis=1, keepdims=True), possible, 1)
    only = jnp.sum(possible > 0, axis=1, keepdims=True) == 1
    alone = jnp.where(only, possible * weights[:, None], 0)
    known = jnp.sum(alone, axis=0)
    means = einsum("nk,nd->kd", alone, x) / jnp.where(known > 0, known, 1)[:, None]
    seeds = jnp.where(known[:, None] > 0, means, kmeans.plusplus(x, weights, k, key))
    members = _one_hot(kmeans.lloyd(x, weights, seeds), k, x) * possible
    # A row whose cluster its label excludes.
    members = jnp.where(jnp.sum(members, axis=1, keepdims=True) > 0, members, possible)
    return members / jnp.sum(members, axis=1, keepdims=True)


def scaled(x: Samples, weights: Float[Array, " n"] | None) -> Float[Array, "n d"]:
    """The samples with each feature of mean zero and, unless it is constant, unit variance."""
    return Frame.of_data(x, weights, turned=False).apply(completed(x, weights))
