"""Whether float32 holds the data."""

import numpy as np
from jaxtyping import Float

# The part of a column's spread by which a number may change.
_MOST = 1e-4
# As many rows show the spread.
_ROWS = 100_000


def changed(
    names: list[str], x: Float[np.ndarray, "n d"], change: Float[np.ndarray, "n d"]
) -> str | None:
    """The column that rounding changes most in units of its spread, and by how much.

    **Returns:** None if no column changes by much.
    """
    change = np.nanmax(change, axis=0, initial=0)
    some = x[:: -(-len(x) // _ROWS)]
    low, high = np.nanquantile(some, [0.25, 0.75], axis=0)
    # Half of the rows may be equal.
    with np.errstate(over="ignore"):
        spread = np.where(high > low, high - low, np.nanstd(some, axis=0))
    part = np.divide(change, spread, out=np.zeros_like(change), where=spread > 0)
    worst = int(np.argmax(part))
    if not part[worst] > _MOST:
        return None
    share = f"{part[worst]:.2%} of" if part[worst] < 1 else "more than"
    return f"column {names[worst]!r} by up to {change[worst]:.2g}, {share} its spread"


def by_float32(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """By how much float32 changes x."""
    with np.errstate(over="ignore"):
        return np.abs(x - x.astype(np.float32))
