"""Classification by a mixture for each class: discriminant analysis."""

from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from .. import _checks
from .._data import Data
from .._fit.em import EMFitter
from .._mixture import GaussianMixture as Mixture
from ._convert import fitted_parameters
from ._estimator import GaussianMixture, warn
from ._fit import double_precision, run
from ._report import Report
from ._rows import checked, measured, rough


class GaussianMixtureClassifier(ClassifierMixin, BaseEstimator):
    r"""Each class a Gaussian mixture; a sample belongs to the class that makes it most probable.

    $$p(c \mid x) \propto \pi_c\, p_c(x),\qquad
      p_c(x) = \sum_k w_{ck}\, \mathcal{N}(x; \mu_{ck}, \Sigma_{ck})$$

    With one component a class, this is discriminant analysis with the structure `covariance_type`:
    quadratic if full, linear if tied, where all classes share one covariance, and naive Bayes if
    diag (EDDA; Bensmail & Celeux 1996). With several, it is mixture discriminant analysis (Hastie &
    Tibshirani 1996; MclustDA in mclust), and what components share is shared within a class.

    **Arguments:** those of `gmmx.sklearn.GaussianMixture`, for every class, with `allow_nan` for
    samples with gaps, and

    - `priors`: π, one for each class in the order of `classes_`; by default how often the classes
      are in the data.

    **Fitted attributes:** `classes_`, `class_prior_`, `mixtures_` (the `gmmx.GaussianMixture` of
    each class), `n_iter_` (the largest number of steps that the fit of a class took),
    `n_features_in_` and, for data with names, `feature_names_in_`.

    ```python
    from gmmx.sklearn import GaussianMixtureClassifier

    accuracy = GaussianMixtureClassifier(n_components=2).fit(x, y).score(new_x, new_y)
    ```
    """

    _parameter_constraints: ClassVar[dict] = {
        **{
            name: GaussianMixture._parameter_constraints[name]
            for name in (
                "n_components", "covariance_type", "tol", "reg_covar", "max_iter", "n_init",
                "init_params", "random_state", "fitter", "allow_nan",
            )
        },
        "priors": ["array-like", None],
    }  # fmt: skip

    classes_: np.ndarray
    class_prior_: np.ndarray
    mixtures_: list[Mixture]
    n_iter_: int
    n_features_in_: int

    def __init__(
        self,
        n_components: Any = 1,
        *,
        covariance_type: Any = "full",
        priors: Any = None,
        tol: Any = 1e-3,
        reg_covar: Any = 1e-6,
        max_iter: Any = 100,
        n_init: Any = 1,
        init_params: Any = "kmeans",
        random_state: Any = None,
        fitter: Any = None,
        allow_nan: Any = False,
    ):
        # Stored unchanged, as scikit-learn requires; `fit` checks them.
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.priors = priors
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.random_state = random_state
        self.fitter = fitter
        self.allow_nan = allow_nan

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.allow_nan
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit a mixture to the samples of each class.

        **Arguments:**

        - `X`: `(n_samples, n_features)`.
        - `y`: the class of each sample, `(n_samples,)`.
        - `sample_weight`: how often each sample counts, `(n_samples,)`.

        **Raises:** `ValueError` where a class has fewer samples than components, or a feature
        that none of its samples holds.
        """
        self._validate_params()
        x, y = checked(self, X, y)
        check_classification_targets(y)
        with double_precision():
            weights = _checks.check_weights(sample_weight, len(x), x.dtype, name="sample_weight")
        counts = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
        # A class of which no sample counts is not there.
        self.classes_ = np.unique(np.asarray(y)[counts > 0])
        kept = np.isin(y, self.classes_)
        x, counts = x[kept], counts[kept]
        labels = np.searchsorted(self.classes_, np.asarray(y)[kept])
        for number, name in enumerate(self.classes_):
            if np.isnan(x[labels == number]).all(axis=0).any():
                raise ValueError(
                    f"class {name} has a feature that none of its samples holds. Leave out the "
                    "feature or the class."
                )
        totals = np.bincount(labels, weights=counts)
        self.class_prior_ = self._priors(totals)
        if self.n_components == 1:
            self.mixtures_, self.n_iter_ = self._together(x, labels, counts)
        else:
            fitted = self._apart(x, labels, counts)
            self.mixtures_ = [estimator._mixture(x.dtype) for estimator in fitted]
            self.n_iter_ = max(estimator.n_iter_ for estimator in fitted)
        return self

    def _priors(self, totals: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
        if self.priors is None:
            return totals / totals.sum()
        priors = np.asarray(self.priors, np.float64)
        if priors.shape != totals.shape or (priors < 0).any() or not np.isclose(priors.sum(), 1):
            raise ValueError(
                f"priors={self.priors!r}; expected {len(totals)} numbers of sum one, one for each "
                "class."
            )
        return priors

    def _together(self, x: Any, labels: Any, counts: Any) -> tuple[list[Mixture], int]:
        """One component a class, which a structure may share: by one M-step, or EM over gaps.

        **Returns:** the mixtures, and the number of steps.
        """
        floor, n_iter = np.full(x.shape[1], self.reg_covar), 1
        with double_precision():
            rows = Data(x, labels=labels, missing=True) if np.isnan(x).any() else x
            gmm = Mixture.from_responsibilities(
                rough(rows, counts), np.eye(len(self.classes_), dtype=x.dtype)[labels],
                self.covariance_type, weights=counts, reg_covar=floor,
            )  # fmt: skip
            if isinstance(rows, Data):
                fitter = self.fitter or EMFitter(self.tol, self.max_iter, floor, look_ahead=False)
                report = Report(0, 1)
                report.begin(0)
                outcome = run(fitter, gmm, rows, counts, None, report, lambda state: False)
                gmm, n_iter = outcome.gmm, len(outcome.lower_bounds)
                warn(outcome)
            return self._of_each(gmm), n_iter

    def _of_each(self, gmm: Mixture) -> list[Mixture]:
        """The mixture of each class, from one with a component for each."""
        parts = fitted_parameters(gmm)
        means, covariances = parts["means_"], parts["covariances_"]
        shared = gmm.structure.shared
        each = [covariances] * len(means) if shared else covariances[:, None]
        one = np.ones(1, means.dtype)
        return [
            Mixture.from_parameters(one, mean[None], covariance, self.covariance_type)
            for mean, covariance in zip(means, each, strict=True)
        ]

    def _apart(self, x: Any, labels: Any, counts: Any) -> list[GaussianMixture]:
        """A fit for each class."""
        random = check_random_state(self.random_state)
        settings = {
            name: getattr(self, name)
            for name in ("n_components", "covariance_type", "tol", "reg_covar", "max_iter",
                         "n_init", "init_params", "fitter", "allow_nan")
        }  # fmt: skip
        found = []
        for number, name in enumerate(self.classes_):
            own = (labels == number) & (counts > 0)
            if own.sum() < max(self.n_components, 2):
                raise ValueError(
                    f"class {name} has {own.sum()} samples, fewer than the {self.n_components} "
                    "components of its mixture. Take fewer components."
                )
            estimator = GaussianMixture(**settings, random_state=random)
            found.append(estimator.fit(x[own], sample_weight=counts[own]))
        return found

    def _joint(self, X: Any) -> Float[np.ndarray, "n c"]:
        """log π_c p_c(x)"""
        check_is_fitted(self)
        x = checked(self, X, reset=False)
        with double_precision(), np.errstate(divide="ignore"):
            rows = measured(x)
            each = [np.asarray(gmm.log_prob(rows), np.float64) for gmm in self.mixtures_]
            return np.stack(each, axis=1) + np.log(self.class_prior_)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each sample."""
        joint = self._joint(X)
        return self.classes_[np.argmax(joint, axis=1)]

    def predict_log_proba(self, X: Any) -> Float[np.ndarray, "n c"]:
        """log p(c | x)"""
        return np.asarray(log_softmax(self._joint(X), axis=1))

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n c"]:
        """p(c | x)"""
        return np.exp(self.predict_log_proba(X))

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """The log-density of each sample, Σ_c π_c p_c(x)."""
        return np.asarray(logsumexp(self._joint(X), axis=1))
