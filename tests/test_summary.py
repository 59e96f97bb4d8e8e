"""Summaries: what is read back from them is what the mixture, the fit and the fitter hold."""

import dataclasses
import re

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

import gmmx
from gmmx import EMFitter, GradientFitter, Status, _summary


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[+-]\d+)?", text)]


def components(summary):
    """The means and deviations in the table, `(k, d)` each."""
    cells = [[cell.split(" ± ") for cell in row if " ± " in cell] for row in summary.rows]
    return np.array(cells, float).transpose(2, 0, 1)


def test_the_table_holds_the_parameters(structure):
    parameters = structure.parameters(3, 4)
    summary = _summary.of_mixture(structure.of(*parameters))
    means, deviations = components(summary)
    variances = np.diagonal(structure.dense(parameters[2], 3, 4), axis1=1, axis2=2)
    np.testing.assert_allclose(deviations, np.sqrt(variances), rtol=5.1e-3)
    assert (np.abs(means - parameters[1]) < 5.1e-3 * np.sqrt(variances)).all()
    weights = [float(row[1]) for row in summary.rows]
    np.testing.assert_allclose(weights, parameters[0], rtol=5.1e-3)
    first = str(summary).splitlines()[0]
    assert f"3 components in 4 features, {structure.name} covariances, float64" in first


@pytest.mark.parametrize("mean", [0.0, -3.0, 123456.789, 7e-9, 1.6e9, 2e12])
@pytest.mark.parametrize("deviation", [1e-12, 3e-5, 0.0123, 1.0, 50.0, 999.96, 5e7])
def test_digits_suit_the_deviation(mean, deviation):
    """A mean is printed to a hundredth of its deviation, and not much finer."""
    text = _summary.mean_and_deviation(mean, deviation)
    shown = numbers(text)
    assert abs(shown[0] - mean) <= 0.01 * deviation + 1e-15 * abs(mean)
    assert abs(shown[1] - deviation) <= 0.006 * deviation
    digits = re.sub(r"e[+-]\d+|\D", "", text.split(" ± ")[0]).lstrip("0")
    assert len(digits) <= 4 + max(np.log10(max(abs(mean) / deviation, 1)), 0)


def test_few_components_and_features_are_shown():
    gmm = gmmx.GaussianMixture.create(32, 20)
    gmm = dataclasses.replace(gmm, logits=gmm.logits.at[30].set(5.0).at[20:25].set(1.0))
    summary = _summary.of_mixture(gmm)
    text = str(summary)
    assert "… and 20 more components" in text and "… and 12 more features" in text
    shown = [int(row[0]) for row in summary.rows]
    assert len(shown) == 12 and {20, 21, 22, 23, 24, 30} <= set(shown) and shown == sorted(shown)
    assert components(summary)[0].shape == (12, 8)
    assert max(map(len, text.splitlines())) < 125


def test_at_data(structure, blobs):
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame(blobs, columns=["left", "<up>", "c"])
    gmm = gmmx.initialize(blobs, 3, structure.name)
    summary = _summary.of_mixture(gmm, x)
    assert list(summary.headings)[-3:] == ["left", "<up>", "c"]
    sizes = [int(row[2]) for row in summary.rows]
    assert sizes == list(np.bincount(gmm.predict(blobs), minlength=3))
    n, score, bic, icl, aic = numbers(summary.before[1])
    assert n == 300
    np.testing.assert_allclose(score, gmm.score(blobs), atol=1e-4)
    expected = [float(criterion(blobs)) for criterion in (gmm.bic, gmm.icl, gmm.aic)]
    np.testing.assert_allclose([bic, icl, aic], expected, atol=0.06)
    page = summary._repr_html_()
    assert page.count("<tr") == 4 and "&lt;up&gt;" in page and "<up>" not in page
    with pytest.raises(ValueError, match="Got 1 names of features; expected 3"):
        _summary.of_mixture(gmm, names=["one"])


def test_at_rows_as_they_were_measured(blobs):
    rng = np.random.default_rng(0)
    x = np.where(rng.uniform(size=blobs.shape) < 0.2, np.nan, blobs)
    weights = rng.integers(0, 3, size=len(x))
    data, weighted = (gmmx.Data(x, missing=True, weights=w) for w in (None, weights))
    gmm = gmmx.initialize(data, 3)
    labels = np.asarray(gmm.predict(data))
    for given, counts in ((data, np.ones(300)), (weighted, weights)):
        summary = gmm.summary(given)
        sizes = [float(row[2]) for row in summary.rows]
        assert sizes == list(np.bincount(labels, counts, minlength=3))
        values = numbers(summary.before[1])[2:]
        expected = [float(criterion(given)) for criterion in (gmm.bic, gmm.icl, gmm.aic)]
        np.testing.assert_allclose(values, expected, atol=0.06)


def test_wide_tables_have_deviations_below_means(structures):
    narrow, wide = (
        str(_summary.of_mixture(structures["diag"].mixture(2, d), names=["a feature's name"] * d))
        for d in (2, 7)
    )
    assert len(narrow.splitlines()) == 5 and len(wide.splitlines()) == 7
    assert " ± " in narrow and " ± " not in wide and wide.count("±") == 14


def test_what_has_no_values_is_a_line(structure):
    gmm = structure.mixture(2, 3)
    stack = jax.tree.map(lambda leaf: np.stack([leaf] * 4), gmm)
    said = []

    def look(gmm, x):
        said.extend([_summary.of_mixture(gmm), _summary.of_mixture(gmm, names="abc")])
        return x

    jax.jit(look)(gmm, 1.0)
    jax.jit(lambda x: look(gmm, x))(1.0)
    jax.vmap(look)(stack, np.ones(4))
    jax.grad(lambda g: look(g, g.means.sum()))(gmm)
    shapes = jax.eval_shape(lambda: gmm)
    said += [_summary.of_mixture(stack), _summary.of_mixture(shapes)]
    for summary in said:
        assert len(str(summary).splitlines()) == 1 and "2 components in 3 features" in str(summary)
        assert summary._repr_html_().startswith("<div>")
    assert "4 mixtures" in str(said[-2]) and "traced" in str(said[0])
    assert "None" in str(_summary.of_mixture(eqx.filter(gmm, lambda _: False)))


def test_broken_parameters_are_shown(structure):
    gmm = jax.tree.map(lambda leaf: leaf * np.nan, structure.mixture(2, 3))
    assert str(_summary.of_mixture(gmm)).count("nan") == 2 + 2 * 2 * 3
    gone = structure.of(np.array([1.0, 0.0]), *structure.parameters(2, 3)[1:])
    assert [float(row[1]) for row in _summary.of_mixture(gone).rows] == [1, 0]


def test_a_fit(blobs):
    result = EMFitter().fit(blobs, gmmx.initialize(blobs, 3))
    summary = _summary.of_fit(result, Status[result.status], blobs)
    first, second = summary.before[:2]
    assert first == f"Converged after {int(result.n_iter)} steps: {Status[Status.converged]}"
    np.testing.assert_allclose(numbers(second)[0], result.log_likelihood, atol=1e-4)
    assert summary.rows == _summary.of_mixture(result.gmm, blobs).rows
    with pytest.warns(gmmx.FitWarning):
        cut = EMFitter(tol=0, max_iter=1).fit(blobs, result.gmm)
    text = str(_summary.of_fit(cut, Status[cut.status]))
    assert text.startswith("Not converged after 1 step:") and "Raise max_iter" in text


def test_spurious_components_are_marked(blobs):
    result = EMFitter().fit(blobs, gmmx.initialize(blobs, 3))
    some = dataclasses.replace(result, spurious=jax.numpy.array([False, True, True]))
    summary = _summary.of_fit(some, Status[some.status])
    assert [row[0] for row in summary.rows] == ["", "*", "*"]
    assert "* 2 of 3 components" in str(summary) and "* 2 of 3" in summary._repr_html_()
    assert "*" not in str(_summary.of_fit(result, Status[result.status]))


def test_many_fits_are_two_lines(blobs):
    gmm = gmmx.initialize(blobs, 3)
    fit = eqx.filter_vmap(lambda tol: EMFitter(tol=tol, max_iter=4).fit(blobs, gmm))
    results = fit(np.array([1e-1, 1e-1, 0.0]))
    names = list(Status._name_to_item)
    ending = _summary.counts(names, results.status._value)
    assert ending == "2 converged, 1 max_steps_reached"
    text = str(_summary.of_fit(results, ending))
    assert text.startswith(f"3 fits: {ending}") and "3 mixtures of 3 components" in text
    low, high = numbers(text)[3:5]
    np.testing.assert_allclose(
        [low, high], [results.log_likelihood.min(), results.log_likelihood.max()], atol=1e-4
    )
    broken = eqx.tree_at(lambda r: r.log_likelihood, results, np.full(3, np.nan))
    assert "3 fits" in str(_summary.of_fit(broken, ending))
    traced = []
    jax.jit(lambda r: traced.append(str(_summary.of_fit(r, Status[r.status]))))(results)
    assert len(traced[0].splitlines()) == 1


def test_a_selection():
    table = {
        "covariance_type": ["full", "tied"], "n_components": [1, 2],
        "log_likelihood": [-1.23456, np.nan], "bic": [10.0, np.nan],
        "status": ["converged", "singular_covariance"],
    }  # fmt: skip
    lines = str(_summary.of_selection(table, 0, "bic")).splitlines()
    assert lines[0].split()[:2] == ["covariance", "type"] and len(lines) == 5
    assert [line[0] for line in lines].count("*") == 2
    assert "-1.2346" in lines[2] and "singular covariance" in lines[3] and "–" in lines[3]
    assert "*" not in str(_summary.of_selection(table, None, "bic"))
    assert _summary.of_selection(table, 0, "bic")._repr_html_().count("<tr") == 3


@pytest.mark.parametrize(
    "settings",
    [
        "EMFitter()",
        "EMFitter(tol=0.0001)",
        "EMFitter(max_iter=7, reg_covar=0.0)",
        "EMFitter(frozen='means')",
        "EMFitter(frozen=('means', 'weights'))",
        "GradientFitter()",
        "GradientFitter(optimizer=optax.sgd, learning_rate=0.1, batch_size=10)",
        "GradientFitter(validation_fraction=0.2)",
        "Restarts(EMFitter(tol=1e-06), n_init=5, method='kmeans')",
        "Restarts(Restarts(GradientFitter()))",
    ],
)
def test_settings_are_as_typed(settings):
    known = {"optax": optax, **vars(gmmx)}
    assert _summary.as_typed(eval(settings, known)) == settings


def test_settings_that_cannot_be_typed():
    names = []
    jax.jit(lambda tol: names.append(_summary.as_typed(EMFitter(tol=tol))))(1.0)
    several = EMFitter(tol=jax.numpy.array([0.1, 0.2]), max_iter=9)
    names += [_summary.as_typed(several), _summary.as_typed(GradientFitter(optax.adam(0.1)))]
    assert [re.match(r"\w+\((\w+)=", name)[1] for name in names] == ["tol", "tol", "optimizer"]
    assert names[1] == "EMFitter(tol=[0.1, 0.2], max_iter=9)"
    many = _summary.as_typed(EMFitter(tol=jax.numpy.ones(100)))
    assert "[100]" in many and len(many) < 40
