"""The histogram of one feature, and the densities of the components."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from . import _parts


def histogram(
    gmm: Any,
    x: Any = None,
    *,
    dim: int | str = 0,
    bins: Any = None,
    feature_names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The density of one feature, and those of its components times their weights.

    A legend names up to seven components; of more, each is named at its peak.

    **Arguments:**

    - `gmm`: a mixture, a `gmmx.FitResult`, or a fitted estimator.
    - `x`: samples for a histogram below the densities, `(n, d)`.
    - `dim`: the feature, by index or name.
    - `bins`: as for `numpy.histogram`; by default enough to show the components.
    - `feature_names`: by default the columns of a data frame.
    - `labels`: names of the components; by default their numbers.
    - `ax`: where to draw, with a linear x-axis; a new figure by default.

    **Returns:** the Axes.
    """
    gmm, x, names, labels = _parts.Subject.of(gmm, x, feature_names, labels)
    (dim,) = _parts.check_dims(dim, names, 1)
    ax = _parts.new_axes(ax)
    _parts.check_linear(ax, "x")
    marginal = _parts.marginal(gmm, (dim,))
    peaks = draw_histogram(ax, marginal, None if x is None else x[:, dim], bins)
    _parts.add_legend(ax, labels)
    if len(labels) > len(_parts.PALETTE):
        # Neighbours at different heights.
        for i, k in enumerate(np.argsort(peaks[:, 0])):
            _parts.write(ax, peaks[k], labels[k], raised=2 + 9 * (i % 3))
    ax.set(xlabel=names[dim], ylabel="density")
    return ax


def draw_histogram(
    ax: Axes, marginal: _parts.Marginal, column: np.ndarray | None, bins: Any = None
) -> Float[np.ndarray, "k 2"]:
    """Draw the histogram of a column, and a marginal of one feature over it.

    **Returns:** the peak of each component.
    """
    if column is not None:
        column = column.astype(np.float64)
        heights, edges = np.histogram(
            column, _n_bins(column) if bins is None else bins, density=True
        )
        alpha = 0.3 if _parts.is_dark(ax) else 0.55
        ax.stairs(heights, edges, fill=True, color=_parts.PALE, alpha=alpha, lw=0, zorder=0)
    means, deviations = marginal.means[:, 0], marginal.deviations[:, 0]
    low, high = _parts.limits(means, deviations, column)
    at = _parts.grid(means, deviations, low, high, 400)
    scaled = (at - means[:, None]) / deviations[:, None]
    peaks = marginal.weights / (np.sqrt(2 * np.pi) * deviations)
    parts = peaks[:, None] * np.exp(-(scaled**2) / 2)
    order = np.argsort(-marginal.weights)
    outlines = [np.stack([[at[0], *at, at[-1]], [0, *parts[k], 0]], axis=1) for k in order]
    colours = [_parts.colour(k) for k in order]
    # One collection, since many calls of `fill_between` take seconds.
    fills = PolyCollection(outlines, facecolors=colours, alpha=0.18, linewidths=0, zorder=1)
    ax.add_collection(fills, autolim=False)
    for k, colour in zip(order, colours, strict=True):
        ax.plot(at, parts[k], color=colour, lw=1.2, zorder=2)
    if len(parts) > 1:
        ax.plot(at, parts.sum(axis=0), color=_parts.ink(ax), lw=1.4, zorder=3)
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=0)
    else:  # the far tails would leave nothing of the rest
        highest = parts.sum(axis=0).max()
        ax.set_ylim(1e-5 * highest, 3 * highest)
    return np.stack([means, peaks], axis=1)


def _n_bins(column: np.ndarray) -> int:
    """The number of bins, from min(√n, 60), which shows several modes, to 200.

    In between it is by the width of Freedman & Diaconis, from the inner 99 % of the samples: one
    outlier would otherwise ask for millions of bins, more than NumPy's own rule could allocate.
    """
    n = len(column)
    some = np.sort(column)[_parts.thin(n, 10_000)]
    inner = some[len(some) // 200 : len(some) - len(some) // 200]
    width = 2 * np.subtract(*np.percentile(inner, [75, 25])) / len(inner) ** (1 / 3)
    count = np.ptp(column) / width if width > 0 else 1
    return int(np.clip(count, min(np.sqrt(n), 60), 200))
