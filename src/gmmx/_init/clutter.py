"""Which rows belong to clusters, and which to a background, before anything is fitted."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._chunks import map_rows, rows_per_chunk
from .._linalg import einsum

# The neighbour whose distance says how densely a row lies.
_NEIGHBOUR = 10
_STEPS = 50
# Of more rows so many are drawn, and the start is made of those alone.
_ROWS = 2**13
# The least and the greatest share that a background starts with.
_SHARES = (0.01, 0.9)


def without_clutter(
    x: Float[Array, "n d"], weights: Float[Array, " n"], key: PRNGKeyArray
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """The weights of the rows, less what the background has of each; and its share of all rows.

    In a Poisson process of intensity λ the volume of the ball that reaches to the k-th neighbour
    has a gamma distribution of shape k and rate λ. Those of all rows are a mixture of two, for
    clusters and for the background, which EM finds (Byers & Raftery 1998).

    **Arguments:**

    - `x`: the rows, scaled so that distances in all features count alike.
    """
    draws = jnp.where(weights > 0, jax.random.uniform(key, weights.shape, weights.dtype), jnp.inf)
    drawn = jnp.argsort(draws)[:_ROWS]
    there = weights[drawn] > 0
    volume = x.shape[1] * jnp.log(_to_neighbour(x[drawn], there))
    clustered = jnp.where(there, _clustered(volume, there), 0)
    share = jnp.sum(clustered) / jnp.sum(there).astype(x.dtype)
    kept = jnp.zeros_like(weights).at[drawn].set(clustered * weights[drawn])
    return kept, jnp.clip(1 - share, *_SHARES)


def _to_neighbour(x: Float[Array, "n d"], there: Bool[Array, " n"]) -> Float[Array, " n"]:
    """The distance of each row to its k-th neighbour among those that are there."""
    n = len(x)
    squares = jnp.sum(x**2, axis=1)
    others = jnp.where(there, squares, jnp.inf)
    # The first neighbour of a row is the row itself.
    number = min(_NEIGHBOUR + 1, n)

    def chunk(rows: tuple[Array, Array]) -> Float[Array, " r"]:
        own, square = rows
        apart = square[:, None] + others - 2 * einsum("rd,nd->rn", own, x)
        return -jax.lax.top_k(-apart, number)[0][:, -1]

    found = map_rows(chunk, (x, squares), rows_per_chunk(n, 2 * n, x.dtype.itemsize))
    return jnp.sqrt(jnp.maximum(found, float(jnp.finfo(x.dtype).eps)))


def _clustered(log_volume: Float[Array, " n"], there: Bool[Array, " n"]) -> Float[Array, " n"]:
    """How probably each row belongs to a cluster."""
    ordered, count = jnp.sort(jnp.where(there, log_volume, jnp.inf)), jnp.sum(there)
    # In units of the median, so that nothing overflows.
    volume = jnp.exp(jnp.clip(log_volume - ordered[count // 2], -80, 80))
    near, far = (jnp.exp(ordered[part] - ordered[count // 2])
                 for part in (count // 10, 9 * count // 10))  # fmt: skip

    def shares(rates: Array, odds: Array) -> Array:
        dense, rare = rates
        logit = odds + _NEIGHBOUR * (jnp.log(dense) - jnp.log(rare)) - (dense - rare) * volume
        return jax.nn.sigmoid(logit)

    def step(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        share = jnp.where(there, shares(*carry), 0)
        each = jnp.stack([share, jnp.where(there, 1 - share, 0)])
        total = jnp.maximum(jnp.sum(each, axis=1), 1)
        rates = _NEIGHBOUR * total / jnp.maximum(each @ volume, float(jnp.finfo(volume.dtype).tiny))
        return rates, jnp.log(total[0]) - jnp.log(total[1])

    begin = _NEIGHBOUR / jnp.stack([near, far]), jnp.zeros_like(near)
    return shares(*jax.lax.fori_loop(0, _STEPS, step, begin))
