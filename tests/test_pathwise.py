"""Pathwise derivatives of draws: against what defines them, and against closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from jaxprs import largest, traced

import gmmx

K, D = 3, 3


def conditional_cdf(structure, leaves, x):
    """F_i(x_i | x_<i) from dense covariances, by regression of feature i on those before."""
    weights, means, covariances = leaves
    dense = structure.dense(covariances, *means.shape)
    n, d = x.shape
    log_joint = np.tile(np.log(weights), (n, 1))
    columns = []
    for i in range(d):
        slopes = np.linalg.solve(dense[:, :i, :i], dense[:, :i, i : i + 1])[..., 0]
        centre = means[:, i] + np.einsum("nkj,kj->nk", x[:, None, :i] - means[:, :i], slopes)
        width = np.sqrt(dense[:, i, i] - np.einsum("kj,kj->k", slopes, dense[:, :i, i]))
        ordinate = (x[:, i : i + 1] - centre) / width
        prior = scipy.special.softmax(log_joint, axis=1)
        columns.append(np.sum(prior * scipy.stats.norm.cdf(ordinate), axis=1))
        log_joint += scipy.stats.norm.logpdf(ordinate) - np.log(width)
    return np.stack(columns, axis=1)


def natural(gmm):
    return [np.asarray(v, float) for v in (gmm.weights, gmm.means, gmm.covariances)]


def direction(tree, seed=4):
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return structure.unflatten([jnp.asarray(rng.normal(size=v.shape), v.dtype) for v in leaves])


def along(fn, gmm, move):
    """(fn(gmm), its derivative along a move of the leaves)."""
    return jax.jit(lambda gmm, move: jax.jvp(fn, (gmm,), (move,)))(gmm, move)


def test_draws_are_the_same(structure):
    gmm = structure.mixture(K, D)
    plain, pathwise = (gmm.sample(50, key=jax.random.key(3), pathwise=p) for p in (False, True))
    np.testing.assert_array_equal(plain, pathwise)


@pytest.mark.parametrize("d", [1, D])
def test_uniform_coordinates_stay(structure, d):
    """What defines the derivative: the conditional distribution functions do not move."""
    gmm = structure.mixture(K, d)
    move = direction(gmm)
    x, dx = along(lambda g: g.sample(40, pathwise=True), gmm, move)
    step = 1e-4
    ends = []
    for h in (step, -step):
        moved = jax.tree.map(lambda leaf, by, h=h: leaf + h * by, gmm, move)
        ends.append(conditional_cdf(structure, natural(moved), np.asarray(x + h * dx)))
    size = np.abs(dx).max()
    assert size > 0.1
    # Central differences leave h²; those of the fixed draws would be of order one.
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), 0, atol=1e-5 * size**3)


def test_one_feature_is_the_quantile_function(structure):
    gmm = structure.mixture(K, 1)
    move = direction(gmm)
    x, dx = along(lambda g: g.sample(20, pathwise=True), gmm, move)

    def cdf(t, model):
        weights, means, variances = model
        width = np.sqrt(structure.dense(variances, K, 1)[:, 0, 0])
        return weights @ scipy.stats.norm.cdf((t - means[:, 0]) / width)

    step = 1e-4
    ends = [
        natural(jax.tree.map(lambda leaf, by, h=h: leaf + h * by, gmm, move)) for h in (step, -step)
    ]
    here = natural(gmm)
    for draw, exact in zip(np.asarray(x)[:, 0], np.asarray(dx)[:, 0], strict=True):
        level = cdf(draw, here)
        up, down = (
            scipy.optimize.brentq(
                lambda t, m=m, level=level: cdf(t, m) - level, -40, 40, xtol=1e-14
            )
            for m in ends
        )
        np.testing.assert_allclose(exact, (up - down) / (2 * step), rtol=1e-5, atol=1e-6)


def test_gradients_of_expectations_are_the_closed_forms(structure):
    """E[x], E[xxᵀ] and E[cos aᵀx], within five standard errors, in every leaf.

    Of components that overlap: across a gap the gradient in the weights has a large variance.
    """
    gmm = structure.mixture(K, D)
    gmm = gmmx.GaussianMixture(gmm.logits, 0.4 * gmm.means, gmm.structure)
    rng = np.random.default_rng(2)
    a, b, c = (jnp.asarray(v) for v in (rng.normal(size=D) / 2, rng.normal(size=D), np.eye(D)))
    c = c + jnp.asarray(rng.normal(size=(D, D))) / 3

    def statistics(x):
        return jnp.stack([jnp.mean(x @ b), jnp.mean((x @ c * x).sum(1)), jnp.mean(jnp.cos(x @ a))])

    def closed(gmm):
        dense = jnp.einsum("kij,klj->kil", *[jnp.linalg.inv(
            gmm.dense_factors())] * 2)  # fmt: skip
        second = gmm.covariance() + jnp.outer(gmm.mean(), gmm.mean())
        wave = jnp.cos(gmm.means @ a) * jnp.exp(-jnp.einsum("i,kij,j->k", a, dense, a) / 2)
        return jnp.stack([gmm.mean() @ b, jnp.sum(c * second), gmm.weights @ wave])

    @jax.jit
    def estimates(gmm):
        def one(key):
            return jax.jacrev(lambda g: statistics(g.sample(500, key=key, pathwise=True)))(gmm)

        return jax.lax.map(one, jax.random.split(jax.random.key(5), 60))

    exact = jax.jit(jax.jacrev(closed))(gmm)
    for got, wanted in zip(jax.tree.leaves(estimates(gmm)), jax.tree.leaves(exact), strict=True):
        error = np.std(got, axis=0, ddof=1) / np.sqrt(len(got))
        difference = np.abs(np.mean(got, axis=0) - wanted)
        # The strictly upper triangle of a factor is not read.
        assert (difference <= 5 * error + 1e-12).all()
        assert np.abs(wanted).max() > 10 * np.max(error)


def test_both_modes_agree(structure):
    gmm = structure.mixture(K, D)
    move, weights = direction(gmm), jnp.asarray(np.random.default_rng(6).normal(size=(8, D)))

    def draws(gmm):
        return gmm.sample(8, pathwise=True)

    _, forward = along(draws, gmm, move)
    reverse = jax.jit(jax.grad(lambda g: jnp.sum(weights * draws(g))))(gmm)
    total = sum(jnp.vdot(u, v) for u, v in zip(*map(jax.tree.leaves, (reverse, move)), strict=True))
    np.testing.assert_allclose(total, jnp.sum(weights * forward), rtol=1e-9)


def test_one_component_is_the_plain_reparameterisation(structure):
    gmm = structure.mixture(1, D)
    for pathwise in (True, False):
        jacobian = jax.jit(jax.jacrev(lambda g, p=pathwise: g.sample(6, pathwise=p)))(gmm)
        if pathwise:
            wanted = jacobian
    for got, leaf in zip(jax.tree.leaves(jacobian), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("offset, scale", [(0, 1), (1e4, 1), (0, 1e-6), (0, 1e6)])
def test_float32(offset, scale, structures):
    """Components far apart: the draws of one lie in the far tails of the others."""
    weights, means, covariances = structures["full"].parameters(K, D)
    gmm = gmmx.GaussianMixture.from_parameters(
        weights, scale * (8 * means + offset), scale**2 * covariances
    )
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gmm)
    double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), single)
    # In both the draws of the single one, which double ones are not.
    x = single.sample(200)
    moves = []
    for model in (single, double):
        move = direction(model)
        draws = partial(gmmx._pathwise.pathwise, x=x.astype(model.dtype))
        moves.append(np.asarray(along(draws, model, move)[1]))
    assert moves[0].dtype == np.float32
    size = np.abs(moves[1]).max(axis=1, keepdims=True)
    # Rounding of x − μ alone is 1e-7·offset in units of the widths, which are of order one.
    assert np.median(np.abs(moves[0] - moves[1]) / size) < 1e-5
    assert (np.abs(moves[0] - moves[1]) < 1e-2 * size).all()


def test_no_matrix_a_draw():
    gmm = gmmx.GaussianMixture.create(8, 16)
    n = 20_000
    found = traced(jax.grad(lambda g: g.sample(n, pathwise=True).sum()), gmm)
    # The largest is of the size of a chunk of whitened rows.
    assert largest(found)[0] < n * 8 * 16 / 2
