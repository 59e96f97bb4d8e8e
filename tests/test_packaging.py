"""What the package says of itself in several places says the same."""

import inspect
import re
import runpy
import tomllib
from pathlib import Path

import equinox as eqx
import optax
import pytest

import gmmx

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="an installation without its source tree"
)


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_one_version():
    version = project()["version"]
    assert gmmx.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_conda_recipe_is_that_of_pyproject():
    module = runpy.run_path(str(ROOT / "conda" / "make_recipe.py"))
    assert (ROOT / "conda" / "recipe.yaml").read_text("utf-8") == module["recipe"]()


def test_every_public_name_is_in_the_reference():
    text = "\n".join(p.read_text("utf-8") for p in sorted((ROOT / "docs" / "api").glob("*.md")))
    documented = set(re.findall(r"^::: gmmx\.(\w+)$", text, re.MULTILINE))
    other_names = {"GaussianMixtureModelJax", "GaussianMixtureSKLearn"}
    public = {k for k, v in vars(gmmx).items() if k[0] != "_" and not inspect.ismodule(v)}
    assert documented == public - other_names


def test_the_reference_gives_the_defaults():
    text = (ROOT / "docs" / "api" / "fitting.md").read_text("utf-8")
    fitter = gmmx.EMFitter()
    defaults = [fitter, gmmx.GradientFitter(), gmmx.Restarts(fitter)]
    lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].splitlines()
    for line, default in zip(lines, defaults, strict=True):
        given = eval(line, {"gmmx": gmmx, "optax": optax, "fitter": fitter})
        assert eqx.tree_equal(given, default), line
