"""Draw docs/images/through_the_fit.png: the derivative of a fit by the weight of each sample."""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import gmmx

jax.config.update("jax_enable_x64", True)

# The example of docs/through_the_fit.md, with clusters that are closer together.
x = jax.random.normal(jax.random.key(0), (300, 2))
x = x.at[:150].add(jnp.array([3.5, 1.0]))
start = gmmx.initialize(x, 2)
fitter = gmmx.EMFitter(tol=1e-12, max_iter=2000)


def first_mean(weights):
    mixture = fitter.fit(x, start, weights=weights).gmm
    return mixture.means[0, 0], mixture


influence, gmm = jax.jit(jax.grad(first_mean, has_aux=True))(jnp.ones(300))
# In units of the effect of one sample of weight one on the mean of 300 samples.
influence = 300 * np.asarray(influence)
limit = np.abs(influence).max()

figure, axes = plt.subplots(figsize=(5.6, 4.0), layout="constrained")
dots = axes.scatter(
    *x.T, c=influence, cmap="RdBu_r", vmin=-limit, vmax=limit, s=26, lw=0.4, ec="grey"
)
for k, (mean, covariance) in enumerate(zip(gmm.means, gmm.covariances, strict=True)):
    angle = np.linspace(0, 2 * np.pi, 200)
    root = np.linalg.cholesky(np.asarray(covariance))
    ring = np.asarray(mean)[:, None] + 2 * root @ np.stack([np.cos(angle), np.sin(angle)])
    axes.plot(*ring, color="black", lw=1.4 if k == 0 else 0.8, ls="-" if k == 0 else "--")
    axes.plot(*mean, "+", color="black", ms=9)
figure.colorbar(dots, label="n · ∂ mean / ∂ weight of the sample")
axes.set(xlabel="$x_0$", ylabel="$x_1$")
axes.set_aspect("equal")
axes.spines[["top", "right"]].set_visible(False)
figure.savefig(Path(__file__).parents[1] / "images" / "through_the_fit.png", dpi=130)
