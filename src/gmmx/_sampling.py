"""Draws from a mixture."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._chunks import map_rows, rows_per_chunk
from ._components import AbstractComponents
from ._covariance.low_rank import AbstractLowRank
from ._linalg import einsum, inverse_lower


def draw(
    gmm: AbstractComponents, n_samples: int, key: PRNGKeyArray
) -> tuple[Float[Array, "n d"], Int[Array, " n"]]:
    """Draws and the components that they are from."""
    label_key, noise_key = jax.random.split(key)
    shape = (n_samples, gmm.n_features + (gmm.structure.n_latent or 0))
    # By the sums of the weights: Gumbel's trick would hold n × K numbers.
    heights = jnp.cumsum(jax.lax.stop_gradient(gmm.weights))
    uniform = jax.random.uniform(label_key, (n_samples,), gmm.dtype)
    labels = jnp.searchsorted(heights / heights[-1], uniform, side="right")
    noise = jax.random.normal(noise_key, shape, gmm.dtype)
    return _place(gmm, labels, noise), labels


@jax.jit
def _place(
    gmm: AbstractComponents, labels: Int[Array, " n"], noise: Float[Array, "n q"]
) -> Float[Array, "n d"]:
    """μ_k + W_k⁻¹ε for each draw, component by component: no n × d × d array of factors."""
    if isinstance(gmm.structure, AbstractLowRank):
        return gmm.means[labels] + gmm.structure.place(noise, labels)
    roots = inverse_lower(gmm.dense_factors())

    def place(part: tuple[Array, Array]) -> Array:
        labels, noise = part

        def add(k: Array, x: Array) -> Array:
            return jnp.where((labels == k)[:, None], einsum("nd,ed->ne", noise, roots[k]), x)

        scaled = jax.lax.fori_loop(0, gmm.n_components, add, jnp.zeros_like(noise))
        return gmm.means[labels] + scaled

    n, d = noise.shape
    return map_rows(place, (labels, noise), rows_per_chunk(n, 3 * d, noise.dtype.itemsize))
