"""Axes that components share: orthogonal rows along which no covariance has correlations."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._linalg import inverse_lower, product
from .._orthogonal import lower_factor

# A sweep turns each pair of axes once. So many find those of the model in hand, to rounding, and so
# many move on from there.
_FIND = 8
_MOVE = 4

Cost = Callable[[Float[Array, "k d"]], Float[Array, ""]]
"""What is lost of the likelihood, of the log-variances of all components along the axes"""


def factors_along(
    axes: Float[Array, "#k d d"], log_variances: Float[Array, "#k d"]
) -> Float[Array, "k d d"]:
    """W_k, lower triangular, of covariances that have these variances along the rows of axes.

    A deviation that is less than rounding beside the largest one counts as rounding: a factor with
    such rows is singular.
    """
    least = 2 * math.log(4 * axes.shape[-1] * float(jnp.finfo(axes.dtype).eps))
    largest = jnp.max(log_variances, axis=-1, keepdims=True)
    log_variances = jnp.maximum(log_variances, largest + least)
    return lower_factor(jnp.exp(-log_variances / 2)[:, :, None] * axes)


def common_axes(
    before: Float[Array, "k d d"], factors: Float[Array, "k d d"], cost: Cost
) -> tuple[Float[Array, "d d"], Float[Array, "k d"]]:
    """The axes of least cost, as rows, and the log-variances along them.

    Sweeps over all pairs of axes find those of the model in hand, and go on from them with the best
    covariances. A pair has in each component the variances v and w and the covariance c. With the
    derivative s of the cost in log v, h = (v − w, 2c)/√(vw) and G = Σ_k s hhᵀ, the pair is turned
    so that the principal eigenvector of G becomes (1, 0). Where the covariances have common axes
    this converges quadratically (Cardoso & Souloumiac 1996), and it rests where the cost does: one
    step of the power iteration for that eigenvector is the step of Flury & Gautschi (1986).

    If the cost is higher in the end, the axes of the model in hand are returned.

    **Arguments:**

    - `before`: the factors W_k of the model in hand.
    - `factors`: those of the best covariances of no structure.
    """
    schedule = _schedule(factors.shape[-1])
    known = _FIND * len(schedule)
    roots = inverse_lower(jnp.stack([before, factors]))
    # Squares of small units would underflow.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(roots), axis=(1, 2, 3), keepdims=True))
    roots = roots / largest

    def turn(i: int | Array, both: tuple[Array, Array]) -> tuple[Array, Array]:
        axes, start = both
        seen = roots[jnp.asarray(i >= known, jnp.int32)]
        axes = _turned(axes, jnp.asarray(schedule)[i % len(schedule)], seen, cost)
        return axes, jnp.where(i < known, axes, start)

    identity = jnp.eye(factors.shape[-1], dtype=factors.dtype)
    turns = known + _MOVE * len(schedule)
    axes, start = jax.lax.fori_loop(0, turns, turn, (identity, identity))
    log_variances, at_start = (_log_variances(v, roots[1]) for v in (axes, start))
    better = cost(log_variances) < cost(at_start)
    log_variances = jnp.where(better, log_variances, at_start)
    return jnp.where(better, axes, start), log_variances + 2 * jnp.log(largest[1, 0])


def _log_variances(axes: Float[Array, "d d"], roots: Float[Array, "k d d"]) -> Float[Array, "k d"]:
    return jnp.log(jnp.sum(product(axes, roots) ** 2, axis=-1))


def _turned(
    axes: Float[Array, "d d"], pairs: Array, roots: Float[Array, "k d d"], cost: Cost
) -> Float[Array, "d d"]:
    """The axes after a turn of each of these pairs, which are disjoint."""
    first, second = pairs
    rows = product(axes, roots)
    square = jnp.sum(rows**2, axis=-1)
    share = jax.grad(cost)(jnp.log(square))[:, :1]
    unit = jnp.sqrt(square[:, first]) * jnp.sqrt(square[:, second])
    apart = (square[:, first] - square[:, second]) / unit
    cross = 2 * jnp.sum(rows[:, first] * rows[:, second], axis=-1) / unit
    diagonal, off = (jnp.sum(share * v, axis=0) for v in (apart**2 - cross**2, apart * cross))
    # The eigenvector (x, y) of G, x ≥ 0, by the formula in which nothing cancels.
    length = jnp.abs(diagonal) + jnp.hypot(diagonal, 2 * off)
    x = jnp.where(diagonal >= 0, length, 2 * jnp.abs(off))
    y = jnp.where(diagonal >= 0, 2 * off, jnp.where(off < 0, -length, length))
    x = jnp.where(length > 0, x, 1)
    # It is at twice the angle of the turn.
    cosine = jnp.sqrt((1 + x / jnp.hypot(x, y)) / 2)[:, None]
    sine = (y / jnp.hypot(x, y))[:, None] / (2 * cosine)
    a, b = axes[first], axes[second]
    return axes.at[first].set(cosine * a + sine * b).at[second].set(cosine * b - sine * a)


def _schedule(d: int) -> np.ndarray:
    """All pairs of d axes, in rounds of disjoint ones `(rounds, 2, d // 2)`: a tournament."""
    seats, rounds = list(range(d + d % 2)), []
    for _ in range(len(seats) - 1):
        pairs = zip(seats, reversed(seats), strict=True)
        rounds.append([pair for pair in list(pairs)[: len(seats) // 2] if max(pair) < d])
        seats.insert(1, seats.pop())
    return np.array(rounds, np.int32).reshape(len(rounds), d // 2, 2).swapaxes(1, 2)
