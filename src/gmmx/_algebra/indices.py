"""Features that a caller names."""

from typing import Any

import numpy as np
from jax.core import Tracer


def split(indices: Any, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """The features named, in the caller's order, and the others in theirs.

    Which features there are sets shapes, so they have to be known outside of any trace.

    **Arguments:**

    - `indices`: integers, negative ones counted from the end, or a boolean mask `(d,)`.
    """
    if isinstance(indices, Tracer):
        raise ValueError(
            "indices is traced, but shapes depend on it. Give it as a list, a tuple or a NumPy "
            "array that is no argument of the transformed function."
        )
    named = np.asarray(indices)
    if named.dtype == bool:
        if named.shape != (n_features,):
            raise ValueError(
                f"indices is a mask of shape {named.shape}; one entry a feature was wanted, "
                f"({n_features},)."
            )
        named = np.flatnonzero(named)
    if named.ndim != 1 or named.size == 0 or not np.issubdtype(named.dtype, np.integer):
        raise ValueError(
            f"indices={indices!r}; a list of one or more feature numbers was wanted, such as [0] "
            "or [0, 2], or a boolean mask."
        )
    outside = named[(named < -n_features) | (named >= n_features)]
    if outside.size:
        raise ValueError(
            f"indices holds {int(outside[0])}, but the mixture has {n_features} features: 0 to "
            f"{n_features - 1}, or −{n_features} to −1 counted from the end."
        )
    named = named.astype(int) % n_features
    if np.unique(named).size < named.size:
        raise ValueError(
            f"indices={indices!r} names a feature twice; each can be taken once. To repeat "
            "features, use affine with noise added by convolve."
        )
    return named, np.setdiff1d(np.arange(n_features), named)
