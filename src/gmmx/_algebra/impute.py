"""What rows leave open, filled in: the mean of the complete row given what was observed of it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import _checks
from .._components import AbstractComponents
from .._data import Data, check_components
from .._engine.frame import Frame
from .._engine.observed import Absorbed, Prior, over_rows
from .._linalg import einsum


def impute(
    gmm: AbstractComponents, x: Any, n_samples: int | None, key: PRNGKeyArray | None
) -> Float[Array, "n d"] | Float[Array, "n s d"]:
    """See `GaussianMixture.impute`."""
    x = x if isinstance(x, Data) else Data(x, missing=True)
    check_components(x, gmm.n_components, gmm.n_features)
    gmm, x = _checks.same_dtype(gmm, x)
    if n_samples is None:
        values = over_rows(gmm, x, _mean)
    else:
        n_samples = _checks.check_count(n_samples, "n_samples")
        label_key, noise_key = jax.random.split(_checks.as_key(key))
        shape = (x.shape[0], n_samples)
        uniform = jax.random.uniform(label_key, shape, x.dtype)
        noise = jax.random.normal(noise_key, (*shape, gmm.n_features), x.dtype)
        values = over_rows(gmm, x, _draw, uniform, noise)
    if x.projection is not None:
        return values
    # What was measured without noise stays as it is, to the last digit.
    exact, seen = x.deviations == 0, x.x
    if n_samples is not None:
        exact, seen = exact[:, None], seen[:, None]
    return jnp.where(exact, seen, values)


def _mean(prior: Prior, frame: Frame, found: Absorbed) -> Float[Array, "n d"]:
    share = jax.nn.softmax(found.log_joint, axis=0)
    apart = prior.means[:, :, None] + _rooted(prior, found.mean)
    return frame.centre + frame.vectors_back(einsum("kn,kdn->nd", share, apart))


def _draw(
    prior: Prior,
    frame: Frame,
    found: Absorbed,
    uniform: Float[Array, "n s"],
    noise: Float[Array, "n s d"],
) -> Float[Array, "n s d"]:
    below = jnp.cumsum(jax.nn.softmax(found.log_joint, axis=0), axis=0)
    label = jnp.sum(uniform >= (below / below[-1])[:, :, None], axis=0)
    chosen = jax.nn.one_hot(label, len(below), dtype=uniform.dtype)
    if found.spread.ndim == 3:
        spread = jnp.sqrt(found.spread)[:, None] * jnp.moveaxis(noise, 0, 2)
    else:
        spread = einsum("jden,nse->jsdn", found.spread, noise)
    u = found.mean[:, None] + spread
    points = prior.means[:, None, :, None] + jax.vmap(
        lambda v: _rooted(prior, v), in_axes=1, out_axes=1
    )(jnp.broadcast_to(u, (len(below), *u.shape[1:])))
    drawn = einsum("nsk,ksdn->nsd", chosen, points)
    return frame.centre + jax.vmap(frame.vectors_back)(drawn)


def _rooted(prior: Prior, u: Float[Array, "k d n"]) -> Float[Array, "k d n"]:
    """W_k⁻¹u"""
    if prior.roots.ndim == 2:
        return prior.roots[:, :, None] * u
    if len(prior.roots) < len(prior.means):
        return einsum("de,ken->kdn", prior.roots[0], u)
    return einsum("kde,ken->kdn", prior.roots, u)
