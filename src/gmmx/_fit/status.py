"""How a fit ended."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer

from .._summary import counts


class _Counted(type(eqx.Enumeration)):
    """Of many statuses, says how often each occurs."""

    def __getitem__(cls, item: Any) -> str:
        values = getattr(item, "_value", None)
        concrete = not isinstance(values, Tracer)
        if isinstance(values, jax.Array | np.ndarray) and concrete and values.ndim:
            names = list(cls._name_to_item)  # pyright: ignore[reportAttributeAccessIssue]
            return counts(names, values)
        return super().__getitem__(item)


class Status(eqx.Enumeration, metaclass=_Counted):
    """How a fit ended; the messages are for the user."""

    running = "the fit has not ended yet."
    converged = "the likelihood changed by less than tol."
    max_steps_reached = (
        "max_iter was reached before the likelihood changed by less than tol. Raise max_iter, or "
        "tol if the result is good enough."
    )
    passes_ended = (
        "all rows were read as often as was asked for, and the likelihood of those held out still "
        "rose. Allow more passes, or continue from the result."
    )
    interrupted = "the fit was interrupted; the result is the best model up to then."
    stalled = (
        "the likelihood has not risen for as many steps as patience, but its gradient is not "
        "small: the result is the best model met, and no optimum. The learning rate is too high, "
        "too low or zero; about 0.05 suits optax.adam."
    )
    empty_component = (
        "a component has lost all its samples and stands at weight zero. Take fewer components, "
        "or start from gmmx.initialize(x, n_components)."
    )
    spurious_component = (
        "the fit has converged, but a component is no cluster: only the variance floor keeps it "
        "from collapsing, or it rests on too few samples. `result.spurious` says which. Take fewer "
        "components, more starts (gmmx.Restarts), or a larger reg_covar."
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
