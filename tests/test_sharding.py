"""Rows that are spread over devices: inside `shard_map`, under its default checks, and outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gmmx
from gmmx import EMFitter, GradientFitter, Restarts

K, D = 4, 3

pytestmark = [
    pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="a version of JAX without it"),
    pytest.mark.usefixtures("optax_promotion"),
]


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()[:2]), ("rows",))


def points(n):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(n, D)) + 4 * rng.integers(0, K, size=(n, 1)))


def on_each(mesh, fn, *specs):
    """`fn` on the rows of each device, its results along a new first axis."""

    def lifted(*args):
        return jax.tree.map(lambda leaf: leaf[None], fn(*args))

    return jax.jit(jax.shard_map(lifted, mesh=mesh, in_specs=specs, out_specs=P("rows")))


# Few rows, and so many that each device takes them in chunks.
@pytest.mark.parametrize("n", [40, 60_000])
def test_a_density(structure, mesh, n):
    gmm, x = structure.mixture(K, D), points(n)
    found = on_each(mesh, lambda gmm, x: gmm.log_prob(x), P(), P("rows"))(gmm, x)
    np.testing.assert_allclose(found.reshape(n), gmm.log_prob(x), rtol=1e-10)


@pytest.mark.parametrize(
    "fitter",
    [EMFitter(max_iter=5), GradientFitter(max_iter=5), Restarts(EMFitter(max_iter=1), 2)],
    ids=["em", "gradient", "restarts"],
)
def test_a_fit(mesh, fitter):
    x = points(80)
    start = gmmx.initialize(x, K)
    weights = jnp.asarray(np.random.default_rng(1).exponential(size=80))

    def fit(start, x, weights):
        result = fitter.fit(x, start, weights=weights)
        return result.gmm, result.log_likelihood, result.n_iter, result.history

    found = on_each(mesh, fit, P(), P("rows"), P("rows"))(start, x, weights)
    for i, rows in enumerate((slice(40), slice(40, 80))):
        wanted = jax.jit(fit)(start, x[rows], weights[rows])
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-12)


def test_a_large_fit(structure, mesh):
    n = 60_000
    x, start = points(n), structure.mixture(K, D)

    def fit(start, x):
        result = EMFitter(max_iter=3).fit(x, start)
        return result.gmm, result.log_likelihood

    found = on_each(mesh, fit, P(), P("rows"))(start, x)
    for i, rows in enumerate((slice(n // 2), slice(n // 2, n))):
        wanted = jax.jit(fit)(start, x[rows])
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-12)


def test_an_array_on_two_devices(mesh):
    """Its rows stay where they are, and nothing is filled in."""
    x = points(90)
    spread = jax.device_put(x, NamedSharding(mesh, P("rows")))
    start = gmmx.initialize(x, K)
    by_start = gmmx.initialize(spread, K)
    alone, together = EMFitter().fit(x, start), EMFitter().fit(spread, start)
    for a, b in ((start, by_start), (alone.gmm, together.gmm)):
        for leaf, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(together.history, alone.history, rtol=1e-12)
    log_prob = start.log_prob(spread)
    np.testing.assert_allclose(log_prob, start.log_prob(x), rtol=1e-12)
    assert len(log_prob.sharding.device_set) == 2
