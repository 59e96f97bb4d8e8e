"""Functions of rows of `Data`: what they say of the complete rows v, the mixture being the prior.

`gmmx._engine.observed.over_rows` takes them over all rows.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._engine.density import labels_of, log_prob_of, responsibilities_of
from .._engine.frame import Frame
from .._engine.observed import FramedMixture, Numbers, absorb, expect
from .._linalg import einsum, product


def log_evidence(prior: FramedMixture, frame: Frame, rows: Numbers) -> Float[Array, " n"]:
    """log p(x)"""
    return log_prob_of(expect(prior, rows).log_joint)


def responsibilities(prior: FramedMixture, frame: Frame, rows: Numbers) -> Float[Array, "n k"]:
    """p(k | x)"""
    return responsibilities_of(expect(prior, rows).log_joint)


def mean(prior: FramedMixture, frame: Frame, rows: Numbers) -> Float[Array, "n d"]:
    """E[v | x]"""
    found = expect(prior, rows)
    share = jax.nn.softmax(found.log_joint, axis=0)
    return _placed(frame, einsum("kn,kdn->nd", share, _points(prior, found.mean)))


def mode(prior: FramedMixture, frame: Frame, rows: Numbers) -> Float[Array, "n d"]:
    """E[v | x, k] of the most probable component; NaN where the density is."""
    found = expect(prior, rows)
    label = labels_of(found.log_joint)
    chosen = jax.nn.one_hot(label, len(prior.means), dtype=prior.means.dtype)
    values = _placed(frame, einsum("nk,kdn->nd", chosen, _points(prior, found.mean)))
    return jnp.where(label[:, None] < 0, jnp.nan, values)


def covariance(prior: FramedMixture, frame: Frame, rows: Numbers) -> Float[Array, "n d d"]:
    """Cov[v | x], within and between components."""
    found = absorb(prior, rows)
    share, points = jax.nn.softmax(found.log_joint, axis=0), _points(prior, found.mean)
    apart = points - einsum("kn,kdn->dn", share, points)
    between = einsum("kdn,ken->nde", share[:, None] * apart, apart)
    if len(found.spread) < len(share):
        share = jnp.sum(share, axis=0, keepdims=True)
    if found.spread.ndim == 3:
        variances = einsum("jn,jdn->nd", share, prior.roots[:, :, None] ** 2 * found.spread)
        within = variances[:, :, None] * jnp.eye(variances.shape[1], dtype=variances.dtype)
    else:
        j, d, _, n = found.spread.shape
        spread = _rooted(prior, found.spread.reshape(j, d, d * n)).reshape(j, d, d, n)
        within = einsum("jdfn,jefn->nde", share[:, None, None] * spread, spread)
    return jax.vmap(lambda square: frame.vectors_back(frame.vectors_back(square).T))(
        within + between
    )


def draw(
    prior: FramedMixture,
    frame: Frame,
    rows: Numbers,
    uniform: Float[Array, "n s"],
    noise: Float[Array, "n s d"],
) -> Float[Array, "n s d"]:
    """Draws of v given x, from uniform and standard normal numbers."""
    found = absorb(prior, rows)
    below = jnp.cumsum(jax.nn.softmax(found.log_joint, axis=0), axis=0)
    label = jnp.sum(uniform >= (below / below[-1])[:, :, None], axis=0)
    chosen = jax.nn.one_hot(label, len(below), dtype=uniform.dtype)
    if found.spread.ndim == 3:
        spread = jnp.sqrt(found.spread)[:, None] * jnp.moveaxis(noise, 0, 2)
    else:
        spread = einsum("jden,nse->jsdn", found.spread, noise)
    u = found.mean[:, None] + spread
    points = jax.vmap(lambda u: _points(prior, u), in_axes=1, out_axes=1)(
        jnp.broadcast_to(u, (len(below), *u.shape[1:]))
    )
    return frame.centre + jax.vmap(frame.vectors_back)(einsum("nsk,ksdn->nsd", chosen, points))


def _points(prior: FramedMixture, u: Float[Array, "k d n"]) -> Float[Array, "k d n"]:
    """μ_k + W_k⁻¹u, in the frame"""
    return prior.means[:, :, None] + _rooted(prior, u)


def _rooted(prior: FramedMixture, u: Float[Array, "k d n"]) -> Float[Array, "k d n"]:
    """W_k⁻¹u"""
    if prior.roots.ndim == 2:
        return prior.roots[:, :, None] * u
    return product(prior.roots, u)


def _placed(frame: Frame, z: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Points of the frame, in the units of x."""
    return frame.centre + frame.vectors_back(z)
