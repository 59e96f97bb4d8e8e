"""Fit ten Gaussians to handwritten digits with EM, with gradient descent and with scikit-learn.

The data are 1,797 images of 8×8 pixels, which come with scikit-learn. The fits use their first 16
principal components. All three fits start from the same mixture. The script prints a table and
draws the EM fit.
"""

import argparse
import time
from pathlib import Path

import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture as SklearnMixture

import gmmx

K = 10
HEADER = (
    "trainer", "log-likelihood", "BIC", "steps", "converged", "first call", "second call", "ARI",
)  # fmt: skip


def timed(fit):
    """The result of a call, and the seconds of a first call (which compiles) and a second."""
    start = time.perf_counter()
    jax.block_until_ready(fit())
    middle = time.perf_counter()
    outcome = jax.block_until_ready(fit())
    return outcome, (middle - start, time.perf_counter() - middle)


def scikit_learn(x, start):
    """Fit with scikit-learn, from the same start."""
    mixture = SklearnMixture(
        start.n_components,
        tol=1e-3,
        max_iter=100,
        weights_init=np.asarray(start.weights),
        means_init=np.asarray(start.means),
        precisions_init=np.asarray(start.precisions),
    )
    return mixture.fit(x)


def row(name, log_likelihood, bic, n_iter, converged, seconds, labels, truth):
    return (
        name,
        f"{log_likelihood:.4f}",
        f"{bic:.0f}",
        f"{n_iter}",
        "yes" if converged else "no",
        *(f"{value:.3f} s" for value in seconds),
        f"{adjusted_rand_score(truth, labels):.3f}",
    )


def print_table(rows):
    widths = [max(len(line[i]) for line in (HEADER, *rows)) for i in range(len(HEADER))]
    for line in (HEADER, tuple("-" * width for width in widths), *rows):
        cells = [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        print("  ".join(cells).rstrip())


def ellipse(mean, covariance, radius, **style):
    """The ellipse at `radius` standard deviations from the mean."""
    variances, axes = np.linalg.eigh(covariance)
    width, height = 2 * radius * np.sqrt(variances)
    angle = np.degrees(np.arctan2(axes[1, 0], axes[0, 0]))
    return Ellipse(mean, width, height, angle=angle, **style)


def draw(x, pca, em, gradient, path):
    """Draw the data and components, the means as images, and the likelihood of both trainers."""
    gmm = em.gmm
    means, covariances = np.asarray(gmm.means), np.asarray(gmm.covariances)
    labels = np.asarray(gmm.predict(x))
    colours = [f"C{k}" for k in range(K)]

    figure = plt.figure(figsize=(11, 5.6), layout="constrained")
    layout = figure.add_gridspec(2, 2, width_ratios=(1.15, 1), height_ratios=(1, 1.15))

    axes = figure.add_subfigure(layout[:, 0]).subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.scatter(*x[:, :2].T, s=5, c=[colours[k] for k in labels], alpha=0.45, linewidths=0)
    for k, colour in enumerate(colours):
        mean, covariance = means[k, :2], covariances[k, :2, :2]
        for radius, alpha in ((1, 0.16), (2, 0.07)):
            axes.add_patch(ellipse(mean, covariance, radius, color=colour, alpha=alpha, lw=0))
        axes.add_patch(ellipse(mean, covariance, 2, fill=False, ec=colour, lw=1.2))
    axes.set(xlabel="first principal component", ylabel="second principal component")
    axes.set_aspect("equal")
    axes.set_title("Ten Gaussians, at one and two standard deviations", fontsize=11)

    upper = figure.add_subfigure(layout[0, 1])
    images = pca.inverse_transform(means).reshape(K, 8, 8)
    for k, panel in enumerate(upper.subplots(2, K // 2).flat):
        panel.imshow(images[k], cmap="gray_r", vmin=0, vmax=16, interpolation="bicubic")
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set(color=colours[k], linewidth=2.5)
    upper.suptitle("Their means, as images", fontsize=11)

    axes = figure.add_subfigure(layout[1, 1]).subplots()
    axes.spines[["top", "right"]].set_visible(False)
    traces = ((em, "EM", "o-", "#1b1b1b"), (gradient, "gradient (Adam)", "-", "#d1495b"))
    for result, name, style, colour in traces:
        history = np.asarray(result.history)
        axes.plot(1 + np.arange(history.size), history, style, c=colour, ms=3, lw=1.6, label=name)
    # The first steps of gradient descent can lower the likelihood. The limits cut most of that off.
    final = max(float(em.log_likelihood), float(gradient.log_likelihood))
    begin = float(em.history[0])
    axes.set(xscale="log", xlabel="step", ylabel="mean log-likelihood, nats")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(begin - 0.6 * (final - begin), final + 0.15 * (final - begin))
    axes.set_title("Log-likelihood of both trainers at each step", fontsize=11)
    axes.legend(frameon=False, loc="lower right")

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Fit ten Gaussians to the handwritten digits.")
    parser.add_argument("--out", type=Path, default=Path("outputs/first_fit.png"))
    out = parser.parse_args().out
    mpl.use("agg")
    gmmx.enable_compilation_cache()

    pixels, digits = load_digits(return_X_y=True)
    pca = PCA(n_components=16, random_state=0)
    x = pca.fit_transform(pixels).astype(np.float32)
    start = gmmx.initialize(x, K, key=jax.random.key(0))

    rows, results = [], []
    trainers = {"gmmx EM": gmmx.EMFitter(), "gmmx gradient": gmmx.GradientFitter()}
    for name, trainer in trainers.items():
        result, seconds = timed(lambda trainer=trainer: trainer.fit(x, start))
        gmm = result.gmm
        rows.append(
            row(
                name, float(result.log_likelihood), float(gmm.bic(x)), int(result.n_iter),
                bool(result.converged), seconds, gmm.predict(x), digits,
            )
        )  # fmt: skip
        results.append(result)
    reference, seconds = timed(lambda: scikit_learn(x, start))
    rows.append(
        row(
            "scikit-learn", reference.score(x), reference.bic(x), reference.n_iter_,
            reference.converged_, seconds, reference.predict(x), digits,
        )
    )  # fmt: skip

    n, d = x.shape
    print(f"The digits: {n} samples of {d} principal components, {K} Gaussians, full covariances.")
    print("The first call compiles, or loads what an earlier run has compiled.")
    print("ARI: agreement with the true digits; 1 is perfect agreement.\n")
    print_table(rows)
    draw(x, pca, results[0], results[1], out)
    print(f"\nPicture: {out}")


if __name__ == "__main__":
    main()
