"""CPU time of the first and second calls of a task in a new process. Prints one line of JSON.

    python compile.py TASK INPUTS

It uses only public names, so that it also runs on another checkout of gmmx.
"""

import json
import sys
import time
import warnings

import jax
import numpy as np
from memory import MB, status

import gmmx

COMPILED = "/jax/core/compile/backend_compile_duration"


def fit(x, start, **_):
    return lambda: gmmx.EMFitter().fit(x, start)


def gradient(x, start, **_):
    return lambda: gmmx.GradientFitter(max_iter=5).fit(x, start)


def predict(x, start, **_):
    return lambda: start.predict(x)


def initialize(x, weights, **_):
    return lambda: gmmx.initialize(x, n_components=len(weights))


def select(x, n_components, **_):
    return lambda: gmmx.select(x, range(1, int(n_components) + 1))


def seconds(call):
    begin = time.process_time()
    jax.block_until_ready(call())
    return time.process_time() - begin


def sizes(x, start, counts, **_):
    """Fits of many numbers of rows, twice over; the first fit of all is not counted."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(duration) if event == COMPILED else None
    )
    fits = [fit(x[:n], start) for n in counts]
    seconds(fits[0])
    first, before = len(compiled), status("VmRSS")
    new = [seconds(call) for call in fits[1:]]
    later, after = len(compiled) - first, status("VmRSS")
    known = [seconds(call) for call in fits[1:]]
    return {
        "programs_first": first,
        "programs_later": later,
        "growth_mb": None if before is None else (after - before) / MB,
        "new": float(np.mean(new)),
        "known": float(np.mean(known)),
    }


def main(task, inputs):
    warnings.simplefilter("ignore", gmmx.FitWarning)
    with np.load(inputs) as stored:
        arrays = dict(stored)
    if "weights" in arrays:
        parameters = (arrays[name] for name in ("weights", "means", "covariances"))
        arrays["start"] = jax.block_until_ready(gmmx.GaussianMixture.from_parameters(*parameters))
    if task == "sizes":
        return sizes(**arrays)
    tasks = (fit, gradient, predict, initialize, select)
    call = {task.__name__: task for task in tasks}[task](**arrays)
    return {"first": seconds(call), "again": seconds(call)}


if __name__ == "__main__":
    print(json.dumps({"file": gmmx.__file__, **main(*sys.argv[1:])}))
