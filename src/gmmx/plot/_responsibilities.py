"""The responsibilities of the samples."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .._mixture import GaussianMixture
from . import _parts

# More bars than a figure has pixels show nothing.
_MOST_SAMPLES = 2000


def responsibilities(gmm: GaussianMixture, x: Any, *, ax: Axes | None = None) -> Axes:
    """The responsibilities p(k | x): one thin stacked bar for each sample.

    Samples are sorted by their most probable component, and then by its probability, the highest
    first. A block of one colour is a well separated component; a slope is one that overlaps with
    others.

    **Arguments:**

    - `x`: the samples, `(n, d)`. Of more than 2,000 samples, 2,000 evenly spaced rows are drawn.
    - `ax`: where to draw; a new figure by default.

    **Returns:** the Axes.
    """
    samples = _parts.check_x(x, gmm)
    if samples is None:
        raise ValueError("x is None; expected samples, of which to draw the responsibilities.")
    chosen = _parts.thin(len(samples), _MOST_SAMPLES)
    z = np.asarray(gmm.predict_proba(samples[chosen]), np.float64)
    labels = z.argmax(axis=1)
    order = np.lexsort((-z.max(axis=1), labels))
    z, labels = z[order], labels[order]

    ax = _parts.new_axes(ax, (7.0, 2.8))
    ax.spines[["top", "right"]].set_visible(False)
    # The most probable component at the bottom, so that the outline of a block is its probability.
    n, k = z.shape
    edges = np.arange(n + 1) - 0.5
    own = np.where(np.arange(k) == labels[:, None], z, 0)
    base = np.zeros(n)
    for part in (own, z - own):
        for j in range(k):
            if part[:, j].any():
                ax.stairs(
                    base + part[:, j], edges, baseline=base, fill=True, color=_parts.colour(j),
                    lw=0,
                )  # fmt: skip
                base = base + part[:, j]
    for j in np.unique(labels):
        block = np.flatnonzero(labels == j)
        if len(block) > n / 60:
            ax.text(block.mean(), 1.02, str(j), ha="center", va="bottom", color=_parts.colour(j))
        ax.axvline(block[-1] + 0.5, color="white", lw=1)
    counted = f"{n:,}" if n == len(samples) else f"{n:,} of {len(samples):,}"
    ax.set(
        xlim=(-0.5, n - 0.5), ylim=(0, 1), ylabel="responsibility",
        xlabel=f"{counted} samples, by most probable component",
    )  # fmt: skip
    return ax
