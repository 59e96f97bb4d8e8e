"""Fields that fitters share."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from .._checks import check_count

_NAMES = frozenset({"weights", "means", "covariances"})


def sweepable(value: Any) -> Any:
    """A NumPy scalar: traced by `eqx.filter_jit`, where a Python float would be compiled in."""
    if isinstance(value, jax.Array):
        return value
    try:
        number = np.float64(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{value!r} is not a number.") from error
    if not number >= 0:
        raise ValueError(f"{value!r} was given for a tolerance or rate, which is zero or positive.")
    return number


def optional(converter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A converter that leaves None as it is."""
    return lambda value: None if value is None else converter(value)


def positive(name: str) -> Callable[[Any], int]:
    """A converter to positive Python integers."""
    return lambda value: check_count(value, name)


def check_frozen(names: str | Iterable[str]) -> frozenset[str]:
    """What a fit leaves as it is."""
    names = frozenset([names] if isinstance(names, str) else names)
    if names - _NAMES:
        raise ValueError(
            f"frozen={sorted(names)!r}; any of {sorted(_NAMES)} was wanted, the names of the "
            "mixture's parameters."
        )
    if names == _NAMES:
        raise ValueError("weights, means and covariances are all frozen: nothing is left to fit.")
    return names
