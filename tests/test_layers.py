"""Imports run one way: no file imports from a layer above its own, and none of a circle."""

import ast
import functools
import graphlib
import importlib
from pathlib import Path

import pytest

import gmmx

ROOT = Path(gmmx.__file__).parent.parent

# From the bottom up. A name stands for a file, or for a folder and what is in it.
LAYERS = [
    """gmmx._cache gmmx._checks gmmx._chunks gmmx._data gmmx._files gmmx._grouped gmmx._linalg
    gmmx._noise gmmx._orthogonal gmmx._programs gmmx._reductions gmmx._rows gmmx._sources
    gmmx._spread gmmx._processes""",
    "gmmx._covariance",
    "gmmx._components",
    "gmmx._engine",
    """gmmx._algebra gmmx._anomaly gmmx._criteria gmmx._divergences gmmx._pathwise
    gmmx._raw gmmx._sampling gmmx._scores gmmx._summary""",
    "gmmx._abstract_mixture gmmx._mixture",
    "gmmx._background gmmx._batch",
    "gmmx._fit gmmx._init gmmx._posterior gmmx.nn",
    """gmmx._clusters gmmx._inference gmmx._io gmmx._select gmmx._selection gmmx.flowjax
    gmmx.numpyro gmmx.plot gmmx.sklearn""",
    "gmmx",
    "gmmx_cli",
    "gmmx.__main__",
]

# Methods that users like to have and that forward to a layer above, when they are called, and the
# types that these return. (importing file, function or None for a type, imported file)
FORWARDS = {
    ("gmmx._mixture", "from_sklearn", "gmmx.sklearn"),
    ("gmmx._mixture", "to_sklearn", "gmmx.sklearn"),
    ("gmmx._mixture", "condition", "gmmx._batch"),
    ("gmmx._mixture", "posterior", "gmmx._posterior"),
    ("gmmx._mixture", None, "gmmx._batch"),
    ("gmmx._mixture", None, "gmmx._posterior"),
    ("gmmx._selection", "plot", "gmmx.plot"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def files() -> dict[str, Path]:
    """Every module of the library and of its command line."""
    found = [path for package in ("gmmx", "gmmx_cli") for path in (ROOT / package).rglob("*.py")]
    return {module_name(path): path for path in found}


class Imports(ast.NodeVisitor):
    """The modules of the library that a file imports, and in which function."""

    def __init__(self, module: str):
        self.module, self.function, self.found = module, None, set()
        self.package = module if files()[module].stem == "__init__" else module.rpartition(".")[0]

    def visit_FunctionDef(self, node):
        outer, self.function = self.function, self.function or node.name
        self.generic_visit(node)
        self.function = outer

    def visit_Import(self, node):
        for alias in node.names:
            self.add(alias.name)

    def visit_ImportFrom(self, node):
        base = node.module or ""
        if node.level:
            parts = self.package.split(".")
            parts = parts[: len(parts) - node.level + 1]
            base = ".".join([*parts, base] if base else parts)
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            self.add(inner if inner in files() else base)

    def add(self, name: str):
        while name not in files() and "." in name:
            name = name.rpartition(".")[0]
        if name in files():
            self.found.add((self.function, name))


@functools.cache
def imports(module: str) -> set[tuple[str | None, str]]:
    visitor = Imports(module)
    visitor.visit(ast.parse(files()[module].read_text("utf-8")))
    return visitor.found


def layer(module: str) -> int:
    """The number of the layer, by the longest name that stands for the module."""
    places = {name: i for i, names in enumerate(LAYERS) for name in names.split()}
    name = module
    while name not in places:
        name = name.rpartition(".")[0]
        # The package itself stands for its `__init__` alone.
        assert name not in ("", "gmmx"), f"{module} belongs to no layer"
    return places[name]


def edges():
    """(importing module, function, imported module) of all but the forwards."""
    return {
        (module, function, other) for module in files() for function, other in imports(module)
    } - FORWARDS


def test_every_import_was_seen():
    """Imports of types and those inside functions too."""
    assert len(files()) > 60
    assert (None, "gmmx._checks") in imports("gmmx._mixture")
    assert (None, "gmmx.plot") in imports("gmmx")
    assert (None, "gmmx_cli") in imports("gmmx.__main__")
    seen = {(module, *found) for module in files() for found in imports(module)}
    assert seen >= FORWARDS, "a forward is named that is not there"


@pytest.mark.parametrize("module", files())
def test_no_import_from_a_layer_above(module):
    above = {other for _, _, other in (e for e in edges() if e[0] == module)}
    above = {other for other in above if layer(other) > layer(module)}
    assert not above


def circle(found):
    """The files of a circle of imports, or nothing."""
    graph = {module: {other for one, _, other in found if one == module} for module in files()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_circle():
    assert not circle(edges())
    # The forwards are what closes circles, so one would have been seen.
    assert circle(edges() | FORWARDS)


def classes():
    """Every class of the library, by its file, with the names of its bases."""
    for module, path in files().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = [b.value if isinstance(b, ast.Subscript) else b for b in node.bases]
                yield module, node.name, [ast.unparse(base).split(".")[-1] for base in bases]


def test_modules_are_abstract_or_final():
    """What can be made is never subclassed."""
    found = list(classes())
    parents = {name: bases for _, name, bases in found}

    def is_module(name: str) -> bool:
        return name == "Module" or any(map(is_module, parents.get(name, [])))

    modules = [(module, name) for module, name, _ in found if is_module(name)]
    assert len(modules) > 20
    for module, name in modules:
        for base in parents[name]:
            if base != "Module" and is_module(base):
                assert base.startswith("Abstract"), f"{module}: {name} subclasses {base}"


def test_what_is_abstract_cannot_be_made():
    found = [getattr(importlib.import_module(module), name, None) for module, name, _ in classes()
             if name.startswith("Abstract")]  # fmt: skip
    assert len(found) > 4
    for cls in found:
        with pytest.raises(TypeError):
            cls()
