"""Units in which every feature has mean zero and a deviation of one."""

from typing import TYPE_CHECKING, Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from ._mixture import GaussianMixture


class Standardisation(eqx.Module):
    """z = (x − c)/s, so far as a model's structure survives it."""

    centre: Float[Array, " d"]
    scale: Float[Array, " d"]

    @classmethod
    def of(cls, gmm: "GaussianMixture", x: Float[Array, "n d"]) -> Self:
        """The units of these data; a constant feature keeps its own."""
        deviation = jnp.std(x, axis=0)
        scale = gmm.structure.usable_scale(jnp.where(deviation > 0, deviation, 1))
        return cls(jnp.mean(x, axis=0), scale)

    def apply(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """z of x"""
        return (x - self.centre) / self.scale

    def into(self, gmm: "GaussianMixture") -> "GaussianMixture":
        """The mixture of z from that of x."""
        structure = gmm.structure.rescale(1 / self.scale)
        return eqx.tree_at(
            lambda g: (g.means, g.structure), gmm, (self.apply(gmm.means), structure)
        )

    def back(self, gmm: "GaussianMixture") -> "GaussianMixture":
        """The mixture of x from that of z."""
        means = self.centre + self.scale * gmm.means
        structure = gmm.structure.rescale(self.scale)
        return eqx.tree_at(lambda g: (g.means, g.structure), gmm, (means, structure))
