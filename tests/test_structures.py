"""What a covariance structure makes of a mixture, over every structure of the registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jaxprs import largest, traced

import gmmx
from gmmx._covariance import LOW_RANK, structure_named

K, D, N = 3, 5, 40


def points(seed=7, n=N, d=D, dtype=np.float64):
    return (2.5 * np.random.default_rng(seed).normal(size=(n, d))).astype(dtype)


def reference(structure, k, d, x):
    """log w_k N(x; μ_k, Σ_k) by SciPy, from dense covariances."""
    weights, means, covariances = structure.parameters(k, d)
    dense = structure.dense(covariances, k, d)
    joint = [
        np.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(x)
        for w, m, c in zip(weights, means, dense, strict=True)
    ]
    return np.stack(joint, axis=-1)


def test_every_structure_of_the_library_has_its_row(structures):
    with pytest.raises(ValueError) as error:
        gmmx.GaussianMixture.create(2, 2, "no such structure")
    named = str(error.value).split("one of ")[1].replace("'", "").rstrip(".").split(", ")
    # mclust's families, and those of low rank, have files of tests of their own.
    families = {n for f in gmmx.FAMILIES for n in (f, structure_named(f).covariance_type)}
    assert {*named} == {*structures} | families | {*LOW_RANK}


# One feature, and more than those whose factorisations are written out.
@pytest.mark.parametrize("d", [1, D])
def test_density_is_scipys(structure, d, dtype):
    x = points(d=d, dtype=dtype)
    gmm = structure.mixture(K, d, dtype)
    joint = reference(structure, K, d, x.astype(np.float64))
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == np.float64 else {"rtol": 2e-5}
    np.testing.assert_allclose(gmm.component_log_prob(x), joint, **tolerance)
    np.testing.assert_allclose(gmm.log_prob(x), scipy.special.logsumexp(joint, 1), **tolerance)
    np.testing.assert_allclose(
        gmm.predict_proba(x), scipy.special.softmax(joint, 1), rtol=1e-3, atol=1e-6
    )
    np.testing.assert_array_equal(gmm.predict(x), joint.argmax(1))


def test_parameters_come_back(structure):
    weights, means, covariances = structure.parameters(K, D)
    gmm = gmmx.GaussianMixture.from_parameters(weights, means, covariances, structure.name)
    np.testing.assert_allclose(gmm.weights, weights, rtol=1e-12)
    np.testing.assert_allclose(gmm.means, means, rtol=1e-12)
    np.testing.assert_allclose(gmm.covariances, covariances, rtol=1e-10, atol=1e-12)
    assert gmm.covariance_type == structure.name
    assert (gmm.n_components, gmm.n_features) == (K, D)
    # What the tests make in NumPy is the same to rounding.
    for a, b in zip(jax.tree.leaves(gmm), jax.tree.leaves(structure.mixture(K, D)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_precisions_invert_covariances(structure):
    gmm = structure.mixture(K, D)
    assert gmm.precisions.shape == gmm.covariances.shape == gmm.precisions_cholesky.shape
    dense = [structure.dense(np.asarray(v), K, D) for v in (gmm.precisions, gmm.covariances)]
    identity = np.broadcast_to(np.eye(D), (K, D, D))
    np.testing.assert_allclose(dense[0] @ dense[1], identity, atol=1e-10)
    # As scikit-learn has them: upper triangular with Λ = UUᵀ.
    factor = structure.dense(np.asarray(gmm.precisions_cholesky), K, D)
    np.testing.assert_array_equal(factor, np.triu(factor))
    assert (np.diagonal(factor, axis1=1, axis2=2) > 0).all()
    np.testing.assert_allclose(factor @ factor.transpose(0, 2, 1), dense[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k, d", [(1, 1), (1, 4), (3, 1), (7, 6)])
def test_number_of_parameters(structure, k, d):
    gmm = gmmx.GaussianMixture.create(k, d, structure.name)
    assert gmm.n_parameters == k - 1 + k * d + structure.n_parameters(k, d)


def test_any_leaves_are_a_mixture(structure):
    """Every leaf is unconstrained: an owner may move them anywhere."""
    gmm = structure.mixture(K, D)
    leaves, tree = jax.tree.flatten(gmm)
    rng = np.random.default_rng(3)
    moved = tree.unflatten([leaf + rng.normal(size=leaf.shape) for leaf in leaves])
    dense = structure.dense(np.asarray(moved.covariances), K, D)
    assert (np.linalg.eigvalsh(dense) > 0).all()
    np.testing.assert_allclose(moved.weights.sum(), 1, rtol=1e-12)
    assert np.isfinite(moved.log_prob(points())).all()


def test_forward_derivatives_are_reverse_ones(structure):
    """With rows and features enough for a compiler to fuse a product with the sum over it."""
    rng = np.random.default_rng(3)
    gmm, x = structure.mixture(5, 8, np.float64), points(n=150, d=8)
    moved = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), gmm)
    along_rows = jnp.asarray(rng.normal(size=len(x)))

    forward = jax.jvp(lambda gmm: gmm.log_prob(x), (gmm,), (moved,))[1]
    gradient = jax.jit(jax.grad(lambda gmm: along_rows @ gmm.log_prob(x)))(gmm)
    parts = jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, moved))
    np.testing.assert_allclose(along_rows @ forward, sum(parts[1:], parts[0]), rtol=1e-10)

    one = jnp.asarray(rng.normal(size=8))
    directions = jnp.broadcast_to(one, x.shape)
    forward = jax.jit(lambda x: jax.jvp(gmm.log_prob, (x,), (directions,))[1])(jnp.asarray(x))
    backward = jax.vmap(jax.grad(gmm.log_prob))(jnp.asarray(x)) @ one
    np.testing.assert_allclose(forward, backward, rtol=1e-10, atol=1e-12)


def test_a_fit_builds_no_array_of_rows_by_components_by_features(structure):
    k, d = 16, 8
    gmm = structure.mixture(k, d)
    # Of fewer rows a fit keeps those in its frame, as many numbers as the data have.
    for n in (4_000_000, 200_000):
        x = jax.ShapeDtypeStruct((n, d), np.float64)
        size, name = largest(traced(lambda g, x: gmmx.EMFitter().fit(x, g), gmm, x))
        assert size <= 2 * n * d, name


def test_sampling_builds_no_matrix_a_sample(structure):
    k, d, n = 3, 16, 100_000
    gmm = structure.mixture(k, d)
    size, name = largest(traced(lambda g: g.sample(n, key=jax.random.key(0)), gmm))
    # The label draw compares n × k random numbers, and the keys' bits are pairs of words.
    assert size <= 2 * n * d, name


def test_samples_have_the_moments(structure):
    """Mean and covariance of each component's draws, within five standard errors."""
    n = 60_000
    weights, means, covariances = structure.parameters(K, D)
    dense = structure.dense(covariances, K, D)
    gmm = structure.mixture(K, D)
    x, labels = gmm.sample_with_labels(n, key=jax.random.key(2))
    assert x.shape == (n, D) and labels.shape == (n,)
    np.testing.assert_array_equal(x, gmm.sample(n, key=jax.random.key(2)))
    counts = np.bincount(labels, minlength=K)
    assert (np.abs(counts - n * weights) < 5 * np.sqrt(n * weights * (1 - weights))).all()
    for k in range(K):
        mine = np.asarray(x)[np.asarray(labels) == k]
        variances = np.diagonal(dense[k])
        error = np.abs(mine.mean(0) - means[k]) / np.sqrt(variances / len(mine))
        assert (error < 5).all()
        # The variance of an entry of a sample covariance is (Σ_iiΣ_jj + Σ_ij²)/n.
        spread = np.sqrt((np.outer(variances, variances) + dense[k] ** 2) / len(mine))
        assert (np.abs(np.cov(mine.T) - dense[k]) < 5 * spread).all()


def test_sampling_without_a_key_repeats(structure):
    gmm = structure.mixture(K, D)
    np.testing.assert_array_equal(gmm.sample(5), gmm.sample(5))
    np.testing.assert_array_equal(gmm.sample(5), gmm.sample(5, key=jax.random.key(0)))


def test_a_component_of_no_weight_among_many_rows(structure):
    weights, means, covariances = structure.parameters(K, D)
    weights = np.array([0.0, 0.25, 0.75])
    gmm = structure.of(weights, means, covariances)
    dense = structure.dense(covariances, K, D)[1:]
    two = structure.of(weights[1:], means[1:], structure.natural(dense))
    x = points(n=60_000)
    np.testing.assert_allclose(gmm.log_prob(x), two.log_prob(x), rtol=1e-9, atol=1e-9)
    gradient = jax.jit(jax.grad(lambda gmm, x: gmm.score(x), (0, 1)))(gmm, x)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
    assert np.asarray(gmm.sample_with_labels(1000)[1]).min() == 1


def test_dtype_in_is_dtype_out(structure, dtype):
    """Of parameters and of what makes mixtures; the contract holds it of operations."""

    def everything(gmm, x):
        return (
            gmm.weights, gmm.means, gmm.covariances, gmm.precisions, gmm.precisions_cholesky,
            gmmx.GaussianMixture.create(K, D, structure.name, dtype=dtype),
            gmmx.initialize(x, K, structure.name),
            gmmx.GaussianMixture.from_responsibilities(x, gmm.predict_proba(x), structure.name),
        )  # fmt: skip

    gmm, x = structure.mixture(K, D, dtype), jnp.asarray(points(dtype=dtype))
    made = gmmx.GaussianMixture.from_parameters(
        *(v.astype(dtype) for v in structure.parameters(K, D)), structure.name
    )
    values = jax.tree.leaves((jax.eval_shape(everything, gmm, x), made))
    assert {value.dtype for value in values} == {dtype}
