"""Sizes, data and starts of the benchmarks."""

import math
from dataclasses import dataclass, replace

import numpy as np

ITERATIONS = 20

# The same for every library. At n = 256, K = 64, d = 32 a component has four samples, so its
# scatter has rank four at most. scikit-learn's default, 1e-6, leaves a condition number of 1e6,
# which float32 cannot factorise reliably: some libraries stop, others differ by rounding alone.
# With 1e-3, and variances of order one, all of them finish and can be compared.
REG_COVAR = 1e-3

# The grids of GMMX's README: (n, d, K), of which one varies.
GRIDS = {
    "train": {
        "components": [(65_536, 32, 2**i) for i in range(1, 6)],
        "features": [(65_536, 2**i, 64) for i in range(1, 6)],
        "samples": [(2**i, 32, 64) for i in range(8, 17)],
    },
    "predict": {
        "components": [(100_000, 64, 2**i) for i in range(1, 7)],
        "features": [(100_000, 2**i, 128) for i in range(1, 7)],
        "samples": [(2**i, 64, 128) for i in range(5, 18)],
    },
}
QUICK = {
    "train": {
        "components": [(2_048, 8, 2), (2_048, 8, 4)],
        "features": [(2_048, 4, 8), (2_048, 8, 8)],
        "samples": [(256, 8, 8), (2_048, 8, 8)],
    },
    "predict": {
        "components": [(2_000, 8, 2), (2_000, 8, 4)],
        "features": [(2_000, 4, 8), (2_000, 8, 8)],
        "samples": [(32, 8, 8), (2_048, 8, 8)],
    },
}
STRUCTURES = ("full", "tied", "diag", "spherical")
MAIN = {"train": (65_536, 32, 64), "predict": (100_000, 64, 128)}


@dataclass(frozen=True)
class Case:
    """A task at one size."""

    task: str
    n: int
    d: int
    k: int
    dtype: str = "float32"
    covariance_type: str = "full"
    grids: tuple[str, ...] = ()
    seed: int = 0

    @property
    def options(self):
        return {
            "covariance_type": self.covariance_type,
            "iterations": ITERATIONS,
            "reg_covar": REG_COVAR,
        }

    @property
    def operations(self):
        """Operations of the matrix products: two in each iteration, or one in a prediction."""
        columns = self.d * (self.d + 1) // 2 + self.d + 1
        once = 2 * self.n * self.k * columns
        return once if self.task == "predict" else 2 * ITERATIONS * once

    def __str__(self):
        kind = "" if self.covariance_type == "full" else f", {self.covariance_type}"
        return f"{self.task} n={self.n:,} d={self.d} K={self.k} {self.dtype}{kind}"


def points(task, dtype, quick):
    """Each size of a task's grids once, with the names of the grids that contain it."""
    found = {}
    for grid, sizes in (QUICK if quick else GRIDS)[task].items():
        for size in sizes:
            case = found.get(size, Case(task, *size, dtype))
            found[size] = replace(case, grids=(*case.grids, grid))
    return list(found.values())


def mixture(k, d, rng):
    """Weights, means and covariances of overlapping components with variances of order one."""
    weights = rng.dirichlet(np.full(k, 5.0))
    # Two means are about three standard deviations apart, in any number of dimensions.
    means = rng.normal(scale=3 / math.sqrt(2 * d), size=(k, d))
    turns = np.linalg.qr(rng.normal(size=(k, d, d)))[0]
    variances = np.exp(rng.uniform(np.log(0.5), np.log(2), size=(k, 1, d)))
    return weights, means, (turns * variances) @ turns.transpose(0, 2, 1)


def draw(n, weights, means, covariances, rng):
    """Samples of a mixture."""
    labels = rng.choice(len(weights), size=n, p=weights)
    roots = np.linalg.cholesky(covariances)
    x = rng.normal(size=(n, means.shape[1]))
    for k, root in enumerate(roots):
        own = labels == k
        x[own] = means[k] + x[own] @ root.T
    return x


def inputs(case):
    """The arrays of a case: data, and the mixture to start from or to predict with."""
    rng = np.random.default_rng([case.n, case.d, case.k, case.seed])
    weights, means, covariances = mixture(case.k, case.d, rng)
    x = draw(case.n, weights, means, covariances, rng)
    if case.task == "train":
        weights, means, covariances = start(x, case.k, case.covariance_type, rng)
    arrays = {"x": x, "weights": weights, "means": means, "covariances": covariances}
    arrays |= precisions(covariances, case.covariance_type)
    return {name: np.ascontiguousarray(a, case.dtype) for name, a in arrays.items()}


def start(x, k, covariance_type, rng):
    """Equal weights, K of the samples as means, the variances of the features."""
    variances = x.var(axis=0)
    covariances = {
        "full": np.tile(np.diag(variances), (k, 1, 1)),
        "tied": np.diag(variances),
        "diag": np.tile(variances, (k, 1)),
        "spherical": np.full(k, variances.mean()),
    }
    means = x[rng.choice(len(x), size=k, replace=False)]
    return np.full(k, 1 / k), means, covariances[covariance_type]


def precisions(covariances, covariance_type):
    """Precisions and their Cholesky factors, as scikit-learn expects them."""
    if covariance_type in ("diag", "spherical"):
        return {"precisions": 1 / covariances, "precisions_cholesky": covariances**-0.5}
    found = np.linalg.inv(covariances)
    found = (found + np.swapaxes(found, -1, -2)) / 2
    root = np.linalg.inv(np.linalg.cholesky(covariances))
    return {"precisions": found, "precisions_cholesky": np.swapaxes(root, -1, -2)}
