"""Layers that end in a mixture: where they start, what they learn, and what they leave out."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmx
from gmmx.nn import MixtureDensityHead

IN, K, D = 4, 3, 2


@pytest.fixture(scope="module")
def head():
    return MixtureDensityHead(IN, K, D, dtype=jnp.float64, key=jax.random.key(0))


@pytest.mark.parametrize("name", ["full", "tied", "diag", "VEV"])
def test_a_head_starts_with_components_apart_and_scales_of_order_one(name):
    for seed in range(5):
        gmm = MixtureDensityHead(IN, K, D, name, key=jax.random.key(seed))(jnp.zeros(IN))
        means = np.asarray(gmm.means)
        gaps = np.linalg.norm(means[:, None] - means, axis=-1)[~np.eye(K, dtype=bool)]
        scales = np.exp(-np.asarray(gmm.half_log_det()) / D)
        np.testing.assert_allclose(scales, 0.501, rtol=1e-4)
        assert gaps.min() > scales.max()
        np.testing.assert_allclose(gmm.weights, 1 / K, rtol=1e-6)


def test_one_row_is_a_mixture_and_many_are_a_batch(head):
    h = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, IN)))
    many = head(h)
    assert isinstance(head(h[0, 0]), gmmx.GaussianMixture)
    assert many.shape == (2, 3)
    np.testing.assert_allclose(many[1, 2].means, head(h[1, 2]).means, rtol=1e-12)


def test_rows_of_weight_zero_may_hold_anything(head):
    rng = np.random.default_rng(1)
    h, y = jnp.asarray(rng.normal(size=(6, IN))), jnp.asarray(rng.normal(size=(6, D)))
    weights = jnp.asarray([1.0, 2.0, 0.5, 1.0, 0.0, 0.0])

    @eqx.filter_jit
    def both(head, h, y, weights):
        return eqx.filter_value_and_grad(lambda head: head.loss(h, y, weights))(head)

    value, gradient = both(head, h.at[5].set(jnp.nan), y.at[4:].set(jnp.nan), weights)
    log_prob = head(h[:4]).log_prob(y[:4])
    np.testing.assert_allclose(value, -np.average(log_prob, weights=weights[:4]), rtol=1e-12)
    _, expected = both(head, h.at[4:].set(7), y.at[4:].set(7), weights)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_a_head_learns_a_distribution_that_is_not_normal(head):
    """Two branches, y = ±(1 + h₁): gradient descent comes near the entropy of the noise."""
    rng = np.random.default_rng(2)
    h = rng.normal(size=(400, IN))
    sign = rng.choice([-1.0, 1.0], size=(400, 1))
    y = sign * np.array([1.0, 0.5]) * (3 + h[:, :1]) + 0.3 * rng.normal(size=(400, D))
    h, y = jnp.asarray(h), jnp.asarray(y / y.std(0))
    noise = 0.3 / (np.array([1.0, 0.5]) * np.sqrt(10.09))

    @eqx.filter_jit
    def train(head):
        def step(head, _):
            value, gradient = eqx.filter_value_and_grad(lambda head: head.loss(h, y))(head)
            # Steps of one length: plain descent that no scale of the loss can upset.
            size = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
            moved = jax.tree.map(lambda v, g: v - 0.05 * g / (0.1 + size), head, gradient)
            return moved, value

        return jax.lax.scan(step, head, None, length=1500)

    _, values = train(head)
    entropy = np.log(2) + np.sum(np.log(noise)) + np.log(2 * np.pi * np.e)
    assert values[-1] < entropy + 0.3 < values[0]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda key: MixtureDensityHead(IN, 0, D, key=key), "n_components=0; expected a positive"),
        (lambda key: MixtureDensityHead(0, K, D, key=key), "in_size=0; expected a positive"),
        (lambda key: MixtureDensityHead(IN, K, D, min_scale=-1, key=key), "min_scale=-1"),
        (
            lambda key: MixtureDensityHead(IN, K, D, key=key)(jnp.ones(3)),
            r"\(\*batch, 4\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(jax.random.key(0))
