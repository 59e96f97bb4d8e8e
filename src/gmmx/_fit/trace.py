"""The likelihoods of the steps of a fit, in its result."""

import dataclasses
from typing import Any

import jax
import numpy as np

from .result import FitResult
from .status import Status


def with_history(
    result: FitResult, blocks: list[np.ndarray], dtype: Any, interrupted: bool
) -> FitResult:
    """The result with the likelihoods of its steps, of the start that it is of.

    **Arguments:**

    - `blocks`: the likelihoods of all models that were evaluated, of all starts.
    - `interrupted`: whether somebody ended the fit.
    """
    # In NumPy: as a JAX array each length would be a program of its own.
    made, start = jax.device_get((result.n_iter, result.start))
    of_start = [block.reshape(len(block), -1)[:, int(start)] for block in blocks if len(block)]
    trace = np.concatenate([np.zeros(0, dtype), *of_start])
    result = dataclasses.replace(result, history=jax.device_put(trace[:made]))
    if interrupted and bool(result.status == Status.max_steps_reached):
        result = dataclasses.replace(result, status=Status.interrupted)
    return result
