"""Mixtures from unconstrained vectors: any numbers are one, and what a network learns is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import gmmx
from gmmx import GaussianMixture, MixtureBatch, raw_size

K, D, N = 3, 3, 5
# Numbers that may be added to a shape, or to all logits, without effect.
REDUNDANT = {"VEI": 2, "EVI": 1 + K, "VEE": 2, "EVE": 1 + K, "VEV": 2, "EVV": 1 + K}


def vectors(name, n=N, dtype=np.float64, scale=1.0):
    rng = np.random.default_rng(0)
    return jnp.asarray(scale * rng.normal(size=(n, raw_size(K, D, name))), dtype)


@pytest.fixture(params=gmmx.FAMILIES)
def name(request):
    return request.param


def test_a_vector_has_as_many_numbers_as_parameters_but_for_the_redundant(name):
    n_parameters = GaussianMixture.create(K, D, name).n_parameters
    assert raw_size(K, D, name) == n_parameters + REDUNDANT.get(name, 1)


def test_from_raw_and_to_raw_are_inverse(name):
    raw = vectors(name)
    batch = jax.jit(lambda v: MixtureBatch.from_raw(v, K, D, name, min_scale=0.1))(raw)
    back = jax.jit(lambda b: b.map(lambda gmm: gmm.to_raw(min_scale=0.1)))(batch)
    np.testing.assert_allclose(back, raw, rtol=1e-12, atol=1e-12)
    assert raw_size(K, 1, name) and raw_size(1, D, name)


@pytest.mark.parametrize("name", ["full", "EVI"])
def test_gradients_are_those_of_the_density(name):
    raw, x = vectors(name, 1)[0], jnp.asarray([0.3, -1.0, 0.4])

    @jax.jit
    def along(raw, step):
        def density(v):
            return GaussianMixture.from_raw(v, K, D, name, min_scale=0.1).log_prob(x)

        return density(raw), jax.grad(density)(raw) @ step

    step = jnp.asarray(np.random.default_rng(1).normal(size=raw.size))

    def difference(h):
        return (along(raw + h * step, step)[0] - along(raw - h * step, step)[0]) / (2 * h)

    exact = (4 * difference(1e-3) - difference(2e-3)) / 3
    np.testing.assert_allclose(along(raw, step)[1], exact, rtol=1e-6)


def test_a_full_mixture_is_the_one_that_the_numbers_say():
    raw = vectors("full", 1)[0]
    gmm = GaussianMixture.from_raw(raw, K, D, min_scale=0.1)
    logits, means, _ = np.split(np.asarray(raw), [K, K + K * D])
    np.testing.assert_allclose(gmm.weights, np.exp(logits) / np.exp(logits).sum())
    np.testing.assert_array_equal(gmm.means.reshape(-1), means)
    diagonals = np.diagonal(np.linalg.cholesky(np.asarray(gmm.covariances)), axis1=1, axis2=2)
    # Each number of the triangles that says a scale is seen once: σ = s + eᵛ.
    logs = np.log(np.sort(diagonals.reshape(-1)) - 0.1)
    assert all(np.min(np.abs(np.asarray(raw) - log)) < 1e-12 for log in logs)


def test_any_finite_numbers_are_a_mixture_with_finite_gradients(name):
    """In float32: the largest numbers, weights of zero, scales at the floor, and points far away.

    With the very largest numbers gradients may overflow; with those of 1e4 they must not.
    """
    dtype, size, rng = jnp.float32, raw_size(K, D, name), np.random.default_rng(3)
    raw = rng.normal(size=(8, size))
    raw[1, 1] = -1e6
    raw[2:4, K + K * D :] = [[-1e4], [1e4]]
    raw[4] *= 30
    raw[5:] = rng.choice([-1, 1], (3, size)) * float(jnp.finfo(dtype).max)
    x = jnp.asarray([[1e6, -1e6, 1e6], *np.zeros((7, 3))], dtype)

    @jax.jit
    def parts(raw, x):
        batch = MixtureBatch.from_raw(raw, K, D, name)

        def loss(raw, x):
            log_prob = MixtureBatch.from_raw(raw, K, D, name).log_prob(x)
            return jnp.sum(log_prob) / 1e6, log_prob

        gradients, log_prob = jax.grad(loss, (0, 1), has_aux=True)(raw, x)
        return batch.weights, batch.map(lambda gmm: gmm.dense_factors()), log_prob, gradients

    weights, factors, log_prob, gradients = parts(jnp.asarray(raw, dtype), x)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert jnp.isfinite(factors).all()
    assert (jnp.diagonal(factors, axis1=-2, axis2=-1) > 0).all()
    assert not jnp.isnan(log_prob).any()
    assert all(jnp.isfinite(g[:5]).all() for g in gradients)


def test_no_density_exceeds_that_of_the_floor(name):
    scale = 0.2
    raw = jnp.asarray(vectors(name)).at[:, K + K * D :].multiply(5)
    gmms = MixtureBatch.from_raw(raw, K, D, name, min_scale=scale)
    half_log_det = jax.jit(lambda b: b.map(lambda gmm: gmm.half_log_det()))(gmms)
    assert (half_log_det <= -D * np.log(scale) + 1e-9).all()


def dense(gmm):
    return [np.asarray(v) for v in (gmm.weights, gmm.means, gmm.covariances)]


@pytest.fixture(scope="module")
def batch():
    return MixtureBatch.from_raw(vectors("full"), K, D)


def test_densities_of_a_batch_are_those_of_dense_normals(batch):
    x = np.random.default_rng(4).normal(size=(N, D))
    log_prob, shares = batch.log_prob(x), batch.predict_proba(x)
    for i in range(N):
        weights, means, covariances = dense(batch[i])
        joint = [
            w * scipy.stats.multivariate_normal.pdf(x[i], m, c)
            for w, m, c in zip(weights, means, covariances, strict=True)
        ]
        np.testing.assert_allclose(log_prob[i], np.log(np.sum(joint)), rtol=1e-10)
        np.testing.assert_allclose(shares[i], joint / np.sum(joint), rtol=1e-8)


def test_the_algebra_of_a_batch_is_that_of_its_mixtures(batch):
    matrix = np.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]])
    values = np.linspace(-1, 1, N)[:, None]
    found = {
        "marginal": batch.marginal([2, 0]),
        "affine": batch.affine(matrix, [1.0, 2.0]),
        "convolve": batch.convolve(0.5),
        "condition": batch.condition([1], values),
    }
    for i in (0, N - 1):
        one = batch[i]
        alone = {
            "marginal": one.marginal([2, 0]),
            "affine": one.affine(matrix, [1.0, 2.0]),
            "convolve": one.convolve(0.5),
            "condition": one.condition([1], values[i]),
        }
        for operation, gmm in alone.items():
            for a, b in zip(dense(found[operation][i]), dense(gmm), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=operation)


def test_conditioning_a_batch_of_shared_covariances_keeps_them_once():
    gmm = GaussianMixture.create(K, D)
    given = gmm.condition([0], np.linspace(-1, 1, N)[:, None])
    assert given.shared and given.marginal([0]).shared
    np.testing.assert_allclose(
        given.condition([0], np.zeros((N, 1)))[2].mean(),
        gmm.condition([0, 1], [0.0, 0.0]).mean(),
        rtol=1e-10,
    )


def test_pathwise_draws_of_a_batch_have_the_gradients_of_expectations(batch):
    """The derivative of E[x] in the logits, by 20,000 draws: within five standard errors."""
    one = batch[:1]

    @jax.jit
    def both(one):
        def first(one, key):
            return one.sample(1000, key=key, pathwise=True)[0, :, 0].mean()

        keys = jax.random.split(jax.random.key(0), 20)
        draws = jax.lax.map(lambda key: jax.grad(first)(one, key).logits[0], keys)
        return draws, jax.grad(lambda one: one.mean()[0, 0])(one).logits[0]

    draws, exact = both(one)
    error = draws.std(0) / np.sqrt(len(draws))
    assert (jnp.abs(draws.mean(0) - exact) < 5 * error).all()


def test_a_batch_is_a_numpyro_distribution(batch):
    pytest.importorskip("numpyro")
    from gmmx.numpyro import to_numpyro

    x = jnp.asarray(np.random.default_rng(4).normal(size=(N, D)))
    distribution = to_numpyro(batch)
    assert (distribution.batch_shape, distribution.event_shape) == ((N,), (D,))
    np.testing.assert_allclose(distribution.log_prob(x), batch.log_prob(x), rtol=1e-9)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda v: GaussianMixture.from_raw(v[0, 1:], K, D),
            "raw has shape .*raw_size",
        ),
        (lambda v: GaussianMixture.from_raw(v, K, D), "MixtureBatch.from_raw"),
        (lambda v: MixtureBatch.from_raw(v[0], K, D), "GaussianMixture.from_raw"),
        (lambda v: MixtureBatch.from_raw(v, K, D, min_scale=0), "min_scale=0; expected a positive"),
        (lambda v: MixtureBatch.from_raw(v, K, D, "ful"), "Did you mean 'full'"),
        (lambda v: raw_size(0, D), "n_components=0; expected a positive integer"),
        (lambda v: MixtureBatch.from_raw(v, K, D)[0].to_raw(min_scale=9), "smaller min_scale"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call(vectors("full"))
