"""Whether peers came to the same result, judged in float64 by code that is none of theirs."""

import math

import numpy as np

# Nats a sample between the likelihoods of two fits; the part of the labels that may differ, where
# two components are equally probable to rounding.
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


def mean_log_likelihood(x, weights, means, covariances, covariance_type="full"):
    """The mean log-likelihood, in float64."""
    x, weights, means, covariances = (
        np.asarray(a, np.float64) for a in (x, weights, means, covariances)
    )
    k, d = means.shape
    roots = np.linalg.inv(np.linalg.cholesky(dense(covariances, k, d, covariance_type)))
    with np.errstate(divide="ignore"):
        constant = np.log(weights) + np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    total = 0.0
    for rows in (x[i : i + _ROWS] for i in range(0, len(x), _ROWS)):
        joint = np.empty((k, len(rows)))
        for j, root in enumerate(roots):
            joint[j] = constant[j] - ((rows @ root.T - means[j] @ root.T) ** 2).sum(axis=1) / 2
        top = joint.max(axis=0)
        total += (top + np.log(np.exp(joint - top).sum(axis=0))).sum()
    return total / len(x) - d / 2 * math.log(2 * math.pi)


def judge(case, x, found):
    """For each peer a number to be shown, and the reason why it does not agree, or None.

    `found` maps names to (arrays, facts); the first of them is what the others are held against.
    """
    numbers, reasons = {}, {}
    first = next(iter(found))
    tolerance = TOLERANCE[case.dtype][case.task]
    for name, (arrays, facts) in found.items():
        if case.task == "predict":
            apart = np.mean(arrays["labels"] != found[first][0]["labels"])
            numbers[name] = apart = float(apart)
        else:
            parameters = (arrays[part] for part in ("weights", "means", "covariances"))
            likelihood = mean_log_likelihood(x, *parameters, case.covariance_type)
            numbers[name] = float(likelihood)
            apart = abs(numbers[name] - numbers[first])
        steps = facts.get("n_iter", case.options["iterations"])
        if steps != case.options["iterations"]:
            reasons[name] = f"made {steps} iterations"
        elif not apart <= tolerance:
            unit = "nats" if case.task == "train" else "of the labels"
            reasons[name] = f"differs from {first} by {apart:.1e} {unit}"
    return numbers, reasons
