"""Components as ellipses, over the samples."""

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
    r"""Each component as ellipses that hold given parts of its probability.

    In two dimensions the part p lies within the squared Mahalanobis distance −2 log(1 − p). Of
    more features the marginal of two is drawn. A component of hardly any weight is dotted; where
    there are more components than colours each is numbered.

    **Arguments:**

    - `x`: samples to draw beneath, in their components' colours, mixed where they are shared. Of
        more than 20,000 the density is drawn instead.
    - `dims`: the two features.
    - `levels`: the parts of the probability, each between 0 and 1.
    - `feature_names`: for the labels; those of a data frame's columns if there are none.
    - `ax`: where to draw; a new figure if there is none.

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
    """The components of a marginal of two features, the heaviest first."""
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
    """L with LLᵀ = Σ of 2 × 2; a flat ellipse where rounding has left Σ singular."""
    (a, b), (_, c) = covariance
    first = np.sqrt(a)
    below = b / first
    return np.array([[first, 0], [below, np.sqrt(max(c - below**2, 0))]])
