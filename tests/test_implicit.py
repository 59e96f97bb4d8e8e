"""Gradients through a fit: those of its fixed point, whatever the way that it took."""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmx
from gmmx import EMFitter, GradientFitter, Restarts
from gmmx._engine.ladder import Ladder
from gmmx._engine.packed import Packed
from gmmx._fit.implicit import bound
from gmmx._fit.krylov import solve_by_products

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

    def moved(t):
        return value(jax.tree.map(lambda a, b: a + t * b, at, direction))

    def difference(h):
        return (moved(h) - moved(-h)) / (2 * h)

    return (4 * difference(step) - difference(2 * step)) / 3


def jitted(value):
    """The value and gradient of a function with auxiliary output, by one program."""
    return eqx.filter_jit(jax.value_and_grad(value, has_aux=True))


def along(tree, direction):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, tree, direction)))


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
    [("weights", "spherical"), ("means", "diag"), ("covariances", "spherical")],
)
def test_what_is_frozen_is_an_input_and_the_rest_of_the_start_is_not(x, frozen, covariance_type):
    start = gmmx.initialize(x, K, covariance_type)
    fitter = EMFitter(tol=0, max_iter=2000, frozen=frozen)
    both = jitted(lambda inputs: (summary(fitted(*inputs, fitter=fitter).gmm), None))
    inputs = (x, start)
    gradient = both(inputs)[1]
    direction = direction_of(inputs)
    exact = slope(lambda at: both(at)[0][0], inputs, direction)
    np.testing.assert_allclose(along(gradient, direction), exact, rtol=1e-6)
    parts = {"weights": "logits", "means": "means", "covariances": "structure"}
    for name, part in parts.items():
        size = max(jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(getattr(gradient[1], part)))
        assert (size > 0) == (name == frozen)


def test_an_input_that_not_every_parameter_depends_on_has_a_gradient_of_its_own(x):
    """One step of EM moves the weights, and the means, by no amount of reg_covar."""
    start = gmmx.initialize(x, K, "spherical")
    both = jitted(lambda reg_covar: (summary(fitted(x, start, None, reg_covar).gmm), None))
    at, one = jnp.asarray(1e-2), jnp.asarray(1.0)
    exact = slope(lambda value: both(value)[0][0], at, one, 1e-5)
    np.testing.assert_allclose(both(at)[1], exact, rtol=1e-6)


@pytest.fixture(scope="module")
def slow():
    """Data on which EM gains little a step, and a start."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(200, 1)) + 2.5 * rng.integers(0, 2, size=(200, 1)))
    return x, gmmx.initialize(x, K, "spherical")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_slow_fit_gives_a_good_gradient_or_none(slow, dtype):
    """At every tolerance. In float64 both are met; float32 may be good at each."""
    x, start = (jax.tree.map(lambda leaf: leaf.astype(dtype), value) for value in slow)

    def loss(inputs):
        fitter = EMFitter(tol=inputs[1], max_iter=10_000)
        result = fitted(inputs[0], start, reg_covar=0, fitter=fitter)
        return summary(result.gmm), result.history

    both = jitted(loss)
    zero = jnp.zeros((), dtype)
    (_, history), (exact, _) = both((x, zero))
    if dtype == "float64":
        # Near its end the likelihood's gains shrink by the square of EM's spectral radius.
        gains = np.diff(history)
        end = np.argmax(gains < 1e-9)
        assert np.sqrt(gains[end] / gains[end - 1]) > 0.95
        direction = direction_of(x)
        slow_slope = slope(lambda x: both((x, zero))[0][0], x, direction)
        np.testing.assert_allclose(along(exact, direction), slow_slope, rtol=1e-6)

    outcomes = []
    for tol in 10.0 ** -np.arange(2, 15, 2):
        try:
            found = both((x, jnp.asarray(tol, dtype)))[1][0]
        except RuntimeError as error:
            if "has not converged enough" not in str(error):
                raise
            outcomes.append(False)
            continue
        outcomes.append(True)
        error = bound(dtype) * jnp.max(jnp.abs(exact))
        np.testing.assert_allclose(found, exact, rtol=0, atol=error)
    assert outcomes[-1] and (dtype == "float32" or not outcomes[0])
    # Once tight enough, tight enough from there.
    assert sorted(outcomes) == outcomes


def test_outside_jit_and_forward_and_in_a_batch(slow):
    x, start = slow
    many = jnp.stack([x, 1.1 * x + 0.2])

    def loss(x):
        return summary(fitted(x, start).gmm)

    each = [jax.grad(loss)(x) for x in many]
    batched = jax.jit(jax.vmap(jax.grad(loss)))(many)
    np.testing.assert_allclose(batched, jnp.stack(each), rtol=1e-8, atol=1e-12)
    direction = direction_of(x)
    _, forward = jax.jit(lambda x, v: jax.jvp(loss, (x,), (v,)))(x, direction)
    np.testing.assert_allclose(forward, along(each[0], direction), rtol=1e-8)


def test_too_loose_a_fit_is_refused_outside_jit(slow):
    x, start = slow
    with pytest.raises(RuntimeError, match=r"has not converged enough .* Lower tol"):
        jax.grad(lambda x: summary(EMFitter().fit(x, start).gmm))(x)


def far_apart(k, n, seed=0):
    """Clusters so far apart that every responsibility is zero or one to the last digit."""
    rng = np.random.default_rng(seed)
    centres = 100 * rng.normal(size=(k, 2))
    labels = rng.permutation(np.arange(n) % k)
    noise = rng.normal(size=(n, 2))
    x = jnp.asarray(centres[labels] + noise)
    eye = np.tile(np.eye(2), (k, 1, 1))
    start = gmmx.GaussianMixture.from_parameters(np.full(k, 1 / k), centres, eye)
    return x, start, labels, noise


def test_responsibilities_of_zero():
    """There a mean is that of its samples, and each has a part of 1/n_k in it."""
    x, start, labels, _ = far_apart(k=3, n=60)

    def loss(x, fitter):
        return jnp.sum(fitter.fit(x, start).gmm.means @ jnp.array([1.0, 2.0]))

    exact = np.tile([1.0, 2.0], (60, 1)) / np.bincount(labels)[labels][:, None]
    # Of several starts the chosen one is differentiated.
    several = Restarts(EMFitter(tol=0, max_iter=200), 2)
    found = jax.jit(jax.grad(lambda x: loss(x, several)))(x)
    np.testing.assert_allclose(found, exact, rtol=1e-8)


def test_many_rows_in_chunks():
    """Of a fit that begins packed."""
    x, start, _, noise = far_apart(k=16, n=20_011)
    ladder = Ladder.of(start, len(x), products=2)
    assert ladder.ways[0] is Packed and ladder.rows(Packed, len(x), x.dtype) < len(x)

    def loss(x):
        # Next to the distances between clusters any part of the variances is large.
        floor = np.full(x.shape[1], 1e-2)
        result = fitted(x, start, None, floor, EMFitter(tol=0, max_iter=5))
        return jnp.sum(jnp.sin(result.gmm.covariances)), None

    both = jitted(loss)
    gradient = both(x)[1]
    # Each cluster bent within itself, so that the slope is of order one.
    direction = jnp.asarray(noise * (1 + 0.3 * np.sin(noise)))
    exact = slope(lambda at: both(at)[0][0], x, direction, step=1e-3)
    np.testing.assert_allclose(along(gradient, direction), exact, rtol=1e-6)


@pytest.mark.parametrize(
    "fitter, message",
    [
        (GradientFitter(max_iter=2), "GradientFitter.*EMFitter"),
        (Restarts(GradientFitter(max_iter=2), 2), "GradientFitter.*EMFitter"),
        (Restarts(EMFitter(frozen="means"), 2), "frozen"),
    ],
    ids=["gradient", "restarts of it", "restarts with frozen parameters"],
)
@pytest.mark.usefixtures("optax_promotion")
def test_what_has_no_gradient_says_so(slow, fitter, message):
    x, start = slow
    with pytest.raises(NotImplementedError, match=message):
        jax.grad(lambda x: fitter.fit(x, start).log_likelihood)(x)


def test_a_fit_of_constants_is_none_of_the_gradients_business(slow):
    x, start = slow

    def loss(x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gmmx.FitWarning)
            gmm = EMFitter(max_iter=2).fit(jax.lax.stop_gradient(x), start).gmm
        return gmm.score(x)

    assert (jax.grad(loss)(x) != 0).all()


def test_linear_systems():
    """Against a dense solver, and where there is no solution."""
    rng = np.random.default_rng(0)
    n = 40
    turn = rng.normal(size=(n, n))
    # Eigenvalues from 1e-3 to 1 and eigenvectors that are not orthogonal, as for a slow EM map.
    matrix = turn @ np.diag(np.geomspace(1e-3, 1, n)) @ np.linalg.inv(turn)
    b = jnp.asarray(rng.normal(size=n))

    def times(matrix):
        matrix = jnp.asarray(matrix)
        return lambda v: matrix @ v

    x, found = jax.jit(lambda b: solve_by_products(times(matrix), b))(b)
    assert found
    exact = np.linalg.solve(matrix, b)
    assert np.linalg.norm(x - exact) < 1e-8 * np.linalg.norm(exact)
    singular = np.diag(np.arange(n) > 0).astype(float)
    assert not jax.jit(lambda b: solve_by_products(times(singular), b))(b)[1]
    x, found = solve_by_products(times(singular), jnp.zeros_like(b))
    assert found and not x.any()


def overlapping(gap, n, seed=0):
    """Three unit Gaussians in the corners of a triangle, and a start at the truth."""
    rng = np.random.default_rng(seed)
    centres = gap * np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])
    x = rng.normal(size=(n, 2)) + centres[rng.integers(0, 3, n)]
    eye = np.tile(np.eye(2), (3, 1, 1))
    return jnp.asarray(x), gmmx.GaussianMixture.from_parameters(np.full(3, 1 / 3), centres, eye)


def test_components_that_overlap_have_gradients_in_both_precisions():
    """EM leaves the model far from the fixed point there; Newton's steps go the rest of the way."""
    x, start = overlapping(2.5, 300)

    def gradient(dtype, tol):
        fitter = EMFitter(tol=tol, max_iter=500, reg_covar=0, accelerate=True)
        begun, data = jax.tree.map(lambda leaf: leaf.astype(dtype), (start, x))
        return jax.jit(jax.grad(lambda x: summary(fitter.fit(x, begun).gmm)))(data)

    exact, recommended = (gradient(np.float64, tol) for tol in (1e-15, 1e-12))
    assert jnp.linalg.norm(recommended - exact) < 1e-6 * jnp.linalg.norm(exact)
    found = gradient(np.float32, 1e-7).astype(np.float64)
    assert jnp.linalg.norm(found - exact) < 0.02 * jnp.linalg.norm(exact)


def test_one_bad_fit_of_a_batch_does_not_cost_the_others(x):
    """One fit starts from equal components, which EM cannot separate: no isolated fixed point."""
    start = gmmx.initialize(x, K)
    many = jnp.stack([x, x, 1.1 * x + 0.2])
    twins = gmmx.GaussianMixture(
        start.logits, jnp.stack([start.means[0]] * K),
        gmmx.FullCovariance(jnp.stack([start.structure.log_cholesky[0]] * K)),
    )  # fmt: skip
    starts = jax.tree.map(lambda a, b: jnp.stack([a, b, a]), start, twins)

    def gradients(policy):
        fitter = EMFitter(tol=1e-12, max_iter=500, reg_covar=1e-2, on_unconverged=policy)
        gradient = jax.grad(lambda x, start: summary(fitter.fit(x, start).gmm))
        return jax.jit(jax.vmap(gradient))(many, starts)

    alone = jax.jit(jax.grad(lambda x: summary(fitted(x, start).gmm)))
    by_nan, by_zero = gradients("nan"), gradients("zero")
    for found in (by_nan, by_zero):
        for i in (0, 2):
            np.testing.assert_allclose(found[i], alone(many[i]), rtol=1e-6, atol=1e-9)
    assert jnp.isnan(by_nan[1]).all() and (by_zero[1] == 0).all()


def test_a_component_that_was_never_there_is_no_obstacle(x):
    start = gmmx.initialize(x, K)
    padded = gmmx.GaussianMixture(
        jnp.append(start.logits, -jnp.inf),
        jnp.concatenate([start.means, jnp.ones((1, D))]),
        gmmx.FullCovariance(jnp.concatenate([start.structure.log_cholesky, jnp.zeros((1, D, D))])),
    )

    def means(x, start):
        return jnp.sum(jnp.sin(fitted(x, start).gmm.means[:K]))

    found, expected = (jax.jit(jax.grad(means))(x, gmm) for gmm in (padded, start))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="on_unconverged='ignore'; expected one of 'raise'"):
        EMFitter(on_unconverged="ignore")
