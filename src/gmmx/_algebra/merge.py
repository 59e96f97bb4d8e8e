"""Fewer components: moment-matched merges of two, or of all (Runnalls 2007)."""

from functools import partial
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _checks
from .._covariance import structure_named
from .._linalg import inverse_lower, safe_sqrt
from .._orthogonal import lower_root

if TYPE_CHECKING:
    from .._mixture import GaussianMixture


class _Parts(eqx.Module):
    """Components by weight, mean and covariance root, or one of them."""

    weights: Float[Array, "*k"]
    means: Float[Array, "*k d"]
    roots: Float[Array, "*k d d"]


@jax.jit
def collapse(gmm: "GaussianMixture") -> "GaussianMixture":
    """One Gaussian of the mixture's mean and covariance."""
    (k, d), scale = gmm.means.shape, safe_sqrt(gmm.weights)
    roots = inverse_lower(gmm.structure.factors(k, d)) * scale[:, None, None]
    centre = gmm.mean()
    apart = (gmm.means - centre).T * scale
    rows = jnp.concatenate([jnp.moveaxis(roots, 0, 1).reshape(d, k * d), apart], axis=1)
    factor = inverse_lower(lower_root(rows))[None]
    structure = structure_named("full").from_precisions_cholesky(factor.mT)
    return type(gmm)(jnp.zeros(1, gmm.dtype), centre[None], structure)


def reduce(gmm: "GaussianMixture", n_components: Any) -> "GaussianMixture":
    """The mixture with components merged, two by two, until so many are left."""
    n_components = _checks.check_count(n_components, "n_components")
    k = gmm.n_components
    if n_components > k:
        raise ValueError(
            f"n_components={n_components}, but the mixture has {k}: reducing cannot add any."
        )
    return gmm if n_components == k else _reduce(gmm, n_components)


@partial(jax.jit, static_argnames="n_components")
def _reduce(gmm: "GaussianMixture", n_components: int) -> "GaussianMixture":
    k, d = gmm.means.shape
    parts = _Parts(gmm.weights, gmm.means, inverse_lower(gmm.structure.factors(k, d)))
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
    factors = inverse_lower(parts.roots)
    structure = structure_named("full").from_precisions_cholesky(factors.mT)
    some = parts.weights > 0
    logits = jnp.where(some, jnp.log(jnp.where(some, parts.weights, 1)), -jnp.inf)
    return type(gmm)(logits, parts.means, structure)


def _merge(one: _Parts, other: _Parts) -> _Parts:
    """The two components as one of the same mean and covariance."""
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

    It bounds the Kullback-Leibler divergence of the merged mixture from the one before.
    """

    def weighted(part: _Parts) -> Array:
        return part.weights * jnp.sum(jnp.log(jnp.diagonal(part.roots, axis1=-2, axis2=-1)), -1)

    merged = jax.vmap(_merge, in_axes=(None, 0))(one, others)
    return weighted(merged) - weighted(one) - weighted(others)
