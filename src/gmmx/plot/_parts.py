"""What the plots share: what they take, colours, legends, points and marginals."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, to_rgb, to_rgba
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from .. import _checks
from .._components import check_mixture
from .._mixture import GaussianMixture
from .._summary import feature_names as names_of

# The colours of Okabe & Ito, which are distinct also to colour-blind people. Without yellow and
# black: a yellow line on white is hard to see, and a black one on a dark ground.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
PALE = "#b9bec4"

# Above this many points a scatter plot is slow and shows no structure.
MOST_POINTS = 20_000
# A component of less weight is drawn dotted.
NO_WEIGHT = 1e-6


class Subject(NamedTuple):
    """What is drawn: a mixture, samples, and the names of features and components."""

    gmm: GaussianMixture
    x: Float[np.ndarray, "n d"] | None
    names: list[str]
    labels: list[str]

    @classmethod
    def of(cls, gmm: Any, x: Any, feature_names: Any = None, labels: Any = None) -> "Subject":
        """From what a user gives.

        **Arguments:**

        - `gmm`: a mixture, a fit that holds one, or a fitted estimator of scikit-learn's interface.
        - `feature_names`: by default those that the samples or the estimator have.
        - `labels`: of the components; by default their numbers.
        """
        named = x if hasattr(x, "columns") else None
        if hasattr(gmm, "get_params"):
            known = getattr(gmm, "feature_names_in_", None)
            feature_names = known if feature_names is None and named is None else feature_names
            gmm = GaussianMixture.from_sklearn(gmm)
        gmm = getattr(gmm, "gmm", gmm)
        # Of a mixture with a background the Gaussians are drawn.
        gmm = getattr(gmm, "mixture", gmm)
        k, d = check_mixture(gmm).means.shape
        labels = [str(label) for label in (range(k) if labels is None else labels)]
        if len(labels) != k:
            raise ValueError(f"Got {len(labels)} labels; expected {k}, one for each component.")
        x = None if x is None else np.asarray(_checks.check_data(x, 1, d))
        return cls(gmm, x, names_of(feature_names, named, d), labels)


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
    if gmm.structure.n_latent is not None:
        # Before it is made dense.
        gmm, dims = gmm.marginal(list(dims)), range(len(dims))
    # With Σ = (WᵀW)⁻¹ its block is RRᵀ, R being the rows of W⁻¹ for these features.
    root = np.linalg.inv(np.asarray(gmm.dense_factors(), np.float64))[:, list(dims)]
    weights, means = (np.asarray(v, np.float64) for v in (gmm.weights, gmm.means))
    drawn = Marginal(weights, means[:, list(dims)], root @ root.transpose(0, 2, 1))
    if not all(np.isfinite(part).all() for part in drawn):
        raise ValueError("the mixture has parameters that are NaN or infinite; it cannot be drawn.")
    return drawn


def check_dims(dims: Any, names: Sequence[str], count: int | None = None) -> tuple[int, ...]:
    """Indices of `count` different features, or of any number of them, given by index or name."""
    d = len(names)
    if count is not None and d < count:
        raise ValueError(
            f"the mixture has {d} feature; expected at least {count}. Use gmmx.plot.histogram for "
            "one feature."
        )
    indices = tuple(_index(dim, names) for dim in _several(dims))
    if len(set(indices)) != len(indices) or count not in (None, len(indices)):
        number = "different" if count is None else f"{count} different"
        raise ValueError(f"dims={dims!r}; expected {number} features, by index or name.")
    return indices


def _several(dims: Any) -> list[Any]:
    return [dims] if isinstance(dims, str) or np.ndim(dims) == 0 else list(dims)


def _index(dim: Any, names: Sequence[str]) -> int:
    if isinstance(dim, str):
        if names.count(dim) == 1:
            return names.index(dim)
        raise ValueError(f"{dim!r} names no feature, or several; the features are {list(names)}.")
    d = len(names)
    try:
        index = operator.index(dim)
    except TypeError as error:
        raise ValueError(
            f"{dim!r} is no feature; expected an index, for example dims=(0, 1), or a name."
        ) from error
    if not -d <= index < d:
        raise ValueError(f"There is no feature {index}; expected features from 0 to {d - 1}.")
    return index % d


def check_levels(levels: Any) -> list[float]:
    """Probabilities strictly between 0 and 1, the largest first."""
    values = sorted({float(level) for level in np.atleast_1d(levels)}, reverse=True)
    if not values or not all(0 < level < 1 for level in values):
        raise ValueError(
            f"levels={levels!r}; expected probabilities between 0 and 1, for example (0.5, 0.95)."
        )
    return values


def check_linear(ax: Axes, axes: str = "xy") -> None:
    """Refuse Axes on which densities, or what encloses them, would be drawn wrongly."""
    for name in axes:
        scale = getattr(ax, f"get_{name}scale")()
        if scale != "linear":
            raise ValueError(
                f"ax has a {name}-axis of scale {scale!r}; expected a linear one. To see a feature "
                "on a logarithmic scale, fit and draw its logarithm."
            )


def new_axes(ax: Axes | None, size: tuple[float, float] = (5.2, 4.2)) -> Axes:
    """These Axes, or those of a new figure of pyplot."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def colour(k: int) -> tuple[float, float, float]:
    """The colour of component k, the same in all plots; after the first ones come paler ones."""
    pale = 0.45 * (k // len(PALETTE) % 2)
    r, g, b = (1 - pale) * np.array(to_rgb(PALETTE[k % len(PALETTE)])) + pale
    return float(r), float(g), float(b)


def paper(ax: Axes) -> tuple[float, float, float]:
    """The colour that is drawn upon."""
    *rgb, alpha = to_rgba(ax.get_facecolor())
    r, g, b = rgb if alpha else to_rgb(ax.figure.canvas.figure.get_facecolor())
    return r, g, b


def is_dark(ax: Axes) -> bool:
    """Whether dark colours would be hard to see."""
    return float(np.dot(paper(ax), (0.299, 0.587, 0.114))) < 0.5


def ink(ax: Axes) -> str:
    """The colour of what belongs to no component."""
    return "#ececec" if is_dark(ax) else "#1b1b1b"


def ramp(ax: Axes, name: str) -> Colormap:
    """Shades that stand out more and more, of a colour map from light to dark."""
    ends = (0.95, 0.35) if is_dark(ax) else (0.15, 0.95)
    return ListedColormap(colormaps[name](np.linspace(*ends, 256)))


def in_legend(labels: Sequence[str]) -> bool:
    """Whether a legend names the components; of more of them each is named where it stands."""
    return 1 < len(labels) <= len(PALETTE)


def handles(labels: Sequence[str]) -> list[Patch]:
    """The entries of a legend of components."""
    return [Patch(color=colour(k), lw=0, label=label) for k, label in enumerate(labels)]


def add_legend(ax: Axes, labels: Sequence[str], **options: Any) -> None:
    """Name the components, unless there are so many that they are named where they stand."""
    if in_legend(labels):
        ax.legend(
            handles=handles(labels), fontsize="small", handlelength=1, handleheight=1, **options
        )


def write(ax: Axes, place: Any, text: str, size: str | float = "small", raised: float = 0) -> None:
    """The name of a component at a point, or `raised` above it; readable upon anything."""
    ax.annotate(
        text, place, (0, raised), textcoords="offset points", color=ink(ax), size=size,
        weight="bold", ha="center", va="bottom" if raised else "center", zorder=5, clip_on=True,
        path_effects=[withStroke(linewidth=2, foreground=paper(ax))],
    )  # fmt: skip


def thin(n: int, most: int) -> np.ndarray:
    """The indices of at most `most` of n rows, evenly spaced."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(int)


def mixed_colours(gmm: GaussianMixture, x: Float[np.ndarray, "n d"]) -> np.ndarray | None:
    """A colour for each sample: those of the components, mixed by responsibility.

    None if there are too many samples to draw each.
    """
    if len(x) > MOST_POINTS:
        return None
    colours = np.array([colour(k) for k in range(gmm.n_components)])
    return np.clip(np.asarray(gmm.predict_proba(x), np.float64) @ colours, 0, 1)


def draw_points(
    ax: Axes, x: Float[np.ndarray, "n d"], dims: Sequence[int], colours: np.ndarray | None
) -> None:
    """Draw the samples in their colours, or a histogram if there are none."""
    first, second = (x[:, i] for i in dims)
    if colours is None:
        ax.hexbin(
            first, second, gridsize=90, bins="log", mincnt=1, cmap=ramp(ax, "Greys"),
            linewidths=0.1, zorder=0,
        )  # fmt: skip
        return
    # Smaller and paler points if there are many.
    crowd = np.clip(len(x) / 500, 1, 20)
    ax.scatter(
        first, second, s=14 / np.sqrt(crowd), c=colours, alpha=0.75 / crowd**0.25, linewidths=0,
        rasterized=len(x) > 2000, zorder=1,
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
