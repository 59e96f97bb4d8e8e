"""All pairs of features at once: a corner of panels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure

from .. import _checks
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
    """The marginals of each pair of features, and of each feature on the diagonal.

    **Arguments:**

    - `x`: samples to draw beneath, in their components' colours; their histograms are on the
        diagonal. Of more than 20,000 the density is drawn instead.
    - `dims`: the features, at most 12; all of them if there are none.
    - `levels`: the parts of each component's probability that its ellipses hold.
    - `feature_names`: for the labels; those of a data frame's columns if there are none.
    - `figure`: where to draw; a new one if there is none.

    **Returns:** the Axes, `(len(dims), len(dims))`; None above the diagonal.
    """
    dims = range(_checks.check_mixture(gmm).n_features) if dims is None else dims
    dims = _parts.check_dims(dims, gmm)
    if not 1 <= len(dims) <= _MOST:
        raise ValueError(
            f"{len(dims)} features make {len(dims) ** 2} panels; from 1 to {_MOST} were wanted. "
            "Choose some, as dims=(0, 1, 2)."
        )
    levels = _parts.check_levels(levels)
    names = _parts.names_of(feature_names, x, gmm)
    samples = _parts.check_x(x, gmm)
    m = len(dims)
    if figure is None:
        import matplotlib.pyplot as plt

        size = 1.2 + 1.7 * m
        figure = plt.figure(figsize=(size, size), layout="constrained")
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
            if i == j:
                column = None if samples is None else samples[:, dims[i]]
                draw_histogram(ax, _parts.marginal(gmm, (dims[i],)), column)
                ax.set_yticks([])
                ax.spines["left"].set_visible(False)
            else:
                pair = (dims[j], dims[i])
                if samples is not None:
                    _parts.draw_points(ax, gmm, samples, pair)
                draw_ellipses(ax, _parts.marginal(gmm, pair), levels)
            if i == m - 1:
                ax.set_xlabel(names[dims[j]])
            if j == 0 < i:
                ax.set_ylabel(names[dims[i]])
    return panels
