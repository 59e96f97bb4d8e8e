"""The contract of every operation of the table, over every structure, each property once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import STRUCTURES
from jaxprs import lapack, largest, traced
from operations import OPERATIONS, D, Dense, K, N, arrays, dense, natural

import gmmx

DIRECTIONS = 3
STEP = 1e-4


@pytest.fixture(scope="module", params=OPERATIONS)
def operation(request):
    return OPERATIONS[request.param]


def some(holds):
    """The operations of which this holds, in place of all of them."""
    return pytest.mark.parametrize(
        "operation", [o for o in OPERATIONS.values() if holds(o)], ids=str
    )


of_rows = some(lambda operation: operation.rows)


def given(operation, structure, k=K, d=D, n=N, seed=0, parameters=None):
    """A mixture, and what the operation is given beside it, in float64."""
    parameters = structure.parameters(k, d, seed) if parameters is None else parameters
    weights, means, covariances = parameters
    p = Dense(weights, means, structure.dense(covariances, k, d))
    rng = np.random.default_rng(seed + 1)
    return structure.of(*parameters), *operation.inputs(p, structure, rng, n)


def in_dtype(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), tree)


def in_numpy(tree):
    """What a reference takes: dense mixtures and arrays."""

    def is_mixture(leaf):
        return isinstance(leaf, gmmx.GaussianMixture)

    return jax.tree.map(
        lambda leaf: dense(leaf) if is_mixture(leaf) else np.asarray(leaf), tree, is_leaf=is_mixture
    )


def near(got, wanted, rtol, atol=0.0):
    """Equal, each array as a whole to within its largest value."""
    for a, b in zip(arrays(got), wanted, strict=True):
        size = np.abs(b).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol + rtol * size)


# What it is


# A draw's distribution has tests of its own.
@some(lambda operation: operation.reference)
def test_it_is_the_reference(operation, structure):
    for seed in (0, 1):
        gmm, *inputs = given(operation, structure, seed=seed)
        result = operation.call(gmm, *inputs)
        reference = operation.reference(dense(gmm), *in_numpy(inputs))
        near(result, natural(result, reference), rtol=1e-9)
    assert (operation.keeps is None) == (not isinstance(result, gmmx.GaussianMixture))
    if operation.keeps is not None:
        kept = result.covariance_type == structure.name
        assert kept == (structure.name in operation.keeps)


@of_rows
def test_any_leading_axes(operation, structure):
    gmm, *inputs = given(operation, structure)
    whole = arrays(operation.call(gmm, *inputs))

    def reshaped(fn):
        rows = [fn(v) if i in operation.rows else v for i, v in enumerate(inputs)]
        return arrays(operation.call(gmm, *rows))

    for shape in ((2, 3), (1, N, 1)):
        axes = reshaped(lambda v, shape=shape: v.reshape(*shape, *v.shape[1:]))
        for a, b in zip(axes, whole, strict=True):
            np.testing.assert_allclose(a, b.reshape(*shape, *b.shape[1:]), rtol=1e-12)
    # Five rows are filled up to six.
    for a, b in zip(reshaped(lambda v: v[: N - 1]), whole, strict=True):
        np.testing.assert_allclose(a, b[: N - 1], rtol=1e-12)
    for a, b in zip(reshaped(lambda v: v[0]), whole, strict=True):
        np.testing.assert_allclose(a, b[0], rtol=1e-9, atol=1e-11)
    for a, b in zip(reshaped(lambda v: v[:0]), whole, strict=True):
        assert a.shape == (0, *b.shape[1:])


def test_dtype_in_is_dtype_out(operation, structure, dtype):
    gmm, *inputs = in_dtype(given(operation, structure), dtype)
    leaves = jax.tree.leaves(jax.eval_shape(operation.call, gmm, *inputs))
    wanted = dtype if operation.differentiable else np.dtype(np.int32)
    assert {leaf.dtype for leaf in leaves} == {wanted}


# Transformations


@functools.cache
def program(operation):
    """The values of an operation at many places, and what pulls back a cotangent, in one program.

    Reverse derivatives are transposed forward ones: no rule of the library is for one mode alone.
    """

    def at_place(inputs, backwards):
        if not operation.differentiable:
            return arrays(operation.call(*inputs)), None
        values, pull = jax.vjp(lambda inputs: arrays(operation.call(*inputs)), inputs)
        return values, pull(backwards)[0]

    return jax.jit(jax.vmap(at_place, in_axes=(0, None)))


def one_row(operation, inputs, i):
    """The inputs with their i-th row alone."""
    return [v[i : i + 1] if j - 1 in operation.rows else v for j, v in enumerate(inputs)]


def stacked(places):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *places)


def random_like(tree, rng):
    return jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), tree)


SHIFTS = (-2, -1, 1, 2)
# Of central differences of fourth order.
COEFFICIENTS = np.array([1, -8, 8, -1]) / 12


def test_transformations_and_derivatives(operation, structure):
    """`jit` of `vmap` is the loop, over mixtures and over rows, and gradients are differences."""
    inputs, others = (
        in_dtype(given(operation, structure, seed=seed), np.float64) for seed in (0, 1)
    )
    rows = range(N) if operation.rows else [0]
    places = [one_row(operation, inputs, i) for i in rows] + [one_row(operation, others, 0)]
    whole = arrays(operation.call(*inputs))
    wanted = [v[:, None] for v in whole] if operation.rows else [v[None] for v in whole]
    last = arrays(operation.call(*others))
    last = [v[:1] for v in last] if operation.rows else last
    rng = np.random.default_rng(7)
    directions = [random_like(places[0], rng) for _ in range(DIRECTIONS)]
    places += [
        jax.tree.map(lambda v, along, step=shift * STEP: v + step * along, places[0], direction)
        for direction in directions
        for shift in SHIFTS
    ]
    backwards = [jnp.asarray(rng.normal(size=v.shape)) for v in last]
    values, gradients = program(operation)(stacked(places), backwards)
    near([v[: len(rows)] for v in values], wanted, rtol=1e-9)
    near([v[len(rows)] for v in values], last, rtol=1e-9)
    if not (operation.differentiable and operation.differences):
        return
    ends = sum(
        np.tensordot(v[len(rows) + 1 :], b, b.ndim) for v, b in zip(values, backwards, strict=True)
    )
    slopes = ends.reshape(DIRECTIONS, len(SHIFTS)) @ COEFFICIENTS / STEP
    found = [
        sum(jax.tree.leaves(jax.tree.map(lambda g, v: np.vdot(g[0], v), gradients, direction)))
        for direction in directions
    ]
    np.testing.assert_allclose(found, slopes, rtol=1e-6, atol=1e-7 * np.abs(slopes).max() + 1e-9)


def test_a_component_of_no_weight(operation, structure):
    """It changes nothing, and gradients are those of a weight that is next to nothing.

    Of the mixture itself, and of another one that it is given.
    """
    inputs = in_dtype(given(operation, structure), np.float64)
    n_rows = N if operation.rows else 1
    places = []
    for i, gmm in enumerate(inputs):
        if isinstance(gmm, gmmx.GaussianMixture):
            for logit in (-np.inf, -500.0):
                changed = gmmx.GaussianMixture(
                    gmm.logits.at[0].set(logit), gmm.means, gmm.structure
                )
                places.append(one_row(operation, [*inputs[:i], changed, *inputs[i + 1 :]], 0))
    pairs = len(places) // 2
    # As many places as in the test above, so that its program serves.
    count = n_rows + 1 + DIRECTIONS * len(SHIFTS)
    places = (places * count)[:count]
    shapes = jax.eval_shape(lambda *inputs: arrays(operation.call(*inputs)), *places[0])
    rng = np.random.default_rng(7)
    backwards = [jnp.asarray(rng.normal(size=v.shape)) for v in shapes]
    values, gradients = program(operation)(stacked(places), backwards)
    for value in values:
        # In a joint log-density it is the −∞ that stands for nothing.
        value = np.where(value < -300, -np.inf, value)
        for i in range(pairs):
            np.testing.assert_allclose(value[2 * i], value[2 * i + 1], rtol=1e-9, atol=1e-9)
    for leaf in jax.tree.leaves(gradients):
        for i in range(pairs):
            np.testing.assert_allclose(leaf[2 * i], leaf[2 * i + 1], rtol=1e-8, atol=1e-9)


# Precision


def scaled(structure, units, width=1.0, offset=0.0):
    """The parameters of a mixture in these units, its components of this part of their widths."""
    weights, means, covariances = structure.parameters(K, D)
    spread = structure.dense(covariances, K, D) * np.outer(units, units) * width**2
    return weights, (means + offset) * units, structure.natural(spread)


ONES = np.ones(D)
HARD = {
    "far": lambda structure: scaled(structure, ONES, offset=1e4),
    "narrow": lambda structure: scaled(structure, ONES, width=1e-3),
    "far and narrow": lambda structure: scaled(structure, ONES, width=1e-2, offset=1e2),
    "small": lambda structure: scaled(structure, 1e-6 * ONES),
    "large": lambda structure: scaled(structure, 1e6 * ONES),
    "units": lambda structure: scaled(structure, np.geomspace(1e-6, 1e6, D), width=1e-3),
}


# Draws in another precision are other draws.
@some(lambda operation: operation.float32 and operation.reference)
def test_float32(operation, structure):
    """As in float64, of the very numbers that float32 holds."""
    for name, hard in HARD.items():
        if name == "units" and structure.name == "spherical":
            continue
        single = in_dtype(given(operation, structure, parameters=hard(structure)), np.float32)
        double = in_dtype(single, np.float64)
        got, wanted = operation.call(*single), operation.call(*double)
        p = dense(double[0])
        for i, (a, b) in enumerate(zip(arrays(got), arrays(wanted), strict=True)):
            a, b = np.asarray(a, float), np.asarray(b)
            if not operation.differentiable:
                np.testing.assert_array_equal(a, b)
                continue
            # And what rounding its own numbers to float32 amounts to.
            rounding = operation.rounding * np.finfo(np.float32).eps * np.abs(b).max(axis=0)
            allowed = operation.float32 * scale_of(operation, wanted, p, i) + rounding
            worst = np.max(np.abs(a - b) / allowed)
            assert worst < 1, f"{name}: array {i} is off by {worst:.3g} of what is allowed"


def scale_of(operation, wanted, p, i):
    """The units of errors in the i-th array of a result."""
    if isinstance(wanted, gmmx.GaussianMixture):
        own = dense(wanted)
        squares = np.broadcast_to(np.outer(own.widths, own.widths), own.covariances.shape)
        return (1.0, own.widths, STRUCTURES[wanted.covariance_type].natural(squares))[i]
    values = [np.asarray(value) for value in arrays(wanted)]
    scale = operation.scale(values[0] if len(values) == 1 else values, p)
    return scale[i] if isinstance(scale, list) else scale


# Size


@of_rows
def test_chunked_is_whole(operation, structure):
    """Of more rows than a chunk takes, in a number that no chunk divides."""
    k, d, n, size = 16, 8, operation.many, 500
    gmm, *inputs = in_dtype(given(operation, structure, k, d, n), np.float64)
    starts = np.minimum(np.arange(0, n, size), n - size)

    @jax.jit
    def both(gmm, inputs):
        def part(start):
            rows = [
                jax.lax.dynamic_slice_in_dim(v, start, size) if i in operation.rows else v
                for i, v in enumerate(inputs)
            ]
            return arrays(operation.call(gmm, *rows))

        return arrays(operation.call(gmm, *inputs)), jax.lax.map(part, starts)

    for whole, parts in zip(*both(gmm, inputs), strict=True):
        together = np.concatenate([*parts[:-1], parts[-1][size - n % size :]])
        size_of = np.abs(together).max()
        np.testing.assert_allclose(whole, together, rtol=1e-9, atol=1e-9 * size_of)


def test_no_lapack_and_no_array_of_rows_by_components_by_features(operation, structure):
    k, d, n = (16, 8, 200_000) if operation.rows else (K, D, N)
    gmm, *inputs = given(operation, structure, k, d, 2)
    shapes = [
        jax.ShapeDtypeStruct((n, *np.shape(v)[1:]), np.float64) if i in operation.rows else v
        for i, v in enumerate(inputs)
    ]

    def loss(gmm, *inputs):
        return sum(jnp.sum(v) for v in arrays(operation.call(gmm, *inputs)))

    found = traced(loss, gmm, *shapes)
    bounded = [found] if operation.rows else []
    assert found and not lapack(found)
    if operation.differentiable:
        found = traced(jax.grad(loss), gmm, *shapes)
        assert found and not lapack(found)
        bounded += [found] if operation.rows and operation.bounded_gradient else []
    for found in bounded:
        size, name = largest(found)
        assert size <= operation.largest(n, k, d), name
