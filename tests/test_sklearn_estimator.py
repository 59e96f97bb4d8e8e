"""The scikit-learn estimator: the same numbers as scikit-learn's, and at home among its tools."""

import contextlib
import copy
import importlib
import io
import logging
import pickle
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import polars
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gmmx
from gmmx.sklearn import GaussianMixture, from_sklearn, to_sklearn

K = 3
PARAMETERS = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_")
SETTINGS = {"reg_covar": 1e-3, "tol": 1e-5, "max_iter": 200}


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """Overlapping clusters, so that the fits take tens of steps."""
    rng = np.random.default_rng(3)
    centres = np.array([[0.0, 0, 0], [2.5, 0, 1], [0, 2.5, -2]])
    return np.repeat(centres, 60, axis=0) + rng.normal(size=(180, 3)) * [1, 1.5, 0.7]


@pytest.fixture(scope="module")
def given(x, structure) -> dict:
    """A start in scikit-learn's words, whose precisions are inverted matrices."""
    variances = structure.natural(np.tile(np.cov(x.T), (K, 1, 1)))
    precisions = np.linalg.inv(variances) if structure.name in ("full", "tied") else 1 / variances
    return {
        "covariance_type": structure.name,
        "weights_init": [0.5, 0.3, 0.2],
        "means_init": x[[0, 70, 140]],
        "precisions_init": precisions,
    }


@pytest.fixture(scope="module")
def pair(x, given) -> tuple:
    theirs = SklearnMixture(K, **given, **SETTINGS).fit(x)
    return theirs, GaussianMixture(K, **given, **SETTINGS).fit(x)


def assert_same_fit(ours, theirs, first_step=0):
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    np.testing.assert_allclose(
        ours.lower_bounds_[first_step:], theirs.lower_bounds_[first_step:], rtol=1e-8
    )
    for name in PARAMETERS:
        value, wanted = getattr(ours, name), getattr(theirs, name)
        assert type(value) is np.ndarray and value.dtype == wanted.dtype, name
        np.testing.assert_allclose(
            value, wanted, rtol=1e-8, atol=1e-8 * np.abs(wanted).max(), err_msg=name
        )


# The same numbers


def test_same_fit_from_a_given_start(pair):
    theirs, ours = pair
    assert ours.converged_ and ours.n_iter_ > 10
    assert_same_fit(ours, theirs)
    assert ours.lower_bound_ == ours.lower_bounds_[-1]
    for attribute in set(vars(theirs)) - set(vars(ours)):
        raise AssertionError(f"{attribute} is missing")


def test_same_methods(x, pair):
    theirs, ours = pair
    labels, wanted = ours.predict(x), theirs.predict(x)
    assert labels.dtype == wanted.dtype
    np.testing.assert_array_equal(labels, wanted)
    for method in ("predict_proba", "score_samples", "score", "aic", "bic"):
        value, wanted = getattr(ours, method)(x), getattr(theirs, method)(x)
        assert type(value) is type(wanted), method
        np.testing.assert_allclose(value, wanted, rtol=1e-7, atol=1e-12, err_msg=method)
    ours, theirs = (clone_fitted(e).set_params(random_state=5) for e in (ours, theirs))
    for value, wanted in zip(ours.sample(50), theirs.sample(50), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-8)


def clone_fitted(estimator):
    return copy.deepcopy(estimator)


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_same_fit_from_the_same_seed(x, init_params):
    settings = dict(SETTINGS, random_state=2, init_params=init_params, n_init=2)
    theirs, ours = (c(K, **settings).fit(x) for c in (SklearnMixture, GaussianMixture))
    # scikit-learn's weights do not sum to one at a start from K samples.
    assert_same_fit(ours, theirs, first_step=int(init_params in ("k-means++", "random_from_data")))


def test_part_of_a_start_is_estimated(x):
    settings = dict(SETTINGS, random_state=0, means_init=x[[0, 70, 140]])
    theirs, ours = (c(K, **settings).fit(x) for c in (SklearnMixture, GaussianMixture))
    assert_same_fit(ours, theirs)


def test_no_steps_is_the_start(x):
    theirs, ours = (
        c(K, max_iter=0, init_params="kmeans", random_state=1).fit(x)
        for c in (SklearnMixture, GaussianMixture)
    )
    assert_same_fit(ours, theirs)
    assert ours.lower_bounds_ == [] and ours.lower_bound_ == -np.inf


def test_warm_start_goes_on_as_theirs_does(x, given):
    estimators = [
        c(K, **given, **{**SETTINGS, "max_iter": 1}, warm_start=True)
        for c in (SklearnMixture, GaussianMixture)
    ]
    calls = []
    for estimator in estimators:
        for call in range(200):  # noqa: B007
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                estimator.fit(x)
            if estimator.converged_:
                break
        calls.append(call)
    assert calls[0] == calls[1] and calls[0] > 10
    assert_same_fit(*estimators[::-1])
    ours = estimators[1].set_params(max_iter=100).fit(x)
    assert ours.n_iter_ == 1 and ours.converged_


def test_warm_start_wants_the_same_shape(x):
    fitted = GaussianMixture(K, warm_start=True, random_state=0).fit(x)
    for estimator, data in (
        (fitted, x[:, :2]),
        (clone_fitted(fitted).set_params(n_components=2), x),
    ):
        with pytest.raises(ValueError, match="warm_start"):
            estimator.fit(data)


# Sample weights


def test_weights_are_repetitions(x):
    weights = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)))
    assert set(weights) >= {0, 1, 2}
    start = {"weights_init": [0.5, 0.3, 0.2], "means_init": x[[0, 70, 140]]}
    start["precisions_init"] = np.ones((K, 3))
    start["covariance_type"] = "diag"
    weighted, repeated = (GaussianMixture(K, **start, **SETTINGS) for _ in range(2))
    labels = weighted.fit_predict(x, sample_weight=list(weights))
    np.testing.assert_array_equal(labels, weighted.predict(x))
    repeated.fit(np.repeat(x, weights, axis=0))
    assert_same_fit(weighted, repeated)


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_a_start_regards_weights(x, init_params):
    weights = np.where(x[:, 1] > 0, 1.0, 0)
    settings = {"init_params": init_params, "max_iter": 0, "random_state": 0}
    fitted = GaussianMixture(K, **settings).fit(x, sample_weight=weights)
    assert (fitted.means_[:, 1] > 0).all()


# Numbers and memory


def test_float64_whatever_the_setting(x, pair):
    _, ours = pair
    place = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    with place.enable_x64(False):
        again = clone(ours).fit(x)
        with pytest.raises(ValueError):
            clone(ours).set_params(means_init=np.zeros(2)).fit(x)
        assert jnp.zeros(()).dtype == np.float32
        log_prob = again.score_samples(x)
    assert log_prob.dtype == np.float64
    assert_same_fit(again, ours)


def test_float32_stays_float32(x):
    ours = GaussianMixture(K, covariance_type="diag", random_state=0).fit(x.astype(np.float32))
    assert {getattr(ours, name).dtype for name in PARAMETERS} == {np.dtype(np.float32)}
    assert ours.score_samples(x.astype(np.float32)).dtype == np.float32
    assert ours.score_samples(x).dtype == np.float64


def test_results_may_be_written_to(x, pair):
    _, ours = pair
    results = [ours.predict(x), ours.predict_proba(x), ours.score_samples(x), *ours.sample(3)]
    for array in [*results, *(getattr(ours, name) for name in PARAMETERS)]:
        assert type(array) is np.ndarray and array.flags.writeable and array.flags.owndata


def test_attributes_set_by_hand_count(x, pair):
    theirs, ours = (clone_fitted(estimator) for estimator in pair)
    for estimator in (theirs, ours):
        estimator.means_ = estimator.means_[::-1] + 1
        estimator.weights_ = np.array([0.05, 0.2, 0.75])
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), rtol=1e-8)


@contextlib.contextmanager
def compilations():
    """Counts the programs that XLA compiles."""
    names = []

    def listen(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_second_fit_compiles_nothing(x):
    data, settings = x[:170], {"n_components": K, "covariance_type": "diag"}
    with compilations() as first:
        GaussianMixture(**settings).fit(data).predict(data)
    assert first
    with compilations() as again:
        other = GaussianMixture(**settings, tol=1e-4, reg_covar=1e-4, max_iter=150, n_init=2)
        fitted = other.fit(data[::-1] * 2)
        for n in (169, 160, 130):
            fitted.predict(data[:n])
        GaussianMixture(**settings, allow_nan=True).fit(data).predict(data)
    assert not again


def test_another_number_of_samples_with_gaps_compiles_nothing(gaps):
    settings = {"n_components": K, "covariance_type": "diag", "allow_nan": True}
    GaussianMixture(**settings).fit(gaps[:170]).predict(gaps)
    with compilations() as again:
        GaussianMixture(**settings, tol=1e-4).fit(gaps[:165]).predict(gaps[:150])
    assert not again


# How a fit ends


def test_warns_as_theirs_does(x):
    for c in (SklearnMixture, GaussianMixture):
        with pytest.warns(ConvergenceWarning, match="initialization did not converge"):
            fitted = c(K, max_iter=2, random_state=0).fit(x)
        assert not fitted.converged_


def test_a_collapsed_component_is_an_error(x):
    flat = np.where([True, True, False], x, 1.0)
    for c in (SklearnMixture, GaussianMixture):
        with pytest.raises(ValueError, match="ill-defined empirical covariance"):
            c(K, reg_covar=0, n_init=2).fit(flat)


def test_a_failed_start_is_passed_over(x):
    """Two components on three equal clusters, of which one has no width."""
    corners = np.repeat([[0.0, 0], [10, 0], [5, 8.7]], 20, axis=0)
    noise = np.random.default_rng(0).normal(size=(60, 2))
    data = corners + np.where(np.arange(60)[:, None] < 40, noise, 0)
    settings = {"n_components": 2, "covariance_type": "diag", "reg_covar": 0, "random_state": 0}
    kinds = set()
    for seed in range(20):
        try:
            GaussianMixture(**{**settings, "random_state": seed}).fit(data)
            kinds.add("fitted")
        except ValueError:
            kinds.add("failed")
            settings["random_state"] = seed
    assert kinds == {"fitted", "failed"}
    assert np.isfinite(GaussianMixture(**settings, n_init=20).fit(data).lower_bound_)


BAD = {
    "weights of a wrong shape": {"weights_init": [0.5, 0.5]},
    "negative weights": {"weights_init": [-0.5, 0.75, 0.75]},
    "weights of a wrong sum": {"weights_init": [0.5, 0.5, 0.5]},
    "NaN in weights": {"weights_init": [0.5, np.nan, 0.5]},
    "means of a wrong shape": {"means_init": np.zeros((2, 3))},
    "infinite means": {"means_init": np.full((3, 3), np.inf)},
    "precisions of a wrong shape": {"precisions_init": np.eye(3)},
    "precisions not symmetric": {"precisions_init": np.tile(np.triu(np.ones((3, 3))), (3, 1, 1))},
    "precisions not positive": {"precisions_init": -np.tile(np.eye(3), (3, 1, 1))},
    "variances not positive": {"precisions_init": -np.ones((3, 3)), "covariance_type": "diag"},
    "no components": {"n_components": 0},
    "an unknown structure": {"covariance_type": "round"},
    "an unknown start": {"init_params": "k-means"},
    "more components than samples": {"n_components": 1000},
}


@pytest.mark.parametrize("settings", BAD.values(), ids=BAD)
def test_refuses_what_theirs_refuses(x, settings):
    for c in (SklearnMixture, GaussianMixture):
        with pytest.raises(ValueError):
            c(**{"n_components": K, **settings}).fit(x)


def test_refuses_bad_fitters_and_weights(x):
    with pytest.raises(ValueError, match="fitter"):
        GaussianMixture(K, fitter="em").fit(x)
    for weights in (np.ones(3), -np.ones(len(x)), np.zeros(len(x)), np.full(len(x), np.nan)):
        with pytest.raises(ValueError, match=r"sample_weight (holds|has|is)"):
            GaussianMixture(K).fit(x, sample_weight=weights)
    with pytest.raises(NotFittedError):
        GaussianMixture(K).predict(x)


def test_an_interruption_is_not_swallowed(x):
    """A search over parameters would go on to its next fit."""

    class Keyboard(io.StringIO):
        def write(self, text):
            if "Iteration" in text:
                raise KeyboardInterrupt
            return len(text)

    settings = dict(SETTINGS, verbose=1, verbose_interval=1, init_params="random", random_state=0)
    with contextlib.redirect_stdout(Keyboard()), pytest.raises(KeyboardInterrupt):
        GaussianMixture(K, **settings).fit(x)


# Gaps and noise


@pytest.fixture(scope="module")
def gaps(x) -> np.ndarray:
    """The same samples, of which a fifth was not measured."""
    return np.where(np.random.default_rng(5).uniform(size=x.shape) < 0.2, np.nan, x)


@pytest.fixture(scope="module")
def noise(x) -> np.ndarray:
    return np.random.default_rng(6).uniform(0, 0.5, size=x.shape)


METHODS = ("predict", "predict_proba", "score_samples", "score", "aic", "bic")


@pytest.mark.parametrize("kind", ["gaps", "noisy gaps", "noise", "matrices over gaps"])
def test_gaps_and_noise_are_those_of_data(x, gaps, noise, kind):
    """The fit and the methods of the library itself, from the same start."""
    rows, variances = {
        "gaps": (gaps, None),
        "noisy gaps": (gaps, noise),
        "noise": (x, noise[0]),
        "matrices over gaps": (gaps, noise[:, :, None] * np.eye(3) + 0.1),
    }[kind]
    weights = np.random.default_rng(0).uniform(0.5, 2, size=len(x))
    parts, identities = ([0.5, 0.3, 0.2], x[[0, 70, 140]]), np.tile(np.eye(3), (K, 1, 1))
    start = gmmx.GaussianMixture.from_parameters(*parts, identities)
    data = gmmx.Data(rows, noise=variances, missing=True)
    floor = np.full(3, SETTINGS["reg_covar"])
    fitter = gmmx.EMFitter(**{**SETTINGS, "reg_covar": floor}, look_ahead=False)
    theirs = fitter.fit(data, start, weights=weights)
    given = dict(zip(("weights_init", "means_init"), parts, strict=True))
    ours = GaussianMixture(K, **given, precisions_init=identities, **SETTINGS, allow_nan=True)
    labels = ours.fit_predict(rows, sample_weight=weights, noise=variances)
    np.testing.assert_allclose(ours.lower_bounds_, theirs.history, rtol=1e-10)
    np.testing.assert_allclose(ours.means_, theirs.gmm.means, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ours.covariances_, theirs.gmm.covariances, rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(labels, theirs.gmm.predict(data))
    for method in METHODS:
        value = getattr(ours, method)(rows, noise=variances)
        wanted = getattr(theirs.gmm, method)(data)
        np.testing.assert_allclose(value, wanted, rtol=1e-7, atol=1e-9, err_msg=method)


def test_no_noise_and_infinite_noise(x, gaps):
    settings = {**SETTINGS, "random_state": 0}
    plain = GaussianMixture(K, **settings).fit(x)
    assert_same_fit(GaussianMixture(K, **settings).fit(x, noise=0), plain)
    assert_same_fit(GaussianMixture(K, **settings, allow_nan=True).fit(x), plain)
    missing = GaussianMixture(K, **settings, allow_nan=True).fit(gaps)
    infinite = np.where(np.isnan(gaps), np.inf, 0)
    assert_same_fit(GaussianMixture(K, **settings).fit(x, noise=infinite), missing)
    np.testing.assert_allclose(
        missing.score_samples(gaps), missing.score_samples(x, noise=infinite), rtol=1e-10
    )


def test_the_mixture_is_that_without_noise(x):
    rng = np.random.default_rng(0)
    deviations = rng.uniform(0.5, 3, size=(20_000, 2))
    data = rng.normal(size=deviations.shape) * [1, 0.5] + deviations * rng.normal(
        size=deviations.shape
    )
    settings = {"covariance_type": "diag", "max_iter": 500, "tol": 1e-6}
    fitted = GaussianMixture(1, **settings).fit(data, noise=deviations**2)
    np.testing.assert_allclose(fitted.covariances_, [[1, 0.25]], atol=0.15)


def test_a_warm_start_with_gaps(gaps):
    settings = {"random_state": 0, "allow_nan": True, "covariance_type": "diag"}
    whole = GaussianMixture(K, **settings, tol=1e-9, max_iter=500).fit(gaps)
    steps = GaussianMixture(K, **settings, tol=1e-9, max_iter=20, warm_start=True)
    for _ in range(25):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            steps.fit(gaps)
        if steps.converged_:
            break
    assert steps.converged_
    np.testing.assert_allclose(steps.means_, whole.means_, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_starts_with_gaps(gaps, init_params):
    settings = {"random_state": 0, "allow_nan": True, "init_params": init_params}
    one, several = (
        GaussianMixture(K, **settings, max_iter=500, n_init=n).fit(gaps) for n in (1, 5)
    )
    assert several.lower_bound_ >= one.lower_bound_
    assert np.isfinite(one.score_samples(gaps)).all()


def test_nulls_of_frames(gaps):
    frame = pandas.DataFrame(gaps, columns=["a", "b", "c"])
    columns = {name: [None if v != v else v for v in column] for name, column in frame.items()}
    settings = {"random_state": 0, "allow_nan": True, "covariance_type": "diag"}
    wanted = GaussianMixture(K, **settings).fit(gaps).means_
    for nulls in (frame, frame.astype("Float64"), polars.DataFrame(columns)):
        fitted = GaussianMixture(K, **settings).fit(nulls)
        assert list(fitted.feature_names_in_) == ["a", "b", "c"]
        np.testing.assert_array_equal(fitted.means_, wanted)
    masked = np.ma.masked_invalid(gaps)
    np.testing.assert_array_equal(GaussianMixture(K, **settings).fit(masked).means_, wanted)
    with pytest.raises(ValueError, match="allow_nan=True"):
        GaussianMixture(K).fit(masked)


def test_noise_is_routed(x, gaps, noise):
    """Each fold gets the noise of its own samples, and so does its score."""
    with config_context(enable_metadata_routing=True):
        mixture = GaussianMixture(random_state=0, covariance_type="diag", allow_nan=True)
        mixture.set_fit_request(noise=True, sample_weight=False).set_score_request(noise=True)
        grid, cv = {"n_components": [1, 2]}, KFold(3)
        search = GridSearchCV(mixture, grid, cv=cv).fit(gaps, noise=noise)
    for i, k in enumerate(grid["n_components"]):
        for j, (train, test) in enumerate(cv.split(gaps)):
            own = clone(mixture).set_params(n_components=k).fit(gaps[train], noise=noise[train])
            score = own.score(gaps[test], noise=noise[test])
            np.testing.assert_allclose(search.cv_results_[f"split{j}_test_score"][i], score)


BAD_ROWS = {
    "NaN": ({}, {}, r"allow_nan=True"),
    "a flag that is none": ({"allow_nan": "yes"}, {}, "allow_nan"),
    "negative noise": ({"allow_nan": True}, {"noise": -1.0}, "negative variance"),
    "noise of another shape": ({"allow_nan": True}, {"noise": np.ones(4)}, "expected variances"),
    "no covariance": ({"allow_nan": True}, {"noise": -np.eye(3)}, "semi-definite"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_gaps_and_noise_are_refused(x, gaps, name):
    settings, arguments, message = BAD_ROWS[name]
    with pytest.raises(ValueError, match=message):
        GaussianMixture(K, **settings).fit(gaps, **arguments)


def test_what_says_nothing_is_refused(x, gaps):
    fitted = GaussianMixture(K, random_state=0).fit(x)
    for method in METHODS:
        with pytest.raises(ValueError, match="allow_nan=True"):
            getattr(fitted, method)(gaps)
    with pytest.raises(ValueError, match=r"gmmx\.EMFitter"):
        GaussianMixture(K).fit(gmmx.Data(x))
    with pytest.raises(ValueError, match="feature 1 was observed in no row"):
        GaussianMixture(K, allow_nan=True).fit(x * [1, np.nan, 1])


# Among scikit-learn's tools


def test_grid_search_in_a_pipeline(x):
    pipeline = make_pipeline(
        StandardScaler(), GaussianMixture(K, covariance_type="diag", random_state=0)
    )
    pipeline.set_output(transform="pandas")
    grid = {"gaussianmixture__reg_covar": [1e-6, 10.0]}
    shuffled = pandas.DataFrame(x, columns=["a", "b", "c"]).sample(frac=1, random_state=0)
    with pytest.warns(UserWarning, match="reg_covar=10 is 10 of the variance"):
        search = GridSearchCV(pipeline, grid, cv=2).fit(shuffled)
    assert search.best_params_ == {"gaussianmixture__reg_covar": 1e-6}
    best = search.best_estimator_[-1]
    assert list(best.feature_names_in_) == ["a", "b", "c"]
    assert search.predict(shuffled).shape == (180,)


@pytest.mark.parametrize("frame", [pandas.DataFrame, polars.DataFrame], ids=["pandas", "polars"])
def test_frames(x, frame):
    data = frame(dict(zip("abc", x.T, strict=True)))
    fitted = GaussianMixture(K, random_state=0).fit(data)
    assert list(fitted.feature_names_in_) == ["a", "b", "c"] and fitted.n_features_in_ == 3
    plain = GaussianMixture(K, random_state=0).fit(x)
    np.testing.assert_array_equal(fitted.predict(data), plain.predict(x))
    with pytest.raises(ValueError, match="names"):
        fitted.predict(data[["b", "a", "c"]])


def test_clone_and_pickle(x, pair):
    _, ours = pair
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.predict_proba(x), ours.predict_proba(x))
    fitter = gmmx.GradientFitter(max_iter=5)
    copied = clone(GaussianMixture(K, fitter=fitter))
    assert copied.get_params()["fitter"].max_iter == 5
    assert set(ours.get_params()) == {*SklearnMixture().get_params(), "fitter", "allow_nan", "rank"}


@pytest.mark.usefixtures("optax_promotion")
def test_a_choice_of_trainers(x):
    em = GaussianMixture(K, covariance_type="diag", random_state=0).fit(x)
    for fitter in (gmmx.GradientFitter(max_iter=500), gmmx.Restarts(gmmx.EMFitter(), n_init=2)):
        other = GaussianMixture(K, covariance_type="diag", random_state=0, fitter=fitter).fit(x)
        assert other.converged_ and len(other.lower_bounds_) == other.n_iter_
        assert other.score(x) > em.score(x) - 1e-2


def test_verbose(x):
    settings = dict(SETTINGS, init_params="random", random_state=0, n_init=2, verbose_interval=1)
    for verbose, pattern in ((1, "Iteration 1\n"), (2, "Iteration 1\t time lapse ")):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            fitted = GaussianMixture(K, verbose=verbose, **settings).fit(x)
        text = out.getvalue()
        assert pattern in text and "Initialization 0" in text and "Initialization 1\n" in text
        assert text.count("Initialization converged.") == 2
        assert ("lower bound" in text) == (verbose == 2)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        fitted.set_params(verbose=0).fit(x)
    assert out.getvalue() == ""


# Conversions


def test_estimators_convert_exactly(x, pair):
    theirs, ours = pair
    for source, back in (
        (ours, GaussianMixture.from_sklearn(ours.to_sklearn())),
        (theirs, GaussianMixture.from_sklearn(theirs).to_sklearn()),
    ):
        assert type(back) is type(source)
        assert vars(back).keys() == vars(source).keys()
        for name, value in vars(source).items():
            np.testing.assert_array_equal(vars(back)[name], value, err_msg=name)


def test_mixtures_convert(x, structure):
    gmm = structure.mixture(K, 3)
    theirs = gmm.to_sklearn()
    np.testing.assert_allclose(theirs.score_samples(x), gmm.log_prob(x), rtol=1e-12)
    np.testing.assert_array_equal(theirs.means_, gmm.means)
    back = gmmx.GaussianMixture.from_sklearn(theirs)
    assert back.dtype == np.float64 and back.covariance_type == structure.name
    for name in ("weights", "means", "covariances", "precisions", "precisions_cholesky"):
        value, wanted = (np.asarray(getattr(g, name)) for g in (back, gmm))
        np.testing.assert_allclose(value, wanted, rtol=1e-14, atol=1e-14, err_msg=name)
        np.testing.assert_allclose(getattr(theirs, f"{name}_"), wanted, rtol=1e-14, atol=1e-14)
    assert from_sklearn(GaussianMixture.from_sklearn(theirs)).covariance_type == structure.name


def test_a_converted_mixture_goes_on_from_where_it_is(x, structure):
    start = structure.mixture(K, 3)
    theirs = to_sklearn(start, **SETTINGS).fit(x)
    settings = {**SETTINGS, "reg_covar": np.full(3, SETTINGS["reg_covar"])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)  # of a component that collapses
        ours = gmmx.EMFitter(**settings, look_ahead=False).fit(x, start)
    assert theirs.n_iter_ == ours.n_iter
    np.testing.assert_allclose(from_sklearn(theirs).means, ours.gmm.means, rtol=1e-8, atol=1e-8)


def test_from_precisions(structure):
    """Against an independent inverse, for well and for badly conditioned matrices."""
    for spread in (1.0, 1e4):
        _, _, covariances = structure.parameters(K, 4)
        dense = structure.dense(covariances, K, 4)
        scale = np.geomspace(1, spread, 4)
        natural = structure.natural(dense * scale[:, None] * scale)
        dense = structure.dense(natural, K, 4)
        wanted = np.linalg.inv(dense)
        # The other way: from covariances that are the precisions' inverse.
        precisions = structure.natural(wanted)
        if structure.name in ("diag", "spherical"):
            precisions = 1 / natural
        made = type(structure.mixture(K, 4).structure).from_precisions(jnp.asarray(precisions))
        size = np.abs(precisions).max()
        np.testing.assert_allclose(made.precisions(K, 4), precisions, rtol=1e-10, atol=1e-14 * size)
        factors = np.broadcast_to(made.dense_factors(K, 4), (K, 4, 4))
        np.testing.assert_allclose(
            np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1) * -2,
            np.linalg.slogdet(dense)[1],
            rtol=1e-10,
        )


# The package around it


def test_optional_and_lazy():
    code = (
        "import sys, gmmx; assert 'sklearn' not in sys.modules; "
        "assert gmmx.GaussianMixtureSKLearn is gmmx.sklearn.GaussianMixture; "
        "assert not hasattr(gmmx, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_fits_are_logged_for_who_asks(x, caplog, capfd):
    start = gmmx.initialize(x, K)
    gmmx.EMFitter(**SETTINGS).fit(x, start)
    assert capfd.readouterr() == ("", "") and not caplog.records
    with caplog.at_level(logging.INFO, logger="gmmx"):
        gmmx.EMFitter(**SETTINGS).fit(x, start)
    assert "(180, 3)" in caplog.text and "changed by less than tol" in caplog.text
