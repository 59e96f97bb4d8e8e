"""Thresholds of the log-density: what share of the samples lies below, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmx

N = 240
RATES = [0, 0.004, 0.01, 0.05, 1 / 3, 0.5, 0.99]


@pytest.fixture
def gmm(structure, dtype):
    return structure.mixture(3, 2, dtype)


@pytest.fixture
def x(dtype):
    return np.random.default_rng(0).normal(size=(N, 2)).astype(dtype)


@pytest.mark.parametrize("rate", RATES)
def test_the_share_below_is_the_rate(gmm, x, rate):
    """To 1/n, and never more."""
    threshold = gmmx.log_prob_threshold(gmm, x, rate)
    assert threshold.dtype == gmm.dtype
    share = np.mean(np.asarray(gmm.log_prob(x) < threshold))
    assert rate - 1 / N <= share <= rate


@pytest.mark.parametrize("rate", RATES)
def test_equal_samples_are_marked_together(structures, rate):
    """Where several samples stand at the threshold, none of them is below it."""
    gmm = structures["full"].mixture(3, 2)
    x = np.repeat(np.random.default_rng(0).normal(size=(12, 2)), 20, axis=0)
    share = np.mean(np.asarray(gmm.log_prob(x) < gmmx.log_prob_threshold(gmm, x, rate)))
    assert rate - 20 / N <= share <= rate


@pytest.mark.parametrize("rate", RATES)
def test_weights_are_counts(structures, x, rate):
    gmm = structures["full"].mixture(3, 2)
    counts = np.random.default_rng(1).integers(0, 4, N)
    weighted = gmmx.log_prob_threshold(gmm, x, rate, counts)
    np.testing.assert_array_equal(
        weighted, gmmx.log_prob_threshold(gmm, np.repeat(x, counts, axis=0), rate)
    )


def test_transformations(structures, x):
    gmm = structures["diag"].mixture(3, 2)
    rates = jnp.array([0.1, 0.5])
    each = [gmmx.log_prob_threshold(gmm, x, rate) for rate in rates]
    batched = jax.jit(jax.vmap(lambda rate: gmmx.log_prob_threshold(gmm, x, rate)))(rates)
    np.testing.assert_allclose(batched, each, rtol=1e-6)
    gradient = jax.grad(lambda shift: gmmx.log_prob_threshold(gmm, x + shift, 0.1))(0.0)
    assert np.isfinite(gradient)


def test_the_rate_of_false_alarms():
    """New samples lie below with a probability of at most rate + 1/(n + 1)."""
    gmm = gmmx.GaussianMixture.create(2, 2, key=jax.random.key(1))
    alarms = []
    for key in jax.random.split(jax.random.key(2), 200):
        held_out, new = jnp.split(gmm.sample(20 + 200, key=key), [20])
        alarms.append(jnp.mean(gmm.log_prob(new) < gmmx.log_prob_threshold(gmm, held_out, 0.1)))
    expected = (2 + 1) / (20 + 1)
    deviation = np.std(alarms) / np.sqrt(len(alarms))
    assert abs(np.mean(alarms) - expected) < 4 * deviation
    assert expected <= 0.1 + 1 / 21


def test_a_density_that_is_nan_is_told(structures):
    gmm = structures["spherical"].mixture(3, 2)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, gmm)
    assert np.isnan(gmmx.log_prob_threshold(broken, np.zeros((4, 2)), 0.1))


@pytest.mark.parametrize("rate", [-0.1, 1, 5, float("nan")])
def test_a_rate_that_is_no_share(structures, x, rate):
    gmm = structures["spherical"].mixture(3, 2)
    with pytest.raises(ValueError, match=r"expected the share of false alarms.*pass 0\.01"):
        gmmx.log_prob_threshold(gmm, x, rate)


def test_bad_samples(structures, x):
    gmm = structures["spherical"].mixture(3, 2)
    with pytest.raises(ValueError, match=r"shape \(0, 2\).*expected \(n, 2\).*Hold out"):
        gmmx.log_prob_threshold(gmm, x[:0], 0.1)
    with pytest.raises(ValueError, match="expected a GaussianMixture"):
        gmmx.log_prob_threshold(x, x, 0.1)
    with pytest.raises(ValueError, match="expected one weight for each sample"):
        gmmx.log_prob_threshold(gmm, x, 0.1, np.ones(3))
    with pytest.raises(ValueError, match="negative"):
        gmmx.log_prob_threshold(gmm, x, 0.1, np.full(N, -1.0))
