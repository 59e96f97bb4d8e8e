"""Accelerated EM: the same optima in fewer steps, and a likelihood that never falls."""

from pathlib import Path

import jax
import numpy as np
import pytest

import gmmx
from gmmx import EMFitter

# 272 eruptions of Old Faithful (Azzalini & Bowman 1990), as R has them.
FAITHFUL = Path(__file__).parent / "data" / "faithful.csv"

# Close enough to the optimum that steps, and not the tolerance, are compared.
PLAIN = EMFitter(tol=1e-9, max_iter=20_000)
QUICK = EMFitter(tol=1e-9, max_iter=20_000, accelerate=True)


@pytest.fixture(scope="module")
def faithful():
    return np.loadtxt(FAITHFUL, delimiter=",", skiprows=1)


def overlapping(seed: int, d: int) -> np.ndarray:
    """Clusters that lie within one another, on which EM is slow."""
    rng = np.random.default_rng(seed)
    centres = 1.8 * np.arange(3)[:, None] * np.ones(d) / np.sqrt(d)
    return np.concatenate([centre + rng.normal(size=(200, d)) for centre in centres])


def test_old_faithful(faithful):
    """The optimum that R's packages find; EM takes some 250 steps to it."""
    start = gmmx.initialize(faithful, 3)
    result = QUICK.fit(faithful, start)
    assert result.converged and result.n_iter <= 90
    np.testing.assert_allclose(272 * result.log_likelihood, -1119.21397059, atol=1e-6)


@pytest.mark.filterwarnings("ignore::gmmx.FitWarning")
def test_it_takes_half_the_steps_to_an_optimum(structure):
    """Not always to the same one: overlapping clusters have several."""
    ratios = []
    for seed in range(5):
        for d in (1, 3):
            x = overlapping(seed, d)
            start = gmmx.initialize(x, 3, structure.name)
            plain, quick = PLAIN.fit(x, start), QUICK.fit(x, start)
            assert plain.converged and quick.converged
            further = PLAIN.fit(x, quick.gmm)
            assert further.log_likelihood - quick.log_likelihood < 1e-5
            ratios.append(int(quick.n_iter) / int(plain.n_iter))
    assert np.median(ratios) <= 0.5, ratios


@pytest.mark.filterwarnings("ignore::gmmx.FitWarning")  # of a component that collapses
@pytest.mark.parametrize("frozen", ["weights", "means", "covariances"])
def test_the_likelihood_never_falls_and_what_is_frozen_stays(structure, frozen):
    x = overlapping(0, 2)
    start = gmmx.initialize(x, 3, structure.name, method="random")
    fitter = EMFitter(tol=1e-8, max_iter=5000, accelerate=True, frozen=frozen)
    result = fitter.fit(x, start)
    assert np.diff(result.history).min() >= 0
    part = {"weights": "logits", "means": "means", "covariances": "structure"}[frozen]
    for a, b in zip(*(jax.tree.leaves(getattr(g, part)) for g in (start, result.gmm)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_units_do_not_matter(faithful):
    units = np.array([1e-4, 1e5])
    here = QUICK.fit(faithful, gmmx.initialize(faithful, 3))
    there = QUICK.fit(faithful * units, gmmx.initialize(faithful * units, 3))
    value = there.log_likelihood + np.log(units).sum()
    np.testing.assert_allclose(value, here.log_likelihood, rtol=1e-10)
    assert abs(int(here.n_iter) - int(there.n_iter)) <= 2


def test_components_that_are_not_there(faithful):
    gmm = gmmx.initialize(faithful, 2)
    one = gmm.sample(1)  # any place will do
    padded = gmmx.GaussianMixture.from_parameters(
        np.append(gmm.weights, 0.0),
        np.concatenate([gmm.means, one]),
        np.concatenate([gmm.covariances, gmm.covariances[:1]]),
    )
    with_it, without = QUICK.fit(faithful, padded), QUICK.fit(faithful, gmm)
    assert with_it.gmm.weights[2] == 0
    np.testing.assert_allclose(with_it.log_likelihood, without.log_likelihood, rtol=1e-12)


def test_inside_jit_and_vmap_and_under_restarts(faithful):
    starts = [gmmx.initialize(faithful, 2, key=jax.random.key(seed)) for seed in (0, 1)]
    stack = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *starts)
    fitter = EMFitter(tol=1e-8, max_iter=500, accelerate=True)
    together = jax.jit(jax.vmap(lambda gmm: fitter.fit(faithful, gmm)))(stack)
    for i, start in enumerate(starts):
        alone = fitter.fit(faithful, start)
        np.testing.assert_allclose(together.log_likelihood[i], alone.log_likelihood, rtol=1e-12)
    best = gmmx.Restarts(fitter, 3).fit(faithful, starts[0])
    assert best.converged and best.log_likelihood >= together.log_likelihood[0] - 1e-12
