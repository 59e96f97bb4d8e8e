"""Float32 on hard data, against float64; and both sides of the choice between ways."""

import dataclasses
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import gmmx
from gmmx import EMFitter, Status
from gmmx._engine.form import Form
from gmmx._engine.frame import Frame
from gmmx._engine.ladder import Ladder, reach
from gmmx._engine.packed import Packed

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


def is_packed(gmm, x):
    """Whether a density takes these rows packed, and may."""
    if Packed not in Ladder.of(gmm, len(x), products=1).ways:
        return False
    frame = Frame.of_model(gmm, turned=not type(gmm.structure).axis_aligned)
    far = reach(frame.apply(jnp.asarray(x)))
    return float(Packed.size(Form.of(gmm, frame), far)) <= 1


def fitted(x, gmm, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        try:
            return EMFitter(tol=1e-4, max_iter=300, **settings).fit(x, gmm)
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
        assert is_packed(single.gmm, x)
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
    gmm = structure.of(np.full(k, 1 / k), rng.normal(size=(k, d)), natural, np.float32)
    return gmm, gmm.sample(20_000, key=jax.random.key(1))


def mixed(structure, widths, k, d, n, dtype=np.float64):
    """A mixture whose components are of these widths, one after the other, and samples of it."""
    rng = np.random.default_rng(0)
    root = 0.3 * rng.normal(size=(k, d, d)) / np.sqrt(d) + np.eye(d)
    root *= np.resize(widths, k)[:, None, None]
    natural = structure.natural(root @ root.transpose(0, 2, 1))
    weights, means = rng.dirichlet(np.full(k, 5.0)), 3 * rng.normal(size=(k, d))
    gmm = structure.of(weights, means, natural, dtype)
    return gmm, gmm.sample(n, key=jax.random.key(1))


def exact_log_joint(structure, gmm, x):
    """log w_k N(x; μ_k, Σ_k) of the very leaves that float32 holds, in NumPy's float64."""
    gmm, x = doubled(gmm), np.asarray(x, np.float64)
    k, d = gmm.means.shape
    covariances = structure.dense(np.asarray(gmm.covariances), k, d)
    joint = []
    for weight, mean, covariance in zip(gmm.weights, gmm.means, covariances, strict=True):
        root = np.linalg.cholesky(covariance)
        y = scipy.linalg.solve_triangular(root, (x - np.asarray(mean)).T, lower=True)
        log_det = np.log(np.diagonal(root)).sum()
        joint.append(np.log(weight) - log_det - (d * np.log(2 * np.pi) + (y**2).sum(0)) / 2)
    return np.stack(joint, axis=1)


def holds_in_float32(structure, gmm, x):
    """The density to 1e-4 nats in the mean, and to 1e-2 at the worst."""
    exact = scipy.special.logsumexp(exact_log_joint(structure, gmm, x), axis=1)
    error = np.abs(np.asarray(gmm.log_prob(x), float) - exact)
    assert error.mean() < 1e-4
    assert error.max() < 1e-2


@pytest.mark.parametrize("ratio", [1, 0.1, 0.03, 0.01, 1e-3, 1e-4])
def test_both_sides_of_the_accuracy_gate(structure, ratio):
    gmm, x = narrow(structure, ratio)
    holds_in_float32(structure, gmm, x)
    # Packed where it is accurate, and only there.
    if ratio == 1 or ratio <= 1e-3:
        assert is_packed(gmm, x) == (ratio == 1)


# Narrow components among wide ones. A structure that shares its covariance has none.
SEPARABLE = ("full", "diag", "spherical")
# Which of 48 components are narrow.
PLACES = [(3,), (0, 47), (1, 2, 30, 40, 46)]


def few_narrow(structure, dtype, places, ratio=1e-4, k=48, d=8):
    """Components far narrower than the others at these places, and samples of all."""
    rng = np.random.default_rng(0)
    root = 0.3 * rng.normal(size=(k, d, d)) / np.sqrt(d) + np.eye(d)
    root[list(places)] *= ratio
    natural = structure.natural(root @ root.transpose(0, 2, 1))
    gmm = structure.of(np.full(k, 1 / k), 2 * rng.normal(size=(k, d)), natural, dtype)
    return gmm, gmm.sample(20_000, key=jax.random.key(1))


@pytest.mark.parametrize("places", PLACES, ids=len)
@pytest.mark.parametrize("name", SEPARABLE)
def test_few_narrow_components(structures, name, places):
    holds_in_float32(structures[name], *few_narrow(structures[name], np.float32, places))


def one_step(x, gmm, weights=None):
    """The result of a single step, with nothing added to variances."""
    with pytest.warns(gmmx.FitWarning):
        return EMFitter(max_iter=1, tol=0, reg_covar=0.0).fit(x, gmm, weights=weights)


def is_the_m_step(structure, gmm, x, weights=None):
    """A step is the M-step of the responsibilities, by NumPy."""
    result = one_step(x, gmm, weights)
    x, counts = np.asarray(x), np.ones(len(x)) if weights is None else np.asarray(weights)
    z = scipy.special.softmax(exact_log_joint(structure, gmm, x), axis=1) * counts[:, None]
    n = z.sum(axis=0)
    # About the means that the model had, so that nothing large cancels.
    apart = [x - mean for mean in np.asarray(gmm.means)]
    shifts = np.stack([z[:, k] @ a / n[k] for k, a in enumerate(apart)])
    scatter = [(z[:, k, None] * (a - shifts[k])).T @ (a - shifts[k]) for k, a in enumerate(apart)]
    wanted = structure.natural(np.stack(scatter) / n[:, None, None])
    np.testing.assert_allclose(result.gmm.weights, n / n.sum(), rtol=1e-9)
    np.testing.assert_allclose(result.gmm.means, gmm.means + shifts, rtol=1e-9, atol=1e-12)
    for own, one in zip(result.gmm.covariances, wanted, strict=True):
        np.testing.assert_allclose(own, one, rtol=0, atol=1e-9 * np.max(np.abs(one)))


@pytest.mark.parametrize("places", PLACES, ids=len)
@pytest.mark.parametrize("name", SEPARABLE)
def test_a_step_with_few_narrow_components(structures, name, places):
    structure = structures[name]
    is_the_m_step(structure, *few_narrow(structure, np.float64, places))


@pytest.mark.parametrize("name", SEPARABLE)
def test_a_step_with_narrow_components_by_the_dozen(structures, name):
    """In chunks, with weights."""
    structure = structures[name]
    gmm, x = mixed(structure, (1.0, 3e-3, 0.7, 1e-4), k=32, d=4, n=60_000)
    weights = np.random.default_rng(2).exponential(size=len(x))
    is_the_m_step(structure, gmm, x, weights)


@pytest.mark.parametrize("name", SEPARABLE)
def test_one_component_far_narrower_than_float32_tells(structures, name):
    """A packed distance would be rounding alone: S is 1e11."""
    structure = structures[name]
    gmm, x = mixed(structure, (1.0,) * 11 + (1e-5,), k=24, d=6, n=30_000, dtype=np.float32)
    assert not is_packed(gmm, x)
    holds_in_float32(structure, gmm, x)
    joint = exact_log_joint(structure, gmm, x)
    result = one_step(x, gmm)
    mean = scipy.special.logsumexp(joint, axis=1).mean()
    # In the frame of the fit a row is rounded to some hundredths of such a width.
    np.testing.assert_allclose(result.history[0], mean, atol=5e-4)
    counts = scipy.special.softmax(joint, axis=1).sum(axis=0)
    np.testing.assert_allclose(result.gmm.weights * len(x), counts, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", SEPARABLE)
def test_all_components_narrow_beside_two_groups_far_apart(structures, name):
    """And all of a group near each row."""
    rng = np.random.default_rng(0)
    k, d, n = 24, 4, 30_000
    groups = 100.0 * rng.integers(0, 2, size=(k, 1))
    structure = structures[name]
    natural = structure.natural(np.tile(np.eye(d), (k, 1, 1)))
    means = groups + rng.normal(size=(k, d))
    gmm = structure.of(np.full(k, 1 / k), means, natural, np.float32)
    x = gmm.sample(n, key=jax.random.key(1))
    assert not is_packed(gmm, x)
    fitter = EMFitter(max_iter=6, tol=0, reg_covar=1e-3)
    with pytest.warns(gmmx.FitWarning):
        single = fitter.fit(x, gmm)
    with pytest.warns(gmmx.FitWarning):
        exact = fitter.fit(np.asarray(x, np.float64), doubled(gmm))
    assert single.n_iter == exact.n_iter == 6
    np.testing.assert_allclose(single.history, exact.history, atol=1e-4)
    np.testing.assert_allclose(single.log_likelihood, exact.log_likelihood, atol=1e-4)


def test_joint_log_densities_are_exact_where_a_component_has_no_share(structures):
    gmm, x = mixed(structures["full"], (1.0, 1e-3), k=32, d=4, n=20_000, dtype=np.float32)
    exact = exact_log_joint(structures["full"], gmm, x)
    np.testing.assert_allclose(gmm.component_log_prob(x), exact, rtol=1e-5, atol=1e-3)


def test_a_batch_of_fits_of_narrow_and_of_wide_components(structures):
    """Of fits in one `vmap`, some with narrow components and some without."""
    gmm, x = mixed(structures["full"], (1.0, 1e-4), k=16, d=4, n=20_000)
    wide = dataclasses.replace(gmm, structure=structures["full"].mixture(16, 4).structure)
    assert is_packed(wide, x) and not is_packed(gmm, x)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), gmm, wide)
    fitter = EMFitter(max_iter=4, tol=0)
    found = jax.jit(jax.vmap(lambda start: fitter.fit(x, start)))(both)
    for i, start in enumerate((gmm, wide)):
        alone = jax.jit(lambda start: fitter.fit(x, start))(start)
        np.testing.assert_allclose(found.history[i], alone.history, rtol=1e-9)
        np.testing.assert_allclose(found.log_likelihood[i], alone.log_likelihood, rtol=1e-9)


@pytest.mark.parametrize("widths", [(1.0,), (1.0, 1e-3)], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", SEPARABLE)
def test_gradients_of_many_rows_are_those_of_few(structures, name, widths):
    """Of few rows each log-density is whitened."""
    gmm, x = mixed(structures[name], widths, k=16, d=3, n=18_000)
    parts = x.reshape(-1, 1000, 3)
    assert is_packed(gmm, x) == (widths == (1.0,)) and not is_packed(gmm, parts[0])
    slope = jax.jit(jax.grad(lambda gmm, x: gmm.log_prob(x).sum()))
    found = slope(gmm, x)
    wanted = jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(slope, (None, 0))(gmm, parts))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * np.max(np.abs(b)))


# Few far rows


def test_a_far_row_changes_no_other(structure):
    """Neither what the others are worth nor how fast they are computed, at any distance."""
    gmm, x = narrow(structure, 1)
    alone = np.asarray(gmm.log_prob(x))
    for distance in (1e2, 1e4, 1e6):
        far = np.append(x, np.full((1, x.shape[1]), distance, np.float32), axis=0)
        log_prob = np.asarray(gmm.log_prob(far))
        np.testing.assert_allclose(log_prob[:-1], alone, rtol=0, atol=1e-4)
        exact = scipy.special.logsumexp(exact_log_joint(structure, gmm, far[-1:]), axis=1)
        np.testing.assert_allclose(log_prob[-1:], exact, rtol=1e-5)
    # One far row among many does not set the way of all.
    few = np.append(x, np.full((1, x.shape[1]), 30.0, np.float32), axis=0)
    assert is_packed(gmm, x) and is_packed(gmm, few)


def test_a_far_row_in_a_fit(structure):
    """With no weight it changes nothing; with one, float32 fits as float64 does."""
    gmm, x = narrow(structure, 1)
    far = np.append(x, np.full((1, x.shape[1]), 1e5, np.float32), axis=0)
    weights = np.r_[np.ones(len(x)), 0.0].astype(np.float32)
    fitter = EMFitter(max_iter=5, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        alone, beside = fitter.fit(x, gmm), fitter.fit(far, gmm, weights=weights)
        # As far as the squares of float32 still hold the other rows' widths beside it.
        far[-1] = 1e3
        single = fitter.fit(far, gmm)
        double = fitter.fit(far.astype(np.float64), doubled(gmm))
    np.testing.assert_allclose(beside.history, alone.history, atol=1e-4)
    np.testing.assert_allclose(beside.gmm.means, alone.gmm.means, atol=1e-3)
    np.testing.assert_allclose(single.history, double.history, rtol=1e-4)


def test_few_components_in_many_features(structure):
    """Where packing is not worth it and one product whitens for all."""
    gmm, x = narrow(structure, 0.05, k=4, d=32)
    holds_in_float32(structure, gmm, x)


def test_a_fit_changes_its_way(caplog):
    """A fit that begins wide is packed, and is whitened once its components have narrowed."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(16, 8))
    x = (centres[rng.integers(0, 16, 20_000)] + 1e-3 * rng.normal(size=(20_000, 8))).astype("f4")
    wide = gmmx.GaussianMixture.from_parameters(
        np.full(16, 1 / 16, "f4"), (centres + 0.05).astype("f4"), np.ones((16, 8), "f4"), "diag"
    )
    assert is_packed(wide, x)
    seen = []
    with caplog.at_level(logging.DEBUG, "gmmx"):
        result = EMFitter(reg_covar=0.0).fit(x, wide, callback=lambda s: seen.append(int(s.n_iter)))
    assert result.converged and not is_packed(result.gmm, x)
    changes = [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG]
    assert len(changes) == 1 and "whitened from here on" in changes[0]
    exact = EMFitter(reg_covar=0.0).fit(x.astype(float), doubled(wide))
    assert abs(doubled(result.gmm).score(x.astype(float)) - exact.log_likelihood) < 1e-3
    # A step that was made again is counted once.
    assert len(result.history) == result.n_iter and np.isfinite(result.history).all()
    assert seen == sorted(set(seen)) and seen[-1] == result.n_iter
