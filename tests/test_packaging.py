"""What the package says of itself in several places says the same."""

import ast
import importlib
import json
import re
import runpy
import sys
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


def pages():
    """The text of the documentation, by file."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in files}


@pytest.mark.parametrize(
    "name", ["gmmx", "gmmx.plot", "gmmx.sklearn", "gmmx.numpyro", "gmmx.flowjax"]
)
def test_every_public_name_is_in_the_reference(name):
    module = importlib.import_module(name)
    text = "\n".join(text for page, text in pages().items() if page.startswith("docs/api/"))
    documented = re.findall(rf"^::: {re.escape(name)}\.(\w+)$", text, re.MULTILINE)
    public = {
        key
        for key, value in vars(module).items()
        # What has come from elsewhere is documented there. A tuple does not say where it is from.
        if key[0] != "_"
        and (isinstance(value, tuple) or getattr(value, "__module__", "").startswith(name))
    }
    assert sorted(documented) == sorted(public - {"GaussianMixtureModelJax"})


def test_every_picture_is_on_a_page():
    images = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.png")}
    shown = re.findall(r"!\[[^]]+\]\((?:docs/)?(images/[^)]+)\)", "\n".join(pages().values()))
    assert images == set(shown)


# Packages whose modules have other names.
MODULES = {"scikit-learn": "sklearn", "scikit-image": "skimage", "mkdocs-material": "material"}


def modules(*extras):
    """What can be imported where the library is installed with these extras."""
    found = set()
    named = project()["optional-dependencies"]
    requirements = [*project()["dependencies"], *(r for extra in extras for r in named[extra])]
    for requirement in requirements:
        if own := re.fullmatch(r"gmmx\[(.*)\]", requirement):
            found |= modules(*own[1].split(","))
        else:
            package = re.match(r"[\w-]+", requirement)[0]
            found.add(MODULES.get(package, package.replace("-", "_")))
    return found


def imported(code):
    """The packages that a program imports, at its top or within."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def programs(folder):
    """The Python in a folder: its files, and the cells of its notebooks."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, path.read_text("utf-8")
    for path in sorted((ROOT / folder).glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        yield path, "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


@pytest.mark.parametrize(
    "folder, extras",
    [
        ("src", ["all"]),
        ("tests", ["test"]),
        ("notebooks", ["test"]),
        ("examples", ["plot", "sklearn"]),
        ("docs/figures", ["plot", "sklearn"]),
        ("docs/hooks", ["docs"]),
        ("conda", []),
    ],
)
def test_what_is_imported_is_in_an_extra(folder, extras):
    at_hand = modules(*extras) | set(sys.stdlib_module_names) | {"gmmx", "gmmx_cli"}
    for path, code in programs(folder):
        local = {p.stem for p in path.parent.glob("*.py")}
        assert set(imported(code)) <= at_hand | local, path


def test_the_reference_gives_the_defaults():
    text = (ROOT / "docs" / "api" / "fitting.md").read_text("utf-8")
    fitter = gmmx.EMFitter()
    defaults = [fitter, gmmx.StepwiseEM(), gmmx.GradientFitter(), gmmx.Restarts(fitter)]
    calls = ast.parse(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]).body
    for call, default in zip(calls, defaults, strict=True):
        given = eval(ast.unparse(call), {"gmmx": gmmx, "optax": optax, "fitter": fitter})
        assert eqx.tree_equal(given, default), ast.unparse(call)
