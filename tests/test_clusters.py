"""Components merged into clusters, the uncertainty of a row, and the pictures of both."""

import itertools

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from conftest import STRUCTURES
from scipy.special import xlogy

import gmmx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from gmmx import plot


@pytest.fixture(scope="module")
def cross():
    """A cross, which is two Gaussians, and two clusters beside it, by their own mixture."""
    means = [[0, 0], [4.5, 0], [0, 0], [1.5, 4]]
    covariances = [np.diag(v) for v in ([1, 0.015], [0.3, 0.3], [0.015, 1], [0.16, 0.16])]
    gmm = STRUCTURES["full"].of([0.25] * 4, np.array(means, float), np.stack(covariances))
    rng = np.random.default_rng(0)
    parts = [rng.multivariate_normal(m, c, 60) for m, c in zip(means, covariances, strict=True)]
    return gmm, np.concatenate(parts)


@pytest.fixture(scope="module")
def merged(cross):
    return gmmx.merge_by_entropy(*cross)


def entropy(z):
    return -xlogy(z, z).sum()


def test_each_step_lowers_the_entropy_most(cross, merged):
    """By trying all pairs."""
    z = np.asarray(cross[0].predict_proba(cross[1]))
    clusters = [[k] for k in range(4)]
    for c in range(4, 0, -1):
        together = np.stack([z[:, members].sum(axis=1) for members in clusters])
        np.testing.assert_allclose(merged.entropies[c - 1], entropy(together), atol=1e-9)
        assert sorted(map(sorted, clusters)) == merged.components(c)
        if c > 1:
            found = {
                (a, b): entropy(np.delete(together, [a, b], 0)) + entropy(together[a] + together[b])
                for a, b in itertools.combinations(range(c), 2)
            }
            a, b = min(found, key=found.get)
            largest = together.argmax(axis=0)
            assert merged.merged_counts[c - 2] == np.isin(largest, [a, b]).sum()
            clusters[a] = clusters[a] + clusters.pop(b)


def test_the_cross_is_one_cluster(cross, merged):
    assert merged.n_clusters == 3
    assert merged.components() == [[0, 2], [1], [3]]
    gmm, x = cross
    z = gmm.predict_proba(x)
    found = merged.predict_proba(x)
    np.testing.assert_allclose(found[:, 0], z[:, 0] + z[:, 2], rtol=1e-12)
    np.testing.assert_array_equal(merged.predict(x), np.argmax(found, axis=1))
    assert (merged.predict(x, 1) == 0).all()
    assert "0 2 | 1 | 3" in str(merged)


def test_weights_count_rows(cross, merged):
    gmm, x = cross
    weights = np.where(np.arange(len(x)) % 2, 2.0, 0.0)
    found = gmmx.merge_by_entropy(gmm, x, weights=weights)
    wanted = gmmx.merge_by_entropy(gmm, np.repeat(x[1::2], 2, axis=0))
    np.testing.assert_allclose(found.entropies, wanted.entropies, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.merged_counts, wanted.merged_counts)
    np.testing.assert_array_equal(found.labels, wanted.labels)


def test_what_cannot_be_merged(cross, merged):
    gmm, x = cross
    behind = gmmx.BackgroundMixture.of(gmm, gmmx.UniformBackground.of(x))
    with pytest.raises(ValueError, match=r"Pass gmm\.mixture"):
        gmmx.merge_by_entropy(behind, x)
    with pytest.raises(ValueError, match="n_clusters=5; expected 1 to 4"):
        merged.predict(x, 5)


def test_uncertainty(cross):
    """It is one less the largest responsibility, and of a small one no digit is lost."""
    gmm, x = cross
    found = np.asarray(gmm.uncertainty(x))
    wanted = 1 - np.max(np.asarray(gmm.predict_proba(x)), axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-14)
    mean = jnp.array([1.5, 4.0])
    log_joint = np.sort(np.asarray(gmm.component_log_prob(mean)))[::-1]
    others = np.exp(log_joint[1:] - log_joint[0]).sum()
    assert 0 < others < 1e-16
    np.testing.assert_allclose(gmm.uncertainty(mean), others, rtol=1e-9)


def test_pictures(cross, merged):
    gmm, x = cross
    ax = plot.uncertainty(gmm, x)
    sizes, places = ax.collections[0].get_sizes(), ax.collections[0].get_offsets()
    assert len(sizes) == len(x)
    # The least certain rows lie where the arms of the cross meet.
    assert np.abs(places[np.argsort(sizes)[-5:]]).max() < 0.7
    for against in ("clusters", "samples"):
        ax = plot.entropy(merged, against=against)
        (points,) = (line for line in ax.lines if len(line.get_xdata()) == 4)
        np.testing.assert_array_equal(points.get_ydata(), merged.entropies)
        ax.figure.canvas.draw()
    with pytest.raises(ValueError, match="against='rows'"):
        plot.entropy(merged, against="rows")
    with pytest.raises(ValueError, match="x is None"):
        plot.uncertainty(gmm, None)
    plt.close("all")
