"""The score, and information criteria in the sign of scikit-learn: smaller is better."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks
from ._components import AbstractComponents
from ._engine.density import at_points, log_prob_of


def score(gmm: AbstractComponents, x: Any) -> Float[Array, ""]:
    """The mean of log p(x)"""
    log_prob = at_points(gmm, x, log_prob_of)
    return _total(log_prob) / log_prob.size


def aic(gmm: AbstractComponents, x: Any) -> Float[Array, ""]:
    """2ν − 2 log L (Akaike 1974)"""
    return 2 * gmm.n_parameters - 2 * _total(at_points(gmm, x, log_prob_of))


def bic(gmm: AbstractComponents, x: Any) -> Float[Array, ""]:
    """ν log n − 2 log L (Schwarz 1978)"""
    return _bic(gmm, at_points(gmm, x, log_prob_of))


def icl(gmm: AbstractComponents, x: Any) -> Float[Array, ""]:
    """BIC − 2 Σ_i log max_k p(k | x_i) (Biernacki, Celeux & Govaert 2000)"""
    log_prob, log_certainty = at_points(gmm, x, log_prob_and_certainty)
    return _bic(gmm, log_prob) - 2 * _total(log_certainty)


def _bic(gmm: AbstractComponents, log_prob: Float[Array, "*batch"]) -> Float[Array, ""]:
    return gmm.n_parameters * math.log(max(log_prob.size, 1)) - 2 * _total(log_prob)


def log_prob_and_certainty(
    log_joint: Float[Array, "k n"],
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """log p(x) and log max_k p(k | x)"""
    log_prob = log_prob_of(log_joint)
    # By its place: the derivative of a maximum compares values, which a compiler may compute twice
    # and round apart.
    place = jnp.argmax(log_joint, axis=0, keepdims=True)
    return log_prob, jnp.take_along_axis(log_joint, place, axis=0)[0] - log_prob


def _total(values: Float[Array, "*batch"]) -> Float[Array, ""]:
    """The sum, without a program for each number of values."""
    xp = _checks.array_module(values)
    return jnp.asarray(xp.sum(xp.asarray(values)), values.dtype)
