"""Fewer components: moment-matched merges of two, or of all (Runnalls 2007)."""

from functools import partial
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _checks
from .._components import AbstractComponents, Components
from .._covariance.base import exact
from .._linalg import einsum, inverse_lower, log_weight, safe_sqrt
from .._orthogonal import lower_root


class _Parts(eqx.Module):
    """Weights, means and covariance roots of components, or of one."""

    weights: Float[Array, "*k"]
    means: Float[Array, "*k d"]
    roots: Float[Array, "*k d d"]

    @classmethod
    def of(cls, gmm: AbstractComponents) -> Self:
        """The components of a mixture."""
        roots = jnp.broadcast_to(
            inverse_lower(gmm.distinct_factors()), (*gmm.means.shape, gmm.n_features)
        )
        return cls(gmm.weights, gmm.means, roots)


@jax.jit
def collapse(gmm: Components) -> Components:
    """One Gaussian of the mixture's mean and covariance."""
    parts, (k, d) = _Parts.of(gmm), gmm.means.shape
    scale = safe_sqrt(parts.weights)
    roots = jnp.moveaxis(parts.roots * scale[:, None, None], 0, 1).reshape(d, k * d)
    centre = einsum("k,kd->d", parts.weights, parts.means)
    apart = (parts.means - centre).T * scale
    factor = inverse_lower(lower_root(jnp.concatenate([roots, apart], axis=1)))
    return type(gmm)(jnp.zeros(1, gmm.dtype), centre[None], exact(factor[None], 1))


def reduce(gmm: Components, n_components: Any) -> Components:
    """The mixture with components merged, two by two, down to this number."""
    n_components = _checks.check_count(n_components, "n_components")
    k = gmm.n_components
    if n_components > k:
        raise ValueError(
            f"n_components={n_components}, but the mixture has {k}: reducing cannot add any."
        )
    return gmm if n_components == k else _reduce(gmm, n_components)


@partial(jax.jit, static_argnames="n_components")
def _reduce(gmm: Components, n_components: int) -> Components:
    k, parts = gmm.n_components, _Parts.of(gmm)
    costs = jax.lax.map(lambda part: _costs(part, parts), parts)
    pairs = jnp.arange(k)[:, None] < jnp.arange(k)

    def merge_cheapest(_: Array, carry: tuple[_Parts, Array, Array]):
        parts, alive, costs = carry
        possible = pairs & alive[:, None] & alive
        i, j = jnp.unravel_index(jnp.argmin(jnp.where(possible, costs, jnp.inf)), costs.shape)
        one, other = (jax.tree.map(lambda leaf, at=at: leaf[at], parts) for at in (i, j))
        merged = _merge(one, other)
        parts = jax.tree.map(lambda leaf, value: leaf.at[i].set(value), parts, merged)
        row = _costs(merged, parts)
        return parts, alive.at[j].set(False), costs.at[i].set(row).at[:, i].set(row)

    start = (parts, jnp.ones(k, bool), costs)
    parts, alive, _ = jax.lax.fori_loop(0, k - n_components, merge_cheapest, start)
    left = jnp.argsort(~alive, stable=True)[:n_components]
    parts = jax.tree.map(lambda leaf: leaf[left], parts)
    logits = log_weight(parts.weights)
    return type(gmm)(logits, parts.means, exact(inverse_lower(parts.roots), n_components))


def _merge(one: _Parts, other: _Parts) -> _Parts:
    """One component with the mean and the covariance of the two."""
    total = one.weights + other.weights
    share = jnp.where(total > 0, one.weights / jnp.where(total > 0, total, 1), 0.5)
    apart = other.means - one.means
    rows = [
        safe_sqrt(share) * one.roots,
        safe_sqrt(1 - share) * other.roots,
        safe_sqrt(share * (1 - share)) * apart[:, None],
    ]
    root = lower_root(jnp.concatenate(rows, axis=1))
    return _Parts(total, one.means + (1 - share) * apart, root)


def _costs(one: _Parts, others: _Parts) -> Float[Array, " k"]:
    """B = ½[(w_i + w_j) log|P_ij| − w_i log|P_i| − w_j log|P_j|] for each j.

    It bounds the Kullback-Leibler divergence of the merged mixture from the unmerged one.
    """

    def weighted(part: _Parts) -> Array:
        return part.weights * jnp.sum(jnp.log(jnp.diagonal(part.roots, axis1=-2, axis2=-1)), -1)

    merged = jax.vmap(_merge, in_axes=(None, 0))(one, others)
    return weighted(merged) - weighted(one) - weighted(others)
