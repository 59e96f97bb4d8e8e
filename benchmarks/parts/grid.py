"""Training and prediction: all peers run a case, are checked, then timed in turn."""

from ..agreement import judge
from ..cases import inputs
from ..session import attempt, stored, too_large
from ..timing import in_units, summary

# Name in the tables: the peer, and its own options. "gmmx in jit" shows the cost of a call from
# Python and runs on the samples grid only.
CALLS = {
    "gmmx": ("gmmx", {}),
    "gmmx in jit": ("gmmx", {"jit": True}),
    "scikit-learn": ("scikit-learn", {}),
    "GMMX 0.7": ("GMMX 0.7", {}),
    "pomegranate": ("pomegranate", {}),
}
_SUPPORTED = {"GMMX 0.7": ("full", "diag"), "pomegranate": ("full",)}


def prepared(session, case):
    """A row of the report without its times, and the calls to time."""
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
            peer, slot = session.peer(peer_name, case.dtype), f"{name}, {case}"
            prepare = lambda: peer.prepare(case.task, path, case.options | own, slot=slot)  # noqa: B023, E731
            answer = attempt(reasons, name, prepare)
            if answer is not None:
                found[name], _ = answer
                calls[name] = lambda peer=peer, slot=slot: peer.time(slot)
    numbers, disagreeing = judge(case, arrays["x"], found) if found else ({}, {})
    reasons |= disagreeing
    for name, reason in reasons.items():
        print(f"    {name}: {reason}", flush=True)
    row = {
        "task": case.task, "n": case.n, "d": case.d, "k": case.k, "dtype": case.dtype,
        "covariance_type": case.covariance_type, "grids": case.grids,
        "results": numbers, "left_out": reasons,
    }  # fmt: skip
    return row, {n: calls[n] for n in CALLS if n in calls and n not in reasons}


def measured(session, cases):
    """The rows of the report, with times."""
    points = [prepared(session, case) for case in cases]
    found = session.rounds([calls for _, calls in points])
    rows = []
    for case, (row, _), times in zip(cases, points, found, strict=True):
        row["times"] = times
        if case.covariance_type == "full" and "gmmx" in times:
            row["rate"] = case.operations / summary(times["gmmx"])["median"] / 1e9
        shown = (f"{name} {in_units(summary(t)['median'])}" for name, t in times.items())
        print(f"  {case}: " + ", ".join(shown), flush=True)
        rows.append(row)
    return rows


def run(session, task, cases_of):
    """Measure the cases of every dtype and add them to the report."""
    rows, roofs = [], {}
    for dtype in session.dtypes:
        roofs[dtype] = session.roof(dtype)
        rows += measured(session, cases_of(dtype))
        # The better of before and after, since a shared machine may be slow at one of them.
        roofs[dtype] = max(roofs[dtype], session.roof(dtype))
        session.versions()
        session.close(dtype)
    for row in rows:
        if "rate" in row:
            row["of_roof"] = row["rate"] / roofs[row["dtype"]]
    session.report.part(task, rows, roof=roofs)
