"""scikit-learn."""

import warnings

import numpy as np
from protocol import serve, versions
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is given


def mixture(arrays, options):
    return GaussianMixture(
        arrays["means"].shape[0],
        covariance_type=options["covariance_type"],
        weights_init=arrays["weights"],
        means_init=arrays["means"],
        precisions_init=arrays["precisions"],
        init_params="random_from_data",  # not used, and cheap where it is made all the same
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


def predict(arrays, options):
    x = arrays["x"]
    fitted = mixture(arrays, options)
    fitted.weights_, fitted.means_ = arrays["weights"], arrays["means"]
    fitted.covariances_ = arrays["covariances"]
    fitted.precisions_cholesky_ = arrays["precisions_cholesky"]
    fitted.converged_, fitted.n_features_in_ = True, x.shape[1]
    return lambda: fitted.predict(x), lambda labels: ({"labels": labels}, {})


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


if __name__ == "__main__":
    tasks = (train, predict, many)
    about = {"versions": versions("scikit-learn", "numpy", "scipy"), "device": "CPU"}
    serve({task.__name__: task for task in tasks}, about)
