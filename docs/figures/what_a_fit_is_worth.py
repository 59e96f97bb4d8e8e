"""Draw the pictures of the page on what a fit is worth.

docs/images/worth_bootstrap.png, worth_entropy.png and worth_uncertainty.png.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import gmmx
from gmmx import plot

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
NAMES = ("eruptions, minutes", "waiting, minutes")


def save(figure, name):
    figure.savefig(IMAGES / f"worth_{name}.png", dpi=140)
    plt.close(figure)


def cross():
    """A cross, which is two Gaussians, and two clusters beside it."""
    rng = np.random.default_rng(0)
    parts = [
        rng.normal(size=(150, 2)) * [1.0, 0.12],
        rng.normal(size=(150, 2)) * [0.12, 1.0],
        rng.uniform(-1, 1, size=(150, 2)) * [0.9, 0.9] + [4.5, 0.0],
        rng.normal(size=(150, 2)) * 0.4 + [1.5, 4.0],
    ]
    return np.concatenate(parts)


def main():
    x = np.loadtxt(ROOT / "tests" / "data" / "faithful.csv", delimiter=",", skiprows=1)
    gmm = gmmx.EMFitter(tol=1e-8, max_iter=1000).fit(x, 2).gmm
    order = np.argsort(gmm.means[:, 0])
    names = [("short", "long")[int(k)] for k in np.argsort(order)]

    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
    boot = gmmx.bootstrap(gmm, x)
    errors = gmmx.standard_errors(gmm, x)
    for k, ax in zip(order, axes, strict=True):
        means = np.asarray(boot.mixtures.means[:, k])
        colour = plot._parts.colour(int(k))
        ax.plot(*means.T, "o", ms=3, mew=0, alpha=0.35, c=colour)
        size = gmm.n_components
        rows = size + np.arange(2) + 2 * int(k)
        covariance = np.asarray(errors.covariance_matrix)[np.ix_(rows, rows)]
        angle = np.linspace(0, 2 * np.pi, 181)
        circle = np.linalg.cholesky(covariance) @ np.stack([np.cos(angle), np.sin(angle)])
        curve = np.asarray(gmm.means[k])[:, None] + np.sqrt(-2 * np.log(0.05)) * circle
        ax.plot(*curve, c="#1b1b1b", lw=1.4, label="95 %, information")
        ax.plot(*gmm.means[k], "+", c="#1b1b1b", ms=9, mew=1.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set(xlabel=NAMES[0], ylabel=NAMES[1], title=f"mean of the {names[int(k)]} eruptions")
    axes[0].legend(frameon=False, fontsize="small")
    save(figure, "bootstrap")

    x = cross()
    chosen = gmmx.select(x, range(3, 9), "full", n_init=5).best.gmm
    merged = gmmx.merge_by_entropy(chosen, x)
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 4.0), layout="constrained")
    plot.ellipses(chosen, x, ax=axes[0])
    axes[0].set_title(f"{chosen.n_components} components by BIC")
    colours = [plot._parts.colour(int(c)) for c in merged.predict(x)]
    axes[1].scatter(*x.T, s=12, c=colours, linewidths=0, alpha=0.75)
    axes[1].set(title=f"{merged.n_clusters} clusters", xlabel="feature 0", ylabel="feature 1")
    plot.entropy(merged, ax=axes[2])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    save(figure, "entropy")

    figure, ax = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
    plot.uncertainty(chosen, x, ax=ax)
    ax.spines[["top", "right"]].set_visible(False)
    save(figure, "uncertainty")


main()
