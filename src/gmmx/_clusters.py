"""Components merged into clusters: several Gaussians may make one cluster that is not Gaussian."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import xlogy

from . import _checks, _summary
from ._abstract_mixture import AbstractMixture
from ._components import check_gaussian, check_mixture
from ._data import Data, without_weights


@dataclasses.dataclass(frozen=True, repr=False)
class MergedClusters:
    """The outcome of `gmmx.merge_by_entropy`: clusters of components, from K of them down to one.

    The density is that of the mixture throughout; only what counts as one cluster changes. Printed,
    it is a table. `gmmx.plot.entropy` draws it.
    """

    gmm: AbstractMixture
    """The mixture, as it is"""
    labels: Int[np.ndarray, "k k"]
    """`labels[c - 1]` says which of c clusters each component belongs to"""
    entropies: Float[np.ndarray, " k"]
    """`entropies[c - 1]` of c clusters, −Σ_i Σ_c z_ic log z_ic, in nats"""
    merged_counts: Float[np.ndarray, " k-1"]
    """`merged_counts[c - 1]`: the samples of the two of c + 1 clusters that were merged to c"""

    @property
    def n_clusters(self) -> int:
        """The number of clusters at the bend of the entropies; K where there are fewer than three.

        Two lines that share a point fit the entropies, as numbers against c, best if they meet
        there (Baudry et al. 2010). A suggestion: look at the plot.
        """
        k = len(self.entropies)
        if k < 3:
            return k
        c = np.arange(1.0, k + 1)
        costs = [
            sum(_deviation(c[part], self.entropies[part]) for part in (slice(at), slice(at - 1, k)))
            for at in range(2, k)
        ]
        return 2 + int(np.argmin(costs))

    def components(self, n_clusters: int | None = None) -> list[list[int]]:
        """The components of each cluster; of `self.n_clusters` by default."""
        labels = self._labels(n_clusters)
        return [np.flatnonzero(labels == c).tolist() for c in range(labels.max() + 1)]

    def predict_proba(self, x: Any, n_clusters: int | None = None) -> Float[Array, "*batch c"]:
        """The probabilities of the clusters, those of their components together.

        **Arguments:**

        - `x`: points, `(*batch, d)`, or `gmmx.Data`.
        - `n_clusters`: how many clusters; `self.n_clusters` by default.
        """
        z = self.gmm.predict_proba(x)
        members = self._labels(n_clusters)[:, None] == np.arange(n_clusters or self.n_clusters)
        return z @ _checks.as_floating(members, "members", z.dtype)

    def predict(self, x: Any, n_clusters: int | None = None) -> Int[Array, "*batch"]:
        """The most probable cluster; see `predict_proba`."""
        return self.predict_proba(x, n_clusters).argmax(axis=-1)

    def _labels(self, n_clusters: int | None) -> Int[np.ndarray, " k"]:
        n_clusters = self.n_clusters if n_clusters is None else n_clusters
        if not 1 <= n_clusters <= len(self.labels):
            raise ValueError(
                f"n_clusters={n_clusters!r}; expected 1 to {len(self.labels)}, the number of "
                "components."
            )
        return self.labels[n_clusters - 1]

    def summary(self) -> _summary.Summary:
        """The clusters and their entropies, the suggested number marked."""
        rows = [
            [
                "*" if c == self.n_clusters else "", str(c), f"{self.entropies[c - 1]:.2f}",
                " | ".join(" ".join(map(str, cluster)) for cluster in self.components(c)),
            ]
            for c in range(len(self.labels), 0, -1)
        ]  # fmt: skip
        headings = ["", "clusters", "entropy", "components"]
        after = ["* at the bend of the entropies"]
        return _summary.Summary([], headings, rows, "lrrl", after)

    def __str__(self) -> str:
        return str(self.summary())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def merge_by_entropy(gmm: Any, x: Any, *, weights: Any = None) -> MergedClusters:
    r"""Merge the components of a mixture into clusters, two at a time, by entropy.

    Again and again the two clusters are merged for which the entropy of the memberships,
    $-\sum_i \sum_c z_{ic} \log z_{ic}$, falls most: those that share most samples (Baudry, Raftery,
    Celeux, Lo & Gottardo 2010). BIC may need several Gaussians for one cluster that is not
    Gaussian; this finds them.

    **Arguments:**

    - `gmm`: the fitted mixture.
    - `x`: its data, `(n, d)` or `gmmx.Data`.
    - `weights`: how often each sample counts, `(n,)`.

    **Returns:** a `MergedClusters`.

    **Raises:** `ValueError` for a mixture with a background, which is no cluster, and where a
    sample has no density.
    """
    check_gaussian(check_mixture(gmm))
    x, weights = without_weights(x, weights)
    x = x if isinstance(x, Data) else _checks.check_data(x, 1, gmm.n_features)
    z = np.asarray(gmm.predict_proba(x), np.float64).T
    if not np.isfinite(z).all():
        raise ValueError("the mixture has no finite density at some samples of x; fit it again.")
    if weights is None:
        counts = np.ones(z.shape[1])
    else:
        counts = np.asarray(_checks.as_weights(weights, z.shape[1:], gmm.dtype), np.float64)
    clusters, parts = [[k] for k in range(len(z))], list(z)
    labels, entropies, merged = [], [], []
    drops = {(a, b): _drop(parts[a], parts[b], counts) for b in range(len(z)) for a in range(b)}
    alive = list(range(len(z)))
    while True:
        labels.append(_numbered(clusters, alive, len(z)))
        # Of one cluster zero, to rounding.
        entropies.append(max(-sum(float(counts @ xlogy(parts[i], parts[i])) for i in alive), 0.0))
        if len(alive) == 1:
            break
        a, b = max(drops, key=drops.__getitem__)
        most = np.stack([parts[i] for i in alive]).argmax(axis=0)
        merged.append(float(counts[np.isin(most, [alive.index(a), alive.index(b)])].sum()))
        parts[a], clusters[a] = parts[a] + parts[b], clusters[a] + clusters[b]
        alive.remove(b)
        drops = {pair: drop for pair, drop in drops.items() if not {a, b} & set(pair)}
        drops |= {
            (min(a, i), max(a, i)): _drop(parts[a], parts[i], counts) for i in alive if i != a
        }
    return MergedClusters(
        gmm, np.stack(labels[::-1]), np.array(entropies[::-1]), np.array(merged[::-1])
    )


def _drop(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], counts: Float[np.ndarray, " n"]
) -> float:
    """By how much the entropy falls where two clusters become one."""
    return float(counts @ (xlogy(a + b, a + b) - xlogy(a, a) - xlogy(b, b)))


def _numbered(clusters: list[list[int]], alive: list[int], k: int) -> Int[np.ndarray, " k"]:
    """The cluster of each component; clusters are in the order of their first component."""
    labels = np.empty(k, int)
    for number, i in enumerate(alive):
        labels[clusters[i]] = number
    return labels


def _deviation(x: Float[np.ndarray, " m"], y: Float[np.ndarray, " m"]) -> float:
    """The squared deviations from the best line."""
    slope, offset = np.polyfit(x, y, 1)
    return float(np.sum((y - slope * x - offset) ** 2))
