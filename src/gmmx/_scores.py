"""The score of a mixture under normal noise, which Langevin and diffusion samplers follow."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks
from ._chunks import map_rows, rows_per_chunk
from ._components import AbstractComponents
from ._covariance.base import exact
from ._engine.density import evaluate, log_prob_of
from ._engine.whitened import whiten
from ._rows import by_rows


def noise_score(gmm: AbstractComponents, x: Any, sigma: Any) -> Float[Array, "*batch d"]:
    """∇ log (p * N(0, σ²I)), see `GaussianMixture.noise_score`."""
    x = _checks.check_points(x, gmm.n_features, gmm.dtype)
    gmm = _checks.in_dtype(gmm, x.dtype)
    batch = x.shape[:-1]
    sigma = _check_sigma(sigma, batch).astype(x.dtype)
    _check_square(sigma)
    if sigma.ndim == 0:
        score = _noise_score if gmm.structure.n_latent is None else _score_of_noisy
        return by_rows(lambda x: score(gmm, x, sigma), batch, x, gmm, sigma)
    if gmm.structure.n_latent is not None:
        dense = exact(gmm.dense_factors(), gmm.n_components)
        gmm = dataclasses.replace(gmm, structure=dense)
    xp = _checks.array_module(sigma)
    each = jnp.asarray(xp.broadcast_to(sigma, batch), x.dtype)
    return by_rows(lambda rows: _noise_score(gmm, *rows), batch, (x, each), gmm)


def _check_sigma(sigma: Any, batch: tuple[int, ...]) -> Array:
    sigma = _checks.as_floating(sigma, "sigma")
    try:
        fits = np.broadcast_shapes(sigma.shape, batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"sigma has shape {sigma.shape}, which does not broadcast to the shape {batch} of the "
            "points. Give one number for all points, or one for each, without an axis of features."
        )
    _checks.check_finite(sigma, "sigma")
    if _checks.is_concrete(sigma) and (np.asarray(sigma) < 0).any():
        raise ValueError(
            f"sigma holds negative values, the least {float(sigma.min()):g}. It is a standard "
            "deviation: zero or positive."
        )
    return sigma


def _check_square(sigma: Array) -> None:
    if not _checks.is_concrete(sigma):
        return
    largest = np.max(np.asarray(sigma), initial=0)
    with np.errstate(over="ignore"):
        if not np.isfinite(np.square(largest)):
            raise ValueError(
                f"sigma is {float(largest):g}, whose square is too large for {sigma.dtype}. "
                "Rescale the data, or use float64."
            )


@jax.jit
def _score_of_noisy(
    gmm: AbstractComponents, x: Float[Array, "n d"], sigma: Float[Array, ""]
) -> Float[Array, "n d"]:
    """The scores by the mixture of x plus noise, where it has covariances of the same kind."""
    variance = jnp.where(sigma < 0, jnp.nan, sigma) ** 2
    structure = gmm.structure.convolve(variance, *gmm.means.shape)
    noisy = dataclasses.replace(gmm, structure=structure)
    log_prob, pull = jax.vjp(lambda x: evaluate(noisy, x, log_prob_of), x)
    return pull(jnp.ones_like(log_prob))[0]


@jax.jit
def _noise_score(
    gmm: AbstractComponents, x: Float[Array, "n d"], sigma: Float[Array, "*n"]
) -> Float[Array, "n d"]:
    """The scores, a chunk of rows at a time: no n × K × d array is stored."""
    n, d = x.shape
    constant = gmm.log_constant(gmm.factors())
    # A negative σ that Python did not see becomes NaN, not its square.
    variance = jnp.where(sigma < 0, jnp.nan, sigma) ** 2

    @jax.checkpoint
    def scores(x: Float[Array, "r d"], variance: Float[Array, "*r"]) -> Float[Array, "r d"]:
        y, pull = jax.vjp(lambda x: whiten(gmm, x), x)
        damped, half_log_det = gmm.structure.damp(y, variance)
        log_joint = constant[:, None] - half_log_det - jnp.sum(y * damped, axis=1) / 2
        responsibilities = jax.nn.softmax(log_joint, axis=0)
        return -pull(responsibilities[:, None] * damped)[0]

    # y, three stages of damping, the damped y, and what is pulled back.
    rows = rows_per_chunk(n, 6 * gmm.n_components * d, x.dtype.itemsize)
    if variance.ndim == 0:
        return map_rows(lambda x: scores(x, variance), x, rows)
    return map_rows(lambda block: scores(*block), (x, variance), rows)
