"""The notebooks run, at their small sizes, and are committed with what they put out."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import quick_options

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def test_it_runs(notebook, tmp_path):
    # Elsewhere than beside its file, as a reader may; and on one device, as a reader has.
    client = nbclient.NotebookClient(
        notebook,
        timeout=180,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    flags = " ".join(f"--{name}={str(v).lower()}" for name, v in quick_options().items())
    client.execute(env={**os.environ, "GMMX_SMALL": "1", "XLA_FLAGS": flags})


def test_it_was_run_as_committed(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
