"""What is known of all rows before any step, where they come in blocks."""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _rows
from .._linalg import einsum
from .._sources.survey import Survey
from .frame import Frame
from .ladder import fourth_powers, reach_of

AxisName = str | tuple[str, ...] | None
"""An axis of a mesh, or several"""


class Summary(eqx.Module):
    """Moments of the rows, and a sample of them."""

    mean: Float[Array, " d"]
    variance: Float[Array, " d"]
    correlation: Float[Array, "d d"] | None
    """None where the mixture is axis-aligned"""
    counted: Float[Array, ""]
    """The number of rows of a weight"""
    x: Float[Array, "m d"]
    """Some of the rows"""
    weights: Float[Array, " m"] | None
    """How often each of them counts"""
    axis_name: AxisName = eqx.field(default=None, static=True)
    """Over which each device has some of its own"""

    @classmethod
    def of(cls, survey: Survey, sample: tuple[np.ndarray, np.ndarray], dtype: Any) -> Self:
        """Of what a pass over the rows found."""
        x, weights = sample
        variance, correlation = survey.variance, None
        if survey.scatter.ndim == 2:
            deviation = np.sqrt(np.where(variance > 0, variance, 1))
            correlation = survey.scatter / survey.total / deviation / deviation[:, None]
        # Filled up, so that few sizes are compiled.
        x, weights = _rows.fill(*jax.device_put(
            (np.asarray(x, dtype), np.asarray(weights / weights.mean(), dtype))
        ))  # fmt: skip
        values = survey.mean, variance, correlation, np.asarray(survey.counted), x, weights
        return cls(*jax.device_put([
            None if v is None else np.asarray(v, dtype) for v in values
        ]))  # fmt: skip

    @classmethod
    def over(
        cls,
        x: Float[Array, "n d"],
        weights: Float[Array, " n"] | None,
        axis_name: AxisName,
        turned: bool,
    ) -> Self:
        """Of the rows of all devices along an axis, inside `shard_map`."""
        counts = jnp.ones_like(x[:, 0]) if weights is None else weights

        def total(values: Array) -> Array:
            return jax.lax.psum(values, axis_name)

        count = total(jnp.sum(counts))
        # Relative to one row, so that an offset is not rounded in the sum.
        offset = total(jnp.mean(x, axis=0)) / total(jnp.ones((), x.dtype))
        mean = offset + total(counts @ (x - offset)) / count
        variance = total(counts @ (x - mean) ** 2) / count
        correlation = None
        if turned:
            z = (x - mean) / jnp.sqrt(jnp.where(variance > 0, variance, 1))
            correlation = total(einsum("nd,ne->de", z * counts[:, None], z)) / count
        counted = total(jnp.sum((counts > 0).astype(x.dtype)))
        return cls(mean, variance, correlation, counted, x, weights, axis_name)

    def reach(self, frame: Frame) -> Float[Array, " d"]:
        """How far the rows lie from the origin of a frame."""
        sums = fourth_powers(frame.apply(self.x), self.weights)
        return reach_of(*sums if self.axis_name is None else jax.lax.psum(sums, self.axis_name))

    @property
    def covariance(self) -> Float[Array, "d d"] | Float[Array, " d"]:
        """Of the rows; the variances where the mixture is axis-aligned."""
        if self.correlation is None:
            return self.variance
        deviation = self.frame(False).root
        assert deviation is not None and deviation.ndim == 1  # a frame that is not turned
        return self.correlation * deviation * deviation[:, None]

    def frame(self, turned: bool) -> Frame:
        """In which the rows have mean zero and are of variance one."""
        correlation = self.correlation if turned else None
        return Frame.of_moments(self.mean, self.variance, correlation)
