"""Which ways a pass over rows may go, the fastest first, and the choice between them.

The way is a static argument. Python chooses it where it sees values: a pass says whether it was
accurate, and if not, the next slower way is compiled and taken. Inside a transformation one
program holds the fastest way and the one that is always accurate.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from .._chunks import rows_per_chunk
from .._components import AbstractComponents
from .centred import Centred
from .form import Form
from .low_rank import LowRank
from .packed import Packed
from .way import AbstractWay
from .whitened import Whitened

_Result = TypeVar("_Result")

# Multiplications of a pass, in the dearest way, below which whitening is as fast and compiles
# sooner.
_SMALLEST = 2**20
# By the number of products that read the features: up to how many features for each of K·d packing
# is worth it, and from how many numbers of x for each feature on the coefficients are. From timings
# at d = 2 to 64.
_WORTH = {1: 1.1, 2: 1.6}
_ENOUGH = {1: 12, 2: 36}


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Ways to go, the fastest first."""

    ways: tuple[Any, ...]
    first: int = 0
    """The number of the first way"""
    columns: tuple[int, ...] = ()
    """Numbers of working set for each row, of each way"""

    @classmethod
    def of(cls, gmm: AbstractComponents, n: int, products: int) -> "Ladder":
        """The ways for n rows, in a pass in which `products` matrix products read the features."""
        structure = type(gmm.structure)
        if structure.n_latent is not None:
            k, d = gmm.means.shape
            return Ladder((LowRank,), 0, (LowRank.columns(k, d, structure.n_latent),))
        return _ladder(*gmm.means.shape, n, structure.axis_aligned, structure.shared, products)

    @property
    def last(self) -> int:
        """The number of the last way."""
        return self.first + len(self.ways) - 1

    @property
    def may_fail(self) -> bool:
        """Whether a pass may find that it was not accurate."""
        return len(self.ways) > 1 or not self.ways[len(self.ways) - 1].sure

    def only(self, number: int) -> "Ladder":
        """This way alone."""
        return _only(self, number)

    def ends(self) -> Self:
        """The fastest way and the one that is always accurate."""
        if len(self.ways) <= 2:
            return self
        return type(self)(self.ways[::2], self.first, self.columns[::2])

    def rows(self, way: type[AbstractWay], n: int, dtype: Any) -> int:
        """How many of n rows to take at once."""
        columns = self.columns[self.ways.index(way)]
        return rows_per_chunk(n, columns, jnp.dtype(dtype).itemsize, way.fewest_rows)

    def choose(self, form: Form, reach: Float[Array, " d"]) -> Int[Array, ""]:
        """The number of the first of the two ends that is accurate."""
        if len(self.ways) == 1:
            return jnp.full((), self.first, jnp.int32)
        size = self.ways[0].size(*jax.lax.stop_gradient((form, reach)))
        return jnp.where(size <= 1, self.first, self.last).astype(jnp.int32)

    def switch(self, number: Int[Array, ""], pass_by: Callable[[Any], _Result]) -> _Result:
        """`pass_by` the way of this number."""
        if len(self.ways) == 1:
            return pass_by(self.ways[0])
        branches = [lambda way=way: pass_by(way) for way in self.ways]
        return jax.lax.switch(_everywhere(number - self.first), branches)


# Cached: at few rows a density is over in less time than these take.


@functools.lru_cache(maxsize=1024)
def _ladder(k: int, d: int, n: int, axis_aligned: bool, shared: bool, products: int) -> Ladder:
    shared = shared and k > 1
    width = d * (d + 1) // 2 + d + 1
    if shared or axis_aligned:
        width = d + 1 if shared else 2 * d + 1
    ways: tuple[type[AbstractWay], ...] = (Whitened,) if axis_aligned else (Centred, Whitened)
    small = n * k * max(width, d if axis_aligned else d * d) < _SMALLEST
    few = n * d < _ENOUGH[products] * width
    if small or (few and products == 1):
        ways = (Whitened,)
    elif not few and width <= _WORTH[products] * k * d:
        ways = (Packed, *ways)
    return Ladder(ways, 0, tuple(way.columns(k, d, width) for way in ways))


@functools.lru_cache(maxsize=1024)
def _only(ladder: Ladder, number: int) -> Ladder:
    at = number - ladder.first
    return Ladder(ladder.ways[at : at + 1], number, ladder.columns[at : at + 1])


@custom_vmap
def _everywhere(number: Array) -> Array:
    """The number itself; in a batch, the one of the slowest way, which is accurate for all of it.

    A `lax.switch` on a batched index computes all branches. One index for the whole batch keeps
    it a branch.
    """
    return number


@_everywhere.def_vmap
def _everywhere_batched(axis_size, in_batched, number):
    del axis_size
    return _everywhere(jnp.max(number, axis=0) if in_batched[0] else number), False


def reach(z: Float[Array, "n d"], weights: Float[Array, " n"] | None = None) -> Float[Array, " d"]:
    """How far rows lie from the origin, feature by feature: (Σ w z⁴ / 3 Σ w)^¼.

    It is the deviation of normal data. The fourth power counts a group of few rows that lies far
    away, but one far row among many does not set the way for all.
    """
    return reach_of(*fourth_powers(z, weights))


def fourth_powers(
    z: Float[Array, "n d"], weights: Float[Array, " n"] | None
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """Σ w z⁴ and Σ w, of which `reach_of` makes the reach."""
    fourth = jnp.square(jnp.square(z))
    if weights is None:
        return jnp.sum(fourth, axis=0), jnp.asarray(z.shape[0], z.dtype)
    return weights @ fourth, jnp.sum(weights)


def reach_of(fourth: Float[Array, " d"], count: Float[Array, ""]) -> Float[Array, " d"]:
    """(Σ w z⁴ / 3 Σ w)^¼"""
    return jnp.sqrt(jnp.sqrt(fourth / (3 * count)))
