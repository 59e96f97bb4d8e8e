"""Draw docs/images/measured_rows.png: one catalogue, fitted naively and as it was measured."""

from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import gmmx

jax.config.update("jax_enable_x64", True)

truth = gmmx.GaussianMixture.from_parameters(
    weights=[0.5, 0.3, 0.2],
    means=[[-2.0, 0.0], [2.0, 1.5], [1.0, -2.0]],
    covariances=[
        [[1.2, 1.0], [1.0, 0.9]],
        [[0.05, 0.0], [0.0, 0.9]],
        [[0.9, -0.25], [-0.25, 0.1]],
    ],
)
rng = np.random.default_rng(0)
complete = np.asarray(truth.sample(1500, key=jax.random.key(1)))
deviations = rng.uniform(0.2, 1.2, size=complete.shape)
noisy = complete + deviations * rng.normal(size=complete.shape)
gaps = rng.uniform(size=complete.shape) < 0.25
measured = np.where(gaps, np.nan, noisy)

rows = gmmx.Data(measured, noise=deviations**2, missing=True)
whole = ~gaps.any(axis=1)
fitter = gmmx.EMFitter(tol=1e-6, max_iter=3000)
naive = fitter.fit(noisy[whole], gmmx.initialize(noisy[whole], 3)).gmm
fitted = gmmx.Restarts(fitter, n_init=4).fit(rows, gmmx.initialize(rows, 3)).gmm

axis = np.linspace(-5.2, 5.2, 240)
grid = np.stack(np.meshgrid(axis, axis), axis=-1)
figure, axes = plt.subplots(
    2, 2, figsize=(7.6, 8.2), sharex=True, sharey=True, layout="constrained"
)
panels = (
    ("what there is", complete, truth),
    (f"{whole.sum()} of {len(noisy)} rows are whole", noisy[whole], None),
    ("fitted to the whole rows", None, naive),
    ("fitted to gmmx.Data", None, fitted),
)
held_out = truth.sample(20_000, key=jax.random.key(2))
for ax, (title, points, gmm) in zip(axes.flat, panels, strict=True):
    if gmm is not None:
        title = f"{title}\n{gmm.score(held_out):.2f} nats a new row".replace("-", "−")
        ax.contourf(axis, axis, np.exp(gmm.log_prob(grid)), 14, cmap="Blues")
    if points is not None:
        ax.scatter(*points.T, s=2, color="C1", linewidths=0, alpha=0.6)
    ax.set(title=title, xlim=(-5.2, 5.2), ylim=(-5.2, 5.2), aspect="equal", xticks=[], yticks=[])

figure.savefig(Path(__file__).parent.parent / "images" / "measured_rows.png", dpi=150)
