"""Import, first and second calls on small data, each round in new processes."""

from ..peers import fresh
from ..timing import in_units, summary


def run(session):
    found = {}
    for _ in range(2 if session.quick else max(session.repeats, 3)):
        for name in ("gmmx", "scikit-learn"):
            for what, seconds in fresh("cold.py", name).items():
                found.setdefault((name, what), []).append(seconds)
    rows = [{"peer": peer, "what": what, "times": times} for (peer, what), times in found.items()]
    session.report.part("cold", rows, size={"n": 1000, "d": 4, "k": 3})
    for row in rows:
        median = in_units(summary(row["times"])["median"])
        print(f"  {row['peer']}, {row['what']}: {median}", flush=True)
