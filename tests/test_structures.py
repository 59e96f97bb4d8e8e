"""The contract of a mixture, over every covariance structure of the registry."""

import inspect
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import gmmx

K, D, N = 3, 5, 40


def points(seed=7, n=N, d=D, dtype=np.float64):
    return (2.5 * np.random.default_rng(seed).normal(size=(n, d))).astype(dtype)


def reference(structure, k, d, x):
    """log w_k N(x; μ_k, Σ_k) by SciPy, from dense covariances."""
    weights, means, covariances = structure.parameters(k, d)
    dense = structure.dense(covariances, k, d)
    joint = [
        np.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(x)
        for w, m, c in zip(weights, means, dense, strict=True)
    ]
    return np.stack(joint, axis=-1)


def equations(jaxpr):
    """Every equation of a jaxpr, through the jaxprs within."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_every_structure_of_the_library_has_its_row(structures):
    with pytest.raises(ValueError) as error:
        gmmx.GaussianMixture.create(2, 2, "no such structure")
    named = str(error.value).split("one of ")[1].replace("'", "").rstrip(".").split(", ")
    assert sorted(named) == sorted(structures)


# Both sides of where factorisations are written out, and one feature.
@pytest.mark.parametrize("d", [1, 3, D])
def test_density_is_scipys(structure, d, dtype):
    x = points(d=d, dtype=dtype)
    gmm = structure.mixture(K, d, dtype)
    joint = reference(structure, K, d, x.astype(np.float64))
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == np.float64 else {"rtol": 2e-5}
    np.testing.assert_allclose(gmm.component_log_prob(x), joint, **tolerance)
    np.testing.assert_allclose(gmm.log_prob(x), scipy.special.logsumexp(joint, 1), **tolerance)
    np.testing.assert_allclose(
        gmm.predict_proba(x), scipy.special.softmax(joint, 1), rtol=1e-3, atol=1e-6
    )
    np.testing.assert_array_equal(gmm.predict(x), joint.argmax(1))


def test_parameters_come_back(structure):
    weights, means, covariances = structure.parameters(K, D)
    gmm = structure.mixture(K, D)
    np.testing.assert_allclose(gmm.weights, weights, rtol=1e-12)
    np.testing.assert_allclose(gmm.means, means, rtol=1e-12)
    np.testing.assert_allclose(gmm.covariances, covariances, rtol=1e-10, atol=1e-12)
    assert gmm.covariance_type == structure.name
    assert (gmm.n_components, gmm.n_features) == (K, D)


def test_precisions_invert_covariances(structure):
    gmm = structure.mixture(K, D)
    assert gmm.precisions.shape == gmm.covariances.shape == gmm.precisions_cholesky.shape
    dense = [structure.dense(np.asarray(v), K, D) for v in (gmm.precisions, gmm.covariances)]
    identity = np.broadcast_to(np.eye(D), (K, D, D))
    np.testing.assert_allclose(dense[0] @ dense[1], identity, atol=1e-10)
    # As scikit-learn has them: upper triangular with Λ = UUᵀ.
    factor = structure.dense(np.asarray(gmm.precisions_cholesky), K, D)
    np.testing.assert_array_equal(factor, np.triu(factor))
    assert (np.diagonal(factor, axis1=1, axis2=2) > 0).all()
    np.testing.assert_allclose(factor @ factor.transpose(0, 2, 1), dense[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k, d", [(1, 1), (1, 4), (3, 1), (7, 6)])
def test_number_of_parameters(structure, k, d):
    gmm = gmmx.GaussianMixture.create(k, d, structure.name)
    assert gmm.n_parameters == k - 1 + k * d + structure.n_parameters(k, d)


def test_moments_of_the_whole_mixture(structure):
    weights, means, covariances = structure.parameters(K, D)
    gmm = structure.mixture(K, D)
    dense = structure.dense(covariances, K, D)
    apart = means - weights @ means
    total = np.einsum("k,kij->ij", weights, dense + apart[:, :, None] * apart[:, None])
    np.testing.assert_allclose(gmm.mean(), weights @ means, rtol=1e-12)
    np.testing.assert_allclose(gmm.covariance(), total, rtol=1e-11, atol=1e-12)


def test_any_leaves_are_a_mixture(structure):
    """Every leaf is unconstrained: an owner may move them anywhere."""
    gmm = structure.mixture(K, D)
    leaves, tree = jax.tree.flatten(gmm)
    rng = np.random.default_rng(3)
    moved = tree.unflatten([leaf + rng.normal(size=leaf.shape) for leaf in leaves])
    dense = structure.dense(np.asarray(moved.covariances), K, D)
    assert (np.linalg.eigvalsh(dense) > 0).all()
    np.testing.assert_allclose(moved.weights.sum(), 1, rtol=1e-12)
    assert np.isfinite(moved.log_prob(points())).all()


def test_gradients_are_finite_differences(structure):
    n, d = 8, 3
    gmm = structure.mixture(K, d)
    x = jnp.asarray(points(n=n, d=d) + 1)
    leaves, tree = jax.tree.flatten(gmm)
    log_prob = jax.jit(lambda leaves, x: tree.unflatten(leaves).log_prob(x))
    gradient = jax.jit(jax.grad(lambda leaves, x: log_prob(leaves, x).mean(), (0, 1)))
    by_leaf, by_x = gradient(leaves, x)
    step = 1e-5
    for i, (leaf, exact) in enumerate(zip(leaves, by_leaf, strict=True)):
        for index in np.ndindex(leaf.shape):
            ends = [
                log_prob([*leaves[:i], leaf.at[index].add(h), *leaves[i + 1 :]], x).mean()
                for h in (step, -step)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(exact[index], slope, rtol=1e-6, atol=1e-9)
    for j in range(d):
        shift = step * np.eye(d)[j]
        slope = (log_prob(leaves, x + shift) - log_prob(leaves, x - shift)) / (2 * step)
        np.testing.assert_allclose(by_x[:, j] * n, slope, rtol=1e-6, atol=1e-9)


def test_forward_derivatives_are_reverse_ones(structure):
    """With rows and features enough for a compiler to fuse a product with the sum over it."""
    rng = np.random.default_rng(3)
    gmm, x = structure.mixture(5, 8, np.float64), points(n=150, d=8)
    moved = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), gmm)
    along_rows = jnp.asarray(rng.normal(size=len(x)))

    forward = jax.jvp(lambda gmm: gmm.log_prob(x), (gmm,), (moved,))[1]
    gradient = jax.jit(jax.grad(lambda gmm: along_rows @ gmm.log_prob(x)))(gmm)
    parts = jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, moved))
    np.testing.assert_allclose(along_rows @ forward, sum(parts[1:], parts[0]), rtol=1e-10)

    one = jnp.asarray(rng.normal(size=8))
    directions = jnp.broadcast_to(one, x.shape)
    forward = jax.jit(lambda x: jax.jvp(gmm.log_prob, (x,), (directions,))[1])(jnp.asarray(x))
    backward = jax.vmap(jax.grad(gmm.log_prob))(jnp.asarray(x)) @ one
    np.testing.assert_allclose(forward, backward, rtol=1e-10, atol=1e-12)


def test_gradients_of_packed_moments(structure):
    """Those of a large batch, which is packed, are the sum over small ones, which are not."""
    gmm, x = structure.mixture(16, 8), jnp.asarray(points(n=24_000, d=8))
    assert float(gmmx._density.packed_share(gmm, x)) == 1
    gradient = jax.jit(jax.grad(lambda gmm, x: gmm.log_prob(x).sum(), (0, 1)))
    by_leaf, by_x = gradient(gmm, x)
    parts = [gradient(gmm, part) for part in jnp.split(x, 60)]
    wanted = jax.tree.map(lambda *leaves: sum(leaves), *[leaf for leaf, _ in parts])
    for a, b in zip(jax.tree.leaves(by_leaf), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())
    np.testing.assert_allclose(by_x, np.concatenate([p for _, p in parts]), rtol=1e-8, atol=1e-8)


def test_composes_with_transformations(structure):
    gmm, x = structure.mixture(K, D), points()
    whole = gmm.log_prob(x)
    density = lambda gmm, x: gmm.log_prob(x)  # noqa: E731
    np.testing.assert_allclose(jax.jit(density)(gmm, x), whole, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(density, (None, 0))(gmm, x), whole, rtol=1e-12)
    np.testing.assert_allclose(gmm.log_prob(x[0]), whole[0], rtol=1e-12)
    axes = gmm.log_prob(x.reshape(2, 4, 5, D))
    np.testing.assert_allclose(axes, whole.reshape(2, 4, 5), rtol=1e-12)
    assert gmm.predict_proba(x.reshape(2, 4, 5, D)).shape == (2, 4, 5, K)
    assert gmm.log_prob(x[:0]).shape == (0,)
    forward = jax.jacfwd(lambda x: gmm.log_prob(x))(x[0])
    np.testing.assert_allclose(forward, jax.grad(lambda x: gmm.log_prob(x))(x[0]), rtol=1e-10)


def test_a_stack_of_mixtures(structure):
    gmms = [structure.mixture(K, D, seed=seed) for seed in range(3)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gmms)
    x = points()
    together = eqx.filter_vmap(lambda gmm, x: gmm.log_prob(x), in_axes=(0, None))(stack, x)
    apart = np.stack([gmm.log_prob(x) for gmm in gmms])
    np.testing.assert_allclose(together, apart, rtol=1e-12)
    draw = eqx.filter_vmap(lambda gmm: gmm.sample(4, key=jax.random.key(1)))
    alone = np.stack([gmm.sample(4, key=jax.random.key(1)) for gmm in gmms])
    np.testing.assert_allclose(draw(stack), alone, rtol=1e-12)


# A length that its chunks do not divide.
def test_chunked_is_whole(structure):
    k, d, n = 16, 8, 40_020
    gmm, x = structure.mixture(k, d, np.float32), points(n=n, d=d, dtype=np.float32)
    whole = gmm.log_prob(x)
    parts = np.concatenate([gmm.log_prob(part) for part in np.split(x, 46)])
    scale = np.finfo(np.float32).eps
    np.testing.assert_allclose(whole, parts, rtol=1e3 * scale, atol=1e3 * scale)
    assert np.abs(whole - parts).mean() < 1e2 * scale * np.abs(parts).mean()


@pytest.mark.parametrize("n", [N, 50_000])
@pytest.mark.parametrize("fn", ["log_prob", "predict_proba", "component_log_prob"])
def test_density_calls_no_lapack(structure, n, fn):
    gmm, x = structure.mixture(16, 8), points(n=n, d=8)

    def loss(gmm, x):
        return getattr(gmm, fn)(x).sum()

    for jaxpr in (jax.make_jaxpr(loss)(gmm, x), jax.make_jaxpr(jax.grad(loss, (0, 1)))(gmm, x)):
        names = {equation.primitive.name for equation in equations(jaxpr.jaxpr)}
        assert "dot_general" in names or "reduce_sum" in names, "the jaxpr was not looked into"
        lapack = ("cholesky", "triangular_solve", "eigh", "lu", "qr", "svd")
        assert not {name for name in names if name in lapack}


def largest_array(fn, *args):
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    return max(
        (v.aval.size, e.primitive.name) for e in equations(jaxpr) for v in e.outvars
        if hasattr(v.aval, "shape")
    )  # fmt: skip


def test_no_array_of_rows_by_components_by_features(structure):
    k, d, n = 16, 8, 4_000_000
    gmm, x = structure.mixture(k, d), jax.ShapeDtypeStruct((n, d), np.float64)
    largest, name = largest_array(lambda g, x: gmmx.EMFitter().fit(x, g), gmm, x)
    assert largest <= 2 * n * d, name
    largest, name = largest_array(lambda g, x: g.log_prob(x), gmm, x)
    assert largest <= 2 * n * d, name
    # Of fewer rows a fit keeps the features, within a limit and however many the components are.
    n = 200_000
    x = jax.ShapeDtypeStruct((n, d), np.float64)
    largest, name = largest_array(lambda g, x: gmmx.EMFitter().fit(x, g), gmm, x)
    assert largest <= n * (d + 1) * (d + 2) / 2, name
    assert largest * x.dtype.itemsize <= 2**28


def test_sampling_builds_no_matrix_a_sample(structure):
    k, d, n = 3, 16, 100_000
    gmm = structure.mixture(k, d)
    largest, name = largest_array(lambda g: g.sample(n, key=jax.random.key(0)), gmm)
    # The label draw compares n × k random numbers, and the keys' bits are pairs of words.
    assert largest <= 2 * n * d, name


def test_samples_have_the_moments(structure):
    """Mean and covariance of each component's draws, within five standard errors."""
    n = 60_000
    weights, means, covariances = structure.parameters(K, D)
    dense = structure.dense(covariances, K, D)
    gmm = structure.mixture(K, D)
    x, labels = gmm.sample_with_labels(n, key=jax.random.key(2))
    assert x.shape == (n, D) and labels.shape == (n,)
    np.testing.assert_array_equal(x, gmm.sample(n, key=jax.random.key(2)))
    counts = np.bincount(labels, minlength=K)
    assert (np.abs(counts - n * weights) < 5 * np.sqrt(n * weights * (1 - weights))).all()
    for k in range(K):
        mine = np.asarray(x)[np.asarray(labels) == k]
        variances = np.diagonal(dense[k])
        error = np.abs(mine.mean(0) - means[k]) / np.sqrt(variances / len(mine))
        assert (error < 5).all()
        # The variance of an entry of a sample covariance is (Σ_iiΣ_jj + Σ_ij²)/n.
        spread = np.sqrt((np.outer(variances, variances) + dense[k] ** 2) / len(mine))
        assert (np.abs(np.cov(mine.T) - dense[k]) < 5 * spread).all()


def test_sampling_without_a_key_repeats(structure):
    gmm = structure.mixture(K, D)
    np.testing.assert_array_equal(gmm.sample(5), gmm.sample(5))
    np.testing.assert_array_equal(gmm.sample(5), gmm.sample(5, key=jax.random.key(0)))


@pytest.mark.parametrize("n", [N, 60_000])
def test_a_component_of_no_weight_has_finite_gradients(structure, n):
    weights, means, covariances = structure.parameters(K, D)
    weights = np.array([0.0, 0.25, 0.75])
    gmm = gmmx.GaussianMixture.from_parameters(weights, means, covariances, structure.name)
    two = gmmx.GaussianMixture.from_parameters(
        weights[1:], means[1:], structure.natural(structure.dense(covariances, K, D)[1:]),
        structure.name,
    )  # fmt: skip
    x = points(n=n)
    np.testing.assert_allclose(gmm.log_prob(x), two.log_prob(x), rtol=1e-9, atol=1e-9)
    gradient = jax.grad(lambda gmm, x: gmm.score(x), (0, 1))(gmm, x)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
    assert np.asarray(gmm.sample_with_labels(1000)[1]).min() == 1


def test_dtype_in_is_dtype_out(structure, dtype):
    def everything(gmm, x):
        return (
            gmm.log_prob(x), gmm.component_log_prob(x), gmm.predict_proba(x), gmm.score(x),
            gmm.aic(x), gmm.bic(x), gmm.icl(x), gmm.sample(3), gmm.weights, gmm.means,
            gmm.covariances, gmm.precisions, gmm.precisions_cholesky, gmm.mean(),
            gmm.covariance(), gmmx.GaussianMixture.create(K, D, structure.name, dtype=dtype),
            gmmx.initialize(x, K, structure.name),
            gmmx.GaussianMixture.from_responsibilities(x, gmm.predict_proba(x), structure.name),
        )  # fmt: skip

    gmm, x = structure.mixture(K, D, dtype), jnp.asarray(points(dtype=dtype))
    values = jax.tree.leaves(jax.eval_shape(everything, gmm, x))
    assert {value.dtype for value in values} == {dtype}
    assert {leaf.dtype for leaf in jax.tree.leaves(gmm)} == {dtype}
    assert np.issubdtype(gmm.predict(x).dtype, np.integer)


def modules():
    found = [m for name, m in sys.modules.items() if name.split(".")[0] == "gmmx"]
    classes = {c for m in found for _, c in inspect.getmembers(m, inspect.isclass)}
    return [c for c in classes if issubclass(c, eqx.Module) and c.__module__.startswith("gmmx")]


def test_classes_are_abstract_or_final():
    """What can be made is never subclassed, and what is subclassed cannot be made."""
    classes = modules()
    assert len(classes) > 10
    for cls in classes:
        parents = [c for c in cls.__mro__[1:] if c in classes]
        for parent in parents:
            assert parent.__name__.startswith("Abstract"), f"{cls} subclasses {parent}"
        if cls.__name__.startswith("Abstract"):
            with pytest.raises(TypeError):
                cls()
