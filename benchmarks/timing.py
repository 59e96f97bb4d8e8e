"""Interleaved timing: A B C, A B C, …, and what is said of it."""

import math
import statistics
import time


def rounds(points, *, repeats, budget, least=3):
    """Seconds of each point's calls in turn, [{name: [seconds, …]}, …], round by round.

    As many rounds as `repeats` says, fewer of a point where they would take more than `budget`
    seconds. Each goes over all points: a slow quarter of an hour of a shared machine is then in one
    round of many, where it would be in all rounds of a few.
    """
    times = [{name: [] for name in calls} for calls in points]
    spent = [0.0] * len(points)
    for done in range(repeats):
        for i, calls in enumerate(points):
            if done >= least and spent[i] * (done + 1) / done > budget:
                continue
            start = time.perf_counter()
            for name, call in calls.items():
                times[i][name].append(call())
            spent[i] += time.perf_counter() - start
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
