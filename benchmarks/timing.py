"""Interleaved timing, A B C, A B C, …, and its statistics."""

import math
import statistics
import time


def rounds(points, *, repeats, budget, least=3):
    """The values of each point's calls, usually seconds: [{name: [value, …]}, …].

    Every round goes over all points, so that a slow quarter of an hour of a shared machine spoils
    one round of many points instead of all rounds of a few. There are `repeats` rounds. A point
    gets fewer, but at least `least`, if it would take more than `budget` seconds.
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
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def ratio(slow, fast):
    """The ratio of two lists of times, round by round: median and range."""
    return summary([a / b for a, b in zip(slow, fast, strict=True)])


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values))) if values else math.nan


def in_units(seconds):
    """A time with three digits, in µs, ms or s."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        value = seconds * factor
        if value >= 1 or unit == "µs":
            return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1e-3))))}f} {unit}"
    return ""
