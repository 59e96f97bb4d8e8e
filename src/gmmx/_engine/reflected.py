"""What rows say under each component where they measure features themselves, by reflections.

With the root L of Σ, T = LLᵀ + C is the covariance of what was observed under a component. The
density of a row and the mean of the complete one follow from z = T⁻¹(x − μ) and |T|. Reflections
(see `gmmx._orthogonal`) reduce [L, C^½] to [R, 0] with RRᵀ = T. Squares are never formed, so small
noise and nearly collinear features lose nothing.

Each entry of a matrix is an array over rows. Derivatives do not pass through the reflections: those
of z and |T| are products with R⁻¹.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import einsum, product

# The largest number of terms that are written out: a program grows with it.
_WRITTEN_OUT = 16


@jax.custom_jvp
def solve(
    roots: Float[Array, "j d d"],
    noise: Float[Array, "d n"],
    seen: Float[Array, "d n"],
    apart: Float[Array, "k d n"],
) -> tuple[Float[Array, "k d n"], Float[Array, "k n"]]:
    """z = T⁻¹(x − μ), zero where nothing was observed, and −½(x − μ)ᵀz − ½ log|T|.

    **Arguments:**

    - `roots`: L, lower triangular with a positive diagonal; one where components share it.
    - `noise`: the deviations C^½, and one where nothing was observed.
    - `seen`: one where a number was observed, and zero elsewhere.
    - `apart`: x − μ, and zero where nothing was observed.
    """
    return _solve(_triangle(roots, noise, seen, loops=2), apart)


@solve.defjvp
def _solve_jvp(primals, tangents):
    roots, noise, seen, apart = primals
    moved_roots, moved_noise, _, moved = tangents
    # The programs of derivatives are large as they are.
    root = _triangle(roots, noise, seen, loops=1)
    z, log_density = _solve(root, apart)

    # dT = dL Lᵀ + L dLᵀ + dC among what was observed; z is zero elsewhere.
    u, moved_squares = product(roots.mT, z), 2 * noise * moved_noise
    moved_u = product(moved_roots, u)
    by_t = seen * (moved_u + product(roots, product(moved_roots.mT, z))) + moved_squares * z
    moved_z = jax.lax.custom_linear_solve(
        lambda v: seen * product(roots, product(roots.mT, seen * v)) + noise**2 * v,
        moved - by_t,
        lambda _, b: _solve(root, b)[0],
        symmetric=True,
    )
    # tr(T⁻¹dT)/2 = tr((R⁻¹L)ᵀR⁻¹dL) + tr(R⁻¹dC R⁻ᵀ)/2
    inverse = seen * _inverse(root)
    turned = einsum("jain,jie->jaen", inverse, roots)
    trace = einsum("jaen,jaen->jn", einsum("jain,jie->jaen", inverse, moved_roots), turned)
    variances = einsum("jain,jain->jin", inverse, inverse)
    trace = trace + jnp.sum(variances * moved_squares, axis=1) / 2
    moved_log = jnp.sum(z * (moved_u + moved_squares * z / 2 - moved), axis=1) - trace
    return (z, log_density), (moved_z, moved_log)


def _solve(
    root: Float[Array, "j d d n"], apart: Float[Array, "k d n"]
) -> tuple[Float[Array, "k d n"], Float[Array, "k n"]]:
    white = _substitute(root, apart, transposed=False)
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)), axis=2)
    log_density = -jnp.sum(white**2, axis=1) / 2 - half_log_det
    return _substitute(root, white, transposed=True), log_density


def _triangle(
    roots: Float[Array, "j d d"], noise: Float[Array, "d n"], seen: Float[Array, "d n"], loops: int
) -> Float[Array, "j d d n"]:
    """R

    The i-th reflection is of column i of L, l, and of the columns F that C^½ has become up to
    there. With the row f of F, g = l_i l + Ff and ρ² = g_i, it makes l to r = g/ρ, a column of R,
    and takes (l + r)fᵀ/(l_i + ρ) from F.

    **Arguments:**

    - `loops`: Rows of F above the i-th are zero, and columns beyond it untouched. Two loops leave
        out one half of the work, and take longer to compile.
    """
    (j, d, _), n = roots.shape, noise.shape[1]
    root = jnp.zeros((j, d, d, n), roots.dtype)
    rest, above = jnp.zeros((j, d, 0, n), roots.dtype), 0
    bounds = sorted({i * d // loops for i in range(loops + 1)})
    for start, end in itertools.pairwise(bounds):
        fresh = jnp.eye(d, dtype=roots.dtype)[start:, start:end, None] * noise[start:end]
        fresh = jnp.broadcast_to(fresh, (j, *fresh.shape))
        rest, above = jnp.concatenate([rest[:, start - above :], fresh], axis=2), start

        def reflect(i, carry, start=start, end=end):
            # The reflection before is applied here: left to its own turn, the compiler would
            # compute its vectors again for each entry of F.
            rest, gain, row, root = carry
            rest = rest - gain[:, :, None] * row[:, None]
            row = _at(rest, i - start, 1)
            column = _at(roots, i, 2)[:, start:, None] * seen[start:]
            pivot = _at(column, i - start, 1)[:, None]
            squares = pivot * column + _times(rest, row)
            inverse = jax.lax.rsqrt(_at(squares, i - start, 1))[:, None]
            gain = (column + squares * inverse) * (inverse / (1 + pivot * inverse))
            found = (squares * inverse)[:, :, None]
            return rest, gain, row, jax.lax.dynamic_update_slice(root, found, (0, start, i, 0))

        gain, row = jnp.zeros_like(rest[:, :, 0]), jnp.zeros_like(rest[:, 0])
        rest, gain, row, root = jax.lax.fori_loop(start, end, reflect, (rest, gain, row, root))
        rest = rest - gain[:, :, None] * row[:, None]
    return root


def _substitute(
    root: Float[Array, "j d d n"], b: Float[Array, "k d n"], transposed: bool
) -> Float[Array, "k d n"]:
    """R⁻¹b, or R⁻ᵀb"""

    def solved(b, i):
        line = _at(root, i, 1 if transposed else 2)
        entry = _at(b, i, 1) / _at(line, i, 1)
        return b - line * entry[:, None], entry

    found = jax.lax.scan(solved, b, jnp.arange(root.shape[1]), reverse=transposed)[1]
    return jnp.moveaxis(found, 0, 1)


def _inverse(root: Float[Array, "j d d n"]) -> Float[Array, "j d d n"]:
    """R⁻¹"""
    d = root.shape[1]
    identity = jnp.broadcast_to(jnp.eye(d, dtype=root.dtype)[:, :, None], root.shape)

    def solved(carry, i):
        rest, column, row = carry
        rest = rest - column[:, :, None] * row[:, None]
        column = _at(root, i, 2)
        row = _at(rest, i, 1) / _at(column, i, 1)[:, None]
        return (rest, column, row), row

    nothing = jnp.zeros_like(root[:, 0])
    rows = jax.lax.scan(solved, (identity, nothing, nothing), jnp.arange(d))[1]
    return jnp.moveaxis(rows, 0, 1)


def _at(array: Array, i: Array, axis: int) -> Array:
    return jax.lax.dynamic_index_in_dim(array, i, axis, keepdims=False)


def _times(matrix: Float[Array, "j d c n"], v: Float[Array, "j c n"]) -> Float[Array, "j d n"]:
    """Mv of each row, in half the time where it is written out and fused."""
    c = v.shape[1]
    if c > _WRITTEN_OUT:
        return einsum("jdcn,jcn->jdn", matrix, v)
    return functools.reduce(jnp.add, [matrix[:, :, i] * v[:, None, i] for i in range(c)])
