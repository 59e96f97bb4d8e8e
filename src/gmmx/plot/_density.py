"""The density of a mixture over two features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from . import _parts

# How far below its highest value the log-density is drawn, in nats.
_DEPTH = 20


def density(
    gmm: Any,
    x: Any = None,
    *,
    dims: Sequence[int | str] = (0, 1),
    levels: Any = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99),
    log: bool = False,
    feature_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The density of the mixture over two features, as contours.

    Each contour bounds a region of highest density: the smallest region that holds a given
    probability. A mixture of more features is drawn by its marginal. The grid is finer around
    narrow components.

    **Arguments:**

    - `gmm`: a mixture, a `gmmx.FitResult`, or a fitted estimator.
    - `x`: samples to draw below the contours; no samples if there are more than 20,000.
    - `dims`: the two features, by index or name.
    - `levels`: the probabilities, each between 0 and 1.
    - `log`: draw the log-density instead, in nats, with a colour bar, down to 20 below its
        highest value.
    - `feature_names`: by default the columns of a data frame.
    - `ax`: where to draw, with linear axes; a new figure by default.

    **Returns:** the Axes.
    """
    gmm, x, names, _ = _parts.Subject.of(gmm, x, feature_names)
    dims = _parts.check_dims(dims, names, 2)
    levels = _parts.check_levels(levels)
    ax = _parts.new_axes(ax)
    _parts.check_linear(ax)
    axes, log_density = _on_grid(_parts.marginal(gmm, dims), x, dims)
    if log:
        _draw_log(ax, axes, log_density)
    else:
        heights = region_heights(axes, log_density, levels)
        blues = _parts.ramp(ax, "Blues")
        colours = blues(np.linspace(0, 0.8, len(heights)))
        top = np.exp(log_density.max())
        ax.contourf(
            *axes, np.exp(log_density), [*heights, 1.01 * top], colors=colours, alpha=0.6, zorder=0
        )
        ax.contour(
            *axes, np.exp(log_density), heights, colors=[blues(1.0)], linewidths=0.7, zorder=2
        )
    if x is not None and len(x) <= _parts.MOST_POINTS:
        some = x[_parts.thin(len(x), 5000)]
        ax.scatter(
            some[:, dims[0]], some[:, dims[1]], s=3, c=_parts.ink(ax), alpha=0.35, linewidths=0,
            rasterized=True, zorder=1,
        )  # fmt: skip
    ax.set(xlabel=names[dims[0]], ylabel=names[dims[1]])
    return ax


def _draw_log(ax: Axes, axes: list[np.ndarray], log_density: np.ndarray) -> None:
    highest = np.ceil(log_density.max())
    steps = np.arange(highest - _DEPTH, highest + 1)
    filled = ax.contourf(*axes, log_density, steps, cmap="cividis", extend="min", zorder=0)
    bar = ax.figure.colorbar(filled, ax=ax, format="%.0f")
    bar.set_label("log density, nats")


def _on_grid(
    marginal: _parts.Marginal, samples: np.ndarray | None, dims: Sequence[int]
) -> tuple[list[np.ndarray], Float[np.ndarray, "v u"]]:
    """The two axes of the grid, and the log-density on it, a row for each second feature."""
    seen = marginal.weights >= _parts.NO_WEIGHT
    axes = []
    for j, dim in enumerate(dims):
        means, deviations = marginal.means[seen, j], marginal.deviations[seen, j]
        column = None if samples is None else samples[:, dim]
        low, high = _parts.limits(means, deviations, column, reach=4)
        axes.append(_parts.grid(means, deviations, low, high, 160))
    points = np.stack(np.meshgrid(*axes), axis=-1)
    total = np.full(points.shape[:-1], -np.inf)
    for k in np.flatnonzero(seen):
        apart = points - marginal.means[k]
        covariance = marginal.covariances[k]
        whitened = apart @ np.linalg.inv(covariance) * apart
        constant = np.log(marginal.weights[k]) - np.linalg.slogdet(2 * np.pi * covariance)[1] / 2
        total = np.logaddexp(total, constant - whitened.sum(axis=-1) / 2)
    return axes, total


def region_heights(
    axes: list[np.ndarray], log_density: Float[np.ndarray, "v u"], levels: list[float]
) -> list[float]:
    """The densities of the contours that hold these probabilities, ascending and distinct."""
    area = np.gradient(axes[1])[:, None] * np.gradient(axes[0])
    values = np.exp(log_density)
    order = np.argsort(-values, axis=None)
    mass = np.cumsum((values * area).ravel()[order])
    index = np.searchsorted(mass / mass[-1], levels)
    return sorted({float(values.ravel()[order][i]) for i in index})
