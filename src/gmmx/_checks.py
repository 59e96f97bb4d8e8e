"""What comes in from a caller: converted where that is harmless, refused with the fix where not.

Shapes are known under any transformation and are checked always. Values are checked where they
are concrete; inside `jit`, `vmap` and `grad` a bad value becomes a status or a NaN instead.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

if TYPE_CHECKING:
    from ._covariance import AbstractCovariance
    from ._mixture import GaussianMixture


def is_concrete(*trees: Any) -> bool:
    """Whether Python can see the values, and values computed from them.

    Within a trace even an operation on concrete arrays is traced.
    """
    traced = isinstance(jax.lax.neg(np.float32(0)), Tracer)
    return not traced and not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def promote(a: Any, b: Any) -> Any:
    """The wider of two float dtypes, whatever the caller's promotion setting."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def in_dtype(tree: PyTree, dtype: Any) -> PyTree:
    """The tree with all its leaves of this dtype: itself, where they are."""
    if all(leaf.dtype == dtype for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def same_dtype(*trees: Any) -> tuple[Any, ...]:
    """The arrays and mixtures, all in the widest of their float dtypes."""
    dtype = jax.tree.leaves(trees)[0].dtype
    for leaf in jax.tree.leaves(trees):
        dtype = promote(dtype, leaf.dtype)
    return in_dtype(trees, dtype)


def as_floating(value: Any, name: str, dtype: Any = None, *, of_numbers: Any = None) -> Array:
    """A float32 or float64 array of the value; integers and booleans are converted.

    **Arguments:**

    - `dtype`: of the array; the value's own, if there is none.
    - `of_numbers`: the dtype of a Python number, which has none of its own.
    """
    if dtype is None and type(value) in (int, float):
        dtype = of_numbers
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
        if value.dtype == object:
            try:
                value = value.astype(float)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{name} holds values that are not numbers. Encode or drop the columns that "
                    "are not numeric."
                ) from error
    if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool):
        raise ValueError(f"{name} has dtype {value.dtype}; an array of real numbers was wanted.")
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} is complex ({value.dtype}); mixtures are of real vectors. Stack the real "
            "and imaginary parts as two features."
        )
    if dtype is None:
        dtype = promote(value.dtype, jnp.float32)
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if value.dtype != dtype and isinstance(value, np.ndarray):
        with np.errstate(over="ignore"):
            narrowed = value.astype(dtype)
        if np.isfinite(narrowed).all() != np.isfinite(value).all():
            raise ValueError(
                f"{name} holds values too large for {dtype}. Rescale it, or call "
                "jax.config.update('jax_enable_x64', True) first."
            )
        value = narrowed
    return jnp.asarray(value, dtype)


def check_finite(value: Array, name: str) -> None:
    """Refuse NaN and infinity, where Python can see them."""
    if not is_concrete(value):
        return
    if not bool(_all_finite(value)):
        bad = ~np.isfinite(np.asarray(value))
        rows = np.unique(np.nonzero(bad)[0]) if value.ndim > 1 else np.nonzero(bad)[0]
        raise ValueError(
            f"{name} holds {int(bad.sum())} values that are NaN or infinite, the first in row "
            f"{int(rows[0]) if rows.size else 0}. Drop those rows or fill the values in first."
        )


_all_finite = jax.jit(lambda value: jnp.all(jnp.isfinite(value)))


def check_points(x: Any, n_features: int, dtype: Any) -> Float[Array, "*batch d"]:
    """Points to evaluate a mixture at: any leading axes, the last the features; finite."""
    x = as_points(x, n_features, dtype)
    check_finite(x, "x")
    return x


def as_points(x: Any, n_features: int, dtype: Any) -> Float[Array, "*batch d"]:
    """Points of the right number of features; whether they are finite is not looked at."""
    x = as_floating(x, "x")
    if x.ndim == 0 or x.shape[-1] != n_features:
        fix = " Transpose it?" if x.ndim == 2 and x.shape[0] == n_features else ""
        raise ValueError(
            f"x has shape {x.shape}, but the mixture has {n_features} features: the last axis of "
            f"x has to be of that length.{fix}"
        )
    return in_dtype(x, promote(x.dtype, dtype))


def check_data(x: Any, n_components: int, n_features: int | None = None) -> Float[Array, "n d"]:
    """Data to fit: (n, d), finite, at least as many rows as components."""
    x = as_floating(x, "x")
    if x.ndim != 2:
        fix = (
            " For one feature pass x[:, None]; for one sample, x[None]."
            if x.ndim == 1
            else " Reshape it to rows of features."
        )
        raise ValueError(f"x has shape {x.shape}; (n_samples, n_features) was wanted.{fix}")
    n, d = x.shape
    if n == 0 or d == 0:
        raise ValueError(f"x is empty: it has {n} samples of {d} features.")
    if n_features is not None and d != n_features:
        raise ValueError(
            f"x has {d} features, but the mixture has {n_features}. Make the mixture for this "
            "data, with gmmx.initialize(x, n_components), or select the features it was made for."
        )
    if n < n_components:
        raise ValueError(
            f"x has {n} samples, fewer than the {n_components} components. Take fewer components."
        )
    check_finite(x, "x")
    return x


def check_weights(
    weights: Any, n: int, dtype: Any, name: str = "weights"
) -> Float[Array, " n"] | None:
    """Sample weights: one non-negative number a row, scaled to a mean of one."""
    if weights is None:
        return None
    weights = as_floating(weights, name, dtype)
    if weights.shape != (n,):
        raise ValueError(
            f"{name} has shape {weights.shape}; one weight a sample was wanted, shape ({n},)."
        )
    check_finite(weights, name)
    if is_concrete(weights):
        if bool(jnp.any(weights < 0)):
            raise ValueError(
                f"{name} holds negative values, the least {float(weights.min()):g}. A weight "
                "says how often a sample counts: it is zero or positive."
            )
        if not bool(jnp.any(weights > 0)):
            raise ValueError(f"{name} is all zero: no sample counts.")
    # Divided by the largest first, so that neither huge nor tiny weights overflow the sum.
    weights = weights / jnp.max(weights)
    return weights / jnp.mean(weights)


def check_count(value: Any, name: str) -> int:
    """A positive Python integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r}; a positive integer was wanted.")
    return int(value)


def check_mixture(gmm: Any) -> "GaussianMixture":
    """One mixture; not what a fit gives back, nor a stack."""
    from ._mixture import GaussianMixture

    if not isinstance(gmm, GaussianMixture):
        raise ValueError(
            f"gmm is of type {type(gmm).__name__}; a GaussianMixture was wanted. Of a fit pass "
            "result.gmm."
        )
    if gmm.means.ndim != 2:
        raise ValueError(
            f"gmm is a stack of mixtures: its means have shape {gmm.means.shape}. Take one: "
            "jax.tree.map(lambda leaf: leaf[0], stack)."
        )
    return gmm


def check_parameters(
    weights: Array, means: Array, covariances: Array, structure: "type[AbstractCovariance]"
) -> None:
    """Refuse parameters that are no mixture: shapes always, values where Python sees them."""
    if means.ndim != 2:
        raise ValueError(f"means has shape {means.shape}; (n_components, n_features) was wanted.")
    if weights.shape != means.shape[:1]:
        raise ValueError(
            f"weights has shape {weights.shape}, but means is of {means.shape[0]} components: "
            f"({means.shape[0]},) was wanted."
        )
    wanted = structure.natural_shape(*means.shape)
    name = structure.covariance_type
    if covariances.shape != wanted:
        raise ValueError(
            f"covariances has shape {covariances.shape}; with covariance_type={name!r}, "
            f"{means.shape[0]} components and {means.shape[1]} features {wanted} was wanted."
        )
    for value, label in ((weights, "weights"), (means, "means"), (covariances, "covariances")):
        check_finite(value, label)
    if not is_concrete(weights, covariances):
        return
    if bool(jnp.any(weights < 0)):
        k = int(jnp.argmin(weights))
        raise ValueError(f"weights[{k}] = {float(weights[k]):g} is negative.")
    total = float(np.asarray(weights, float).sum())
    if abs(total - 1) > 1e3 * float(jnp.finfo(weights.dtype).eps):
        raise ValueError(f"weights sum to {total:.8g}, not to one: divide them by their sum.")


def check_symmetric(covariances: Array, rtol: float | None = None) -> None:
    """Refuse matrices `(*k, d, d)` that differ from their transposes by more than rounding.

    **Arguments:**

    - `rtol`: how much they may differ instead, in units of √(C_ii C_jj).
    """
    if not is_concrete(covariances):
        return
    matrices = np.asarray(covariances, float)
    variances = np.abs(np.diagonal(matrices, axis1=-2, axis2=-1))
    size = np.sqrt(variances[..., :, None] * variances[..., None, :])
    apart = np.abs(matrices - np.swapaxes(matrices, -1, -2))
    rtol = 1e2 * float(jnp.finfo(covariances.dtype).eps) if rtol is None else rtol
    uneven = np.argwhere(apart > rtol * size)
    if uneven.size:
        *k, i, j = uneven[0]
        raise ValueError(
            f"the covariance{_of_component(k)} is not symmetric: entry ({i}, {j}) is "
            f"{matrices[*k, i, j]:g} and ({j}, {i}) is {matrices[*k, j, i]:g}. Take "
            "(C + C.T) / 2 if they differ by rounding only."
        )


def check_positive(pivots: Array, n_own: int) -> None:
    """Refuse covariances with a pivot or variance that is not positive; NaN is not.

    **Arguments:**

    - `pivots`: the diagonals of the Cholesky factors, or the variances.
    - `n_own`: how many of its axes, the last ones, belong to one component.
    """
    if not is_concrete(pivots):
        return
    bad = np.argwhere(~(np.asarray(pivots) > 0))
    if bad.size:
        k = bad[0][: pivots.ndim - n_own]
        raise ValueError(
            f"the covariance{_of_component(k)} is not positive definite. Every variance, in "
            "every direction, has to be above zero by more than rounding: add a small number to "
            "the diagonal."
        )


def _of_component(index: Any) -> str:
    return f" of component {int(index[0])}" if len(index) else ""
