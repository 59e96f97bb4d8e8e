"""Where fits start: every method and structure, and no component without samples."""

import jax
import numpy as np
import pytest

import gmmx

METHODS = ("kmeans", "kmeans++", "random", "random_from_data")
# Methods that part the data, so that each component has samples of its own.
HARD = ("kmeans", "kmeans++", "random_from_data")


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def is_sound(gmm, structure):
    k, d = gmm.means.shape
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gmm))
    assert (np.asarray(gmm.weights) > 0).all()
    dense = structure.dense(np.asarray(gmm.covariances, float), k, d)
    assert (np.linalg.eigvalsh(dense) > 0).all()


def test_a_start_is_a_mixture_of_the_data(structure, blobs, method):
    gmm = gmmx.initialize(blobs, 3, structure.name, method=method)
    is_sound(gmm, structure)
    assert gmm.covariance_type == structure.name
    assert (gmm.n_components, gmm.n_features) == (3, 3)
    # One M-step keeps the mean of the data, whatever the memberships.
    np.testing.assert_allclose(gmm.mean(), blobs.mean(0), rtol=1e-12)
    np.testing.assert_array_equal(
        gmmx.initialize(blobs, 3, structure.name, method=method, key=jax.random.key(0)).means,
        gmm.means,
    )


def test_separated_clusters_are_found(structure, blobs):
    labels = gmmx.initialize(blobs, 3, structure.name).predict(blobs)
    labels = np.asarray(labels).reshape(3, 100)
    assert (labels == labels[:, :1]).all() and len(set(labels[:, 0])) == 3


def test_units_do_not_decide(blobs):
    """A feature in small units counts as much as one in large."""
    units = np.array([1e-4, 1.0, 1e4])
    here, there = (gmmx.initialize(x, 3) for x in (blobs, blobs * units))
    np.testing.assert_allclose(there.means / units, here.means, rtol=1e-9)


@pytest.mark.parametrize(
    "method, covariance_type",
    [
        *((m, "full") for m in METHODS),
        ("kmeans", "tied"),
        ("kmeans", "diag"),
        ("random", "spherical"),
    ],
)
def test_jit_and_vmap_over_keys(blobs, method, covariance_type):
    keys = jax.random.split(jax.random.key(5), 3)

    def start(key):
        return gmmx.initialize(blobs, 3, covariance_type, method=method, key=key)

    alone = [start(key) for key in keys]
    together = jax.jit(jax.vmap(start))(keys)
    for i, one in enumerate(alone):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b[i], rtol=1e-9, atol=1e-9)
    assert (np.asarray(alone[0].means) != np.asarray(alone[1].means)).any()


def counts(gmm, n):
    """Samples of each component."""
    return np.asarray(gmm.weights) * n


@pytest.mark.parametrize("method", HARD)
@pytest.mark.parametrize("seed", range(3))
def test_empty_clusters_are_repaired(method, seed):
    """More components than distinct points leave clusters with nothing nearest to them."""
    x = np.repeat(np.array([[0.0, 0], [1, 0], [0, 1]]), 7, axis=0)
    gmm = gmmx.initialize(x, 8, method=method, key=jax.random.key(seed))
    assert np.isfinite(gmm.means).all()
    assert counts(gmm, 21).min() > 0.99


@pytest.mark.parametrize(
    "method, covariance_type", list(zip(HARD, ("full", "tied", "diag"), strict=True))
)
def test_as_many_components_as_samples(structures, method, covariance_type):
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    gmm = gmmx.initialize(x, 9, covariance_type, method=method)
    is_sound(gmm, structures[covariance_type])
    np.testing.assert_allclose(counts(gmm, 9), 1, rtol=1e-5)
    order = np.lexsort(np.asarray(gmm.means).T)
    np.testing.assert_allclose(gmm.means[order], x[np.lexsort(x.T)], rtol=1e-5)


@pytest.mark.parametrize("n_components", [1, 5])
def test_all_samples_equal(method, n_components):
    gmm = gmmx.initialize(np.full((10, 2), 3.0), n_components, method=method)
    np.testing.assert_allclose(gmm.means, 3.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gmm))
    assert counts(gmm, 10).min() > 0.5


def test_samples_of_weight_zero_do_not_count(structures, blobs, method):
    outliers = np.concatenate([blobs, 1e3 + np.arange(30.0).reshape(10, 3)])
    weights = np.r_[np.ones(300), np.zeros(10)]
    gmm = gmmx.initialize(outliers, 4, "diag", method=method, weights=weights)
    is_sound(gmm, structures["diag"])
    assert np.abs(gmm.means).max() < 30
    assert counts(gmm, 300).min() > 0.5
    # Components for as many samples as count, and no more.
    few = np.r_[np.ones(4), np.zeros(306)]
    if method != "random":
        gmm = gmmx.initialize(outliers, 4, "diag", method=method, weights=few)
        np.testing.assert_allclose(counts(gmm, 4), 1)


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_offsets_in_float32(structure, blobs, offset):
    """Far from the origin the starts are those near it, to what float32 can hold there."""
    near = blobs.astype(np.float32)
    far = (near + np.float32(offset)).astype(np.float32)
    here, there = (gmmx.initialize(x, 3, structure.name) for x in (near, far))
    is_sound(there, structure)
    spacing = np.spacing(np.float32(offset))
    order = [np.lexsort(np.asarray(g.means).T) for g in (here, there)]
    np.testing.assert_allclose(
        there.means[order[1]] - np.float32(offset), here.means[order[0]], atol=2 * spacing
    )
    if structure.name != "tied":
        np.testing.assert_allclose(
            there.covariances[order[1]], here.covariances[order[0]], atol=spacing, rtol=0.02
        )


def test_from_responsibilities_is_one_m_step(structure, blobs):
    rng = np.random.default_rng(0)
    z = rng.dirichlet(np.ones(3), size=len(blobs))
    weights = rng.exponential(size=len(blobs))
    gmm = gmmx.GaussianMixture.from_responsibilities(
        blobs, z, structure.name, weights=weights, reg_covar=np.full(3, 0.01)
    )
    r = z * weights[:, None]
    means = r.T @ blobs / r.sum(0)[:, None]
    apart = blobs[:, None] - means
    scatter = np.einsum("nk,nki,nkj->kij", r, apart, apart)
    dense = scatter / r.sum(0)[:, None, None]
    if structure.name == "tied":
        dense = np.broadcast_to(scatter.sum(0) / r.sum(), dense.shape)
    wanted = structure.natural(dense + 0.01 * np.eye(3))
    np.testing.assert_allclose(gmm.weights, r.sum(0) / r.sum(), rtol=1e-12)
    np.testing.assert_allclose(gmm.means, means, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(gmm.covariances, wanted, rtol=1e-10, atol=1e-10)


def test_from_labels(blobs):
    labels = np.repeat(np.arange(3), 100)
    gmm = gmmx.GaussianMixture.from_responsibilities(blobs, np.eye(3)[labels], reg_covar=0.0)
    np.testing.assert_allclose(gmm.means, blobs.reshape(3, 100, 3).mean(1), rtol=1e-12)
    np.testing.assert_allclose(gmm.covariances[1], np.cov(blobs[100:200].T, ddof=0), rtol=1e-10)


@pytest.mark.parametrize("angle", [0.0, 30.0, 75.0])
@pytest.mark.parametrize("elongation", [10, 30])
def test_short_runs_find_elongated_clusters(angle, elongation):
    """Three parallel blobs, apart along their short axis alone."""
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], 100)
    x = rng.normal(size=(300, 2)) * [elongation, 1]
    x[:, 1] += 5 * labels
    turn = np.deg2rad(angle)
    x = x @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    gmm = gmmx.initialize(x, 3, method="em")
    found = np.asarray(gmm.predict(x))
    hits = [[(found[labels == a] == b).mean() for b in range(3)] for a in range(3)]
    assert np.sort(np.max(hits, axis=1))[0] > 0.9 and len(set(np.argmax(hits, axis=1))) == 3


def test_short_runs_are_at_least_as_likely(structure):
    start = structure.mixture(4, 3, seed=5)
    x = np.asarray(start.sample(400, key=jax.random.key(2)))
    plain, short = (gmmx.initialize(x, 4, structure.name, method=m) for m in ("kmeans", "em"))
    assert short.covariance_type == structure.name
    assert short.score(x) >= plain.score(x)
    weights = np.random.default_rng(0).uniform(size=400)
    fit = gmmx.EMFitter(max_iter=5000, tol=1e-7).fit
    ends = (fit(x, gmmx.initialize(x, 4, structure.name, method=m, weights=weights),
                weights=weights) for m in ("kmeans", "em"))  # fmt: skip
    plain, short = (end.log_likelihood for end in ends)
    assert short >= plain - 1e-6


def test_short_runs_of_many_rows():
    """Some rows are drawn, none of weight zero."""
    rng = np.random.default_rng(0)
    means = np.array([[0, 0], [8, 0], [0, 8.0]])
    labels = rng.integers(3, size=30_000)
    x = means[labels] + rng.normal(size=(30_000, 2))
    x[:100] = 1e6
    weights = np.ones(30_000)
    weights[:100] = 0
    gmm = gmmx.initialize(x, 3, method="em", weights=weights)
    order = np.argsort(gmm.means @ np.array([1, 2.0]))
    np.testing.assert_allclose(np.asarray(gmm.means)[order], means, atol=0.1)
