"""Converters for the fields of fitters."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .._checks import check_count, check_floor


def sweepable(value: Any) -> Any:
    """A NumPy scalar, which `eqx.filter_jit` traces; a Python float would be a constant.

    All kinds of numbers become the same type, so that another value compiles nothing new. Traced
    values, and arrays of several settings, are returned as they are.
    """
    if isinstance(value, jax.Array) and (value.ndim or isinstance(value, Tracer)):
        return value
    try:
        number = np.float64(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{value!r} is not a number.") from error
    if np.ndim(number) or not number >= 0:
        raise ValueError(f"{value!r} is not a tolerance or rate; expected a zero or positive one.")
    return number


def floor(value: Any) -> Any:
    """`sweepable` for `reg_covar`, which may also be the variances of the features, `(d,)`."""
    if isinstance(value, Tracer):
        return value
    check_floor(value)
    values = np.asarray(value, np.float64)
    return values if values.ndim else values[()]


def optional(converter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A converter that returns None as it is."""
    return lambda value: None if value is None else converter(value)


def positive(name: str) -> Callable[[Any], int]:
    """A converter to positive Python integers, which a counter of 32 bits can reach."""

    def convert(value: Any) -> int:
        if check_count(value, name) > np.iinfo(np.int32).max:
            raise ValueError(f"{name}={value}; expected at most {np.iinfo(np.int32).max}.")
        return int(value)

    return convert
