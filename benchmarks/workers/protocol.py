"""The worker's side of the protocol: JSON lines on stdin and stdout, arrays in .npz files.

A task is a function `(arrays, options) -> (call, outcome)`. The worker times `call()`, which
returns when its result is complete. `outcome(result)` gives `(arrays, facts)` to check it with.
"""

import gc
import json
import os
import sys
import time
from importlib import metadata

import numpy as np

# Calls are repeated for this long, as `timeit` does. On a shared machine the first 50 ms after a
# pause can run at 60 % of full speed, and one call of 0.2 s can take twice as long as the next.
_LEAST_SECONDS = 1.0


def versions(*names):
    """Versions of these packages."""
    return {name: metadata.version(name) for name in names}


def timed(call):
    """Mean seconds of a call."""
    count, start = 0, time.perf_counter()
    while True:
        call()
        count += 1
        passed = time.perf_counter() - start
        if passed >= _LEAST_SECONDS:
            return passed / count


def rest():
    """Wait until the threads of this process are idle.

    Work that a call leaves behind would slow the next peer: OpenBLAS's threads spin for about
    26 ms, and freeing four gigabytes of buffers takes 0.4 s.
    """
    used = time.process_time()
    for _ in range(100):
        time.sleep(0.03)
        before, used = used, time.process_time()
        if used - before < 0.003:
            return


def serve(tasks, about):
    """Answer requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep what a library prints out of the replies

    def reply(**answer):
        replies.write(json.dumps(answer) + "\n")
        replies.flush()

    calls = {}

    def prepare(request):
        arrays = {}
        if request["inputs"]:
            with np.load(request["inputs"]) as stored:
                arrays = dict(stored)
        call, outcome = tasks[request["task"]](arrays, request["options"])
        start = time.perf_counter()
        result = call()
        first = time.perf_counter() - start
        arrays, facts = outcome(result)
        np.savez(request["outputs"], **arrays)
        calls[request["slot"]] = call
        return {"first": first, "facts": facts}

    reply(**about)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["op"] == "prepare":
                answer = prepare(request)
            elif request["op"] == "time":
                answer = {"seconds": timed(calls[request["slot"]])}
            else:  # "forget"
                calls.clear()
                gc.collect()
                answer = {}
            rest()
            reply(**answer)
        except Exception as error:  # the parent decides what a failure means
            first_line = (str(error).splitlines() or [""])[0]
            reply(error=f"{type(error).__name__}: {first_line[:160]}")
