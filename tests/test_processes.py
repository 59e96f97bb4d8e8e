"""Several processes of `jax.distributed`, each with its own files."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gmmx

K, D = 2, 2
SRC = Path(gmmx.__file__).parent.parent

PROGRAM = """
import os, sys, warnings
import jax
jax.config.update("jax_enable_x64", True)
port, count, number, death = map(int, sys.argv[1:5])
jax.distributed.initialize(
    f"localhost:{port}", count, number, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=5
)
import numpy as np
import gmmx
warnings.simplefilter("ignore")
gmmx.enable_compilation_cache()
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
own = [f"part-{i}.npy" for i in range(4) if i % count == number]
rows = gmmx.rows_from(own, mesh=mesh)

def step(state):
    if int(state.n_iter) == death and number == count - 1:
        os._exit(9)

start = gmmx.load("start.safetensors")
result = gmmx.EMFitter(max_iter=6, tol=0).fit(
    rows, start, callback=step, checkpoint=gmmx.Checkpoint("fit.ckpt", every=0)
)
again = gmmx.initialize(rows, 2)
np.savez(f"result-{number}.npz", means=result.gmm.means, history=result.history,
         covariances=result.gmm.covariances, score=result.gmm.score(rows), start=again.means)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for i, n in enumerate((700, 300, 500, 100)):
        np.save(tmp_path / f"part-{i}.npy", rng.normal(size=(n, D)) + 3 * rng.integers(
            0, 2, size=(n, 1)))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    gmmx.save("start.safetensors", gmmx.initialize(gmmx.rows_from("part-*.npy"), K))
    return tmp_path


def run(count, death=-1):
    """The exit statuses and messages of so many processes, of which the last dies at a step."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(SRC), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(count), str(number), str(death)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for number in range(count)
    ]  # fmt: skip
    messages = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], messages


@pytest.mark.filterwarnings("ignore::gmmx.FitWarning")
def test_two_processes_are_one_and_resume(folder):
    began = time.monotonic()
    statuses, messages = run(2, death=3)
    assert statuses[1] == 9 and statuses[0] != 0
    assert time.monotonic() - began < 60
    assert "another process has ended" in messages[0] or "coordination service" in messages[0]
    statuses, messages = run(2)
    assert statuses == [0, 0], messages
    results = [np.load(f"result-{i}.npz") for i in range(2)]
    start = gmmx.load("start.safetensors")
    rows = gmmx.rows_from("part-*.npy")
    wanted = gmmx.EMFitter(max_iter=6, tol=0).fit(rows, start)
    for found in results:
        for name in results[0].files:
            np.testing.assert_array_equal(found[name], results[0][name])
        np.testing.assert_allclose(found["means"], wanted.gmm.means, rtol=1e-12)
        np.testing.assert_allclose(found["covariances"], wanted.gmm.covariances, rtol=1e-12)
        np.testing.assert_allclose(found["history"], wanted.history, rtol=1e-12)
        np.testing.assert_allclose(found["score"], wanted.gmm.score(rows), rtol=1e-12)
        order = np.argsort(found["start"][:, 0])
        np.testing.assert_allclose(
            found["start"][order], np.sort(np.asarray(start.means), axis=0), rtol=0.2
        )
