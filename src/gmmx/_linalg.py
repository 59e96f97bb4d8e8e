"""The only module that factors matrices or solves linear systems. It does not call LAPACK.

There are three reasons. JAX 0.10 hangs for ever on a two-core machine where two independent
batched LAPACK calls can run at once in one program. The threads of the BLAS behind it spin on
after each call and take the processor from the products of the E-step: an EM step of 35 ms became
one of 65 (n = 65,536, d = 32, K = 64, two cores). And LAPACK takes a batch of small matrices one
by one. The functions here consist of elementwise steps and matrix products, run over the whole
batch at once, and differentiate in both modes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

# The largest matrix that is eliminated in a loop; a larger one is halved, and the halves are joined
# by matrix products.
_LEAF = 32
# Rows that are eliminated in one turn of that loop: each turn passes over all rows.
_BLOCK = 2
# The largest number of rows, or terms of a product, that are written out for the compiler to fuse.
_UNROLLED = 4


def whiten_by(matrix: Float[Array, "*k d d"], b: Float[Array, "*k d m"]) -> Float[Array, "*k d m"]:
    """L⁻¹B where A = LLᵀ is the Cholesky factorisation; NaN where A is not positive definite.

    Symmetric elimination on the rows of [A B] (Golub & Van Loan 2013, section 4.2): what turns A
    into Lᵀ turns B into L⁻¹B. Only A's upper triangle is read.
    """
    d = matrix.shape[-1]
    if d > _LEAF:
        half = d // 2
        right = jnp.concatenate([matrix[..., :half, half:], b[..., :half, :]], axis=-1)
        right = whiten_by(matrix[..., :half, :half], right)
        across, top = right[..., : d - half], right[..., d - half :]
        schur = matrix[..., half:, half:] - product(across.mT, across)
        below = whiten_by(schur, b[..., half:, :] - product(across.mT, top))
        return jnp.concatenate([top, below], axis=-2)

    if d <= _UNROLLED:
        return _eliminate(jnp.concatenate([matrix, b], axis=-1), d)
    blocks = -(-d // _BLOCK)
    size = blocks * _BLOCK
    # Padded with rows of the identity, which the elimination does not change.
    filled = [(0, 0)] * (matrix.ndim - 2) + [(0, size - d)] * 2
    identity = jnp.diag((jnp.arange(size) >= d).astype(matrix.dtype))
    matrix = jnp.pad(matrix, filled) + identity
    rows = jnp.concatenate([matrix, jnp.pad(b, [*filled[:-1], (0, 0)])], axis=-1)
    index = jnp.arange(size)[:, None]

    def eliminate(j: Array, rows: Array) -> Array:
        start = j * _BLOCK
        block = jax.lax.dynamic_slice_in_dim(rows, start, _BLOCK, axis=-2)
        pivots = jax.lax.dynamic_slice_in_dim(block, start, _BLOCK, axis=-1)
        block = _eliminate(jnp.concatenate([pivots, block], axis=-1), _BLOCK)
        # By symmetry the columns under the pivots are the rows beside them.
        columns = jnp.where(index >= start + _BLOCK, block[..., :size].mT, 0)
        rows = rows - product(columns, block)
        return jax.lax.dynamic_update_slice_in_dim(rows, block, start, axis=-2)

    return jax.lax.fori_loop(0, blocks, eliminate, rows)[..., :d, size:]


def _eliminate(rows: Float[Array, "*k d p"], d: int) -> Float[Array, "*k d m"]:
    """L⁻¹B from a few rows of [A B], written out."""
    done = []
    for j in range(d):
        row = rows[..., j, :]
        for previous in done:
            row = row - previous[..., j, None] * previous
        pivot = row[..., j, None]
        done.append(row / jnp.sqrt(jnp.where(pivot > 0, pivot, jnp.nan)))
    return jnp.stack(done, axis=-2)[..., d:]


@jax.jit
def inverse_root(matrix: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    """L⁻¹, the lower factor of the inverse of A = LLᵀ; NaN where A is not positive definite.

    Compiled as one program, since mixtures of known parameters are built outside of any other.
    """
    identity = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    return whiten_by(matrix, jnp.broadcast_to(identity, matrix.shape))


def reverse_root(matrix: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    """W, lower triangular, with A = WᵀW; NaN where A is not positive definite.

    With rows and columns in reverse A is LLᵀ, and L⁻¹A = Lᵀ in reverse is W.
    """
    reverse = matrix[..., ::-1, ::-1]
    return whiten_by(reverse, reverse)[..., ::-1, ::-1]


def inverse_lower(factor: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    """L⁻¹ for lower triangular L, by matrix products.

    If X holds the inverted diagonal blocks of size b, those of size 2b are X − XMX, where M holds
    the entries of L that join two blocks. The recursion starts from the diagonal.
    """
    d = factor.shape[-1]
    index = jnp.arange(d)
    diagonal = jnp.diagonal(factor, axis1=-2, axis2=-1)
    inverse = jnp.eye(d, dtype=factor.dtype) / diagonal[..., None, :]
    size = 1
    while size < d:
        block, pair = index // size, index // (2 * size)
        joins = (pair[:, None] == pair) & (block[:, None] > block)
        inverse = inverse - product(product(inverse, jnp.where(joins, factor, 0)), inverse)
        size *= 2
    return inverse


def product(a: Float[Array, "*#k l m"], b: Float[Array, "*#k m n"]) -> Float[Array, "... l n"]:
    """AB in full precision.

    With a short inner dimension it is written out, which the compiler fuses with its surroundings;
    a batch of tiny products would be called one by one.
    """
    inner = a.shape[-1]
    if inner > _UNROLLED:
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    terms = [a[..., :, m, None] * b[..., None, m, :] for m in range(inner)]
    return sum(terms[1:], terms[0])


def safe_sqrt(square: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The square root; where rounding left v ≤ 0, zero with derivative zero. NaN stays NaN."""
    some = ~(square <= 0)
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)


@jax.custom_jvp
def whiten_apart(
    factor: Float[Array, "*#k d d"], x: Float[Array, "n d"], means: Float[Array, "k d"]
) -> Float[Array, "k d n"]:
    """W(x − μ) of every row. Its derivative in μ, −W dμ, is computed once, not for each row.

    This also avoids a fault of XLA on the CPU (jaxlib 0.10.2, x86-64): a product with an operand
    that is a broadcast, here dμ over the rows, reads uninitialised memory where it is fused with
    the sum that follows. A dx that is the same for all rows is such an operand too; zeros that
    depend on x are added to it, so that it is no longer a broadcast.
    """
    return product(factor, x.T - means[:, :, None])


@partial(whiten_apart.defjvp, symbolic_zeros=True)
def _whiten_apart_jvp(primals, tangents):
    factor, x, means = primals
    moved_factor, moved_x, moved_means = tangents
    y = whiten_apart(factor, x, means)
    parts = []
    if type(moved_factor) is not SymbolicZero:
        parts.append(product(moved_factor, x.T - means[:, :, None]))
    if type(moved_x) is not SymbolicZero:
        parts.append(jnp.broadcast_to(product(factor, moved_x.T + 0 * x.T), y.shape))
    if type(moved_means) is not SymbolicZero:
        parts.append(jnp.broadcast_to(-product(factor, moved_means[:, :, None]), y.shape))
    return y, sum(parts[1:], parts[0])


def einsum(equation: str, *operands: Array) -> Array:
    """`jnp.einsum` in the full precision of its operands, without TF32 or bfloat16."""
    return jnp.einsum(equation, *operands, precision=jax.lax.Precision.HIGHEST)


def log_positive(variance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log v; NaN where rounding has made a variance zero or negative, so that the fit fails."""
    return jnp.log(jnp.where(variance > 0, variance, jnp.nan))


def log_weight(weight: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log w; −∞ where a weight is zero, whose derivative counts as zero: what is not there."""
    absent = weight == 0
    return jnp.where(absent, -jnp.inf, jnp.log(jnp.where(absent, 1, weight)))


def log_diagonal(factor: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    """A triangular factor with its diagonal in logarithms: any real matrix is then a valid one."""
    diagonal = jnp.diagonal(factor, axis1=-2, axis2=-1)
    identity = jnp.eye(factor.shape[-1], dtype=factor.dtype)
    return jnp.tril(factor, -1) + jnp.log(diagonal)[..., None] * identity


def exp_diagonal(log_factor: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    """The inverse of `log_diagonal`; the strictly upper triangle is not read."""
    diagonal = jnp.diagonal(log_factor, axis1=-2, axis2=-1)
    identity = jnp.eye(log_factor.shape[-1], dtype=log_factor.dtype)
    return jnp.tril(log_factor, -1) + jnp.exp(diagonal)[..., None] * identity


def orthogonalise_rows(
    matrix: Float[Array, "*k d m"],
) -> tuple[Float[Array, "*k d d"], Float[Array, "*k d m"]]:
    """(Q, QA) with Q orthogonal and the rows of QA orthogonal: a singular value decomposition.

    By one-sided Jacobi rotations (Hestenes 1958) of d/2 pairs of rows at once, in the order of a
    round-robin tournament. The norms of the rows are the singular values, in no order. A small one
    has the same relative accuracy as a large one (Demmel & Veselić 1992).

    Both results are constants in derivatives: where singular values are equal they are not unique
    and have none. To differentiate, use a formula that also holds for rows that are only nearly
    orthogonal, and apply it to QA with Q constant; see `damp`.
    """
    d, m = matrix.shape[-2:]
    matrix = jax.lax.stop_gradient(matrix)
    identity = jnp.broadcast_to(jnp.eye(d, dtype=matrix.dtype), (*matrix.shape[:-2], d, d))
    if d == 1:
        return identity, matrix
    largest = jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True)
    rows = jnp.concatenate([matrix / largest, identity], axis=-1)
    half = (d + 1) // 2
    if d % 2:
        rows = jnp.concatenate([rows, jnp.zeros_like(rows[..., :1, :])], axis=-2)
    # Row 0 stays; the others move by one seat, down one side of the table and up the other.
    seats = np.concatenate([np.arange(half), np.arange(half, 2 * half)[::-1]])
    moved = np.empty_like(seats)
    moved[seats] = np.concatenate([seats[:1], np.roll(seats[1:], 1)])
    precision = 4 * float(jnp.finfo(matrix.dtype).eps)

    def turn(_: int | Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, turned = carry
        a, b = rows[..., :half, :], rows[..., half:, :]
        norms = [jnp.sqrt(jnp.sum(side[..., :m] ** 2, -1, keepdims=True)) for side in (a, b)]
        cross = jnp.sum(a[..., :m] * b[..., :m], -1, keepdims=True)
        apart = jnp.abs(cross) > precision * norms[0] * norms[1]
        zeta = (norms[1] - norms[0]) * (norms[1] + norms[0]) / (2 * jnp.where(apart, cross, 1))
        tangent = jnp.where(zeta < 0, -1, 1) / (jnp.abs(zeta) + jnp.hypot(1, zeta))
        tangent = jnp.where(apart, tangent, 0).astype(rows.dtype)
        cosine = jax.lax.rsqrt(1 + tangent**2)
        sine = cosine * tangent
        rows = jnp.concatenate([cosine * a - sine * b, sine * a + cosine * b], axis=-2)
        return rows[..., moved, :], turned | jnp.any(apart)

    def sweep(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rows, _, count = carry
        rows, turned = jax.lax.fori_loop(0, 2 * half - 1, turn, (rows, jnp.asarray(False)))
        return rows, turned, count + 1

    # It takes six to ten sweeps; the limit stops rotations that only rounding keeps going.
    start = (rows, jnp.asarray(True), jnp.zeros((), jnp.int32))
    rows, _, _ = jax.lax.while_loop(lambda carry: carry[1] & (carry[2] < 30), sweep, start)
    return rows[..., :d, m:], rows[..., :d, :m] * largest


def damp(
    factor: Float[Array, "#k d d"], y: Float[Array, "k d n"], variance: Float[Array, "*n"]
) -> tuple[Float[Array, "k d n"], Float[Array, "k #n"]]:
    """(I + s_iAAᵀ)⁻¹y_i and ½ log|I + s_iAAᵀ|, for one s or one for each of the n samples.

    Diagonalised once, so that a sample costs products of d² and no factorisation.
    """
    # AAᵀ = Qᵀ(D + E)Q, where E is zero up to rounding but carries the derivatives that Q does not.
    # Series in E to second order give exact values and exact first and second derivatives.
    rotation, rows = orthogonalise_rows(factor)
    moving = product(rotation, factor)
    rows = rows + (moving - jax.lax.stop_gradient(moving))
    gram = product(rows, rows.mT)
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)[..., None]
    rest = gram * (1 - jnp.eye(gram.shape[-1], dtype=gram.dtype))
    shrunk = 1 / (1 + variance * diagonal)
    weight = variance * shrunk
    first = shrunk * product(rotation, y)
    second = weight * product(rest, first)
    third = weight * product(rest, second)
    damped = product(rotation.mT, first - second + third)
    log_det = jnp.log1p(variance * diagonal) - weight * product(rest**2, weight) / 2
    half = jnp.sum(log_det, axis=-2) / 2
    return damped, jnp.broadcast_to(half, (y.shape[0], half.shape[1]))
