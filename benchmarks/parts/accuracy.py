"""Errors of log-densities in float32 as components become narrow, and the time they take."""

import numpy as np

from ..agreement import log_likelihoods
from ..cases import precisions
from ..session import attempt, stored
from ..timing import in_units, summary

WIDTHS = (1, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
PEERS = ("gmmx", "scikit-learn")


def narrow(n, d, k, width):
    """Samples of a mixture with means of order one and components of this width, in float32."""
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
    arrays = {"x": x, "weights": np.full(k, 1 / k), "means": means, "covariances": covariances}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def run(session):
    n, d, k = (4_096, 8, 16) if session.quick else (65_536, 8, 16)
    options = {"covariance_type": "full", "iterations": 1, "reg_covar": 0}
    rows, points = [], []
    for width in WIDTHS:
        arrays = narrow(n, d, k, width)
        exact = log_likelihoods(**arrays)
        # scikit-learn evaluates by these; gmmx computes its own from the covariances.
        arrays |= {
            name: array.astype(np.float32)
            for name, array in precisions(arrays["covariances"].astype(np.float64), "full").items()
        }
        errors, reasons, calls = {}, {}, {}
        with stored(arrays) as path:
            for name in PEERS:
                peer, slot = session.peer(name), f"width {width}"
                prepare = lambda: peer.prepare("log_prob", path, options, slot=slot)  # noqa: B023, E731
                answer = attempt(reasons, name, prepare)
                if answer:
                    error = np.abs(answer[0][0]["log_prob"].astype(np.float64) - exact)
                    errors[name] = {"mean": float(error.mean()), "max": float(error.max())}
                    calls[name] = lambda peer=peer, slot=slot: peer.time(slot)
        size = {"n": n, "d": d, "k": k}
        rows.append({"width": width, **size, "errors": errors, "left_out": reasons})
        points.append(calls)
    for row, times in zip(rows, session.rounds(points), strict=True):
        row["times"] = times
        shown = (
            f"{name} {error['mean']:.1e} (max {error['max']:.1e}) in "
            f"{in_units(summary(times[name])['median'])}"
            for name, error in row["errors"].items()
        )
        print(f"  width {row['width']:g}: " + ", ".join(shown), flush=True)
    for name in PEERS:
        session.peer(name).forget()
    session.versions()
    session.report.part("accuracy", rows)
