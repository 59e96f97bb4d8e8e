"""Marginals, conditionals, linear maps, products and merges: what the contract does not hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads
from operations import GIVEN, REST, D, K, dense, log_density, marginal, runnalls

import gmmx
from gmmx._grouped import grouped_product
from gmmx._orthogonal import lower_factor, lower_root


def points(n, d, seed=5):
    return 2 * np.random.default_rng(seed).normal(size=(n, d))


def same(gmm, weights, means, covariances, rtol=1e-10):
    got = dense(gmm)
    for a, b in zip(got, (weights, means, covariances), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


# The factorisation that everything rests on


@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 5), (7, 7), (40, 61)])
def test_root_of_a_sum_of_squares(rows, columns):
    rng = np.random.default_rng(0)
    r = rng.normal(size=(2, rows, columns)) + 2 * np.eye(rows, columns)
    # Rows of any units: the factor is the same but for these.
    units = np.geomspace(1e-9, 1e9, rows)[:, None]
    root = np.asarray(lower_root(jnp.asarray(units * r))) / units
    np.testing.assert_allclose(root, np.linalg.cholesky(r @ r.transpose(0, 2, 1)), atol=1e-11)
    factor = np.asarray(lower_factor(jnp.asarray(r.transpose(0, 2, 1))))
    np.testing.assert_array_equal(factor, np.tril(factor))
    np.testing.assert_allclose(
        factor.transpose(0, 2, 1) @ factor, r @ r.transpose(0, 2, 1), rtol=1e-11, atol=1e-11
    )


def test_root_does_not_square_the_condition_number():
    """Widths of 1 to 1e-5 in axes that are not the features', in float32."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    rows = (rotation * np.geomspace(1, 1e-5, 6)).astype(np.float32)
    root = np.asarray(lower_root(jnp.asarray(rows)))
    # QR in float64: no squares are formed there either.
    exact = np.abs(np.diagonal(np.linalg.qr(rows.astype(float).T)[1]))
    np.testing.assert_allclose(np.diagonal(root), exact, rtol=1e-2)
    # A Cholesky factorisation of the square has lost them.
    squared = np.linalg.eigvalsh(rows @ rows.T)
    assert squared.min() < 0 or squared.min() > 10 * 1e-10


def test_a_singular_sum_is_nan():
    rows = jnp.asarray([[1.0, 2, 3], [2, 4, 6], [1, 0, 0]])
    root = lower_root(rows)
    np.testing.assert_array_equal(np.isnan(np.diagonal(root)), [False, True, False])


def test_root_differentiates():
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)))
    check_grads(jax.jit(lower_root), (rows,), order=2, modes=("fwd", "rev"), rtol=1e-5)


@pytest.mark.parametrize("n", [5, 129, 1000])
def test_grouped_product_is_the_gathered_one(n):
    rng = np.random.default_rng(2)
    matrices, x = rng.normal(size=(4, 2, 3)), rng.normal(size=(n, 3))
    # Groups of very different sizes, one of them empty.
    labels = rng.choice([0, 1, 3], p=[0.9, 0.09, 0.01], size=n)
    got = jax.jit(grouped_product)(jnp.asarray(x), jnp.asarray(matrices), jnp.asarray(labels))
    np.testing.assert_allclose(got, np.einsum("nm,ndm->nd", x, matrices[labels]), atol=1e-13)


# Marginals and conditionals


@pytest.mark.parametrize("name", ["full", "diag"])
@pytest.mark.parametrize("indices", [[0], [-1, 1], [3, 1, 0, 2], np.array([0, 1, 0, 1]) > 0])
def test_marginal_is_the_blocks(structures, indices, name):
    gmm = structures[name].mixture(K, D)
    kept = np.arange(D)[np.asarray(indices)]
    found = gmm.marginal(indices)
    assert found.covariance_type == name
    same(found, *marginal(dense(gmm), kept))


def test_condition_is_the_ratio_of_densities(structure):
    gmm = structure.mixture(K, D)
    values, x = points(5, 2, seed=1), points(5, 2, seed=2)
    whole = np.empty((5, D))
    whole[:, GIVEN], whole[:, REST] = values, x
    ratio = log_density(dense(gmm), whole) - log_density(marginal(dense(gmm), GIVEN), values)
    batch = gmm.condition(GIVEN, values)
    assert isinstance(batch, gmmx.MixtureBatch) and batch.shape == (5,) and batch.shared
    np.testing.assert_allclose(batch.log_prob(x), ratio, rtol=1e-10, atol=1e-10)
    alone = gmm.condition(GIVEN, values[0])
    np.testing.assert_allclose(alone.log_prob(x[0]), ratio[0], rtol=1e-10)


def test_regression_finds_the_curve():
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, size=2000)
    data = np.stack([x, np.sin(x) + 0.1 * rng.normal(size=x.size)], 1)
    gmm = gmmx.EMFitter().fit(data, gmmx.initialize(data, 8)).gmm
    at = np.linspace(-2.5, 2.5, 11)[:, None]
    mean, covariance = gmm.regress([0], at)
    np.testing.assert_allclose(mean[:, 0], np.sin(at[:, 0]), atol=0.15)
    assert (np.sqrt(np.asarray(covariance)[:, 0, 0]) < 0.3).all()


# Batches


@pytest.mark.parametrize("name", ["full", "tied"])
def test_a_batch_is_its_mixtures(structures, name):
    gmm, values = structures[name].mixture(K, D), points(6, 2).reshape(2, 3, 2)
    batch = gmm.condition(GIVEN, values)
    assert batch.shape == (2, 3) and len(batch) == 2 and batch[0].shape == (3,)
    assert (batch.n_components, batch.n_features) == (K, 2)
    assert [one.shape for one in batch] == [(3,), (3,)]
    one = batch[1, 2]
    assert isinstance(one, gmmx.GaussianMixture)
    np.testing.assert_allclose(batch.mean()[1, 2], one.mean(), rtol=1e-12)
    np.testing.assert_allclose(batch.covariance()[1, 2], one.covariance(), rtol=1e-12)
    np.testing.assert_allclose(batch.weights[1, 2], one.weights, rtol=1e-12)
    x = points(12, 2).reshape(2, 3, 2, 2)
    np.testing.assert_allclose(batch.log_prob(x)[1, 2], one.log_prob(x[1, 2]), rtol=1e-12)
    keys = jax.random.split(jax.random.key(4), (2, 3))
    draws = batch.sample(5, key=jax.random.key(4))
    assert draws.shape == (2, 3, 5, 2)
    np.testing.assert_allclose(draws[1, 2], one.sample(5, key=keys[1, 2]), rtol=1e-12)
    # A batch of mixtures that share nothing, from a vmap.
    apart = gmmx.MixtureBatch(
        *jax.vmap(lambda v: (lambda g: (g.logits, g.means, g.structure))(gmm.condition(GIVEN, v)))(
            jnp.asarray(values[0])
        ),
        shared=False,
    )
    np.testing.assert_allclose(apart.mean(), batch[0].mean(), rtol=1e-12)
    np.testing.assert_allclose(apart[1].covariances, batch[0, 1].covariances, rtol=1e-12)
    with pytest.raises(IndexError):
        batch[0, 0, 0]
    with pytest.raises(ValueError, match="its axes have to come first"):
        batch.log_prob(points(5, 2))


def test_condition_stores_the_covariances_once(structure):
    gmm = structure.mixture(K, D)
    batch = gmm.condition(GIVEN, np.zeros((1000, 2)))
    assert all(leaf.size <= K * D * D for leaf in jax.tree.leaves(batch.structure))


# Linear maps


@pytest.mark.parametrize("name", ["full", "tied", "diag"])
def test_affine_to_as_many_features(structures, name):
    gmm = structures[name].mixture(K, D)
    rng = np.random.default_rng(4)
    matrix, offset = rng.normal(size=(D, D)), rng.normal(size=D)
    weights, means, covariances = dense(gmm)
    mapped = gmm.affine(matrix, offset)
    same(mapped, weights, means @ matrix.T + offset, matrix @ covariances @ matrix.T)


def test_negative_noise_is_nan_where_python_does_not_see_it(structure):
    gmm = structure.mixture(K, D)
    program = jax.jit(lambda c: (gmm.convolve(c).covariances, gmm.noise_score(np.ones(D), c)))
    for value in program(-0.01):
        assert np.isnan(value).any()


def test_no_noise_changes_nothing(structure):
    gmm = structure.mixture(K, D)
    for nothing in (0, np.zeros(D)):
        same(gmm.convolve(nothing), *dense(gmm))
    slope = jax.jit(jax.grad(lambda c: gmm.convolve(c).log_prob(jnp.ones(D))))
    np.testing.assert_allclose(slope(0.0), slope(1e-9), rtol=1e-6)


# Products


@pytest.mark.parametrize("name", ["tied", "diag", "spherical"])
def test_product_is_the_product_of_densities(structures, name):
    """Of mixtures of different structures; the logits hold the normaliser."""
    p, q, x = (
        structures[name].mixture(2, 3),
        structures["full"].mixture(3, 3, seed=1),
        points(20, 3),
    )
    both, log_z = gmmx.product(p, q), gmmx.log_overlap(p, q)
    assert both.n_components == 6
    np.testing.assert_allclose(
        both.log_prob(x), p.log_prob(x) + q.log_prob(x) - log_z, rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(log_z, gmmx.log_overlap(q, p), rtol=1e-12)
    np.testing.assert_allclose(scipy.special.logsumexp(both.logits), log_z, rtol=1e-12)


# Merges


def moments(gmm):
    return np.asarray(gmm.mean()), np.asarray(gmm.covariance())


def test_merging_keeps_mean_and_covariance(structure):
    gmm = structure.mixture(6, D)
    mean, covariance = moments(gmm)
    smaller = gmm.reduce(2)
    assert smaller.n_components == 2
    np.testing.assert_allclose(smaller.weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(smaller.mean(), mean, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(smaller.covariance(), covariance, rtol=1e-10, atol=1e-11)
    one = gmm.collapse()
    np.testing.assert_allclose(one.means[0], mean, rtol=1e-12)
    np.testing.assert_allclose(one.covariances[0], covariance, rtol=1e-10, atol=1e-11)
    if structure.name == "full":
        same(gmm.reduce(1), *dense(one))
    assert gmm.reduce(6) is gmm


@pytest.mark.parametrize("name", ["full", "diag"])
def test_reduction_is_runnalls(structures, name):
    gmm = structures[name].mixture(8, 2)
    weights, means, covariances = runnalls(dense(gmm), 3)
    smaller = dense(gmm.reduce(3))
    order, wanted = np.argsort(smaller[0]), np.argsort(weights)
    for a, b in zip(smaller, (weights, means, covariances), strict=True):
        np.testing.assert_allclose(a[order], b[wanted], rtol=1e-9, atol=1e-10)


def test_cost_of_a_merge_bounds_the_divergence(structures):
    """KL(before ‖ after) ≤ B, the change of Σ w log|Σ|/2; by quadrature in one dimension."""
    gmm = structures["full"].mixture(4, 1)
    grid = np.linspace(-30, 30, 200_001)
    for n in (3, 1):
        smaller = gmm.reduce(n)
        before, after = (np.asarray(g.log_prob(grid[:, None])) for g in (gmm, smaller))
        divergence = np.trapezoid(np.exp(before) * (before - after), grid)
        entropies = [
            np.sum(w * np.log(np.linalg.det(c))) / 2 for w, _, c in map(dense, (smaller, gmm))
        ]
        assert 0 <= divergence <= entropies[0] - entropies[1]


def test_a_component_of_no_weight_is_merged_first():
    gmm = gmmx.GaussianMixture.from_parameters(
        [0.0, 0.5, 0.5], [[50.0], [0.0], [1.0]], [[[1.0]], [[1.0]], [[1.0]]]
    )
    smaller = gmm.reduce(2)
    np.testing.assert_allclose(np.sort(smaller.means[:, 0]), [0, 1], atol=1e-12)
    np.testing.assert_allclose(smaller.log_prob([[0.3]]), gmm.log_prob([[0.3]]), rtol=1e-12)


# Input


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda g: g.marginal([0, 4]), "has 4 features: 0 to 3"),
        (lambda g: g.marginal([-5]), "holds -5"),
        (lambda g: g.marginal([1, -3]), "names a feature twice"),
        (lambda g: g.marginal([True, False]), "one entry a feature"),
        (lambda g: g.marginal([]), "one or more feature numbers"),
        (lambda g: g.marginal([0.5]), "one or more feature numbers"),
        (lambda g: jax.jit(lambda i: g.marginal(i))(jnp.arange(2)), "indices is traced"),
        (lambda g: g.condition([0, 1, 2, 3], np.zeros(4)), "log_prob"),
        (lambda g: g.condition([0, 1], np.zeros(3)), r"expected \(\*batch, 2\)"),
        (lambda g: g.condition([0], 1.0), r"expected \(\*batch, 1\)"),
        (lambda g: g.condition([0], [np.nan]), "NaN"),
        (lambda g: g.regress([0], np.zeros((3, 2))), r"expected \(\*batch, 1\)"),
        (lambda g: g.affine(np.ones(4)), r"expected \(m, 4\)"),
        (lambda g: g.affine(np.ones((0, 4))), r"expected \(m, 4\)"),
        (lambda g: g.affine(np.ones((5, 4))), "singular"),
        (lambda g: g.affine(np.ones((2, 4))), "depends on the others"),
        (lambda g: g.affine(np.ones((1, 4)), [1.0, 2]), "offset has shape"),
        (lambda g: g.convolve(-1.0), "negative variance -1"),
        (lambda g: g.convolve(np.ones(3)), "noise_covariance has shape"),
        (lambda g: g.convolve(np.ones((4, 4))), "not positive definite"),
        (lambda g: g.convolve(np.inf), "NaN or infinite"),
        (lambda g: g.reduce(5), "cannot add"),
        (lambda g: g.reduce(0), "positive integer"),
        (lambda g: gmmx.product(g, gmmx.GaussianMixture.create(2, 3)), "q has 3"),
        (lambda g: gmmx.log_overlap(g, gmmx.GaussianMixture.create(2, 3)), "q has 3"),
    ],
)
def test_bad_input_is_refused_with_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call(gmmx.GaussianMixture.create(3, D))
