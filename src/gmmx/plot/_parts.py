"""What the plots share: axes, colours, names, points and marginals."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from .. import _checks
from .._components import check_mixture
from .._mixture import GaussianMixture

# The colours of Okabe & Ito, which are distinct also to colour-blind people, without yellow: a
# yellow line on white is hard to see.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
INK = "#1b1b1b"
PALE = "#b9bec4"

# Above this many points a scatter plot is slow and shows no structure.
MOST_POINTS = 20_000
# A component of less weight is drawn dotted.
NO_WEIGHT = 1e-6


class Marginal(NamedTuple):
    """The mixture of some features, in float64."""

    weights: Float[np.ndarray, " k"]
    means: Float[np.ndarray, "k m"]
    covariances: Float[np.ndarray, "k m m"]

    @property
    def deviations(self) -> Float[np.ndarray, "k m"]:
        """The components' standard deviations, feature by feature."""
        return np.sqrt(np.diagonal(self.covariances, axis1=1, axis2=2))


def marginal(gmm: GaussianMixture, dims: Sequence[int]) -> Marginal:
    """The marginal of the features `dims`.

    **Raises:** `ValueError` if a parameter is NaN or infinite: matplotlib would draw nothing.
    """
    # With Σ = (WᵀW)⁻¹ its block is RRᵀ, R being the rows of W⁻¹ for these features.
    root = np.linalg.inv(np.asarray(gmm.dense_factors(), np.float64))[:, list(dims)]
    weights, means = (np.asarray(v, np.float64) for v in (gmm.weights, gmm.means))
    drawn = Marginal(weights, means[:, list(dims)], root @ root.transpose(0, 2, 1))
    if not all(np.isfinite(part).all() for part in drawn):
        raise ValueError("the mixture has parameters that are NaN or infinite; it cannot be drawn.")
    return drawn


def check_dims(dims: Any, gmm: GaussianMixture, count: int | None = None) -> tuple[int, ...]:
    """Indices of `count` different features, or of any number of them."""
    d = check_mixture(gmm).n_features
    try:
        indices = tuple(operator.index(i) for i in np.atleast_1d(dims))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"dims={dims!r}; expected indices of features, for example (0, 1)."
        ) from error
    if count is not None and d < count:
        raise ValueError(
            f"the mixture has {d} feature; expected at least {count}. Use gmmx.plot.histogram for "
            "one feature."
        )
    if any(not -d <= i < d for i in indices):
        raise ValueError(f"dims={dims!r}; expected features from 0 to {d - 1}.")
    indices = tuple(i % d for i in indices)
    if len(set(indices)) != len(indices) or count not in (None, len(indices)):
        number = "indices" if count is None else f"{count} indices"
        raise ValueError(f"dims={dims!r}; expected {number} of different features.")
    return indices


def check_levels(levels: Any) -> list[float]:
    """Probabilities strictly between 0 and 1, the largest first."""
    values = sorted({float(level) for level in np.atleast_1d(levels)}, reverse=True)
    if not values or not all(0 < level < 1 for level in values):
        raise ValueError(
            f"levels={levels!r}; expected probabilities between 0 and 1, for example (0.5, 0.95)."
        )
    return values


def check_x(x: Any, gmm: GaussianMixture) -> Float[np.ndarray, "n d"] | None:
    """The data as a NumPy array, or None."""
    d = check_mixture(gmm).n_features
    return None if x is None else np.asarray(_checks.check_data(x, 1, d))


def names_of(feature_names: Any, x: Any, gmm: GaussianMixture) -> list[str]:
    """The names of the features: given, from the columns of a data frame, or numbers."""
    d = gmm.n_features
    if feature_names is None:
        feature_names = getattr(x, "columns", None)
    if feature_names is None:
        return [f"feature {i}" for i in range(d)]
    names = [str(name) for name in feature_names]
    if len(names) != d:
        raise ValueError(f"feature_names has {len(names)} names; expected {d}, one for each.")
    return names


def new_axes(ax: Axes | None, size: tuple[float, float] = (5.2, 4.2)) -> Axes:
    """These Axes, or those of a new figure of pyplot."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def colour(k: int) -> str:
    """The colour of component k, the same in all plots."""
    return PALETTE[k % len(PALETTE)]


def thin(n: int, most: int) -> np.ndarray:
    """The indices of at most `most` of n rows, evenly spaced."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(int)


def mixed_colours(gmm: GaussianMixture, x: Float[np.ndarray, "n d"]) -> np.ndarray:
    """A colour for each sample: those of the components, mixed by responsibility."""
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(colour(k)) for k in range(gmm.n_components)])
    return np.clip(np.asarray(gmm.predict_proba(x), np.float64) @ colours, 0, 1)


def draw_points(
    ax: Axes, gmm: GaussianMixture, x: Float[np.ndarray, "n d"], dims: Sequence[int]
) -> None:
    """Draw the samples in the colours of their components, or a histogram if they are many."""
    first, second = (x[:, i] for i in dims)
    if len(x) > MOST_POINTS:
        ax.hexbin(
            first, second, gridsize=90, bins="log", mincnt=1, cmap="Greys", linewidths=0.1,
            zorder=0,
        )  # fmt: skip
        return
    # Smaller and paler points if there are many.
    crowd = np.clip(len(x) / 500, 1, 20)
    ax.scatter(
        first, second, s=14 / np.sqrt(crowd), c=mixed_colours(gmm, x), alpha=0.75 / crowd**0.25,
        linewidths=0, rasterized=len(x) > 2000, zorder=1,
    )  # fmt: skip


def grid(
    means: Float[np.ndarray, " k"],
    deviations: Float[np.ndarray, " k"],
    low: float,
    high: float,
    count: int,
) -> Float[np.ndarray, " g"]:
    """Points at which to evaluate a density: evenly spaced, and more around each component.

    A component may be far narrower than the even spacing.
    """
    each = max(5, min(41, 4 * count // len(means)))
    near = means[:, None] + deviations[:, None] * np.linspace(-4, 4, each)
    points = np.unique(np.concatenate([np.linspace(low, high, count), near.ravel()]))
    return points[(points >= low) & (points <= high)]


def limits(
    means: Float[np.ndarray, " k"],
    deviations: Float[np.ndarray, " k"],
    x: Float[np.ndarray, " n"] | None,
    reach: float = 3,
) -> tuple[float, float]:
    """The range that holds all samples, and all components up to `reach` deviations."""
    low, high = np.min(means - reach * deviations), np.max(means + reach * deviations)
    if x is not None:
        low, high = min(low, x.min()), max(high, x.max())
    return float(low), float(high)
