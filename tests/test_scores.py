"""The score under noise: against the convolved mixture, its derivatives, and in float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import gmmx
from gmmx._linalg import damp, inverse_root, orthogonalise_rows, product

K, D, N = 3, 4, 12
SIGMAS = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, N - 1)])


def points(n=N, d=D, seed=1):
    return 3 * np.random.default_rng(seed).normal(size=(n, d))


def reference(structure, k, d, x, sigma):
    """The score of the convolved mixture from dense covariances, a sample at a time."""
    weights, means, covariances = structure.parameters(k, d)
    dense = structure.dense(covariances, k, d)
    scores = []
    for row, width in zip(x, np.broadcast_to(sigma, len(x)), strict=True):
        noisy = dense + width**2 * np.eye(d)
        solved = np.linalg.solve(noisy, (row - means)[..., None])[..., 0]
        log_joint = np.log(weights) - np.linalg.slogdet(noisy)[1] / 2
        log_joint -= np.sum((row - means) * solved, axis=1) / 2
        scores.append(-scipy.special.softmax(log_joint) @ solved)
    return np.array(scores)


@pytest.mark.parametrize("d", [1, 2, D, 7])
def test_orthogonal_rows_are_a_singular_value_decomposition(d):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(5, d, d + 1)) * np.geomspace(1, 1e-4, d)[:, None]
    rotation, rows = orthogonalise_rows(jnp.asarray(matrix))
    np.testing.assert_allclose(
        rotation @ rotation.mT, np.broadcast_to(np.eye(d), (5, d, d)), atol=1e-13
    )
    np.testing.assert_allclose(rotation @ matrix, rows, atol=1e-13)
    norms = np.sort(np.linalg.norm(rows, axis=-1), axis=-1)[:, ::-1]
    np.testing.assert_allclose(norms, np.linalg.svd(matrix, compute_uv=False), rtol=1e-10)
    unit = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    np.testing.assert_allclose(unit @ unit.mT, rotation @ rotation.mT, atol=1e-13)


@pytest.mark.parametrize("d", [1, D])
def test_score_is_the_dense_reference(structure, d):
    gmm, x = structure.mixture(K, d), points(d=d)
    for sigma in (0.0, 0.7, 20.0, SIGMAS):
        wanted = reference(structure, K, d, x, sigma)
        np.testing.assert_allclose(gmm.noise_score(x, sigma), wanted, rtol=1e-10, atol=1e-12)


def test_score_is_the_gradient_of_the_convolved_density(structure):
    gmm, x = structure.mixture(K, D), jnp.asarray(points())
    dense = structure.dense(np.asarray(gmm.covariances), K, D)
    for sigma in (0.0, 1.3):
        noisy = gmmx.GaussianMixture.from_parameters(
            gmm.weights, gmm.means, dense + sigma**2 * np.eye(D)
        )
        gradient = jax.grad(lambda x, noisy=noisy: noisy.log_prob(x).sum())(x)
        np.testing.assert_allclose(gmm.noise_score(x, sigma), gradient, rtol=1e-10, atol=1e-12)


def test_second_derivatives_where_singular_values_are_equal():
    """At A = 1, where no decomposition has derivatives."""
    y = jnp.asarray([[[0.3, -1.0], [0.8, 0.5]]])
    sigma = jnp.asarray([0.3, 2.0])

    def directly(factor):
        noisy = jnp.eye(2) + sigma[:, None, None] * (factor @ factor.mT)
        root = inverse_root(noisy)
        solved = product(root.mT, product(root, y[0].T[..., None]))[..., 0].T
        return solved[None], -jnp.log(jnp.diagonal(root, axis1=1, axis2=2)).sum(1)[None]

    def loss(solve, factor):
        solved, half_log_det = solve(factor)
        return jnp.sum(jnp.sin(solved)) + jnp.sum(half_log_det**2)

    factor = jnp.eye(2)[None]
    for derivative in (jax.grad, jax.hessian):
        got, wanted = (
            jax.jit(derivative(partial(loss, solve)))(factor)
            for solve in (lambda a: damp(a, y, sigma), directly)
        )
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


def test_levels_of_noise(structure):
    """σ broadcasts to the leading axes of the points."""
    gmm, x = structure.mixture(K, D), jnp.asarray(points())
    levels = gmm.noise_score(jnp.broadcast_to(x, (2, N, D)), [[0.1], [1]])
    for level, sigma in zip(levels, (0.1, 1), strict=True):
        np.testing.assert_allclose(level, gmm.noise_score(x, sigma), rtol=1e-12)


def hard(name, rng):
    """(means, roots of the covariances, σ), each hard for float32 in a way of its own."""
    roots = rng.normal(size=(K, D, D)) / 2 + np.eye(D)
    means = 3 * rng.normal(size=(K, D))
    if name == "offset 1e4":
        return means + 1e4, roots, 0.5
    if name == "narrow":
        return means, 1e-4 * roots, 1e-3
    if name == "much noise":
        return means, 1e-2 * roots, 1e3
    if name == "scales 1e-6 to 1e6":
        scale = np.geomspace(1e-6, 1e6, D)
        return means * scale, roots * scale[:, None], 1e-6
    rotation, _ = np.linalg.qr(roots)
    return means, rotation * np.geomspace(1, 1e-2, D), 1e-2


@pytest.mark.parametrize(
    "name", ["offset 1e4", "narrow", "much noise", "scales 1e-6 to 1e6", "condition 1e4"]
)
def test_float32(name):
    rng = np.random.default_rng(3)
    means, roots, sigma = hard(name, rng)
    gmm = gmmx.GaussianMixture.from_parameters(
        np.full(K, 1 / K), means, roots @ roots.transpose(0, 2, 1)
    )
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gmm)
    double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), single)
    x = np.asarray(gmm.sample(50) + sigma * rng.normal(size=(50, D)), np.float32)
    for width in (np.float32(sigma), np.full(50, sigma, np.float32)):
        got = single.noise_score(x, width)
        wanted = np.asarray(double.noise_score(x.astype(np.float64), width.astype(np.float64)))
        assert got.dtype == np.float32
        scale = np.abs(wanted).max(axis=0)
        assert (np.abs(np.asarray(got) - wanted) < 3e-5 * scale).all()


def test_bad_sigma():
    gmm = gmmx.GaussianMixture.create(2, 3)
    x = np.zeros((5, 3))
    for sigma, match in (
        (-1.0, "negative"), (np.nan, "NaN"), (np.ones(3), "one for each"),
        (np.ones((5, 3)), "one for each"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            gmm.noise_score(x, sigma)
    with pytest.raises(ValueError, match="too large for float32"):
        gmmx.GaussianMixture.create(2, 3, dtype=np.float32).noise_score(x.astype("f4"), 1e25)
    with pytest.raises(ValueError, match="3 features"):
        gmm.noise_score(np.zeros((5, 2)), 1)
    assert np.isfinite(gmm.noise_score([[0, 1, 2]], 1)).all()
