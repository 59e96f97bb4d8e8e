"""The usage that GMMX's README shows, word for word."""

import jax
import numpy as np

import gmmx


def test_usage_of_the_readme():
    # Begin of the words.
    from gmmx import GaussianMixtureModelJax, EMFitter  # noqa: I001

    # Create a Gaussian Mixture Model with 16 components and 32 features
    gmm = GaussianMixtureModelJax.create(n_components=16, n_features=32)

    # Draw samples from the model
    n_samples = 10_000
    x = gmm.sample(n_samples)

    # Fit the model to the data
    em_fitter = EMFitter(tol=1e-3, max_iter=100)
    gmm_fitted = em_fitter.fit(x=x, gmm=gmm)
    # End of the words.

    assert GaussianMixtureModelJax is gmmx.GaussianMixture
    assert gmm_fitted.converged
    assert gmm_fitted.log_likelihood > gmm.score(x)
    # The components stand apart, and each is where its samples are from.
    fitted = gmm_fitted.gmm
    _, labels = gmm.sample_with_labels(n_samples)
    assert (np.asarray(fitted.predict(x)) == np.asarray(labels)).mean() > 0.99
    means = np.asarray(fitted.means)
    apart = np.linalg.norm(means[:, None] - means, axis=-1) + 1e3 * np.eye(16)
    assert apart.min() > 3
    np.testing.assert_allclose(fitted.weights, np.bincount(labels) / n_samples, atol=5e-3)


def test_create_starts_apart(structure):
    """Components that are all equal stay so under EM for ever."""
    for k, d in ((2, 1), (16, 2), (64, 32)):
        means = np.asarray(gmmx.GaussianMixture.create(k, d, structure.name).means)
        apart = np.linalg.norm(means[:, None] - means, axis=-1)
        assert apart[~np.eye(k, dtype=bool)].min() > 0.01


def test_create_takes_a_key(structure):
    first, second = (
        gmmx.GaussianMixture.create(4, 3, structure.name, key=jax.random.key(seed))
        for seed in (0, 1)
    )
    assert (np.asarray(first.means) != np.asarray(second.means)).all()
    default = gmmx.GaussianMixture.create(4, 3, structure.name)
    np.testing.assert_array_equal(default.means, first.means)
