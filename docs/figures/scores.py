"""Draw docs/images/scores.png: scores at two noise levels, and samples made by following them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import gmmx

gmm = gmmx.GaussianMixture.from_parameters(
    weights=[0.3, 0.3, 0.4],
    means=[[-2.5, 0], [2.5, 1], [0.5, -2.5]],
    covariances=[[[0.3, 0.3], [0.3, 0.8]], [[0.8, -0.4], [-0.4, 0.4]], [[0.9, 0], [0, 0.15]]],
)


@jax.jit
def denoise(key):
    """Integrate dx/dσ = −σ·score (Karras et al. 2022), the probability flow, from 10 to 0.01."""
    sigmas = jnp.geomspace(10.0, 0.01, 120)
    x = 10 * jax.random.normal(key, (1500, 2))

    def step(x, pair):
        sigma, following = pair
        slope = -sigma * gmm.noise_score(x, sigma)
        ahead = x + (following - sigma) * slope
        return x + (following - sigma) * (slope - following * gmm.noise_score(ahead, following)) / 2

    return jax.lax.scan(lambda x, pair: (step(x, pair), None), x, (sigmas[:-1], sigmas[1:]))[0]


axis = np.linspace(-5, 5, 200)
grid = np.stack(np.meshgrid(axis, axis), axis=-1)
coarse = np.linspace(-4.6, 4.6, 17)
arrows = np.stack(np.meshgrid(coarse, coarse), axis=-1)

figure, axes = plt.subplots(
    1, 3, figsize=(10.5, 4.1), sharex=True, sharey=True, layout="constrained"
)
for ax, sigma in zip(axes, (0.0, 1.5), strict=False):
    noisy = gmmx.GaussianMixture.from_parameters(
        gmm.weights, gmm.means, gmm.covariances + sigma**2 * np.eye(2)
    )
    ax.contourf(axis, axis, np.exp(noisy.log_prob(grid)), 12, cmap="Blues")
    score = np.asarray(gmm.noise_score(arrows, sigma))
    # Lengths are square roots, so that short arrows stay visible next to long ones.
    length = np.linalg.norm(score, axis=-1, keepdims=True)
    u, v = np.moveaxis(score / np.sqrt(length), -1, 0)
    ax.quiver(*np.moveaxis(arrows, -1, 0), u, v, color="0.25", width=0.004, scale_units="xy",
              scale=6 if sigma == 0 else 2.6)  # fmt: skip
    ax.set_title(f"score at σ = {sigma:g}")
draws = np.asarray(denoise(jax.random.key(0)))
axes[2].contourf(axis, axis, np.exp(gmm.log_prob(grid)), 12, cmap="Blues")
axes[2].scatter(*draws.T, s=3, color="C1", linewidths=0)
axes[2].set_title("1,500 samples, started at σ = 10")
for ax in axes:
    ax.set(aspect="equal", xlim=(-5, 5), ylim=(-5, 5), xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")
out = Path(__file__).parents[1] / "images" / "scores.png"
figure.savefig(out, dpi=130)
