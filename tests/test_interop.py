"""numpyro and flowjax: the same densities, both ways, trained and without being needed."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmx

K, D = 3, 2
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def their_promotion():
    """Both libraries mix dtypes, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def points(n=30, d=D):
    return 3 * np.random.default_rng(2).normal(size=(n, d))


def test_numpyro_has_the_density(structure):
    module = pytest.importorskip("gmmx.numpyro")
    gmm, x = structure.mixture(K, D), points()
    theirs = module.to_numpyro(gmm)
    np.testing.assert_allclose(theirs.log_prob(x), gmm.log_prob(x), rtol=1e-11)
    np.testing.assert_allclose(theirs.mean, gmm.mean(), rtol=1e-12)
    assert theirs.event_shape == (D,) and theirs.batch_shape == ()
    assert theirs.sample(jax.random.key(0), (5,)).shape == (5, D)
    back = module.from_numpyro(theirs)
    assert back.covariance_type == "full"
    np.testing.assert_allclose(back.log_prob(x), gmm.log_prob(x), rtol=1e-11)
    gradients = [
        jax.grad(lambda gmm, f=f: f(gmm).sum())(gmm)
        for f in (lambda g: module.to_numpyro(g).log_prob(x), lambda g: g.log_prob(x))
    ]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_numpyro_takes_a_weight_of_zero():
    module = pytest.importorskip("gmmx.numpyro")
    gmm = gmmx.GaussianMixture.from_parameters([0.0, 0.4, 0.6], np.eye(3), [np.eye(3)] * 3)
    x = points(d=3)
    values, gradient = jax.value_and_grad(lambda g: module.to_numpyro(g).log_prob(x).sum())(gmm)
    np.testing.assert_allclose(values, gmm.log_prob(x).sum(), rtol=1e-12)
    assert gradient.logits[0] == 0 and np.isfinite(gradient.logits).all()
    assert module.from_numpyro(module.to_numpyro(gmm)).weights[0] == 0


def test_from_numpyro_takes_normal_components():
    module = pytest.importorskip("gmmx.numpyro")
    import numpyro.distributions as dist

    rng = np.random.default_rng(0)
    mixing = dist.Categorical(probs=jnp.asarray([0.2, 0.3, 0.5]))
    loc, scale = rng.normal(size=(K, D)), rng.uniform(0.5, 2, size=(K, D))
    covariance = np.eye(D) + 0.3
    cases = [
        (dist.Normal(loc, scale).to_event(1), "diag", D),
        (dist.Normal(loc, 1.5).to_event(1), "diag", D),
        (dist.Normal(loc[:, 0], scale[:, 0]), "diag", 1),
        (dist.MultivariateNormal(loc, covariance), "full", D),
        (dist.MultivariateNormal(loc, precision_matrix=covariance), "full", D),
    ]
    for components, name, d in cases:
        mixture = dist.MixtureSameFamily(mixing, components)
        gmm = module.from_numpyro(mixture)
        assert gmm.covariance_type == name and gmm.n_features == d
        x = points(d=d)
        wanted = mixture.log_prob(jnp.asarray(x if mixture.event_shape else x[:, 0]))
        np.testing.assert_allclose(gmm.log_prob(x), wanted, rtol=1e-10)
    bad = (
        (dist.Normal(0, 1), "MixtureSameFamily"),
        (dist.MixtureSameFamily(mixing, dist.Laplace(loc[:, 0], scale[:, 0])), "Laplace"),
        (dist.MixtureSameFamily(mixing, dist.Normal(np.zeros((2, K)), 1)), "batch_shape"),
        (dist.MixtureSameFamily(mixing, dist.Normal(np.zeros((K, 2, 2)), 1).to_event(2)), "event"),
    )
    for mixture, match in bad:
        with pytest.raises(ValueError, match=match):
            module.from_numpyro(mixture)


def test_flowjax_has_the_density(structure):
    module = pytest.importorskip("gmmx.flowjax")
    gmm, x = structure.mixture(K, D), points()
    theirs = module.MixtureDistribution(gmm)
    np.testing.assert_allclose(theirs.log_prob(x), gmm.log_prob(x), rtol=1e-12)
    assert theirs.shape == (D,) and theirs.cond_shape is None
    draws = theirs.sample(jax.random.key(1), (2, 1000))
    assert draws.shape == (2, 1000, D)
    error = np.sqrt(np.diagonal(gmm.covariance()) / 2000)
    assert (np.abs(draws.mean((0, 1)) - gmm.mean()) < 5 * error).all()
    _, log_prob = theirs.sample_and_log_prob(jax.random.key(1), (3,))
    assert log_prob.shape == (3,)
    with pytest.raises(ValueError, match="trailing dimensions"):
        theirs.log_prob(np.zeros(D + 1))


def test_flowjax_trains_a_mixture_as_base():
    module = pytest.importorskip("gmmx.flowjax")
    from flowjax.bijections import Affine
    from flowjax.distributions import Transformed
    from flowjax.train import fit_to_data

    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(-4, 1, (150, 1)), rng.normal(4, 0.5, (150, 1))])
    x = jnp.asarray(np.hstack([x, 3 + rng.normal(size=(300, 1))]))
    start = gmmx.GaussianMixture.create(2, D, key=jax.random.key(2))
    flow = Transformed(module.MixtureDistribution(start), Affine(jnp.zeros(D), jnp.ones(D)))
    trained, _ = fit_to_data(
        jax.random.key(0), flow, x, learning_rate=5e-2, max_epochs=15, show_progress=False
    )
    assert trained.log_prob(x).mean() > flow.log_prob(x).mean() + 0.5
    for leaf, first in zip(
        jax.tree.leaves(trained.base_dist.gmm), jax.tree.leaves(start), strict=True
    ):
        assert np.isfinite(leaf).all() and np.abs(leaf - first).max() > 1e-3


def test_neither_is_imported_nor_needed():
    program = """
import sys
sys.modules["numpyro"] = sys.modules["flowjax"] = None
import gmmx
for name in ("numpyro", "flowjax"):
    try:
        getattr(gmmx, name)
    except ImportError as error:
        assert f"pip install gmmx[{name}]" in str(error), error
    else:
        raise AssertionError(name)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
