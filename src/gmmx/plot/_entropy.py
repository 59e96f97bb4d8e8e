"""The entropies of components merged into clusters."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .._clusters import MergedClusters
from . import _parts


def entropy(merged: MergedClusters, *, against: str = "clusters", ax: Axes | None = None) -> Axes:
    """The entropy of the memberships as components are merged: clusters are kept at its bend.

    Merging components of one cluster lowers the entropy much, merging clusters little (Baudry et
    al. 2010). Two lines that share a point show the bend, and a ring the number of clusters that
    they suggest.

    **Arguments:**

    - `merged`: the result of `gmmx.merge_by_entropy`.
    - `against`: `"clusters"`, the number of clusters; or `"samples"`, the samples of all clusters
        merged so far, so that steps of different sizes compare.
    - `ax`: where to draw; a new figure by default.

    **Returns:** the Axes.
    """
    if against not in ("clusters", "samples"):
        raise ValueError(f"against={against!r}; expected 'clusters' or 'samples'.")
    ax = _parts.new_axes(ax)
    _parts.check_linear(ax)
    entropies, best = merged.entropies, merged.n_clusters
    numbers = np.arange(1, len(entropies) + 1)
    places: Any = numbers
    if against == "samples":
        # From K clusters down to one; samples are counted at every merging.
        places = np.append(np.cumsum(merged.merged_counts[::-1])[::-1], 0)
    if len(entropies) > 2:
        for part in (slice(best), slice(best - 1, None)):
            line = np.polyfit(places[part], entropies[part], 1)
            ends = places[part][[0, -1]]
            ax.plot(ends, np.polyval(line, ends), "--", c=_parts.PALE, lw=1.5, zorder=1)
    ax.plot(places, entropies, "o", c=_parts.colour(0), ms=6, zorder=2)
    ax.plot(
        places[best - 1], entropies[best - 1], "o", ms=14, mfc="none", mec=_parts.ink(ax), mew=1.4,
        label=f"{best} clusters",
    )  # fmt: skip
    if against == "samples":
        for number, place, value in zip(numbers, places, entropies, strict=True):
            _parts.write(ax, (place, value), str(number), raised=8)
        ax.set_xlabel("samples of the merged clusters, added up")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("clusters")
    ax.set_ylabel("entropy of the memberships, nats")
    ax.legend(frameon=False, fontsize="small")
    return ax
