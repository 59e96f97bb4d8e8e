"""Marginals, conditionals, linear maps, products and merges, against dense references."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.test_util import check_grads

import gmmx
from gmmx._grouped import grouped_product
from gmmx._orthogonal import lower_factor, lower_root

K, D = 3, 4
GIVEN, REST = [2, 0], [1, 3]


def dense(gmm):
    """Weights, means and dense covariances, by NumPy from the leaves."""
    w = np.asarray(gmm.structure.factors(gmm.n_components, gmm.n_features), float)
    precisions = w.transpose(0, 2, 1) @ w
    return np.asarray(gmm.weights), np.asarray(gmm.means), np.linalg.inv(precisions)


def log_joint(weights, means, covariances, x):
    joint = [
        np.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(x).reshape(x.shape[:-1])
        for w, m, c in zip(weights, means, covariances, strict=True)
    ]
    return np.stack(joint, -1)


def log_density(parts, x):
    return scipy.special.logsumexp(log_joint(*parts, x), -1)


def points(n, d, seed=5):
    return 2 * np.random.default_rng(seed).normal(size=(n, d))


def same(gmm, weights, means, covariances, rtol=1e-10):
    got = dense(gmm)
    for a, b in zip(got, (weights, means, covariances), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


# The factorisation that everything rests on


@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 5), (7, 7), (40, 61)])
def test_root_of_a_sum_of_squares(rows, columns):
    rng = np.random.default_rng(0)
    r = rng.normal(size=(2, rows, columns)) + 2 * np.eye(rows, columns)
    # Rows of any units: the factor is the same but for these.
    units = np.geomspace(1e-9, 1e9, rows)[:, None]
    root = np.asarray(lower_root(jnp.asarray(units * r))) / units
    np.testing.assert_allclose(root, np.linalg.cholesky(r @ r.transpose(0, 2, 1)), atol=1e-11)
    factor = np.asarray(lower_factor(jnp.asarray(r.transpose(0, 2, 1))))
    np.testing.assert_array_equal(factor, np.tril(factor))
    np.testing.assert_allclose(
        factor.transpose(0, 2, 1) @ factor, r @ r.transpose(0, 2, 1), rtol=1e-11, atol=1e-11
    )


def test_root_does_not_square_the_condition_number():
    """Widths of 1 to 1e-5 in axes that are not the features', in float32."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    rows = (rotation * np.geomspace(1, 1e-5, 6)).astype(np.float32)
    root = np.asarray(lower_root(jnp.asarray(rows)))
    # QR in float64: no squares are formed there either.
    exact = np.abs(np.diagonal(np.linalg.qr(rows.astype(float).T)[1]))
    np.testing.assert_allclose(np.diagonal(root), exact, rtol=1e-2)
    # A Cholesky factorisation of the square has lost them.
    squared = np.linalg.eigvalsh(rows @ rows.T)
    assert squared.min() < 0 or squared.min() > 10 * 1e-10


def test_a_singular_sum_is_nan():
    rows = jnp.asarray([[1.0, 2, 3], [2, 4, 6], [1, 0, 0]])
    root = lower_root(rows)
    np.testing.assert_array_equal(np.isnan(np.diagonal(root)), [False, True, False])


def test_root_differentiates():
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)))
    check_grads(jax.jit(lower_root), (rows,), order=2, modes=("fwd", "rev"), rtol=1e-5)


@pytest.mark.parametrize("n", [5, 129, 1000])
def test_grouped_product_is_the_gathered_one(n):
    rng = np.random.default_rng(2)
    matrices, x = rng.normal(size=(4, 2, 3)), rng.normal(size=(n, 3))
    # Groups of very different sizes, one of them empty.
    labels = rng.choice([0, 1, 3], p=[0.9, 0.09, 0.01], size=n)
    got = jax.jit(grouped_product)(jnp.asarray(x), jnp.asarray(matrices), jnp.asarray(labels))
    np.testing.assert_allclose(got, np.einsum("nm,ndm->nd", x, matrices[labels]), atol=1e-13)


# Marginals and conditionals


@pytest.mark.parametrize(
    "indices", [[0], [2, 0], [-1, 1], [3, 1, 0, 2], np.array([0, 1, 0, 1]) > 0]
)
def test_marginal_is_the_blocks(structure, indices):
    gmm = structure.mixture(K, D)
    kept = np.arange(D)[np.asarray(indices)]
    weights, means, covariances = dense(gmm)
    marginal = gmm.marginal(indices)
    assert marginal.covariance_type == structure.name
    same(marginal, weights, means[:, kept], covariances[:, kept[:, None], kept])


def test_condition_is_the_ratio_of_densities(structure):
    gmm = structure.mixture(K, D)
    values, x = points(5, 2, seed=1), points(5, 2, seed=2)
    whole = np.empty((5, D))
    whole[:, GIVEN], whole[:, REST] = values, x
    weights, means, covariances = dense(gmm)
    given = np.array(GIVEN)
    part = weights, means[:, given], covariances[:, given[:, None], given]
    ratio = log_density((weights, means, covariances), whole) - log_density(part, values)
    batch = gmm.condition(GIVEN, values)
    assert isinstance(batch, gmmx.MixtureBatch) and batch.shape == (5,) and batch.shared
    np.testing.assert_allclose(batch.log_prob(x), ratio, rtol=1e-10, atol=1e-10)
    alone = gmm.condition(GIVEN, values[0])
    assert alone.covariance_type == structure.name
    np.testing.assert_allclose(alone.log_prob(x[0]), ratio[0], rtol=1e-10)
    # By the textbook: μ_u + Σ_uoΣ_oo⁻¹(x_o − μ_o) and Σ_uu − Σ_uoΣ_oo⁻¹Σ_ou.
    rest = np.array(REST)
    across = covariances[:, rest[:, None], given] @ np.linalg.inv(part[2])
    share = scipy.special.softmax(log_joint(*part, values[:1])[0])
    apart = values[0] - part[1]
    same(
        alone,
        share,
        means[:, rest] + np.einsum("kuo,ko->ku", across, apart),
        covariances[:, rest[:, None], rest] - across @ covariances[:, given[:, None], rest],
    )


@pytest.mark.parametrize("name", ["full", "diag"])
def test_regression_has_the_conditionals_moments(structures, name):
    gmm, values = structures[name].mixture(K, D), points(6, 2).reshape(2, 3, 2)
    mean, covariance = gmm.regress(GIVEN, values)
    batch = gmm.condition(GIVEN, values)
    assert mean.shape == (2, 3, 2) and covariance.shape == (2, 3, 2, 2)
    np.testing.assert_allclose(mean, batch.mean(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(covariance, batch.covariance(), rtol=1e-10, atol=1e-12)


def test_regression_finds_the_curve():
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, size=2000)
    data = np.stack([x, np.sin(x) + 0.1 * rng.normal(size=x.size)], 1)
    gmm = gmmx.EMFitter().fit(data, gmmx.initialize(data, 8)).gmm
    at = np.linspace(-2.5, 2.5, 11)[:, None]
    mean, covariance = gmm.regress([0], at)
    np.testing.assert_allclose(mean[:, 0], np.sin(at[:, 0]), atol=0.15)
    assert (np.sqrt(np.asarray(covariance)[:, 0, 0]) < 0.3).all()


# Batches


@pytest.mark.parametrize("name", ["full", "tied"])
def test_a_batch_is_its_mixtures(structures, name):
    gmm, values = structures[name].mixture(K, D), points(6, 2).reshape(2, 3, 2)
    batch = gmm.condition(GIVEN, values)
    assert batch.shape == (2, 3) and len(batch) == 2 and batch[0].shape == (3,)
    assert (batch.n_components, batch.n_features) == (K, 2)
    assert [one.shape for one in batch] == [(3,), (3,)]
    one = batch[1, 2]
    assert isinstance(one, gmmx.GaussianMixture)
    np.testing.assert_allclose(batch.mean()[1, 2], one.mean(), rtol=1e-12)
    np.testing.assert_allclose(batch.covariance()[1, 2], one.covariance(), rtol=1e-12)
    np.testing.assert_allclose(batch.weights[1, 2], one.weights, rtol=1e-12)
    x = points(12, 2).reshape(2, 3, 2, 2)
    np.testing.assert_allclose(batch.log_prob(x)[1, 2], one.log_prob(x[1, 2]), rtol=1e-12)
    keys = jax.random.split(jax.random.key(4), (2, 3))
    draws = batch.sample(5, key=jax.random.key(4))
    assert draws.shape == (2, 3, 5, 2)
    np.testing.assert_allclose(draws[1, 2], one.sample(5, key=keys[1, 2]), rtol=1e-12)
    # A batch of mixtures that share nothing, from a vmap.
    apart = gmmx.MixtureBatch(
        *jax.vmap(lambda v: (lambda g: (g.logits, g.means, g.structure))(gmm.condition(GIVEN, v)))(
            jnp.asarray(values[0])
        ),
        shared=False,
    )
    np.testing.assert_allclose(apart.mean(), batch[0].mean(), rtol=1e-12)
    np.testing.assert_allclose(apart[1].covariances, batch[0, 1].covariances, rtol=1e-12)
    with pytest.raises(IndexError):
        batch[0, 0, 0]
    with pytest.raises(ValueError, match="its axes have to come first"):
        batch.log_prob(points(5, 2))


def test_condition_stores_the_covariances_once(structure):
    gmm = structure.mixture(K, D)
    batch = gmm.condition(GIVEN, np.zeros((1000, 2)))
    assert all(leaf.size <= K * D * D for leaf in jax.tree.leaves(batch.structure))


# Linear maps


@pytest.mark.parametrize("m", [2, D])
def test_affine_is_exact(structure, m):
    gmm = structure.mixture(K, D)
    rng = np.random.default_rng(m)
    matrix, offset = rng.normal(size=(m, D)), rng.normal(size=m)
    weights, means, covariances = dense(gmm)
    mapped = gmm.affine(matrix, offset)
    assert (mapped.covariance_type == "tied") == (structure.name == "tied")
    same(mapped, weights, means @ matrix.T + offset, matrix @ covariances @ matrix.T)


@pytest.mark.parametrize("shape", [(), (D,), (D, D)])
def test_convolution_adds_the_covariance(structure, shape):
    gmm = structure.mixture(K, D)
    root = np.random.default_rng(3).normal(size=(D, D))
    noise = {0: np.asarray(0.7), 1: np.geomspace(0.1, 3, D), 2: root @ root.T}[len(shape)]
    full = noise if noise.ndim == 2 else noise * np.eye(D)
    weights, means, covariances = dense(gmm)
    wide = gmm.convolve(noise)
    same(wide, weights, means, covariances + full)
    kept = {"full": 3, "tied": 3, "diag": 2, "spherical": 1}[structure.name]
    assert (wide.covariance_type == structure.name) == (len(shape) < kept)


def test_negative_noise_is_nan_where_python_does_not_see_it(structure):
    gmm = structure.mixture(K, D)
    program = jax.jit(lambda c: (gmm.convolve(c).covariances, gmm.noise_score(np.ones(D), c)))
    for value in program(-0.01):
        assert np.isnan(value).any()


def test_no_noise_changes_nothing(structure):
    gmm = structure.mixture(K, D)
    for nothing in (0, np.zeros(D)):
        same(gmm.convolve(nothing), *dense(gmm))
    slope = jax.jit(jax.grad(lambda c: gmm.convolve(c).log_prob(jnp.ones(D))))
    np.testing.assert_allclose(slope(0.0), slope(1e-9), rtol=1e-6)


# Products


def test_product_is_the_product_of_densities(structure, structures):
    p, x = structure.mixture(2, 3), points(20, 3)
    for other in {structure.name, "full"}:
        q = structures[other].mixture(3, 3, seed=1)
        both = gmmx.product(p, q)
        log_z = gmmx.log_overlap(p, q)
        assert both.n_components == 6
        np.testing.assert_allclose(
            both.log_prob(x), p.log_prob(x) + q.log_prob(x) - log_z, rtol=1e-9, atol=1e-9
        )
        # ∫pq from pairs of Gaussians, by SciPy.
        (wp, mp, cp), (wq, mq, cq) = dense(p), dense(q)
        total = sum(
            wp[i] * wq[j] * scipy.stats.multivariate_normal(mp[i], cp[i] + cq[j]).pdf(mq[j])
            for i in range(2)
            for j in range(3)
        )
        np.testing.assert_allclose(log_z, np.log(total), rtol=1e-10)
        np.testing.assert_allclose(log_z, gmmx.log_overlap(q, p), rtol=1e-12)
        np.testing.assert_allclose(scipy.special.logsumexp(both.logits), log_z, rtol=1e-12)


# Merges


def moments(gmm):
    return np.asarray(gmm.mean()), np.asarray(gmm.covariance())


def test_merging_keeps_mean_and_covariance(structure):
    gmm = structure.mixture(6, D)
    mean, covariance = moments(gmm)
    smaller = gmm.reduce(2)
    assert smaller.n_components == 2
    np.testing.assert_allclose(smaller.weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(smaller.mean(), mean, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(smaller.covariance(), covariance, rtol=1e-10, atol=1e-11)
    one = gmm.collapse()
    np.testing.assert_allclose(one.means[0], mean, rtol=1e-12)
    np.testing.assert_allclose(one.covariances[0], covariance, rtol=1e-10, atol=1e-11)
    if structure.name == "full":
        same(gmm.reduce(1), *dense(one))
    assert gmm.reduce(6) is gmm


def runnalls(weights, means, covariances, n):
    """The greedy algorithm on dense matrices, as the paper has it."""
    parts = list(zip(weights, means, covariances, strict=True))

    def merged(a, b):
        w = a[0] + b[0]
        apart = a[1] - b[1]
        mean = (a[0] * a[1] + b[0] * b[1]) / w
        between = a[0] * b[0] / w**2 * np.outer(apart, apart)
        return w, mean, (a[0] * a[2] + b[0] * b[2]) / w + between

    def cost(a, b):
        half = [p[0] * np.linalg.slogdet(p[2])[1] / 2 for p in (merged(a, b), a, b)]
        return half[0] - half[1] - half[2]

    while len(parts) > n:
        pairs = [(i, j) for j in range(len(parts)) for i in range(j)]
        i, j = min(pairs, key=lambda pair: cost(parts[pair[0]], parts[pair[1]]))
        both = merged(parts[i], parts[j])
        parts = [p for at, p in enumerate(parts) if at not in (i, j)] + [both]
    return [np.stack(values) for values in zip(*parts, strict=True)]


@pytest.mark.parametrize("name", ["full", "diag"])
def test_reduction_is_runnalls(structures, name):
    gmm = structures[name].mixture(8, 2)
    weights, means, covariances = runnalls(*dense(gmm), 3)
    smaller = dense(gmm.reduce(3))
    order, wanted = np.argsort(smaller[0]), np.argsort(weights)
    for a, b in zip(smaller, (weights, means, covariances), strict=True):
        np.testing.assert_allclose(a[order], b[wanted], rtol=1e-9, atol=1e-10)


def test_cost_of_a_merge_bounds_the_divergence(structures):
    """KL(before ‖ after) ≤ B, the change of Σ w log|Σ|/2; by quadrature in one dimension."""
    gmm = structures["full"].mixture(4, 1)
    grid = np.linspace(-30, 30, 200_001)
    for n in (3, 1):
        smaller = gmm.reduce(n)
        before, after = (np.asarray(g.log_prob(grid[:, None])) for g in (gmm, smaller))
        divergence = np.trapezoid(np.exp(before) * (before - after), grid)
        entropies = [
            np.sum(w * np.log(np.linalg.det(c))) / 2 for w, _, c in map(dense, (smaller, gmm))
        ]
        assert 0 <= divergence <= entropies[0] - entropies[1]


def test_a_component_of_no_weight_is_merged_first():
    gmm = gmmx.GaussianMixture.from_parameters(
        [0.0, 0.5, 0.5], [[50.0], [0.0], [1.0]], [[[1.0]], [[1.0]], [[1.0]]]
    )
    smaller = gmm.reduce(2)
    np.testing.assert_allclose(np.sort(smaller.means[:, 0]), [0, 1], atol=1e-12)
    np.testing.assert_allclose(smaller.log_prob([[0.3]]), gmm.log_prob([[0.3]]), rtol=1e-12)
    near = gmmx.GaussianMixture(gmm.logits.at[0].set(-500), gmm.means, gmm.structure)
    for operation in (lambda g: g.reduce(1), lambda g: g.collapse()):
        gradient = jax.grad(lambda g, f=operation: f(g).log_prob(jnp.ones(1)))
        for a, b in zip(
            jax.tree.leaves(gradient(gmm)), jax.tree.leaves(gradient(near)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


# Transformations, precision, input


OPERATIONS = {
    "marginal": lambda g: g.marginal([2, 0]),
    "condition": lambda g: g.condition([1], jnp.ones(1, g.dtype)),
    "affine": lambda g: g.affine(jnp.ones((1, D), g.dtype), 0.5),
    "convolve": lambda g: g.convolve(0.3),
    "convolve diagonal": lambda g: g.convolve(jnp.full(D, 0.3, g.dtype)),
    "product": lambda g: gmmx.product(g, g),
    "collapse": lambda g: g.collapse(),
    "reduce": lambda g: g.reduce(2),
}


def every(gmm):
    return {name: operation(gmm) for name, operation in OPERATIONS.items()}


def test_operations_compose_with_transformations(structure):
    gmms = [structure.mixture(K, D, seed=seed) for seed in range(2)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gmms)
    together = eqx.filter_jit(eqx.filter_vmap(every))(stack)
    for i, gmm in enumerate(gmms):
        for name, alone in every(gmm).items():
            mine = jax.tree.map(lambda leaf, i=i: leaf[i], together[name])
            same(mine, *dense(alone), rtol=1e-9)


def test_gradients_are_finite_differences(structure):
    gmm = structure.mixture(K, D)
    x = jnp.asarray(points(3, D))

    @jax.jit
    def losses(gmm):
        return jnp.stack([g.log_prob(x[:, : g.n_features]).sum() for g in every(gmm).values()])

    leaves, tree = jax.tree.flatten(gmm)
    rng = np.random.default_rng(0)
    along = [rng.normal(size=leaf.shape) for leaf in leaves]
    step = 1e-5
    ends = [
        losses(tree.unflatten([leaf + h * a for leaf, a in zip(leaves, along, strict=True)]))
        for h in (step, -step)
    ]
    gradients = jax.tree.leaves(jax.jit(jax.jacrev(losses))(gmm))
    exact = sum(
        (np.asarray(g) * a).reshape(len(OPERATIONS), -1).sum(1)
        for g, a in zip(gradients, along, strict=True)
    )
    np.testing.assert_allclose(exact, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


def test_dtype_in_is_dtype_out(structure, dtype):
    gmm = structure.mixture(K, D, dtype)
    for operation in OPERATIONS.values():
        leaves = jax.tree.leaves(jax.eval_shape(operation, gmm))
        assert {leaf.dtype for leaf in leaves} == {dtype}


def test_float32_far_and_narrow(structure):
    """At an offset of 1e4, units of 1e-6 to 1e6 and widths of 1e-3: as in float64."""
    rng = np.random.default_rng(0)
    gmm = structure.mixture(K, D)
    units = np.ones(D) if structure.name == "spherical" else np.geomspace(1e-6, 1e6, D)
    gmm = eqx.tree_at(
        lambda g: (g.means, g.structure),
        gmm,
        (gmm.means * units, gmm.structure.rescale(jnp.asarray(1e-3 * units))),
    )
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), _single(gmm))
    single = _single(gmm)
    values = (np.asarray(gmm.means)[0, GIVEN] + 1e-3 * units[GIVEN]).astype(np.float32)
    for operation in (
        lambda g: g.marginal(GIVEN),
        lambda g: g.condition(GIVEN, values.astype(g.dtype)),
        lambda g: g.affine((rng.permutation(np.eye(D)) / units).astype(g.dtype)[:3] + 0),
        lambda g: gmmx.product(g, g),
    ):
        state = rng.bit_generator.state
        a = operation(single)
        rng.bit_generator.state = state
        b = operation(exact)
        for x, y in zip(dense(a)[1:], dense(b)[1:], strict=True):
            # Means by feature; covariances by the deviations of both of their features.
            deviations = np.sqrt(y.max(axis=0).diagonal()) if y.ndim == 3 else None
            scale = np.abs(y).max(axis=0) if y.ndim == 2 else np.outer(deviations, deviations)
            np.testing.assert_allclose(x / scale, y / scale, atol=1e-4)
    far = eqx.tree_at(lambda g: g.means, structure.mixture(K, D), gmm.means / units + 1e4)
    single, exact = _single(far), jax.tree.map(lambda v: v.astype(np.float64), _single(far))
    at = np.asarray(single.means)[0, GIVEN]
    mean = [g.regress(GIVEN, at.astype(g.dtype))[0] for g in (single, exact)]
    np.testing.assert_allclose(mean[0], mean[1], rtol=3 * np.finfo(np.float32).eps)


def _single(gmm):
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), gmm)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda g: g.marginal([0, 4]), "has 4 features: 0 to 3"),
        (lambda g: g.marginal([-5]), "holds -5"),
        (lambda g: g.marginal([1, -3]), "names a feature twice"),
        (lambda g: g.marginal([True, False]), "one entry a feature"),
        (lambda g: g.marginal([]), "one or more feature numbers"),
        (lambda g: g.marginal(0), "one or more feature numbers"),
        (lambda g: g.marginal([0.5]), "one or more feature numbers"),
        (lambda g: jax.jit(lambda i: g.marginal(i))(jnp.arange(2)), "indices is traced"),
        (lambda g: g.condition([0, 1, 2, 3], np.zeros(4)), "log_prob"),
        (lambda g: g.condition([0, 1], np.zeros(3)), r"expected \(\*batch, 2\)"),
        (lambda g: g.condition([0], 1.0), r"expected \(\*batch, 1\)"),
        (lambda g: g.condition([0], [np.nan]), "NaN"),
        (lambda g: g.regress([0], np.zeros((3, 2))), r"expected \(\*batch, 1\)"),
        (lambda g: g.affine(np.ones(4)), r"expected \(m, 4\)"),
        (lambda g: g.affine(np.ones((0, 4))), r"expected \(m, 4\)"),
        (lambda g: g.affine(np.ones((5, 4))), "singular"),
        (lambda g: g.affine(np.ones((2, 4))), "depends on the others"),
        (lambda g: g.affine(np.ones((1, 4)), [1.0, 2]), "offset has shape"),
        (lambda g: g.convolve(-1.0), "negative variance -1"),
        (lambda g: g.convolve(np.ones(3)), "noise_covariance has shape"),
        (lambda g: g.convolve(np.ones((4, 4))), "not positive definite"),
        (lambda g: g.convolve(np.inf), "NaN or infinite"),
        (lambda g: g.reduce(5), "cannot add"),
        (lambda g: g.reduce(0), "positive integer"),
        (lambda g: gmmx.product(g, gmmx.GaussianMixture.create(2, 3)), "q has 3"),
        (lambda g: gmmx.log_overlap(g, gmmx.GaussianMixture.create(2, 3)), "q has 3"),
    ],
)
def test_bad_input_is_refused_with_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call(gmmx.GaussianMixture.create(3, D))
