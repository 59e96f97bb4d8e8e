"""The libraries that are compared, each in a process of its own.

The threads of a matrix product spin for tens of milliseconds after a call and would disturb the
next library's call in the same process. GMMX 0.7 also has the same import name as this library.
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
SOURCE = HERE.parent / "src"
ENVIRONMENTS = HERE / ".environments"
START_TIMEOUT = 180

# Variables that change what a process imports, computes in, or reads from a cache; and those that
# replace the kernel OpenBLAS chooses for the processor.
_CLEARED = (
    "PYTHONPATH",
    "JAX_ENABLE_X64",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
)


class Failure(Exception):  # noqa: N818
    """A process could not do its task; the text says why."""


def _own_python(name, *requirements):
    """The Python of a peer's own environment, with the version of JAX that runs here."""
    folder = ENVIRONMENTS / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = [*requirements]
    for distribution in metadata.distributions():
        found = distribution.metadata["Name"]
        if found in ("jax", "jaxlib") or found.startswith("jax-cuda"):
            extra = "[with-cuda]" if found.endswith("plugin") else ""
            packages.append(f"{found}{extra}=={distribution.version}")
    stamp, recipe = folder / "installed", "\n".join(sorted({*packages, sys.version}))
    if stamp.exists() and stamp.read_text() == recipe:
        return python
    print(f"Making an environment for {name} ...", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    if subprocess.run(pip, stdout=sys.stderr, check=False).returncode:
        raise Failure(f"pip could not install {' '.join(requirements)}")
    stamp.write_text(recipe)
    return python


def _this_python(*modules):
    missing = [module for module in modules if util.find_spec(module) is None]
    if missing:
        raise Failure(f"{' and '.join(missing)} not installed")
    return sys.executable


# Name: (worker, function that finds its Python, dtypes that it does not support).
PEERS = {
    "gmmx": ("gmmx_worker.py", lambda: _this_python("jax", "equinox"), ()),
    "scikit-learn": ("sklearn_worker.py", lambda: _this_python("sklearn", "threadpoolctl"), ()),
    "GMMX 0.7": ("upstream_worker.py", lambda: _own_python("upstream", "gmmx==0.7"), ("float64",)),
    "pomegranate": (
        "pomegranate_worker.py", lambda: _this_python("torch", "pomegranate"), ("float64",)
    ),
    "numpyro": ("numpyro_worker.py", lambda: _own_python("numpyro", "numpyro"), ()),
}  # fmt: skip


def environment(dtype="float32", *, source=SOURCE, cache=None):
    """Environment variables of a worker.

    `source` is the folder that gmmx is imported from, or None for workers of other libraries.
    `cache` is a folder for JAX's persistent compilation cache, which is off without it.
    """
    variables = {key: value for key, value in os.environ.items() if key not in _CLEARED}
    if source:
        variables["PYTHONPATH"] = str(source)
    else:
        # Without this flag GMMX 0.7 hangs on two cores, and numpyro may.
        flag = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
        variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {flag}".strip()
    if dtype == "float64":
        variables["JAX_ENABLE_X64"] = "1"
    if cache:
        variables["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share an accelerator
    return variables


def fresh(script, *arguments, timeout=1800, **options):
    """Run a worker in a new process and return the JSON on its last line.

    `options` are those of `environment`.
    """
    done = subprocess.run(
        [sys.executable, HERE / "workers" / script, *map(str, arguments)],
        capture_output=True, text=True, env=environment(**options), timeout=timeout, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Failure(f"{script} ended with {done.returncode}: {_last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


class Peer:
    """A running worker. The first request starts it, and so does the next one after it ended."""

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
            env=environment(self.dtype, source=SOURCE if self.name == "gmmx" else None),
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
            last = _last_line(self.log.read())
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
            pass  # `_answer` says that the process ended
        return self._answer(timeout)

    def prepare(self, task, inputs, options, *, slot="", timeout=300):
        """Prepare a call and run it once. Return (arrays, facts) of its result, and the seconds."""
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


def _last_line(text):
    return (text.splitlines() or [""])[-1][:160]


def _listen(stream, lines):
    for line in stream:
        lines.put(line)
    lines.put(None)
