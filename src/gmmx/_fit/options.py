"""Fields that fitters share."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .._checks import check_count


def sweepable(value: Any) -> Any:
    """A NumPy scalar: traced by `eqx.filter_jit`, where a Python float would be compiled in.

    Whatever a number comes as, it leaves as the same type, so that another one compiles nothing
    new. What a transformation traces, and arrays of several settings, are left as they are.
    """
    if isinstance(value, jax.Array) and (value.ndim or isinstance(value, Tracer)):
        return value
    try:
        number = np.float64(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{value!r} is not a number.") from error
    if np.ndim(number) or not number >= 0:
        raise ValueError(f"{value!r} was given for a tolerance or rate, which is zero or positive.")
    return number


def optional(converter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A converter that leaves None as it is."""
    return lambda value: None if value is None else converter(value)


def positive(name: str) -> Callable[[Any], int]:
    """A converter to positive Python integers."""
    return lambda value: check_count(value, name)
