"""Draw the pictures of docs/algebra.md, one for each operation.

Run it as `python docs/figures/algebra.py`.
"""

from pathlib import Path

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

import gmmx

IMAGES = Path(__file__).parent.parent / "images"
INK, WARM, COOL = "#1f3b57", "#c8553d", "#3d7ea6"
plt.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#888888",
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }
)

GMM = gmmx.GaussianMixture.from_parameters(
    [0.4, 0.35, 0.25],
    [[-2.0, -1.0], [1.5, 1.6], [2.0, -2.2]],
    [[[1.0, 0.6], [0.6, 0.8]], [[1.2, -0.7], [-0.7, 0.7]], [[0.5, 0.0], [0.0, 0.4]]],
)
REACH = np.linspace(-6, 6, 241)


def density(axis, gmm, color=INK, reach=REACH, **kwargs):
    """Draw contours of the density; the innermost is at 90 % of the maximum."""
    x, y = np.meshgrid(reach, reach)
    p = np.exp(gmm.log_prob(np.stack([x, y], -1)))
    levels = p.max() * np.array([0.02, 0.1, 0.3, 0.6, 0.9])
    axis.contour(x, y, p, levels=levels, colors=color, linewidths=1.0, **kwargs)
    axis.set(xlabel="$x_0$", ylabel="$x_1$", aspect="equal")


def ellipses(axis, gmm, color, reach=1.5):
    """Draw each component at `reach` standard deviations; heavier components have wider lines."""
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    largest = float(gmm.weights.max())
    for w, mean, c in zip(gmm.weights, gmm.means, np.asarray(gmm.covariances), strict=True):
        line = np.asarray(mean)[:, None] + reach * np.linalg.cholesky(c) @ circle
        axis.plot(*line, color=color, lw=0.6 + 1.6 * float(w) / largest)
    axis.set(xlabel="$x_0$", ylabel="$x_1$", aspect="equal")


def save(figure, name):
    figure.savefig(IMAGES / f"algebra_{name}.png", dpi=130)
    plt.close(figure)


def marginal():
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.2), width_ratios=[1, 1.3])
    density(axes[0], GMM)
    axes[0].set_title("the mixture")
    x = REACH[:, None]
    for i, color in ((0, COOL), (1, WARM)):
        p = np.exp(GMM.marginal([i]).log_prob(x))
        axes[1].plot(x, p, color=color, label=f"marginal([{i}])")
    axes[1].set(xlabel="value of the feature", ylabel="density", ylim=(0, None))
    axes[1].set_title("its marginals")
    axes[1].legend()
    save(figure, "marginal")


def condition():
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.2), width_ratios=[1, 1.3])
    density(axes[0], GMM)
    axes[0].set_title("the mixture and three values of $x_0$")
    values = np.array([[-2.0], [0.5], [2.0]])
    batch = GMM.condition([0], values)
    x = REACH[:, None]
    densities = np.exp(batch.map(lambda gmm: gmm.log_prob(x)))
    for value, p, color in zip(values[:, 0], densities, (COOL, INK, WARM), strict=True):
        axes[0].axvline(value, color=color, lw=1.2, ls="--")
        axes[1].plot(x, p, color=color, label=f"$x_0$ = {value:g}")
    axes[1].set(xlabel="$x_1$", ylabel="density", ylim=(0, None))
    axes[1].set_title("condition([0], values): $p(x_1 | x_0)$")
    axes[1].legend()
    save(figure, "condition")


def regression():
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, size=600)
    y = np.sin(1.5 * x) + (0.08 + 0.1 * (x > 0)) * rng.normal(size=x.size)
    data = np.stack([x, y], 1)
    gmm = gmmx.EMFitter().fit(data, gmmx.initialize(data, 10)).gmm
    at = np.linspace(-3, 3, 200)
    mean, covariance = (np.asarray(v) for v in gmm.regress([0], at[:, None]))
    width = 2 * np.sqrt(covariance[:, 0, 0])
    figure, axis = plt.subplots(figsize=(5.6, 3.2))
    axis.plot(x, y, ".", color="#999999", ms=3, label="data")
    axis.fill_between(
        at, mean[:, 0] - width, mean[:, 0] + width, color=COOL, alpha=0.25, lw=0,
        label="± 2 standard deviations",
    )  # fmt: skip
    axis.plot(at, mean[:, 0], color=WARM, label="regress([0], x)")
    axis.set(xlabel="$x_0$", ylabel="$x_1$", ylim=(-1.8, 2.6))
    axis.legend(ncol=3, loc="upper center", fontsize=8)
    save(figure, "regression")


def affine():
    angle = np.pi / 5
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2), sharey=True)
    density(axes[0], GMM)
    axes[0].set_title("x")
    density(axes[1], GMM.affine(turn * [1.2, 0.6], [0.5, 0.5]), WARM)
    axes[1].set_title("affine(A, b): Ax + b")
    axes[1].set_ylabel("")
    save(figure, "affine")


def convolve():
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.4), sharey=True)
    matrix = np.array([[1.0, -0.9], [-0.9, 1.0]])
    for axis, noise, title in (
        (axes[0], 0.0, "convolve(0): x itself"),
        (axes[1], 0.8, "convolve(0.8): σ²"),
        (axes[2], matrix, "convolve(C): a matrix"),
    ):
        density(axis, GMM.convolve(noise), INK if axis is axes[0] else WARM)
        axis.set_title(title)
    for axis in axes[1:]:
        axis.set_ylabel("")
    save(figure, "convolve")


def product():
    other = gmmx.GaussianMixture.from_parameters(
        [0.5, 0.5],
        [[0.0, 2.0], [1.0, -2.0]],
        [[[4.0, 0.0], [0.0, 0.3]], [[0.4, 0.0], [0.0, 2.0]]],
    )
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2), sharey=True)
    density(axes[0], GMM, INK)
    density(axes[0], other, COOL)
    axes[0].set_title("p and q")
    density(axes[1], gmmx.product(GMM, other), WARM)
    axes[1].set_title("product(p, q)")
    axes[1].set_ylabel("")
    save(figure, "product")


def many(seed=4, k=14):
    rng = np.random.default_rng(seed)
    means = np.concatenate([centre + 0.9 * rng.normal(size=(k, 2)) for centre in GMM.means])[::3]
    roots = 0.45 * rng.normal(size=(len(means), 2, 2)) + 0.5 * np.eye(2)
    weights = np.full(len(means), 1 / len(means))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.05 * np.eye(2)
    return gmmx.GaussianMixture.from_parameters(weights, means, covariances)


def reduce():
    gmm = many()
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.3), sharey=True)
    for axis, n, color in zip(axes, (gmm.n_components, 5, 3), (INK, COOL, WARM), strict=True):
        ellipses(axis, gmm.reduce(n), color)
        axis.set_title(f"{n} components" if axis is axes[0] else f"reduce({n})")
        axis.set(xlim=(-6, 6), ylim=(-6.5, 5.5))
    for axis in axes[1:]:
        axis.set_ylabel("")
    save(figure, "reduce")


def collapse():
    figure, axis = plt.subplots(figsize=(3.6, 3.3))
    density(axis, GMM, INK)
    ellipses(axis, GMM.collapse(), WARM, 2.0)
    axis.set_title("collapse(), at two standard deviations")
    save(figure, "collapse")


def posterior():
    """Digits that are not in the training data, denoised and inpainted."""
    x = load_digits().data / 16 + 0.02 * np.random.default_rng(0).normal(size=(1797, 64))
    train, test = x[:1500], x[[1501, 1512, 1523, 1537, 1564]]
    gmm = gmmx.EMFitter(reg_covar=1e-3).fit(train, gmmx.initialize(train, 20)).gmm
    rng = np.random.default_rng(1)
    sigma = 0.35
    noisy = test + sigma * rng.normal(size=test.shape)
    seen = rng.uniform(size=test.shape) < 0.4
    holed = np.where(seen, test, np.nan)
    denoised = gmm.posterior(noisy, None, sigma**2).mean()
    filled = gmm.posterior(holed, None, jnp.where(seen, 0.02**2, jnp.inf))
    width = jnp.sqrt(jnp.diagonal(filled.covariance(), axis1=-2, axis2=-1))
    rows = {
        "digit": test, "noisy": noisy, "denoised": denoised, "40 % observed": holed,
        "inpainted": filled.mean(), "2 std. deviations": 2 * width,
    }  # fmt: skip
    figure, axes = plt.subplots(len(test), len(rows), figsize=(6.6, 5.6))
    for column, (title, images) in enumerate(rows.items()):
        for row, image in enumerate(np.asarray(images)):
            axis = axes[row, column]
            axis.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[], facecolor="#f3d9c4")
            axis.spines[:].set_visible(False)
        axes[0, column].set_title(title, loc="center", fontsize=9)
    save(figure, "posterior")


if __name__ == "__main__":
    for draw in (
        marginal, condition, regression, affine, convolve, product, reduce, collapse, posterior
    ):  # fmt: skip
        draw()
