"""All pairs of features, as a triangle of panels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure

from .._mixture import GaussianMixture
from . import _parts
from ._ellipses import draw_ellipses
from ._histogram import draw_histogram

_MOST = 12
# More panels are slow to draw and hard to read, so they have to be asked for.
_SOME = 6


def pairs(
    gmm: Any,
    x: Any = None,
    *,
    dims: Sequence[int | str] | None = None,
    levels: Any = (0.5, 0.95),
    feature_names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    figure: Figure | SubFigure | None = None,
) -> np.ndarray:
    """The marginal of each pair of features, and that of each feature on the diagonal.

    **Arguments:**

    - `gmm`: a mixture, a `gmmx.FitResult`, or a fitted estimator.
    - `x`: samples to draw as well, as in `gmmx.plot.ellipses`, with histograms on the diagonal.
    - `dims`: the features, by index or name, at most 12. By default all of them; if there are
        more than 6, the 6 in which the components differ most, and the figure says so.
    - `levels`: the probabilities that the ellipses of each component hold.
    - `feature_names`: by default the columns of a data frame.
    - `labels`: names of the components; by default their numbers.
    - `figure`: where to draw; a new figure by default.

    **Returns:** the Axes, `(len(dims), len(dims))`; None above the diagonal.
    """
    gmm, x, names, labels = _parts.Subject.of(gmm, x, feature_names, labels)
    note = None
    if dims is None and gmm.n_features > _SOME:
        dims = _most_different(gmm, _SOME)
        note = (
            f"{_SOME} of {gmm.n_features} features, in which the\ncomponents differ most; see dims"
        )
    dims = _parts.check_dims(range(gmm.n_features) if dims is None else dims, names)
    if not 1 <= len(dims) <= _MOST:
        raise ValueError(
            f"dims has {len(dims)} features; expected from 1 to {_MOST}. Choose some, for example "
            "dims=(0, 1, 2)."
        )
    levels = _parts.check_levels(levels)
    if figure is None:
        import matplotlib.pyplot as plt

        # Margins for the labels, in inches. Constrained layout takes seconds for many panels.
        size = 1.2 + 1.7 * len(dims)
        figure = plt.figure(figsize=(size, size))
        figure.subplots_adjust(0.9 / size, 0.7 / size, 1 - 0.15 / size, 1 - 0.15 / size)
    panels = _panels(figure, [names[dim] for dim in dims])
    _add_legend(figure, labels, note)
    colours = None if x is None else _parts.mixed_colours(gmm, x)
    for i, j in zip(*np.tril_indices(len(dims)), strict=True):
        if i == j:
            column = None if x is None else x[:, dims[i]]
            draw_histogram(panels[i, i], _parts.marginal(gmm, (dims[i],)), column)
            panels[i, i].set_yticks([])
            continue
        pair = (dims[j], dims[i])
        if x is not None:
            _parts.draw_points(panels[i, j], x, pair, colours)
        draw_ellipses(panels[i, j], _parts.marginal(gmm, pair), levels, labels, size=6)
    return panels


def _panels(figure: Figure | SubFigure, names: list[str]) -> np.ndarray:
    """Empty panels; those of a column share the x-axis, and those of a row the y-axis."""
    m = len(names)
    panels = np.full((m, m), None, dtype=object)
    layout = figure.add_gridspec(m, m, wspace=0.1, hspace=0.1)
    for i in range(m):
        for j in range(i + 1):
            share_x = panels[j, j] if i > j else None
            share_y = panels[i, 0] if i > j > 0 else None
            ax = figure.add_subplot(layout[i, j], sharex=share_x, sharey=share_y)
            panels[i, j] = ax
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize="small", labelbottom=i == m - 1, labelleft=j == 0 < i)
            ax.locator_params(nbins=4)
            ax.spines["left"].set_visible(i != j)
            if i == m - 1:
                ax.set_xlabel(names[j])
            if j == 0 < i:
                ax.set_ylabel(names[i])
    return panels


def _most_different(gmm: GaussianMixture, count: int) -> list[int]:
    """The features that differ most between components, beside their variance, in their order."""
    whole = _parts.marginal(gmm, range(gmm.n_features))
    apart = whole.means - whole.weights @ whole.means
    between, within = whole.weights @ apart**2, whole.weights @ whole.deviations**2
    return sorted(np.argsort(-between / within, kind="stable")[:count])


def _add_legend(figure: Figure | SubFigure, labels: Sequence[str], note: str | None) -> None:
    """The components, where there is no panel."""
    entries = _parts.handles(labels) if _parts.in_legend(labels) else []
    if entries or note:
        figure.legend(
            handles=entries, title=note, loc="upper right", frameon=False, alignment="left",
            handlelength=1, handleheight=1,
        )  # fmt: skip
