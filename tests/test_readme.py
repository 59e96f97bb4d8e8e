"""The README and the pages that hold whole examples: they are run as they stand."""

import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import jax
import pytest

import gmmx

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDES = [
    *("index", "what_is_a_mixture", "real_data", "anomalies", "fitting", "measured_rows"),
    *("algebra", "estimator", "choosing_a_trainer", "choosing_a_structure", "gallery", "scale"),
]
PAGES = [README, *(ROOT / "docs" / f"{name}.md" for name in GUIDES)]

pytestmark = [
    pytest.mark.skipif(not README.exists(), reason="an installation without its README"),
    # As a reader has it, whose JAX promotes dtypes.
    pytest.mark.usefixtures("optax_promotion"),
]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = blocks(page, "python")
    assert examples
    if page.stem == "gallery":
        pytest.importorskip("matplotlib").use("Agg")
    names = {"__name__": page.stem}
    for i, example in enumerate(examples):
        exec(compile(example, f"{page.name}, example {i + 1}", "exec"), names)
    if page.stem == "gallery":
        names["plt"].close("all")


def test_commands(tmp_path, monkeypatch, capfd):
    """The README's commands leave what they say."""
    pytest.importorskip("polars")
    pytest.importorskip("typer")
    pytest.importorskip("matplotlib").use("Agg")
    from gmmx_cli import main

    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    lines = [line.removeprefix("python3 run.py ") for line in lines]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("gmmx ")]
    assert len(commands) == 4
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    for command in commands:
        monkeypatch.setattr(sys, "argv", command)
        with warnings.catch_warnings():
            warnings.simplefilter("default", gmmx.FitWarning)
            with pytest.raises(SystemExit) as end:
                main()
        jax.config.update("jax_enable_x64", x64)
        assert not end.value.code, capfd.readouterr().err
    labels = Path("labels.csv").read_text("utf-8").splitlines()
    assert len(labels) == 1 + 150
    assert Path("fit.png").stat().st_size > 1000
    assert gmmx.load("model.safetensors").n_components == 3


def anchors(page):
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links(page):
    """Those of the site are checked where it is built."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text("utf-8"))
    for link, anchor in links:
        target = ROOT / (link or page)
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"
