"""The responsibilities of the samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch

from . import _parts

# More bars than a figure has pixels show nothing.
_MOST_SAMPLES = 2000


def responsibilities(
    gmm: Any, x: Any, *, labels: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """The responsibilities p(k | x): one thin stacked bar for each sample.

    Samples are sorted by their most probable component, and then by its probability, the highest
    first. A block of one colour is a well separated component; a slope is one that overlaps with
    others. A legend names up to seven components; of more, each block is named above.

    **Arguments:**

    - `gmm`: a mixture, a `gmmx.FitResult`, or a fitted estimator.
    - `x`: the samples, `(n, d)`. Of more than 2,000 samples, 2,000 evenly spaced rows are drawn.
    - `labels`: names of the components; by default their numbers.
    - `ax`: where to draw, with linear axes; a new figure by default.

    **Returns:** the Axes.
    """
    gmm, samples, _, labels = _parts.Subject.of(gmm, x, labels=labels)
    if samples is None:
        raise ValueError("x is None; expected samples, of which to draw the responsibilities.")
    chosen = _parts.thin(len(samples), _MOST_SAMPLES)
    z = np.asarray(gmm.predict_proba(samples[chosen]), np.float64)
    best = z.argmax(axis=1)
    order = np.lexsort((-z.max(axis=1), best))
    z, best = z[order], best[order]

    ax = _parts.new_axes(ax, (7.0, 2.8))
    _parts.check_linear(ax)
    ax.spines[["top", "right"]].set_visible(False)
    # The most probable component at the bottom, so that the outline of a block is its probability.
    n, k = z.shape
    edges = np.arange(n + 1) - 0.5
    own = np.where(np.arange(k) == best[:, None], z, 0)
    base = np.zeros(n)
    for part in (own, z - own):
        for j in range(k):
            if part[:, j].any():
                top = base + part[:, j]
                # Not by `stairs`, which measures every bar for limits that are known.
                bars = StepPatch(
                    top,
                    edges,
                    baseline=base,  # pyright: ignore[reportArgumentType]
                    fill=True,
                    color=_parts.colour(j),
                    lw=0,
                )
                ax.add_artist(bars)
                base = top
    _parts.add_legend(ax, labels, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    for j in np.unique(best):
        block = np.flatnonzero(best == j)
        ax.axvline(block[-1] + 0.5, color=_parts.paper(ax), lw=1)
        if not _parts.in_legend(labels) and len(block) > n / 60:
            ax.text(block.mean(), 1.02, labels[j], ha="center", va="bottom", size="small")
    counted = f"{n:,}" if n == len(samples) else f"{n:,} of {len(samples):,}"
    ax.set(
        xlim=(-0.5, n - 0.5), ylim=(0, 1), ylabel="responsibility",
        xlabel=f"{counted} samples, by most probable component",
    )  # fmt: skip
    return ax
