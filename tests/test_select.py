"""Choosing the number of components and the structure."""

import warnings

import jax
import numpy as np
import optax
import pytest
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture as SklearnMixture

import gmmx
from gmmx import EMFitter, GradientFitter, Restarts
from gmmx import _select as internals

SIZES = [1, 2, 3, 4]
FITTER = EMFitter(tol=1e-6, max_iter=500)

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def iris():
    return load_iris().data


@pytest.fixture(scope="module")
def selection(iris):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        return gmmx.select(iris, SIZES, fitter=FITTER)


def starts(x, covariance_type, k, weights=None):
    """Where `select` starts, of `k` components in a program of the largest number.

    That is the clustering of those it makes which is likeliest after 40 steps.
    """
    structure = internals.structure_named(covariance_type)
    x = jax.numpy.asarray(x)
    keys = jax.random.split(jax.random.key(0), 1)
    k = jax.numpy.int32(k)
    found, _ = internals._clusters(max(SIZES), x, k, weights, keys, False, False)
    found = jax.tree.map(lambda leaf: leaf[0], found)
    floor = jax.numpy.asarray(FITTER.reg_covar, x.dtype)
    fit = jax.vmap(lambda run: found.of(run, structure).fit(gmmx.GaussianMixture, structure, floor))
    padded = fit(jax.numpy.arange(len(found.labels)))
    few = EMFitter(tol=FITTER.tol, max_iter=40)
    results = jax.jit(jax.vmap(lambda gmm: few.fit(x, gmm)))(padded)
    sound = ~np.asarray(results.spurious).any(axis=1)
    assert sound.any()
    best = np.argmax(np.where(sound, results.log_likelihood, -np.inf))
    padded = jax.tree.map(lambda leaf: leaf[best], padded)
    return padded, internals.trim(padded, int(k))


def test_a_padded_start_has_the_components_asked_for(iris, structure):
    padded, start = starts(iris, structure.name, 2)
    np.testing.assert_array_equal(padded.weights[2:], 0)
    assert (np.asarray(start.weights) > 0.1).all()
    np.testing.assert_allclose(padded.log_prob(iris), start.log_prob(iris), rtol=1e-12)


def test_it_is_the_fit_of_exactly_so_many_components(iris, structure, selection):
    """A component of weight zero changes nothing: the parameters, the steps, the status."""
    for k in (2, 3):
        row = next(
            c
            for c in selection.candidates
            if (c.covariance_type, c.n_components) == (structure.name, k)
        )
        padded, start = starts(iris, structure.name, k)
        with_others, alone = FITTER.fit(iris, padded), FITTER.fit(iris, start)
        assert with_others.n_iter == alone.n_iter and alone.converged
        trimmed = internals.trim(with_others.gmm, k)
        for ours, theirs in zip(jax.tree.leaves(trimmed), jax.tree.leaves(alone.gmm), strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)
        # Of starts that reach one optimum rounding may choose another than here.
        assert row.status == "converged" and len(row.result.history) == row.n_iter
        np.testing.assert_allclose(row.log_likelihood, alone.log_likelihood, rtol=1e-5)
        gmm = row.gmm
        ours = [row.log_likelihood, row.bic, row.icl, row.aic]
        np.testing.assert_allclose(
            ours, [gmm.score(iris), gmm.bic(iris), gmm.icl(iris), gmm.aic(iris)], rtol=1e-9
        )
        assert row.n_parameters == gmm.n_parameters


def test_it_chooses_what_scikit_learn_would(iris, selection):
    """From the same starts; mclust's BIC of two full components on these data is −574.02."""
    criteria = []
    for candidate in selection.candidates:
        start = starts(iris, candidate.covariance_type, candidate.n_components)[1]
        reference = SklearnMixture(
            candidate.n_components, covariance_type=candidate.covariance_type, tol=1e-9,
            max_iter=5000, weights_init=start.weights, means_init=start.means,
            precisions_init=np.asarray(start.precisions),
        ).fit(iris)  # fmt: skip
        criteria.append(reference.bic(iris))
    np.testing.assert_allclose([c.bic for c in selection.candidates], criteria, rtol=1e-5)
    best = selection.candidates[int(np.argmin(criteria))]
    assert selection.best is best
    assert (best.covariance_type, best.n_components) == ("full", 2)
    np.testing.assert_allclose(best.bic, 574.02, atol=5e-3)


def test_each_criterion_chooses_by_its_own(blobs):
    for criterion in ("bic", "icl", "aic"):
        chosen = gmmx.select(blobs, SIZES, "full", criterion=criterion)
        values = [getattr(c, criterion) for c in chosen.candidates]
        assert chosen.best is chosen.candidates[int(np.argmin(values))]
        assert chosen.best.icl >= chosen.best.bic
        if criterion != "aic":
            assert chosen.best.n_components == 3


def test_held_out_likelihood(blobs):
    """That of each sample under a fit without it."""
    chosen = gmmx.select(blobs, SIZES, "tied", criterion="held_out", n_folds=3, fitter=FITTER)
    values = [c.held_out for c in chosen.candidates]
    assert chosen.best.held_out == max(values) and chosen.best.n_components >= 3
    row = chosen.candidates[2]
    assert row.held_out > values[1] + 0.1
    assert row.held_out < row.log_likelihood
    # Computed again, from the rows themselves.
    folds = internals._deal(jax.numpy.asarray(blobs), None, 3, 4, jax.random.key(0))
    assert (folds.sum(axis=0) == 1).all() and (folds.sum(axis=1) == 100).all()
    total = 0.0
    for fold in folds:
        kept = blobs[~fold]
        start = gmmx.initialize(kept, 3, "tied")
        total += float(FITTER.fit(kept, start).gmm.log_prob(blobs[fold]).sum())
    np.testing.assert_allclose(row.held_out, total / 300, rtol=1e-6)


def test_weights_count_samples(blobs):
    """Samples of no weight are as good as absent, from the start on."""
    x, weights = blobs.copy(), np.arange(300) % 2
    x[::2] += 100
    chosen = gmmx.select(x, SIZES, "full", weights=weights)
    assert chosen.best.n_components == 3
    best = chosen.best
    assert np.abs(best.gmm.means).max() < 20
    log_prob = np.asarray(best.gmm.log_prob(x))[1::2]
    np.testing.assert_allclose(best.log_likelihood, log_prob.mean(), rtol=1e-10)
    bic = best.n_parameters * np.log(150) - 2 * log_prob.sum()
    np.testing.assert_allclose(best.bic, bic, rtol=1e-10)
    for name in ("bic", "icl", "aic"):
        value = getattr(best.gmm, name)(x, weights=weights)
        np.testing.assert_allclose(getattr(best, name), value, rtol=1e-10)
        np.testing.assert_allclose(getattr(best.gmm, name)(x[1::2]), value, rtol=1e-10)
    np.testing.assert_allclose(best.gmm.score(x, weights=weights), log_prob.mean(), rtol=1e-10)


def test_a_collapse_is_never_the_best():
    """Components that stand on one point each are likelier, and are no clusters."""
    x = np.repeat(np.random.default_rng(0).normal(size=(5, 2)), 20, axis=0)
    chosen = gmmx.select(x, [1, 4], "full", fitter=EMFitter(tol=1e-3, reg_covar=0))
    sound, collapsed = chosen.candidates
    assert collapsed.spurious and collapsed.bic < sound.bic
    assert chosen.best is sound and not sound.spurious
    assert "spurious component" in str(chosen)
    # Where there is no other, it is.
    assert gmmx.select(x, [4], "full", fitter=EMFitter(tol=1e-3, reg_covar=0)).best.spurious


def test_fits_that_fail(blobs):
    """They are told of once, have no criteria, and none of them is best."""
    fitter = gmmx.GradientFitter(optax.sgd(1e30))
    with pytest.warns(gmmx.FitWarning, match="2 of 2 fits failed: full 2, full 3") as record:
        none = gmmx.select(blobs, [2, 3], "full", fitter=fitter)
    assert len(record) == 1
    for failed in none.candidates:
        assert failed.failed and failed.status == "non_finite"
        assert np.isnan([failed.bic, failed.icl, failed.aic, failed.log_likelihood]).all()
        assert np.isfinite(np.asarray(failed.gmm.means)).all()
    with pytest.raises(ValueError, match="every fit failed"):
        _ = none.best
    assert "*" not in str(none) and "<table>" in none._repr_html_()


def test_interrupted_it_gives_back_the_fits_made(blobs):
    def stop(candidate):
        if candidate.n_components == 2:
            raise KeyboardInterrupt

    with pytest.warns(gmmx.FitWarning, match="interrupted after 2 of 4 fits"):
        chosen = gmmx.select(blobs, SIZES, "full", callback=stop)
    assert [c.n_components for c in chosen.candidates] == [1, 2]
    assert chosen.best.n_components == 2


def test_more_starts_are_never_worse(blobs):
    """The first of several starts is not the one that is made alone, but the best is as good."""
    one = gmmx.select(blobs, SIZES, "full")
    four = gmmx.select(blobs, SIZES, "full", n_init=4)
    again = gmmx.select(blobs, SIZES, "full", n_init=4)
    for a, b, c in zip(one.candidates, four.candidates, again.candidates, strict=True):
        assert b.log_likelihood == c.log_likelihood
        assert b.log_likelihood >= a.log_likelihood - 0.02


def test_by_gradient(blobs):
    chosen = gmmx.select(blobs, SIZES, "full", fitter=GradientFitter())
    assert chosen.best.n_components == 3
    em = gmmx.select(blobs, SIZES, "full")
    np.testing.assert_allclose(chosen.best.bic, em.best.bic, rtol=1e-4)
    assert all(np.isfinite(c.bic) for c in chosen.candidates)


def test_one_program_serves_every_number_of_components(blobs):
    """Nor does another tolerance or key compile anything."""
    gmmx.select(blobs, [1, 4], "full")
    programs = []

    def count(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            programs.append(name)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        fitter = EMFitter(tol=1e-4, reg_covar=1e-5)
        gmmx.select(blobs, SIZES, "full", fitter=fitter, key=jax.random.key(1))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert not programs


def test_large_data_have_a_second_program():
    """Where idle components cost more than to compile once more."""
    assert set(internals._padded([1, 2, 5, 9], jax.numpy.zeros((1000, 5))).values()) == {9}
    many = jax.ShapeDtypeStruct((2_000_000, 10), np.float32)
    assert internals._padded([1, 2, 5, 9], many) == {1: 5, 2: 5, 5: 5, 9: 9}
    assert internals._padded([6, 9], many) == {6: 9, 9: 9}


def test_float32(blobs):
    chosen = gmmx.select(blobs.astype(np.float32), SIZES, "spherical")
    assert chosen.best.gmm.dtype == np.float32
    wide = gmmx.select(blobs, SIZES, "spherical")
    # Of four components on three clusters the start, drawn in another dtype, decides.
    ours, theirs = ([c.bic for c in s.candidates[:3]] for s in (chosen, wide))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_table(selection):
    table = selection.to_dict()
    assert {len(column) for column in table.values()} == {len(SIZES) * 4}
    assert table["n_components"] == SIZES * 4 and "held_out" not in table
    assert table["covariance_type"][::4] == ["full", "tied", "diag", "spherical"]
    summary = selection.summary()
    lines = str(summary).splitlines()
    assert [line[0] for line in lines].count("*") == 2  # the best, and what the mark means
    assert lines[0].split()[0] == "covariance" and len(lines) == len(SIZES) * 4 + 3
    html = summary._repr_html_()
    assert html.count("<tr") == len(SIZES) * 4 + 1 and html.count("*") == 2


def test_the_criterion_by_structure(selection):
    """Printed: a row for each K, a column for each structure, then the best three."""
    heading, _, *lines = str(selection).splitlines()
    assert heading.split() == ["K", "full", "tied", "diag", "spherical"]
    values = np.array([line.split() for line in lines[: len(SIZES)]], float)
    bic = np.reshape([c.bic for c in selection.candidates], (4, len(SIZES))).T
    np.testing.assert_allclose(values[:, 1:], bic, atol=0.051)
    best = selection.top(3)
    assert best[0] is selection.best and best[0].bic < best[1].bic < best[2].bic
    assert lines[-3].startswith("full with 2 components: 574.0")
    assert f"({best[2].bic - best[0].bic:+.4g})" in lines[-1]
    assert "<table>" in selection._repr_html_()


def test_candidates_are_handed_on_as_they_are_done(blobs):
    seen = []
    chosen = gmmx.select(blobs, SIZES, "full", callback=seen.append)
    assert tuple(seen) == chosen.candidates


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_components": []}, "n_components is empty"),
        ({"n_components": [0, 1]}, "n_components=0"),
        ({"n_components": 301}, "fewer than the 301 components"),
        ({"covariance_types": ()}, "covariance_types is empty"),
        ({"covariance_types": "round"}, "'round' is unknown"),
        ({"criterion": "BIC"}, "one of 'bic'"),
        ({"fitter": Restarts(EMFitter(), 7)}, "n_init=7"),
        ({"n_init": 0}, "n_init=0"),
        ({"criterion": "held_out", "n_folds": 1}, "n_folds=1"),
        ({"criterion": "held_out", "n_folds": 2, "n_components": 200}, "too few samples"),
        ({"weights": np.ones(3)}, "weights has shape"),
    ],
)
def test_bad_settings(blobs, options, message):
    with pytest.raises(ValueError, match=message):
        gmmx.select(blobs, **options)


def test_not_inside_a_transformation(blobs):
    with pytest.raises(ValueError, match="inside jit"):
        jax.jit(lambda x: gmmx.select(x).best.bic)(blobs)
