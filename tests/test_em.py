"""Expectation–maximisation: what holds at every step and how fits end."""

import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies

import gmmx
from gmmx import EMFitter, Status
from gmmx._engine.centred import Centred
from gmmx._engine.form import Form
from gmmx._engine.ladder import Ladder
from gmmx._engine.moments import maximise
from gmmx._engine.packed import Packed
from gmmx._engine.rows import Rows
from gmmx._engine.whitened import Whitened

K, D, N = 3, 2, 60


def ended(fitter, *args, **kwargs):
    """The result of a fit that may not converge, or may fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        try:
            return fitter.fit(*args, **kwargs)
        except gmmx.FitError as error:
            return error.result


def leaves_equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def assert_same_leaves(found, wanted, rtol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@settings(max_examples=40)
@given(
    seed=strategies.integers(0, 2**31),
    tail=strategies.sampled_from([2.0, 5.0, np.inf]),
    scale=strategies.sampled_from([1e-3, 1.0, 1e3]),
    weighted=strategies.booleans(),
)
def test_the_likelihood_never_falls(structure, seed, tail, scale, weighted):
    rng = np.random.default_rng(seed)
    x = rng.standard_t(tail, size=(N, D)) if np.isfinite(tail) else rng.normal(size=(N, D))
    x = x + 2 * rng.integers(0, 3, size=(N, 1))
    x *= scale * np.array([1.0, 10.0])
    weights = rng.exponential(size=N) if weighted else None
    responsibilities = rng.dirichlet(np.ones(K), size=N)
    gmm = gmmx.GaussianMixture.from_responsibilities(
        x, responsibilities, structure.name, reg_covar=0
    )
    result = ended(EMFitter(tol=0, max_iter=40, reg_covar=0), x, gmm, weights=weights)
    # The likelihood of the model that came out is the end of its own trace.
    trace = np.append(result.history, result.log_likelihood)
    assert np.isfinite(trace).all()
    rising = np.diff(trace) >= -1e-11 * np.maximum(1, np.abs(trace[1:]))
    # A component that has collapsed onto two points is singular but for rounding, and its
    # determinant is rounding as well. That fall is not hidden: the fit says so.
    dense = structure.dense(np.asarray(result.gmm.covariances), K, D)
    collapsed = np.linalg.cond(dense).max() > 1e10
    assert rising.all() or (collapsed and result.status != Status.max_steps_reached)


def test_a_large_fit_never_falls(structure, caplog):
    """The same where moments are packed, in float32."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 4)) + 3 * rng.integers(0, 4, size=(20_000, 1))
    x = x.astype(np.float32)
    gmm = gmmx.initialize(x, 16, structure.name, method="random")
    assert Ladder.of(gmm, len(x), products=2).ways[0] is Packed
    with caplog.at_level(logging.DEBUG, "gmmx"):
        result = ended(EMFitter(tol=0, max_iter=30, reg_covar=0), x, gmm)
    assert not [r for r in caplog.records if r.levelno == logging.DEBUG], "not packed to the end"
    assert (np.diff(result.history) >= -1e2 * np.finfo(np.float32).eps).all()


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_integer_weights_are_duplicated_rows(blobs, covariance_type):
    times = np.random.default_rng(0).integers(0, 4, size=len(blobs))
    gmm = gmmx.initialize(blobs, K, covariance_type)
    fitter = EMFitter(tol=1e-10, max_iter=500)
    weighted = fitter.fit(blobs, gmm, weights=times)
    repeated = fitter.fit(np.repeat(blobs, times, axis=0), gmm)
    np.testing.assert_allclose(weighted.log_likelihood, repeated.log_likelihood, rtol=1e-10)
    for a, b in zip(jax.tree.leaves(weighted.gmm), jax.tree.leaves(repeated.gmm), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)
    # Only the ratios of weights matter.
    scaled = fitter.fit(blobs, gmm, weights=times * 1e-3)
    np.testing.assert_allclose(scaled.log_likelihood, weighted.log_likelihood, rtol=1e-10)


@pytest.mark.parametrize(
    "frozen, covariance_type",
    [
        ("weights", "full"),
        ("means", "full"),
        ("covariances", "full"),
        ("covariances", "tied"),
        ("covariances", "diag"),
        ("covariances", "spherical"),
        (("means", "covariances"), "tied"),
        (("weights", "means"), "diag"),
    ],
)
def test_frozen_leaves_stay(blobs, frozen, covariance_type):
    gmm = gmmx.initialize(blobs, K, covariance_type, method="random")
    result = ended(EMFitter(tol=1e-6, max_iter=50, frozen=frozen), blobs, gmm)
    parts = {"weights": "logits", "means": "means", "covariances": "structure"}
    for name, leaf in parts.items():
        kept = leaves_equal(getattr(gmm, leaf), getattr(result.gmm, leaf))
        assert kept == (name in np.atleast_1d(frozen)), name
    assert (np.diff(result.history) >= -1e-9).all()
    assert result.log_likelihood > gmm.score(blobs)


def test_convergence_on_the_last_step_is_success(blobs):
    gmm = gmmx.initialize(blobs, K)
    free = EMFitter().fit(blobs, gmm)
    last = EMFitter(max_iter=int(free.n_iter)).fit(blobs, gmm)
    assert last.converged and last.status == Status.converged
    assert len(free.history) == free.n_iter


# Few components in many features are not worth packing for the full structure.
@pytest.mark.parametrize("k, d, weighted", [(4, 4, True), (2, 12, False)])
def test_every_way_takes_the_same_moments(structure, k, d, weighted):
    """Whitened, centred or packed, of rows that are kept or made in each step."""
    n, rng = 40_009, np.random.default_rng(3)  # a length that its chunks do not divide
    gmm, x = structure.mixture(k, d), jnp.asarray(rng.normal(size=(n, d)))
    weights = jnp.asarray(rng.exponential(size=n)) if weighted else None
    ladder = Ladder.of(gmm, n, products=2)
    flat = type(gmm.structure).axis_aligned
    slower = (Whitened,) if flat else (Centred, Whitened)
    assert ladder.ways == (slower if structure.name == "full" and d == 12 else (Packed, *slower))

    @jax.jit
    def by_all(gmm, x, weights):
        kept, made = (Rows.of(x, weights, ladder, gmm, keep=keep) for keep in (True, False))
        assert (kept.x, made.kept) == (None, None) and kept.per_chunk < n and n % kept.per_chunk
        form = Form.of(gmm, kept.frame)
        moments, sizes, models = [], [], []
        for way in range(len(ladder.ways)):
            for rows in (kept, made):
                only = ladder.only(way)
                one, size = rows.expect(form, weights, only, jnp.asarray(way, jnp.int32))
                moments.append(one)
                sizes.append(size)
            # Rows of a frame and of chunks of its own, as a pass that begins with this way has.
            own = Rows.of(x, weights, only, gmm)
            own_form = Form.of(gmm, own.frame)
            one, _ = own.expect(own_form, weights, only, jnp.asarray(way, jnp.int32))
            models.append(maximise(gmm, own_form, one, own.frame, jnp.full(d, 1e-3)))
        return moments, sizes, models

    moments, sizes, models = by_all(gmm, x, weights)
    assert max(sizes) <= 1
    for kept, made in zip(moments[::2], moments[1::2], strict=True):
        assert_same_leaves(kept, made, rtol=1e-12)
    for other in moments[1:]:
        assert_same_leaves(other, moments[0], rtol=1e-11)
    for other in models[1:]:
        assert_same_leaves(other, models[0], rtol=1e-11)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize(
    "fitter", [gmmx.GradientFitter(), gmmx.Restarts(gmmx.GradientFitter(), n_init=2)]
)
def test_the_data_are_not_copied(blobs, fitter):
    """Where no rows are filled in; EM keeps them in a frame of its own, up to a limit."""
    x, gmm, alive = jnp.asarray(blobs[:256]), gmmx.initialize(blobs, 3), []

    def look(state):
        alive.append(sum(array.shape == x.shape for array in jax.live_arrays()))
        return True

    before = sum(array.shape == x.shape for array in jax.live_arrays())
    ended(fitter, x, gmm, callback=look)
    assert alive == [before] and before > 0


def test_large_data_are_not_kept_twice():
    """Nor by EM, where the rows in its frame would take more than 128 MB."""
    n, d = 2**20 + 2**17, 32
    x = jnp.asarray(np.tile(np.random.default_rng(0).normal(size=(n // 128, d)), (128, 1)), "f4")
    gmm, alive = gmmx.GaussianMixture.create(2, d, "diag", dtype=np.float32), []

    def look(state):
        alive.append(sum(array.nbytes for array in jax.live_arrays()))
        return True

    before = sum(array.nbytes for array in jax.live_arrays())
    ended(EMFitter(), x, gmm, callback=look)
    assert len(alive) == 1 and alive[0] - before < x.nbytes / 10


def test_too_few_steps_warn(blobs):
    gmm = gmmx.initialize(blobs, K, method="random")
    with pytest.warns(gmmx.FitWarning, match="max_iter"):
        result = EMFitter(max_iter=2).fit(blobs, gmm)
    assert result.status == Status.max_steps_reached
    assert not result.converged and result.n_iter == 2


def test_the_result_speaks_of_its_own_model(structure, blobs):
    result = EMFitter().fit(blobs, gmmx.initialize(blobs, K, structure.name))
    np.testing.assert_allclose(result.log_likelihood, result.gmm.score(blobs), rtol=1e-12)
    weights = np.linspace(0.5, 1.5, len(blobs))
    weighted = EMFitter().fit(blobs, gmmx.initialize(blobs, K, structure.name), weights=weights)
    mean = np.average(weighted.gmm.log_prob(blobs), weights=weights)
    np.testing.assert_allclose(weighted.log_likelihood, mean, rtol=1e-12)


def test_an_empty_component_is_named(structure, blobs):
    weights, _, covariances = structure.parameters(K, 3)
    means = np.array([blobs.mean(0), blobs[0], [1e6, 1e6, 1e6]])
    gmm = gmmx.GaussianMixture.from_parameters(weights, means, covariances, structure.name)
    with pytest.warns(gmmx.FitWarning, match="lost all its samples"):
        result = EMFitter(max_iter=200).fit(blobs, gmm)
    assert result.status == Status.empty_component
    assert result.gmm.weights[2] == 0
    assert np.isfinite(result.gmm.log_prob(blobs)).all()


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
def test_a_collapse_loses_nothing_and_is_named(blobs, covariance_type):
    """A component on equal points, with nothing added to its variances."""
    x = np.concatenate([blobs, np.full((20, 3), 50.0)])
    gmm = gmmx.initialize(x, 4, covariance_type)
    with pytest.warns(gmmx.FitWarning, match="no cluster"):
        result = EMFitter(reg_covar=0).fit(x, gmm)
    assert result.converged and result.status == Status.spurious_component
    alone = int(np.argmax(result.gmm.means[:, 0]))
    np.testing.assert_array_equal(np.flatnonzero(result.spurious), [alone])
    np.testing.assert_allclose(result.gmm.means[alone], 50)
    # The other components are those of the other samples.
    rest = EMFitter(reg_covar=0).fit(blobs, gmmx.initialize(blobs, 3, covariance_type))
    means = np.delete(np.asarray(result.gmm.means), alone, axis=0)
    order, wanted = np.argsort(means[:, 0]), np.sort(np.asarray(rest.gmm.means), axis=0)
    np.testing.assert_allclose(means[order][:, 0], wanted[:, 0], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_components_that_collapse_do_not_end_a_fit(dtype):
    """A start far from the data, whose components hold a few samples each in many dimensions."""
    x = np.random.default_rng(0).normal(size=(4000, 16)).astype(dtype)
    gmm = gmmx.GaussianMixture.create(32, 16, dtype=dtype)
    with pytest.warns(gmmx.FitWarning):
        result = EMFitter(max_iter=30).fit(x, gmm)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.gmm.structure))
    assert np.asarray(result.history[-1]) > np.asarray(result.history[0])
    few = np.asarray(result.gmm.weights) * len(x) < 16
    assert np.all(np.asarray(result.spurious)[few & (np.asarray(result.gmm.weights) > 0)])


def test_the_floor_is_a_part_of_the_variances(blobs):
    """In any units; or it is what the user gives."""
    units = np.array([1e-6, 1.0, 1e5])
    for reg_covar in (1e-2, 0.3 * units**2):
        start = gmmx.initialize(blobs * units, 1, reg_covar=reg_covar)
        result = EMFitter(reg_covar=reg_covar).fit(blobs * units, start)
        floor = reg_covar * (blobs * units).var(axis=0) if np.ndim(reg_covar) == 0 else reg_covar
        wanted = np.cov((blobs * units).T, ddof=0) + np.diag(floor)
        for gmm in (start, result.gmm):
            np.testing.assert_allclose(gmm.covariances[0], wanted, rtol=1e-10)
        np.testing.assert_allclose(result.floor, floor, rtol=1e-12)


def test_a_floor_of_another_number_of_features_is_refused(blobs):
    with pytest.raises(ValueError, match="one variance for each feature"):
        EMFitter(reg_covar=np.ones(2)).fit(blobs, gmmx.initialize(blobs, 2))


def test_a_start_of_nan_raises(blobs):
    gmm = gmmx.initialize(blobs, K)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, gmm)
    with pytest.raises(gmmx.FitError, match="NaN") as error:
        EMFitter().fit(blobs, broken)
    assert error.value.result.status == Status.non_finite
    assert not error.value.result.converged


def test_statuses_are_data_under_a_transformation(blobs):
    gmm = gmmx.initialize(blobs, K)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, gmm)
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), gmm, broken)
    results = jax.vmap(lambda gmm: EMFitter().fit(blobs, gmm))(starts)
    one, other = (jax.tree.map(lambda leaf, i=i: leaf[i], results.status) for i in (0, 1))
    assert one == Status.converged and other == Status.non_finite
    np.testing.assert_array_equal(results.converged, [True, False])


def test_fit_under_jit_is_the_eager_fit(structure, blobs):
    x = blobs.astype(np.float32)
    gmm = gmmx.initialize(x, K, structure.name, method="random_from_data")
    # So many steps, since a tolerance may be met a step apart where rounding decides.
    fitter = EMFitter(tol=0, max_iter=15)
    eager = ended(fitter, x, gmm)
    traced = jax.jit(lambda x, gmm: EMFitter(tol=1e-3, max_iter=200).fit(x, gmm))(x, gmm)
    assert traced.history.shape == (200,)
    n = int(traced.n_iter)
    assert n < 200 and np.isneginf(traced.history[n:]).all()
    traced = jax.jit(lambda x, gmm: fitter.fit(x, gmm))(x, gmm)
    assert traced.n_iter == eager.n_iter == 15
    n = 15
    scale = 1e2 * np.finfo(x.dtype).eps
    np.testing.assert_allclose(traced.history[:n], eager.history, rtol=scale)
    for a, b in zip(jax.tree.leaves(traced.gmm), jax.tree.leaves(eager.gmm), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e2 * scale, atol=1e2 * scale)
    assert {leaf.dtype for leaf in jax.tree.leaves(eager.gmm)} == {x.dtype}
