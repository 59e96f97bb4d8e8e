"""The page on extending, followed: its two files are put where it says, and used."""

import ast
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_operations
import test_structures
from jaxtyping import install_import_hook
from test_operations import operation  # noqa: F401  (the fixture)

import gmmx
from gmmx._covariance import base
from gmmx._engine.form import Form
from gmmx._engine.ladder import Ladder
from gmmx._engine.moments import maximise
from gmmx._engine.rows import Rows

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="an installation without docs/")

# The contract of the structures, collected here for the new one.
for _module in (test_structures, test_operations):
    for _name, _test in list(vars(_module).items()):
        if _name.startswith("test_") and "structure" in inspect.signature(_test).parameters:
            globals()[_name.replace("test", _module.__name__, 1)] = _test


def blocks():
    """The page's code, by its titles."""
    found = re.findall(r'```python title="(.*?)"\n(.*?)```', PAGE.read_text("utf-8"), re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page's modules, found in their folders; nothing of them stays."""
    names = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_registry", dict(base._registry))
        for title, text in blocks().items():
            path = Path(title)
            if path.parts[0] != "src":
                continue
            package = importlib.import_module(".".join(path.parts[1:-1]))
            folder = tmp_path_factory.mktemp(path.parent.name)
            (folder / path.name).write_text(text, "utf-8")
            patch.setattr(package, "__path__", [*package.__path__, str(folder)])
            names.append(f"{package.__name__}.{path.stem}")
        with install_import_hook("gmmx", "typechecking.check"):
            modules = {name: importlib.import_module(name) for name in names}
        yield modules
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope="module")
def structure(written):
    """In place of conftest's: the row that the page gives."""
    row = ast.parse("{" + textwrap.dedent(blocks()["tests/conftest.py"]) + "}", mode="eval")
    (new,) = eval(compile(row, PAGE.name, "eval"), vars(conftest)).values()
    return new


def test_the_contract_is_run_over_the_page(structure, written):
    assert structure.name not in conftest.STRUCTURES
    assert base.structure_named(structure.name).__module__ in written
    assert sum(name.startswith("test_operations_") for name in globals()) > 5


def test_the_structure_is_short(written):
    (text,) = (text for title, text in blocks().items() if "_covariance" in title)
    assert len(text.splitlines()) <= 40


# So few rows are whitened; so many of them that all ways are open.
@pytest.mark.parametrize("copies", [1, 400])
def test_the_m_step_of_every_way(structure, copies):
    """A step by NumPy, and by the moments of each way."""
    start = structure.mixture(4, 3)
    x = np.asarray(start.sample(300, key=jax.random.key(1))) + 0.5
    z = np.asarray(start.predict_proba(x))
    means = z.T @ x / z.sum(0)[:, None]
    pooled = np.einsum("nk,nkd->d", z, (x[:, None] - means) ** 2) / len(x)
    wanted = start.score(x)

    x = jnp.asarray(np.tile(x, (copies, 1)))
    ladder = Ladder.of(start, len(x), products=2)
    names = [way.__name__ for way in ladder.ways]
    assert names == (["Whitened"] if copies == 1 else ["Packed", "Whitened"])
    for number in range(len(names)):
        only = ladder.only(number)
        rows = Rows.of(x, None, only, start)
        form = Form.of(start, rows.frame)
        moments, size = rows.expect(form, None, only, jnp.asarray(number, jnp.int32))
        assert size <= 1
        np.testing.assert_allclose(moments.log_likelihood / moments.count, wanted, rtol=1e-10)
        moved = maximise(start, form, moments, rows.frame, jnp.full(3, 1e-3))
        np.testing.assert_allclose(moved.weights, z.mean(0), rtol=1e-9)
        np.testing.assert_allclose(moved.means, means, rtol=1e-9)
        np.testing.assert_allclose(moved.covariances, pooled + 1e-3, rtol=1e-9)


@pytest.mark.usefixtures("optax_promotion")
def test_the_structure_is_known_everywhere(structure, blobs, tmp_path):
    gmm = gmmx.EMFitter().fit(blobs, gmmx.initialize(blobs, 3, structure.name)).gmm
    assert gmm.covariance_type == structure.name
    assert gmm.covariances.shape == (3,)
    by_gradient = gmmx.GradientFitter().fit(blobs, gmm)
    np.testing.assert_allclose(by_gradient.log_likelihood, gmm.score(blobs), rtol=1e-3)
    gmmx.save(tmp_path / "model.safetensors", gmm)
    np.testing.assert_array_equal(
        gmmx.load(tmp_path / "model.safetensors").log_prob(blobs), gmm.log_prob(blobs)
    )


def test_the_override(structure, written, monkeypatch):
    covariances, kept = structure.mixture(2, 3).structure, np.array([2, 0])
    before = covariances.marginal(kept, 2, 3)
    found = {}
    exec(textwrap.dedent(blocks()["an override"]), {"np": np, **vars(base)}, found)
    for name, method in found.items():
        monkeypatch.setattr(type(covariances), name, method)
    after = covariances.marginal(kept, 2, 3)
    assert (before.covariance_type, after.covariance_type) == ("diag", structure.name)
    both = [np.broadcast_to(s.covariances(2, 2), (2, 2)) for s in (before, after)]
    np.testing.assert_allclose(*both, rtol=1e-12)


@pytest.fixture(scope="module")
def fitter(written):
    return written["gmmx._fit.classification"].ClassificationFitter()


def test_the_trainer_is_one_of_them(fitter, blobs):
    start = gmmx.initialize(blobs, 3)
    result = fitter.fit(blobs, start)
    assert result.converged
    np.testing.assert_allclose(result.log_likelihood, result.gmm.score(blobs), rtol=1e-12)
    # Where clusters are apart, hard and soft memberships are the same.
    em = gmmx.EMFitter(tol=1e-9).fit(blobs, start)
    np.testing.assert_allclose(result.log_likelihood, em.log_likelihood, rtol=1e-3)
    inside = jax.jit(lambda x: fitter.fit(x, start).log_likelihood)(blobs)
    np.testing.assert_allclose(inside, result.log_likelihood, rtol=1e-10)
    assert gmmx.Restarts(fitter, n_init=2).fit(blobs, start).converged
    with pytest.raises(NotImplementedError, match="ClassificationFitter"):
        jax.grad(lambda x: fitter.fit(x, start).log_likelihood)(blobs)


def test_the_trainer_weighs_samples(fitter, blobs):
    """A sample that counts twice is a sample that is there twice."""
    start = gmmx.initialize(blobs, 3)
    counts = 1 + np.arange(len(blobs)) % 3
    weighted = fitter.fit(blobs, start, weights=counts.astype(float))
    repeated = fitter.fit(np.repeat(blobs, counts, axis=0), start)
    np.testing.assert_allclose(weighted.gmm.means, repeated.gmm.means, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(weighted.log_likelihood, repeated.log_likelihood, rtol=1e-9)


def test_the_trainer_settles_on_its_own_labels(fitter):
    """The fixed point, by NumPy: each component is the mean of the samples that it is given."""
    start = conftest.STRUCTURES["full"].mixture(3, 2, seed=4)
    x = np.asarray(start.sample(500, key=jax.random.key(3)))
    gmm = fitter.fit(x, start).gmm
    labels = np.asarray(gmm.predict(x))
    means = np.stack([x[labels == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(gmm.means, means, rtol=1e-9)
    np.testing.assert_allclose(gmm.weights, np.bincount(labels) / len(x), rtol=1e-12)


def test_the_trainer_goes_a_slower_way(fitter):
    """In float32, of clusters too narrow for the faster ways."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 4))
    x = centres[np.arange(16_000) % 8] + 1e-4 * rng.normal(size=(16_000, 4))
    x = x.astype(np.float32)
    covariances = np.tile(1e-8 * np.eye(4, dtype=np.float32), (8, 1, 1))
    weights = np.full(8, 1 / 8, np.float32)
    start = gmmx.GaussianMixture.from_parameters(weights, x[:8], covariances)
    assert len(Ladder.of(start, len(x), products=2).ways) > 1
    result = type(fitter)(reg_covar=0.0).fit(x, start)
    assert result.converged
    alone = np.stack([x[k::8].astype(float).mean(0) for k in range(8)])
    np.testing.assert_allclose(result.gmm.means, alone, atol=1e-6)


def test_a_collapse_does_not_end_the_trainer(fitter):
    """Six components on six points."""
    x = np.repeat(np.random.default_rng(0).normal(size=(6, 2)), 10, axis=0)
    start = gmmx.initialize(x, 6)
    result = type(fitter)(reg_covar=0.0).fit(x, start)
    assert result.converged
    assert np.isfinite(result.gmm.log_prob(x)).all() and np.isfinite(result.log_likelihood)
