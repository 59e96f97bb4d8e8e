"""The rows near narrow components, which are whitened there, apart from all else that is packed.

A packed log-density of a narrow component is off by a part of a nat. That is too much where the
component has a share in a row, but enough to tell where it has none: more than `margin` nats below
the largest in the row, it adds nothing that its dtype could hold. A narrow component is near few
rows, so the pairs of a row and a component near it are listed, in tiles of rows of one component,
and whitened as a batch of small products.

A component may be so narrow that a packed log-density tells nothing. Then a part of the distance is
taken for all of it, so small a part that it tells, and rows that are not near count as near.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, UInt32

from ._accuracy import Route, everywhere
from ._linalg import einsum
from ._reductions import largest

if TYPE_CHECKING:
    from ._covariance.base import AbstractCovariance
    from ._mixture import GaussianMixture

# Rows of a tile: narrow components are near few rows.
_TILE = 16

_WORD = 32


def margin(dtype: jnp.dtype) -> float:
    """How many nats below a row's largest log-joint a component has no share in it."""
    return 4 - math.log(jnp.finfo(dtype).eps)


class Near(eqx.Module):
    """Which rows are near which narrow components."""

    bits: UInt32[Array, "k b"]
    """A bit a row"""
    n_rows: int = eqx.field(static=True)

    @classmethod
    def of(cls, log_joint: Float[Array, "k n"], route: Route) -> Self:
        """The rows near the narrow components, by what packed log-joints tell."""
        # Where a part of the distance is taken, a log-joint may be the largest without being it.
        known = jnp.where(route.told[:, None] < 1, -jnp.inf, log_joint)
        top = largest(known, axis=0)
        near = route.narrow[:, None] & (log_joint >= top - margin(log_joint.dtype))
        k, n = near.shape
        near = jnp.pad(near, ((0, 0), (0, -n % _WORD))).reshape(k, -1, _WORD)
        bit = jnp.left_shift(jnp.uint32(1), jnp.arange(_WORD, dtype=jnp.uint32))
        return cls(jnp.sum(jnp.where(near, bit, 0), axis=2, dtype=jnp.uint32), n)

    def n_tiles(self) -> Int[Array, ""]:
        """How many tiles hold them all."""
        return jnp.sum(-(-jnp.sum(_count(self.bits), axis=1) // _TILE))

    def tiles(self, size: int) -> "Tiles":
        """All of them, in so many tiles, of which some may stay free."""
        k, blocks = self.bits.shape
        count = _count(self.bits)
        upto = jnp.cumsum(count, axis=1)
        own = -(-upto[:, -1] // _TILE)
        ends = jnp.cumsum(own)
        tile = jnp.arange(size, dtype=jnp.int32)
        component = jnp.sum(ends[:, None] <= tile, axis=0, dtype=jnp.int32)
        place = tile - jnp.take(ends - own, component, mode="clip")
        rank = place[:, None] * _TILE + jnp.arange(_TILE, dtype=jnp.int32)
        # The word of a rank is the first one up to which there are more; found by halves.
        clipped = jnp.minimum(component, k - 1)[:, None]
        block = jnp.zeros_like(rank)
        for step in reversed([2**i for i in range(blocks.bit_length())]):
            last = block + step - 1
            beyond = (last < blocks) & (upto[clipped, jnp.minimum(last, blocks - 1)] <= rank)
            block = block + jnp.where(beyond, step, 0)
        at = clipped, jnp.minimum(block, blocks - 1)
        row = block * _WORD + _nth_bit(self.bits[at], rank - (upto - count)[at])
        free = (block == blocks) | (component == k)[:, None]
        return Tiles(component, jnp.where(free, self.n_rows, row))


class Tiles(eqx.Module):
    """Pairs of a component and a row, in tiles of one component each."""

    component: Int[Array, " t"]
    """K where the tile is free"""
    row: Int[Array, "t r"]
    """n where the place is free"""

    def rows(self, x: Float[Array, "n d"]) -> Float[Array, "t r d"]:
        """The rows of x; any row where the place is free."""
        return jnp.take(x, self.row, axis=0, mode="clip")

    def whiten(self, gmm: "GaussianMixture", rows: Float[Array, "t r d"]) -> Float[Array, "t d r"]:
        """y = W_k(x − μ_k)."""
        own, means = gmm.structure.take(self.component), self.of_component(gmm.means)
        each = jax.vmap(lambda own, mean, x: own.whiten(x, mean)[0])
        return each(_each(own), means[:, None], rows)

    def moments(
        self,
        gmm: "GaussianMixture",
        rows: Float[Array, "t r d"],
        y: Float[Array, "t d r"],
        z: Float[Array, "t r"],
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Float[Array, "k ..."]]:
        """(Σ z, Σ z(x − μ_k), the scatter in the structure's frame) of each component."""
        own, means = gmm.structure.take(self.component), self.of_component(gmm.means)
        first = einsum("tr,trd->td", z, rows - means[:, None])
        each = jax.vmap(lambda own, y, z: own.scatter(y, z)[0])
        second = each(_each(own), y[:, None], z[:, None])

        def total(of_tiles: Array) -> Array:
            sums = jnp.zeros((gmm.n_components, *of_tiles.shape[1:]), of_tiles.dtype)
            return sums.at[self.component].add(of_tiles, mode="drop")

        return total(jnp.sum(z, axis=1)), total(first), total(second)

    def of_component(self, values: Float[Array, "k ..."]) -> Float[Array, "t ..."]:
        """What is known of each component, for each tile."""
        return jnp.take(values, self.component, axis=0, mode="clip")

    def get(self, pairs: Float[Array, "k n"]) -> Float[Array, "t r"]:
        """The values of the pairs; zero where the place is free."""
        return pairs.at[self.component[:, None], self.row].get(mode="fill", fill_value=0)

    def put(self, values: Float[Array, "t r"], pairs: Float[Array, "k n"]) -> Float[Array, "k n"]:
        """The array of all pairs with these values in it."""
        return pairs.at[self.component[:, None], self.row].set(values, mode="drop")


def by_near(
    log_joint: Float[Array, "k n"],
    constant: Float[Array, " k"],
    route: Route,
    none: Callable[[], PyTree],
    some: Callable[[Tiles, Float[Array, "k n"]], PyTree],
    crowded: Callable[[], PyTree],
) -> PyTree:
    """`none()` where no component is narrow, else `some(tiles, log_joint)`.

    The tiles are of the rows near narrow components. Elsewhere the log-joints say that these have
    no share. Or `crowded()`, where so many rows are near that nothing is gained.

    **Arguments:**

    - `log_joint`: packed; and `constant`, what they are where the distance is zero.
    """

    def told() -> Array:
        part, centre = route.told[:, None], constant[:, None]
        return jnp.where(part < 1, centre + part * (log_joint - centre), log_joint)

    # Under vmap one way for all of the batch, see `everywhere`.
    def most(number: Array) -> Array:
        return -everywhere(-number.astype(jnp.int32))

    # In the smaller of two sizes that holds them, each a program of its own, since what is done for
    # a free tile takes its time as well. The larger one has room for each row once.
    k, n = log_joint.shape
    sizes = [2 * k, 2 * k + -(-n // _TILE)]

    def any_of_them() -> PyTree:
        near = Near.of(told(), route)
        needed = near.n_tiles()
        place = jnp.sum(needed > jnp.asarray(sizes))
        those = [lambda size=size: some(near.tiles(size), told()) for size in sizes]
        return jax.lax.switch(most(place), [*those, crowded])

    return jax.lax.cond(most(jnp.any(route.narrow)) > 0, any_of_them, none)


def _each(structure: "AbstractCovariance") -> "AbstractCovariance":
    """The structure of many components as a batch of structures of one."""
    return jax.tree.map(lambda leaf: leaf[:, None], structure)


def _count(bits: UInt32[Array, "*shape"]) -> Int[Array, "*shape"]:
    return jax.lax.population_count(bits).astype(jnp.int32)


def _nth_bit(word: UInt32[Array, "*shape"], n: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """The position of the n-th bit that is set, counted from zero; by halves."""
    position = jnp.zeros_like(n)
    for width in (16, 8, 4, 2, 1):
        low = _count((word >> position.astype(jnp.uint32)) & jnp.uint32(2**width - 1))
        beyond = n >= low
        position, n = position + jnp.where(beyond, width, 0), n - jnp.where(beyond, low, 0)
    return position
