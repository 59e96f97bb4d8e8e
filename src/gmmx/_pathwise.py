"""Draws whose derivatives in every parameter are those of the distribution: pathwise gradients.

The uniform coordinates of a draw x are its conditional distribution functions F_i(x_i | x_<i; θ),
i = 1…d. Held fixed while θ moves, they determine how x moves (implicit reparameterisation: Graves
2016; Figurnov, Mohamed & Mnih 2018):

    F_i = Σ_k ρ_ki Φ(y_ki),   ρ_ki = p(k | x_<i),   y_k = W_k(x − μ_k),   dF_i = 0.

W_k is lower triangular, so y_ki is the whitened coordinate of the conditional. The system for dx
is triangular as well: it is solved feature by feature, without a matrix for each draw.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from ._chunks import map_rows, rows_per_chunk
from ._components import AbstractComponents
from ._linalg import product


def pathwise(gmm: AbstractComponents, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """The same draws x, whose derivatives in the leaves of the mixture are pathwise."""
    return _reparameterise(gmm.log_weights, gmm.means, gmm.dense_factors(), x)


@jax.custom_jvp
def _reparameterise(
    log_weights: Float[Array, " k"],
    means: Float[Array, "k d"],
    factors: Float[Array, "k d d"],
    x: Float[Array, "n d"],
) -> Float[Array, "n d"]:
    return x


@_reparameterise.defjvp
def _reparameterise_jvp(primals, tangents):
    parameters, moves = primals[:-1], tangents[:-1]
    x = _reparameterise(*primals)
    n, d = x.shape

    # A gradient keeps only the rows of a chunk.
    @jax.checkpoint
    def move(x: Float[Array, "r d"]) -> Float[Array, "r d"]:
        return _move(*parameters, *moves, x)  # pyright: ignore[reportCallIssue]

    rows = rows_per_chunk(n, 6 * parameters[0].shape[0] * d, x.dtype.itemsize)
    return x, map_rows(move, x, rows)


def _move(
    log_weights: Float[Array, " k"],
    means: Float[Array, "k d"],
    factors: Float[Array, "k d d"],
    d_log_weights: Float[Array, " k"],
    d_means: Float[Array, "k d"],
    d_factors: Float[Array, "k d d"],
    x: Float[Array, "n d"],
) -> Float[Array, "n d"]:
    """dx, linear in the moves of the parameters.

    With p_i = Σ_k ρ_ki φ(y_ki)W_k,ii, and a_ki = log w_k + Σ_{j<i} log p(x_j | x_<j, k),

        p_i dx_i = −Σ_k ρ_ki (Φ(y_ki) − F_i) da_ki − Σ_k ρ_ki φ(y_ki) dy°_ki,

    where dy° is dy without its part in dx_i.
    """
    apart = x.T - means[:, :, None]
    y = product(factors, apart)
    diagonal = jnp.diagonal(factors, axis1=-2, axis2=-1)
    log_pdf = jnp.log(diagonal)[:, :, None] - y**2 / 2 - math.log(2 * math.pi) / 2
    before = jnp.pad(jnp.cumsum(log_pdf[:, :-1], axis=1), ((0, 0), (1, 0), (0, 0)))
    log_prior = jax.nn.log_softmax(log_weights[:, None, None] + before, axis=0)
    log_p = jax.nn.logsumexp(log_prior + log_pdf, axis=0)
    # The numerator is the responsibilities after feature i, of sum one over k.
    by_coordinate = jnp.exp(log_prior + log_pdf - log_p) / diagonal[:, :, None]
    by_weight = _excess(log_prior, log_ndtr(y), log_ndtr(-y), log_p)

    # The derivatives of y and of log W_ii at fixed x.
    dy = product(d_factors, apart) - product(factors, d_means[:, :, None])
    d_log_diagonal = jnp.diagonal(d_factors, axis1=-2, axis2=-1) / diagonal

    def feature(carry, i):
        da, dx = carry
        dy_i = dy[:, i] + product(factors[:, i], dx)
        dx_i = -jnp.sum(by_weight[:, i] * da + by_coordinate[:, i] * dy_i, axis=0)
        dy_i = dy_i + diagonal[:, i, None] * dx_i
        da = da - y[:, i] * dy_i + d_log_diagonal[:, i, None]
        return (da, dx.at[i].set(dx_i)), None

    da = jnp.broadcast_to(d_log_weights[:, None], y[:, 0].shape)
    (_, dx), _ = jax.lax.scan(feature, (da, jnp.zeros_like(x.T)), jnp.arange(x.shape[1]))
    return dx.T


def _excess(
    log_prior: Float[Array, "k d n"],
    log_cdf: Float[Array, "k d n"],
    log_survival: Float[Array, "k d n"],
    log_p: Float[Array, "d n"],
) -> Float[Array, "k d n"]:
    """ρ_k(Φ(y_k) − F)/p, by the smaller of the two tails, so that nothing large cancels."""

    def side(log_tail: Float[Array, "k d n"]) -> tuple[Array, Array]:
        total = jax.nn.logsumexp(log_prior + log_tail, axis=0)
        own = jnp.exp(log_prior + log_tail - log_p)
        return own - jnp.exp(log_prior + total - log_p), total

    (below, log_f), (above, log_s) = side(log_cdf), side(log_survival)
    return jnp.where(log_f < log_s, below, -above)
