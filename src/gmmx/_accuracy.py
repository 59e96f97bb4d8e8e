"""When packed moments are accurate enough, and where the components have to be whitened instead.

A packed log-density is a sum of products z_i Λ_ij z_j. They cancel where the data reach far in
units of a component's width, and then the rounding error is no longer small. It was measured at
up to 0.25·ε·Σ|Λ_ij|e_i e_j in the mean over samples and up to 2·ε·Σ|Λ_ij|e_i e_j at any one, with
e the `reach` of the samples. So the sum is bounded in each chunk of rows and the decision is taken
chunk by chunk, at run time; it costs next to nothing.
"""

from typing import TYPE_CHECKING, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

from ._chunks import rows_per_chunk

if TYPE_CHECKING:
    from ._mixture import GaussianMixture

# The largest Σ|Λ_ij|e_i e_j at which packed moments are used. In float32 it holds the error of a
# log-density under 1e-4 nats in the mean and 1e-3 at any one sample; in float64 under 1e-10.
LIMIT = {jnp.dtype("float32"): 3.3e3, jnp.dtype("float64"): 1e5}

# Below this many multiplications a pass, whitening is as fast and compiles sooner.
_SMALLEST = 2**20


@custom_vmap
def everywhere(condition: Array) -> Array:
    """The condition itself; in a batch, whether it holds for all of it.

    A `lax.cond` on a batched predicate becomes a select that computes both branches. One
    predicate for the whole batch keeps it a branch.
    """
    return condition


@everywhere.def_vmap
def _everywhere_batched(axis_size, in_batched, condition):
    del axis_size
    return everywhere(jnp.all(condition, axis=0) if in_batched[0] else condition), False


class Plan(eqx.Module):
    """How a pass over n rows is made: the chunks, and whether packed moments are an option."""

    rows: int = eqx.field(static=True)
    whitened_rows: int = eqx.field(static=True)
    packable: bool = eqx.field(static=True)

    @classmethod
    def of(cls, gmm: "GaussianMixture", x: Float[Array, "n d"], products: int) -> Self:
        """The plan for a pass in which `products` matrix products read the features."""
        n, (k, d), itemsize = x.shape[0], gmm.means.shape, x.dtype.itemsize
        features = jax.eval_shape(
            lambda s, m, x: s.packed_features(s.packed_coefficients(m, m[:, 0]), x[:1]),
            gmm.structure, gmm.means, x,
        )  # fmt: skip
        width = sum(leaf.shape[1] for leaf in jax.tree.leaves(features))
        # The features cost as much however few the components are that share them, and the
        # coefficients however few the rows. The constants are from timings at d = 2 to 64.
        packable = n * k * width >= _SMALLEST and n >= 16 * d and width <= 0.7 * k * d * products**2
        # Whitened rows need x − μ_k, y and z_k·y.
        whitened_rows = rows_per_chunk(n, 3 * k * d, itemsize)
        rows = rows_per_chunk(n, width + k, itemsize) if packable else whitened_rows
        return cls(rows, whitened_rows, packable)


def reach(z: Float[Array, "r d"]) -> Float[Array, " d"]:
    """How far the rows of a chunk lie from the origin, feature by feature.

    The root mean square, which sets the mean error, or a quarter of the largest, so that a few
    far samples count as well.
    """
    largest = jnp.max(jnp.abs(z), axis=0)
    return jnp.maximum(jnp.sqrt(jnp.mean(z**2, axis=0)), largest / 4)


def packed_is_accurate(seen: "GaussianMixture", reaches: Float[Array, "c d"]) -> Bool[Array, " c"]:
    """Whether packed moments of a mixture, as seen in its frame, are accurate in these chunks.

    NaN anywhere answers no.
    """
    seen, reaches = jax.lax.stop_gradient((seen, reaches))
    cancellation = seen.structure.cancellation(reaches, seen.means)
    # A component of weight zero takes no part, however narrow it is.
    counted = jnp.where(seen.logits == -jnp.inf, 0, cancellation)
    return everywhere(jnp.max(counted, axis=1) <= LIMIT[reaches.dtype])
