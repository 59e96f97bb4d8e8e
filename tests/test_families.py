"""The fourteen families of mclust: the best of each by NumPy, fits, gradients and files."""

import dataclasses
from pathlib import Path

import conftest
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_iris

import gmmx
from gmmx._covariance import structure_named

# Those that are not among the structures of the contract under another name.
NEW = [
    name
    for name in gmmx.FAMILIES
    if structure_named(name).covariance_type not in conftest.STRUCTURES
]
K = 3


# The best covariances of a family, by the formulas on dense matrices (Celeux & Govaert 1995;
# Browne & McNicholas 2014): n_k and scatters S_k about the means.


def volume(matrices):
    return np.linalg.det(matrices) ** (1 / matrices.shape[-1])


def times(values, matrices):
    return np.asarray(values)[..., None, None] * matrices


def unit(matrices):
    return times(1 / volume(matrices), matrices)


def best(family, n, scatter):
    """Σ_k of the greatest expected likelihood."""
    d = scatter.shape[-1]
    volumes, shape, orientation = family
    if orientation == "I":
        scatter = scatter * np.eye(d)
    if shape == "I":
        scatter = times(np.trace(scatter, axis1=1, axis2=2) / d, np.eye(d))
    if shape in "IE" and orientation in "IE":
        return equal_shape(volumes, n, scatter)
    if orientation == "E":
        axes = common_axes(volumes, n, scatter)
        return axes @ own_shapes(volumes, n, (axes.T @ scatter @ axes) * np.eye(d)) @ axes.T
    if shape == "E":
        spectra, axes = np.linalg.eigh(scatter)
        spectra = equal_shape(volumes, n, spectra[:, :, None] * np.eye(d))
        return axes @ spectra @ axes.transpose(0, 2, 1)
    return own_shapes(volumes, n, scatter)


def own_shapes(volumes, n, scatter):
    if volumes == "V":
        return times(1 / n, scatter)
    return volume(scatter).sum() / n.sum() * unit(scatter)


def equal_shape(volumes, n, scatter):
    if volumes == "E":
        return np.broadcast_to(scatter.sum(0) / n.sum(), scatter.shape)
    size = np.ones(len(n))
    for _ in range(500):
        shape = unit(times(1 / size, scatter).sum(0))
        size = np.trace(scatter @ np.linalg.inv(shape), axis1=1, axis2=2) / (len(shape) * n)
    return times(size, shape)


def common_axes(volumes, n, scatter):
    """By steps that each lower Σ tr(S_kDA_k⁻¹Dᵀ), with the best A_k in between."""
    axes = np.linalg.eigh(scatter.sum(0))[1]
    before = np.zeros_like(axes)
    while np.abs(axes - before).max() > 1e-10:
        along = np.einsum("ji,kjl,li->ki", axes, scatter, axes)
        weight = n if volumes == "V" else along.prod(1) ** (1 / len(axes))
        inverse = weight[:, None] / along
        lower = inverse - inverse.max(1, keepdims=True)
        left, _, right = np.linalg.svd(np.einsum("kij,jl,kl->il", scatter, axes, lower))
        before, axes = axes, -left @ right
    return axes


def expected(n, scatter, covariances):
    """The expected log-likelihood of a sample, less what does not depend on Σ."""
    trace = np.trace(np.linalg.solve(covariances, scatter), axis1=1, axis2=2)
    return -(n * np.linalg.slogdet(covariances)[1] + trace).sum() / n.sum() / 2


# Each family in two, three or four dimensions.
@pytest.mark.parametrize("family, d", [(f, 2 + i % 3) for i, f in enumerate(gmmx.FAMILIES)])
def test_the_m_step_is_the_best_of_its_family(family, d):
    """After some M-steps of one scatter; a single one raises the likelihood, at least."""
    rng = np.random.default_rng(d)
    n = np.array([30.0, 50, 20])
    roots = times([1.0, 3.0, 0.4], rng.normal(size=(K, d, 8)))
    scatter = times(n / 8, roots @ roots.transpose(0, 2, 1))
    structure = structure_named(family)

    @jax.jit
    def step(factors):
        """An M-step by the scatter in the frame of the last one."""
        seen = factors[:, :, None] * jnp.eye(d) if structure.axis_aligned else factors
        seen, weight = seen @ scatter @ seen.mT, jnp.asarray(n)
        if structure.shared:
            seen, weight = (jnp.sum(v, axis=0, keepdims=True) for v in (seen, weight))
        if structure.axis_aligned:
            seen = jnp.diagonal(seen, axis1=1, axis2=2)
        return structure.fitted(weight, factors, seen).factors(K, d)

    factors = np.full((1 if structure.shared else K, d), 0.7)
    factors = factors if structure.axis_aligned else factors[:, :, None] * np.eye(d)
    reached = []
    for _ in range(25):
        factors = np.asarray(step(factors))
        dense = factors[:, :, None] * np.eye(d) if structure.axis_aligned else factors
        roots = np.linalg.inv(np.broadcast_to(dense, (K, d, d)))
        reached.append(expected(n, scatter, roots @ roots.transpose(0, 2, 1)))
    wanted = expected(n, scatter, best(family, n, scatter))
    np.testing.assert_allclose(reached[-1], wanted, rtol=0, atol=1e-8)
    assert (np.diff(reached) > -1e-12).all()


# d = 3: orientation (O) and shape (S) of one component have three and two parameters.
COUNTS = {
    "EII": 1, "VII": K, "EEI": 3, "VEI": K + 2, "EVI": 1 + 2 * K, "VVI": 3 * K, "EEE": 6,
    "VEE": K + 5, "EVE": 1 + 2 * K + 3, "VVE": 3 * K + 3, "EEV": 3 + 3 * K, "VEV": K + 2 + 3 * K,
    "EVV": 1 + 5 * K, "VVV": 6 * K,
}  # fmt: skip


@pytest.mark.parametrize("family", gmmx.FAMILIES)
def test_number_of_parameters(family):
    assert structure_named(family).n_parameters(K, 3) == COUNTS[family]


def zeros(name, k, d, dtype=np.float64):
    """The structure with all leaves zero, whose covariances are the identity; nothing compiles."""
    like = jax.eval_shape(lambda: structure_named(name).from_scale(jnp.ones(d), k))
    return jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, dtype)), like)


@pytest.mark.parametrize("family", NEW)
def test_derivatives_in_every_leaf(family):
    """They are those of finite differences, and as many of them are independent as are counted."""
    rng = np.random.default_rng(5)
    d, like = 3, zeros(family, K, 3)
    x, means = rng.normal(size=(60, d)), jnp.asarray(rng.normal(size=(K, d)))
    flat, unravel = jax.flatten_util.ravel_pytree(like)

    @jax.jit
    def both(flat):
        def of(flat):
            return gmmx.GaussianMixture(jnp.zeros(K), means, unravel(flat)).log_prob(x)

        return of(flat), jax.jacrev(of)(flat)

    # Of equal variances, as all leaves zero have, and of any other.
    for leaves in (flat, jnp.asarray(rng.normal(size=flat.shape))):
        value, jacobian = both(leaves)
        assert np.isfinite(value).all()
        along = rng.normal(size=flat.shape)
        ahead, behind = (both(leaves + h * along)[0] for h in (1e-5, -1e-5))
        np.testing.assert_allclose((ahead - behind) / 2e-5, jacobian @ along, rtol=1e-6, atol=1e-7)
    values = np.linalg.svd(jacobian, compute_uv=False)
    assert (values > 1e-9 * values[0]).sum() == COUNTS[family]


@pytest.fixture(scope="module")
def hard():
    """Overlapping clusters of different volume, shape and orientation, with a heavy tail."""
    rng = np.random.default_rng(2)
    roots = rng.normal(size=(K, 3, 3)) * np.array([[1.0], [0.5], [0.2]])
    rows = rng.standard_t(4, size=(K, 150, 3)) @ roots
    centres = np.array([[0.0, 0, 0], [2, 0, 1], [0, 2, -1]])
    return (rows + centres[:, None]).reshape(-1, 3), centres


def fit(name, x, centres):
    start = gmmx.GaussianMixture(
        jnp.zeros(K, x.dtype), jnp.asarray(centres, x.dtype), zeros(name, K, 3, x.dtype)
    )
    return gmmx.EMFitter(tol=1e-6, max_iter=300).fit(x, start)


@pytest.mark.parametrize("family", NEW)
def test_fits(family, hard, tmp_path):
    """The likelihood does not fall, float32 far from the origin agrees, and files are exact."""
    x, centres = hard
    offset = np.array([1e4, -1e4, 1e4])
    far = (x + offset).astype(np.float32)
    exact = fit(family, far.astype(np.float64) - offset, centres)
    assert exact.converged
    assert (np.diff(exact.history) > -1e-9).all()
    single = fit(family, far, centres + offset)
    np.testing.assert_allclose(single.log_likelihood, exact.log_likelihood, atol=1e-3)

    for gmm in (exact.gmm, single.gmm):
        gmmx.save(tmp_path / "model.safetensors", gmm)
        again = gmmx.load(tmp_path / "model.safetensors")
        assert again.covariance_type == structure_named(family).covariance_type
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(gmm), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("family", ["EVI", "VVE"])
def test_algebra_is_that_of_the_same_covariances(family):
    """Axis-aligned families become diag, and the others full."""
    rng = np.random.default_rng(1)
    like = zeros(family, K, 3)
    leaves = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), like)
    gmm = gmmx.GaussianMixture(jnp.zeros(K), jnp.asarray(rng.normal(size=(K, 3))), leaves)
    full = dataclasses.replace(
        gmm, structure=structure_named("full").from_factors(gmm.dense_factors())
    )
    for operation in (
        lambda gmm: gmm.marginal([2, 0]),
        lambda gmm: gmm.condition([1], [0.3]),
        lambda gmm: gmm.convolve(0.2),
    ):
        found, wanted = operation(gmm), operation(full)
        assert found.covariance_type == ("diag" if family == "EVI" else "full")
        np.testing.assert_allclose(found.means, wanted.means, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            found.dense_factors(), wanted.dense_factors(), rtol=1e-9, atol=1e-12
        )


def test_the_estimator_takes_a_family(hard):
    """scikit-learn has no EVI; its draws are those of the same full covariances."""
    sklearn = pytest.importorskip("gmmx.sklearn")
    x, _ = hard
    estimator = sklearn.GaussianMixture(K, covariance_type="EVI", random_state=0).fit(x)
    assert estimator.covariances_.shape == (K, 3)
    volumes = estimator.covariances_.prod(axis=1)
    np.testing.assert_allclose(volumes, volumes[0], rtol=1e-9)
    draws, labels = estimator.sample(3000)
    for k in range(K):
        spread = draws[labels == k].var(axis=0) / estimator.covariances_[k]
        np.testing.assert_allclose(spread, 1, atol=0.3)
    with pytest.raises(ValueError, match="scikit-learn has no covariance_type='EVI'"):
        estimator.to_sklearn()


FAITHFUL = Path(__file__).parent / "data" / "faithful.csv"


def test_mclust_on_old_faithful():
    """Its BIC, −2314.316, −2322.103 and −2320.433 (mclust 6, of the opposite sign)."""
    x = np.loadtxt(FAITHFUL, delimiter=",", skiprows=1)
    fitter = gmmx.EMFitter(tol=1e-6, max_iter=1000)
    found = gmmx.select(x, (2, 3), ("EEE", "VEE", "VVE"), n_init=5, fitter=fitter)
    bic = {(c.covariance_type, c.n_components): -c.bic for c in found.candidates}
    assert bic["tied", 3] >= -2314.316 - 0.5
    assert bic["VEE", 3] >= -2322.103 - 0.5
    assert bic["VVE", 2] >= -2320.433 - 0.5
    assert (found.best.covariance_type, found.best.n_components) == ("tied", 3)


def test_mclust_on_iris():
    """VEV with two components is its choice, at a BIC of −561.729."""
    x = load_iris().data
    fitter = gmmx.EMFitter(tol=1e-6, max_iter=1000)
    found = gmmx.select(x, (2, 3), ("VEV", "VVV"), n_init=5, fitter=fitter)
    assert (found.best.covariance_type, found.best.n_components) == ("VEV", 2)
    assert -found.best.bic >= -561.729 - 0.5
    assert found.candidates[1].log_likelihood * len(x) >= -186.074 - 0.5


def test_names():
    """mclust's names are names of scikit-learn's structures too, and the nearest is proposed."""
    pairs = {"VVV": "full", "EEE": "tied", "VVI": "diag", "VII": "spherical", "EEI": "tied_diag"}
    for family, name in pairs.items():
        assert structure_named(family) is structure_named(name)
    with pytest.raises(ValueError, match="Did you mean 'VEV'"):
        structure_named("vev")
    with pytest.raises(ValueError, match="Did you mean 'spherical'"):
        structure_named("sperical")


def test_a_subclass_leaves_its_parent_the_names():
    from gmmx._covariance import base

    full = structure_named("full")
    try:

        class Own(full):
            covariance_type = "own for a test"

        assert structure_named("own for a test") is Own
        assert structure_named("VVV") is structure_named("full") is full
    finally:
        base._registry.pop("own for a test")
