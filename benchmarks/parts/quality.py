"""How good the fits of 32 data sets are, with a given number of components."""

import time
import warnings

import numpy as np

from .. import datasets

SPLITS = 5
HELD_OUT = 0.3
CLOSE = 0.01
"""Nats a sample"""


def _methods():
    """What a user may call: rows, number of components and seed to a fitted log-density."""
    import jax
    from sklearn.mixture import GaussianMixture

    import gmmx

    def default(x, k, seed):
        return gmmx.EMFitter().fit(x, k, key=jax.random.key(seed)).gmm.log_prob

    def restarts(x, k, seed):
        fitter = gmmx.Restarts(gmmx.EMFitter(), n_init=10)
        return fitter.fit(x, k, key=jax.random.key(seed)).gmm.log_prob

    def sklearn(**settings):
        def fit(x, k, seed):
            return GaussianMixture(k, random_state=seed, **settings).fit(x).score_samples

        return fit

    return {
        "gmmx": default,
        "gmmx, 10 restarts": restarts,
        "scikit-learn": sklearn(),
        "scikit-learn, n_init=10": sklearn(n_init=10),
        "scikit-learn, n_init=10, tol=1e-6": sklearn(n_init=10, tol=1e-6, max_iter=2000),
        "scikit-learn, k-means++, n_init=10": sklearn(n_init=10, init_params="k-means++"),
    }


def run(session):
    import jax

    methods, rows = _methods(), []
    sets = datasets.real() | datasets.made()
    if session.quick:
        sets = {name: sets[name] for name in ("Old Faithful, 2", "iris", "parallel")}
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits that have not converged
        for name, (x, k) in sets.items():
            for split in range(1 if session.quick else SPLITS):
                rows.append(_cell(methods, name, x, k, split))
            _tell(rows, name)
    session.report.part("quality", rows)


def _cell(methods, name, x, k, split):
    """The mean log-likelihoods of each method, and its CPU time after compiling."""
    order = np.random.default_rng([split, len(x)]).permutation(len(x))
    aside = int(HELD_OUT * len(x))
    train, test = x[order[aside:]], x[order[:aside]]
    trained, held_out, seconds = {}, {}, {}
    for method, fit in methods.items():
        if method.startswith("gmmx"):
            fit(train, k, split)
        began = time.process_time()
        log_prob = fit(train, k, split)
        seconds[method] = time.process_time() - began
        trained[method], held_out[method] = (
            float(np.mean(np.asarray(log_prob(rows)))) for rows in (train, test)
        )
    return {"name": name, "n": len(x), "d": x.shape[1], "k": k, "split": split,
            "trained": trained, "held_out": held_out, "seconds": seconds}  # fmt: skip


def _tell(rows, name):
    cells = [row for row in rows if row["name"] == name]
    shown = ", ".join(
        f"{method} {np.mean([row['held_out'][method] for row in cells]):.3f}"
        for method in cells[0]["held_out"]
    )
    print(f"  {name}: {shown}", flush=True)


def near_best(rows, which, method):
    """The part of the cells in which a method is within `CLOSE` of the best of all."""
    return np.mean([row[which][method] > max(row[which].values()) - CLOSE for row in rows])


def loss(rows, which, method):
    """By how much a method is worse than the best of all, on average."""
    return np.mean([max(row[which].values()) - row[which][method] for row in rows])
