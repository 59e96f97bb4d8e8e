"""Checks that all peers reach the same result, in float64, with code of the benchmark's own."""

import math

import numpy as np

# For training, the difference of two fits' mean log-likelihoods, in nats. For prediction, the
# fraction of labels that may differ, where two components are equally probable to rounding.
TOLERANCE = {
    "float32": {"train": 2e-3, "predict": 1e-3},
    "float64": {"train": 1e-6, "predict": 1e-6},
}
_ROWS = 8192


def dense(covariances, k, d, covariance_type):
    """Covariances of any structure as (k, d, d)."""
    if covariance_type == "tied":
        return np.broadcast_to(covariances, (k, d, d))
    if covariance_type == "diag":
        return covariances[:, :, None] * np.eye(d)
    if covariance_type == "spherical":
        return covariances[:, None, None] * np.eye(d)
    return covariances


def log_likelihoods(x, weights, means, covariances, covariance_type="full"):
    """log p(x) of every row, in float64."""
    x, weights, means, covariances = (
        np.asarray(a, np.float64) for a in (x, weights, means, covariances)
    )
    k, d = means.shape
    roots = np.linalg.inv(np.linalg.cholesky(dense(covariances, k, d, covariance_type)))
    with np.errstate(divide="ignore"):
        constant = np.log(weights) + np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    found = np.empty(len(x))
    for i in range(0, len(x), _ROWS):
        rows = x[i : i + _ROWS]
        joint = np.empty((k, len(rows)))
        for j, root in enumerate(roots):
            joint[j] = constant[j] - ((rows @ root.T - means[j] @ root.T) ** 2).sum(axis=1) / 2
        top = joint.max(axis=0)
        found[i : i + _ROWS] = top + np.log(np.exp(joint - top).sum(axis=0))
    return found - d / 2 * math.log(2 * math.pi)


def mean_log_likelihood(*arguments):
    """The mean log-likelihood, in float64."""
    return float(log_likelihoods(*arguments).mean())


def judge(case, x, found):
    """A number to report for each peer, and a reason for each peer that disagrees.

    `found` maps names to (arrays, facts). Every peer is compared with the first one.
    """
    numbers, reasons = {}, {}
    first = next(iter(found))
    tolerance = TOLERANCE[case.dtype][case.task]
    for name, (arrays, facts) in found.items():
        if case.task == "predict":
            difference = np.mean(arrays["labels"] != found[first][0]["labels"])
            numbers[name] = difference = float(difference)
        else:
            parameters = (arrays[part] for part in ("weights", "means", "covariances"))
            numbers[name] = mean_log_likelihood(x, *parameters, case.covariance_type)
            difference = abs(numbers[name] - numbers[first])
        steps = facts.get("n_iter", case.options["iterations"])
        if steps != case.options["iterations"]:
            reasons[name] = f"made {steps} iterations"
        elif not difference <= tolerance:
            unit = "nats" if case.task == "train" else "of the labels"
            reasons[name] = f"differs from {first} by {difference:.1e} {unit}"
    return numbers, reasons
