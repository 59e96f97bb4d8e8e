"""Pictures: what is drawn where, read back from the Axes."""

import dataclasses
import subprocess
import sys

import equinox as eqx
import jax
import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import gmmx
from gmmx import Status, plot

BLUE = "#0072b2"


@pytest.fixture(autouse=True)
def untouched():
    """No setting is changed, and no figure is left over."""
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture
def ax():
    return Figure().add_subplot()


@pytest.fixture(scope="module")
def gmm(structures):
    return structures["full"].mixture(3, 4)


@pytest.fixture(scope="module")
def x(gmm):
    return np.asarray(gmm.sample(400))


def dense(structure, gmm):
    return np.asarray(structure.dense(np.asarray(gmm.covariances), *gmm.means.shape))


def curves(ax):
    """The outlines of the ellipses."""
    return [path.vertices[:-1] for path in outlines(ax).get_paths()]


def outlines(ax):
    """The collection of the outlines, which are not filled."""
    (found,) = (c for c in ax.collections if len(c.get_facecolor()) == 0 and c.get_paths())
    return found


def luminance(colour):
    return float(np.dot(mpl.colors.to_rgb(colour), (0.299, 0.587, 0.114)))


def test_an_ellipse_holds_its_part_of_the_component(structure, ax):
    gmm = structure.mixture(2, 4)
    dims = [3, 1]
    plot.ellipses(gmm, dims=dims, levels=(0.3, 0.9), ax=ax)
    found = iter(curves(ax))
    rng = np.random.default_rng(0)
    for k in np.argsort(-np.asarray(gmm.weights)):
        mean = np.asarray(gmm.means)[k, dims]
        covariance = dense(structure, gmm)[k][np.ix_(dims, dims)]
        draws = rng.multivariate_normal(mean, covariance, 20_000)
        for level in (0.9, 0.3):
            outline = next(found)
            inside = mpl.path.Path(outline).contains_points(draws).mean()
            assert abs(inside - level) < 0.015
            # All its points are equally likely.
            apart = outline - mean
            squared = np.einsum("ni,ij,nj->n", apart, np.linalg.inv(covariance), apart)
            np.testing.assert_allclose(squared, -2 * np.log(1 - level), rtol=1e-10)


def test_the_histogram_shows_the_marginal(structure, ax):
    gmm = structure.mixture(3, 4)
    plot.histogram(gmm, np.asarray(gmm.sample(300)), dim=-2, ax=ax)
    at, height = ax.lines[-1].get_data()
    deviation = np.sqrt(dense(structure, gmm)[:, 2, 2])
    scaled = (at[:, None] - np.asarray(gmm.means)[:, 2]) / deviation
    parts = np.asarray(gmm.weights) * np.exp(-(scaled**2) / 2) / deviation / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(height, parts.sum(axis=1), rtol=1e-10, atol=1e-14)
    (bars,) = (patch.get_data() for patch in ax.patches)
    assert abs(bars.values @ np.diff(bars.edges) - 1) < 1e-9
    assert len(ax.lines) == 4


def test_regions_hold_their_part_of_the_mixture(gmm):
    """Of 20,000 draws the given parts are at least as dense as the contours."""
    from gmmx.plot import _density, _parts

    marginal = _parts.marginal(gmm, (0, 2))
    axes, log_density = _density._on_grid(marginal, None, (0, 2))
    levels = [0.9, 0.5, 0.2]
    heights = _density.region_heights(axes, log_density, levels)
    flat = gmmx.GaussianMixture.from_parameters(*marginal)
    points = np.stack(np.meshgrid(*axes), axis=-1)
    np.testing.assert_allclose(log_density, flat.log_prob(points), rtol=1e-9, atol=1e-9)
    dense = np.exp(np.asarray(flat.log_prob(flat.sample(20_000))))
    for level, height in zip(levels, heights, strict=True):
        assert abs((dense >= height).mean() - level) < 0.015


@pytest.mark.parametrize("log", [False, True])
def test_density(gmm, x, ax, log):
    assert plot.density(gmm, x, dims=(1, 3), log=log, ax=ax) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("feature 1", "feature 3")
    assert len(ax.figure.axes) == 1 + log
    ax.figure.canvas.draw()


def test_a_narrow_component_is_not_missed():
    """A thousandth as wide as the picture, it holds half of the mass."""
    gmm = gmmx.GaussianMixture.from_parameters(
        [0.5, 0.5], np.array([[0.0, 0.0], [3.0, 3.0]]), np.array([10.0, 1e-4]), "spherical"
    )
    from gmmx.plot import _density, _parts

    axes, log_density = _density._on_grid(_parts.marginal(gmm, (0, 1)), None, (0, 1))
    np.testing.assert_allclose(log_density.max(), gmm.log_prob([3.0, 3.0]), rtol=1e-6)
    cells = np.gradient(axes[1])[:, None] * np.gradient(axes[0])
    assert abs((np.exp(log_density) * cells).sum() - 1) < 0.02


def test_pairs(gmm, x):
    names = ["a", "b", "c", "d"]
    figure = Figure()
    panels = plot.pairs(gmm, x, dims=(0, 3, 1), feature_names=names, figure=figure)
    assert panels.shape == (3, 3) and len(figure.axes) == 6
    assert all((panels[i, j] is None) == (j > i) for i in range(3) for j in range(3))
    assert [panels[2, j].get_xlabel() for j in range(3)] == ["a", "d", "b"]
    assert [panels[i, 0].get_ylabel() for i in range(3)] == ["", "d", "b"]
    # Columns share the x-axis and rows the y-axis.
    assert panels[1, 0].get_xlim() == panels[2, 0].get_xlim() == panels[0, 0].get_xlim()
    assert panels[2, 0].get_ylim() == panels[2, 1].get_ylim()
    outline = curves(panels[2, 1])[0]
    k = int(np.argmax(gmm.weights))
    np.testing.assert_allclose(
        outline[:180].mean(axis=0), gmm.means[k, np.array([3, 1])], atol=1e-9
    )
    figure.canvas.draw()


def test_responsibilities(gmm, x, ax):
    """Their total area is the number of samples, and each colour's that of its component."""
    plot.responsibilities(gmm, x, ax=ax)
    z = np.asarray(gmm.predict_proba(x))
    areas = {}
    for patch in ax.patches:
        values, edges, base = patch.get_data()
        colour = mpl.colors.to_hex(patch.get_facecolor())
        areas[colour] = areas.get(colour, 0) + ((values - base) * np.diff(edges)).sum()
    np.testing.assert_allclose(areas[BLUE], z[:, 0].sum(), rtol=1e-9)
    np.testing.assert_allclose(sum(areas.values()), 400, rtol=1e-9)
    assert "400 samples" in ax.get_xlabel()


def test_a_component_keeps_its_colour(gmm, x):
    means = np.asarray(gmm.means)
    for drawn in (plot.ellipses(gmm), plot.ellipses(gmm, x)):
        (first,) = (line for line in drawn.lines if line.get_xdata()[0] == means[0, 0])
        assert mpl.colors.to_hex(first.get_color()) == BLUE
    lines = plot.histogram(gmm).lines
    order = list(np.argsort(-np.asarray(gmm.weights)))
    assert mpl.colors.to_hex(lines[order.index(0)].get_color()) == BLUE


def test_a_point_has_the_colours_of_its_components_mixed(gmm):
    from gmmx.plot import _parts

    x = np.asarray(gmm.means)
    z = np.asarray(gmm.predict_proba(x))
    colours = np.array([mpl.colors.to_rgb(_parts.colour(k)) for k in range(3)])
    np.testing.assert_allclose(_parts.mixed_colours(gmm, x), z @ colours, rtol=1e-6)


def test_a_million_samples(gmm, ax):
    """Drawn as a density, all of them counted."""
    x = np.random.default_rng(0).normal(size=(1_000_000, 4))
    plot.ellipses(gmm, x, ax=ax)
    (bins,) = (c.get_array() for c in ax.collections if c.get_array() is not None)
    assert bins.size < 20_000
    other = Figure().add_subplot()
    plot.responsibilities(gmm, x, ax=other)
    assert "2,000 of 1,000,000" in other.get_xlabel()
    third = Figure().add_subplot()
    plot.histogram(gmm, x, ax=third)
    assert n_bins(third) <= 200


def n_bins(ax):
    """How many bars a histogram has."""
    (bars,) = ax.patches
    return len(bars.get_data().values)


def test_a_histogram_of_scales_far_apart(ax):
    """Bins as wide as most of the samples ask for would be 10¹² over all of them."""
    gmm = gmmx.GaussianMixture.from_parameters(
        [0.7, 0.3], np.array([[0.0], [0.0]]), np.array([1e-12, 1e12]), "spherical"
    )
    x = np.concatenate([np.linspace(-2e-6, 2e-6, 70), np.linspace(-2e6, 2e6, 30)])[:, None]
    plot.histogram(gmm, x, ax=ax)
    assert 1 < n_bins(ax) <= 200
    far = Figure().add_subplot()
    plot.histogram(gmm, np.append(x[:69] * 1e6, [[1e12]], axis=0), ax=far)
    assert 1 < n_bins(far) <= 200


def test_many_components_are_numbered(structure, ax):
    gmm = structure.mixture(12, 2)
    plot.ellipses(gmm, ax=ax)
    assert {text.get_text() for text in ax.texts} == {str(k) for k in range(12)}


def test_names_of_components(gmm, x, structures):
    """A legend, or each where it stands."""
    names = ["sun", "moon", "dust"]
    for ax in (
        plot.ellipses(gmm, labels=names), plot.histogram(gmm, x, labels=names),
        plot.responsibilities(gmm, x, labels=names),
    ):  # fmt: skip
        assert [text.get_text() for text in ax.get_legend().get_texts()] == names
        shown = [
            mpl.colors.to_hex(handle.get_facecolor()) for handle in ax.get_legend().get_patches()
        ]
        assert shown[0] == BLUE and len(set(shown)) == 3
    (legend,) = plot.pairs(gmm, labels=names, figure=Figure())[0, 0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    many = structures["diag"].mixture(20, 2)
    names = [f"c{k}" for k in range(20)]
    ax = plot.ellipses(many, labels=names)
    places = {text.get_text(): text.xy for text in ax.texts}
    np.testing.assert_allclose([places[name] for name in names], many.means)
    assert ax.get_legend() is None
    peaks = {text.get_text(): text.xy[0] for text in plot.histogram(many, labels=names).texts}
    np.testing.assert_allclose([peaks[name] for name in names], many.means[:, 0])


def test_of_many_features_some_are_drawn(structures):
    """Those in which the components differ, and a line says so; all of them if they are named."""
    gmm = structures["diag"].mixture(20, 10)
    apart = np.asarray(gmm.means) * np.where(np.arange(10) % 3 == 1, 0, 10)
    gmm = eqx.tree_at(lambda g: g.means, gmm, jax.numpy.asarray(apart))
    panels = plot.pairs(gmm, figure=Figure())
    assert panels.shape == (6, 6)
    assert not {f"feature {i}" for i in (1, 4, 7)} & {ax.get_xlabel() for ax in panels[-1]}
    figure = panels[0, 0].figure
    assert "6 of 10 features" in figure.legends[0].get_title().get_text()
    # Two collections in a panel, not a patch for each ellipse, which would take seconds.
    assert all(len(panels[i, 0].collections) == 2 and not panels[i, 0].patches for i in range(1, 6))
    figure = plot.pairs(gmm, dims=range(10), figure=Figure())[0, 0].figure
    assert len(figure.axes) == 55 and not figure.legends


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_everything_can_be_seen(gmm, x, style):
    """Lines and letters stand out from what they are drawn upon."""
    many = gmmx.GaussianMixture.create(20, 2)
    fit = gmmx.EMFitter().fit(x, gmm)
    with plt.style.context(style):
        drawn = [
            plot.ellipses(gmm, x), plot.ellipses(many), plot.density(gmm), plot.histogram(gmm, x),
            plot.histogram(many), plot.responsibilities(gmm, x),
            plot.responsibilities(many, many.sample(300)), plot.trace({"one": fit, "two": fit}),
            plot.pairs(gmm, x)[1, 0],
        ]  # fmt: skip
        for ax in drawn:
            ground = luminance(ax.get_facecolor())
            for text in (*ax.texts, ax.xaxis.label, *getattr(ax.get_legend(), "texts", ())):
                assert abs(luminance(text.get_color()) - ground) > 0.6
            for line in ax.lines:
                separates = line.get_color() == ax.get_facecolor()[:3]
                assert separates or abs(luminance(line.get_color()) - ground) > 0.15


def test_a_density_rises_from_the_ground(gmm):
    """Upon black as upon white, where it is higher it stands out more."""
    for style in ("default", "dark_background"):
        with plt.style.context(style):
            ax = plot.density(gmm)
            shades = [luminance(c[:3]) for c in ax.collections[0].get_facecolor()]
            rise = np.diff(np.abs(np.array(shades) - luminance(ax.get_facecolor())))
            assert len(shades) == 6 and (rise > 0).all()


def test_fits_and_estimators_are_drawn_as_their_mixtures(gmm, x):
    pandas = pytest.importorskip("pandas")
    fit = gmmx.EMFitter().fit(x, gmm)
    frame = pandas.DataFrame(x, columns=["one", "two", "three", "four"])
    ours = gmmx.sklearn.GaussianMixture(3, random_state=0).fit(frame)
    for given, mixture in ((fit, fit.gmm), (ours, gmmx.GaussianMixture.from_sklearn(ours))):
        here, there = (curves(plot.ellipses(g, levels=0.5)) for g in (given, mixture))
        np.testing.assert_array_equal(here, there)
        assert len(plot.responsibilities(given, x).patches) > 0
    assert plot.ellipses(ours, dims=("three", 0)).get_xlabel() == "three"
    assert plot.pairs(ours, x, dims=["four"], figure=Figure())[0, 0].get_xlabel() == "four"
    with pytest.raises(ValueError, match="not fitted"):
        plot.ellipses(gmmx.sklearn.GaussianMixture(3))


def test_logarithmic_axes(gmm, x, ax):
    """Refused where a feature is on them; a density may be."""
    ax.set_xscale("log")
    for draw in (plot.ellipses, plot.density, plot.histogram, plot.responsibilities):
        with pytest.raises(ValueError, match="x-axis of scale 'log'; expected a linear one"):
            draw(gmm, x, ax=ax)
    upright = Figure().add_subplot()
    upright.set_yscale("log")
    plot.histogram(gmm, x, ax=upright)
    low, high = upright.get_ylim()
    _, height = upright.lines[-1].get_data()
    assert 0 < low < 1e-4 * height.max() < height.max() < high
    upright.figure.canvas.draw()
    with pytest.raises(ValueError, match="y-axis"):
        plot.ellipses(gmm, x, ax=upright)


def test_components_of_no_weight_and_flat_ones(ax):
    """The first has no weight, the second is flat to rounding, the third far away and tiny."""
    flat = np.array([[1.0, 1.0], [1.0, 1 + 1e-14]])
    gmm = gmmx.GaussianMixture.from_parameters(
        [0.0, 0.5, 0.5], np.array([[0.0, 0], [1, 1], [50, 50]]),
        np.stack([np.eye(2), flat, 1e-10 * np.eye(2)]),
    )  # fmt: skip
    x = np.array([[1.0, 1.0], [2.0, 2.0], [50.0, 50.0], [0.5, 0.5]])
    for drawn in (plot.ellipses(gmm, x, ax=ax), plot.density(gmm, x), plot.histogram(gmm, x)):
        drawn.figure.canvas.draw()
    assert all(np.isfinite(curve).all() for curve in curves(ax))
    solid = (0, None)
    assert [style == solid for style in outlines(ax).get_linestyle()] == [True] * 4 + [False] * 2
    plot.responsibilities(gmm, x).figure.canvas.draw()


def test_traces(x, gmm, ax):
    em = gmmx.EMFitter(tol=1e-3).fit(x, gmm)
    with pytest.warns(gmmx.FitWarning):
        cut = gmmx.EMFitter(tol=0, max_iter=2).fit(x, gmm)
    plot.trace({"whole": em, "cut": cut}, ax=ax)
    steps, values = ax.lines[0].get_data()
    np.testing.assert_allclose(values, [*em.history, em.log_likelihood])
    assert list(steps) == list(range(1, int(em.n_iter) + 2))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["whole", "cut"]
    ends = [line.get_markerfacecolor() for line in ax.lines[1::2]]
    assert ends == [ax.lines[0].get_color(), (1, 1, 1)]
    assert plot.trace(em).get_legend() is None
    # Under a transformation the history is padded with NaN.
    padded = jax.jit(gmmx.EMFitter(tol=1e-3).fit)(x, gmm)
    np.testing.assert_allclose(plot.trace(padded).lines[0].get_ydata(), values, rtol=1e-9)


def test_a_selection(blobs):
    chosen = gmmx.select(blobs, [1, 2, 3], ["full", "diag"])
    broken = dataclasses.replace(
        chosen.candidates[1], bic=np.nan, icl=np.nan, aic=np.nan,
        result=eqx.tree_at(lambda r: r.status, chosen.candidates[1].result, Status.non_finite),
    )  # fmt: skip
    first, _, *rest = chosen.candidates
    chosen = dataclasses.replace(chosen, candidates=(first, broken, *rest))
    ax = chosen.plot()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    best = chosen.best
    assert labels == ["full", "diag", f"best: {best.covariance_type}, {best.n_components}"]
    ring = ax.lines[-1]
    assert list(ring.get_xdata()) == [best.n_components] and list(ring.get_ydata()) == [best.bic]
    crosses = sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() == "x")
    assert crosses == sum(c.failed for c in chosen.candidates) > 0
    assert plot.selection(chosen, criterion="aic").get_ylabel().startswith("AIC (smaller")
    with pytest.raises(ValueError, match="this selection has bic, icl, aic"):
        plot.selection(chosen, criterion="held_out")


def test_names_come_from_a_data_frame(gmm, x):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(x, columns=["one", "two", "three", "four"])
    ax = plot.ellipses(gmm, frame, dims=(2, 0))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("three", "one")
    assert plot.histogram(gmm, frame, feature_names="abcd", dim=3).get_xlabel() == "d"


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda g, x: plot.ellipses(g, dims=(0, 4)), "features from 0 to 3"),
        (lambda g, x: plot.ellipses(g, dims=(1, 1)), "2 different features"),
        (lambda g, x: plot.ellipses(g, dims=(0, 1, 2)), "2 different features"),
        (lambda g, x: plot.density(g, levels=(0.5, 1.0)), "between 0 and 1"),
        (lambda g, x: plot.density(g, levels=()), "between 0 and 1"),
        (lambda g, x: plot.ellipses(g, x[:, :2]), "x has 2 features"),
        (lambda g, x: plot.ellipses(g, x, feature_names=["a"]), "Got 1 names"),
        (lambda g, x: plot.ellipses(g, labels=["a"]), "Got 1 labels; expected 3"),
        (lambda g, x: plot.ellipses(g, dims=("one", 0)), "'one' names no feature"),
        (lambda g, x: plot.histogram(g, dim="a", feature_names="aabc"), "or several"),
        (lambda g, x: plot.histogram(g, dim=0.5), "expected an index"),
        (lambda g, x: plot.density(x), "expected a GaussianMixture"),
        (lambda g, x: plot.ellipses(g, x * np.nan), "NaN"),
        (lambda g, x: plot.responsibilities(g, None), "x is None"),
        (lambda g, x: plot.pairs(g, dims=()), "from 1 to 12"),
        (lambda g, x: plot.histogram(jax.tree.map(lambda leaf: leaf * np.nan, g)), "cannot be"),
        (lambda g, x: plot.trace([]), "expected a FitResult"),
        (lambda g, x: plot.ellipses(gmmx.GaussianMixture.create(2, 1)), "plot.histogram"),
    ],
)
def test_bad_input(gmm, x, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(gmm, x)


def test_matplotlib_is_imported_when_it_is_needed():
    """And drawing into Axes of one's own never imports pyplot."""
    program = (
        "import sys, gmmx; assert 'matplotlib' not in sys.modules\n"
        "from matplotlib.figure import Figure\n"
        "gmm = gmmx.GaussianMixture.create(2, 2)\n"
        "gmmx.plot.ellipses(gmm, gmm.sample(9), ax=Figure().add_subplot())\n"
        "gmmx.plot.pairs(gmm, gmm.sample(9), figure=Figure())\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
