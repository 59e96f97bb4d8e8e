"""Rows that are read in blocks: a fit to a source is the fit to the array."""

import jax
import numpy as np
import polars as pl
import pytest

import gmmx
from gmmx import EMFitter, FitError, GradientFitter, Restarts
from gmmx._fit import passes
from gmmx._sources.survey import Reservoir, survey

N, D, K = 3000, 3, 2

pytestmark = pytest.mark.filterwarnings("ignore::gmmx.FitWarning")


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, D)) * [1, 2, 5] + 3 * rng.integers(0, K, size=(N, 1)) + 100


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(1).exponential(size=N)


@pytest.fixture(scope="module")
def start(x):
    return gmmx.initialize(x, K)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 256 rows: a pass takes twelve."""
    monkeypatch.setattr(passes, "_CPU_BYTES", 2**10)


def parts(values, n=20, seed=2):
    """The rows in so many files of uneven lengths."""
    ends = np.random.default_rng(seed).choice(np.arange(1, len(values)), n - 1, replace=False)
    return np.split(values, np.sort(ends))


def saved(folder, values, name="part"):
    for i, part in enumerate(parts(values)):
        np.save(folder / f"{name}-{i:02}.npy", part)
    return folder / f"{name}-*.npy"


def close(a, b, tol=1e-10):
    """The same result: mixture and trace."""
    assert int(a.n_iter) == int(b.n_iter)
    np.testing.assert_allclose(a.history, b.history, rtol=tol, atol=tol)
    for p, q in zip(jax.tree.leaves(a.gmm), jax.tree.leaves(b.gmm), strict=True):
        np.testing.assert_allclose(p, q, rtol=tol, atol=tol)


# Fits


@pytest.mark.parametrize("name", ["full", "tied", "diag", "spherical", "EVI"])
def test_files_are_the_array(tmp_path, small_blocks, x, weights, name):
    start = gmmx.initialize(x, K, name, method="random")
    files = gmmx.rows_from(saved(tmp_path, x), weights=saved(tmp_path, weights, "weights"))
    fitter = EMFitter(tol=1e-6, max_iter=8)
    close(fitter.fit(files, start), fitter.fit(x, start, weights=weights))


@pytest.mark.parametrize(
    "fitter",
    [
        EMFitter(max_iter=6, tol=0, accelerate=True),
        EMFitter(max_iter=3, tol=0, prior=gmmx.ConjugatePrior(dof=50.0)),
        EMFitter(max_iter=3, tol=0, frozen="means"),
        Restarts(EMFitter(max_iter=4, tol=0), 3),
    ],
    ids=["accelerated", "prior", "frozen", "restarts"],
)
def test_every_setting(small_blocks, x, weights, start, fitter):
    source = gmmx.rows_from(parts(x), weights=parts(weights))
    found, wanted = fitter.fit(source, start), fitter.fit(x, start, weights=weights)
    close(found, wanted)
    assert int(found.start) == int(wanted.start)


def test_a_background(small_blocks, x, start):
    start = gmmx.BackgroundMixture.of(start, gmmx.UniformBackground.of(x))
    source = gmmx.rows_from(parts(x))
    close(EMFitter(max_iter=3).fit(source, start), EMFitter(max_iter=3).fit(x, start))


def test_neither_blocks_nor_order_count(monkeypatch, x, start):
    fitter, found = EMFitter(max_iter=4, tol=0), []
    for size, order in ((2**10, 1), (2**12, -1), (2**20, 1)):
        monkeypatch.setattr(passes, "_CPU_BYTES", size)
        found.append(fitter.fit(gmmx.rows_from(parts(x)[::order]), start))
    close(found[0], found[1], 1e-12)
    close(found[0], found[2], 1e-12)


def test_the_last_block_compiles_nothing(small_blocks, x, start, compilations):
    fitter = EMFitter(max_iter=2, tol=0)
    fitter.fit(gmmx.rows_from(x), start)
    with compilations() as compiled:
        fitter.fit(gmmx.rows_from(x[:-77]), start)
    assert not compiled


def test_float32_far_from_zero():
    """Sums of many rows, and rows far from zero, as accurate as float32 holds the rows."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(20_000, 2)) + 5 * rng.integers(0, 2, size=(20_000, 1)) + 1e3
    narrow = x.astype(np.float32)
    start = gmmx.initialize(narrow[:500], 2)
    fitter = EMFitter(max_iter=20, tol=0)
    found = fitter.fit(gmmx.rows_from(parts(narrow)), start)
    assert found.gmm.dtype == np.float32
    wanted = fitter.fit(narrow.astype(float), start)
    assert abs(float(found.log_likelihood) - float(wanted.log_likelihood)) < 1e-4
    np.testing.assert_allclose(found.gmm.covariances, wanted.gmm.covariances, rtol=1e-2, atol=1e-3)


# Densities, criteria and selection


def test_densities_and_criteria(x, weights, start):
    source = gmmx.rows_from(parts(x), weights=parts(weights))
    for name in ("log_prob", "predict", "predict_proba", "component_log_prob"):
        found, wanted = getattr(start, name)(source), getattr(start, name)(x)
        np.testing.assert_allclose(found, wanted, rtol=1e-10)
    for name in ("score", "bic", "aic", "icl"):
        wanted = getattr(start, name)(x, weights=weights)
        np.testing.assert_allclose(getattr(start, name)(source), wanted, rtol=1e-12)
    with pytest.raises(ValueError, match=r"array 1 holds NaN.* in row 1234"):
        start.predict(gmmx.rows_from([x, bad_row(x)]))


def test_select(x):
    """All rows are drawn here, so the starts of both are alike."""
    arguments = {"n_components": [1, 2], "covariance_types": ["diag"]}
    found, wanted = (gmmx.select(rows, **arguments) for rows in (gmmx.rows_from(x), x))
    assert found.best.n_components == wanted.best.n_components == 2
    for a, b in zip(found.candidates, wanted.candidates, strict=True):
        np.testing.assert_allclose([a.bic, a.icl, a.aic], [b.bic, b.icl, b.aic], rtol=1e-4)
    with pytest.raises(ValueError, match="held_out"):
        gmmx.select(gmmx.rows_from(x), 2, "diag", criterion="held_out")


# What a source may be


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv"])
def test_tables(tmp_path, small_blocks, x, weights, start, ending):
    for i, (part, count) in enumerate(zip(parts(x, 3), parts(weights, 3), strict=True)):
        frame = pl.DataFrame({**dict(zip("abc", part.T, strict=True)), "w": count})
        path = tmp_path / f"{i}.{ending}"
        {"csv": frame.write_csv, "arrow": frame.write_ipc, "parquet": frame.write_parquet}[ending](
            path
        )
    source = gmmx.rows_from(tmp_path / f"*.{ending}", weights="w")
    assert source.n_features == D and source.dtype == np.float64
    fitter = EMFitter(max_iter=3, tol=0)
    close(fitter.fit(source, start), fitter.fit(x, start, weights=weights))


def test_a_function(small_blocks, x, weights, start):
    def blocks():
        yield from zip(parts(x), parts(weights), strict=True)

    fitter = EMFitter(max_iter=3, tol=0)
    close(fitter.fit(gmmx.rows_from(blocks), start), fitter.fit(x, start, weights=weights))


def test_columns(tmp_path):
    pl.DataFrame({"a": [1, 2, 3], "b": [1.5, 2, 3], "name": list("xyz")}).write_csv(
        tmp_path / "t.csv"
    )
    source = gmmx.rows_from(tmp_path / "t.csv", columns=["b", "a"])
    (block,) = source.blocks(10)
    np.testing.assert_array_equal(block.x, [[1.5, 1], [2, 2], [3, 3]])
    with pytest.raises(ValueError, match=r"column 'name' holds String; expected numbers"):
        gmmx.rows_from(tmp_path / "t.csv")


# Starts


def test_a_small_source_starts_as_its_array(x, weights):
    source = gmmx.rows_from(parts(x), weights=parts(weights))
    found = gmmx.initialize(source, K, key=jax.random.key(3))
    wanted = gmmx.initialize(x, K, key=jax.random.key(3), weights=weights)
    np.testing.assert_allclose(found.means, wanted.means, rtol=1e-8)


def test_a_sample_is_unbiased():
    """Sums over the sample are those over all rows in the mean over draws."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(400, 1)), rng.exponential(size=400) ** 3
    wanted = np.array([weights.sum(), weights @ x[:, 0]])
    found = []
    for seed in range(400):
        reservoir = Reservoir(40, seed)
        for part, count in zip(parts(x, 5), parts(weights, 5), strict=True):
            reservoir.add(gmmx.Block(part, count, "part"))
        rows, counts = reservoir.drawn()
        assert len(rows) == 40
        found.append([counts.sum(), counts @ rows[:, 0]])
    error = np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - wanted) < 4 * error).all()


def test_a_survey_is_exact(x, weights):
    far = x + np.array([1e6, 0, 0])
    found, _ = survey(gmmx.rows_from(parts(far), weights=parts(weights)), np.float64, True)
    covariance = np.cov(far.T, aweights=weights, ddof=0)
    np.testing.assert_allclose(found.scatter / found.total, covariance, rtol=1e-9)
    np.testing.assert_array_equal([found.low, found.high], [far.min(0), far.max(0)])
    np.testing.assert_allclose(found.mean, np.average(far, axis=0, weights=weights), rtol=1e-14)


# What cannot be fitted


def bad_row(x):
    x = x.copy()
    x[1234, 1] = np.nan
    return x


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda x: gmmx.rows_from([x, bad_row(x)]), "array 1 holds NaN.* in row 1234"),
        (lambda x: gmmx.rows_from([x, x[:, :2]]), "array 1 has 2 features; .* have 3"),
        (lambda x: gmmx.rows_from([x, x.astype(np.float32)]), "array 1 has dtype float32"),
        (lambda x: gmmx.rows_from([x, x[:0]]), "array 1 holds no rows"),
        (lambda x: gmmx.rows_from(x, weights=-np.ones(N)), "array 0 holds the weight -1 in row 0"),
        (lambda x: gmmx.rows_from(x, weights=np.zeros(N)), "weights of all rows are zero"),
        (lambda x: gmmx.rows_from(lambda: iter([x, x[:0]])), "block 1 holds no rows"),
        (lambda x: gmmx.rows_from(lambda: iter([x, x[:, :1]])), "block 1 has 1 features"),
        (lambda x: gmmx.rows_from(iter([x])), "can be read once.*a function f"),
        (lambda x: gmmx.rows_from("nowhere-*.npy"), "there is no file nowhere"),
    ],
)
def test_bad_rows(x, start, make, message):
    with pytest.raises(ValueError, match=message):
        EMFitter().fit(make(x), start)


def test_a_source_that_ends_early_keeps_the_model(small_blocks, x, start):
    calls = []

    def blocks():
        calls.append(None)
        return iter(parts(x) if len(calls) < 5 else parts(x)[:9])

    with pytest.raises(
        FitError, match=r"gave 3000 rows at first, and .* in a later pass"
    ) as caught:
        EMFitter(tol=0).fit(gmmx.rows_from(blocks), start)
    assert int(caught.value.result.n_iter) > 0


def test_a_trainer_that_needs_all_rows(x, start):
    with pytest.raises(ValueError, match="GradientFitter takes all rows at once"):
        GradientFitter().fit(gmmx.rows_from(x), start)


# Resuming within a pass


@pytest.mark.parametrize("at", [5, 17, 40])
def test_resumed_within_a_pass(tmp_path, small_blocks, x, start, at):
    """Stopped after any block, at the end of a pass or within one: equal to the last bit."""
    fitter, source = EMFitter(max_iter=5, tol=0), gmmx.rows_from(parts(x))
    wanted = fitter.fit(source, start)
    checkpoint = gmmx.Checkpoint(tmp_path / "fit.ckpt", every=0)

    class Killed(BaseException):
        pass

    def dying():
        for number, part in enumerate(parts(x)):
            dying.seen += 1
            if dying.seen > at + 40:
                raise Killed(number)
            yield part

    dying.seen = 0
    with pytest.raises(Killed):
        fitter.fit(gmmx.rows_from(dying), start, checkpoint=checkpoint)
    found = fitter.fit(source, start, checkpoint=checkpoint)
    for p, q in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.asarray(p).tobytes() == np.asarray(q).tobytes()
    # What has ended is read from the file.
    assert int(fitter.fit(source, start, checkpoint=checkpoint).n_iter) == int(wanted.n_iter)


def test_ctrl_c_keeps_the_best_model(small_blocks, x, start):
    def interrupted():
        interrupted.calls += 1
        yield from parts(x)[:10]
        if interrupted.calls == 5:
            raise KeyboardInterrupt
        yield from parts(x)[10:]

    interrupted.calls = 0
    result = EMFitter(tol=0).fit(gmmx.rows_from(interrupted), start)
    assert gmmx.Status[result.status] == gmmx.Status[gmmx.Status.interrupted]
    assert int(result.n_iter) == len(result.history) == 1
