"""Peak memory of a fit beyond its data, which should be 300 MB at the most."""

import json
import subprocess
import sys

from ..peers import HERE, environment

SIZE, STEPS = (2_000_000, 32, 64), 3
TARGET_MB = 300


def run(session):
    size = (100_000, 8, 8) if session.quick else SIZE
    rows = []
    for where in ("jax", "numpy"):
        command = [sys.executable, HERE / "workers" / "memory.py", *map(str, (*size, STEPS)), where]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), timeout=900, check=True
        )
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(dict(zip("ndk", size, strict=True)) | row)
        extra = ", ".join(f"{name} {mb:.0f} MB" for name, mb in row["extra_mb"].items())
        print(f"  data in {where}, {row['data_mb']:.0f} MB; beyond them: {extra}", flush=True)
    session.report.part("memory", rows, target_mb=TARGET_MB, steps=STEPS)
