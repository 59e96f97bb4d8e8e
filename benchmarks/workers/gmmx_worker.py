"""gmmx."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from protocol import serve, versions

import gmmx

warnings.simplefilter("ignore", gmmx.FitWarning)  # the number of iterations is fixed


def model(arrays, options):
    parameters = (arrays[name] for name in ("weights", "means", "covariances"))
    return gmmx.GaussianMixture.from_parameters(*parameters, options["covariance_type"])


def fitter(options, n_features):
    # In the squared units of the data, as the other libraries have it.
    reg_covar = np.full(n_features, options["reg_covar"])
    return gmmx.EMFitter(tol=0, max_iter=options["iterations"], reg_covar=reg_covar)


def parameters_of(gmm):
    return {
        "weights": np.asarray(gmm.weights),
        "means": np.asarray(gmm.means),
        "covariances": np.asarray(gmm.covariances),
    }


def train(arrays, options):
    start, x = model(arrays, options), jnp.asarray(arrays["x"])
    fit = fitter(options, x.shape[-1]).fit
    if options.get("jit"):
        fit = eqx.filter_jit(fit)

    def outcome(result):
        return parameters_of(result.gmm), {"n_iter": int(result.n_iter)}

    return lambda: jax.block_until_ready(fit(x, start)), outcome


def predict(arrays, options):
    gmm, x = model(arrays, options), jnp.asarray(arrays["x"])
    if options.get("jit"):
        predict = eqx.filter_jit(lambda gmm, x: gmm.predict(x))
    else:
        predict = gmmx.GaussianMixture.predict

    return lambda: jax.block_until_ready(predict(gmm, x)), outcome_of("labels")


def many(arrays, options):
    x = jnp.asarray(arrays["x"])
    em = fitter(options, x.shape[-1])
    starts = jax.vmap(gmmx.GaussianMixture.from_parameters)(
        *(jnp.asarray(arrays[name]) for name in ("weights", "means", "covariances"))
    )
    fit = eqx.filter_jit(jax.vmap(lambda x, start: em.fit(x, start).gmm))

    def outcome(gmm):
        return parameters_of_stack(gmm), {}

    return lambda: jax.block_until_ready(fit(x, starts)), outcome


def parameters_of_stack(gmm):
    values = jax.vmap(lambda g: (g.weights, g.means, g.covariances))(gmm)
    return dict(zip(("weights", "means", "covariances"), map(np.asarray, values), strict=True))


def forward(arrays, options):
    loss = jax.jit(lambda gmm, x: -gmm.score(x))
    return _loss(loss, arrays, options, outcome_of("loss"))


def gradient(arrays, options):
    loss = jax.jit(jax.value_and_grad(lambda gmm, x: -gmm.score(x)))

    def outcome(result):
        value, slope = result
        outputs = {"loss": value, "logits": slope.logits, "means": slope.means}
        return {name: np.asarray(array) for name, array in outputs.items()}, {}

    return _loss(loss, arrays, options, outcome)


def _loss(loss, arrays, options, outcome):
    gmm, x = model(arrays, options), jnp.asarray(arrays["x"])
    return lambda: jax.block_until_ready(loss(gmm, x)), outcome


def matmul(arrays, options):
    """One matrix product, (m, k) times (k, n), or the transpose of (k, m) times (k, n)."""
    m, k, n = options["shape"]
    keys = jax.random.split(jax.random.key(0))
    a = jax.random.normal(keys[0], (k, m) if options["transposed"] else (m, k))
    b = jax.random.normal(keys[1], (k, n))
    contracted = (((0,), (0,)) if options["transposed"] else ((1,), (0,)), ((), ()))
    precision = jax.lax.Precision.HIGHEST
    product = jax.jit(lambda a, b: jax.lax.dot_general(a, b, contracted, precision=precision))
    return lambda: jax.block_until_ready(product(a, b)), lambda _: ({}, {})


def log_prob(arrays, options):
    gmm, x = model(arrays, options), jnp.asarray(arrays["x"])
    return lambda: jax.block_until_ready(gmm.log_prob(x)), outcome_of("log_prob")


def outcome_of(name):
    return lambda array: ({name: np.asarray(array)}, {})


if __name__ == "__main__":
    tasks = (train, predict, many, forward, gradient, matmul, log_prob)
    device = jax.devices()[0]
    about = {
        "versions": versions("gmmx", "jax", "jaxlib", "equinox", "numpy"),
        "device": "CPU" if device.platform == "cpu" else device.device_kind,
    }
    serve({task.__name__: task for task in tasks}, about)
