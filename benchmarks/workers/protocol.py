"""A peer's side of the conversation: JSON lines on stdin and stdout, arrays in .npz files.

A task is a function `(arrays, options) -> (call, outcome)`. `call()` is what is timed, and returns
once its result is there; `outcome(result)` is `(arrays, facts)` to check it by.
"""

import gc
import json
import os
import sys
import time
from importlib import metadata

import numpy as np

# A call is repeated until this much time has passed, as `timeit` does. On a shared machine the
# first 50 ms after a pause were seen to run at 60 % of the speed that follows, and single calls of
# 0.2 s to take twice as long as the next one: with less, a call of seconds is averaged over what a
# short one meets by chance.
_LEAST_SECONDS = 1.0


def versions(*names):
    """The versions of the packages that decide a result."""
    return {name: metadata.version(name) for name in names}


def timed(call):
    """Seconds a call."""
    count, start = 0, time.perf_counter()
    while True:
        call()
        count += 1
        passed = time.perf_counter() - start
        if passed >= _LEAST_SECONDS:
            return passed / count


def rest():
    """Wait until the threads of this process are idle.

    What a call leaves to do would be counted against whoever comes next: OpenBLAS's threads spin
    for some 26 ms, and to give back four gigabytes of buffers takes another process 0.4 s.
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
    os.dup2(2, 1)  # what a library prints is no reply

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
        except Exception as error:  # the other side decides what a failure means
            first_line = (str(error).splitlines() or [""])[0]
            reply(error=f"{type(error).__name__}: {first_line[:160]}")
