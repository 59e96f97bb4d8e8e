"""Checks of what callers pass: converted where that is harmless, else refused with the fix.

Shapes are known under any transformation and are always checked. Values are checked where they
are concrete; inside `jit`, `vmap` and `grad` a bad value becomes a status or NaN instead.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

# Numbers up to which a check on the host takes less time than to compile one for their shape.
_ON_HOST = 2**22


def is_concrete(*trees: Any) -> bool:
    """Whether Python can see the values, and values computed from them.

    Within a trace even an operation on concrete arrays is traced.
    """
    traced = isinstance(jax.lax.neg(np.float32(0)), Tracer)
    return not traced and not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def array_module(*arrays: Any) -> Any:
    """NumPy for concrete arrays that are small and lie on one device, else `jax.numpy`.

    Functions of NumPy compile nothing, where those of JAX compile for each new number of rows. Nor
    does `jnp.asarray` compile for the result, if it is given the dtype.
    """

    def is_spread(array: Any) -> bool:
        return isinstance(array, jax.Array) and len(array.sharding.device_set) > 1

    small = sum(array.size for array in arrays) <= _ON_HOST
    return np if small and is_concrete(*arrays) and not any(map(is_spread, arrays)) else jnp


def promote(a: Any, b: Any) -> Any:
    """The wider of two float dtypes, whatever the caller's promotion setting."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def as_one_dtype(**values: Any) -> list[Array]:
    """The values as arrays of the widest of their dtypes, by the names that errors have."""
    arrays = [as_floating(value, name) for name, value in values.items()]
    dtype = functools.reduce(promote, (array.dtype for array in arrays))
    return [array.astype(dtype) for array in arrays]


def in_dtype(tree: PyTree, dtype: Any) -> PyTree:
    """The tree with all its floats of this dtype; the tree itself if they are."""
    if all(leaf.dtype == dtype for leaf in _floats(tree)):
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_float(leaf) else leaf, tree)


def _floats(tree: PyTree) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def same_dtype(*trees: Any) -> tuple[Any, ...]:
    """The arrays and mixtures in the widest of their float dtypes."""
    floats = _floats(trees)
    dtype = floats[0].dtype
    for leaf in floats:
        dtype = promote(dtype, leaf.dtype)
    return in_dtype(trees, dtype)


def as_floating(
    value: Any,
    name: str,
    dtype: Any = None,
    *,
    of_numbers: Any = None,
    may_be_missing: bool = False,
) -> Array:
    """A float32 or float64 array of the value; integers and booleans are converted.

    **Arguments:**

    - `dtype`: of the array; that of the value by default.
    - `of_numbers`: the dtype for a Python number, which has none of its own.
    - `may_be_missing`: masked and null values become NaN.
    """
    if type(value).__name__ == "Data":
        raise ValueError(
            f"{name} is a gmmx.Data; expected an array of complete rows, such as gmm.impute(data)."
        )
    if dtype is None and type(value) in (int, float):
        dtype = of_numbers
    if not isinstance(value, jax.Array):
        value = _as_numpy(value, name, may_be_missing)
        if value.dtype == object:
            try:
                value = value.astype(float)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{name} holds values that are not numbers. Encode or drop the columns that "
                    "are not numeric."
                ) from error
    if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool):
        raise ValueError(f"{name} has dtype {value.dtype}; expected an array of real numbers.")
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} is complex ({value.dtype}), but mixtures are of real vectors. Stack the real "
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


def _as_numpy(value: Any, name: str, may_be_missing: bool) -> np.ndarray:
    """A NumPy array of the machine's byte order; what says that values are missing is heard."""
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise ValueError(
            f"{name} is a sparse {type(value).__name__}; expected a dense array. Pass "
            f"{name}.toarray(), or fewer features."
        )
    missing = np.ma.getmaskarray(value) if isinstance(value, np.ma.MaskedArray) else None
    array = np.asarray(value)
    if array.dtype == object:
        missing = np.vectorize(_is_missing, otypes=[bool])(array)
    if missing is not None and missing.any():
        if not may_be_missing:
            raise ValueError(
                f"{name} holds {int(missing.sum())} missing values, the first in row "
                f"{int(np.argwhere(missing)[0][0])}. {_DROP}{_OR_MISSING if name == 'x' else ''}."
            )
        kept = np.where(missing, np.nan, array)
        array = kept.astype(float) if kept.dtype == object else kept
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _is_missing(value: Any) -> bool:
    """Whether it is None, or one of pandas' marks, which are found by name without pandas."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


_DROP = "Drop those rows, or fill in the values first"
_OR_MISSING = "; gmmx.Data(x, missing=True) takes missing values as they are"
DROP_OR_TAKE = f"{_DROP}{_OR_MISSING}."
"""The fix for NaN in rows that may also be `gmmx.Data`"""


def check_finite(value: Array, name: str, fix: str = f"{_DROP}.") -> None:
    """Refuse NaN and infinity, where Python can see them."""
    if not is_concrete(value):
        return
    on_host = array_module(value) is np
    if not (np.isfinite(np.asarray(value)).all() if on_host else bool(_all_finite(value))):
        bad = ~np.isfinite(np.atleast_1d(np.asarray(value)))
        raise ValueError(
            f"{name} holds {int(bad.sum())} values that are NaN or infinite, the first in row "
            f"{int(np.nonzero(bad)[0][0])}. {fix}"
        )


_all_finite = jax.jit(lambda value: jnp.all(jnp.isfinite(value)))


def check_points(x: Any, n_features: int, dtype: Any) -> Float[Array, "*batch d"]:
    """Points at which a mixture is evaluated, `(*batch, d)`, finite."""
    x = as_points(x, n_features, dtype)
    check_finite(x, "x", f"{_DROP}, for instance by gmm.impute(x).")
    return x


def as_points(x: Any, n_features: int, dtype: Any) -> Float[Array, "*batch d"]:
    """Points of the right number of features; not checked to be finite."""
    x = as_floating(x, "x")
    if x.ndim == 0 or x.shape[-1] != n_features:
        fix = " Transpose it?" if x.ndim == 2 and x.shape[0] == n_features else ""
        raise ValueError(
            f"x has shape {x.shape}, but the mixture has {n_features} features: expected "
            f"(*batch, {n_features}).{fix}"
        )
    return in_dtype(x, promote(x.dtype, dtype))


def check_data(x: Any, n_components: int, n_features: int | None = None) -> Float[Array, "n d"]:
    """Data to fit: `(n, d)`, finite, with at least as many rows as components."""
    x = as_floating(x, "x")
    if x.ndim != 2:
        fix = (
            " For one feature pass x[:, None]; for one sample, x[None]."
            if x.ndim == 1
            else " Reshape it to rows of features."
        )
        raise ValueError(f"x has shape {x.shape}; expected (n_samples, n_features).{fix}")
    n, d = x.shape
    if n == 0 or d == 0:
        raise ValueError(f"x is empty: it has {n} samples of {d} features.")
    if n_features is not None and d != n_features:
        raise ValueError(
            f"x has {d} features, but the mixture has {n_features}. Make a mixture for these "
            "data by gmmx.initialize(x, n_components), or select the features of this one."
        )
    if n < n_components:
        raise ValueError(
            f"x has {n} samples, fewer than the {n_components} components. Take fewer components."
        )
    check_finite(x, "x", DROP_OR_TAKE)
    return x


def as_weights(
    weights: Any, shape: tuple[int, ...], dtype: Any, name: str = "weights"
) -> Float[Array, "*batch"]:
    """How often each sample counts: finite, not negative, and not all zero."""
    weights = as_floating(weights, name, dtype)
    if weights.shape != shape:
        raise ValueError(
            f"{name} has shape {weights.shape}; expected one weight for each sample, {shape}."
        )
    check_finite(weights, name)
    if not is_concrete(weights):
        return weights
    xp = array_module(weights)
    values = xp.asarray(weights)
    if bool(xp.any(values < 0)):
        raise ValueError(
            f"{name} holds negative values, the least {float(values.min()):g}. A weight says how "
            "often a sample counts: it is zero or positive."
        )
    if not bool(xp.any(values > 0)):
        raise ValueError(f"{name} is all zero: no sample counts.")
    return weights


def check_weights(
    weights: Any, n: int, dtype: Any, name: str = "weights"
) -> Float[Array, " n"] | None:
    """Sample weights of a fit, of which only the ratios matter: scaled to a mean of one."""
    if weights is None:
        return None
    weights = as_weights(weights, (n,), dtype, name)
    xp = array_module(weights)
    values = xp.asarray(weights)
    # Divided by the largest first, so that neither huge nor tiny weights overflow the sum.
    values = values / xp.max(values)
    return jnp.asarray(values / xp.mean(values), weights.dtype)


def check_count(value: Any, name: str) -> int:
    """A positive Python integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r}; expected a positive integer.")
    return int(value)


def check_floor(reg_covar: Any) -> None:
    """`reg_covar`: finite and not negative, where Python can see it."""
    if not is_concrete(reg_covar):
        return
    try:
        values = np.asarray(reg_covar, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reg_covar={reg_covar!r}; expected a number.") from error
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"reg_covar={reg_covar!r}; expected a finite number that is not negative.")


def as_key(key: Any) -> PRNGKeyArray:
    """A random key: `jax.random.key(0)` for None."""
    if key is None:
        return jax.random.key(0)
    if isinstance(key, int | float | np.number):
        raise ValueError(f"key={key!r}; expected a JAX key, such as jax.random.key(0).")
    return key


def check_parameters(
    weights: Array,
    means: Array,
    covariances: Array,
    natural_shape: Callable[[int, int], tuple[int, ...]],
    covariance_type: str,
    name: str = "covariances",
) -> None:
    """Refuse what is not a mixture: shapes always, values where Python sees them.

    **Arguments:**

    - `natural_shape`: the shape of the covariances, of the numbers of components and features.
    - `covariance_type`: the name of the structure.
    - `name`: what the covariances are called.
    """
    if means.ndim != 2:
        raise ValueError(f"means has shape {means.shape}; expected (n_components, n_features).")
    k, d = means.shape
    if weights.shape != (k,):
        raise ValueError(
            f"weights has shape {weights.shape}, but means has {k} components: expected ({k},)."
        )
    expected = natural_shape(k, d)
    if covariances.shape != expected:
        raise ValueError(
            f"{name} has shape {covariances.shape}; expected {expected} for "
            f"covariance_type={covariance_type!r}, {k} components and {d} features."
        )
    for value, label in ((weights, "weights"), (means, "means"), (covariances, name)):
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

    - `rtol`: how much they may differ, in units of √(C_ii C_jj), if not by rounding.
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
    """Refuse covariances with a pivot or variance that is not positive, or NaN.

    **Arguments:**

    - `pivots`: the diagonals of the Cholesky factors, or the variances.
    - `n_own`: the number of last axes that belong to one component.
    """
    if not is_concrete(pivots):
        return
    bad = np.argwhere(~(np.asarray(pivots) > 0))
    if bad.size:
        k = bad[0][: pivots.ndim - n_own]
        raise ValueError(
            f"the covariance{_of_component(k)} is not positive definite. The variance in every "
            "direction has to exceed zero by more than rounding: add a small number to the "
            "diagonal."
        )


def _of_component(index: Any) -> str:
    return f" of component {int(index[0])}" if len(index) else ""
