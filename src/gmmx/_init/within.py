"""Coordinates in which clusters are about round, before any cluster is known."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._linalg import einsum, whiten_by
from . import kmeans

_PAIRS = 2**12
_STEPS = 12
# The part of all pairs that counts as near, times K: fewer than lie within K equal clusters.
_SHARE = 0.6


def rounded(
    z: Float[Array, "n d"],
    weights: Float[Array, " n"],
    k: int | Int[Array, ""],
    key: PRNGKeyArray,
) -> Float[Array, "n d"]:
    """The rows in units of the covariance that near pairs of them have.

    Of two rows of one cluster the difference has twice the cluster's covariance. Which pairs are
    near, and their covariance, are found in turn (Art, Gnanadesikan & Kettenring 1982). As z is
    white, nothing depends on a linear map of the data.

    **Arguments:**

    - `z`: white rows.
    - `k`: the number of clusters.
    """
    d = z.shape[1]
    heights = jax.random.uniform(key, (2, _PAIRS), z.dtype)
    v = z[kmeans.draw(weights, heights[0])] - z[kmeans.draw(weights, heights[1])]
    # Equal rows say nothing of a covariance.
    apart = jnp.any(v != 0, axis=1)
    count = jnp.maximum(int(_PAIRS * _SHARE) // k, min(_PAIRS, 4 * d))
    little = 1e-4 * jnp.eye(d, dtype=z.dtype)

    def step(_: Array, covariance: Float[Array, "d d"]) -> Float[Array, "d d"]:
        distances = jnp.sum(whiten_by(covariance, v.T) ** 2, axis=0)
        distances = jnp.where(apart, distances, jnp.inf)
        near = apart & (distances <= jnp.sort(distances)[count - 1])
        found = einsum("nd,n,ne->de", v, near.astype(v.dtype), v)
        # Its size says nothing of which pairs are near.
        return found * (d / jnp.maximum(jnp.trace(found), jnp.finfo(v.dtype).tiny)) + little

    covariance = jax.lax.fori_loop(0, _STEPS, step, jnp.eye(d, dtype=z.dtype))
    return whiten_by(covariance, z.T).T
