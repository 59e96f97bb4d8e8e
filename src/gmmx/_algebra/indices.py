"""Features that a caller names."""

from typing import Any

import numpy as np
from jax.core import Tracer


def split(indices: Any, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """The named features, in the caller's order, and the others in theirs.

    They set shapes, so they have to be known outside of any trace.

    **Arguments:**

    - `indices`: integers, negative ones counted from the end, one integer, or a boolean mask
        `(d,)`.

    **Raises:** `ValueError` where a feature does not exist or is named twice.
    """
    if isinstance(indices, Tracer):
        raise ValueError(
            "indices is traced, but shapes depend on it. Pass a list, a tuple or a NumPy array "
            "that is not an argument of the transformed function."
        )
    named = np.asarray(indices)
    if named.dtype == bool:
        if named.shape != (n_features,):
            raise ValueError(
                f"indices is a mask of shape {named.shape}; expected ({n_features},), one entry a "
                "feature."
            )
        named = np.flatnonzero(named)
    if named.ndim == 0:
        named = named[None]
    if named.ndim != 1 or named.size == 0 or not np.issubdtype(named.dtype, np.integer):
        raise ValueError(
            f"indices={indices!r}; expected a list of one or more feature numbers, such as [0] or "
            "[0, 2], or a boolean mask."
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
            f"indices={indices!r} names a feature twice. To repeat features, use affine with "
            "noise added by convolve."
        )
    return named, np.setdiff1d(np.arange(n_features), named)
