"""scikit-learn."""

import warnings

import numpy as np
from protocol import serve, versions
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_info

warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is fixed


def mixture(arrays, options):
    return GaussianMixture(
        arrays["means"].shape[0],
        covariance_type=options["covariance_type"],
        weights_init=arrays["weights"],
        means_init=arrays["means"],
        precisions_init=arrays["precisions"],
        init_params="random_from_data",  # computed though unused, so a cheap one
        random_state=0,
        tol=0,
        max_iter=options["iterations"],
        reg_covar=options["reg_covar"],
    )


def parameters_of(fitted):
    return {
        "weights": fitted.weights_,
        "means": fitted.means_,
        "covariances": fitted.covariances_,
    }


def train(arrays, options):
    x = arrays["x"]

    def outcome(fitted):
        return parameters_of(fitted), {"n_iter": int(fitted.n_iter_)}

    return lambda: mixture(arrays, options).fit(x), outcome


def fitted(arrays, options):
    found = mixture(arrays, options)
    found.weights_, found.means_ = arrays["weights"], arrays["means"]
    found.covariances_ = arrays["covariances"]
    found.precisions_cholesky_ = arrays["precisions_cholesky"]
    found.converged_, found.n_features_in_ = True, arrays["x"].shape[1]
    return found


def predict(arrays, options):
    x, gmm = arrays["x"], fitted(arrays, options)
    return lambda: gmm.predict(x), lambda labels: ({"labels": labels}, {})


def log_prob(arrays, options):
    x, gmm = arrays["x"], fitted(arrays, options)
    return lambda: gmm.score_samples(x), lambda values: ({"log_prob": values}, {})


def many(arrays, options):
    names = ("weights", "means", "precisions")
    starts = [{name: arrays[name][i] for name in names} for i in range(arrays["x"].shape[0])]

    def call():
        return [
            mixture(start, options).fit(x) for x, start in zip(arrays["x"], starts, strict=True)
        ]

    def outcome(fits):
        found = [parameters_of(fitted) for fitted in fits]
        return {name: np.stack([f[name] for f in found]) for name in found[0]}, {}

    return call, outcome


def blas():
    """The BLAS kernels in this process; numpy and scipy may each have one."""
    names = ("internal_api", "version", "architecture")
    found = (library for library in threadpool_info() if library["user_api"] == "blas")
    return [" ".join(str(lib[name]) for name in names if lib.get(name)) for lib in found]


if __name__ == "__main__":
    tasks = (train, predict, many, log_prob)
    about = {
        "versions": versions("scikit-learn", "numpy", "scipy"),
        "device": "CPU",
        "blas": blas(),
    }
    serve({task.__name__: task for task in tasks}, about)
