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


# Fits over devices


def crossing(compiled: str) -> set[str]:
    """The operations of a program that move anything between devices."""
    names = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    return {name for name in names if f" {name}(" in compiled or f" {name}-start(" in compiled}


@pytest.fixture
def spread(mesh):
    return lambda x: jax.device_put(x, NamedSharding(mesh, P("rows")))


def same(a, b, tol=1e-12):
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(p, q, rtol=tol, atol=tol)


@pytest.mark.filterwarnings("ignore::gmmx.FitWarning")
def test_two_devices_are_one(mesh, spread, structure):
    """An array on both, a source for both, and one device."""
    x = points(2000)
    start = gmmx.initialize(x, K, structure.name)
    weights = jnp.asarray(np.random.default_rng(1).exponential(size=2000))
    fitter = EMFitter(max_iter=4, tol=0)
    one = fitter.fit(gmmx.rows_from(np.asarray(x), weights=np.asarray(weights)), start)
    two = fitter.fit(spread(x), start, weights=weights)
    source = gmmx.rows_from(np.asarray(x), weights=np.asarray(weights), mesh=mesh)
    read = fitter.fit(source, start)
    same((one.gmm, one.history), (two.gmm, two.history))
    same((one.gmm, one.history), (read.gmm, read.history))
    same(one.gmm, fitter.fit(x, start, weights=weights).gmm, 1e-9)


def test_only_moments_cross_devices(spread, structure):
    from gmmx._engine.ladder import Ladder
    from gmmx._engine.summary import Summary
    from gmmx._fit import passes
    from gmmx._sources.spread import SpreadSource
    from gmmx._sources.survey import survey

    n = 60_000  # so many that each device takes them in chunks
    x, start = spread(points(n)), structure.mixture(K, D)
    source, fitter = SpreadSource(x, None), EMFitter()
    summary = Summary.of(*survey(source, x.dtype, True), x.dtype)
    ladder = Ladder.of(start, n // 2, 2)
    data, state = passes._open(fitter, summary, start, None, ladder)
    moved, asked, _ = passes._move(fitter, state, data, ladder)
    arguments = fitter, data, moved.gmm, asked, x, jnp.ones(n), ladder.only(0), source.sharding
    compiled = passes._sums._program.lower(*arguments).compile().compiled.as_text()
    assert crossing(compiled) == {"all-reduce"}


def test_densities_stay_where_the_rows_are(spread, structure):
    from gmmx._engine import density
    from gmmx._engine.ladder import Ladder

    n = 60_000
    x, gmm = points(n), structure.mixture(K, D)
    for name in ("log_prob", "predict", "predict_proba"):
        found = getattr(gmm, name)(spread(x))
        assert found.sharding.spec[0] == "rows" and len(found.sharding.device_set) == 2
        same(found, getattr(gmm, name)(x), 1e-9)
    arguments = gmm, spread(x), density.log_prob_of, Ladder.of(gmm, n // 2, 1).only(0)
    compiled = density._program._program.lower(*arguments, spread(x).sharding).compile().as_text()
    assert crossing(compiled) <= {"all-reduce"}  # of whether all were accurate


def test_fits_of_a_spread_batch_do_not_speak(mesh):
    """A batch of data sets over devices: each fits its own."""
    x, start = points(160).reshape(4, 40, D), gmmx.initialize(points(160), K)

    def fits(start, x):
        return jax.vmap(lambda x: EMFitter(max_iter=5).fit(x, start).gmm)(x)

    mapped = jax.jit(jax.shard_map(fits, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows")))
    assert not crossing(mapped.lower(start, x).compile().as_text())
    same(mapped(start, x), jax.jit(fits)(start, x), 1e-9)


@pytest.mark.parametrize("name", ["full", "diag"])
def test_inside_a_mesh_moments_are_summed(mesh, name):
    """In a user's own `shard_map`: every device has the fit to all rows."""
    x = points(2000)
    start = gmmx.initialize(x, K, name)
    weights = jnp.asarray(np.random.default_rng(1).exponential(size=2000))
    fitter = EMFitter(max_iter=4, tol=0, axis_name="rows")

    def fit(start, x, weights):
        result = fitter.fit(x, start, weights=weights)
        return result.gmm, result.log_likelihood, result.history

    mapped = jax.jit(
        jax.shard_map(fit, mesh=mesh, in_specs=(P(), P("rows"), P("rows")), out_specs=P())
    )
    found = mapped(start, x, weights)
    with pytest.warns(gmmx.FitWarning):
        wanted = EMFitter(max_iter=4, tol=0).fit(x, start, weights=weights)
    same(found, (wanted.gmm, wanted.log_likelihood, wanted.history), 1e-9)
    assert crossing(mapped.lower(start, x, weights).compile().as_text()) == {"all-reduce"}
    with pytest.raises(ValueError, match=r"axis_name='rows' .*shard_map"):
        fitter.fit(x, start)
