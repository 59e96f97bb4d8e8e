"""The rows that an estimator is given: checked, and with what is known of them."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from sklearn.utils.validation import validate_data

from .. import _rows
from .._data import Data, completed

Rows = Float[np.ndarray, "n d"] | Data
"""Complete samples, or what is known of them"""

_FLOATS = (np.float64, np.float32)


def checked(estimator: Any, X: Any, *y: Any, **options: Any) -> Any:
    """X as an array `(n, d)`, or X and y, with NaN only where the estimator takes it.

    **Arguments:**

    - `options`: those of `sklearn.utils.validation.validate_data`.
    """
    if isinstance(X, Data):
        raise ValueError(
            "X is a gmmx.Data; expected an array of samples. Pass the samples themselves, with "
            "allow_nan=True and noise= for what is known of them, or fit it by gmmx.EMFitter."
        )
    if isinstance(X, np.ma.MaskedArray):
        # Whose mask scikit-learn does not look at.
        X = np.where(np.ma.getmaskarray(X), np.nan, X.data)
    check: Any = validate_data
    found = check(estimator, X, *y, dtype=_FLOATS, ensure_all_finite="allow-nan", **options)
    absent = np.isnan(found[0] if y else found)
    if absent.any() and not estimator.allow_nan:
        name = type(estimator).__name__
        raise ValueError(
            f"Input X contains NaN. There are {int(absent.sum())}, the first in row "
            f"{int(np.argwhere(absent)[0][0])}. {name}(allow_nan=True) takes NaN as values that "
            "were not measured; otherwise drop those rows, or fill in the values first."
        )
    return found


def measured(x: Float[np.ndarray, "n d"], noise: Any = None) -> Rows:
    """The rows as a mixture takes them: the array itself where it is complete and without noise."""
    gaps = bool(np.isnan(x).any())
    return Data(x, noise=noise, missing=gaps) if gaps or noise is not None else x


def rough(rows: Rows, weights: Float[np.ndarray, " n"] | None) -> Float[np.ndarray, "n d"]:
    """Complete rows to draw a start from, see `Data.completed`."""
    if not isinstance(rows, Data):
        return rows
    # Filled up, so that data of another length compile nothing.
    return np.array(_completed(*_rows.fill(rows, weights)))[: rows.shape[0]]


_completed = jax.jit(completed)
