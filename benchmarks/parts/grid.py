"""Training and prediction: a case by all peers, checked, then timed in turn."""

from ..agreement import judge
from ..cases import inputs
from ..session import attempt, stored, too_large
from ..timing import in_units, summary

# Shown name: the peer, and the options that are its alone. What a call from Python costs beyond a
# program compiled as a whole shows on the samples grid, and is compared there alone.
CALLS = {
    "gmmx": ("gmmx", {}),
    "gmmx in jit": ("gmmx", {"jit": True}),
    "scikit-learn": ("scikit-learn", {}),
    "GMMX 0.7": ("GMMX 0.7", {}),
    "pomegranate": ("pomegranate", {}),
}
_SUPPORTED = {"GMMX 0.7": ("full", "diag"), "pomegranate": ("full",)}


def measure(session, case):
    """One row of the report."""
    print(f"  {case}", flush=True)
    reasons, found, calls = {}, {}, {}
    arrays = inputs(case)
    with stored(arrays) as path:
        for name in ("scikit-learn", *(n for n in CALLS if n != "scikit-learn")):
            peer_name, own = CALLS[name]
            if own and "samples" not in case.grids:
                continue
            if case.covariance_type not in _SUPPORTED.get(name, (case.covariance_type,)):
                reasons[name] = f"no {case.covariance_type} covariances"
                continue
            if name == "GMMX 0.7" and (reason := too_large(case)):
                reasons[name] = reason
                continue
            peer = session.peer(peer_name, case.dtype)
            prepare = lambda: peer.prepare(case.task, path, case.options | own, slot=name)  # noqa: B023, E731
            answer = attempt(reasons, name, prepare)
            if answer is not None:
                found[name], _ = answer
                calls[name] = lambda peer=peer, name=name: peer.time(name)
    numbers, disagreeing = judge(case, arrays["x"], found) if found else ({}, {})
    reasons |= disagreeing
    times = session.interleave({n: calls[n] for n in CALLS if n in calls and n not in reasons})
    for peer_name, dtype in session.peers:
        if dtype == case.dtype:
            session.peers[peer_name, dtype].forget()
    row = {
        "task": case.task, "n": case.n, "d": case.d, "k": case.k, "dtype": case.dtype,
        "covariance_type": case.covariance_type, "grids": case.grids,
        "times": times, "results": numbers, "left_out": reasons,
        "packed": found["gmmx"][1]["packed"] if "gmmx" in found else None,
    }  # fmt: skip
    if case.covariance_type == "full" and "gmmx" in times:
        row["rate"] = case.operations / summary(times["gmmx"])["median"] / 1e9
    shown = (f"{n} {in_units(summary(t)['median'])}" for n, t in times.items())
    print("    " + ", ".join(shown), flush=True)
    for name, reason in reasons.items():
        print(f"    {name}: {reason}", flush=True)
    return row


def run(session, task, cases_of):
    """All cases of both dtypes into the report."""
    rows, roofs = [], {}
    for dtype in session.dtypes:
        roofs[dtype] = session.roof(dtype)
        rows += [measure(session, case) for case in cases_of(dtype)]
        # The better of before and after: the machine may have been slower at one of them.
        roofs[dtype] = max(roofs[dtype], session.roof(dtype))
        session.versions()
        session.close(dtype)
    for row in rows:
        if "rate" in row:
            row["of_roof"] = row["rate"] / roofs[row["dtype"]]
    session.report.part(task, rows, roof=roofs)
