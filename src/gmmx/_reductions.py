"""Reductions along an axis that may be short.

On the CPU XLA makes each reduction a separate call, which waits for memory along any axis but the
last: at n = 50,000, d = 1, K = 5 a fit took four times as long. So a short axis is written out as
elementwise operations, unless it is the last one, whose entries are adjacent in memory.
"""

from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The largest size of an axis that is written out.
_SHORT = 8


def total(a: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The sum along an axis, kept with size one; written out if the axis is short."""
    if _is_short(a, axis):
        return reduce(jnp.add, _along(a, axis, keepdims=True))
    return jnp.sum(a, axis=axis, keepdims=True)


def largest(a: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The maximum along an axis, kept with size one; written out if the axis is short."""
    if _is_short(a, axis):
        return reduce(jnp.maximum, _along(a, axis, keepdims=True))
    return jnp.max(a, axis=axis, keepdims=True)


def sum_of_squares(a: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Σ a² along an axis; written out if the axis is short."""
    if _is_short(a, axis):
        return reduce(jnp.add, [part**2 for part in _along(a, axis, keepdims=False)])
    return jnp.sum(a**2, axis=axis)


def _is_short(a: Array, axis: int) -> bool:
    return axis < a.ndim - 1 and a.shape[axis] <= _SHORT


def _along(a: Array, axis: int, keepdims: bool) -> list[Array]:
    return [jax.lax.index_in_dim(a, i, axis, keepdims) for i in range(a.shape[axis])]
