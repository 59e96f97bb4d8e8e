"""Linear systems of a matrix that is known by its products only."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._linalg import einsum

# Directions that are kept, and steps that are made at most.
_KEPT = 64
_STEPS = 1000


def solve_by_products(
    matvec: Callable[[Float[Array, " n"]], Float[Array, " n"]], b: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """(x of Ax = b, whether it was found), by generalised conjugate residuals.

    Each step adds the direction p = r, made such that its product q = Ap is orthogonal to the
    last 64 before it, and takes what of the residual r lies along q. As long as none is
    forgotten ‖r‖ is the least in the Krylov space, as in GMRES, and it never rises (Eisenstat,
    Elman & Schultz 1983). It asks for one product a step, and for no factorisation: the GMRES of
    lineax ends in a QR of LAPACK, which may hang, see `_linalg`.
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
