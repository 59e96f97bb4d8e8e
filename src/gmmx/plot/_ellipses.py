"""The components as ellipses over the samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from . import _parts


def ellipses(
    gmm: Any,
    x: Any = None,
    *,
    dims: Sequence[int | str] = (0, 1),
    levels: Any = (0.5, 0.95),
    feature_names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Each component as ellipses that hold given probabilities.

    In two dimensions the probability p lies within the squared Mahalanobis distance
    −2 log(1 − p). A mixture of more features is drawn by its marginal. A component whose weight is
    almost zero has dotted ellipses. A legend names up to seven components; of more, each is named
    at its mean.

    **Arguments:**

    - `gmm`: a mixture, a `gmmx.FitResult`, or a fitted estimator.
    - `x`: samples to draw below the ellipses. Their colours are those of the components, mixed by
        responsibility. Above 20,000 samples, a logarithmic histogram in grey replaces single
        points.
    - `dims`: the two features, by index or name.
    - `levels`: the probabilities, each between 0 and 1.
    - `feature_names`: by default the columns of a data frame.
    - `labels`: names of the components; by default their numbers.
    - `ax`: where to draw, with linear axes; a new figure by default.

    **Returns:** the Axes.
    """
    gmm, x, names, labels = _parts.Subject.of(gmm, x, feature_names, labels)
    dims = _parts.check_dims(dims, names, 2)
    levels = _parts.check_levels(levels)
    ax = _parts.new_axes(ax)
    _parts.check_linear(ax)
    if x is not None:
        _parts.draw_points(ax, x, dims, _parts.mixed_colours(gmm, x))
    draw_ellipses(ax, _parts.marginal(gmm, dims), levels, labels)
    _parts.add_legend(ax, labels)
    ax.set(xlabel=names[dims[0]], ylabel=names[dims[1]])
    return ax


def draw_ellipses(
    ax: Axes,
    marginal: _parts.Marginal,
    levels: list[float],
    labels: Sequence[str],
    size: str | float = "small",
) -> None:
    """Draw the components of a marginal of two features, that of the largest weight first."""
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    order = np.argsort(-marginal.weights)
    ellipses = {(k, level): marginal.means[k]
                + np.sqrt(-2 * np.log1p(-level)) * (_root(marginal.covariances[k]) @ circle).T
                for k in order for level in levels}  # fmt: skip
    absent = marginal.weights < _parts.NO_WEIGHT
    filled = {key: curve for key, curve in ellipses.items() if not absent[key[0]]}
    # As two collections: of many components, single patches take seconds.
    collections = (
        PolyCollection(
            list(filled.values()), facecolors=[_parts.colour(k) for k, _ in filled], alpha=0.10,
            linewidths=0, zorder=2,
        ),
        PolyCollection(
            list(ellipses.values()), facecolors="none", linewidths=1.3, zorder=3,
            edgecolors=[_parts.colour(k) for k, _ in ellipses],
            linestyles=[":" if absent[k] else "-" for k, _ in ellipses],
        ),
    )  # fmt: skip
    for collection in collections:
        ax.add_collection(collection, autolim=False)
    for k in order:
        mean, mark = marginal.means[k], "x" if absent[k] else "o"
        if len(labels) > len(_parts.PALETTE):
            _parts.write(ax, mean, labels[int(k)], size)
        else:
            ax.plot(
                *mean, mark, ms=4.5, mec=_parts.paper(ax), mew=0.8, c=_parts.colour(k), zorder=4
            )
    ax.update_datalim(np.concatenate(list(ellipses.values())))
    ax.autoscale_view()


def _root(covariance: np.ndarray) -> np.ndarray:
    """L with LLᵀ = Σ, 2 × 2; a flat ellipse if Σ is singular to rounding."""
    (a, b), (_, c) = covariance
    first = np.sqrt(a)
    below = b / first
    return np.array([[first, 0], [below, np.sqrt(max(c - below**2, 0))]])
