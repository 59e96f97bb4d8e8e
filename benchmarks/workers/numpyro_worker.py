"""numpyro: the gradient of a mixture of the same Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions
from protocol import serve, versions


def loss(parameters, x):
    """The mean negative log-likelihood. The factor's diagonal is a logarithm, as in gmmx."""
    logits, means, factor = parameters
    diagonal = jnp.exp(jnp.diagonal(factor, axis1=1, axis2=2))
    root = jnp.tril(factor, -1) + diagonal[:, None] * jnp.eye(means.shape[1], dtype=means.dtype)
    mixture = distributions.MixtureSameFamily(
        distributions.Categorical(logits=logits),
        distributions.MultivariateNormal(means, scale_tril=root),
    )
    return -jnp.mean(mixture.log_prob(x))


def parameters_of(arrays):
    root = np.linalg.cholesky(arrays["covariances"])
    eye = np.eye(root.shape[-1], dtype=root.dtype)
    logs = np.log(np.diagonal(root, axis1=1, axis2=2))[:, None] * eye
    factor = np.tril(root, -1) + logs
    values = (np.log(arrays["weights"]), arrays["means"], factor)
    return tuple(jnp.asarray(value.astype(root.dtype)) for value in values)


def forward(arrays, options):
    parameters, x, call = parameters_of(arrays), jnp.asarray(arrays["x"]), jax.jit(loss)
    run = lambda: jax.block_until_ready(call(parameters, x))  # noqa: E731
    return run, lambda value: ({"loss": np.asarray(value)}, {})


def gradient(arrays, options):
    parameters, x = parameters_of(arrays), jnp.asarray(arrays["x"])
    call = jax.jit(jax.value_and_grad(loss))

    def outcome(result):
        value, (logits, means, _) = result
        outputs = {"loss": value, "logits": logits, "means": means}
        return {name: np.asarray(array) for name, array in outputs.items()}, {}

    return lambda: jax.block_until_ready(call(parameters, x)), outcome


if __name__ == "__main__":
    about = {"versions": versions("numpyro", "jax"), "device": jax.default_backend().upper()}
    serve({task.__name__: task for task in (forward, gradient)}, about)
