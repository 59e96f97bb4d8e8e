"""Agreement with scikit-learn in float64: every method, and EM step by step."""

import warnings

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture as SklearnMixture

import gmmx
from gmmx._engine import density
from gmmx._engine.ladder import Ladder
from gmmx._engine.packed import Packed
from gmmx._engine.whitened import Whitened

# Shapes of which the densities are whitened and packed.
SMALL, LARGE = (400, 3, 4), (20_000, 16, 16)
REG_COVAR = 1e-2


def data(n, d):
    """Correlated features around overlapping centres."""
    rng = np.random.default_rng(d)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    return x + 3 * rng.integers(0, 3, size=(n, 1))


def sklearn_start(x, k, covariance_type):
    """scikit-learn's model after one step from a random start, and that model in ours."""
    theirs = SklearnMixture(
        k, covariance_type=covariance_type, max_iter=1, init_params="random_from_data",
        random_state=0, reg_covar=REG_COVAR,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged, and is not asked to
        theirs.fit(x)
    ours = gmmx.GaussianMixture.from_parameters(
        theirs.weights_, theirs.means_, theirs.covariances_, covariance_type
    )
    return theirs, ours


@pytest.fixture(scope="module", params=[SMALL, LARGE], ids=["small", "large"])
def case(request, structure):
    n, d, k = request.param
    x = data(n, d)
    return x, *sklearn_start(x, k, structure.name)


def agree(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("method", ["score_samples", "predict_proba", "score", "aic", "bic"])
def test_methods(case, method):
    x, theirs, ours = case
    agree(getattr(ours, method)(x), getattr(theirs, method)(x))


def test_labels(case):
    x, theirs, ours = case
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


def test_parameters(case):
    _, theirs, ours = case
    for name in ("weights", "means", "covariances", "precisions", "precisions_cholesky"):
        wanted = getattr(theirs, f"{name}_")
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(getattr(ours, name), wanted, rtol=1e-10, atol=1e-10 * scale)
    assert ours.n_parameters == theirs._n_parameters()


def test_both_ways_are_taken(case):
    x, _, ours = case
    ladder = Ladder.of(ours, len(x), products=1)
    assert ladder.ways[0] is (Packed if len(x) == LARGE[0] else Whitened)
    _, inaccurate = density._program(ours, x, density.log_prob_of, ladder.only(0), None)
    assert not inaccurate


def test_em_follows_step_by_step(case):
    x, theirs, ours = case
    steps = 12
    sequel = SklearnMixture(
        len(theirs.weights_), covariance_type=theirs.covariance_type, max_iter=steps, tol=0,
        weights_init=theirs.weights_, means_init=theirs.means_,
        precisions_init=theirs.precisions_, reg_covar=REG_COVAR,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tol=0 never converges
        sequel.fit(x)
        result = gmmx.EMFitter(tol=0, max_iter=steps, reg_covar=np.full(x.shape[1], REG_COVAR)).fit(
            x, ours
        )
    lower_bounds = np.asarray(sequel.lower_bounds_)
    assert len(lower_bounds) == len(result.history) == steps
    np.testing.assert_allclose(result.history, lower_bounds, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(result.log_likelihood, sequel.score(x), rtol=1e-8)
    np.testing.assert_allclose(result.gmm.means, sequel.means_, rtol=1e-6, atol=1e-6)


def test_icl_penalises_uncertainty(case):
    x, theirs, ours = case
    certainty = theirs.predict_proba(x).max(axis=1)
    agree(ours.icl(x), theirs.bic(x) - 2 * np.log(certainty).sum())
