"""What a fit returns."""

import warnings
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .. import _summary
from .rounding import means_are_rounded
from .state import FitState
from .status import Status


class FitResult(eqx.Module):
    """The outcome of `fitter.fit(x, gmm)`. It does not hold the data."""

    gmm: Any
    """The fitted mixture: a `GaussianMixture`, or a `BackgroundMixture` where the start was one"""
    n_iter: Int[Array, ""]
    """How many steps were made"""
    log_likelihood: Float[Array, ""]
    """Mean log-likelihood of `gmm` on the data, weighted if there were weights, in nats a sample"""
    log_likelihood_diff: Float[Array, ""]
    """Its change in the last step"""
    converged: Bool[Array, ""]
    """Whether it changed by less than the tolerance"""
    status: Status
    """How the fit ended; `Status[result.status]` is the message"""
    floor: Float[Array, " d"]
    """What was added to the variance of each feature, in the squared units of the data"""
    spurious: Bool[Array, " k"]
    """The components that the floor alone keeps from collapsing, or that have too few samples"""
    history: Float[Array, " steps"]
    """Mean log-likelihood at the start of each step (for a `GradientFitter` the objective, with
    `reg_covar`, on the rows that are not held out); under a transformation as long as `max_iter`,
    and −∞ after the last step"""
    start: Int[Array, ""]
    """Which start it is of, counted from 0"""

    @property
    def failed(self) -> Bool[Array, "*batch"]:
        """Whether the fit broke down: its likelihood, perhaps high, says nothing."""
        return (self.status == Status.singular_covariance) | (self.status == Status.non_finite)

    def summary(self, x: Any = None, *, names: Any = None) -> _summary.Summary:
        """How the fit ended, and the components, to be printed; see `GaussianMixture.summary`."""
        return _summary.of_fit(self, Status[self.status], x, names=names)

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def conclude(
    state: FitState,
    *,
    floor: Float[Array, " d"] | None = None,
    spurious: Bool[Array, " k"] | None = None,
    empty: Bool[Array, ""] | bool = False,
) -> FitResult:
    """The result of a state's model, and how the fit ended.

    **Arguments:**

    - `floor`: what was added to the variances; nothing by default.
    - `spurious`: the components that are no clusters; none by default.
    - `empty`: whether a component has lost all its samples.
    """
    gmm = state.gmm
    floor = jnp.zeros_like(gmm.means[0]) if floor is None else floor
    spurious = jnp.zeros(gmm.n_components, bool) if spurious is None else spurious
    status = Status.where(state.status == Status.running, Status.max_steps_reached, state.status)
    converged = status == Status.converged
    ended = converged | (status == Status.max_steps_reached)
    rounded = converged & means_are_rounded(gmm)
    status = Status.where(rounded, Status.means_rounded, status)
    status = Status.where(converged & jnp.any(spurious), Status.spurious_component, status)
    status = Status.where(ended & empty, Status.empty_component, status)
    return FitResult(
        gmm=gmm,
        n_iter=state.n_iter,
        log_likelihood=state.log_likelihood,
        log_likelihood_diff=state.log_likelihood_diff,
        converged=converged,
        status=status,
        floor=floor,
        spurious=spurious,
        history=jnp.zeros(0, state.log_likelihood.dtype),
        start=jnp.zeros((), jnp.int32),
    )


def mean_of(log_prob: Float[Array, " n"], weights: Float[Array, " n"] | None) -> Float[Array, ""]:
    """Σ w_i log p(x_i) / Σ w_i"""
    return jnp.mean(log_prob) if weights is None else weights @ log_prob / jnp.sum(weights)


class FitWarning(UserWarning):
    """A fit ended in a way that the user should know of."""


class FitError(RuntimeError):
    """A fit failed. `result` holds the last good model."""

    def __init__(self, message: str, result: FitResult):
        super().__init__(message)
        self.result = result


def announce(result: FitResult) -> None:
    """Raise or warn of a bad status, where Python sees it."""
    # By their messages, since to compare two statuses is a program of its own.
    reason, steps = Status[result.status], int(result.n_iter)
    if reason == Status[Status.converged]:
        return
    if reason in (Status[Status.non_finite], Status[Status.singular_covariance]):
        message = (
            f"The fit failed at step {steps}: {reason} (The exception's `result` holds the model.)"
        )
        raise FitError(message, result)
    # To the line that called fit.
    warnings.warn(f"After {steps} steps {reason}", FitWarning, stacklevel=4)
