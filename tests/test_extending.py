"""The page on extending, followed: its two files are put where it says, and used."""

import ast
import importlib
import re
import sys
import textwrap
from pathlib import Path

import conftest
import jax
import numpy as np
import pytest
from test_structures import (  # noqa: F401  (the contract, collected here for the new structure)
    test_any_leaves_are_a_mixture,
    test_composes_with_transformations,
    test_density_is_scipys,
    test_gradients_of_packed_moments,
    test_number_of_parameters,
    test_parameters_come_back,
    test_precisions_invert_covariances,
)

import gmmx
from gmmx._covariance import base

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
pytestmark = [
    pytest.mark.skipif(not PAGE.exists(), reason="an installation without docs/"),
    pytest.mark.usefixtures("quick_compilation"),
]


def blocks():
    """The page's code, by the file that it belongs to."""
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
        yield {name: importlib.import_module(name) for name in names}
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


def test_the_m_step_both_ways(structure):
    """A step by NumPy, by whitened moments, and by packed ones of the data many times over."""
    start = structure.mixture(4, 3)
    x = np.asarray(start.sample(300, key=jax.random.key(1))) + 0.5
    z = np.asarray(start.predict_proba(x))
    means = z.T @ x / z.sum(0)[:, None]
    pooled = np.einsum("nk,nkd->d", z, (x[:, None] - means) ** 2) / len(x)
    for data, packed in ((x, 0), (np.tile(x, (400, 1)), 1)):
        with pytest.warns(gmmx.FitWarning):
            result = gmmx.EMFitter(max_iter=1, reg_covar=1e-3).fit(data, start)
        assert result.packed == packed
        np.testing.assert_allclose(result.gmm.means, means, rtol=1e-9)
        np.testing.assert_allclose(result.gmm.covariances, pooled + 1e-3, rtol=1e-9)


def test_the_structure_is_known_everywhere(structure, blobs, tmp_path):
    gmm = gmmx.EMFitter().fit(blobs, gmmx.initialize(blobs, 3, structure.name)).gmm
    assert gmm.covariance_type == structure.name and gmm.covariances.shape == (3,)
    gmmx.save(tmp_path / "model.safetensors", gmm)
    np.testing.assert_array_equal(
        gmmx.load(tmp_path / "model.safetensors").log_prob(blobs), gmm.log_prob(blobs)
    )
    assert np.isfinite(gmm.condition([0], [1.0]).log_prob(blobs[:, 1:])).all()


def test_the_trainer_is_one_of_them(written, blobs):
    module = written["gmmx._fit.classification"]
    fitter = module.ClassificationFitter()
    start = gmmx.initialize(blobs, 3)
    result = fitter.fit(blobs, start)
    assert result.converged
    # Where clusters are apart, hard and soft memberships are the same.
    em = gmmx.EMFitter(tol=1e-9).fit(blobs, start)
    np.testing.assert_allclose(result.log_likelihood, em.log_likelihood, rtol=1e-3)
    inside = jax.jit(lambda x: fitter.fit(x, start).log_likelihood)(blobs)
    np.testing.assert_allclose(inside, result.log_likelihood, rtol=1e-10)
    assert gmmx.Restarts(fitter, n_init=2).fit(blobs, start).converged
    with pytest.raises(NotImplementedError, match="ClassificationFitter"):
        jax.grad(lambda x: fitter.fit(x, start).log_likelihood)(blobs)
