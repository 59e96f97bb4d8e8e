"""The compilation cache: it saves later processes the compiling, and never costs a result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import platformdirs
import pytest
from jax.experimental.compilation_cache import compilation_cache

import gmmx
from gmmx import _cache

CSV = Path(__file__).parent.parent / "examples" / "iris.csv"
MODEL = Path(__file__).parent / "data" / "diag-float64.safetensors"

# A fit, and how many programs were loaded and compiled for it.
FIT = """
import json
import jax
import numpy as np
import gmmx

counts = {"cache_hits": 0, "cache_misses": 0}

def count(event, **_):
    name = event.rpartition("/")[2]
    if name in counts:
        counts[name] += 1

jax.monitoring.register_event_listener(count)
gmmx.enable_compilation_cache()
x = np.random.default_rng(0).normal(size=(60, 2))
result = gmmx.EMFitter(tol=1e-2).fit(x, gmmx.initialize(x, 2, "diag"))
print(json.dumps(counts | {"log_likelihood": float(result.log_likelihood)}))
"""


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """No setting of this process or of the environment, neither before nor after a test."""
    monkeypatch.delenv("GMMX_CACHE", raising=False)
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def folder_of_jax():
    return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]


def run(*arguments, cache):
    """A process with GMMX_CACHE set: its standard output and error."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False,
        env=os.environ | {"GMMX_CACHE": str(cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def programs(folder):
    """The entries of the cache, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}


# What it saves


def test_a_second_process_compiles_nothing(tmp_path):
    first, second = (json.loads(run("-c", FIT, cache=tmp_path)[0]) for _ in range(2))
    assert first["cache_misses"] > 0 and second["cache_misses"] == 0
    assert second["cache_hits"] == first["cache_hits"] + first["cache_misses"]
    assert second["log_likelihood"] == first["log_likelihood"]


def test_a_second_command_compiles_nothing(tmp_path):
    """Even for data of another number of rows."""
    data, cache = tmp_path / "data.csv", tmp_path / "cache"
    lines = CSV.read_text().splitlines(keepends=True)
    compiled = []
    for n in (150, 140):
        data.write_text("".join(lines[: n + 1]))
        run("-m", "gmmx", "fit", data, "-k", 2, "--columns", "petal_length", cache=cache)
        compiled.append(programs(cache))
    assert compiled[0] and compiled[0] == compiled[1]


# Who chooses


@pytest.fixture
def users(monkeypatch, tmp_path):
    """The user's cache folder."""
    folder = tmp_path / "user"
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name, **_: folder / name)
    return folder


def test_the_folder(users, tmp_path, monkeypatch):
    """That of the argument, else of GMMX_CACHE, else of JAX, else of the user."""
    assert gmmx.enable_compilation_cache() == users / "gmmx"
    assert folder_of_jax() == str(users / "gmmx") and (users / "gmmx").is_dir()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "set before"))
    assert gmmx.enable_compilation_cache() == tmp_path / "set before"
    monkeypatch.setenv("GMMX_CACHE", str(tmp_path / "variable"))
    assert gmmx.enable_compilation_cache() == tmp_path / "variable"
    assert gmmx.enable_compilation_cache(tmp_path / "given") == tmp_path / "given"
    assert folder_of_jax() == str(tmp_path / "given")


def test_it_can_be_enabled_late_and_moved(tmp_path):
    """After programs were compiled, without a cache or with another one."""
    for name in ("one", "two"):
        jax.jit(lambda x: x + 1)(np.float32(0))
        gmmx.enable_compilation_cache(tmp_path / name)
        jax.jit(lambda x: x * 2 - 1)(np.arange(3.0))
        assert programs(tmp_path / name)


def test_the_library_does_not_enable_it(users):
    gmm = gmmx.GaussianMixture.create(2, 1)
    gmm.log_prob(gmm.sample(10))
    assert folder_of_jax() is None and not users.exists()


def test_the_variable_switches_it_off(users, tmp_path, monkeypatch):
    monkeypatch.setenv("GMMX_CACHE", "0")
    assert gmmx.enable_compilation_cache() is None
    assert gmmx.enable_compilation_cache(tmp_path / "given") is None
    assert folder_of_jax() is None and not list(tmp_path.iterdir())


def test_the_command_line_switches_it_off(tmp_path):
    cache = tmp_path / "cache"
    run("-m", "gmmx", "--no-cache", "info", MODEL, cache=cache)
    assert not cache.exists()
    run("-m", "gmmx", "info", MODEL, cache=cache)
    assert programs(cache)


# When the folder cannot be used


def test_an_unusable_folder_costs_no_result(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"cache is off: cannot use .*Set .* GMMX_CACHE"):
        assert gmmx.enable_compilation_cache(tmp_path / "file" / "cache") is None
    assert folder_of_jax() is None
    out, err = run("-m", "gmmx", "info", MODEL, cache=tmp_path / "file")
    assert out.startswith("mixture")
    assert err.count("the compilation cache is off") == err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not hold here")
def test_a_folder_without_permission_is_unusable(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert gmmx.enable_compilation_cache(tmp_path) is None


def test_a_damaged_entry_is_compiled_again(tmp_path):
    gmmx.enable_compilation_cache(tmp_path)
    double = jax.jit(lambda x: 2 * x)
    double(np.arange(3.0))
    for path in tmp_path.glob("*-cache"):
        path.write_bytes(path.read_bytes()[:20])
    jax.clear_caches()
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        assert list(double(np.arange(3.0))) == [0, 2, 4]


def test_what_was_used_longest_ago_goes_first(tmp_path, monkeypatch):
    for age, name in enumerate(["new-cache", "middle-cache", "old-cache", "old.txt"]):
        path = tmp_path / name
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(_cache, "_LARGEST", 200)
    gmmx.enable_compilation_cache(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"new-cache", "middle-cache", "old.txt"}
