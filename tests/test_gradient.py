"""Gradient descent: as good as EM out of the box, by any optimiser, and for the same model."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets
from sklearn.decomposition import PCA

import gmmx
from gmmx import EMFitter, GradientFitter, Status

pytestmark = pytest.mark.usefixtures("optax_promotion")


def digits():
    return PCA(16, random_state=0).fit_transform(datasets.load_digits().data)


DATA = {
    "iris": (lambda: datasets.load_iris().data, 3),
    "wine": (lambda: datasets.load_wine().data, 3),
    "digits": (digits, 10),
}


def quiet(fitter, *args, **kwargs):
    """The result of a fit that need not converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        return fitter.fit(*args, **kwargs)


# In JAX's own default precision, and once in the other.
@pytest.mark.parametrize(
    "name, dtype",
    [("iris", "float32"), ("wine", "float32"), ("digits", "float32"), ("wine", "float64")],
)
def test_out_of_the_box_it_is_as_good_as_em(name, dtype):
    load, k = DATA[name]
    x = load().astype(dtype)
    gmm = gmmx.initialize(x, k)
    by_em = EMFitter().fit(x, gmm)
    by_gradient = GradientFitter().fit(x, gmm)
    assert by_gradient.converged and by_gradient.status == Status.converged
    assert by_gradient.log_likelihood >= by_em.log_likelihood - 2e-3


def tight(**settings):
    """A gradient fit to rounding: a rate that decays to nothing."""
    rate = optax.cosine_decay_schedule(0.1, 3000)
    return GradientFitter(learning_rate=rate, tol=1e-13, max_iter=3000, patience=3000, **settings)


def test_regularisation_means_the_same(structure, blobs):
    """Both trainers end at one model, though ε is as large as the variances."""
    # In units that differ, as the gradient's standardisation must not matter.
    units = np.array([1.0, 3.0, 0.5])
    x, reg_covar = blobs * units, np.full(3, 0.7)
    gmm = gmmx.initialize(x, 3, structure.name)
    by_em = EMFitter(tol=1e-13, max_iter=500, reg_covar=reg_covar).fit(x, gmm)
    by_gradient = quiet(tight(reg_covar=reg_covar), x, gmm)
    without = EMFitter(tol=1e-13, max_iter=500, reg_covar=0.0).fit(x, gmm)
    np.testing.assert_allclose(
        by_gradient.gmm.covariances, by_em.gmm.covariances, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(by_gradient.gmm.means, by_em.gmm.means, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_gradient.gmm.weights, by_em.gmm.weights, rtol=1e-4)
    # And ε was felt.
    assert np.abs(by_em.gmm.covariances - without.gmm.covariances).max() > 0.5


def test_integer_weights_are_duplicated_rows(blobs):
    times = np.random.default_rng(0).integers(0, 4, size=len(blobs))
    gmm = gmmx.initialize(blobs, 3)
    weighted = quiet(tight(), blobs, gmm, weights=times)
    repeated = quiet(tight(), np.repeat(blobs, times, axis=0), gmm)
    by_em = EMFitter(tol=1e-13, max_iter=500).fit(blobs, gmm, weights=times)
    for other in (repeated, by_em):
        np.testing.assert_allclose(weighted.log_likelihood, other.log_likelihood, atol=1e-7)
        np.testing.assert_allclose(
            weighted.gmm.covariances, other.gmm.covariances, rtol=1e-3, atol=1e-3
        )


OPTIMISERS = {
    "rate": {"optimizer": optax.adam, "learning_rate": 0.03},
    "schedule": {"learning_rate": optax.exponential_decay(0.1, 50, 0.7)},
    "made": {"optimizer": optax.adamw(0.05, weight_decay=0.0)},
    "chain": {"optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05))},
    "momentum": {"optimizer": optax.sgd(0.02, momentum=0.9)},
    "line search": {"optimizer": optax.lbfgs(), "max_iter": 100},
    "minibatches": {
        "batch_size": 64,
        "learning_rate": optax.exponential_decay(0.05, 200, 0.8),
        "max_iter": 300,
    },
    "a batch larger than the data": {"batch_size": 1000},
}


@pytest.mark.parametrize("which", OPTIMISERS)
def test_any_optimiser(blobs, which):
    gmm = gmmx.initialize(blobs, 3, method="random_from_data", key=jax.random.key(3))
    by_em = EMFitter(tol=1e-9, max_iter=1000).fit(blobs, gmm)
    result = quiet(GradientFitter(**OPTIMISERS[which]), blobs, gmm, key=jax.random.key(1))
    assert result.log_likelihood > by_em.log_likelihood - 5e-3
    # What is returned is the best that was met.
    assert result.log_likelihood >= np.max(result.history) - 1e-9


def test_early_stopping_on_held_out_rows(structures):
    """Few rows and many components: the training likelihood rises on while the fit gets worse."""
    rng = np.random.default_rng(0)
    everything = rng.normal(size=(5120, 3)) + 4 * rng.integers(0, 2, size=(5120, 1))
    x, fresh = everything[:120], everything[120:]
    gmm = structures["full"].mixture(12, 3)
    greedy = quiet(GradientFitter(max_iter=1000), x, gmm)
    careful = quiet(GradientFitter(validation_fraction=0.3, max_iter=1000), x, gmm)
    assert careful.converged
    assert careful.gmm.score(fresh) > greedy.gmm.score(fresh) + 0.1
    assert careful.gmm.score(fresh) > gmm.score(fresh) + 0.1
    assert careful.log_likelihood < greedy.log_likelihood
    # Which rows are held out is drawn by the key, and by nothing else.
    same, other = (
        quiet(GradientFitter(validation_fraction=0.3, max_iter=1000), x, gmm, key=jax.random.key(i))
        for i in (0, 1)
    )
    np.testing.assert_array_equal(same.gmm.means, careful.gmm.means)
    assert (np.asarray(other.gmm.means) != np.asarray(careful.gmm.means)).any()


@pytest.mark.parametrize(
    "frozen, covariance_type",
    [
        ("weights", "full"),
        ("means", "full"),
        ("covariances", "full"),
        ("covariances", "tied"),
        ("covariances", "diag"),
        ("covariances", "spherical"),
        (("weights", "covariances"), "tied"),
    ],
)
def test_frozen_leaves_stay(structures, blobs, frozen, covariance_type):
    gmm = structures[covariance_type].mixture(3, 3)
    result = quiet(GradientFitter(max_iter=60, frozen=frozen), blobs, gmm)
    parts = {"weights": "logits", "means": "means", "covariances": "structure"}
    for name, leaf in parts.items():
        before, after = (jax.tree.leaves(getattr(g, leaf)) for g in (gmm, result.gmm))
        kept = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert kept == (name in np.atleast_1d(frozen)), name
    assert result.log_likelihood > gmm.score(blobs)


@pytest.mark.parametrize("covariance_type", ["full", "spherical"])
def test_units_do_not_matter(blobs, covariance_type):
    """A learning rate means the same in millimetres and kilometres."""
    units, offset = 1e3, np.array([1e4, 0, -1e4])
    moved = blobs * units + offset
    results = []
    for x in (blobs, moved):
        gmm = gmmx.initialize(x, 3, covariance_type)
        results.append(quiet(GradientFitter(max_iter=60), x, gmm))
    here, there = results
    np.testing.assert_allclose(
        there.log_likelihood + 3 * np.log(units), here.log_likelihood, rtol=1e-6
    )


def test_a_rate_too_high_is_not_converged(blobs):
    """The result is the best model met, and its likelihood is finite."""
    gmm = gmmx.initialize(blobs, 3)
    fitter = GradientFitter(optax.sgd(1e6), max_iter=200)
    with pytest.raises(gmmx.FitError, match="learning rate") as error:
        fitter.fit(blobs, gmm)
    result = error.value.result
    assert result.status == Status.non_finite and not result.converged
    assert result.log_likelihood >= gmm.score(blobs) - 1e-9
    assert np.isfinite(result.gmm.log_prob(blobs)).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": optax.adam(-0.05)},
        {"learning_rate": 5.0},
        {"optimizer": optax.sgd, "learning_rate": 0.0},
    ],
    ids=["uphill", "too fast", "at rest"],
)
def test_not_to_have_improved_is_not_to_have_converged(blobs, settings):
    start = gmmx.initialize(blobs, 3, method="random")
    with pytest.warns(gmmx.FitWarning, match="no optimum"):
        result = GradientFitter(**settings).fit(blobs, start)
    assert result.status == Status.stalled and not result.converged


def test_a_start_that_is_an_optimum_has_converged(blobs):
    start = EMFitter(tol=1e-9, max_iter=1000).fit(blobs, gmmx.initialize(blobs, 3)).gmm
    assert GradientFitter().fit(blobs, start).converged


def test_an_optimiser_with_parameters_of_its_own_is_refused(blobs):
    with pytest.raises(ValueError, match="lookahead"):
        GradientFitter(optax.lookahead(optax.sgd(0.1), 5, 0.5)).fit(blobs, 3)


def test_fit_under_jit_is_the_eager_fit(blobs):
    x = blobs.astype(np.float32)
    gmm = gmmx.initialize(x, 3, "diag", method="random")
    fitter = GradientFitter(max_iter=40)
    eager = quiet(fitter, x, gmm)
    traced = jax.jit(lambda x, gmm: fitter.fit(x, gmm))(x, gmm)
    np.testing.assert_allclose(traced.history, eager.history, rtol=1e-4)
    assert {leaf.dtype for leaf in jax.tree.leaves(traced.gmm)} == {x.dtype}
    assert jnp.isfinite(traced.log_likelihood)


def test_a_weight_of_zero_stays(blobs):
    """Weight decay would make NaN of its logit, which is −∞."""
    three = gmmx.initialize(blobs, 3)
    four = gmmx.GaussianMixture.from_parameters(
        np.append(three.weights, 0),
        np.append(three.means, [[1.0, 2, 3]], axis=0),
        np.append(three.covariances, [np.eye(3)], axis=0),
    )
    fitter = GradientFitter(optax.adamw(0.02), max_iter=5)
    wanted, result = (quiet(fitter, blobs, gmm) for gmm in (three, four))
    assert result.gmm.weights[3] == 0 and result.gmm.logits[3] == -np.inf
    np.testing.assert_allclose(result.gmm.means[:3], wanted.gmm.means, rtol=1e-9)
    np.testing.assert_allclose(result.log_likelihood, wanted.log_likelihood, rtol=1e-9)
