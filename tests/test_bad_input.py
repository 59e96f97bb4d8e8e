"""Bad input: a `ValueError` that says what came, what was wanted, and the fix."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest
import scipy.sparse

import gmmx
from gmmx import EMFitter, GaussianMixture, GradientFitter, Restarts
from gmmx._checks import as_key
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
    "objects": (np.array([["a", None, 1]] * 20, object), ["missing", "row 0"]),
    "masked": (np.ma.masked_greater(X, 1.9), ["missing values", "Drop"]),
    "sparse": (scipy.sparse.csr_array(X), ["sparse csr_array", "toarray"]),
    "pandas.NA": (
        pandas.DataFrame(X, columns=list("abc")).astype("Float64").mask(X > 1.9),
        ["missing values", "Drop"],
    ),
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


def test_masked_weights(gmm):
    weights = np.ma.masked_equal(np.arange(20.0), 3)
    with pytest.raises(ValueError, match="weights holds 1 missing values"):
        EMFitter().fit(X, gmm, weights=weights)


def test_any_byte_order_and_masks_of_nothing(gmm):
    """As FITS files and `numpy.ma` give them."""
    wanted = gmm.log_prob(X)
    for x in (X.astype(">f8"), X.astype("<f8"), np.ma.array(X)):
        np.testing.assert_array_equal(gmm.log_prob(x), wanted)


def test_what_a_fit_starts_from(gmm):
    """A mixture, or a number of components; a constructor without leaves says what to call."""
    by_number = EMFitter(max_iter=2, tol=0)
    with pytest.warns(gmmx.FitWarning):
        found = by_number.fit(X, 2)
    with pytest.warns(gmmx.FitWarning):
        wanted = by_number.fit(X, gmmx.initialize(X, 2, method="em"))
    np.testing.assert_array_equal(found.gmm.means, wanted.gmm.means)
    for start in (None, "3", 3.0, True):
        with pytest.raises(ValueError, match=r"fit\(x, 3\)"):
            EMFitter().fit(X, start)
    for settings in ({"n_components": 3}, {"logits": 3}):
        with pytest.raises(TypeError, match=r"EMFitter\(\)\.fit"):
            GaussianMixture(**settings)


def test_keys(gmm):
    """Here, annotations are checked before `sample` asks for a key."""
    with pytest.raises(ValueError, match=r"key=0; expected .*jax\.random\.key\(0\)"):
        as_key(0)
    raw = jax.random.PRNGKey(1)
    np.testing.assert_array_equal(gmm.sample(3, key=raw), gmm.sample(3, key=jax.random.key(1)))


@pytest.mark.parametrize("reg_covar", [-1.0, np.nan, np.inf, "a", [1e-6, -1e-6, 0]])
def test_floors_that_are_none(gmm, reg_covar):
    for use in (
        lambda: EMFitter(reg_covar=reg_covar),
        lambda: GradientFitter(reg_covar=reg_covar),
        lambda: gmmx.initialize(X, 2, reg_covar=reg_covar),
        lambda: GaussianMixture.from_responsibilities(X, np.ones((20, 1)), reg_covar=reg_covar),
    ):
        with pytest.raises(ValueError, match="reg_covar"):
            use()


def test_a_stack_says_so(gmm):
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), gmm)
    for use in (
        lambda: stack.n_components,
        lambda: stack.n_features,
        lambda: stack.mean(),
        lambda: stack.covariance(),
        lambda: stack.n_parameters,
        lambda: stack.predict(X),
        lambda: stack.sample(3),
    ):
        with pytest.raises(ValueError, match="stack of mixtures"):
            use()


def test_one_feature_by_its_number(gmm):
    np.testing.assert_array_equal(gmm.marginal(1).means, gmm.marginal([1]).means)
    np.testing.assert_array_equal(
        gmm.condition(1, X[:, 1]).means, gmm.condition([1], X[:, 1:2]).means
    )
    np.testing.assert_array_equal(gmm.condition(-1, 0.5).means, gmm.condition([2], [0.5]).means)


@pytest.mark.parametrize("size", [1e10, 1e20, 1e38])
def test_points_whose_squares_overflow(structure, size):
    """The component that is nearest in the limit, and finite gradients."""
    mixture, wide = (structure.mixture(3, 2, dtype) for dtype in (np.float32, np.float64))
    direction = np.array([0.8, -0.6])
    wanted = int(wide.predict(direction * 1e6))
    x = jnp.asarray(direction * size, jnp.float32)
    # Along a ray only Λ counts. Where components share it, their means do, which are lost here.
    if structure.name != "tied":
        assert mixture.predict(x) == wanted
        assert mixture.predict_proba(x)[wanted] == 1
    assert mixture.log_prob(x) < -1e18
    for argument in (0, 1):
        gradient = jax.grad(lambda g, x: g.log_prob(x), argument)(mixture, x)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_derivatives_at_the_edge_of_the_simplex(structure):
    """Those of the components that are there, as if the others were not mentioned."""
    _, means, covariances = structure.parameters(3, 2)
    x = jnp.asarray([0.3, -0.2])

    def log_prob(weights):
        mixture = GaussianMixture.from_parameters(weights, means, covariances, structure.name)
        return mixture.log_prob(x)

    found = jax.grad(log_prob)(jnp.array([0.0, 0.25, 0.75]))
    wanted = jax.grad(log_prob)(jnp.array([1e-14, 0.25, 0.75]))
    assert found[0] == 0
    np.testing.assert_allclose(found[1:], wanted[1:], rtol=1e-9)

    def of_responsibilities(z):
        data = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)))
        members = jnp.stack([jnp.zeros(20), z, 1 - z], axis=1)
        fitted = GaussianMixture.from_responsibilities(data, members, structure.name)
        return fitted.log_prob(x)

    assert np.isfinite(jax.grad(of_responsibilities)(jnp.linspace(0.1, 0.9, 20))).all()


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


@pytest.mark.parametrize("name", ["weights", "log_weights", "covariances", "precisions"])
def test_what_is_derived_is_not_replaced(structure, name):
    gmm = structure.mixture(2, 3)
    with pytest.raises(ValueError, match=f"{name} is computed from the leaves"):
        eqx.tree_at(lambda m: getattr(m, name), gmm, getattr(gmm, name))
