"""The three ways to a log-density, and where each one is accurate enough.

- *Packed*: a sum of products z_i Λ_ij z_j. They cancel where the data reach far in units of a
  component's width. The rounding error was measured at up to 0.25·ε·S in the mean over samples and
  up to 2·ε·S at any one, with S = Σ|Λ_ij|e_i e_j and e the `reach` of the samples.
- *Centred*: y = W_kz − W_kμ_k, where the one product Wz serves all components. This cancels once,
  not twice: √S stands for S.
- *Whitened*: y = W_k(z − μ_k), subtracted first, as accurate as the data are.

So S is bounded in each chunk of rows and the decision is taken chunk by chunk, at run time; it
costs next to nothing. Some components may be too narrow in data that is packed for the others:
those are whitened at the rows near them, see `_near`.
"""

from typing import TYPE_CHECKING, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from ._chunks import rows_per_chunk

if TYPE_CHECKING:
    from ._mixture import GaussianMixture

# The ways, the faster the larger.
WHITENED, CENTRED, PACKED = 0, 1, 2

# The largest S at which moments are packed, and the largest √S at which y is centred. In float32
# it holds the error of a log-density under 1e-4 nats in the mean and 1e-3 at any one sample; in
# float64 under 1e-10.
LIMIT = {jnp.dtype("float32"): 3.3e3, jnp.dtype("float64"): 1e5}

# The largest ε·S at which a packed log-density, though not accurate, tells where a component has no
# share: it is off by less than a nat.
_TELLING = 0.1


def _telling(dtype: jnp.dtype) -> float:
    return _TELLING / float(jnp.finfo(dtype).eps)


# Up to this many features for each of K·d, by the number of products that read them, packing is
# worth it.
_WORTH = {1: 1.1, 2: 1.6}

# From so many numbers of x for each packed feature on, by the number of products, the coefficients
# are worth it.
_ENOUGH = {1: 48, 2: 36}

# The most rows of one chunk on a CPU, where reductions over components wait for memory if rows are
# longer. A fit of d = 8, K = 3 took 2.5 times as long without, one of d = 2, K = 64 four times.
_MOST_ROWS = 8192

# Below this many multiplications a pass, in the dearer of the ways, whitening is as fast and
# compiles sooner.
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
    apart: bool = eqx.field(static=True)
    """Whether narrow components may be whitened apart, where all else is packed"""

    @classmethod
    def of(cls, gmm: "GaussianMixture", x: Float[Array, "n d"], products: int) -> Self:
        """The plan for a pass in which `products` matrix products read the features."""
        n, (k, d), itemsize = x.shape[0], gmm.means.shape, x.dtype.itemsize
        features = jax.eval_shape(
            lambda structure, x: structure.packed_features(x[:1]), gmm.structure, x
        )
        width = features.shape[0]
        # What closes the structure under linear maps is a matrix, which whitens d by d.
        whitening = d * d if gmm.structure.closed_under_linear_maps else d
        # The features cost as much however few the components are that share them, and the
        # coefficients however few the rows. The constants are from timings at d = 2 to 64.
        if n * k * max(width, whitening) < _SMALLEST:
            fastest = WHITENED
        elif n * d < _ENOUGH[products] * width:
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
        most = _MOST_ROWS if products == 2 else None
        centred_rows = rows_per_chunk(n, columns, itemsize, most=most)
        # Products read the features along their rows, so that more of them may stand side by side.
        packed_rows = rows_per_chunk(n, (width + k) // 2, itemsize, most=_MOST_ROWS)
        rows = (whitened_rows, centred_rows, packed_rows)[fastest]
        apart = fastest == PACKED and gmm.structure.separable
        return cls(rows, whitened_rows, centred_rows, fastest, apart)


def reach(z: Float[Array, "r d"]) -> Float[Array, " d"]:
    """How far the rows of a chunk lie from the origin, feature by feature.

    The root mean square, which sets the mean error, or a quarter of the largest, so that a few
    far samples count as well.
    """
    largest = jnp.max(jnp.abs(z), axis=0)
    return jnp.maximum(jnp.sqrt(jnp.mean(z**2, axis=0)), largest / 4)


class Route(eqx.Module):
    """The way taken in each chunk, and the components whitened apart where it is packed."""

    ways: Int[Array, " c"]
    slower: Int[Array, " c"]
    """The ways where no component is whitened apart"""
    size: Float[Array, " k"]
    """The largest S of each component in a chunk that is packed"""

    @classmethod
    def whitened(cls, chunks: int, means: Float[Array, "k d"]) -> Self:
        """The route that is always accurate."""
        ways = jnp.full(chunks, WHITENED, jnp.int32)
        return cls(ways, ways, jnp.zeros_like(means[:, 0]))

    @classmethod
    def of(
        cls,
        seen: "GaussianMixture",
        reaches: Float[Array, "c d"],
        fastest: int,
        apart: bool | Bool[Array, ""],
    ) -> Self:
        """The fastest accurate route for a mixture, as seen in its frame. NaN is whitened.

        **Arguments:**

        - `apart`: whether narrow components may be whitened apart, where all else is packed.
        """
        seen, reaches = jax.lax.stop_gradient((seen, reaches))
        if fastest == CENTRED:
            size = seen.structure.cancellation_at_most(reaches, seen.means)
        else:
            size = seen.structure.cancellation(reaches, seen.means)
        # A component of weight zero takes no part, however narrow it is.
        size = jnp.where(seen.logits == -jnp.inf, 0, size)
        limit = LIMIT[size.dtype]
        fine = size <= limit
        slower = jnp.where(jnp.max(size, axis=1) <= limit**2, CENTRED, WHITENED)
        slower = jnp.where(jnp.all(fine, axis=1), PACKED, slower)
        slower = everywhere(jnp.minimum(slower, fastest).astype(jnp.int32))
        few = jnp.sum(~(size <= _telling(size.dtype)), axis=1) <= seen.n_components // 8
        few = few & jnp.all(jnp.isfinite(size), axis=1) & apart
        ways = everywhere(jnp.where(few, PACKED, slower).astype(jnp.int32))
        return cls(ways, slower, jnp.max(jnp.where((ways == PACKED)[:, None], size, 0), axis=0))

    @property
    def narrow(self) -> Bool[Array, " k"]:
        """The components too narrow for a chunk that is packed: whitened apart."""
        return self.size > LIMIT[self.size.dtype]

    @property
    def told(self) -> Float[Array, " k"]:
        """The part of a packed distance that is small enough to tell where a share is."""
        telling = _telling(self.size.dtype)
        return jnp.where(self.size > telling, telling / self.size, 1)

    def error(self, wanted: Self) -> Float[Array, ""]:
        """What a step on this route may have cost, where `wanted` is what its outcome asks for.

        The largest relative error of a covariance, ε·S of a component that was packed and is too
        narrow now; infinite where a chunk went a way that is too fast, zero where nothing was lost.
        """
        missing = jnp.where(wanted.narrow & ~self.narrow & self.any_packed, wanted.size, 0)
        lost = jnp.max(missing) * float(jnp.finfo(missing.dtype).eps)
        return jnp.where(jnp.any(self.ways > wanted.ways), jnp.inf, lost)

    def both(self, other: Self) -> Self:
        """A route that suffices for both."""
        ways = jnp.minimum(self.ways, other.ways)
        slower = jnp.minimum(self.slower, other.slower)
        return type(self)(ways, slower, jnp.maximum(self.size, other.size))

    def together(self) -> Self:
        """The route on which no component is whitened apart."""
        return type(self)(self.slower, self.slower, jnp.zeros_like(self.size))

    @property
    def any_packed(self) -> Bool[Array, ""]:
        """Whether a chunk is packed."""
        return jnp.any(self.ways == PACKED)
