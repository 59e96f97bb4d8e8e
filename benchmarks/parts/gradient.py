"""The gradient of the mean negative log-likelihood with respect to all leaves."""

import numpy as np

from ..cases import QUICK, Case, inputs
from ..session import attempt, stored
from ..timing import in_units, ratio, summary

SIZES = ((65_536, 32, 64), (10_000, 16, 10))


def run(session):
    rows = []
    for n, d, k in [QUICK["train"]["samples"][-1]] if session.quick else SIZES:
        # At the mixture that the data are from, so a case of prediction.
        case = Case("predict", n, d, k)
        reasons, found, calls = {}, {}, {}
        with stored(inputs(case)) as path:
            for name in ("gmmx", "numpyro"):
                peer = session.peer(name)
                for task in ("forward", "gradient"):
                    key = f"{name} {task}"
                    prepare = lambda: peer.prepare(task, path, case.options, slot=task)  # noqa: B023, E731
                    answer = attempt(reasons, key, prepare)
                    if answer:
                        found[key] = answer[0][0]
                        calls[key] = lambda peer=peer, task=task: peer.time(task)
        difference = {
            f"{name}": float(np.max(np.abs(value - found["numpyro gradient"][name])))
            for name, value in found.get("gmmx gradient", {}).items()
            if "numpyro gradient" in found
        }
        times = session.interleave(calls)
        session.peer("gmmx").forget()
        session.peer("numpyro").forget()
        row = {"n": n, "d": d, "k": k, "times": times}
        rows.append(row | {"difference": difference, "left_out": reasons})
        share = ratio(times["gmmx gradient"], times["gmmx forward"])
        shown = (f"{name} {in_units(summary(t)['median'])}" for name, t in times.items())
        print(f"  n={n:,}: " + ", ".join(shown) + f"; {share['median']:.2f} × forward", flush=True)
        for name, reason in reasons.items():
            print(f"    {name}: {reason}", flush=True)
    session.versions()
    session.report.part("gradient", rows)
