"""Draw the pictures of docs/what_is_a_mixture.md."""

from pathlib import Path

import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import gmmx
from gmmx import plot

IMAGES = Path(__file__).parents[1] / "images"
INK = "#222222"
COLOURS = ("#0072b2", "#d55e00", "#009e73")

# One feature, as on the page.
TRUTH = gmmx.GaussianMixture.from_parameters(
    weights=[0.5, 0.3, 0.2],
    means=[[0.0], [3.0], [7.0]],
    covariances=[[[1.0]], [[0.5]], [[2.0]]],
)


def save(figure, name):
    figure.savefig(IMAGES / f"mixture_{name}.png", dpi=110, facecolor="white")
    plt.close(figure)


def density_and_responsibilities():
    """The components, their sum and samples; and the share of each component at every point."""
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(7.2, 4.6), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    x = np.linspace(-4, 12, 600)[:, None]
    parts = np.exp(TRUTH.component_log_prob(x))
    samples = np.asarray(TRUTH.sample(1000, key=jax.random.key(0)))[:, 0]
    upper.hist(samples, 60, density=True, color="#dddddd", label="1000 samples")
    for k, colour in enumerate(COLOURS):
        upper.plot(x[:, 0], parts[:, k], color=colour, label=f"$w_{k} N(x; μ_{k}, σ_{k}^2)$")
    upper.plot(x[:, 0], parts.sum(1), color=INK, lw=1.8, label="$p(x)$")
    upper.set(ylabel="density")
    upper.legend(frameon=False, fontsize=9)
    lower.stackplot(x[:, 0], TRUTH.predict_proba(x).T, colors=COLOURS, alpha=0.85)
    lower.set(xlim=(-4, 12), ylim=(0, 1), xlabel="x", ylabel="responsibility")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, "density")


def em():
    """EM after some numbers of steps, from a poor start."""
    rng = np.random.default_rng(4)
    x = np.concatenate(
        [
            rng.normal((0, 0), (1.2, 0.5), (250, 2)),
            rng.normal((3, 2), (0.5, 1.1), (200, 2)),
            rng.normal((-1, 3.5), (0.7, 0.7), (150, 2)),
        ]
    )
    gmm = gmmx.initialize(x, 3, method="random", key=jax.random.key(7))
    figure, panels = plt.subplots(2, 3, figsize=(9.2, 6.0), layout="constrained")
    likelihood, step = [float(gmm.score(x))], 0
    for axes, until in zip(panels.ravel(), (0, 5, 10, 20, 60), strict=False):
        while step < until:
            gmm = gmmx.GaussianMixture.from_responsibilities(x, gmm.predict_proba(x))
            likelihood.append(float(gmm.score(x)))
            step += 1
        plot.ellipses(gmm, x, ax=axes, levels=(0.5, 0.9))
        axes.set(title=f"{until} steps" if until else "the start", xlabel="", ylabel="")
        axes.set(xticks=[], yticks=[])
        axes.get_legend().remove()
    last = panels[1, 2]
    last.plot(likelihood, color=INK, marker=".", ms=4, lw=1)
    last.set(title="mean log-likelihood", xlabel="step", ylabel="nats per sample")
    last.spines[["top", "right"]].set_visible(False)
    save(figure, "em")


if __name__ == "__main__":
    mpl.use("agg")
    density_and_responsibilities()
    em()
