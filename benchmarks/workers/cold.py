"""Times of the import, of the first and of the second calls. Prints one line of JSON."""

import json
import sys
import time

import numpy as np

N, D, K = 1000, 4, 3
clock = time.perf_counter
rng = np.random.default_rng(0)
x = (rng.normal(size=(N, D)) + 4 * rng.normal(size=(K, D))[rng.integers(K, size=N)]).astype("f4")


def timed(found, name, call):
    start = clock()
    result = call()
    found[name] = clock() - start
    return result


def gmmx_times():
    found = {}

    def dependencies():
        import equinox  # noqa: F401
        import jax  # noqa: F401
        import optax  # noqa: F401

    def library():
        import gmmx

        return gmmx

    timed(found, "import jax, equinox, optax", dependencies)
    gmmx = timed(found, "import gmmx after them", library)
    import warnings

    import jax

    warnings.simplefilter("ignore", gmmx.FitWarning)
    timed(found, "start of JAX", lambda: jax.block_until_ready(jax.numpy.zeros(()) + 1))
    for which in ("first", "second"):
        start = timed(
            found, f"{which} initialize", lambda: jax.block_until_ready(gmmx.initialize(x, K))
        )
        fit = gmmx.EMFitter().fit
        timed(found, f"{which} fit", lambda: jax.block_until_ready(fit(x, start)))  # noqa: B023
        timed(found, f"{which} predict", lambda: jax.block_until_ready(start.predict(x)))  # noqa: B023
    return found


def sklearn_times():
    found = {}

    def library():
        from sklearn.mixture import GaussianMixture

        return GaussianMixture

    mixture = timed(found, "import sklearn.mixture", library)
    for which in ("first", "second"):
        fitted = timed(
            found,
            f"{which} fit, initialisation included",
            lambda: mixture(K, random_state=0).fit(x),
        )
        timed(found, f"{which} predict", lambda: fitted.predict(x))  # noqa: B023
    return found


print(json.dumps({"gmmx": gmmx_times, "scikit-learn": sklearn_times}[sys.argv[1]]()))
