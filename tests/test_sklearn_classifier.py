"""Classification by a mixture for each class, against scikit-learn's discriminant analyses."""

import numpy as np
import pytest
from sklearn.datasets import load_iris, load_wine
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from sklearn.model_selection import cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gmmx
from gmmx.sklearn import GaussianMixture, GaussianMixtureClassifier

X, Y = load_iris(return_X_y=True)


def test_linear_discriminant_analysis():
    ours = GaussianMixtureClassifier(covariance_type="tied", reg_covar=0).fit(X, Y)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(X, Y)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)


def test_quadratic_discriminant_analysis():
    ours = GaussianMixtureClassifier(reg_covar=0).fit(X, Y)
    for c, name in enumerate(ours.classes_):
        own = X[name == Y]
        gmm = ours.mixtures_[c]
        np.testing.assert_allclose(gmm.means[0], own.mean(0), rtol=1e-10)
        np.testing.assert_allclose(gmm.covariances[0], np.cov(own.T, bias=True), rtol=1e-8)
    # scikit-learn divides by n − 1.
    theirs = QuadraticDiscriminantAnalysis().fit(X, Y)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


def test_naive_bayes():
    ours = GaussianMixtureClassifier(covariance_type="diag", reg_covar=0).fit(X, Y)
    theirs = GaussianNB(var_smoothing=0).fit(X, Y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-9)
    joint = theirs.predict_joint_log_proba(X)
    np.testing.assert_allclose(ours.score_samples(X), np.logaddexp.reduce(joint, 1), rtol=1e-9)


def test_several_components_are_fits_of_each_class():
    ours = GaussianMixtureClassifier(2, random_state=0, n_init=2).fit(X, Y)
    random = np.random.RandomState(0)
    for c in range(3):
        alone = GaussianMixture(2, random_state=random, n_init=2).fit(X[c == Y])
        np.testing.assert_allclose(ours.mixtures_[c].means, alone.means_, rtol=1e-10)
    assert ours.score(X, Y) > 0.97
    proba = ours.predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1)
    np.testing.assert_array_equal(ours.classes_[proba.argmax(1)], ours.predict(X))


def test_a_ring_in_a_ring():
    """What no single Gaussian a class can tell apart."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 600)
    y = np.repeat(["inner", "outer"], 300)
    x = np.stack([np.cos(angle), np.sin(angle)], 1) * np.where(y == "inner", 1, 2)[:, None]
    x += 0.1 * rng.normal(size=x.shape)
    assert GaussianMixtureClassifier(8, random_state=0).fit(x, y).score(x, y) > 0.97
    assert isinstance(GaussianMixtureClassifier().fit(x, y).mixtures_[0], gmmx.GaussianMixture)


def test_in_a_pipeline():
    x, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), GaussianMixtureClassifier(covariance_type="tied"))
    assert cross_val_score(pipeline, x, y).mean() > 0.95


def test_weights_and_priors():
    weights = np.where(Y == 2, 0.0, 1 + np.arange(150) % 2)
    weighted = GaussianMixtureClassifier().fit(X, Y, sample_weight=weights)
    kept = np.repeat(np.arange(150), weights.astype(int))
    repeated = GaussianMixtureClassifier().fit(X[kept], Y[kept])
    np.testing.assert_array_equal(weighted.classes_, [0, 1])
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-9)
    even, uneven = (
        GaussianMixtureClassifier(priors=p).fit(X, Y).predict_log_proba(X)
        for p in ([1 / 3] * 3, [0.5, 0.3, 0.2])
    )
    apart = (uneven - even)[:, 0] - (uneven - even)[:, 2]
    np.testing.assert_allclose(apart, np.log(0.5 / 0.2), rtol=1e-6)


def holed(share):
    """The irises, a share of whose numbers was not measured."""
    return np.where(np.random.default_rng(0).uniform(size=X.shape) < share, np.nan, X)


def test_gaps_of_one_component_a_class():
    """Each class by itself, where nothing is shared among them."""
    gaps, settings = holed(0.2), {"reg_covar": 0, "tol": 1e-10, "max_iter": 1000}
    ours = GaussianMixtureClassifier(**settings, allow_nan=True).fit(gaps, Y)
    assert ours.n_iter_ > 1
    for c in range(3):
        alone = GaussianMixture(**settings, allow_nan=True).fit(gaps[c == Y])
        np.testing.assert_allclose(ours.mixtures_[c].means, alone.means_, rtol=1e-5)
        np.testing.assert_allclose(
            ours.mixtures_[c].covariances, alone.covariances_, rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("settings", [{"covariance_type": "tied"}, {"n_components": 2}])
def test_gaps_cost_little_accuracy(settings):
    ours = GaussianMixtureClassifier(**settings, random_state=0, max_iter=500, allow_nan=True)
    complete = ours.fit(X, Y).score(X, Y)
    assert ours.fit(holed(0.2), Y).score(X, Y) > complete - 0.03
    assert ours.score(holed(0.2), Y) > 0.9


def test_gaps_that_cannot_be_fitted():
    with pytest.raises(ValueError, match=r"GaussianMixtureClassifier\(allow_nan=True\)"):
        GaussianMixtureClassifier().fit(holed(0.1), Y)
    gaps = np.where((Y == 1)[:, None] & (np.arange(4) == 2), np.nan, X)
    with pytest.raises(ValueError, match="class 1 has a feature"):
        GaussianMixtureClassifier(allow_nan=True).fit(gaps, Y)


@pytest.mark.parametrize(
    "settings, y, message",
    [
        ({"priors": [0.5, 0.5]}, Y, "expected 3 numbers"),
        ({"priors": [0.5, 0.6, -0.1]}, Y, "sum one"),
        ({"n_components": 60}, Y, "class 0 has 50 samples"),
        ({"covariance_type": "round"}, Y, "covariance_type"),
        ({}, Y + 0.5, "Unknown label type"),
    ],
)
def test_bad_input(settings, y, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixtureClassifier(**settings).fit(X, y)
