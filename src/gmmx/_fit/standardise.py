"""Units in which every feature has mean zero and a deviation of one."""

import dataclasses
from typing import Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._components import AbstractComponents, Components
from .._data import Samples
from .._engine.frame import Frame


class Standardisation(eqx.Module):
    """z = (x − c)/s. One s for all features where the structure does not survive several."""

    centre: Float[Array, " d"]
    scale: Float[Array, " d"]

    @classmethod
    def of(cls, gmm: AbstractComponents, x: Samples, weights: Float[Array, " n"] | None) -> Self:
        """The units of these rows; a constant feature keeps its own."""
        return cls.of_frame(gmm, Frame.of_data(x, weights, turned=False))

    @classmethod
    def of_frame(cls, gmm: AbstractComponents, frame: Frame) -> Self:
        """The units of a frame that is not turned."""
        scale = frame.root
        assert scale is not None  # what is not turned is scaled
        if not type(gmm.structure).closed_under_scaling:
            scale = jnp.full_like(scale, jnp.sqrt(jnp.mean(scale**2)))
        return cls(frame.centre, scale)

    def apply(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """z of x"""
        return (x - self.centre) / self.scale

    def into(self, gmm: Components) -> Components:
        """The mixture of z from that of x."""
        structure = type(gmm.structure).from_factors(gmm.factors() * self.scale)
        return dataclasses.replace(gmm, means=self.apply(gmm.means), structure=structure)

    def back(self, gmm: Components) -> Components:
        """The mixture of x from that of z."""
        structure = type(gmm.structure).from_factors(gmm.factors() / self.scale)
        means = self.centre + self.scale * gmm.means
        return dataclasses.replace(gmm, means=means, structure=structure)
