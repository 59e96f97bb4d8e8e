"""Fits of greatest posterior density under a conjugate prior."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from conftest import STRUCTURES

import gmmx

FAITHFUL = np.loadtxt(
    Path(__file__).parent / "data" / "faithful.csv", delimiter=",", skiprows=1, ndmin=2
)


def modes(x, labels, k, name):
    """Means and covariances of formulas in Fraley & Raftery 2007, with mclust's defaults."""
    n, d = x.shape
    kappa, dof = 0.01, d + 2
    prior_mean = x.mean(0)
    counts = np.bincount(labels, minlength=k)
    averages = np.stack([x[labels == j].mean(0) for j in range(k)])
    means = (counts[:, None] * averages + kappa * prior_mean) / (counts + kappa)[:, None]
    scatters = []
    for j in range(k):
        apart = x[labels == j] - averages[j]
        between = averages[j] - prior_mean
        shrunk = kappa * counts[j] / (kappa + counts[j])
        scatters.append(apart.T @ apart + shrunk * np.outer(between, between))
    scatters = np.stack(scatters)
    shape = np.atleast_2d(np.cov(x.T)) / k ** (2 / d)
    scale = np.trace(shape) / d
    diagonals = np.diagonal(scatters, axis1=1, axis2=2)
    covariances = {
        "full": (shape + scatters) / (dof + counts + d + 2)[:, None, None],
        "tied": (shape + scatters.sum(0)) / (dof + n + d + 1 + k),
        "diag": (scale + diagonals) / (dof + counts + 3)[:, None],
        "spherical": (scale + diagonals.sum(1)) / (dof + (counts + 1) * d + 2),
    }
    return means, covariances[name]


@pytest.fixture(scope="module")
def labelled():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [20, 35, 7])
    means = np.array([[0, 0, 0], [2, 1, 0], [0, 3, 1.0]])
    return rng.normal(size=(62, 3)) * [1, 2, 0.5] + means[labels], labels


def test_modes(structure, labelled):
    """Of rows whose components are known."""
    x, labels = labelled
    data = gmmx.Data(x, labels=labels)
    fitter = gmmx.EMFitter(prior=gmmx.ConjugatePrior(), reg_covar=0.0, tol=1e-10)
    gmm = fitter.fit(data, gmmx.initialize(data, 3, structure.name)).gmm
    means, covariances = modes(x, labels, 3, structure.name)
    np.testing.assert_allclose(gmm.means, means, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(gmm.covariances, covariances, rtol=1e-8, atol=1e-10)


def log_prior(gmm, prior_mean, scale, dof, kappa, alpha):
    """The density of the parameters, by SciPy."""
    total = scipy.stats.dirichlet.logpdf(gmm.weights / gmm.weights.sum(), np.full(3, alpha))
    for mean, covariance in zip(gmm.means, gmm.covariances, strict=True):
        total += scipy.stats.invwishart.logpdf(covariance, dof, scale)
        total += scipy.stats.multivariate_normal.logpdf(mean, prior_mean, covariance / kappa)
    return total


def test_the_density_is_that_of_scipy(labelled):
    """Up to a constant."""
    x, _ = labelled
    scale, mean = np.cov(x.T), x.mean(0) + 0.3
    settings = {"dof": 6.5, "shrinkage": 0.7, "concentration": 1.8, "mean": mean, "scale": scale}
    start = STRUCTURES["full"].mixture(3, 3)
    found = gmmx.ConjugatePrior(**settings).of(jnp.asarray(x), start, None)
    apart = []
    for seed in range(3):
        gmm = STRUCTURES["full"].mixture(3, 3, seed=seed)
        own = np.float64(found.log_prob(gmm))
        apart.append(own - log_prior(gmm, mean, scale, 6.5, 0.7, 1.8))
    np.testing.assert_allclose(apart, apart[0], rtol=1e-10)


@pytest.mark.parametrize("accelerate", [False, True])
def test_the_posterior_never_falls(structure, labelled, accelerate):
    x, _ = labelled
    prior = gmmx.ConjugatePrior(concentration=2.0, shrinkage=0.5)
    start = gmmx.initialize(x, 3, structure.name)
    conjugate = prior.of(jnp.asarray(x), start, None)
    seen = []
    for steps in range(1, 13):
        fitter = gmmx.EMFitter(prior=prior, tol=0, max_iter=steps, accelerate=accelerate)
        with pytest.warns(gmmx.FitWarning):
            result = fitter.fit(x, start)
        seen.append(float(result.log_likelihood + conjugate.log_prob(result.gmm) / len(x)))
    # Less what the variance floor may cost.
    assert (np.diff(seen) > -1e-7).all() and seen[-1] > seen[0]


@pytest.mark.usefixtures("optax_promotion")
def test_both_trainers_have_the_same_mode(structure, labelled):
    x, _ = labelled
    prior = gmmx.ConjugatePrior(concentration=2.0, shrinkage=0.5)
    start = gmmx.initialize(x, 3, structure.name)
    em = gmmx.EMFitter(prior=prior, tol=1e-11, max_iter=5000).fit(x, start).gmm
    descent = gmmx.GradientFitter(optax.adam, 0.02, tol=1e-9, max_iter=6000, prior=prior)
    by_gradient = descent.fit(x, em.__class__(em.logits, em.means + 0.01, em.structure)).gmm
    np.testing.assert_allclose(by_gradient.means, em.means, atol=2e-3)
    np.testing.assert_allclose(by_gradient.covariances, em.covariances, rtol=1e-2, atol=2e-3)


def test_mclust_on_old_faithful():
    """EEE with three components under the default prior: BIC −2314.549 in mclust's sign."""
    fitter = gmmx.EMFitter(prior=gmmx.ConjugatePrior(), tol=1e-8, max_iter=2000)
    start = gmmx.initialize(FAITHFUL, 3, "tied")
    result = gmmx.Restarts(fitter, n_init=5).fit(FAITHFUL, start)
    np.testing.assert_allclose(-result.gmm.bic(FAITHFUL), -2314.549, atol=0.5)


def test_it_keeps_components_from_collapsing():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(60, 2)), np.full((4, 2), 5.0)])
    means = np.array([[0, 0], [5, 5.0]])
    start = gmmx.GaussianMixture.from_parameters([0.9, 0.1], means, np.tile(np.eye(2), (2, 1, 1)))
    result = gmmx.EMFitter(prior=gmmx.ConjugatePrior(), tol=1e-8, max_iter=500).fit(x, start)
    assert result.converged and not result.spurious.any()
    assert np.linalg.eigvalsh(result.gmm.covariances).min() > 0.02


def test_units_do_not_matter(labelled):
    x, _ = labelled
    units = np.array([1e-6, 1.0, 1e4])
    fitter = gmmx.EMFitter(prior=gmmx.ConjugatePrior(), tol=1e-9, max_iter=3000)
    start = gmmx.initialize(x, 2)
    plain, scaled = (fitter.fit(v, gmmx.initialize(v, 2)).gmm for v in (x, x * units))
    assert start.n_components == 2
    np.testing.assert_allclose(scaled.means / units, plain.means, rtol=1e-5, atol=1e-5)


def test_weights_are_counts(labelled):
    """A weight of three is the row three times, and one of zero is no row."""
    x, _ = labelled
    prior = gmmx.ConjugatePrior(shrinkage=5.0, mean=np.zeros(3), dof=20.0, scale=np.eye(3) * 20)
    fitter = gmmx.EMFitter(prior=prior, tol=1e-10, max_iter=2000)
    start = gmmx.initialize(x, 2)
    counts = np.arange(62) % 3
    weighted = fitter.fit(x, start, weights=counts.astype(float)).gmm
    repeated = fitter.fit(np.repeat(x, counts, axis=0), start).gmm
    np.testing.assert_allclose(weighted.covariances, repeated.covariances, rtol=1e-5, atol=1e-6)
    within = gmmx.Restarts(fitter, 1).fit(gmmx.Data(x, weights=counts.astype(float)), start).gmm
    np.testing.assert_allclose(within.covariances, repeated.covariances, rtol=1e-5, atol=1e-6)


def test_it_goes_with_restarts_selection_and_transformations(labelled):
    x, _ = labelled
    fitter = gmmx.EMFitter(prior=gmmx.ConjugatePrior(), max_iter=200)
    chosen = gmmx.select(x, [1, 2], ["full"], fitter=fitter)
    assert not any(candidate.failed for candidate in chosen.candidates)
    start = gmmx.initialize(x, 2)
    inside = jax.jit(fitter.fit)(x, start)
    outside = fitter.fit(x, start)
    np.testing.assert_allclose(inside.log_likelihood, outside.log_likelihood, rtol=1e-10)
    with pytest.raises(NotImplementedError, match="prior"):
        jax.grad(lambda x: fitter.fit(x, start).log_likelihood)(x)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"concentration": 0.5}, "at least 1"),
        ({"shrinkage": -1.0}, "zero or positive"),
        ({"mean": np.zeros(2)}, r"expected \(3,\)"),
        ({"scale": np.eye(2)}, r"\(3, 3\)"),
        ({"scale": -np.eye(3)}, "positive"),
        ({"mean": np.full(3, np.nan)}, "finite"),
    ],
)
def test_bad_priors(labelled, settings, message):
    with pytest.raises(ValueError, match=message):
        gmmx.EMFitter(prior=gmmx.ConjugatePrior(**settings)).fit(labelled[0], 2)
