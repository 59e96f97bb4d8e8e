"""Two independent LAPACK calls in one program hang for ever on two cores: fits never have them."""

import os
import subprocess
import sys

import pytest

# Cold, with every core busy, each of these takes well under a minute.
PATIENCE = 240

PROGRAM = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import warnings
import jax, jax.numpy as jnp, numpy as np
import gmmx
warnings.simplefilter("ignore", gmmx.FitWarning)
K, D, N = 64, 32, 20_000
x = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)), jnp.float32)
start = gmmx.initialize(x, K, method="random")
fitter = gmmx.EMFitter(tol=0.0, max_iter=4)
"""

CASES = {
    "alone": "results = fitter.fit(x, start)",
    "vmapped": """
stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
results = jax.jit(jax.vmap(lambda gmm: fitter.fit(x, gmm)))(stack)""",
    "two in one program": """
results = jax.jit(lambda x, gmm: (fitter.fit(x, gmm), fitter.fit(x[::-1], gmm)))(x, start)""",
}


@pytest.mark.parametrize("which", CASES)
def test_fits_come_back(which):
    program = PROGRAM + CASES[which] + "\njax.block_until_ready(results)\nprint('came back')"
    # Two threads, which is where it hangs: with more of them one is always free.
    environment = {**os.environ, "NPROC": "2", "OMP_NUM_THREADS": "2", "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, timeout=PATIENCE, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "came back"
