"""The likelihood at each step of a fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .._fit.result import FitResult
from . import _parts


def trace(
    results: FitResult | Sequence[FitResult] | Mapping[str, FitResult], *, ax: Axes | None = None
) -> Axes:
    """The mean log-likelihood at the start of each step, of one or several fits.

    A circle at the end marks the likelihood of the result; it is filled if the fit has converged.
    The axis begins a little below the lowest likelihood at the start or the end of a fit: the
    first gradient steps may go far below that.

    **Arguments:**

    - `results`: a result, several, or several by name: `{"EM": em, "gradient": gradient}`.
    - `ax`: where to draw; a new figure by default.

    **Returns:** the Axes.
    """
    named = _named(results)
    ax = _parts.new_axes(ax)
    _parts.check_linear(ax, "y")
    starts, ends, longest = [], [], 1
    for i, (name, result) in enumerate(named.items()):
        history = np.asarray(result.history, np.float64)
        if history.ndim != 1:
            raise ValueError(
                f"the history of {name} has shape {history.shape}; expected that of one fit. Of a "
                "batch take one: jax.tree.map(lambda leaf: leaf[0], results)."
            )
        history = history[: int(result.n_iter)]
        final, steps = float(result.log_likelihood), 1 + np.arange(len(history))
        known = np.isfinite(history)
        colour = _parts.colour(i)
        last = len(history) + 1
        ax.plot(
            [*steps[known], last], [*history[known], final], c=colour, lw=1.5, label=name,
            marker="." if last <= 40 else None, ms=4,
        )  # fmt: skip
        face = colour if bool(result.converged) else _parts.paper(ax)
        ax.plot(last, final, "o", ms=7, mec=colour, mfc=face, mew=1.5, zorder=4)
        starts.append(history[known][0] if known.any() else final)
        ends.append(final)
        longest = max(longest, last)
    low, high = np.nanmin(starts + ends), np.nanmax(ends)
    room = max(high - low, 1e-9 * max(abs(high), 1))
    if np.isfinite(room):
        ax.set_ylim(low - 0.15 * room, high + 0.1 * room)
    if longest > 60:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:.0f}")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="step", ylabel="mean log-likelihood, nats")
    if len(named) > 1 or isinstance(results, Mapping):
        ax.legend(frameon=False, loc="lower right")
    return ax


def _named(results: Any) -> dict[str, FitResult]:
    if isinstance(results, Mapping):
        named = {str(name): result for name, result in results.items()}
    elif isinstance(results, FitResult):
        named = {"fit": results}
    else:
        several: Any = results if isinstance(results, Sequence) else ()
        named = {f"fit {i}": result for i, result in enumerate(several)}
    if not named or not all(isinstance(result, FitResult) for result in named.values()):
        raise ValueError(
            "results does not hold fits; expected a FitResult, a sequence of them, or a mapping "
            "from names to them."
        )
    return named
