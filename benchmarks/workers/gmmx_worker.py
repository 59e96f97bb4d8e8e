"""gmmx itself."""

import contextlib
import dataclasses
import os
import warnings
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from protocol import serve, versions

import gmmx
from gmmx import _accuracy
from gmmx._accuracy import PACKED, Plan, Route
from gmmx._density import packed_share

warnings.simplefilter("ignore", gmmx.FitWarning)  # the number of iterations is given


def model(arrays, options):
    parameters = (arrays[name] for name in ("weights", "means", "covariances"))
    return gmmx.GaussianMixture.from_parameters(*parameters, options["covariance_type"])


def fitter(options):
    return gmmx.EMFitter(tol=0, max_iter=options["iterations"], reg_covar=options["reg_covar"])


def parameters_of(gmm):
    return {
        "weights": np.asarray(gmm.weights),
        "means": np.asarray(gmm.means),
        "covariances": np.asarray(gmm.covariances),
    }


def train(arrays, options):
    start, x = model(arrays, options), jnp.asarray(arrays["x"])
    fit = fitter(options).fit
    if options.get("jit"):
        fit = eqx.filter_jit(fit)

    def outcome(result):
        facts = {"n_iter": int(result.n_iter), "packed": float(result.packed)}
        return parameters_of(result.gmm), facts

    return lambda: jax.block_until_ready(fit(x, start)), outcome


def predict(arrays, options):
    gmm, x = model(arrays, options), jnp.asarray(arrays["x"])
    if options.get("jit"):
        predict = eqx.filter_jit(lambda gmm, x: gmm.predict(x))
    else:
        predict = gmmx.GaussianMixture.predict

    def outcome(labels):
        return {"labels": np.asarray(labels)}, {"packed": float(packed_share(gmm, x))}

    return lambda: jax.block_until_ready(predict(gmm, x)), outcome


def many(arrays, options):
    x, em = jnp.asarray(arrays["x"]), fitter(options)
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
    return _loss(loss, arrays, options, lambda value: ({"loss": np.asarray(value)}, {}))


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
    """One matrix product, (m, k) times (k, n), or with the left one transposed."""
    m, k, n = options["shape"]
    keys = jax.random.split(jax.random.key(0))
    a = jax.random.normal(keys[0], (k, m) if options["transposed"] else (m, k))
    b = jax.random.normal(keys[1], (k, n))
    contracted = (((0,), (0,)) if options["transposed"] else ((1,), (0,)), ((), ()))
    precision = jax.lax.Precision.HIGHEST
    product = jax.jit(lambda a, b: jax.lax.dot_general(a, b, contracted, precision=precision))
    return lambda: jax.block_until_ready(product(a, b)), lambda _: ({}, {})


def step(arrays, options):
    """One EM step as it is, or with the accuracy gate taken out."""
    em = fitter(options)

    def begin(x, gmm):
        data = em.prepare(x, gmm)
        return data, em.init(data, gmm, None, jax.random.key(0))

    with without_gate() if options["gateless"] else contextlib.nullcontext():
        data, state = jax.jit(begin)(jnp.asarray(arrays["x"]), model(arrays, options))
        advance = jax.jit(lambda state, data: em.step(state, data, None))
        compiled = advance.lower(state, data).compile()

    def outcome(state):
        return {}, {"packed": float(np.mean(np.asarray(state.inner.route.ways) == PACKED))}

    return lambda: jax.block_until_ready(compiled(state, data)), outcome


@contextlib.contextmanager
def without_gate():
    """All rows packed and no component narrow, unasked."""
    made = Plan.of

    def plan(gmm, x, products):
        return dataclasses.replace(made(gmm, x, products), apart=False)

    def route(seen, reaches, fastest, apart):
        ways = jnp.full(reaches.shape[0], PACKED, jnp.int32)
        return dataclasses.replace(Route.whitened(ways.size, seen.means), ways=ways)

    def switch(index, branches, *operands):
        return branches[-1](*operands)

    def cond(condition, true, false, *operands):
        return true(*operands)

    with (
        mock.patch.object(Plan, "of", plan),
        mock.patch.object(Route, "of", route),
        mock.patch.object(jax.lax, "switch", switch),
        mock.patch.object(jax.lax, "cond", cond),
    ):
        yield


_compiled = {}


def log_prob(arrays, options):
    """log p(x) as gmmx takes it, or with the limits of the gate moved: all packed, all whitened."""
    limit = {"decided": None, "packed": np.inf, "whitened": -np.inf}[options["way"]]
    dtype = jnp.dtype(options["precision"])
    limits = _accuracy.LIMIT if limit is None else dict.fromkeys(_accuracy.LIMIT, limit)
    telling = _accuracy._TELLING if limit is None else limit
    rounded = {name: array.astype(np.float32) for name, array in arrays.items()}
    start = model(rounded, options)
    gmm = jax.tree.map(lambda leaf: leaf.astype(dtype), start)
    x = jnp.asarray(rounded["x"]).astype(dtype)
    key = (options["way"], options["precision"], x.shape)
    if key not in _compiled:
        jax.clear_caches()  # of programs traced with another limit
        with (
            mock.patch.object(_accuracy, "LIMIT", limits),
            mock.patch.object(_accuracy, "_TELLING", telling),
        ):
            evaluate = jax.jit(lambda gmm, x: (gmm.log_prob(x), packed_share(gmm, x)))
            _compiled[key] = evaluate.lower(gmm, x).compile()
        jax.clear_caches()

    def outcome(result):
        return {"log_prob": np.asarray(result[0])}, {"packed": float(result[1])}

    return lambda: jax.block_until_ready(_compiled[key](gmm, x)), outcome


if __name__ == "__main__":
    tasks = (train, predict, many, forward, gradient, matmul, step, log_prob)
    device = jax.devices()[0]
    about = {
        "versions": versions("gmmx", "jax", "jaxlib", "equinox", "numpy"),
        "device": "CPU" if device.platform == "cpu" else device.device_kind,
        "x64": os.environ.get("JAX_ENABLE_X64") == "1",
    }
    serve({task.__name__: task for task in tasks}, about)
