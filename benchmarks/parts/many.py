"""1,000 small fits from given starts: one vmap of gmmx, a loop of scikit-learn."""

from dataclasses import replace

import numpy as np

from ..agreement import mean_log_likelihood
from ..cases import Case, inputs
from ..session import attempt, stored
from ..timing import ratio

TOLERANCE = 2e-3


def run(session):
    count, n, d, k = (20 if session.quick else 1000), 500, 4, 3
    case = Case("train", n, d, k)
    fits = [inputs(replace(case, seed=i)) for i in range(count)]  # one data set each
    arrays = {name: np.stack([fit[name] for fit in fits]) for name in fits[0]}
    reasons, found, calls = {}, {}, {}
    with stored(arrays) as path:
        for name in ("scikit-learn", "gmmx"):
            peer = session.peer(name)
            answer = attempt(
                reasons, name, lambda peer=peer: peer.prepare("many", path, case.options)
            )
            if answer:
                found[name], calls[name] = answer[0][0], peer.time
    likelihoods = {
        name: [
            mean_log_likelihood(*(a[i] for a in (arrays["x"], *_parameters(fitted))))
            for i in range(count)
        ]
        for name, fitted in found.items()
    }
    row = {"count": count, "n": n, "d": d, "k": k, "left_out": reasons}
    if len(found) == 2:
        difference = np.abs(np.subtract(*likelihoods.values()))
        row["difference_median"] = float(np.median(difference))
        row["difference_max"] = float(difference.max())
        row["agreeing"] = int(np.sum(difference <= TOLERANCE))
    row["times"] = session.interleave({name: calls[name] for name in ("gmmx", *calls)})
    session.versions()
    session.report.part("many", [row])
    if len(found) == 2:
        faster = ratio(row["times"]["scikit-learn"], row["times"]["gmmx"])
        print(f"  {faster['median']:.0f} times; {row['agreeing']} of {count} agree", flush=True)


def _parameters(fitted):
    return (fitted[name] for name in ("weights", "means", "covariances"))
