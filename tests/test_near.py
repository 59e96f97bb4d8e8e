"""The rows near narrow components are found, whitened apart, and given up where there are many."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gmmx
from gmmx import EMFitter
from gmmx._accuracy import PACKED, Route
from gmmx._moments import Survey, expect
from gmmx._near import Near, margin

SEPARABLE = ("full", "diag", "spherical")


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 150), k=st.integers(1, 9), part=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_every_near_pair_stands_in_one_place(n, k, part, seed):
    rng = np.random.default_rng(seed)
    near, narrow = rng.random((n, k)) < part, rng.random(k) < 0.6
    log_joint = np.where(near, -margin(np.dtype(float)) + 1, -margin(np.dtype(float)) - 1)
    # One more that is wide, and the largest of every row.
    log_joint = np.append(log_joint, np.zeros((n, 1)), axis=1)
    narrow = np.append(narrow, False)
    ways = jnp.full(1, PACKED)
    route = Route(ways, ways, jnp.where(narrow, 1e7, 1.0))
    found = Near.of(jnp.asarray(log_joint.T), route)
    needed = int(found.n_tiles())
    for size in (needed, needed + 3):
        if size == 0:
            continue
        tiles = found.tiles(size)
        component = np.broadcast_to(tiles.component[:, None], tiles.row.shape)
        filled = np.asarray(tiles.row) < n
        pairs = list(zip(np.asarray(tiles.row)[filled], component[filled], strict=True))
        assert len(pairs) == len(set(pairs))
        assert set(pairs) == set(zip(*np.nonzero(near & narrow[:-1]), strict=True))


def mixed(structure, widths, k, d, n, dtype=np.float64):
    """A mixture whose components are of these widths, one after the other, and samples of it."""
    rng = np.random.default_rng(0)
    root = 0.3 * rng.normal(size=(k, d, d)) / np.sqrt(d) + np.eye(d)
    root *= np.resize(widths, k)[:, None, None]
    natural = structure.natural(root @ root.transpose(0, 2, 1))
    parameters = (rng.dirichlet(np.full(k, 5.0)), 3 * rng.normal(size=(k, d)), natural)
    gmm = gmmx.GaussianMixture.from_parameters(
        *(value.astype(dtype) for value in parameters), structure.name
    )
    return gmm, gmm.sample(n, key=jax.random.key(1))


@pytest.mark.parametrize("name", SEPARABLE)
def test_moments_are_those_of_whitened_rows(structures, name):
    """With narrow components by the dozen, in two chunks, with weights."""
    # In float64 S is beyond its limit at widths of 0.01, and told in part at none of these.
    gmm, x = mixed(structures[name], (1.0, 3e-3, 0.7, 1e-4), k=32, d=4, n=60_000)
    weights = jnp.asarray(np.random.default_rng(2).exponential(size=len(x)))
    survey = Survey.of(gmm, x, keep=True)
    route = survey.route(gmm)
    assert route.ways.size > 1 and (route.ways == PACKED).all()
    assert int(route.narrow.sum()) == 16
    take = jax.jit(lambda route: expect(gmm, x, weights, survey, route))
    found, wanted = take(route), take(dataclasses.replace(route, ways=0 * route.ways))
    assert found.crowded == 0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        of_each = tuple(range(1, np.ndim(b)))
        atol = 1e-9 * np.max(np.abs(b), axis=of_each, keepdims=True) if of_each else 1e-9 * abs(b)
        assert (np.abs(a - b) <= atol + 1e-9 * np.abs(b)).all()


@pytest.mark.parametrize("name", SEPARABLE)
def test_one_component_far_narrower_than_float32_tells(structures, name):
    """S of 1e11 in float32: a packed distance is rounding alone."""
    structure = structures[name]
    gmm, x = mixed(structure, (1.0,) * 11 + (1e-5,), k=24, d=6, n=30_000, dtype=np.float32)
    survey = Survey.of(gmm, x, keep=True)
    route = survey.route(gmm)
    assert (route.ways == PACKED).all() and int((route.told < 1).sum()) == 2
    double = jax.tree.map(lambda leaf: leaf.astype(np.float64), gmm)
    exact = double.log_prob(np.asarray(x, np.float64))
    error = np.abs(np.asarray(gmm.log_prob(x), np.float64) - exact)
    assert error.mean() < 1e-4 and error.max() < 1e-2
    moments = jax.jit(lambda x: expect(gmm, x, None, survey, route))(x)
    np.testing.assert_allclose(moments.log_likelihood / len(x), exact.mean(), atol=1e-4)
    z = double.predict_proba(np.asarray(x, np.float64))
    np.testing.assert_allclose(moments.weight, z.sum(0), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", SEPARABLE)
def test_crowded_rows_are_given_up(structures, name):
    """All components are narrow beside two groups far apart, and all of a group near each row."""
    rng = np.random.default_rng(0)
    k, d, n = 24, 4, 30_000
    groups = 100.0 * rng.integers(0, 2, size=(k, 1))
    structure = structures[name]
    natural = structure.natural(np.tile(np.eye(d), (k, 1, 1)))
    gmm = gmmx.GaussianMixture.from_parameters(
        *(
            a.astype(np.float32)
            for a in (np.full(k, 1 / k), groups + rng.normal(size=(k, d)), natural)
        ),
        structure.name,
    )
    x = gmm.sample(n, key=jax.random.key(1))
    fitter = EMFitter(max_iter=6, tol=0, reg_covar=1e-3)
    with pytest.warns(gmmx.FitWarning):
        single = fitter.fit(x, gmm)
    double = jax.tree.map(lambda leaf: leaf.astype(np.float64), gmm)
    with pytest.warns(gmmx.FitWarning):
        exact = fitter.fit(np.asarray(x, np.float64), double)
    assert single.packed == 0 and gmmx._density.packed_share(gmm, x) == 0
    assert single.n_iter == exact.n_iter == 6
    np.testing.assert_allclose(single.history, exact.history, atol=1e-4)
    np.testing.assert_allclose(single.log_likelihood, exact.log_likelihood, atol=1e-4)


def test_joint_log_densities_are_exact_where_a_component_has_no_share(structures):
    gmm, x = mixed(structures["full"], (1.0, 1e-3), k=32, d=4, n=20_000, dtype=np.float32)
    double = jax.tree.map(lambda leaf: leaf.astype(np.float64), gmm)
    exact = double.component_log_prob(np.asarray(x, np.float64))
    np.testing.assert_allclose(gmm.component_log_prob(x), exact, rtol=1e-5, atol=1e-3)


def test_a_batch_of_fits_goes_one_way(structures):
    """Of fits in one vmap, some with narrow components and some without."""
    gmm, x = mixed(structures["full"], (1.0, 1e-4), k=16, d=4, n=20_000)
    wide = dataclasses.replace(gmm, structure=structures["full"].mixture(16, 4).structure)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), gmm, wide)
    fitter = EMFitter(max_iter=4, tol=0)
    found = jax.jit(jax.vmap(lambda start: fitter.fit(x, start)))(both)
    for i, start in enumerate((gmm, wide)):
        alone = jax.jit(lambda start: fitter.fit(x, start))(start)
        np.testing.assert_allclose(found.history[i], alone.history, rtol=1e-9)
        np.testing.assert_allclose(found.log_likelihood[i], alone.log_likelihood, rtol=1e-9)


@pytest.mark.parametrize("name", SEPARABLE)
def test_gradients_are_those_of_few_rows(structures, name):
    """Of few rows each log-density is whitened whole."""
    gmm, x = mixed(structures[name], (1.0, 1e-3), k=16, d=3, n=18_000)
    assert gmmx._density.packed_share(gmm, x) == 1
    parts = x.reshape(-1, 1000, 3)
    assert gmmx._density.packed_share(gmm, parts[0]) == 0
    slope = jax.jit(jax.grad(lambda gmm, x: gmm.log_prob(x).sum()))
    found = slope(gmm, x)
    wanted = jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(slope, (None, 0))(gmm, parts))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * np.max(np.abs(b)))
