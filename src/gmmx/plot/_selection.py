"""The criterion of a selection, as curves."""

import dataclasses

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .._selection import CRITERIA, Selection
from . import _parts

_MARKERS = "osD^vPXp"
_MOST_INSIDE = 6
_LABELS = {
    "bic": "BIC",
    "icl": "ICL",
    "aic": "AIC",
    "held_out": "held-out log-likelihood, nats a sample",
}


def selection(
    selection: Selection, *, criterion: str | None = None, ax: Axes | None = None
) -> Axes:
    """A criterion against the number of components, one curve for each structure.

    A ring marks the best fit. Crosses at the lower edge mark fits that failed.

    **Arguments:**

    - `selection`: the result of `gmmx.select`.
    - `criterion`: which one to draw; by default the one of the selection.
    - `ax`: where to draw; a new figure by default.

    **Returns:** the Axes.
    """
    criterion = selection.criterion if criterion is None else criterion
    known = [c for c in CRITERIA if c != "held_out" or selection.criterion == "held_out"]
    if criterion not in known:
        raise ValueError(f"criterion={criterion!r}; this selection has {', '.join(known)}.")
    ax = _parts.new_axes(ax)
    _parts.check_linear(ax, "y")
    rows = selection.candidates
    names = dict.fromkeys(c.structure for c in rows)
    for i, name in enumerate(names):
        curve = sorted((c.n_components, getattr(c, criterion)) for c in rows if c.structure == name)
        k, value = (np.array(column, np.float64) for column in zip(*curve, strict=True))
        colour, failed = _parts.colour(i), np.isnan(value)
        ax.plot(k, value, c=colour, marker=_MARKERS[i % len(_MARKERS)], ms=5, lw=1.5, label=name)
        if failed.any():  # constrained layout makes room for a line without points
            ax.plot(
                k[failed], np.full(failed.sum(), 0.02 + 0.035 * i), "x", c=colour, ms=7, mew=2,
                clip_on=False, transform=ax.get_xaxis_transform(),
            )  # fmt: skip
    for best in dataclasses.replace(selection, criterion=criterion).top(1):
        ax.plot(
            best.n_components, getattr(best, criterion), "o", ms=14, mfc="none", mec=_parts.ink(ax),
            mew=1.4, label=f"best: {best.structure}, {best.n_components}",
        )  # fmt: skip
    sense = "smaller" if CRITERIA[criterion] < 0 else "larger"
    ax.set(xlabel="components", ylabel=f"{_LABELS[criterion]} ({sense} is better)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Many curves leave no room between them.
    aside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(names) > _MOST_INSIDE else {}
    ax.legend(frameon=False, fontsize="small", **aside)
    return ax
