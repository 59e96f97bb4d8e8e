"""What a fit gives back, and how it ended."""

import warnings
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._mixture import GaussianMixture
from .rounding import means_are_rounded

if TYPE_CHECKING:
    from .base import FitState


class Status(eqx.Enumeration):
    """How a fit ended; the messages are for the user."""

    running = "the fit has not ended yet."
    converged = "the likelihood changed by less than tol."
    max_steps_reached = (
        "max_iter was reached before the likelihood changed by less than tol. Raise max_iter, or "
        "tol if the result is good enough."
    )
    interrupted = "the fit was interrupted; the result is the best model up to then."
    empty_component = (
        "a component has lost all its samples and stands at weight zero. Take fewer components, "
        "or start from gmmx.initialize(x, n_components)."
    )
    means_rounded = (
        "the likelihood changed by less than tol, but the data lie so far from zero, in units of "
        "the components' widths, that storing the means may cost more than 1e-3 nats a sample. "
        "Subtract an offset from the data, or fit in float64 "
        "(jax.config.update('jax_enable_x64', True))."
    )
    likelihood_decreased = (
        "the likelihood fell by more than tol and rounding allow; the result is the model before "
        "that. Fit in float64 (jax.config.update('jax_enable_x64', True)), or rescale the data."
    )
    singular_covariance = (
        "a covariance became singular; the result is the model before that. A component has "
        "collapsed onto a few or equal points, or onto a plane: raise reg_covar, take fewer "
        "components, or drop constant and duplicate columns."
    )
    non_finite = (
        "the likelihood became NaN or infinite; the result is the last model of finite "
        "likelihood. Look for a mixture of NaN parameters at the start, or a learning rate that "
        "is too high."
    )


class FitResult(eqx.Module):
    """The outcome of `fitter.fit(x, gmm)`. The data is not in it."""

    gmm: GaussianMixture
    """The fitted mixture"""
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
    history: Float[Array, " steps"]
    """The mean log-likelihood at the start of each step (of a `GradientFitter` what it maximises,
    with `reg_covar`, on the rows that are not held out); under a transformation as long as
    `max_iter`, and NaN after the last step"""
    start: Int[Array, ""]
    """Which start it is of, counted from 0; a fitter of one start has that one"""
    packed: Float[Array, ""]
    """The part of the data for which the last step took packed moments, the fast way that is
    used where it is accurate; the rest was whitened (see the page on numerical accuracy)"""


def conclude(
    state: "FitState",
    log_likelihood: Float[Array, ""],
    packed: Float[Array, ""],
    empty: Bool[Array, ""] | bool = False,
) -> FitResult:
    """The result of a state's model, whose mean log-likelihood this is, and how the fit ended.

    **Arguments:**

    - `packed`: the part of the data for which packed moments were taken.
    - `empty`: whether a component has lost all its samples.
    """
    status = Status.where(state.status == Status.running, Status.max_steps_reached, state.status)
    status = Status.where(jnp.isfinite(log_likelihood), status, Status.non_finite)
    converged = status == Status.converged
    ended = converged | (status == Status.max_steps_reached)
    rounded = converged & means_are_rounded(state.gmm)
    status = Status.where(rounded, Status.means_rounded, status)
    status = Status.where(ended & empty, Status.empty_component, status)
    return FitResult(
        gmm=state.gmm,
        n_iter=state.n_iter,
        log_likelihood=log_likelihood,
        log_likelihood_diff=state.log_likelihood_diff,
        converged=converged,
        status=status,
        history=jnp.zeros(0, log_likelihood.dtype),
        start=jnp.zeros((), jnp.int32),
        packed=packed,
    )


def mean_of(log_prob: Float[Array, " n"], weights: Float[Array, " n"] | None) -> Float[Array, ""]:
    """Σ w_i log p(x_i) / Σ w_i, of weights whose mean is one."""
    return jnp.mean(log_prob if weights is None else weights * log_prob)


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


def where(condition: Bool[Array, ""], true, false):
    """Select between two trees of like structure, leaf by leaf."""
    return jax.tree.map(lambda a, b: jax.lax.select(condition, a, b), true, false)
