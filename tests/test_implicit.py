"""Gradients through a fit: those of its fixed point, whatever the way that it took."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmx
from gmmx import EMFitter, GradientFitter, Restarts

K, D, N = 2, 2, 60
TIGHT = EMFitter(tol=0, max_iter=2000)


@pytest.fixture(scope="module")
def x():
    """Two clusters that overlap, so that EM is slow."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(N, D)) + 3.0 * rng.integers(0, 2, size=(N, 1)))


@pytest.fixture(scope="module")
def weights():
    return jnp.asarray(np.random.default_rng(1).uniform(0.5, 1.5, N))


def summary(gmm):
    """A number that every parameter has a part in."""
    labels = jnp.arange(1, gmm.n_components + 1, dtype=gmm.dtype)
    covariances = jnp.sum(jnp.sin(gmm.covariances))
    return labels @ gmm.weights + jnp.sum(jnp.sin(gmm.means)) + covariances


def fitted(x, start, weights=None, reg_covar=1e-2, fitter=TIGHT):
    fitter = dataclasses.replace(fitter, reg_covar=reg_covar)
    return fitter.fit(x, start, weights=weights)


def slope(value, at, direction, step=1e-4):
    """d/dt value(at + t·direction), by central differences of fourth order."""

    def difference(h):
        ahead, behind = (
            value(jax.tree.map(lambda a, b: a + t * b, at, direction)) for t in (h, -h)
        )
        return (ahead - behind) / (2 * h)

    return (4 * difference(step) - difference(2 * step)) / 3


def along(tree, direction):
    return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (tree, direction)), strict=True))


def direction_of(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)


def test_gradients_are_those_of_tight_fits(structure, x, weights):
    start = gmmx.initialize(x, K, structure.name)

    @jax.jit
    def both(inputs):
        def loss(inputs):
            result = fitted(inputs[0], start, *inputs[1:])
            return summary(result.gmm) + result.log_likelihood

        return jax.value_and_grad(loss)(inputs)

    inputs = (x, weights, jnp.asarray(1e-2))
    gradient = both(inputs)[1]
    for i, step in enumerate((1e-4, 1e-4, 1e-5)):
        direction = jax.tree.map(jnp.zeros_like, inputs)
        direction = (*direction[:i], direction_of(inputs[i], 3), *direction[i + 1 :])
        exact = slope(lambda at: both(at)[0], inputs, direction, step)
        np.testing.assert_allclose(along(gradient, direction), exact, rtol=1e-6)


@pytest.mark.parametrize(
    "frozen, covariance_type",
    [("weights", "spherical"), ("means", "diag"), ("covariances", "tied")],
)
def test_what_is_frozen_is_an_input_and_the_rest_of_the_start_is_not(x, frozen, covariance_type):
    start = gmmx.initialize(x, K, covariance_type)
    fitter = EMFitter(tol=0, max_iter=2000, frozen=frozen)

    @jax.jit
    def both(inputs):
        return jax.value_and_grad(lambda a: summary(fitted(*a, fitter=fitter).gmm))(inputs)

    inputs = (x, start)
    gradient = both(inputs)[1]
    direction = direction_of(inputs)
    exact = slope(lambda at: both(at)[0], inputs, direction)
    np.testing.assert_allclose(along(gradient, direction), exact, rtol=1e-6)
    parts = {"weights": "logits", "means": "means", "covariances": "structure"}
    for name, part in parts.items():
        size = max(jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(getattr(gradient[1], part)))
        assert (size > 0) == (name == frozen)


@pytest.fixture(scope="module")
def slow():
    """Data on which EM gains little a step, and where it ends."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(200, 1)) + 1.9 * rng.integers(0, 2, size=(200, 1)))
    return x, gmmx.initialize(x, K, "spherical")


def test_slow_fits(slow):
    x, start = slow
    fitter = EMFitter(tol=0, max_iter=30_000)

    @jax.jit
    def both(x):
        def loss(x):
            result = fitted(x, start, fitter=fitter)
            return summary(result.gmm), result.history

        return jax.value_and_grad(loss, has_aux=True)(x)

    (_, history), gradient = both(x)
    # Near its end the likelihood's gains shrink by the square of EM's spectral radius.
    gains = np.diff(history)
    end = np.argmax(gains < 1e-9)
    assert np.sqrt(gains[end] / gains[end - 1]) > 0.95
    direction = direction_of(x)
    exact = slope(lambda at: both(at)[0][0], x, direction)
    np.testing.assert_allclose(along(gradient, direction), exact, rtol=1e-6)


@pytest.mark.parametrize("dtype, digits", [("float64", 1e-6), ("float32", 2e-2)])
def test_a_fit_gives_a_good_gradient_or_none(slow, dtype, digits):
    """At every tolerance, and both are met."""
    x, start = (jax.tree.map(lambda leaf: leaf.astype(dtype), value) for value in slow)

    @jax.jit
    def gradient(x, tol):
        fitter = EMFitter(tol=tol, max_iter=30_000)
        return jax.grad(lambda x: summary(fitted(x, start, fitter=fitter).gmm))(x)

    exact = gradient(x, jnp.zeros((), dtype))
    outcomes = []
    for tol in 10.0 ** -np.arange(2, 16):
        try:
            found = jax.block_until_ready(gradient(x, jnp.asarray(tol, dtype)))
        except RuntimeError as error:
            assert "has not converged enough" in str(error)
            outcomes.append(False)
            continue
        outcomes.append(True)
        np.testing.assert_allclose(found, exact, atol=digits * jnp.max(jnp.abs(exact)))
    assert outcomes[-1] and not outcomes[0]
    # Once tight enough, tight enough from there.
    assert sorted(outcomes) == outcomes


def test_outside_jit_and_forward_and_in_a_batch(slow):
    x, start = slow
    many = jnp.stack([x, 1.1 * x + 0.2])

    def loss(x):
        return summary(fitted(x, start, fitter=EMFitter(tol=0, max_iter=10_000)).gmm)

    each = [jax.grad(loss)(x) for x in many]
    batched = jax.jit(jax.vmap(jax.grad(loss)))(many)
    np.testing.assert_allclose(batched, jnp.stack(each), rtol=1e-8, atol=1e-12)
    direction = direction_of(x)
    _, forward = jax.jit(lambda x, v: jax.jvp(loss, (x,), (v,)))(x, direction)
    np.testing.assert_allclose(forward, along(each[0], direction), rtol=1e-8)


def test_too_loose_a_fit_is_refused_outside_jit(slow):
    x, start = slow
    with pytest.raises(RuntimeError, match="has not converged enough .* Lower tol"):
        jax.grad(lambda x: summary(EMFitter().fit(x, start).gmm))(x)


def test_equal_components_are_refused(slow):
    """They stay equal, but the optimum does not hold them there."""
    x, _ = slow
    start = gmmx.GaussianMixture.from_parameters(
        np.full(2, 0.5), np.zeros((2, 1)), np.ones(2), "spherical"
    )
    with pytest.raises(RuntimeError, match="not isolated|has not converged enough"):
        jax.grad(lambda x: summary(fitted(x, start).gmm))(x)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_packed_moments_in_chunks(covariance_type):
    """And samples whose responsibilities are zero to the last digit."""
    rng = np.random.default_rng(0)
    k, n = 16, 100_000
    centres = 100 * rng.normal(size=(k, 2))
    x = jnp.asarray(centres[rng.integers(0, k, n)] + rng.normal(size=(n, 2)))
    start = gmmx.GaussianMixture.from_parameters(
        np.full(k, 1 / k),
        centres,
        np.tile(np.eye(2), (k, 1, 1)) if covariance_type == "full" else np.ones((k, 2)),
        covariance_type,
    )

    @jax.jit
    def both(x):
        def loss(x):
            result = fitted(x, start, fitter=EMFitter(tol=0, max_iter=10))
            return jnp.sum(jnp.sin(result.gmm.covariances)), result.packed

        return jax.value_and_grad(loss, has_aux=True)(x)

    (_, packed), gradient = both(x)
    assert packed == 1
    direction = direction_of(x)
    exact = slope(lambda at: both(at)[0][0], x, direction)
    np.testing.assert_allclose(along(gradient, direction), exact, rtol=1e-6)


def test_of_several_starts_the_chosen_one_is_differentiated(x):
    start = gmmx.initialize(x, K, "spherical", method="random")
    several = Restarts(EMFitter(tol=0, max_iter=2000), 3)

    def loss(x, fitter):
        return jnp.sum(fitter.fit(x, start).gmm.covariances)

    found = jax.jit(jax.grad(lambda x: loss(x, several)))(x)
    chosen = several.fitter.fit(x, start)
    assert np.isclose(chosen.log_likelihood, jax.jit(several.fit)(x, start).log_likelihood)
    exact = jax.jit(jax.grad(lambda x: loss(x, several.fitter)))(x)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "fitter, message",
    [
        (GradientFitter(max_iter=2), "GradientFitter.*EMFitter"),
        (Restarts(GradientFitter(max_iter=2), 2), "GradientFitter.*EMFitter"),
        (Restarts(EMFitter(frozen="means"), 2), "frozen"),
    ],
)
@pytest.mark.usefixtures("optax_promotion")
def test_what_has_no_gradient_says_so(x, fitter, message):
    start = gmmx.initialize(x, K, "spherical")

    def loss(x, data):
        return jnp.sum(x) * fitter.fit(data, start).log_likelihood

    with pytest.raises(NotImplementedError, match=message):
        jax.grad(lambda x: loss(x, x))(x)
    # A part that is held constant is none of the gradient's business.
    assert np.isfinite(jax.grad(lambda x: loss(x, jax.lax.stop_gradient(x)))(x)).all()
