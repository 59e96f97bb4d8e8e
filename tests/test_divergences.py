"""Divergences: against numerical integration, closed forms of single Gaussians, and bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats

import gmmx
from gmmx._divergences.kl import pairwise_kl
from gmmx._divergences.wasserstein import pairwise_squared_wasserstein

K, L, D = 3, 4, 3


def bounds(p):
    lower, upper = gmmx.entropy_bounds(p)
    return lower + 2 * upper


@jax.jit
def scalars(p, q):
    """All of them in one program, which compiles in the time of one."""
    return {
        "kl_variational": gmmx.kl_variational(p, q),
        "kl_upper_bound": gmmx.kl_upper_bound(p, q),
        "integrated_squared_error": gmmx.integrated_squared_error(p, q),
        "mixture_wasserstein": gmmx.mixture_wasserstein(p, q),
        "log_overlap": gmmx.log_overlap(p, q),
        "entropy": bounds(p),
    }


def pair(structure, d=D, dtype=np.float64):
    return structure.mixture(K, d, dtype, seed=0), structure.mixture(L, d, dtype, seed=1)


def dense_of(structure, gmm):
    return structure.dense(np.asarray(gmm.covariances, float), *gmm.means.shape)


def single(mean, covariance):
    return gmmx.GaussianMixture.from_parameters(np.ones(1), mean[None], covariance[None])


def integrate(fn, p, q, d):
    """∫ fn(p(x), q(x)) dx by the trapezium rule, whose error is exponentially small here."""
    axis = np.linspace(-14, 14, 4001 if d == 1 else 701)
    grid = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), axis=-1)
    densities = (np.exp(g.log_prob(grid.reshape(-1, d))) for g in (p, q))
    return np.sum(fn(*densities)) * (axis[1] - axis[0]) ** d


@pytest.mark.parametrize("name, d", [("full", 1), ("full", 2), ("diag", 2)])
def test_closed_forms_are_the_integrals(structures, name, d):
    p, q = pair(structures[name], d)
    overlap = integrate(lambda p, q: p * q, p, q, d)
    np.testing.assert_allclose(np.exp(gmmx.log_overlap(p, q)), overlap, rtol=1e-10)
    square = integrate(lambda p, q: (p - q) ** 2, p, q, d)
    np.testing.assert_allclose(gmmx.integrated_squared_error(p, q), square, rtol=1e-9)
    entropy = integrate(lambda p, q: -p * np.log(np.maximum(p, 1e-300)), p, q, d)
    lower, upper = gmmx.entropy_bounds(p)
    assert lower < entropy < upper
    kl = integrate(
        lambda p, q: p * (np.log(np.maximum(p, 1e-300) / np.maximum(q, 1e-300))), p, q, d
    )
    assert kl < gmmx.kl_upper_bound(p, q)
    value, error = gmmx.kl_divergence(p, q, 20_000, key=jax.random.key(1))
    assert abs(value - kl) < 5 * error < kl


def test_of_a_mixture_and_itself(structure):
    p, _ = pair(structure)
    values = scalars(p, p)
    for name in ("kl_variational", "kl_upper_bound", "integrated_squared_error"):
        np.testing.assert_allclose(values[name], 0, atol=1e-7 if "upper" in name else 1e-12)
    np.testing.assert_allclose(values["mixture_wasserstein"], 0, atol=1e-12)
    value, error = gmmx.kl_divergence(p, p, 100)
    np.testing.assert_allclose([value, error], 0, atol=1e-12)


def test_of_single_gaussians():
    """Where every approximation and bound is exact."""
    rng = np.random.default_rng(3)
    roots = rng.normal(size=(2, D, D)) + np.eye(D)
    (m, n), (a, b) = rng.normal(size=(2, D)), roots @ roots.transpose(0, 2, 1)
    p, q = single(m, a), single(n, b)
    exact = float(pairwise_kl(p, q)[0, 0])
    np.testing.assert_allclose(gmmx.kl_variational(p, q), exact, rtol=1e-11)
    np.testing.assert_allclose(gmmx.kl_upper_bound(p, q), exact, rtol=1e-11)
    entropy = scipy.stats.multivariate_normal(m, a).entropy()
    np.testing.assert_allclose(gmmx.entropy_bounds(p), [entropy, entropy], rtol=1e-11)
    root = scipy.linalg.sqrtm(a)
    bures = np.trace(a + b - 2 * scipy.linalg.sqrtm(root @ b @ root).real)
    distance = np.sqrt(np.sum((m - n) ** 2) + bures)
    np.testing.assert_allclose(gmmx.wasserstein_gaussian(m, a, n, b), distance, rtol=1e-11)
    np.testing.assert_allclose(gmmx.mixture_wasserstein(p, q), distance, rtol=1e-11)
    many = gmmx.wasserstein_gaussian(np.stack([m, n]), np.stack([a, b]), n, b)
    np.testing.assert_allclose(many, [distance, 0], rtol=1e-11, atol=1e-7)


def test_entropy_bounds_meet_where_components_are_far_apart(structure):
    p, _ = pair(structure)
    far = gmmx.GaussianMixture(p.logits, 1e3 * p.means, p.structure)
    lower, upper = gmmx.entropy_bounds(far)
    np.testing.assert_allclose(lower, upper, rtol=1e-10)
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), far)
    single = gmmx.GaussianMixture(single.logits, 1e2 * single.means, single.structure)
    np.testing.assert_allclose(gmmx.entropy_bounds(single), [lower, upper], rtol=1e-5)


def test_transport_is_the_assignment(structure):
    """Of equal weights the best coupling is a permutation."""
    p, q = structure.mixture(5, D, seed=0), structure.mixture(5, D, seed=1)
    p, q = (gmmx.GaussianMixture(jnp.zeros(5), g.means, g.structure) for g in (p, q))
    cost = np.asarray(pairwise_squared_wasserstein(p, q))
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    best = np.sqrt(cost[rows, columns].mean())
    np.testing.assert_allclose(gmmx.mixture_wasserstein(p, q), best, rtol=1e-12)


def test_transport_of_one_feature_is_at_least_the_distance(structure):
    """MW₂ is W₂ over fewer plans; in one feature W₂ is the integral over quantiles."""
    p, q = pair(structure, 1)
    axis = np.linspace(-20, 20, 200_001)
    levels = (np.arange(20_000) + 0.5) / 20_000
    quantiles = []
    for g in (p, q):
        widths = np.sqrt(dense_of(structure, g)[:, 0, 0])
        cdf = scipy.stats.norm.cdf((axis[:, None] - np.asarray(g.means)[:, 0]) / widths)
        quantiles.append(np.interp(levels, cdf @ np.asarray(g.weights), axis))
    distance = np.sqrt(np.mean((quantiles[0] - quantiles[1]) ** 2))
    got = gmmx.mixture_wasserstein(p, q)
    assert distance < got < 2 * distance + 1


def test_gradient_of_the_estimate_is_that_of_the_divergence():
    """Pathwise through the draws: of single Gaussians, within five standard errors."""
    rng = np.random.default_rng(4)
    p, q = (single(rng.normal(size=2), (0.5 + s) * np.eye(2)) for s in (0.2, 0.7))
    exact = jax.grad(lambda p, q: pairwise_kl(p, q)[0, 0], (0, 1))(p, q)

    def estimate(key):
        return jax.grad(lambda p, q: gmmx.kl_divergence(p, q, 200, key=key).value, (0, 1))(p, q)

    estimates = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 50))
    for got, wanted in zip(jax.tree.leaves(estimates), jax.tree.leaves(exact), strict=True):
        error = np.std(got, axis=0, ddof=1) / np.sqrt(len(got))
        assert (np.abs(np.mean(got, axis=0) - wanted) <= 5 * error + 1e-12).all()


def test_wasserstein_differentiates_where_eigenvalues_are_equal():
    """Along commuting covariances W₂² is Σ(√a − √b)²; along others it is checked by differences."""

    def squared(covariance):
        return (
            gmmx.wasserstein_gaussian(jnp.zeros(2), covariance, jnp.zeros(2), 4 * jnp.eye(2)) ** 2
        )

    here = jnp.eye(2)
    gradient = jax.grad(squared)(here)
    np.testing.assert_allclose(gradient, (1 - 2) * np.eye(2), rtol=1e-10, atol=1e-12)
    # tr Σ − 4 tr Σ^½ + 8, whose second derivative along M at Σ = 1 is tr M².
    for move in ([[1.0, 0], [0, -2]], [[0.0, 1], [1, 0]], [[1.0, 0.5], [0.5, 0.2]]):
        move = jnp.asarray(move)
        along = jax.grad(jax.grad(lambda t, move=move: squared(here + t * move)))(0.0)
        np.testing.assert_allclose(along, jnp.sum(move**2), rtol=1e-10)
    assert float(squared(4 * here)) < 1e-20
    assert np.isfinite(jax.grad(lambda c: jnp.sqrt(squared(c)))(4 * here)).all()


@pytest.mark.parametrize("offset, scale", [(0, 1), (1e4, 1), (0, 1e-6), (0, 1e6)])
def test_float32_of_a_mixture_and_itself(offset, scale, structures):
    """Where divergences are zero, and only rounding is left."""
    weights, means, covariances = structures["full"].parameters(K, D)
    p = structures["full"].of(weights, scale * means + offset, scale**2 * covariances, np.float32)
    values = scalars(p, p)
    assert abs(float(values["kl_variational"])) < 1e-4
    assert abs(float(values["kl_upper_bound"])) < 1e-4
    assert abs(float(values["mixture_wasserstein"])) < 1e-5 * scale


def test_bad_input():
    p, q = gmmx.GaussianMixture.create(2, 3), gmmx.GaussianMixture.create(2, 2)
    for fn in (
        gmmx.kl_divergence, gmmx.kl_variational, gmmx.kl_upper_bound, gmmx.log_overlap,
        gmmx.pairwise_log_overlap, gmmx.integrated_squared_error, gmmx.mixture_wasserstein,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="3 features and q has 2"):
            fn(p, q)
    for n_samples in (0, 1):
        with pytest.raises(ValueError, match="n_samples"):
            gmmx.kl_divergence(p, p, n_samples)
    with pytest.raises(ValueError, match="covariance_q has shape"):
        gmmx.wasserstein_gaussian(np.zeros(2), np.eye(2), np.zeros(2), np.eye(3))
    assert gmmx.wasserstein_gaussian([0, 0], [[1, 0], [0, 1]], [3, 4], [[1, 0], [0, 1]]) == 5
    i = np.eye(2)
    for covariance, match in (
        ([[1.0, 0.5], [0, 1]], "not symmetric"), (-i, "not positive definite"),
        (np.ones((2, 2)), "not positive definite"), (i * np.nan, "covariance_q holds"),
        (np.stack([i, i, i]), "leading axes"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            gmmx.wasserstein_gaussian(np.zeros((2, 2)), i, np.zeros(2), covariance)
