"""The bootstrap: fits of the same mixture to many samples like the one in hand."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .. import _checks, _rows
from .._abstract_mixture import AbstractMixture
from .._batch import MixtureBatch
from .._data import Samples, without_weights
from .._fit.base import AbstractFitter, solve
from .._fit.em import EMFitter
from .._fit.result import FitResult, FitWarning
from .._programs import Program
from .errors import StandardErrors, errors_of
from .information import subject
from .parameters import Parameters
from .replicates import check_concrete, check_drawn, check_fitter, present, replicate, sample_size

Resample = Callable[..., tuple[Samples, Float[Array, " n"]]]
"""`(key, x, gmm, counts, n, size)` to rows and how often each counts"""


class Bootstrap(eqx.Module):
    """The outcome of `gmmx.bootstrap`: B mixtures, fitted to samples like the one in hand.

    Each fit starts from the fitted mixture, so component k of each of them is component k of it.
    """

    gmm: AbstractMixture
    """The mixture fitted to the data"""
    mixtures: MixtureBatch
    """The B mixtures; of mixtures with a background the Gaussians"""
    parameters: Parameters
    """Their weights, means and covariances, `(B, ...)`"""
    failed: Bool[Array, " b"]
    """The fits that broke down, which errors and intervals leave out"""
    converged: Bool[Array, " b"]

    def __len__(self) -> int:
        return len(self.mixtures)

    def _replicates(self) -> tuple[Float[np.ndarray, "b q"], Any]:
        """A row for each fit that did not fail, and the way back from a row."""
        kept = ~np.asarray(self.failed)
        leaves = [np.asarray(leaf, np.float64)[kept] for leaf in jax.tree.leaves(self.parameters)]
        return np.column_stack([leaf.reshape(len(leaf), -1) for leaf in leaves]), (
            Parameters.of(self.gmm).ravel()[1]
        )

    def standard_errors(self) -> StandardErrors:
        """The deviations of the B estimates, and their covariances."""
        return errors_of(Parameters.of(self.gmm), np.cov(self._replicates()[0], rowvar=False))

    def interval(self, level: float = 0.95) -> tuple[Parameters, Parameters]:
        """The ends of the percentile intervals, (1 − level)/2 of the estimates beyond each.

        **Arguments:**

        - `level`: from 0 to 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level={level!r}; expected a probability, such as 0.95.")
        rows, unravel = self._replicates()
        low, high = np.quantile(rows, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return unravel(low), unravel(high)

    def summary(self, *, names: Any = None) -> Any:
        """Weights and means with their standard errors, to be printed."""
        return self.standard_errors().summary(names=names)

    def __str__(self) -> str:
        return str(self.summary())


def _weighted(key, x, gmm, counts, n, size):
    # Exponential weights, divided by their sum, are of the flat Dirichlet distribution.
    return x, counts * jax.random.exponential(key, counts.shape, counts.dtype)


def _weighted_counts(key, x, gmm, counts, n, size):
    # The weight of a row that counts c times is the sum of c exponential ones.
    there = counts > 0
    return x, jnp.where(there, jax.random.gamma(key, jnp.where(there, counts, 1)), 0)


def _nonparametric(key, x, gmm, counts, n, size):
    heights = jnp.cumsum(counts)
    uniform = jax.random.uniform(key, (size,), counts.dtype)
    chosen = jnp.searchsorted(heights / heights[-1], uniform, side="right")
    return x, jnp.zeros_like(counts).at[chosen].add(present(n, size, counts.dtype))


def _parametric(key, x, gmm, counts, n, size):
    return gmm.sample(size, key=key), present(n, size, counts.dtype)


METHODS: dict[str, Resample] = {
    "weighted": _weighted,
    "nonparametric": _nonparametric,
    "parametric": _parametric,
}


def bootstrap(
    gmm: Any,
    x: Any,
    n: int = 999,
    *,
    method: str = "weighted",
    weights: Any = None,
    fitter: AbstractFitter | None = None,
    key: PRNGKeyArray | None = None,
) -> Bootstrap:
    """Fit the mixture again to n samples like x, for standard errors and intervals.

    All fits start from `gmm`, so that components keep their numbers. They run under one `vmap`, a
    batch that stays in the cache at a time.

    **Arguments:**

    - `gmm`: the mixture fitted to x.
    - `x`: the data, `(n, d)` or `gmmx.Data`.
    - `n`: how many samples.
    - `method`: `"weighted"`, all rows with weights drawn from the flat Dirichlet distribution, so
        that no row is ever left out (Newton & Raftery 1994; O'Hagan, Murphy, Scrucca & Gormley
        2019); `"nonparametric"`, rows drawn with replacement (Efron 1979); `"parametric"`, rows
        drawn from `gmm`, which has to be right. The last one takes no `gmmx.Data`.
    - `weights`: how often each sample counts, `(n,)`; their sum is the number of samples.
    - `fitter`: any fitter of one start; `EMFitter(tol=1e-6, max_iter=1000)` by default. A looser
        tolerance ends fits near their start, and the errors come out too small.
    - `key`: `jax.random.key(0)` by default.

    **Returns:** a `Bootstrap`. Warns (`FitWarning`) of fits that failed or did not converge.

    **Raises:** `ValueError` for data that cannot be fitted and unknown settings; inside `jit`.
    """
    fitter = EMFitter(tol=1e-6, max_iter=1000) if fitter is None else fitter
    n = _checks.check_count(n, "n")
    check_fitter(fitter, "bootstrap")
    resample = _resample(method, x, weights)
    gmm, x, counts = subject(gmm, x, weights)
    check_concrete("bootstrap", gmm, x, counts)
    total = sample_size(x, counts)
    counts = jnp.ones(x.shape[0], x.dtype) if counts is None else counts
    result, parameters = replicate(
        _refits, n, x, gmm.n_components, _checks.as_key(key), resample, _rows.size(total), fitter,
        x, gmm, counts, np.int32(total),
    )  # fmt: skip
    fitted = result.gmm
    mixtures = MixtureBatch(fitted.logits, fitted.means, fitted.structure, shared=False)
    _announce(result)
    return Bootstrap(gmm, mixtures, parameters, result.failed, result.converged)


def _resample(method: str, x: Any, weights: Any) -> Resample:
    """How samples are drawn."""
    if method not in METHODS:
        known = ", ".join(repr(name) for name in METHODS)
        raise ValueError(f"method={method!r} is unknown; expected one of {known}.")
    if method == "parametric":
        check_drawn(x, "Or take method='weighted', which keeps all rows.")
    counted = weights is not None or without_weights(x, None)[1] is not None
    return _weighted_counts if method == "weighted" and counted else METHODS[method]


@Program
def _refits(
    numbers: Int[Array, " b"],
    key: PRNGKeyArray,
    resample: Resample,
    size: int,
    fitter: AbstractFitter,
    x: Samples,
    gmm: AbstractMixture,
    counts: Float[Array, " n"],
    total: Int[Array, ""],
) -> tuple[FitResult, Parameters]:
    """The fits of these numbers."""

    def one(number: Array) -> tuple[FitResult, Parameters]:
        draw, fit = jax.random.split(jax.random.fold_in(key, number))
        rows, weights = resample(draw, x, gmm, counts, total, size)
        weights = weights * (total.astype(weights.dtype) / jnp.sum(weights))
        result = solve(fitter, rows, gmm, weights, fit)
        result = eqx.tree_at(lambda r: r.history, result, jnp.zeros(0, gmm.dtype))
        return result, Parameters.of(result.gmm)

    return jax.vmap(one)(numbers)


def _announce(result: FitResult) -> None:
    failed, converged = np.asarray(result.failed), np.asarray(result.converged)
    told = []
    if failed.any():
        told.append(f"{failed.sum():,} of {failed.size:,} fits failed and are left out")
    if (~failed & ~converged).any():
        told.append(f"{(~failed & ~converged).sum():,} did not converge: raise max_iter")
    if told:
        warnings.warn(f"In the bootstrap {', '.join(told)}.", FitWarning, stacklevel=3)
