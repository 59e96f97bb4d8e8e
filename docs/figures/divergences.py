"""Draw docs/images/divergences.png: divergences between two mixtures as one of them is shifted."""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import gmmx

p = gmmx.GaussianMixture.from_parameters([0.6, 0.4], [[-2.0], [1.5]], [0.6, 0.4], "spherical")
q = gmmx.GaussianMixture.from_parameters(
    [0.3, 0.4, 0.3], [[-2.5], [-1.0], [1.5]], [0.5, 0.5, 0.8], "spherical"
)
shifts = np.linspace(-5, 5, 81)


@jax.jit
@jax.vmap
def compare(shift):
    moved = gmmx.GaussianMixture(q.logits, q.means + shift, q.structure)
    return {
        "sampled": gmmx.kl_divergence(p, moved, 2000),
        "variational": gmmx.kl_variational(p, moved),
        "upper": gmmx.kl_upper_bound(p, moved),
        "error": gmmx.integrated_squared_error(p, moved),
        "transport": gmmx.mixture_wasserstein(p, moved),
    }


values = jax.tree.map(np.asarray, compare(jnp.asarray(shifts)))
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
x = np.linspace(-5, 5, 400)
for gmm, name, colour in ((p, "p", "C0"), (q, "q", "C1")):
    density = np.exp(gmm.log_prob(x[:, None]))
    axes[0].fill_between(x, density, alpha=0.25, color=colour, linewidth=0)
    axes[0].plot(x, density, color=colour, label=name)
axes[0].set(title="the mixtures", xlabel="x", ylabel="density", ylim=(0, None))
mean, error = values["sampled"]
axes[1].fill_between(shifts, mean - 2 * error, mean + 2 * error, color="C0", alpha=0.3, linewidth=0)
axes[1].plot(shifts, mean, color="C0", label="2,000 samples, ± 2 s.e.")
axes[1].plot(shifts, values["variational"], "--", color="C2", label="variational")
axes[1].plot(shifts, values["upper"], ":", color="C3", label="upper bound")
axes[1].set(title="D(p ‖ shifted q)", xlabel="shift of q", ylabel="nats", ylim=(0, None))
axes[2].plot(shifts, values["transport"], color="C4", label="mixture Wasserstein")
axes[2].plot(shifts, 10 * values["error"], color="C5", label="10 × squared error")
axes[2].set(title="transport and squared error", xlabel="shift of q", ylim=(0, None))
for ax in axes:
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
out = Path(__file__).parents[1] / "images" / "divergences.png"
figure.savefig(out, dpi=130)
