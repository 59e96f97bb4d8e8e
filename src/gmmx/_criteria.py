"""The score, and information criteria in the sign of scikit-learn: smaller is better.

With sample weights w, which say how often each row counts, log L = Σ w_i log p(x_i) and n = Σ w_i.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks
from ._components import AbstractComponents
from ._data import without_weights
from ._engine.density import at_blocks, at_points, log_prob_of
from ._processes import gathered
from ._sources.base import AbstractSource, check_no_weights


def criteria(gmm: AbstractComponents, log_n: Any, log_l: Any, certainty: Any) -> tuple[Any, ...]:
    """(BIC, ICL, AIC) of log n, log L and Σ_i log max_k p(k | x_i)."""
    bic = gmm.n_parameters * log_n - 2 * log_l
    return bic, bic - 2 * certainty, 2 * gmm.n_parameters - 2 * log_l


def totals(gmm: AbstractComponents, source: AbstractSource) -> tuple[float, float, float]:
    """n, log L and Σ_i log max_k p(k | x_i) of a source, with its weights; summed in float64."""
    sums = np.zeros(3)
    for values, weights in at_blocks(gmm, source, log_prob_and_certainty):
        counts = weights.astype(np.float64)
        sums += counts.sum(), *(counts @ np.asarray(v, np.float64) for v in values)
    if source.together:
        sums = np.sum([part[0] for part in gathered([sums])], axis=0)
    return float(sums[0]), float(sums[1]), float(sums[2])


def _of_source(gmm: AbstractComponents, x: AbstractSource, weights: Any) -> tuple[float, ...]:
    """(BIC, ICL, AIC), and the score."""
    check_no_weights(weights)
    n, log_l, certainty = totals(gmm, x)
    return *criteria(gmm, math.log(max(n, 1)), log_l, certainty), log_l / n


def score(gmm: AbstractComponents, x: Any, weights: Any = None) -> Float[Array, ""]:
    """The mean of log p(x)"""
    if isinstance(x, AbstractSource):
        return jnp.asarray(_of_source(gmm, x, weights)[3], gmm.dtype)
    x, weights = without_weights(x, weights)
    log_prob = at_points(gmm, x, log_prob_of)
    counts, n = _counts(log_prob, weights)
    return _total(log_prob, counts) / n


def aic(gmm: AbstractComponents, x: Any, weights: Any = None) -> Float[Array, ""]:
    """2ν − 2 log L (Akaike 1974)"""
    if isinstance(x, AbstractSource):
        return jnp.asarray(_of_source(gmm, x, weights)[2], gmm.dtype)
    x, weights = without_weights(x, weights)
    log_prob = at_points(gmm, x, log_prob_of)
    return criteria(gmm, 0, _total(log_prob, _counts(log_prob, weights)[0]), 0)[2]


def bic(gmm: AbstractComponents, x: Any, weights: Any = None) -> Float[Array, ""]:
    """ν log n − 2 log L (Schwarz 1978)"""
    if isinstance(x, AbstractSource):
        return jnp.asarray(_of_source(gmm, x, weights)[0], gmm.dtype)
    x, weights = without_weights(x, weights)
    log_prob = at_points(gmm, x, log_prob_of)
    counts, n = _counts(log_prob, weights)
    return criteria(gmm, _log(n), _total(log_prob, counts), 0)[0]


def icl(gmm: AbstractComponents, x: Any, weights: Any = None) -> Float[Array, ""]:
    """BIC − 2 Σ_i log max_k p(k | x_i) (Biernacki, Celeux & Govaert 2000)"""
    if isinstance(x, AbstractSource):
        return jnp.asarray(_of_source(gmm, x, weights)[1], gmm.dtype)
    x, weights = without_weights(x, weights)
    log_prob, log_certainty = at_points(gmm, x, log_prob_and_certainty)
    counts, n = _counts(log_prob, weights)
    totals = (_total(values, counts) for values in (log_prob, log_certainty))
    return criteria(gmm, _log(n), *totals)[1]


def _log(n: Float[Array, ""]) -> Float[Array, ""]:
    """log n; zero of no points."""
    return jnp.log(jnp.maximum(n, 1))


def log_prob_and_certainty(
    log_joint: Float[Array, "k n"],
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """log p(x) and log max_k p(k | x)"""
    log_prob = log_prob_of(log_joint)
    # By its place: the derivative of a maximum compares values, which a compiler may compute twice
    # and round apart.
    place = jnp.argmax(log_joint, axis=0, keepdims=True)
    return log_prob, jnp.take_along_axis(log_joint, place, axis=0)[0] - log_prob


def _counts(log_prob: Float[Array, "*batch"], weights: Any) -> tuple[Any, Float[Array, ""]]:
    """The weight of each point, None for one each, and how many points that makes."""
    if weights is None:
        return None, jnp.asarray(log_prob.size, log_prob.dtype)
    weights = _checks.as_weights(weights, log_prob.shape, log_prob.dtype)
    return weights, _total(weights, None)


def _total(values: Float[Array, "*batch"], counts: Any) -> Float[Array, ""]:
    """The sum, without a program for each number of values."""
    xp = _checks.array_module(values)
    terms = xp.asarray(values) if counts is None else xp.asarray(values) * xp.asarray(counts)
    return jnp.asarray(xp.sum(terms), values.dtype)
