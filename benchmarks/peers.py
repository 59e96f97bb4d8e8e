"""Peers, each a process of its own, which it keeps from one call to the next.

The threads of one library's matrix product go on spinning for tens of milliseconds after a call and
would disturb what is timed next in the same process; and upstream has our import name.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import venv
from importlib import metadata, util
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".environments"
START_TIMEOUT = 180


class Failure(Exception):  # noqa: N818
    """A peer could not do what was asked of it; the text says why."""


def _own_python(name, *requirements):
    """The Python of an environment made for a peer, with the versions of JAX that run here."""
    folder = ENVIRONMENTS / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = [*requirements]
    for distribution in metadata.distributions():
        found = distribution.metadata["Name"]
        if found in ("jax", "jaxlib") or found.startswith("jax-cuda"):
            extra = "[with-cuda]" if found.endswith("plugin") else ""
            wanted.append(f"{found}{extra}=={distribution.version}")
    stamp, recipe = folder / "installed", "\n".join(sorted({*wanted, sys.version}))
    if stamp.exists() and stamp.read_text() == recipe:
        return python
    print(f"Making an environment for {name} ...", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    if subprocess.run(pip, stdout=sys.stderr, check=False).returncode:
        raise Failure(f"not at hand: {' '.join(requirements)} could not be installed")
    stamp.write_text(recipe)
    return python


def _this_python(*modules):
    missing = [module for module in modules if util.find_spec(module) is None]
    if missing:
        raise Failure(f"not at hand: {' and '.join(missing)} not installed")
    return sys.executable


# Name: (worker, where its Python is from, what it cannot do).
PEERS = {
    "gmmx": ("gmmx_worker.py", lambda: _this_python("jax", "equinox"), ()),
    "scikit-learn": ("sklearn_worker.py", lambda: _this_python("sklearn"), ()),
    "GMMX 0.7": ("upstream_worker.py", lambda: _own_python("upstream", "gmmx==0.7"), ("float64",)),
    "pomegranate": (
        "pomegranate_worker.py", lambda: _this_python("torch", "pomegranate"), ("float64",)
    ),
    "numpyro": ("numpyro_worker.py", lambda: _own_python("numpyro", "numpyro"), ()),
}  # fmt: skip


def environment(dtype="float32", *, own=True):
    """Variables of a process: ours sees this clone's source, others must not."""
    variables = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "JAX_ENABLE_X64", "JAX_COMPILATION_CACHE_DIR")
    }
    if own:
        variables["PYTHONPATH"] = str(HERE.parent / "src")
    else:
        # Without it upstream hangs on two cores, and so may numpyro.
        flag = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
        variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {flag}".strip()
    if dtype == "float64":
        variables["JAX_ENABLE_X64"] = "1"
    variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share an accelerator
    return variables


class Peer:
    """A running worker. It is started when first asked, and again after it was killed."""

    def __init__(self, name, dtype):
        self.name, self.dtype = name, dtype
        self.script, self.find_python, cannot = PEERS[name]
        self.about, self.process = None, None
        self.lacks = f"{name} has no {dtype}" if dtype in cannot else None

    def _start(self):
        if self.lacks:
            raise Failure(self.lacks)
        try:
            python = self.find_python()
        except Failure as failure:
            self.lacks = str(failure)
            raise
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, HERE / "workers" / self.script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment(self.dtype, own=self.name == "gmmx"),
        )
        self.lines = queue.Queue()
        listener = threading.Thread(
            target=_listen, args=(self.process.stdout, self.lines), daemon=True
        )
        listener.start()
        try:
            self.about = self._answer(START_TIMEOUT)
        except Failure as failure:
            self.lacks = f"{self.name} did not start: {failure}"
            raise

    def _answer(self, timeout):
        try:
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            self.stop()
            raise Failure(f"no answer within {timeout:.0f} s") from None
        if line is None:
            code = self.process.wait()
            self.log.seek(0)
            last = (self.log.read().splitlines() or [""])[-1][:160]
            self.process = None
            raise Failure(f"its process ended with {code}" + (f": {last}" if last else ""))
        answer = json.loads(line)
        if "error" in answer:
            raise Failure(answer["error"])
        return answer

    def ask(self, timeout, **request):
        if self.process is None:
            self._start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says that it has ended
        return self._answer(timeout)

    def prepare(self, task, inputs, options, *, slot="", timeout=300):
        """Make a call ready, and run it once: (arrays, facts) of its result, and the seconds."""
        with tempfile.TemporaryDirectory() as folder:
            outputs = Path(folder) / "outputs.npz"
            answer = self.ask(
                timeout,
                op="prepare",
                task=task,
                inputs=str(inputs) if inputs else None,
                options=options,
                slot=slot,
                outputs=str(outputs),
            )
            with np.load(outputs) as stored:
                return (dict(stored), answer["facts"]), answer["first"]

    def time(self, slot="", *, timeout=300):
        return self.ask(timeout, op="time", slot=slot)["seconds"]

    def forget(self):
        if self.process is not None:
            self.ask(60, op="forget")

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _listen(stream, lines):
    for line in stream:
        lines.put(line)
    lines.put(None)
