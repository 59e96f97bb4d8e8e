"""What a fit is worth: information, standard errors, the bootstrap and its test."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import STRUCTURES

import gmmx
from gmmx._covariance import structure_named

FAITHFUL = Path(__file__).parent / "data" / "faithful.csv"
FITTER = gmmx.EMFitter(tol=1e-12, max_iter=2000)


@pytest.fixture(scope="module")
def faithful():
    return np.loadtxt(FAITHFUL, delimiter=",", skiprows=1)


@pytest.fixture(scope="module")
def fitted(faithful):
    """The short eruptions and the long ones."""
    start = STRUCTURES["full"].of(
        [0.4, 0.6], [[2, 54], [4.3, 80]], np.stack([np.diag([0.1, 30])] * 2)
    )
    return FITTER.fit(faithful, start).gmm


def hessian(fn, at, steps):
    """By central differences in NumPy."""
    out = np.empty((len(at), len(at)))
    for i in range(len(at)):
        for j in range(i + 1):
            a, b = np.eye(len(at))[i] * steps[i], np.eye(len(at))[j] * steps[j]
            values = fn(at + a + b) - fn(at + a - b) - fn(at - a + b) + fn(at - a - b)
            out[i, j] = out[j, i] = values / (4 * steps[i] * steps[j])
    return out


def dense_log_prob(x, weights, means, covariances):
    parts = [
        w * scipy.stats.multivariate_normal(m, c).pdf(x)
        for w, m, c in zip(weights, means, covariances, strict=True)
    ]
    return np.log(sum(parts))


def test_errors_are_those_of_a_dense_hessian(fitted, faithful):
    """In weights, means and covariances themselves, by differences of SciPy's densities."""

    def unpack(v):
        weights, means = np.array([v[0], 1 - v[0]]), v[1:5].reshape(2, 2)
        covariances = v[5:].reshape(2, 3)[:, [0, 1, 1, 2]].reshape(2, 2, 2)
        return weights, means, covariances

    w, m, c = (np.asarray(p) for p in (fitted.weights, fitted.means, fitted.covariances))
    at = np.concatenate([w[:1], m.ravel(), c.reshape(2, 4)[:, [0, 1, 3]].ravel()])
    errors = gmmx.standard_errors(fitted, faithful)
    steps = (
        3e-3
        * np.concatenate(
            [
                errors.weights[:1],
                np.ravel(errors.means),
                np.reshape(errors.covariances, (2, 4))[:, [0, 1, 3]].ravel(),
            ]
        )
        * 10
    )
    matrix = hessian(lambda v: -dense_log_prob(faithful, *unpack(v)).sum(), at, steps)
    wanted = np.sqrt(np.diagonal(np.linalg.inv(matrix)))
    np.testing.assert_allclose(errors.weights, wanted[0], rtol=1e-3)
    np.testing.assert_allclose(np.ravel(errors.means), wanted[1:5], rtol=1e-3)
    found = np.reshape(errors.covariances, (2, 4))[:, [0, 1, 3]]
    np.testing.assert_allclose(found.ravel(), wanted[5:], rtol=1e-3)


def closed_form(x, structure):
    """Mean and covariance of one component, and their standard errors."""
    n, d = x.shape
    mean, covariance = x.mean(0), np.cov(x.T, bias=True)
    variances = np.diagonal(covariance)
    errors = np.sqrt((covariance**2 + np.outer(variances, variances)) / n)
    if structure.isotropic:
        variance = np.full(d, variances.mean())
        natural, errors = variance[0], variance[0] * np.sqrt(2 / (n * d))
    elif structure.axis_aligned:
        variance, natural, errors = variances, variances, np.diagonal(errors)
    else:
        variance, natural = variances, covariance
    if not structure.shared:
        natural, errors = natural[None], errors[None]
    return mean, natural, np.sqrt(variance / n), errors


@pytest.mark.parametrize("family", ["EII", "VEI", "VEE", "EEV", "VVV"])
def test_errors_of_one_component_have_closed_forms(family):
    """For one component each structure is spherical, diagonal or full."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 3)) @ np.array([[1.0, 0, 0], [0.5, 0.4, 0], [2, 1, 3]]) + 7
    structure = structure_named(family)
    mean, natural, of_mean, of_covariances = closed_form(x, structure)
    gmm = gmmx.GaussianMixture.from_parameters([1.0], mean[None], natural, family)
    errors = gmmx.standard_errors(gmm, x)
    np.testing.assert_allclose(errors.weights, 0, atol=1e-12)
    np.testing.assert_allclose(errors.means[0], of_mean, rtol=1e-7)
    np.testing.assert_allclose(errors.covariances, of_covariances, rtol=1e-7)


def test_null_directions():
    """As many directions change the density as there are parameters; the others do not."""
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.normal(size=(60, 3)))
    like = gmmx.GaussianMixture.create(1, 3, "EEV")
    flat, unravel = jax.flatten_util.ravel_pytree(like)
    gmm = unravel(jnp.asarray(rng.normal(size=flat.size)))
    found = gmmx.information(gmm, x)
    change, null = found.bases()
    assert change.shape[1] == gmm.n_parameters
    assert change.shape[1] + null.shape[1] == flat.size
    scale = np.abs(found.matrix).max()
    np.testing.assert_allclose(found.matrix @ null, 0, atol=1e-9 * scale)
    moved = unravel(ravel_of(gmm) + jnp.asarray(null @ rng.normal(size=null.shape[1])))
    np.testing.assert_allclose(moved.log_prob(x), gmm.log_prob(x), rtol=1e-9)


def test_information_inside_other_transformations(fitted, faithful):
    wanted = gmmx.information(fitted, faithful)
    stack = jax.tree.map(lambda leaf: leaf[None], fitted)
    found = jax.jit(jax.vmap(lambda gmm: gmmx.information(gmm, jnp.asarray(faithful))))
    scale = np.abs(wanted.matrix).max()
    np.testing.assert_allclose(found(stack).matrix[0], wanted.matrix, atol=1e-10 * scale)


def ravel_of(gmm):
    return jax.flatten_util.ravel_pytree(gmm)[0]


def test_float32_far_from_zero(fitted, faithful):
    """The errors are those of float64, to a part in a thousand."""
    offset = np.array([1e3, -1e3])
    far = (faithful + offset).astype(np.float32)
    exact = FITTER.fit(far.astype(np.float64) - offset, fitted).gmm
    wanted = gmmx.standard_errors(exact, far.astype(np.float64) - offset, method="sandwich")
    w, m, c = exact.weights, exact.means + offset, exact.covariances
    single = STRUCTURES["full"].of(*(np.asarray(v) for v in (w, m, c)), np.float32)
    found = gmmx.standard_errors(single, far, method="sandwich")
    assert found.means.dtype == np.float32
    for a, b in zip(jax.tree.leaves(found)[:3], jax.tree.leaves(wanted)[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3)


def test_weights_count_rows(fitted, faithful):
    twice = np.concatenate([faithful, faithful[:50]])
    weights = np.where(np.arange(272) < 50, 2.0, 1.0)
    gmm = FITTER.fit(twice, fitted).gmm
    for method in ("information", "sandwich"):
        wanted = gmmx.standard_errors(gmm, twice, method=method)
        found = gmmx.standard_errors(gmm, faithful, weights=weights, method=method)
        np.testing.assert_allclose(found.covariance_matrix, wanted.covariance_matrix, rtol=1e-6)


def test_a_component_of_weight_zero_has_no_errors(fitted, faithful):
    absent = STRUCTURES["full"].of(
        np.append(fitted.weights, 0), np.append(fitted.means, [[0, 0]], 0),
        np.append(fitted.covariances, [np.eye(2)], 0),
    )  # fmt: skip
    found, wanted = (gmmx.standard_errors(gmm, faithful) for gmm in (absent, fitted))
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(found, name)[:2], getattr(wanted, name), rtol=1e-9)
        assert np.isnan(getattr(found, name)[2]).all()


def test_what_is_frozen_has_no_error(fitted, faithful):
    """With all but the weight known, the error is that of one parameter."""
    found = gmmx.standard_errors(fitted, faithful, frozen=("means", "covariances"))
    np.testing.assert_array_equal(found.means, 0)
    p = [
        scipy.stats.multivariate_normal(m, c).pdf(faithful)
        for m, c in zip(fitted.means, fitted.covariances, strict=True)
    ]
    mixed = np.exp(fitted.log_prob(faithful))
    np.testing.assert_allclose(found.weights[0], np.sum(((p[0] - p[1]) / mixed) ** 2) ** -0.5)


def test_a_background():
    """Of one component on a line: its three parameters and the weight of the background."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, 150), rng.uniform(-10, 10, 50)])[:, None]
    one = STRUCTURES["full"].of([1.0], [[0.0]], [[[2.0]]])
    start = gmmx.BackgroundMixture.of(one, gmmx.UniformBackground([-10.0], [10.0]))
    gmm = FITTER.fit(x, start).gmm
    at = np.array([gmm.background_weight, gmm.means[0, 0], gmm.covariances[0, 0, 0]])

    def loss(v):
        density = (1 - v[0]) * scipy.stats.norm(v[1], np.sqrt(v[2])).pdf(x) + v[0] / 20
        return -np.log(density).sum()

    wanted = np.sqrt(np.diagonal(np.linalg.inv(hessian(loss, at, np.full(3, 1e-3)))))
    found = gmmx.standard_errors(gmm, x)
    errors = [found.background_weight, found.means[0, 0], found.covariances[0, 0, 0]]
    np.testing.assert_allclose(errors, wanted, rtol=1e-4)
    np.testing.assert_allclose(found.weights, found.background_weight, rtol=1e-9)
    assert "and a background of weight" in str(found)
    again = gmmx.bootstrap(gmm, x, 500, method="parametric").standard_errors()
    np.testing.assert_allclose(again.background_weight, found.background_weight, rtol=0.15)
    np.testing.assert_allclose(again.means, found.means, rtol=0.15)


def test_what_is_at_no_maximum(fitted, faithful):
    moved = jax.tree.map(lambda v: v + 0.02, fitted)
    with pytest.warns(gmmx.FitWarning, match="standard errors from the maximum"):
        gmmx.standard_errors(moved, faithful)
    equal = STRUCTURES["full"].of([0.5, 0.5], [[3.5, 71]] * 2, [np.cov(faithful.T)] * 2)
    with pytest.raises(ValueError, match="no maximum"):
        gmmx.standard_errors(equal, faithful)
    with pytest.raises(ValueError, match="method='robust'"):
        gmmx.standard_errors(fitted, faithful, method="robust")
    with pytest.raises(ValueError, match=r"take gmmx\.information"):
        jax.jit(lambda x: gmmx.standard_errors(fitted, x).means)(faithful)


def test_rows_as_measured(fitted, faithful):
    """Complete rows as `Data` have the errors of an array, and the sandwich of both."""
    found = gmmx.standard_errors(fitted, gmmx.Data(faithful), method="sandwich")
    wanted = gmmx.standard_errors(fitted, faithful, method="sandwich")
    np.testing.assert_allclose(found.covariance_matrix, wanted.covariance_matrix, rtol=1e-6)


# mclust 6, MclustBootstrap of VVV: the nonparametric bootstrap of 999 samples.
MCLUST = {"short": 0.590, "long": (0.0317, 0.468)}


@pytest.mark.parametrize("method", ["weighted", "nonparametric", "parametric"])
def test_bootstrap_of_old_faithful(method, fitted, faithful):
    """As in mclust, and as the curvature of the likelihood says; components keep their numbers."""
    found = gmmx.bootstrap(fitted, faithful, 999, method=method)
    assert len(found) == len(found.mixtures) == 999
    assert found.converged.all()
    errors = found.standard_errors()
    np.testing.assert_allclose(errors.means[1], MCLUST["long"], rtol=0.1)
    np.testing.assert_allclose(errors.means[0, 1], MCLUST["short"], rtol=0.1)
    kind = "information" if method == "parametric" else "sandwich"
    of_curvature = gmmx.standard_errors(fitted, faithful, method=kind)
    np.testing.assert_allclose(errors.means, of_curvature.means, rtol=0.1)
    np.testing.assert_allclose(errors.weights, of_curvature.weights, rtol=0.1)
    assert (np.asarray(found.mixtures.means[:, 0, 0]) < found.mixtures.means[:, 1, 0]).all()
    low, high = found.interval(0.95)
    np.testing.assert_allclose(high.means - low.means, 2 * 1.96 * errors.means, rtol=0.15)
    assert (np.asarray(low.weights) < fitted.weights).all()


def test_bootstrap_with_weights(fitted, faithful):
    """A row that counts twice is two rows: half of the rows, twice each, have larger errors."""
    half = gmmx.EMFitter(tol=1e-10, max_iter=999).fit(faithful[::2], fitted).gmm
    weights = np.where(np.arange(272) % 2, 0.0, 2.0)
    wanted = gmmx.standard_errors(half, faithful, weights=weights, method="sandwich")
    found = gmmx.bootstrap(half, faithful, 999, weights=weights)
    np.testing.assert_allclose(found.standard_errors().means, wanted.means, rtol=0.2)


def test_bootstrap_refuses(fitted, faithful):
    with pytest.raises(ValueError, match="method='jackknife'"):
        gmmx.bootstrap(fitted, faithful, method="jackknife")
    with pytest.raises(ValueError, match="Restarts"):
        gmmx.bootstrap(fitted, faithful, fitter=gmmx.Restarts(gmmx.EMFitter()))
    with pytest.raises(ValueError, match="cannot be drawn"):
        gmmx.bootstrap(fitted, gmmx.Data(faithful), method="parametric")
    with pytest.raises(ValueError, match="at least one"):
        gmmx.bootstrap(fitted, faithful, weights=np.full(272, 1e-3))


def test_the_ratio_test_rejects_one_group_of_two():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-2, 1, 50), rng.normal(2, 1, 50)])[:, None]
    found = gmmx.bootstrap_test(x, 1, "tied", n=39, n_init=2)
    (test,) = found.tests
    assert found.n_components == 2
    assert test.p_value == 1 / 40
    # log L of one component in closed form.
    one = scipy.stats.norm(x.mean(), x.std()).logpdf(x).sum()
    two = FITTER.fit(x, STRUCTURES["tied"].of([0.5, 0.5], [[-2.0], [2.0]], [[1.0]])).log_likelihood
    np.testing.assert_allclose(test.statistic, 2 * (100 * float(two) - one), rtol=1e-3)
    assert (test.replicates >= 0).all()
    assert (test.replicates < test.statistic).all()
    assert "1 against 2" in str(found)
    with pytest.raises(ValueError, match=r"gmmx\.select"):
        gmmx.bootstrap_test(gmmx.Data(x))
    with pytest.raises(ValueError, match="level=5"):
        gmmx.bootstrap_test(x, level=5)


def test_the_number_that_a_test_finds():
    """The first that is not rejected, or one more than all that are."""
    tests = [gmmx.RatioTest(k, 9.0, p, np.zeros(9), None) for k, p in ((1, 0.001), (2, 0.3))]
    assert gmmx.BootstrapTest(tuple(tests), 0.05).n_components == 2
    assert gmmx.BootstrapTest(tuple(tests[:1]), 0.05).n_components == 2
