"""Peak memory of a fit, without its data; at most 300 MB are expected."""

from ..peers import fresh

SIZE, STEPS = (2_000_000, 32, 64), 3
TARGET_MB = 300


def run(session):
    size = (100_000, 8, 8) if session.quick else SIZE
    rows = []
    for where in ("jax", "numpy"):
        row = fresh("memory.py", *size, STEPS, where)
        rows.append(dict(zip("ndk", size, strict=True)) | row)
        extra = ", ".join(f"{name} {mb:.0f} MB" for name, mb in row["extra_mb"].items())
        print(f"  data in {where}, {row['data_mb']:.0f} MB; without them: {extra}", flush=True)
    session.report.part("memory", rows, target_mb=TARGET_MB, steps=STEPS)
