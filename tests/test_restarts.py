"""Several starts fitted together, the best kept."""

import warnings

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

import gmmx
from gmmx import EMFitter, GradientFitter, Restarts, Status

# One shape and one setting almost everywhere: each other one is another compilation.
THREE = Restarts(EMFitter(), 3)

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def many():
    """Nine clusters on a grid, of which a single start seldom finds all."""
    rng = np.random.default_rng(0)
    centres = 10.0 * np.stack(np.meshgrid(range(3), range(3)), -1).reshape(-1, 2)
    return (centres[:, None] + rng.normal(size=(9, 30, 2))).reshape(-1, 2)


def poor_start(x, k):
    return gmmx.initialize(x, k, method="random")


@pytest.mark.parametrize("fitter", [EMFitter(), GradientFitter(max_iter=150, tol=1e-3)])
def test_the_best_of_all_starts_is_kept(many, fitter):
    start = poor_start(many, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        alone = fitter.fit(many, start)
        best = Restarts(fitter, 3).fit(many, start)
    assert best.log_likelihood > alone.log_likelihood + 0.1
    np.testing.assert_allclose(best.log_likelihood, best.gmm.score(many), rtol=1e-12)
    assert best.history.shape == (best.n_iter,)
    # The trace is that of the start that was kept.
    np.testing.assert_allclose(np.max(best.history), best.log_likelihood, atol=1e-2)


def test_the_start_that_was_given_is_one_of_them(many):
    start = gmmx.initialize(many, 9)
    alone = EMFitter().fit(many, start)
    one = Restarts(EMFitter(), 1).fit(many, start)
    np.testing.assert_allclose(one.log_likelihood, alone.log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(one.gmm.means, alone.gmm.means, rtol=1e-9)
    # And one that cannot be bettered is not lost among others.
    assert THREE.fit(many, start).log_likelihood >= alone.log_likelihood - 1e-12


def test_a_start_that_fails_is_passed_over(many):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, poor_start(many, 9))
    result = THREE.fit(many, broken)
    assert result.converged and np.isfinite(result.log_likelihood)


def test_where_all_starts_fail_it_says_so(many):
    start = gmmx.initialize(many, 9)
    with pytest.raises(gmmx.FitError):
        Restarts(gmmx.GradientFitter(optax.sgd(1e30)), 3).fit(many, start)


def test_a_collapse_is_not_kept():
    """The likeliest start has a component on two equal points; a sound one is kept."""
    x = np.random.default_rng(0).normal(size=(200, 2))
    x[0] = x[1]
    broad = gmmx.initialize(x, 2)
    on_a_point = eqx.tree_at(lambda g: g.means, broad, broad.means.at[0].set(x[0]))
    leaf = on_a_point.structure.log_cholesky
    narrow = leaf.at[0].set(9 * np.eye(2))
    on_a_point = eqx.tree_at(lambda g: g.structure.log_cholesky, on_a_point, narrow)
    fitter = EMFitter(tol=1e-6, max_iter=2000)
    with pytest.warns(gmmx.FitWarning, match="no cluster"):
        alone = fitter.fit(x, on_a_point)
    result = Restarts(fitter, 4).fit(x, on_a_point)
    assert alone.log_likelihood > result.log_likelihood
    assert alone.spurious[0] and not result.spurious.any()


def test_the_key_draws_the_starts():
    """Without clusters each start finds a place of its own."""
    x = np.random.default_rng(0).normal(size=(270, 2))
    start = poor_start(x, 9)
    results = [THREE.fit(x, start, key=jax.random.key(seed)) for seed in (0, 0, 1, 2)]
    values = [float(result.log_likelihood) for result in results]
    assert values[0] == values[1] and len(set(values)) == 3


def test_weights_reach_every_start(many):
    """Samples of weight zero are as good as absent."""
    outliers = many.copy()
    outliers[:30] = 500 + 10 * outliers[:30]
    weights = np.r_[np.zeros(30), np.ones(240)]
    broken = jax.tree.map(lambda leaf: leaf * np.nan, poor_start(many, 9))
    result = THREE.fit(outliers, broken, weights=weights)
    # The start that was given fails, so the one that is kept was drawn.
    assert np.abs(result.gmm.means).max() < 30
    counted = np.asarray(result.gmm.log_prob(outliers))[30:]
    np.testing.assert_allclose(result.log_likelihood, counted.mean(), rtol=1e-10)


def test_restarts_under_a_transformation(many):
    start = poor_start(many, 9)
    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.jit(jax.vmap(lambda key: THREE.fit(many, start, key=key)))(keys)
    for i, key in enumerate(keys):
        alone = THREE.fit(many, start, key=key)
        np.testing.assert_allclose(both.log_likelihood[i], alone.log_likelihood, rtol=1e-10)
        assert bool((both.status == Status.converged)[i])


def test_restarts_of_restarts(many):
    """A fitter wherever a fitter is taken."""
    start = poor_start(many, 9)
    result = Restarts(THREE, 2).fit(many, start)
    assert result.converged and result.history.ndim == 1
    np.testing.assert_allclose(result.log_likelihood, result.gmm.score(many), rtol=1e-12)
    assert result.log_likelihood >= EMFitter().fit(many, start).log_likelihood
