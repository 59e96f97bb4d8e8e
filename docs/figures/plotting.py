"""Draw the pictures of docs/plotting.md and docs/selection.md."""

import warnings
from pathlib import Path

import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_iris

import gmmx
from gmmx import plot

IMAGES = Path(__file__).parents[1] / "images"
NAMES = ("sepal length, cm", "sepal width, cm", "petal length, cm", "petal width, cm")


def save(drawn, name):
    axes = np.atleast_1d(np.asarray(drawn, dtype=object)).ravel()[0]
    axes.figure.savefig(IMAGES / f"plot_{name}.png", dpi=110)
    plt.close(axes.figure)


def two_features():
    """Samples of five clusters in two dimensions, one of them narrow, and a fit to them."""
    rng = np.random.default_rng(3)
    centres = np.array([[0, 0], [4, 1], [1, 5], [6, 6], [3.2, 3.4]])
    roots = np.array(
        [[[1, 0], [0.6, 0.6]], [[0.7, 0], [-0.5, 0.9]], [[1.1, 0], [0.2, 0.5]],
         [[0.9, 0], [0.7, 0.4]], [[0.25, 0], [0, 0.25]]]
    )  # fmt: skip
    counts = (400, 300, 300, 350, 150)
    x = np.concatenate(
        [c + rng.normal(size=(n, 2)) @ r.T for c, r, n in zip(centres, roots, counts, strict=True)]
    )
    start = gmmx.initialize(x, 5, key=jax.random.key(1))
    return x, gmmx.Restarts(gmmx.EMFitter(tol=1e-6, max_iter=1000), 5).fit(x, start).gmm


def main():
    mpl.use("agg")
    x, gmm = two_features()
    save(plot.ellipses(gmm, x), "ellipses")
    save(plot.density(gmm, x), "density")
    save(plot.density(gmm, log=True), "log_density")
    save(plot.histogram(gmm, x, dim=0), "histogram")
    save(plot.responsibilities(gmm, x), "responsibilities")
    save(plot.ellipses(gmm, gmm.sample(1_000_000)), "million")
    many = gmmx.GaussianMixture.create(20, 2, key=jax.random.key(5))
    with plt.style.context("dark_background"):
        save(plot.ellipses(many, many.sample(3000)), "dark")

    iris = load_iris().data
    chosen = gmmx.select(iris, fitter=gmmx.EMFitter(tol=1e-6, max_iter=500))
    save(plot.selection(chosen), "selection")
    start = gmmx.initialize(iris, 3)
    em = gmmx.EMFitter(tol=1e-6, max_iter=500).fit(iris, start)
    save(plot.pairs(em, iris, feature_names=NAMES), "pairs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        gradient = gmmx.GradientFitter().fit(iris, start)
    save(plot.trace({"EM": em, "gradient (Adam)": gradient}), "trace")


if __name__ == "__main__":
    main()
