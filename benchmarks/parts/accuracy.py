"""The accuracy gate: both sides of its limit, and what it costs."""

import numpy as np

from ..cases import MAIN, QUICK, Case, inputs
from ..session import attempt, stored
from ..timing import in_units, ratio, summary

WIDTHS = (1, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
WAYS = ("decided", "packed", "whitened")


def narrow(n, d, k, width):
    """Samples of a mixture whose means are of order one and whose components are this wide."""
    rng = np.random.default_rng([n, d, k])
    turns = np.linalg.qr(rng.normal(size=(k, d, d)))[0]
    spread = np.exp(rng.uniform(np.log(0.5), np.log(2), size=(k, 1, d)))
    spread /= np.exp(np.log(spread).mean(axis=-1, keepdims=True))
    covariances = width**2 * (turns * spread) @ turns.transpose(0, 2, 1)
    means = rng.normal(size=(k, d))
    labels = rng.integers(k, size=n)
    noise = rng.normal(size=(n, d))
    roots = np.linalg.cholesky(covariances)
    x = means[labels] + np.einsum("nij,nj->ni", roots[labels], noise)
    return {"x": x, "weights": np.full(k, 1 / k), "means": means, "covariances": covariances}


def run(session):
    n, d, k = (4_096, 8, 16) if session.quick else (65_536, 8, 16)
    # Float32 and float64 side by side, so with 64 bits enabled.
    peer, rows = session.peer("gmmx", "float64"), []
    for width in WIDTHS:
        row = {"width": width, "n": n, "d": d, "k": k}
        with stored(narrow(n, d, k, width)) as path:
            for way in ("exact", *WAYS):
                options = {
                    "covariance_type": "full",
                    "way": "whitened" if way == "exact" else way,
                    "precision": "float64" if way == "exact" else "float32",
                }
                (arrays, facts), _ = peer.prepare("log_prob", path, options)
                if way == "exact":
                    exact = arrays["log_prob"]
                    continue
                error = np.abs(arrays["log_prob"].astype(np.float64) - exact)
                row[way] = {"mean": float(error.mean()), "most": float(error.max())}
                if way == "decided":
                    row["share"] = facts["packed"]
        rows.append(row)
        decided = row["decided"]
        print(
            f"  width {width:g}: {row['share']:.0%} packed, error {decided['mean']:.1e} in the "
            f"mean, {decided['most']:.1e} at most",
            flush=True,
        )
    peer.forget()
    session.report.part("accuracy", rows, gate=gate(session))
    session.versions()
    session.close("float64")


def gate(session):
    """An EM step with the gate and without."""
    case = Case("train", *(QUICK["train"]["samples"][-1] if session.quick else MAIN["train"]))
    peer, calls, reasons, packed = session.peer("gmmx"), {}, {}, {}
    with stored(inputs(case)) as path:
        for name, gateless in (("with", False), ("without", True)):
            options = case.options | {"gateless": gateless}
            prepare = lambda: peer.prepare("step", path, options, slot=name)  # noqa: B023, E731
            answer = attempt(reasons, name, prepare)
            if answer:
                calls[name] = lambda name=name: peer.time(name)
                packed[name] = answer[0][1]["packed"]
    times = session.interleave(calls, repeats=10)
    peer.forget()
    if len(times) == 2:
        share = ratio(times["with"], times["without"])
        step = in_units(summary(times["with"])["median"])
        print(f"  a step {step}, {share['median']:.3f} × one without the gate", flush=True)
    size = {"n": case.n, "d": case.d, "k": case.k}
    return {**size, "times": times, "packed": packed, "left_out": reasons}
