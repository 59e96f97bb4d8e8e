"""How uncertain the component of each sample is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from . import _parts
from ._ellipses import draw_ellipses

# Areas of points, in points², of samples that are certain and of those between two components.
_SMALLEST, _LARGEST = 4, 90


def uncertainty(
    gmm: Any,
    x: Any,
    *,
    dims: Sequence[int | str] = (0, 1),
    level: float = 0.5,
    feature_names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The samples, larger where their component is less certain.

    The area of a point grows with 1 − max_k p(k | x), in units of its largest possible value,
    1 − 1/K. Its colour is that of the most probable component.

    **Arguments:**

    - `gmm`: a mixture, a `gmmx.FitResult`, or a fitted estimator.
    - `x`: the samples, `(n, d)`. Of more than 20,000, so many evenly spaced rows are drawn.
    - `dims`: the two features, by index or name.
    - `level`: the probability that the ellipse of a component holds.
    - `feature_names`: by default the columns of a data frame.
    - `labels`: names of the components; by default their numbers.
    - `ax`: where to draw, with linear axes; a new figure by default.

    **Returns:** the Axes.
    """
    gmm, samples, names, labels = _parts.Subject.of(gmm, x, feature_names, labels)
    if samples is None:
        raise ValueError("x is None; expected samples, of which to draw the uncertainty.")
    dims = _parts.check_dims(dims, names, 2)
    levels = _parts.check_levels([level])
    ax = _parts.new_axes(ax)
    _parts.check_linear(ax)
    samples = samples[_parts.thin(len(samples), _parts.MOST_POINTS)]
    share = np.asarray(gmm.uncertainty(samples), np.float64) / (1 - 1 / max(gmm.n_components, 2))
    # The uncertain ones on top.
    order = np.argsort(share, kind="stable")
    component = np.asarray(gmm.predict(samples))[order]
    ax.scatter(
        *samples[order][:, list(dims)].T, s=_SMALLEST + (_LARGEST - _SMALLEST) * share[order],
        c=[_parts.colour(int(k)) for k in component], alpha=0.6, linewidths=0,
        rasterized=len(samples) > 2000, zorder=1,
    )  # fmt: skip
    draw_ellipses(ax, _parts.marginal(gmm, dims), levels, labels)
    _parts.add_legend(ax, labels)
    ax.set(xlabel=names[dims[0]], ylabel=names[dims[1]])
    return ax
