"""Bad input: a `ValueError` that says what came, what was wanted, and the fix."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gmmx
from gmmx import EMFitter, GaussianMixture, GradientFitter, Restarts
from gmmx._components import check_mixture

X = np.random.default_rng(0).normal(size=(20, 3))


@pytest.fixture(scope="module")
def gmm():
    return gmmx.initialize(X, 2, "diag")


def test_what_is_not_one_mixture(gmm):
    """As `gmmx.save` and the pictures ask; here, annotations are checked before they do."""
    with pytest.raises(ValueError, match=r"of type EMFitter; .*Of a fit pass result\.gmm"):
        check_mixture(EMFitter())
    with pytest.raises(ValueError, match=r"stack of mixtures.* Take one"):
        check_mixture(jax.tree.map(lambda leaf: leaf[None], gmm))


def with_value(value):
    x = X.copy()
    x[7, 1] = value
    return x


# What came, and words of the message: what was found, and what to do.
BAD_DATA = {
    "nan": (with_value(np.nan), ["NaN or infinite", "row 7", "Drop"]),
    "infinity": (with_value(np.inf), ["NaN or infinite", "row 7", "Drop"]),
    "features": (X[:, :2], ["2 features", "mixture has 3", "initialize"]),
    "few": (X[:1], ["1 samples", "2 components", "fewer components"]),
    "empty": (X[:0], ["empty", "0 samples"]),
    "no features": (X[:, :0], ["empty", "0 features"]),
    "one axis": (X[:, 0], ["(20,)", "(n_samples, n_features)", "x[:, None]"]),
    "three axes": (X[None], ["(1, 20, 3)", "(n_samples, n_features)"]),
    "a number": (3.0, ["()", "(n_samples, n_features)"]),
    "text": (np.array([["a", "b", "c"]] * 20), ["dtype", "numbers"]),
    "objects": (np.array([["a", None, 1]] * 20, object), ["not numbers", "columns"]),
    "complex": (X + 1j, ["complex", "real"]),
}


@pytest.mark.parametrize("which", BAD_DATA)
def test_data_that_cannot_be_fitted(gmm, which):
    x, words = BAD_DATA[which]
    for fitter in (EMFitter(), GradientFitter(), Restarts(EMFitter(), 2)):
        with pytest.raises(ValueError) as error:
            fitter.fit(x, gmm)
        for word in words:
            assert word in str(error.value), error.value
    if which != "features":
        with pytest.raises(ValueError) as error:
            gmmx.initialize(x, 2)
        assert words[0] in str(error.value)


def test_values_too_large_for_float32():
    with jax.enable_x64(False):
        start = gmmx.initialize(X, 2, "diag")
        with pytest.raises(ValueError, match=r"too large for float32.*Rescale"):
            EMFitter().fit(with_value(1e60), start)


@pytest.mark.parametrize("method", ["log_prob", "predict", "predict_proba", "score", "aic", "icl"])
def test_points_that_do_not_fit(gmm, method):
    for x, words in (
        (with_value(np.nan), ["NaN or infinite", "row 7"]),
        (X[:, :2], ["(20, 2)", "3 features"]),
        (np.ones((3, 20)), ["(3, 20)", "Transpose"]),
        (3.0, ["()", "3 features"]),
    ):
        with pytest.raises(ValueError) as error:
            getattr(gmm, method)(x)
        for word in words:
            assert word in str(error.value), error.value


def test_nan_under_a_transformation_is_nan(gmm):
    """What Python cannot see is not hidden: no −∞, and no label."""
    x = jnp.asarray(with_value(np.nan))
    log_prob = jax.jit(lambda x: gmm.log_prob(x))(x)
    np.testing.assert_array_equal(np.isnan(log_prob), np.arange(20) == 7)
    labels = jax.jit(lambda x: gmm.predict(x))(x)
    np.testing.assert_array_equal(np.asarray(labels) == -1, np.arange(20) == 7)
    result = jax.jit(lambda x: EMFitter().fit(x, gmm))(x)
    assert result.status == gmmx.Status.non_finite and not result.converged


WEIGHTS = {
    "negative": (np.r_[-1.0, np.ones(19)], ["negative", "-1"]),
    "nan": (np.r_[np.nan, np.ones(19)], ["NaN or infinite"]),
    "length": (np.ones(19), ["(19,)", "(20,)"]),
    "axes": (np.ones((20, 1)), ["(20, 1)", "(20,)"]),
    "zero": (np.zeros(20), ["all zero"]),
}


@pytest.mark.parametrize("which", WEIGHTS)
def test_sample_weights(gmm, which):
    weights, words = WEIGHTS[which]
    calls = (
        lambda: EMFitter().fit(X, gmm, weights=weights),
        lambda: GradientFitter().fit(X, gmm, weights=weights),
        lambda: gmmx.initialize(X, 2, weights=weights),
    )
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        for word in ["weights", *words]:
            assert word in str(error.value), error.value


def test_integers_are_converted(gmm):
    x = np.round(10 * X).astype(np.int64)
    assert gmm.log_prob(x).dtype == np.float64
    np.testing.assert_allclose(gmm.log_prob(x), gmm.log_prob(x.astype(float)))
    np.testing.assert_allclose(gmm.log_prob(x.tolist()), gmm.log_prob(x.astype(float)))
    np.testing.assert_allclose(gmm.log_prob(X > 0), gmm.log_prob((X > 0).astype(float)))
    start = gmmx.initialize(x, 2, "diag")
    result = EMFitter(max_iter=500).fit(x, start, weights=np.ones(20, int))
    same = EMFitter(max_iter=500).fit(x.astype(start.dtype), start)
    np.testing.assert_array_equal(result.log_likelihood, same.log_likelihood)


def test_names_that_are_not_known(gmm):
    calls = (
        (lambda: gmmx.initialize(X, 2, "round"), ["'round'", "'full'", "'spherical'"]),
        (lambda: GaussianMixture.create(2, 3, "Full"), ["'Full'", "'full'"]),
        (lambda: gmmx.initialize(X, 2, method="best"), ["'best'", "'kmeans'", "'random'"]),
        (lambda: EMFitter(frozen="mean"), ["'mean'", "'means'"]),
        (lambda: EMFitter(frozen=("means", "weights", "covariances")), ["nothing is left"]),
        (lambda: Restarts(EMFitter(), 2, "best").fit(X, gmm), ["'best'", "'kmeans'"]),
    )
    for call, words in calls:
        with pytest.raises(ValueError) as error:
            call()
        for word in words:
            assert word in str(error.value), error.value


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", None, True])
def test_numbers_that_are_not_counts(value, gmm):
    calls = (
        lambda: gmmx.initialize(X, value),
        lambda: GaussianMixture.create(value, 3),
        lambda: GaussianMixture.create(3, value),
        lambda: gmm.sample(value),
        lambda: EMFitter(max_iter=value),
        lambda: Restarts(EMFitter(), value),
    )
    for call in calls:
        # Annotations refuse some of these before the library does.
        with pytest.raises((ValueError, TypeError)):
            call()


@pytest.mark.parametrize("make", [EMFitter, GradientFitter])
@pytest.mark.parametrize("name", ["tol", "reg_covar"])
@pytest.mark.parametrize("value", [-1e-3, np.nan, "small", None])
def test_settings_that_are_not_rates(make, name, value):
    with pytest.raises(ValueError):
        make(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": -0.1},
        {"patience": -1},
        {"batch_size": 0},
        {"validation_fraction": -0.1},
        {"validation_fraction": 0.0},
        {"validation_fraction": 1.0},
        {"optimizer": optax.adam(0.1), "learning_rate": 0.5},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_settings_of_the_gradient(settings):
    """No row held out, or all, or a rate that nothing reads: not what was asked for."""
    with pytest.raises(ValueError):
        GradientFitter(**settings)


def parameters(**changed):
    """Three components in two dimensions, less what is changed."""
    spd = np.tile(np.array([[2.0, 0.5], [0.5, 1.0]]), (3, 1, 1))
    values = {"weights": np.ones(3) / 3, "means": np.zeros((3, 2)), "covariances": spd}
    return {**values, **changed}


def bad_matrix(entries, k=1):
    spd = parameters()["covariances"].copy()
    spd[k] = entries
    return spd


BAD_PARAMETERS = {
    "indefinite": (
        {"covariances": bad_matrix([[1.0, 2], [2, 1]])},
        ["component 1", "positive definite", "diagonal"],
    ),
    "singular": (
        {"covariances": bad_matrix([[1.0, 1], [1, 1]], 2)},
        ["component 2", "positive definite"],
    ),
    "asymmetric": (
        {"covariances": bad_matrix([[1.0, 0.5], [0, 1]])},
        ["component 1", "not symmetric", "C.T"],
    ),
    "nan": ({"covariances": bad_matrix(np.nan)}, ["covariances", "NaN"]),
    "sum": ({"weights": np.full(3, 0.3)}, ["sum to 0.9", "divide"]),
    "negative": ({"weights": np.array([0.6, -0.1, 0.5])}, ["weights[1]", "-0.1", "negative"]),
    "weights": ({"weights": np.ones(2) / 2}, ["(2,)", "(3,)"]),
    "means": ({"means": np.zeros(3)}, ["(3,)", "n_features"]),
    "features": ({"means": np.zeros((3, 4))}, ["(3, 2, 2)", "(3, 4, 4)"]),
    "shape": ({"covariance_type": "diag"}, ["(3, 2, 2)", "(3, 2)", "'diag'"]),
    "tied": ({"covariance_type": "tied"}, ["(3, 2, 2)", "(2, 2)"]),
    "variance": (
        {"covariance_type": "diag", "covariances": np.array([[1.0, 1], [1, 1], [0, 1]])},
        ["component 2", "positive"],
    ),
    "spherical": (
        {"covariance_type": "spherical", "covariances": np.array([1.0, -1, 1])},
        ["component 1", "positive"],
    ),
    "tied indefinite": (
        {"covariance_type": "tied", "covariances": np.array([[1.0, 2], [2, 1]])},
        ["positive definite"],
    ),
}


@pytest.mark.parametrize("which", BAD_PARAMETERS)
def test_parameters_that_are_no_mixture(which):
    changed, words = BAD_PARAMETERS[which]
    with pytest.raises(ValueError) as error:
        GaussianMixture.from_parameters(**parameters(**changed))
    for word in words:
        assert word in str(error.value), error.value


def test_rounding_is_no_asymmetry(dtype):
    spd = np.cov(np.random.default_rng(0).normal(size=(4, 50)) * [[1e-3], [1], [1], [1e3]])
    spd[0, 1] *= 1 + 4 * np.finfo(dtype).eps
    weights = np.full(7, 1 / 7).astype(dtype)
    gmm = GaussianMixture.from_parameters(
        weights, np.zeros((7, 4), dtype), np.tile(spd, (7, 1, 1)).astype(dtype)
    )
    assert np.isfinite(gmm.log_prob(np.zeros(4, dtype)))


def test_responsibilities_that_do_not_fit():
    good = np.ones((20, 2)) / 2
    for z, words in (
        (good[:19], ["20 samples", "19 rows"]),
        (good[0], ["(2,)"]),
        (-good, ["negative"]),
        (good * np.nan, ["NaN"]),
    ):
        with pytest.raises(ValueError) as error:
            GaussianMixture.from_responsibilities(X, z)
        for word in ["responsibilities", *words]:
            assert word in str(error.value), error.value


def test_leaves_that_do_not_fit(gmm):
    # As a rule by `__check_init__`; here the annotations see it first.
    with pytest.raises((ValueError, TypeError)):
        GaussianMixture(jnp.zeros(2), jnp.zeros((3, 4)), gmm.structure)
