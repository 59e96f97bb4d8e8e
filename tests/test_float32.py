"""Float32 on hard data, against float64; and both sides of the choice between ways."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import gmmx
from gmmx import EMFitter, Status

N, D, K = 400, 4, 3


def clusters(n=N, d=D, k=K, seed=0):
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(k, d))
    # Widths above one: at an offset of 1e6 float32 holds steps of 1/16, and a mean no better.
    roots = 0.5 * rng.normal(size=(k, d, d)) / np.sqrt(d) + 1.5 * np.eye(d)
    labels = rng.integers(0, k, size=n)
    return centres[labels] + np.einsum("nij,nj->ni", roots[labels], rng.normal(size=(n, d)))


def conditioned(number):
    """Data whose covariance has this condition number, in axes that are not the features'."""
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(D, D)))
    white = rng.normal(size=(N, D)) + 2 * rng.integers(0, 2, size=(N, 1))
    return white * np.geomspace(1, number**-0.5, D) @ rotation.T


def with_constant():
    x = clusters()
    x[:, 2] = 7.3
    return x


def with_lone_point():
    return np.concatenate([clusters(N - 1, k=K - 1), np.full((1, D), 60.0)])


HARD = {
    "offset 1e4": clusters() + 1e4,
    "offset 1e6": clusters() + 1e6,
    "scales 1e-4 to 1e4": clusters() * np.geomspace(1e-4, 1e4, D),
    "all small": clusters() * 1e-4,
    "all large": clusters() * 1e4,
    "condition 1e4": conditioned(1e4),
    "condition 1e6": conditioned(1e6),
    "condition 1e6, offset 1e4": conditioned(1e6) + 1e4,
    "a constant column": with_constant(),
    "a constant column, offset 1e6": with_constant() + 1e6,
    "duplicate rows": np.repeat(clusters(40), 10, axis=0),
    "a component with one point": with_lone_point(),
    "large and packed": clusters(20_000, 8, 16),
    "large, offset 1e6": clusters(20_000, 8, 16) + 1e6,
    "one feature": clusters(d=1),
    "one feature, offset 1e6": clusters(d=1) + 1e6,
    "as many components as samples": clusters(6),
}
COMPONENTS = {"large and packed": 16, "large, offset 1e6": 16, "as many components as samples": 6}
# All structures on the shapes that most share; of the others some, since each is compiled.
EVERY = ("full", "tied", "diag", "spherical")
SOME = {
    "large and packed": ("full", "diag"),
    "large, offset 1e6": ("full", "diag"),
    "one feature": ("full", "tied"),
    "one feature, offset 1e6": ("full", "tied"),
    "as many components as samples": ("full", "spherical"),
}
CASES = [(name, which) for name in HARD for which in SOME.get(name, EVERY)]
# Of the rest no honest fit fails: float32 holds their widths, so it has to succeed.
MAY_FAIL = {"condition 1e6, offset 1e4", "a constant column, offset 1e6"}
WRONG = (
    Status.singular_covariance, Status.non_finite, Status.likelihood_decreased,
    Status.empty_component,
)  # fmt: skip


def fitted(x, gmm, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        try:
            return EMFitter(tol=1e-5, max_iter=300, **settings).fit(x, gmm)
        except gmmx.FitError as error:
            return error.result


def doubled(tree):
    return jax.tree.map(lambda leaf: leaf.astype(np.float64), tree)


@pytest.mark.parametrize("name, covariance_type", CASES)
def test_hard_data(name, covariance_type):
    x = HARD[name].astype(np.float32)
    exact = x.astype(np.float64)
    start = gmmx.initialize(x, COMPONENTS.get(name, K), covariance_type)
    single, double = fitted(x, start), fitted(exact, doubled(start))
    assert single.gmm.dtype == np.float32 and double.gmm.dtype == np.float64
    wrong = any(bool(single.status == status) for status in WRONG)
    assert not (single.converged and wrong)
    assert np.isfinite(single.log_likelihood)
    if name == "large and packed":
        assert float(single.packed) == 1
    if wrong:
        assert name in MAY_FAIL, Status[single.status]
        return
    # The model that float32 gave, judged in float64: as good, or said to be rounded, which only
    # data at 1e6 may be.
    value = float(doubled(single.gmm).score(exact))
    if not (name.endswith("offset 1e6") and single.status == Status.means_rounded):
        assert value > float(double.log_likelihood) - 1e-3
    # And it knows what it is worth itself.
    assert abs(float(single.log_likelihood) - value) < 1e-3 * max(1, abs(value))


def test_small_scales_are_not_regularised_away():
    """With nothing added to the variances, units do not matter in float32 either."""
    x = clusters().astype(np.float32)
    values = []
    for scale in (1.0, 2.0**-14, 2.0**14):
        scaled = x * np.float32(scale)
        start = gmmx.initialize(scaled, K, reg_covar=0.0)
        result = fitted(scaled, start, reg_covar=0.0)
        values.append(float(result.log_likelihood) + D * np.log(scale))
    np.testing.assert_allclose(values, values[0], atol=1e-4)


def narrow(structure, ratio, k=16, d=8):
    """Components whose widths are this part of the spread of their means, and their samples."""
    rng = np.random.default_rng(0)
    root = 0.3 * rng.normal(size=(k, d, d)) / np.sqrt(d) + np.eye(d)
    natural = structure.natural(ratio**2 * root @ root.transpose(0, 2, 1))
    means = rng.normal(size=(k, d))
    parameters = (np.full(k, 1 / k), means, natural)
    gmm = gmmx.GaussianMixture.from_parameters(
        *(value.astype(np.float32) for value in parameters), structure.name
    )
    return gmm, gmm.sample(20_000, key=jax.random.key(1))


def exact_log_prob(structure, gmm, x):
    """log p(x) of the very leaves that float32 holds, in NumPy's float64."""
    gmm, x = doubled(gmm), np.asarray(x, np.float64)
    k, d = gmm.means.shape
    covariances = structure.dense(np.asarray(gmm.covariances), k, d)
    joint = []
    for weight, mean, covariance in zip(gmm.weights, gmm.means, covariances, strict=True):
        root = np.linalg.cholesky(covariance)
        y = scipy.linalg.solve_triangular(root, (x - np.asarray(mean)).T, lower=True)
        log_det = np.log(np.diagonal(root)).sum()
        joint.append(np.log(weight) - log_det - (d * np.log(2 * np.pi) + (y**2).sum(0)) / 2)
    return scipy.special.logsumexp(joint, axis=0)


@pytest.mark.parametrize("ratio", [1, 0.1, 0.03, 0.01, 1e-3, 1e-4])
def test_both_sides_of_the_accuracy_gate(structure, ratio):
    gmm, x = narrow(structure, ratio)
    share = gmmx._density.packed_share(gmm, x)
    error = np.abs(np.asarray(gmm.log_prob(x), float) - exact_log_prob(structure, gmm, x))
    assert error.mean() < 1e-4
    assert error.max() < 1e-2
    # The fast way where it is accurate, and only there.
    assert 0 <= share <= 1
    if ratio == 1:
        assert share == 1
    if ratio <= 1e-3:
        assert share == 0


def few_narrow(structure, dtype, places, ratio=1e-4, k=48, d=8):
    """Components far narrower than the others at these places, and samples of all."""
    rng = np.random.default_rng(0)
    root = 0.3 * rng.normal(size=(k, d, d)) / np.sqrt(d) + np.eye(d)
    root[list(places)] *= ratio
    natural = structure.natural(root @ root.transpose(0, 2, 1))
    parameters = (np.full(k, 1 / k), 2 * rng.normal(size=(k, d)), natural)
    gmm = gmmx.GaussianMixture.from_parameters(
        *(value.astype(dtype) for value in parameters), structure.name
    )
    return gmm, gmm.sample(20_000, key=jax.random.key(1))


SEPARABLE = ("full", "diag", "spherical")
# Of 48 components six may be narrow, and there are programs for one, four and six.
PLACES = [(3,), (0, 47), (1, 2, 30, 40, 46)]


@pytest.mark.parametrize("places", PLACES, ids=len)
@pytest.mark.parametrize("name", SEPARABLE)
def test_few_narrow_components_do_not_slow_the_others(structures, name, places):
    structure = structures[name]
    gmm, x = few_narrow(structure, np.float32, places)
    assert gmmx._density.packed_share(gmm, x) == 1
    error = np.abs(np.asarray(gmm.log_prob(x), float) - exact_log_prob(structure, gmm, x))
    assert error.mean() < 1e-4
    assert error.max() < 1e-2


@pytest.mark.parametrize("places", PLACES, ids=len)
@pytest.mark.parametrize("name", SEPARABLE)
def test_a_step_with_few_narrow_components(structures, name, places):
    """Their moments are whitened, the others' packed: the M-step of the responsibilities."""
    structure = structures[name]
    gmm, x = few_narrow(structure, np.float64, places)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        result = EMFitter(max_iter=1, reg_covar=0.0).fit(x, gmm)
    assert result.packed == 1
    z = gmm.predict_proba(x)
    expected = gmmx.GaussianMixture.from_responsibilities(x, z, structure.name, reg_covar=0.0)
    np.testing.assert_allclose(result.gmm.weights, expected.weights, rtol=1e-11)
    np.testing.assert_allclose(result.gmm.means, expected.means, rtol=1e-9, atol=1e-12)
    for own, wanted in zip(result.gmm.covariances, expected.covariances, strict=True):
        np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-9 * np.max(np.abs(wanted)))


def test_few_components_in_many_features(structure):
    """Where packing is not worth it and one product whitens for all."""
    gmm, x = narrow(structure, 0.05, k=4, d=32)
    error = np.abs(np.asarray(gmm.log_prob(x), float) - exact_log_prob(structure, gmm, x))
    assert error.mean() < 1e-4
    assert error.max() < 1e-2


def test_a_fit_changes_its_way():
    """A fit that begins wide is packed, and is whitened once its components have narrowed."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(16, 8))
    x = (centres[rng.integers(0, 16, 20_000)] + 1e-3 * rng.normal(size=(20_000, 8))).astype("f4")
    wide = gmmx.GaussianMixture.from_parameters(
        np.full(16, 1 / 16, "f4"), (centres + 0.05).astype("f4"), np.ones((16, 8), "f4"), "diag"
    )
    assert gmmx._density.packed_share(wide, jnp.asarray(x)) == 1
    seen = []
    result = EMFitter(reg_covar=0.0).fit(x, wide, callback=lambda s: seen.append(int(s.n_iter)))
    assert result.converged and result.packed == 0
    exact = EMFitter(reg_covar=0.0).fit(x.astype(float), doubled(wide))
    assert abs(doubled(result.gmm).score(x.astype(float)) - exact.log_likelihood) < 1e-3
    # A step that was made again is counted once.
    assert len(result.history) == result.n_iter and np.isfinite(result.history).all()
