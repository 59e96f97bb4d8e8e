"""GMMX 0.7, in an environment of its own because it is imported as gmmx too."""

import jax
import jax.numpy as jnp
import numpy as np
from protocol import serve, versions

from gmmx import EMFitter, GaussianMixtureModelJax


def model(arrays, options):
    return GaussianMixtureModelJax.from_squeezed(
        means=jnp.asarray(arrays["means"]),
        covariances=jnp.asarray(arrays["covariances"]),
        weights=jnp.asarray(arrays["weights"]),
        covariance_type=options["covariance_type"],
    )


def train(arrays, options):
    start, x = model(arrays, options), jnp.asarray(arrays["x"])
    fitter = EMFitter(tol=0, max_iter=options["iterations"], reg_covar=options["reg_covar"])

    def outcome(result):
        gmm = result.gmm
        fitted = {
            "weights": gmm.weights_numpy,
            "means": gmm.means_numpy,
            "covariances": gmm.covariances.values_numpy,
        }
        return fitted, {"n_iter": int(result.n_iter)}

    return lambda: jax.block_until_ready(fitter.fit(x, start)), outcome


def predict(arrays, options):
    gmm, x = model(arrays, options), jnp.asarray(arrays["x"])

    def outcome(labels):
        return {"labels": np.asarray(labels).ravel()}, {}

    return lambda: jax.block_until_ready(gmm.predict(x)), outcome


if __name__ == "__main__":
    device = jax.devices()[0]
    about = {
        "versions": versions("gmmx", "jax", "jaxlib"),
        "device": "CPU" if device.platform == "cpu" else device.device_kind,
    }
    serve({task.__name__: task for task in (train, predict)}, about)
