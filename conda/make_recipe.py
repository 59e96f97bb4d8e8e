"""Write conda/recipe.yaml from pyproject.toml: `python conda/make_recipe.py`.

What the two have in common stands in pyproject.toml alone, and a test holds them together. Extras
are no notion of conda's: their packages are named as constraints, for whoever installs them beside.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Where conda-forge's name is not PyPI's.
NAMES = {"matplotlib": "matplotlib-base"}

TEMPLATE = """\
# Written by conda/make_recipe.py from pyproject.toml.
schema_version: 1

context:
  version: "{version}"

package:
  name: {name}
  version: ${{{{ version }}}}

source:
  path: ..

build:
  noarch: python
  number: 0
  script: python -m pip install . -vv --no-deps --no-build-isolation
  python:
    entry_points:
{scripts}

requirements:
  host:
    - python {python}
    - pip
{build}
  run:
    - python {python}
{run}
  run_constraints:
{constraints}

tests:
  - python:
      imports: [gmmx]
      pip_check: true

about:
  summary: "{summary}"
  license: {license}
  license_file: LICENSE
"""


def conda(requirement):
    """`a>=1` as `a >=1`, by conda-forge's name."""
    at = next((i for i, c in enumerate(requirement) if c in "<>=!~"), len(requirement))
    name, bound = requirement[:at].strip(), requirement[at:].strip()
    return f"{NAMES.get(name, name)} {bound}".strip()


def items(requirements):
    return "\n".join(f"    - {requirement}" for requirement in requirements)


def recipe():
    """The recipe's text."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        pyproject = tomllib.load(file)
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    optional = {
        requirement
        for name in ("cli", "progress", "plot", "sklearn", "numpyro", "flowjax")
        for requirement in extras[name]
    }
    return TEMPLATE.format(
        name=project["name"],
        version=project["version"],
        summary=project["description"],
        license=project["license"],
        python=project["requires-python"],
        scripts="\n".join(f"      - {k} = {v}" for k, v in project["scripts"].items()),
        build=items(map(conda, pyproject["build-system"]["requires"])),
        run=items(map(conda, project["dependencies"])),
        constraints=items(sorted(map(conda, optional))),
    )


if __name__ == "__main__":
    (ROOT / "conda" / "recipe.yaml").write_text(recipe(), encoding="utf-8")
