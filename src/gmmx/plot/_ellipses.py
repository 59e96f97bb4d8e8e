"""The components as ellipses over the samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke

from .._mixture import GaussianMixture
from . import _parts


def ellipses(
    gmm: GaussianMixture,
    x: Any = None,
    *,
    dims: Sequence[int] = (0, 1),
    levels: Any = (0.5, 0.95),
    feature_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Each component as ellipses that hold given probabilities.

    In two dimensions the probability p lies within the squared Mahalanobis distance
    −2 log(1 − p). A mixture of more features is drawn by its marginal. A component whose weight is
    almost zero has dotted ellipses. If there are more components than colours, each has its number.

    **Arguments:**

    - `x`: samples to draw below the ellipses. Their colours are those of the components, mixed by
        responsibility. Above 20,000 samples, a logarithmic histogram in grey replaces single
        points.
    - `dims`: the two features.
    - `levels`: the probabilities, each between 0 and 1.
    - `feature_names`: for the labels; by default the columns of a data frame.
    - `ax`: where to draw; a new figure by default.

    **Returns:** the Axes.
    """
    dims = _parts.check_dims(dims, gmm, 2)
    levels = _parts.check_levels(levels)
    names = _parts.names_of(feature_names, x, gmm)
    samples = _parts.check_x(x, gmm)
    ax = _parts.new_axes(ax)
    if samples is not None:
        _parts.draw_points(ax, gmm, samples, dims)
    draw_ellipses(ax, _parts.marginal(gmm, dims), levels)
    ax.set(xlabel=names[dims[0]], ylabel=names[dims[1]])
    return ax


def draw_ellipses(ax: Axes, marginal: _parts.Marginal, levels: list[float]) -> None:
    """Draw the components of a marginal of two features, that of the largest weight first."""
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    numbered = len(marginal.weights) > len(_parts.PALETTE)
    for k in np.argsort(-marginal.weights):
        mean, root = marginal.means[k], _root(marginal.covariances[k])
        colour, absent = _parts.colour(k), marginal.weights[k] < _parts.NO_WEIGHT
        for level in levels:
            curve = mean + np.sqrt(-2 * np.log1p(-level)) * (root @ circle).T
            if not absent:
                ax.add_patch(Polygon(curve, color=colour, alpha=0.10, lw=0, zorder=2))
            ax.add_patch(
                Polygon(curve, fill=False, ec=colour, lw=1.3, ls=":" if absent else "-", zorder=3)
            )
        if numbered:
            ax.text(
                float(mean[0]), float(mean[1]), str(k), color=_parts.INK, ha="center", va="center",
                size="small", weight="bold", zorder=5, clip_on=True,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )  # fmt: skip
        else:
            ax.plot(*mean, "x" if absent else "o", ms=4.5, mec="white", mew=0.8, c=colour, zorder=4)
    ax.autoscale_view()


def _root(covariance: np.ndarray) -> np.ndarray:
    """L with LLᵀ = Σ, 2 × 2; a flat ellipse if Σ is singular to rounding."""
    (a, b), (_, c) = covariance
    first = np.sqrt(a)
    below = b / first
    return np.array([[first, 0], [below, np.sqrt(max(c - below**2, 0))]])
