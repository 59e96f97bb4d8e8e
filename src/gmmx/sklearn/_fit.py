"""The fit of one start, and how it ended, in scikit-learn's terms."""

import dataclasses
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from .._fit.base import AbstractFitter
from .._fit.result import FitError, FitWarning
from .._fit.state import FitState
from .._fit.status import Status
from .._mixture import GaussianMixture
from ._report import Report
from ._rows import Rows
from ._start import ILL_DEFINED


def double_precision() -> Any:
    """A context in which float64 stays float64, whatever JAX is set to."""
    # In `jax.experimental` before JAX 0.8.
    place: Any = jax if hasattr(jax, "enable_x64") else import_module("jax.experimental")
    return place.enable_x64(True)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The fit of one start."""

    gmm: GaussianMixture
    lower_bounds: list[float]
    converged: bool
    status: Status | None
    """None if no step was made"""

    @property
    def lower_bound(self) -> float:
        return self.lower_bounds[-1] if self.lower_bounds else -np.inf


def run(
    fitter: AbstractFitter,
    gmm: GaussianMixture,
    rows: Rows,
    weights: Float[np.ndarray, " n"] | None,
    key: PRNGKeyArray | None,
    report: Report,
    rests: Callable[[FitState], bool],
) -> Outcome:
    """Fit one start.

    **Arguments:**

    - `rests`: whether the fit has converged by a rule that the fitter does not have.

    **Raises:** `ValueError`, in scikit-learn's words, if the fit failed.
    """
    rested = False

    def look(state: FitState) -> bool:
        nonlocal rested
        report.step(int(state.n_iter), float(np.max(np.asarray(state.log_likelihood_diff))))
        rested = rests(state)
        return rested

    try:
        with warnings.catch_warnings():
            # The estimator warns itself, once and only of the best start.
            warnings.simplefilter("ignore", FitWarning)
            result = fitter.fit(rows, gmm, weights=weights, key=key, callback=look)
    except FitError as error:
        # By their messages, since comparing two statuses is a program of its own.
        reason = Status[error.result.status]
        if reason == Status[Status.singular_covariance]:
            raise ValueError(ILL_DEFINED) from error
        raise ValueError(f"Fitting the mixture model failed: {reason}") from error
    status = result.status
    if Status[status] == Status[Status.interrupted]:
        if not rested:
            # Otherwise a search over parameters would go on to its next fit.
            raise KeyboardInterrupt
        status = Status.converged
    lower_bounds = np.asarray(result.history).tolist()
    return Outcome(result.gmm, lower_bounds, bool(result.converged) or rested, status)
