"""The histogram of one feature, and the densities of the components."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .._mixture import GaussianMixture
from . import _parts


def histogram(
    gmm: GaussianMixture,
    x: Any = None,
    *,
    dim: int = 0,
    bins: Any = None,
    feature_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The density of one feature, and those of its components times their weights.

    **Arguments:**

    - `x`: samples for a histogram below the densities, `(n, d)`.
    - `dim`: the feature.
    - `bins`: as for `numpy.histogram`; by default enough to show the components.
    - `feature_names`: for the label; by default the columns of a data frame.
    - `ax`: where to draw; a new figure by default.

    **Returns:** the Axes.
    """
    (dim,) = _parts.check_dims(dim, gmm, 1)
    names = _parts.names_of(feature_names, x, gmm)
    samples = _parts.check_x(x, gmm)
    ax = _parts.new_axes(ax)
    column = None if samples is None else samples[:, dim]
    draw_histogram(ax, _parts.marginal(gmm, (dim,)), column, bins)
    ax.set(xlabel=names[dim], ylabel="density")
    return ax


def draw_histogram(
    ax: Axes, marginal: _parts.Marginal, column: np.ndarray | None, bins: Any = None
) -> None:
    """Draw the histogram of a column, and a marginal of one feature over it."""
    if column is not None:
        column = column.astype(np.float64)
        bins = _n_bins(column) if bins is None else bins
        ax.hist(column, bins, density=True, color=_parts.PALE, alpha=0.55, lw=0, zorder=0)
    means, deviations = marginal.means[:, 0], marginal.deviations[:, 0]
    low, high = _parts.limits(means, deviations, column)
    at = _parts.grid(means, deviations, low, high, 400)
    scaled = (at - means[:, None]) / deviations[:, None]
    heights = marginal.weights / (np.sqrt(2 * np.pi) * deviations)
    parts = heights[:, None] * np.exp(-(scaled**2) / 2)
    for k in np.argsort(-marginal.weights):
        ax.fill_between(at, parts[k], color=_parts.colour(k), alpha=0.18, lw=0, zorder=1)
        ax.plot(at, parts[k], color=_parts.colour(k), lw=1.2, zorder=2)
    if len(parts) > 1:
        ax.plot(at, parts.sum(axis=0), color=_parts.INK, lw=1.4, zorder=3)
    ax.set_ylim(bottom=0)


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
