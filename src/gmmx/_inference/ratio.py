"""The bootstrap likelihood-ratio test of K components against K + 1."""

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .. import _checks, _rows, _summary
from .._chunks import map_rows
from .._covariance import structure_named
from .._fit.base import AbstractFitter, solve
from .._fit.em import EMFitter
from .._fit.restarts import best_of
from .._fit.result import FitError, FitResult, FitWarning
from .._fit.status import Status
from .._init import initialize
from .._mixture import GaussianMixture
from .._programs import Program
from .replicates import (
    check_concrete,
    check_drawn,
    check_fitter,
    check_numbers,
    present,
    replicate,
    sample_size,
)


@dataclasses.dataclass(frozen=True)
class RatioTest:
    """One test of K components against K + 1."""

    n_components: int
    """K"""
    statistic: float
    """2 log(L_{K+1}/L_K) of the data, at least zero"""
    p_value: float
    """(1 + the number of samples of no smaller statistic)/(B + 1)"""
    replicates: Float[np.ndarray, " b"]
    """The statistics of the samples drawn from the mixture of K components"""
    gmm: Any
    """The mixture of K components fitted to the data"""


@dataclasses.dataclass(frozen=True, repr=False)
class BootstrapTest:
    """The outcome of `gmmx.bootstrap_test`. Printed, it is a table."""

    tests: tuple[RatioTest, ...]
    """One for each K that was tested, in this order"""
    level: float

    @property
    def n_components(self) -> int:
        """The first K that is not rejected; one more than the last K where all are."""
        last = self.tests[-1]
        return last.n_components + (last.p_value <= self.level)

    def summary(self) -> _summary.Summary:
        """The table of the tests."""
        rows = [
            [f"{t.n_components} against {t.n_components + 1}", f"{t.statistic:.2f}",
             f"{t.p_value:.4f}"]
            for t in self.tests
        ]  # fmt: skip
        count = len(self.tests[-1].replicates)
        after = f"{self.n_components} components at the level {self.level:g}"
        return _summary.Summary(
            [f"Bootstrap likelihood-ratio tests, {count:,} samples each"],
            ["components", "statistic", "p"], rows, "lrr", [after],
        )  # fmt: skip

    def __str__(self) -> str:
        return str(self.summary())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def bootstrap_test(
    x: Any,
    n_components: int | Iterable[int] = range(1, 6),
    covariance_type: str = "full",
    *,
    n: int = 999,
    level: float = 0.05,
    n_init: int = 10,
    weights: Any = None,
    fitter: AbstractFitter | None = None,
    key: PRNGKeyArray | None = None,
) -> BootstrapTest:
    r"""Test K components against K + 1, for one K after the other until one is not rejected.

    The statistic is $t = 2 \log(L_{K+1}/L_K)$. It has no χ² distribution, so its distribution is
    that of n samples drawn from the mixture of K components that was fitted (McLachlan 1987):

    $$p = \frac{1 + \#\{b : t^*_b \ge t\}}{n + 1}.$$

    Mixtures of K components are fitted to the samples from the mixture that they were drawn from,
    and those of K + 1 components from `n_init` starts by k-means++, as to the data. All fits to the
    samples of one K are one program.

    **Arguments:**

    - `x`: the data, `(n, d)`.
    - `n_components`: the K to test, in this order.
    - `covariance_type`: the structure, by name.
    - `n`: how many samples are drawn for each K; the least p is 1/(n + 1).
    - `level`: K is rejected where p is not larger.
    - `n_init`: number of starts of each fit; the one of greatest likelihood is kept. Too few if
        the statistics depend on the key.
    - `weights`: how often each sample counts, `(n,)`; their sum is the number of samples.
    - `fitter`: any fitter of one start; by default `EMFitter(tol=1e-6, max_iter=500,
        accelerate=True)`, since a component too many makes EM slow.
    - `key`: `jax.random.key(0)` by default.

    **Returns:** a `BootstrapTest`; its `n_components` is the number that was found.

    **Raises:** `ValueError` for data that cannot be fitted, `gmmx.Data` among them, since its rows
    cannot be drawn from a mixture; and inside `jit`.
    """
    check_drawn(x, "To choose a number of components for them, take gmmx.select.")
    fitter = EMFitter(tol=1e-6, max_iter=500, accelerate=True) if fitter is None else fitter
    check_fitter(fitter, "bootstrap_test")
    n, n_init = _checks.check_count(n, "n"), _checks.check_count(n_init, "n_init")
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}; expected a probability, such as 0.05.")
    numbers = check_numbers(n_components)
    x = _checks.check_data(x, max(numbers) + 1)
    weights = None if weights is None else _checks.as_weights(weights, x.shape[:1], x.dtype)
    check_concrete("bootstrap_test", x, weights)
    total, key = sample_size(x, weights), _checks.as_key(key)
    search = _Search(fitter, structure_named(covariance_type).covariance_type, n_init)
    x, weights = _rows.fill(x, weights)
    tests, fitted = [], None
    for k in numbers:
        if fitted is None or fitted.gmm.n_components != k:
            fitted = _fit_data(search, k, x, weights, key)
        larger = _fit_data(search, k + 1, x, weights, key)
        tests.append(_test(search, fitted, larger, n, total, jax.random.fold_in(key, k)))
        if tests[-1].p_value > level:
            break
        fitted = larger
    return BootstrapTest(tuple(tests), level)


@dataclasses.dataclass(frozen=True)
class _Search:
    """How the greatest likelihood is looked for."""

    fitter: AbstractFitter
    covariance_type: str
    n_init: int

    def __call__(
        self, k: int, x: Float[Array, "n d"], weights: Float[Array, " n"] | None, key: Array
    ) -> FitResult:
        """The likeliest fit of k components."""

        def fit(key: Array) -> FitResult:
            start = initialize(
                x, k, self.covariance_type, method="kmeans++", key=key, weights=weights,
                reg_covar=self.fitter.reg_covar,
            )  # fmt: skip
            result = solve(self.fitter, x, start, weights, jax.random.fold_in(key, 1))
            return dataclasses.replace(result, history=jnp.zeros(0, x.dtype))

        # One after the other: none waits for the slowest.
        results = jax.lax.map(fit, jax.random.split(key, self.n_init))
        best = best_of(results)
        return jax.tree.map(lambda leaf: leaf[best], results)


def _fit_data(search: _Search, k: int, x: Array, weights: Array | None, key: Array) -> FitResult:
    result = _searched.at(x.size * k * x.shape[1])(search, k, x, weights, key)
    if bool(result.failed):
        message = f"the fit of {k} components to x failed: {Status[result.status]}"
        raise FitError(message, result)
    return result


@Program
def _searched(search, k, x, weights, key):
    return search(k, x, weights, key)


def _test(
    search: _Search, fitted: FitResult, larger: FitResult, n: int, total: int, key: PRNGKeyArray
) -> RatioTest:
    """The test of K components, by n samples from the fit of so many."""
    k = fitted.gmm.n_components
    # A mixture of K + 1 components, two of them equal, is as likely as one of K.
    gain = max(float(larger.log_likelihood) - float(fitted.log_likelihood), 0)
    size = _rows.size(total)
    like = jax.ShapeDtypeStruct((size, fitted.gmm.n_features), fitted.gmm.dtype)
    arguments = (search, fitted.gmm, size, np.int32(total))
    found = np.asarray(replicate(_ratios, n, like, k + 1, key, *arguments), np.float64)
    sound = found[~np.isnan(found)]
    if len(sound) < len(found):
        warnings.warn(
            f"{len(found) - len(sound):,} of {len(found):,} samples of {k} components could not "
            "be fitted and are left out.",
            FitWarning,
            stacklevel=3,
        )
    p_value = (1 + int((sound >= 2 * total * gain).sum())) / (len(sound) + 1)
    return RatioTest(k, 2 * total * gain, p_value, sound, fitted.gmm)


@Program
def _ratios(
    numbers: Int[Array, " b"],
    key: PRNGKeyArray,
    search: _Search,
    null: GaussianMixture,
    size: int,
    total: Int[Array, ""],
) -> Float[Array, " b"]:
    """The statistics of samples from the mixture `null`; NaN where a fit failed."""

    def one(number: Array) -> Array:
        draw, begin = jax.random.split(jax.random.fold_in(key, number))
        x = null.sample(size, key=draw)
        weights = present(total, size, x.dtype)
        # From the mixture that the sample is of.
        below = solve(search.fitter, x, null, weights, begin)
        above = search(null.n_components + 1, x, weights, begin)
        gain = jnp.maximum(above.log_likelihood - below.log_likelihood, 0)
        ratio = 2 * total.astype(gain.dtype) * gain
        return jnp.where(above.failed | below.failed, jnp.nan, ratio)

    # These fits differ far more in their number of steps than those of `gmmx.bootstrap`.
    side_by_side = 1 if jax.default_backend() == "cpu" else numbers.size
    return map_rows(jax.vmap(one), numbers, side_by_side)
