"""Squared extrapolation of EM (Varadhan & Roland 2008), in unconstrained coordinates.

Two EM steps from θ₀, r = θ₁ − θ₀ and v = (θ₂ − θ₁) − r, say how slowly EM turns:

    θ' = θ₀ + 2ar + a²v,  a = ‖r‖/‖v‖ ≥ 1,

where a = 1 is θ₂ itself. The model that is evaluated after θ₁ is θ' at once, so a turn costs two
passes over the data. Where the likelihood is less than that of θ₁, EM goes on from θ₁ with shorter
leaps.
"""

import dataclasses
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._abstract_mixture import AbstractMixture
from .frozen import keep, split
from .standardise import Standardisation
from .state import difference, squared_norm, where

# By how much the bound on a grows, and shrinks.
_FACTOR = 4


class Squarem(eqx.Module):
    """What is remembered from step to step."""

    anchor: AbstractMixture
    """θ₀"""
    longest: Float[Array, ""]
    """The bound on a"""
    leaping: Bool[Array, ""]
    """Whether the model in hand was extrapolated"""
    slowness: Float[Array, ""]
    """The ratio by which the gains of EM fall, as the last leap found it"""

    @classmethod
    def begin(cls, gmm: AbstractMixture) -> Self:
        """Before the first step, which is one of EM."""
        one = jnp.ones((), gmm.dtype)
        return cls(gmm, one, jnp.asarray(True), one)

    def step(
        self,
        gmm: AbstractMixture,
        updated: AbstractMixture,
        units: Standardisation,
        frozen: frozenset[str],
    ) -> "tuple[AbstractMixture, Squarem]":
        """The model to evaluate next: that of EM or, every second time, one further on.

        **Arguments:**

        - `gmm`: the model in hand, and `updated` what EM makes of it.
        - `units`: norms are taken in these, so that nothing depends on the units of the data.
        """
        leap = ~self.leaping
        further, ratio = self._leap(gmm, updated, units, frozen)
        hit = ratio >= self.longest
        longest = jnp.where(leap & hit, _FACTOR * self.longest, self.longest)
        anchor = where(leap, self.anchor, gmm)
        # Steps shrink by 1 − 1/a, and gains are as their squares.
        slowness = jnp.where(leap, (1 - 1 / jnp.maximum(ratio, 1)) ** 2, self.slowness)
        memory = Squarem(anchor, longest, leap, slowness)
        return where(leap, further, updated), memory

    def refused(self) -> Self:
        """After a leap that lowered the likelihood: EM comes next, and the next leap is shorter."""
        longest = jnp.maximum(self.longest / _FACTOR**2, 1)
        return dataclasses.replace(self, longest=longest)

    def _leap(
        self,
        middle: AbstractMixture,
        newest: AbstractMixture,
        units: Standardisation,
        frozen: frozenset[str],
    ) -> tuple[AbstractMixture, Float[Array, ""]]:
        """θ', and a without its bounds."""
        (zero, _), (one, _), (two, held) = (
            split(units.into(gmm), frozen) for gmm in (self.anchor, middle, newest)
        )
        r = jax.tree.map(difference, one, zero)
        v = jax.tree.map(lambda b, a, r: difference(b, a) - r, two, one, r)
        least = float(jnp.finfo(middle.dtype).tiny)
        ratio = jnp.sqrt(squared_norm(r) / jnp.maximum(squared_norm(v), least))
        a = jnp.clip(ratio, 1, self.longest)
        further = jax.tree.map(
            lambda end, r, v: end + (2 * (a - 1) * r + (a**2 - 1) * v), two, r, v
        )
        back = units.back(eqx.combine(further, held))
        return keep(back, newest, frozen), ratio
