"""The rate of the machine's matrix product, and the rates of training and prediction."""

from ..cases import ITERATIONS, MAIN, QUICK, Case, inputs
from ..session import SQUARES, stored
from ..timing import summary


def run(session):
    rows = []
    for dtype in session.dtypes:
        squares = [((m, m, m), False) for m in ((512,) if session.quick else SQUARES)]
        n, d, k = QUICK["train"]["samples"][-1] if session.quick else MAIN["train"]
        columns = d * (d + 1) // 2 + d + 1
        # The products of an EM step on 2,048 rows: log-densities, then sums.
        pair = [((2048, columns, k), False), ((k, 2048, columns), True)]
        rows += session.products(dtype, squares + pair)
        roof = max(row["rate"] for row in rows if row["dtype"] == dtype)
        for task in ("train", "predict"):
            case = Case(task, n, d, k, dtype)
            peer = session.peer("gmmx", dtype)
            with stored(inputs(case)) as path:
                peer.prepare(task, path, case.options | {"jit": True})
            seconds = session.interleave({"gmmx": peer.time})["gmmx"]
            rate = case.operations / summary(seconds)["median"] / 1e9
            steps = ITERATIONS if task == "train" else 1
            rows.append(
                {"task": task, "n": n, "d": d, "k": k, "dtype": dtype, "rate": rate,
                 "of_roof": rate / roof, "seconds_a_step": summary(seconds)["median"] / steps}
            )  # fmt: skip
        session.versions()
        session.close(dtype)
    session.report.part("roof", rows)
    for row in rows:
        what = row.get("task") or "×".join(map(str, row["shape"]))
        print(f"  {row['dtype']} {what}: {row['rate']:.0f} GFLOP/s", flush=True)
