"""Small and cold: the import, a first fit and a second, each in fresh processes."""

import json
import subprocess
import sys

from ..peers import HERE, environment
from ..timing import in_units, summary


def run(session):
    found = {}
    for _ in range(2 if session.quick else max(session.repeats, 3)):
        for name in ("gmmx", "scikit-learn"):
            command = [sys.executable, HERE / "workers" / "cold.py", name]
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment(), timeout=300, check=True
            )
            for what, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                found.setdefault((name, what), []).append(seconds)
    rows = [{"peer": peer, "what": what, "times": times} for (peer, what), times in found.items()]
    session.report.part("cold", rows, size={"n": 1000, "d": 4, "k": 3})
    for row in rows:
        median = in_units(summary(row["times"])["median"])
        print(f"  {row['peer']}, {row['what']}: {median}", flush=True)
