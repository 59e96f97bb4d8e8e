"""`sklearn.mixture.GaussianMixture`, parameter for parameter, fitted by gmmx."""

import dataclasses
import math
import warnings
from numbers import Integral
from typing import Any, ClassVar, Self, cast

import jax
import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .. import _checks
from .._covariance import structure_named
from .._data import Data, check_rows
from .._fit.base import AbstractFitter
from .._fit.em import EMFitter
from .._fit.state import FitState
from .._fit.status import Status
from .._fit.stepwise import StepwiseEM, StepwiseState
from .._mixture import GaussianMixture as Mixture
from ._convert import (
    COVARIANCE_TYPES,
    assembled,
    attributes_of,
    check_known,
    fitted_parameters,
    to_sklearn,
)
from ._fit import Outcome, double_precision, run
from ._report import Report
from ._rows import Rows, checked, measured, rough
from ._start import Given, check_defined, start

_MAX_SEED = 2**31 - 1
NOT_CONVERGED = (
    "Best performing initialization did not converge. Try different init parameters, or increase "
    "max_iter, tol, or check for degenerate data."
)
# The part of a feature's variance that the floor may be without a word.
_WIDE_FLOOR = 0.01


class GaussianMixture(DensityMixin, BaseEstimator):
    """A Gaussian mixture as a scikit-learn estimator, in place of scikit-learn's own.

    It has the parameters, fitted attributes and methods of `sklearn.mixture.GaussianMixture`, and
    gives the same results: it draws starts as scikit-learn does, and EM takes the same steps. In
    addition, `fit` takes sample weights, samples may have gaps and noise, and the trainer can be
    chosen.

    It takes and returns NumPy arrays. Data in float64 are fitted in float64 whatever JAX is set
    to, and data in float32 in float32.

    **Arguments:** those of `sklearn.mixture.GaussianMixture`, and

    - `covariance_type`: also any other structure of this library, such as `gmmx.FAMILIES`.
    - `rank`: the number of latent factors of a component, for `"low_rank"` and its relatives.
    - `fitter`: how to fit, for instance `gmmx.GradientFitter()`. It uses its own settings in
        place of `tol`, `max_iter` and `reg_covar`; only the start still uses `reg_covar`. None is
        EM with these three.
    - `allow_nan`: True takes NaN in X as values that were not measured, wherever X is given, and
        uses the samples for what they do hold; False refuses it, as scikit-learn does. Values
        have to be missing at random.
    - `verbose`: 1 prints the starts and, at the earliest, every `verbose_interval`-th step; 2 also
        prints times and changes of the likelihood.

    **Fitted attributes:** `weights_ (k)`, `means_ (k, d)`, `covariances_`, `precisions_`,
    `precisions_cholesky_` (of low rank `loadings_ (k, d, r)` and `noise_variances_ (k, d)` in place
    of these three), `converged_`, `n_iter_`, `lower_bound_`, `lower_bounds_` (the mean
    log-likelihood at the start of each step), `n_features_in_` and, for data with names,
    `feature_names_in_`.

    ```python
    from gmmx.sklearn import GaussianMixture

    labels = GaussianMixture(n_components=3, random_state=0).fit_predict(x)
    ```
    """

    _parameter_constraints: ClassVar[dict] = {
        **SklearnMixture._parameter_constraints,
        # An unknown one is refused by the error that lists all names.
        "covariance_type": [str],
        "rank": [Integral, None],
        "fitter": [AbstractFitter, None],
        "allow_nan": ["boolean"],
    }

    weights_: np.ndarray
    means_: np.ndarray
    covariances_: np.ndarray
    precisions_: np.ndarray
    precisions_cholesky_: np.ndarray
    converged_: bool
    n_iter_: int
    lower_bound_: float
    lower_bounds_: list[float]
    n_features_in_: int
    _stepwise: StepwiseState

    def __init__(
        self,
        n_components: Any = 1,
        *,
        covariance_type: Any = "full",
        tol: Any = 1e-3,
        reg_covar: Any = 1e-6,
        max_iter: Any = 100,
        n_init: Any = 1,
        init_params: Any = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: Any = False,
        verbose: Any = 0,
        verbose_interval: Any = 10,
        fitter: Any = None,
        allow_nan: Any = False,
        rank: Any = None,
    ):
        # Stored unchanged, as scikit-learn requires; `fit` checks them.
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.fitter = fitter
        self.allow_nan = allow_nan
        self.rank = rank

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.allow_nan
        return tags

    # Fitting

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, noise: Any = None) -> Self:
        """Fit the mixture: the best of `n_init` starts.

        **Arguments:**

        - `X`: the data, `(n_samples, n_features)`.
        - `y`: not used.
        - `sample_weight`: how often each sample counts, `(n_samples,)`; only ratios matter.
        - `noise`: of the samples, in the squared units of X: variances, `()`, `(n_features,)` or
            `(n_samples, n_features)`, or covariances, `(n_features, n_features)` or one for each
            sample. The mixture is then that of the samples without noise, see `gmmx.Data`. An
            infinite variance says that the value was not measured.

        **Raises:** `ValueError` for data or parameters that cannot be fitted, and if every start
        failed. Warns (`ConvergenceWarning`) if the best one has not converged.
        """
        self._fit(X, sample_weight, noise)
        return self

    def fit_predict(
        self, X: Any, y: Any = None, sample_weight: Any = None, noise: Any = None
    ) -> Int[np.ndarray, " n"]:
        """Fit the mixture, and return the most probable component of each sample."""
        return self._labels(self._fit(X, sample_weight, noise))

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Take one more batch of samples into account, by stepwise EM (`gmmx.StepwiseEM`).

        The first batch gives the start, by `init_params`, so it has to be a fair sample. After
        `fit`, a first call begins anew. `lower_bound_` is the mean log-likelihood of the last batch
        under the mixture before it, `n_iter_` the number of batches, and `converged_` False.

        **Arguments:** those of `fit`; samples have to be complete.
        """
        self._validate_params()
        first = not hasattr(self, "_stepwise")
        x = checked(self, X, reset=first, ensure_min_samples=self.n_components if first else 1)
        if np.isnan(x).any():
            raise ValueError("partial_fit takes complete samples; X contains NaN. Drop those rows.")
        trainer = StepwiseEM(reg_covar=np.full(x.shape[1], self.reg_covar))
        with double_precision():
            state = self._first_step(trainer, x, sample_weight) if first else self._stepwise
            weights = None if sample_weight is None else np.asarray(sample_weight, x.dtype)
            self._stepwise = trainer.step(state, x, weights=weights)
            parameters = fitted_parameters(cast(Mixture, trainer.model(self._stepwise)))
        for name, value in parameters.items():
            setattr(self, name, value)
        self.converged_, self.n_iter_ = False, int(self._stepwise.n_steps)
        self.lower_bound_ = float(self._stepwise.log_likelihood)
        self.lower_bounds_ = [*(self.lower_bounds_ if not first else []), self.lower_bound_]
        return self

    def _first_step(
        self, trainer: StepwiseEM, x: Float[np.ndarray, "n d"], sample_weight: Any
    ) -> StepwiseState:
        weights = _checks.check_weights(sample_weight, x.shape[0], x.dtype, name="sample_weight")
        weights = None if weights is None else np.asarray(weights)
        structure = structure_named(self.covariance_type)
        given = Given.checked(
            structure, (self.n_components, x.shape[1]), x.dtype,
            self.weights_init, self.means_init, self.precisions_init,
        )  # fmt: skip
        gmm = start(
            x, weights, structure, self.n_components, self.init_params,
            check_random_state(self.random_state), self.reg_covar, given,
        )  # fmt: skip
        return trainer.init(x, gmm, weights=weights)

    def _fit(self, X: Any, sample_weight: Any, noise: Any) -> Rows:
        """Fit, set the attributes, and return the samples as they were fitted."""
        self._validate_params()
        vars(self).pop("_stepwise", None)
        x = checked(self, X, ensure_min_samples=2)
        if x.shape[0] < self.n_components:
            raise ValueError(
                "Expected n_samples >= n_components but got "
                f"n_components = {self.n_components}, n_samples = {x.shape[0]}"
            )
        with double_precision():
            weights = _checks.check_weights(
                sample_weight, x.shape[0], x.dtype, name="sample_weight"
            )
            weights = None if weights is None else np.asarray(weights)
            rows = measured(x, noise)
            if isinstance(rows, Data):
                check_rows(rows, self.n_components)
            x = rough(rows, weights)
            _warn_of_floor(self.reg_covar, x)
            best = self._best(rows, x, weights)
            parameters = fitted_parameters(best.gmm)
        for name, value in parameters.items():
            setattr(self, name, value)
        self.converged_ = best.converged
        self.n_iter_ = len(best.lower_bounds)
        self.lower_bound_ = best.lower_bound
        self.lower_bounds_ = best.lower_bounds
        warn(best)
        return rows

    def _best(
        self,
        rows: Rows,
        x: Float[np.ndarray, "n d"],
        weights: Float[np.ndarray, " n"] | None,
    ) -> Outcome:
        """The best of the starts. One that fails is skipped, unless all of them fail.

        **Arguments:**

        - `x`: the rows, or rough complete ones to start from.
        """
        random = check_random_state(self.random_state)
        structure = structure_named(self.covariance_type, self.rank, x.shape[1])
        given = Given.checked(
            structure, (self.n_components, x.shape[1]), x.dtype,
            self.weights_init, self.means_init, self.precisions_init,
        )  # fmt: skip
        resumed = self.warm_start and hasattr(self, "converged_")
        report = Report(self.verbose, self.verbose_interval)
        best, failures = None, []
        for index in range(1 if resumed else self.n_init):
            report.begin(index)
            try:
                if resumed:
                    gmm = self._left_off(x)
                else:
                    gmm = start(
                        x, weights, structure, self.n_components, self.init_params, random,
                        self.reg_covar, given,
                    )  # fmt: skip
                outcome = self._run(gmm, rows, weights, random, resumed, report)
                check_defined(outcome.gmm, x)
            except ValueError as error:
                failures.append(error)
                continue
            # As in scikit-learn, where a start without steps replaces the one before.
            if (
                best is None
                or best.lower_bound == -np.inf
                or outcome.lower_bound > best.lower_bound
            ):
                best = outcome
        if best is None:
            raise failures[0]
        return best

    def _run(
        self,
        gmm: Mixture,
        rows: Rows,
        weights: Float[np.ndarray, " n"] | None,
        random: np.random.RandomState,
        resumed: bool,
        report: Report,
    ) -> Outcome:
        if self.max_iter == 0:
            return Outcome(gmm, [], False, None)
        fitter, key = self.fitter, None
        if fitter is None:
            floor = np.full(rows.shape[1], self.reg_covar)
            fitter = EMFitter(self.tol, self.max_iter, floor, look_ahead=False)
        else:
            # Not for EM, which draws nothing: scikit-learn's sequence of draws stays the same.
            key = jax.random.key(random.randint(_MAX_SEED))

        def rests(state: FitState) -> bool:
            if not resumed or self.fitter is not None or int(state.n_iter) != 1:
                return False
            # scikit-learn compares the likelihood at the start of the first step with the one at
            # the end of the last fit.
            start = float(state.log_likelihood) - float(state.log_likelihood_diff)
            return abs(start - self.lower_bound_) < self.tol

        outcome = run(fitter, gmm, rows, weights, key, report, rests)
        report.end(outcome.converged, outcome.lower_bound)
        return outcome

    def _left_off(self, x: Float[np.ndarray, "n d"]) -> Mixture:
        """The mixture of the last fit."""
        if self.means_.shape != (self.n_components, x.shape[1]):
            k, d = self.means_.shape
            raise ValueError(
                f"warm_start=True continues a fit of {k} components and {d} features, but "
                f"n_components={self.n_components} and X has {x.shape[1]} features. Fit a new "
                "estimator, or set warm_start=False."
            )
        return self._mixture(x.dtype)

    # The fitted mixture

    def _mixture(self, dtype: Any) -> Mixture:
        """The mixture of the attributes, which the user may have set."""
        names = attributes_of(self.covariance_type)
        parts = (np.asarray(getattr(self, name), dtype) for name in names)
        return assembled(self.covariance_type, self.rank, *parts)

    def _rows(self, X: Any, noise: Any) -> Rows:
        """The samples, checked, in the dtype that they are evaluated in."""
        check_is_fitted(self)
        x = checked(self, X, reset=False)
        with double_precision():
            return measured(x.astype(np.result_type(x, self.means_)), noise)

    def _evaluate(self, method: str, rows: Rows) -> np.ndarray:
        """A method of the mixture at the rows, as an array that can be written to."""
        with double_precision():
            return np.array(getattr(self._mixture(rows.dtype), method)(rows))

    def _labels(self, rows: Rows) -> Int[np.ndarray, " n"]:
        # NumPy's type of indices, as in scikit-learn.
        return self._evaluate("predict", rows).astype(np.intp)

    def predict(self, X: Any, noise: Any = None) -> Int[np.ndarray, " n"]:
        """The most probable component of each sample, measured with this noise, see `fit`."""
        return self._labels(self._rows(X, noise))

    def predict_proba(self, X: Any, noise: Any = None) -> Float[np.ndarray, "n k"]:
        """The probability of each component, given the sample, measured with this noise."""
        return self._evaluate("predict_proba", self._rows(X, noise))

    def score_samples(self, X: Any, noise: Any = None) -> Float[np.ndarray, " n"]:
        """The log-density of each sample, as it was measured: in part, or with this noise."""
        return self._evaluate("log_prob", self._rows(X, noise))

    def score(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, X: Any, y: Any = None, noise: Any = None
    ) -> float:
        """The mean log-density of the samples; `y` is not used."""
        return float(np.mean(self.score_samples(X, noise)))

    def aic(self, X: Any, noise: Any = None) -> float:
        """Akaike's criterion: smaller is better."""
        log_prob = self.score_samples(X, noise)
        return 2 * self._n_parameters() - 2 * float(np.sum(log_prob))

    def bic(self, X: Any, noise: Any = None) -> float:
        """The Bayesian criterion: smaller is better."""
        log_prob = self.score_samples(X, noise)
        return math.log(len(log_prob)) * self._n_parameters() - 2 * float(np.sum(log_prob))

    def _n_parameters(self) -> int:
        with double_precision():
            return self._mixture(self.means_.dtype).n_parameters

    def sample(self, n_samples: int = 1) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
        """Draws and the component that each is from, sorted by component.

        scikit-learn makes them, so they are its draws for the same `random_state`.
        """
        check_is_fitted(self)
        with double_precision():
            gmm = self._mixture(self.means_.dtype)
            if gmm.covariance_type in COVARIANCE_TYPES:
                return self.to_sklearn().sample(n_samples)
            if gmm.structure.n_latent is not None:
                # They may be too many features for dense covariances.
                seed = check_random_state(self.random_state).randint(_MAX_SEED)
                draws, labels = map(np.asarray, gmm.sample_with_labels(
                    n_samples, key=jax.random.key(seed)
                ))  # fmt: skip
                order = np.argsort(labels, kind="stable")
                return draws[order], labels[order].astype(np.intp)
            full = structure_named("full").from_factors(gmm.dense_factors())
            full = dataclasses.replace(gmm, structure=full)
            return to_sklearn(full, random_state=self.random_state).sample(n_samples)

    # Conversions

    def to_sklearn(self) -> SklearnMixture:
        """scikit-learn's own estimator with the same parameters and, if fitted, attributes.

        **Raises:** `ValueError` if scikit-learn does not have the structure.
        """
        covariance_type = structure_named(self.covariance_type).covariance_type
        check_known(covariance_type)
        return _copy(self, SklearnMixture()).set_params(covariance_type=covariance_type)

    @classmethod
    def from_sklearn(cls, estimator: SklearnMixture) -> Self:
        """This estimator with the parameters and, if fitted, attributes of scikit-learn's own."""
        return _copy(estimator, cls())


def _copy(source: Any, target: Any) -> Any:
    """The target with the parameters of the source that it knows, and all fitted attributes."""
    known = target.get_params(deep=False)
    target.set_params(**{n: v for n, v in source.get_params(deep=False).items() if n in known})
    for name, value in vars(source).items():
        if name.endswith("_"):
            setattr(target, name, value)
    return target


def _warn_of_floor(reg_covar: float, x: Float[np.ndarray, "n d"]) -> None:
    """Warn where `reg_covar`, in squared units of the data, would blur them."""
    variances = x.var(axis=0)
    least = variances[variances > 0].min(initial=np.inf)
    if reg_covar > _WIDE_FLOOR * least:
        warnings.warn(
            f"reg_covar={reg_covar:g} is {reg_covar / least:.2g} of the variance of a feature, "
            f"{least:.3g}: clusters narrower than that are not seen. Scale the data "
            "(sklearn.preprocessing.StandardScaler), or lower reg_covar.",
            UserWarning,
            stacklevel=4,
        )


def warn(outcome: Outcome) -> None:
    """Warn of a bad status, at the line that called `fit`."""
    if outcome.status is None:
        return
    message = Status[outcome.status]
    # scikit-learn says nothing of a component that collapsed.
    if message in (Status[Status.converged], Status[Status.spurious_component]):
        return
    if not outcome.converged:
        message = f"{NOT_CONVERGED} In detail: {message}"
    warnings.warn(message, ConvergenceWarning, stacklevel=4)
