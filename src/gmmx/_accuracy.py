"""The three ways to a log-density, and where each one is accurate enough.

- *Packed*: a sum of products z_i Λ_ij z_j. They cancel where the data reach far in units of a
  component's width. The rounding error was measured at up to 0.25·ε·S in the mean over samples and
  up to 2·ε·S at any one, with S = Σ|Λ_ij|e_i e_j and e the `reach` of the samples.
- *Centred*: y = W_kz − W_kμ_k, where the one product Wz serves all components. This cancels once,
  not twice: √S stands for S.
- *Whitened*: y = W_k(z − μ_k), subtracted first, as accurate as the data are.

So S is bounded in each chunk of rows and the decision is taken chunk by chunk, at run time; it
costs next to nothing. A few components may be too narrow in data that is packed for the others:
those are whitened by themselves.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._chunks import rows_per_chunk, worth_keeping

if TYPE_CHECKING:
    from ._mixture import GaussianMixture

# The ways, the faster the larger.
WHITENED, CENTRED, PACKED = 0, 1, 2

# The largest S at which moments are packed, and the largest √S at which y is centred. In float32
# it holds the error of a log-density under 1e-4 nats in the mean and 1e-3 at any one sample; in
# float64 under 1e-10.
LIMIT = {jnp.dtype("float32"): 3.3e3, jnp.dtype("float64"): 1e5}

# Up to this many features for each of K·d, by the number of products that read them, packing is
# worth it.
_WORTH = {1: 1.1, 2: 1.6}

# From so many rows a feature on, by that number, the coefficients are worth it.
_ENOUGH = {1: 24, 2: 16}

# Below this many multiplications a pass, whitening is as fast and compiles sooner.
_SMALLEST = 2**20


@custom_vmap
def everywhere(way: Array) -> Array:
    """The way itself; in a batch, the one that is accurate for all of it.

    A `lax.switch` on a batched index becomes a select that computes all branches. One index for
    the whole batch keeps it a branch.
    """
    return way


@everywhere.def_vmap
def _everywhere_batched(axis_size, in_batched, way):
    del axis_size
    return everywhere(jnp.min(way, axis=0) if in_batched[0] else way), False


class Plan(eqx.Module):
    """How a pass over n rows is made: the chunks, and whether packed moments are an option."""

    rows: int = eqx.field(static=True)
    whitened_rows: int = eqx.field(static=True)
    centred_rows: int = eqx.field(static=True)
    fastest: int = eqx.field(static=True)
    """The fastest of the ways that is worth its preparation"""
    slots: int = eqx.field(static=True)
    """How many components may be whitened where the others are packed"""
    keeps: bool = eqx.field(static=True)
    """Whether the rows in their frame, and the features of those packed, fit into memory"""

    @classmethod
    def of(cls, gmm: "GaussianMixture", x: Float[Array, "n d"], products: int) -> Self:
        """The plan for a pass in which `products` matrix products read the features."""
        n, (k, d), itemsize = x.shape[0], gmm.means.shape, x.dtype.itemsize
        features = jax.eval_shape(
            lambda structure, x: structure.packed_features(x[:1]), gmm.structure, x
        )
        width = features.shape[1]
        # The features cost as much however few the components are that share them, and the
        # coefficients however few the rows. The constants are from timings at d = 2 to 64.
        if n * k * width < _SMALLEST:
            fastest = WHITENED
        elif n < _ENOUGH[products] * d:
            fastest = WHITENED if products == 1 else CENTRED
        elif width > _WORTH[products] * k * d:
            fastest = CENTRED
        else:
            fastest = PACKED
        # Both x − μ_k and y are held.
        whitened_rows = rows_per_chunk(n, 2 * k * d, itemsize, least=64)
        # Moments need all of y at once beside the rows, as they came and in their frame; distances
        # half of it and some of the other half.
        columns = (k + 2) * d if products == 2 else -(-5 * k * d // 8)
        centred_rows = rows_per_chunk(n, columns, itemsize)
        kept = {WHITENED: 0, CENTRED: d, PACKED: width + d}[fastest]
        keeps = products == 2 and worth_keeping(n, kept, itemsize)
        # Kept features are only copied into the cache, where larger chunks are faster.
        packed_rows = rows_per_chunk(n, width // 3 + k if keeps else width + k, itemsize)
        rows = (whitened_rows, centred_rows, packed_rows)[fastest]
        slots = k // 8 if fastest == PACKED and gmm.structure.separable else 0
        return cls(rows, whitened_rows, centred_rows, fastest, slots, keeps)


def reach(z: Float[Array, "r d"]) -> Float[Array, " d"]:
    """How far the rows of a chunk lie from the origin, feature by feature.

    The root mean square, which sets the mean error, or a quarter of the largest, so that a few
    far samples count as well.
    """
    largest = jnp.max(jnp.abs(z), axis=0)
    return jnp.maximum(jnp.sqrt(jnp.mean(z**2, axis=0)), largest / 4)


class Route(eqx.Module):
    """The way taken in each chunk, and the components that are whitened where others are packed."""

    ways: Int[Array, " c"]
    narrow: Bool[Array, " k"]
    slots: int = eqx.field(static=True)
    """The most components that may be narrow: more are cheaper whitened together with the rest"""

    @classmethod
    def whitened(cls, chunks: int, components: int) -> Self:
        """The route that is always accurate."""
        return cls(jnp.full(chunks, WHITENED, jnp.int32), jnp.zeros(components, bool), 0)

    @classmethod
    def of(cls, seen: "GaussianMixture", reaches: Float[Array, "c d"], plan: Plan) -> Self:
        """The fastest accurate route for a mixture, as seen in its frame. NaN is whitened."""
        seen, reaches = jax.lax.stop_gradient((seen, reaches))
        if plan.fastest == CENTRED:
            size = seen.structure.cancellation_at_most(reaches, seen.means)
        else:
            size = seen.structure.cancellation(reaches, seen.means)
        # A component of weight zero takes no part, however narrow it is.
        size = jnp.where(seen.logits == -jnp.inf, 0, size)
        limit = LIMIT[reaches.dtype]
        fine = size <= limit
        narrow = ~jnp.all(fine, axis=0)
        few = jnp.sum(narrow) <= plan.slots
        way = jnp.where(jnp.max(size, axis=1) <= limit**2, CENTRED, WHITENED)
        way = jnp.where(few | jnp.all(fine, axis=1), PACKED, way)
        way = jnp.minimum(way, plan.fastest).astype(jnp.int32)
        return cls(everywhere(way), narrow & few, plan.slots)

    def suffices(self, wanted: Self) -> Bool[Array, ""]:
        """Whether this route is accurate where `wanted` is the fastest that is."""
        missing = self.any_packed & jnp.any(wanted.narrow & ~self.narrow)
        return ~(missing | jnp.any(self.ways > wanted.ways))

    def both(self, other: Self) -> Self:
        """A route that suffices for both."""
        narrow = self.narrow | other.narrow
        few = jnp.sum(narrow) <= self.slots
        ways = jnp.where(few, jnp.minimum(self.ways, other.ways), WHITENED)
        return type(self)(ways, narrow & few, self.slots)

    @property
    def any_packed(self) -> Bool[Array, ""]:
        """Whether a chunk is packed."""
        return jnp.any(self.ways == PACKED)

    def by_narrow(
        self, none: Callable[[], PyTree], some: Callable[[Int[Array, " m"]], PyTree]
    ) -> PyTree:
        """`none()`, or `some(components)` where there are narrow ones.

        They come in as few as hold them of 1, 4, 16 … slots, each a program of its own, since what
        is done for a slot that is free takes its time as well.
        """
        if self.slots == 0:
            return none()
        sizes = [4**i for i in range(self.slots.bit_length()) if 4**i < self.slots] + [self.slots]
        count = jnp.sum(self.narrow)
        # Under vmap the largest of the batch.
        spare = sum((count <= size).astype(jnp.int32) for size in (0, *sizes[:-1]))
        taken = len(sizes) - everywhere(spare)
        branches = [none, *(partial(some, self.slotted[:size]) for size in sizes)]
        return jax.lax.switch(taken, branches)

    @property
    def slotted(self) -> Int[Array, " m"]:
        """The narrow components, then K, which is none of them."""
        k = self.narrow.size
        return jnp.nonzero(self.narrow, size=self.slots, fill_value=k)[0]
