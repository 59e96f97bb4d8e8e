"""Peak memory of a fit in a new process, without its data. Prints one line of JSON."""

import json
import resource
import sys
import warnings
from pathlib import Path

import jax
import numpy as np

import gmmx

warnings.simplefilter("ignore", gmmx.FitWarning)
MB = 1e6


def status(field):
    """A field of /proc/self/status in bytes, or None if there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(s.split()[1]) * 1024 for s in lines if s.startswith(field)), None)


def peak():
    """Peak memory so far, of the accelerator if there is one, else of the process."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_use():
    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["bytes_in_use"]
    return status("VmRSS") or peak()


def data(n, d, k):
    """Samples around k means, computed in place: no second array of this size exists."""
    rng = np.random.default_rng(0)
    x = np.empty((n, d), np.float32)
    means = rng.normal(size=(k, d)).astype(np.float32)
    for block in (x[i : i + 65_536] for i in range(0, n, 65_536)):
        rng.standard_normal(out=block, dtype=np.float32)
        block += means[rng.integers(k, size=len(block))]
    return x


def start(x, k):
    d = x.shape[1]
    covariances = np.tile(2 * np.eye(d, dtype=np.float32), (k, 1, 1))
    weights = np.full(k, 1 / k, np.float32)
    return gmmx.GaussianMixture.from_parameters(weights, x[:k], covariances)


def main(n, d, k, steps, where):
    work = {
        "fit": lambda x, gmm: (
            gmmx.EMFitter(tol=0, max_iter=steps, reg_covar=np.full(x.shape[1], 1e-3))
            .fit(x, gmm)
            .gmm
        ),
        "predict": lambda x, gmm: gmm.predict(x),
        "score": lambda x, gmm: gmm.score(x),
    }
    small = data(4 * k, d, k)
    for run in work.values():
        jax.block_until_ready(run(small, start(small, k)))
    before, peak_before = in_use(), peak()
    x = data(n, d, k)
    if where == "jax":
        x = jax.device_put(x)
    gmm = start(np.asarray(x[:k]), k)
    found = {}
    for name, run in work.items():
        jax.block_until_ready(run(x, gmm))
        found[name] = (max(peak() - before, 0) - x.nbytes) / MB
    print(
        json.dumps(
            {
                "where": where,
                "data_mb": x.nbytes / MB,
                "baseline_mb": before / MB,
                "extra_mb": found,
                # If the warm-up used more than this, the figures are upper bounds only.
                "bound": peak() <= peak_before,
            }
        )
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), sys.argv[5])
