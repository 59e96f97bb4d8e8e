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

    @classmethod
    def begin(cls, gmm: AbstractMixture) -> Self:
        """Before the first step, which is one of EM."""
        return cls(gmm, jnp.ones((), gmm.dtype), jnp.asarray(True))

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
        further, hit = self._leap(gmm, updated, units, frozen)
        longest = jnp.where(leap & hit, _FACTOR * self.longest, self.longest)
        anchor = where(leap, self.anchor, gmm)
        memory = dataclasses.replace(self, anchor=anchor, longest=longest, leaping=leap)
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
    ) -> tuple[AbstractMixture, Bool[Array, ""]]:
        """θ', and whether a was as long as it may be."""
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
        return keep(back, newest, frozen), ratio >= self.longest
