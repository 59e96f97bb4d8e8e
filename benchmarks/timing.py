"""Interleaved timing: A B C, A B C, …, and what is said of it."""

import math
import statistics
import time


def interleave(calls, *, repeats, budget, least=3):
    """Seconds of each call in turn, round by round: {name: [seconds, …]}.

    As many rounds as `repeats` says, fewer where they would take more than `budget` seconds.
    """
    times = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(1, repeats + 1):
        for name, call in calls.items():
            times[name].append(call())
        if done >= least and (time.perf_counter() - start) * (done + 1) / done > budget:
            break
    return times


def summary(seconds):
    """Median and range."""
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


def ratio(slow, fast):
    """How many times longer, round by round: median and range."""
    return summary([a / b for a, b in zip(slow, fast, strict=True)])


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values))) if values else math.nan


def in_units(seconds):
    """Three digits of a time, in µs, ms or s."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        value = seconds * factor
        if value >= 1 or unit == "µs":
            return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1e-3))))}f} {unit}"
    return ""
