"""Triangular factors of sums of squares that are never formed.

A covariance that is a sum, such as AΣAᵀ + C, is RRᵀ for the rows R = [AΣ^½, C^½], and a precision
that is a sum, such as Λ + AᵀC⁻¹A, is MᵀM. Orthogonal reflections (Householder 1958; Golub & Van
Loan 2013, section 5.2) reduce R and M to triangles. Forming the square would square the condition
number: in float32 a width of 10⁻⁴ beside one of 1 would be lost.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._linalg import inverse_lower, orthogonalise_rows, product

# Rows that are reflected one by one; their effect on the rows below is then one product.
_PANEL = 32


@jax.custom_jvp
@jax.jit
def lower_root(rows: Float[Array, "*k r c"]) -> Float[Array, "*k r r"]:
    """The lower triangular C with CCᵀ = RRᵀ and a positive diagonal, for R of r ≤ c columns.

    The error in each row of C is of order ε times the norm of that row of R, so features of
    different units do not disturb one another. The diagonal is NaN where a row depends on those
    above it to within rounding, so that RRᵀ is singular.
    """
    n_rows = rows.shape[-2]
    scale = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
    scale = jnp.where(scale == 0, 1, scale)
    rest, columns = rows / scale, []
    while rest.shape[-2]:
        size = min(_PANEL, rest.shape[-2])
        panel, vectors = _reflect(rest[..., :size, :])
        # H₁H₂… = I − VᵀTV, where T⁻¹ is the upper triangle of VVᵀ, its diagonal halved to one
        # (Puglisi 1992).
        gram = product(vectors, vectors.mT)
        identity = jnp.eye(size, dtype=rows.dtype)
        mixing = inverse_lower(identity + jnp.tril(gram, -1)).mT
        below = rest[..., size:, :]
        below = below - product(product(product(below, vectors.mT), mixing), vectors)
        done = n_rows - rest.shape[-2]
        column = jnp.concatenate([jnp.tril(panel[..., :size]), below[..., :size]], axis=-2)
        columns.append(jnp.pad(column, [(0, 0)] * (rows.ndim - 2) + [(done, 0), (0, 0)]))
        rest = below[..., size:]
    root = jnp.concatenate(columns, axis=-1)
    diagonal = jnp.diagonal(root, axis1=-2, axis2=-1)[..., None, :]
    root = root * jnp.where(diagonal < 0, -1, 1).astype(rows.dtype)
    singular = jnp.abs(diagonal) <= n_rows * float(jnp.finfo(rows.dtype).eps)
    return jnp.where(singular & jnp.eye(n_rows, dtype=bool), jnp.nan, scale * root)


def _reflect(rows: Float[Array, "*k r c"]) -> tuple[Array, Array]:
    """The rows reduced to a lower triangle, and the vectors v, vᵀv = 2, of reflections I − vvᵀ."""
    index, column = jnp.arange(rows.shape[-2])[:, None], jnp.arange(rows.shape[-1])

    def reflect(i: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, vectors = carry
        row = jax.lax.dynamic_index_in_dim(rows, i, axis=-2)
        pivot = jax.lax.dynamic_index_in_dim(row, i, axis=-1)
        tail = jnp.where(column >= i, row, 0)
        length = jnp.sqrt(jnp.sum(tail**2, axis=-1, keepdims=True))
        # With the sign for which nothing cancels.
        vector = tail + jnp.where(column == i, jnp.where(pivot < 0, -length, length), 0)
        half_square = length * (length + jnp.abs(pivot))
        vector = vector / jnp.sqrt(jnp.where(half_square == 0, 1, half_square))
        rows = rows - jnp.sum(rows * vector, axis=-1, keepdims=True) * vector
        return rows, jnp.where(index == i, vector, vectors)

    return jax.lax.fori_loop(0, rows.shape[-2], reflect, (rows, jnp.zeros_like(rows)))


@lower_root.defjvp
def _lower_root_jvp(primals, tangents):
    # With Q = C⁻¹R of orthonormal rows, dC = C·Φ(X + Xᵀ), X = C⁻¹dR Qᵀ, where Φ takes the lower
    # triangle and half of the diagonal. It takes products only and keeps no reflection.
    (rows,), (tangent,) = primals, tangents
    root = lower_root(rows)
    inverse = inverse_lower(root)
    moved = product(product(inverse, tangent), product(inverse, rows).mT)
    return root, root_tangent(root, moved + moved.mT)


def root_tangent(root: Float[Array, "*k r r"], moved: Float[Array, "*k r r"]) -> Array:
    """dC of the lower triangular C where d(CCᵀ) = C·moved·Cᵀ."""
    identity = jnp.eye(root.shape[-1], dtype=root.dtype)
    return product(root, jnp.tril(moved) - moved * identity / 2)


def lower_factor(rows: Float[Array, "*k n d"]) -> Float[Array, "*k d d"]:
    """The lower triangular L with LᵀL = MᵀM and a positive diagonal, for M of n ≥ d rows."""
    return jnp.flip(lower_root(jnp.flip(rows.mT, axis=-2)), axis=(-2, -1)).mT


def condition_factor(
    rows: Float[Array, "*k n d"], n_given: int
) -> tuple[Float[Array, "*k m m"], Float[Array, "*k u u"], Float[Array, "*k u m"]]:
    """The marginal and the conditional of a Gaussian of precision MᵀM, given its first m features.

    With the lower triangular factor L = [[P, 0], [N, Q]], the first features have the precision
    PᵀP. The others, given those, have the precision QᵀQ and the mean μ_u − Q⁻¹N(x_o − μ_o).

    **Returns:** P, Q and the gains −Q⁻¹N.
    """
    factor = lower_factor(rows)
    given, rest = factor[..., :n_given, :n_given], factor[..., n_given:, n_given:]
    return given, rest, -product(inverse_lower(rest), factor[..., n_given:, :n_given])


def reflections(axes: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    """Coordinates of an orthogonal matrix, to the signs of its rows: the strictly upper triangle.

    The matrix is a product of Householder reflections, the i-th along (0, …, 0, 1, u_i,i+1, …).
    Any numbers u are valid, each matrix has some of size at most one, and the map is smooth with
    a smooth inverse.
    """
    _, vectors = _reflect(axes)
    diagonal = jnp.diagonal(vectors, axis1=-2, axis2=-1)
    return jnp.triu(vectors / diagonal[..., None], 1)


def axes_of(reflections: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    """The orthogonal matrix of these coordinates; only the strictly upper triangle is read."""
    identity = jnp.eye(reflections.shape[-1], dtype=reflections.dtype)
    vectors = jnp.triu(reflections, 1) + identity
    vectors = vectors * jnp.sqrt(2 / jnp.sum(vectors**2, axis=-1, keepdims=True))
    # As in `lower_root`.
    mixing = inverse_lower(identity + jnp.tril(product(vectors, vectors.mT), -1))
    return identity - product(product(vectors.mT, mixing), vectors)


def principal_axes(
    factors: Float[Array, "*k d d"],
) -> tuple[Float[Array, "*k d d"], Float[Array, "*k d"]]:
    """The principal axes of Σ = (MᵀM)⁻¹, as rows, and the log-variances along them, sorted.

    First derivatives are exact. Axes of equal variance are not unique and are held constant.
    """
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(factors), axis=(-2, -1), keepdims=True))
    rotation, rows = orthogonalise_rows(factors / scale)
    order = jnp.argsort(jnp.sum(rows**2, axis=-1), axis=-1)[..., None]
    rotation, rows = (jnp.take_along_axis(v, order, axis=-2) for v in (rotation, rows))
    moving = product(rotation, factors / scale)
    rows = rows + (moving - jax.lax.stop_gradient(moving))
    # The rows are orthogonal; a small rotation, zero itself, keeps them so in derivatives.
    gram = product(rows, rows.mT)
    square = jnp.diagonal(gram, axis1=-2, axis2=-1)[..., None]
    gap = jax.lax.stop_gradient(square - square.mT)
    change = (gram - jax.lax.stop_gradient(gram)) / jnp.where(gap == 0, jnp.inf, gap)
    rows = rows + product(change, rows)
    square = jnp.sum(rows**2, axis=-1)
    return rows / jnp.sqrt(square)[..., None], -jnp.log(square) - 2 * jnp.log(scale[..., 0])
