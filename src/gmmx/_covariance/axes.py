"""Axes that components share: orthogonal rows along which no covariance has correlations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._linalg import inverse_lower, product
from .._orthogonal import lower_factor

# A sweep turns each pair of axes once. The first number finds the axes of covariances that have
# common ones, to rounding; each of the others raises the likelihood.
_SEARCH = 8
_IMPROVE = 3

Cost = Callable[[Float[Array, "k d"]], Float[Array, ""]]
"""What is lost of the likelihood, of the log-variances of all components along the axes"""


def factors_along(
    axes: Float[Array, "#k d d"], log_variances: Float[Array, "#k d"]
) -> Float[Array, "k d d"]:
    """W_k, lower triangular, of covariances that have these variances along the rows of axes."""
    return lower_factor(jnp.exp(-log_variances / 2)[:, :, None] * axes)


def common_axes(
    before: Float[Array, "k d d"], factors: Float[Array, "k d d"], cost: Cost
) -> tuple[Float[Array, "d d"], Float[Array, "k d"]]:
    """The axes of least cost, as rows, and the log-variances along them.

    From the axes of the model in hand, or from those that a search finds, if they are better. So
    the cost is at most that of the model in hand.

    **Arguments:**

    - `before`: the factors W_k of the model in hand.
    - `factors`: those of the best covariances of no structure.
    """
    d = factors.shape[-1]
    roots = inverse_lower(jnp.stack([before, factors]))
    identity = jnp.eye(d, dtype=factors.dtype)
    found = jax.vmap(lambda roots: _turned(identity, roots, cost, _SEARCH, _principal))(roots)
    costs = jnp.stack([cost(_log_variances(axes, roots[1])) for axes in found])
    axes = _turned(jnp.where(costs[1] < costs[0], found[1], found[0]), roots[1], cost, _IMPROVE)
    return axes, _log_variances(axes, roots[1])


def _log_variances(axes: Float[Array, "d d"], roots: Float[Array, "k d d"]) -> Array:
    return jnp.log(jnp.sum(product(axes, roots) ** 2, axis=-1))


def _first(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """G(1, 0) of the symmetric G = [[a, b], [b, c]]."""
    return a, b


def _principal(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """An eigenvector of the larger eigenvalue of G, of first entry ≥ 0."""
    wide = a >= c
    long = jnp.abs(a - c) + jnp.hypot(a - c, 2 * b)
    return jnp.where(wide, long, 2 * jnp.abs(b)), jnp.where(
        wide, 2 * b, jnp.where(b < 0, -long, long)
    )


def _turned(
    axes: Float[Array, "d d"],
    roots: Float[Array, "k d d"],
    cost: Cost,
    n_sweeps: int,
    direction: Callable[[Array, Array, Array], tuple[Array, Array]] = _first,
) -> Float[Array, "d d"]:
    """The axes after sweeps over all pairs of them, disjoint pairs at once.

    A pair of axes has in each component the variances v and w and the covariance c. With the
    derivative s of the cost in log v, and h = (v − w, 2c)/√(vw), G = Σ_k s hhᵀ. The pair is turned
    by half the angle of `direction`, of G, to the first unit vector. For G(1, 0) this minimises
    the tangent of the cost, which lies above it where it is concave in the variances (Flury &
    Gautschi 1986): no cost rises. The principal eigenvector is also right where variances are
    equal, and where covariances have common axes the sweeps converge quadratically (Cardoso &
    Souloumiac 1996).
    """
    schedule = _schedule(len(axes))

    def turn(i: int | Array, axes: Array) -> Array:
        first, second = jnp.asarray(schedule)[i % len(schedule)]
        rows = product(axes, roots)
        square = jnp.sum(rows**2, axis=-1)
        share = jax.grad(cost)(jnp.log(square))[:, :1]
        v, w = square[:, first], square[:, second]
        cross = jnp.sum(rows[:, first] * rows[:, second], axis=-1)
        unit = jnp.sqrt(v) * jnp.sqrt(w)
        h, g = (v - w) / unit, 2 * cross / unit
        x, y = direction(*(jnp.sum(share * term, axis=0) for term in (h * h, h * g, g * g)))
        length = jnp.hypot(x, y)
        x = jnp.where(length > 0, x / jnp.where(length > 0, length, 1), 1)[:, None]
        y = jnp.where(length > 0, y / jnp.where(length > 0, length, 1), 0)[:, None]
        cosine = jnp.sqrt((1 + x) / 2)
        sine = y / (2 * cosine)
        a, b = axes[first], axes[second]
        return axes.at[first].set(cosine * a + sine * b).at[second].set(cosine * b - sine * a)

    return jax.lax.fori_loop(0, n_sweeps * len(schedule), turn, axes)


def _schedule(d: int) -> np.ndarray:
    """All pairs of d axes, in rounds of disjoint ones `(rounds, 2, d // 2)`: a tournament."""
    seats, rounds = list(range(d + d % 2)), []
    for _ in range(len(seats) - 1):
        pairs = zip(seats, reversed(seats), strict=True)
        rounds.append([pair for pair in list(pairs)[: len(seats) // 2] if max(pair) < d])
        seats.insert(1, seats.pop())
    return np.array(rounds, np.int32).reshape(len(rounds), d // 2, 2).swapaxes(1, 2)
