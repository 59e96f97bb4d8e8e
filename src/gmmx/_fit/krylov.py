"""Linear systems by matrix-vector products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._linalg import einsum

# Directions that are kept, and the maximum number of steps.
_KEPT = 64
_STEPS = 1000


def solve_by_products(
    matvec: Callable[[Float[Array, " n"]], Float[Array, " n"]], b: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """(x of Ax = b, whether it was found), by generalised conjugate residuals.

    Each step takes the direction p = r, changed so that its product q = Ap is orthogonal to the
    last 64 products, and removes the part of the residual r along q. While all products are kept,
    ‖r‖ is the smallest in the Krylov space, as in GMRES, and it never rises (Eisenstat, Elman &
    Schultz 1983). A step needs one product and no factorisation. (The GMRES of lineax uses a QR
    of LAPACK, which may hang: see `_linalg`.)
    """
    epsilon = float(jnp.finfo(b.dtype).eps)
    kept = min(b.size, _KEPT)
    goal = epsilon**0.75 * jnp.linalg.norm(b)

    def going(carry: tuple[Array, ...]) -> Array:
        return (jnp.linalg.norm(carry[1]) > goal) & (carry[-1] < _STEPS)

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        x, r, directions, products, n = carry
        p, q = r, matvec(r)
        for _ in range(2):  # twice is enough for orthogonality to rounding
            along = einsum("kn,n->k", products, q)
            p = p - einsum("k,kn->n", along, directions)
            q = q - einsum("k,kn->n", along, products)
        size = jnp.linalg.norm(q)
        p, q = p / size, q / size
        length = jnp.vdot(q, r, precision=jax.lax.Precision.HIGHEST)
        at = n % kept
        return (
            x + length * p, r - length * q, directions.at[at].set(p), products.at[at].set(q), n + 1
        )  # fmt: skip

    nothing = jnp.zeros((kept, b.size), b.dtype)
    start = (jnp.zeros_like(b), b, nothing, nothing, jnp.zeros((), jnp.int32))
    x, r, *_ = jax.lax.while_loop(going, step, start)
    return x, jnp.linalg.norm(r) <= epsilon**0.5 * jnp.linalg.norm(b)
