"""The score of a mixture under normal noise: what Langevin and diffusion samplers follow."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks
from ._chunks import map_rows, rows_per_chunk
from ._density import log_constant

if TYPE_CHECKING:
    from ._mixture import GaussianMixture


def noise_score(gmm: "GaussianMixture", x: Any, sigma: Any) -> Float[Array, "*batch d"]:
    """∇ log (p * N(0, σ²I)), see `GaussianMixture.noise_score`."""
    x = _checks.check_points(x, gmm.n_features, gmm.dtype)
    gmm = _checks.in_dtype(gmm, x.dtype)
    batch = x.shape[:-1]
    sigma = _check_sigma(sigma, batch).astype(x.dtype)
    if sigma.ndim > 0:
        sigma = jnp.broadcast_to(sigma, batch).reshape(-1)
    # A negative σ that Python did not see is NaN, not its square.
    variance = jnp.where(sigma < 0, jnp.nan, sigma) ** 2
    if _checks.is_concrete(variance) and not bool(jnp.all(jnp.isfinite(variance))):
        raise ValueError(
            f"sigma is {float(sigma.max()):g}, whose square is too large for {x.dtype}. Rescale "
            "the data, or take float64."
        )
    return _noise_score(gmm, x.reshape(-1, gmm.n_features), variance).reshape(x.shape)


def _check_sigma(sigma: Any, batch: tuple[int, ...]) -> Array:
    sigma = _checks.as_floating(sigma, "sigma")
    try:
        fits = np.broadcast_shapes(sigma.shape, batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"sigma has shape {sigma.shape}, which does not broadcast to the points' {batch}. "
            "Give one number for all of them, or one for each, without an axis of features."
        )
    _checks.check_finite(jnp.atleast_1d(sigma), "sigma")
    if _checks.is_concrete(sigma) and bool(jnp.any(sigma < 0)):
        raise ValueError(
            f"sigma holds negative values, the least {float(sigma.min()):g}. It is a standard "
            "deviation: zero or positive."
        )
    return sigma


@jax.jit
def _noise_score(
    gmm: "GaussianMixture", x: Float[Array, "n d"], variance: Float[Array, "*n"]
) -> Float[Array, "n d"]:
    """The scores, a chunk of rows at a time: no n × K × d array is built."""
    n, d = x.shape
    constant = log_constant(gmm)

    @jax.checkpoint
    def scores(x: Float[Array, "r d"], variance: Float[Array, "*r"]) -> Float[Array, "r d"]:
        y, pull = jax.vjp(lambda x: gmm.structure.whiten(x, gmm.means), x)
        damped, half_log_det = gmm.structure.damp(y, variance)
        log_joint = constant[:, None] - half_log_det - jnp.sum(y * damped, axis=1) / 2
        responsibilities = jax.nn.softmax(log_joint, axis=0)
        return -pull(responsibilities[:, None] * damped)[0]

    # y, its damped form in three stages, and what is pulled back.
    rows = rows_per_chunk(n, 6 * gmm.n_components * d, x.dtype.itemsize)
    if variance.ndim == 0:
        return map_rows(lambda x: scores(x, variance), x, rows)
    both = jnp.concatenate([x, variance[:, None]], axis=1)
    return map_rows(lambda rows: scores(rows[:, :d], rows[:, d]), both, rows)
