"""All pairs of features, as a triangle of panels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure

from .._components import check_mixture
from .._mixture import GaussianMixture
from . import _parts
from ._ellipses import draw_ellipses
from ._histogram import draw_histogram

_MOST = 12


def pairs(
    gmm: GaussianMixture,
    x: Any = None,
    *,
    dims: Sequence[int] | None = None,
    levels: Any = (0.5, 0.95),
    feature_names: Sequence[str] | None = None,
    figure: Figure | SubFigure | None = None,
) -> np.ndarray:
    """The marginal of each pair of features, and that of each feature on the diagonal.

    **Arguments:**

    - `x`: samples to draw as well, as in `gmmx.plot.ellipses`, with histograms on the diagonal.
    - `dims`: the features, at most 12; all of them by default.
    - `levels`: the probabilities that the ellipses of each component hold.
    - `feature_names`: for the labels; by default the columns of a data frame.
    - `figure`: where to draw; a new figure by default.

    **Returns:** the Axes, `(len(dims), len(dims))`; None above the diagonal.
    """
    dims = range(check_mixture(gmm).n_features) if dims is None else dims
    dims = _parts.check_dims(dims, gmm)
    if not 1 <= len(dims) <= _MOST:
        raise ValueError(
            f"dims has {len(dims)} features; expected from 1 to {_MOST}. Choose some, for example "
            "dims=(0, 1, 2)."
        )
    levels = _parts.check_levels(levels)
    names = _parts.names_of(feature_names, x, gmm)
    samples = _parts.check_x(x, gmm)
    if figure is None:
        import matplotlib.pyplot as plt

        size = 1.2 + 1.7 * len(dims)
        figure = plt.figure(figsize=(size, size), layout="constrained")
    panels = _panels(figure, [names[dim] for dim in dims])
    for i, j in zip(*np.tril_indices(len(dims)), strict=True):
        if i == j:
            column = None if samples is None else samples[:, dims[i]]
            draw_histogram(panels[i, i], _parts.marginal(gmm, (dims[i],)), column)
            panels[i, i].set_yticks([])
            continue
        pair = (dims[j], dims[i])
        if samples is not None:
            _parts.draw_points(panels[i, j], gmm, samples, pair)
        draw_ellipses(panels[i, j], _parts.marginal(gmm, pair), levels)
    return panels


def _panels(figure: Figure | SubFigure, names: list[str]) -> np.ndarray:
    """Empty panels; those of a column share the x-axis, and those of a row the y-axis."""
    m = len(names)
    panels = np.full((m, m), None, dtype=object)
    layout = figure.add_gridspec(m, m)
    for i in range(m):
        for j in range(i + 1):
            share_x = panels[j, j] if i > j else None
            share_y = panels[i, 0] if i > j > 0 else None
            ax = figure.add_subplot(layout[i, j], sharex=share_x, sharey=share_y)
            panels[i, j] = ax
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize="small", labelbottom=i == m - 1, labelleft=j == 0 < i)
            ax.spines["left"].set_visible(i != j)
            if i == m - 1:
                ax.set_xlabel(names[j])
            if j == 0 < i:
                ax.set_ylabel(names[i])
    return panels
