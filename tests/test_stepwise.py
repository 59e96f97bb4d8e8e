"""Stepwise EM: moments that move with the model, batches, and rows that are held out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmx
from gmmx import EMFitter, FitError, StepwiseEM
from gmmx._engine.form import Form
from gmmx._engine.ladder import Ladder
from gmmx._engine.moments import transported
from gmmx._engine.rows import Rows

K, D = 2, 2

pytestmark = pytest.mark.filterwarnings("ignore::gmmx.FitWarning")


def draws(n, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    label = rng.random(n) < 0.3
    x = rng.normal(size=(n, D)) @ [[1, 0.6], [0, 0.5]] + offset
    return x + np.where(label[:, None], 2.5, 0)


@pytest.fixture(scope="module")
def x():
    return draws(40_000)


@pytest.fixture(scope="module")
def start(x):
    return gmmx.initialize(x[:2000], K)


def test_moments_about_another_model(structure):
    """As if that model had been subtracted from the rows in the first place."""
    a, b = structure.mixture(3, D), structure.mixture(3, D, seed=1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, D))

    @jax.jit
    def taken(x):
        ladder = Ladder.of(a, len(x), 2)
        rows = Rows.of(x, None, ladder, a)
        form = Form.of(a, rows.frame)
        moments, _ = rows.expect(form, None, ladder, jnp.int32(0))
        return transported(moments, a, form, b, rows.frame)

    found = taken(x)
    z = np.asarray(a.predict_proba(x))
    factors = np.asarray(b.dense_factors())
    y = np.einsum("kij,nkj->nki", factors, x[:, None] - np.asarray(b.means))
    scatter = np.einsum("nk,nki,nkj->kij", z, y, y)
    if structure.name in ("tied",):
        scatter = scatter.sum(0, keepdims=True)
    if type(a.structure).axis_aligned:
        scatter = np.diagonal(scatter, axis1=1, axis2=2)
    np.testing.assert_allclose(found.scatter, scatter, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.weight, z.sum(0), rtol=1e-10)


def test_the_first_step_is_one_of_em(x, start):
    some = x[:1000]
    weights = np.random.default_rng(1).exponential(size=1000)
    trainer = StepwiseEM(offset=0)
    state = trainer.step(trainer.init(some, start, weights=weights), some, weights=weights)
    wanted = EMFitter(max_iter=1).fit(some, start, weights=weights)
    for gmm in (state.gmm, trainer.model(state)):
        for a, b in zip(jax.tree.leaves(gmm), jax.tree.leaves(wanted.gmm), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(state.log_likelihood, wanted.history[0], rtol=1e-9)


def test_it_ends_near_em(x, start):
    test = draws(20_000, seed=9)
    found = StepwiseEM(batch_size=512, max_passes=3, tol=0).fit(x, start)
    wanted = EMFitter(max_iter=50, tol=0).fit(x, start)
    assert float(found.gmm.score(test)) > float(wanted.gmm.score(test)) - 5e-3
    assert float(start.score(test)) < float(found.gmm.score(test)) - 5e-3


def test_held_out_rows_end_the_fit(x, start):
    result = StepwiseEM(batch_size=512, max_passes=50, every=8, patience=3).fit(x, start)
    assert bool(result.converged)
    assert int(result.n_iter) < 50 * len(x) // 512
    assert float(result.log_likelihood) == pytest.approx(float(result.history.max()))
    rows = x[:262_144:16]
    np.testing.assert_allclose(result.log_likelihood, result.gmm.score(rows), rtol=1e-10)


def test_a_stream_is_read_once(x, start):
    """Blocks of any sizes are the array; weights of one too."""
    trainer = StepwiseEM(batch_size=512, max_passes=1)
    wanted = trainer.fit(x, start)
    found = trainer.fit(gmmx.rows_from(iter(np.array_split(x, 7))), start)
    np.testing.assert_array_equal(found.history, wanted.history)
    assert gmmx.Status[found.status] == gmmx.Status[gmmx.Status.passes_ended]


def test_float32_far_from_zero():
    x = draws(20_000, offset=1e3).astype(np.float32)
    start = gmmx.initialize(x[:2000], K)
    trainer = StepwiseEM(batch_size=512, max_passes=2, tol=0)
    found, near = trainer.fit(x, start), trainer.fit(draws(20_000), gmmx.initialize(
        draws(20_000)[:2000], K))  # fmt: skip
    assert found.gmm.dtype == np.float32
    assert float(found.log_likelihood) == pytest.approx(float(near.log_likelihood), abs=5e-3)


def test_a_bad_row_keeps_the_model(x, start):
    late = x.copy()
    late[30_000, 0] = np.nan
    with pytest.raises(FitError, match=r"array 0 holds NaN.* in row 30000") as caught:
        StepwiseEM(batch_size=512, every=8).fit(late, start)
    assert np.isfinite(np.asarray(caught.value.result.gmm.means)).all()
    late[0, 0] = np.nan
    with pytest.raises(ValueError, match="in row 0"):
        StepwiseEM(batch_size=512).fit(late, start)
    with pytest.raises(ValueError, match=r"decay=0.3; expected above 0.5"):
        StepwiseEM(decay=0.3)


def test_partial_fit(x):
    from gmmx.sklearn import GaussianMixture

    estimator = GaussianMixture(K, random_state=0)
    for batch in np.array_split(x, 40):
        estimator.partial_fit(batch)
    whole = GaussianMixture(K, random_state=0, tol=1e-6).fit(x)
    test = draws(20_000, seed=9)
    assert estimator.score(test) > whole.score(test) - 5e-3
    assert estimator.n_iter_ == len(estimator.lower_bounds_) == 40
    with pytest.raises(ValueError, match="features"):
        estimator.partial_fit(x[:, :1])
    assert not hasattr(estimator.fit(x[:500]), "_stepwise")
