"""What every mixture can be asked: its parameters, densities and criteria."""

from typing import Any

from jaxtyping import Array, Float, Int

from . import _criteria, _summary
from ._components import AbstractComponents, check_mixture
from ._engine.density import (
    at_points,
    labels_of,
    log_joint_of,
    log_prob_of,
    responsibilities_of,
    uncertainty_of,
)


class AbstractMixture(AbstractComponents):
    """A mixture that a fit takes and returns: `gmmx.GaussianMixture`, or one with a background."""

    # Parameters

    @property
    def covariance_type(self) -> str:
        """The name of the structure: `"full"`, `"tied"`, `"diag"`, `"spherical"`, `"VEV"`, …"""
        return self.structure.covariance_type

    @property
    def n_parameters(self) -> int:
        """The number of free parameters: K − 1 weights, K·d means and the covariances'."""
        k, d = check_mixture(self).means.shape
        return k - 1 + k * d + self.structure.n_parameters(k, d)

    @property
    def covariances(self) -> Array:
        """Σ_k: `(k, d, d)` if full, `(d, d)` if tied, `(k, d)` if diag, `(k,)` if spherical."""
        return self.structure.covariances(*self._leaf("covariances", self.means).shape)

    @property
    def precisions(self) -> Array:
        """Λ_k = Σ_k⁻¹, in the shape of `covariances`."""
        return self.structure.precisions(*self._leaf("precisions", self.means).shape)

    @property
    def precisions_cholesky(self) -> Array:
        """Factors of the precisions as scikit-learn has them: upper, Λ_k = U_kU_kᵀ."""
        return self.structure.precisions_cholesky(
            *self._leaf("precisions_cholesky", self.means).shape
        )

    # Summaries

    def summary(self, x: Any = None, *, names: Any = None) -> _summary.Summary:
        """Weights, means and deviations of the components, to be printed.

        **Arguments:**

        - `x`: data, `(n, d)` or `gmmx.Data`, for the sizes of the components and the criteria.
        - `names`: of the features; by default the columns of a data frame x.
        """
        return _summary.of_mixture(self, x, names=names)

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    # Density, at points `(*batch, d)`, of `gmmx.Data`, or of all rows of a source.

    def component_log_prob(self, x: Any) -> Float[Array, "*batch k"]:
        """log w_k N(x; μ_k, Σ_k), the joint log-density of x and each component."""
        return at_points(self, x, log_joint_of)

    def log_prob(self, x: Any) -> Float[Array, "*batch"]:
        """log p(x), the mixture's log-density."""
        return at_points(self, x, log_prob_of)

    def score_samples(self, x: Any) -> Float[Array, "*batch"]:
        """scikit-learn's name for `log_prob`."""
        return self.log_prob(x)

    def predict_proba(self, x: Any) -> Float[Array, "*batch k"]:
        """The responsibilities p(k | x)."""
        return at_points(self, x, responsibilities_of)

    def predict(self, x: Any) -> Int[Array, "*batch"]:
        """The most probable component; −1 where the density is NaN."""
        return at_points(self, x, labels_of)

    def uncertainty(self, x: Any) -> Float[Array, "*batch"]:
        """1 − max_k p(k | x): how likely the most probable component is the wrong one."""
        return at_points(self, x, uncertainty_of)

    def score(self, x: Any, *, weights: Any = None) -> Float[Array, ""]:
        """The mean log-density of the points, in nats a sample.

        **Arguments:**

        - `weights`: how often each point counts, `(*batch,)`.
        """
        return _criteria.score(self, x, weights)

    # Criteria. With `weights`, how often each point counts, n is their sum.

    def aic(self, x: Any, *, weights: Any = None) -> Float[Array, ""]:
        """Akaike's criterion, 2ν − 2 log L: smaller is better."""
        return _criteria.aic(self, x, weights)

    def bic(self, x: Any, *, weights: Any = None) -> Float[Array, ""]:
        """The Bayesian criterion, ν log n − 2 log L: smaller is better."""
        return _criteria.bic(self, x, weights)

    def icl(self, x: Any, *, weights: Any = None) -> Float[Array, ""]:
        """The integrated completed likelihood, BIC − 2 Σ log max_k p(k | x): smaller is better."""
        return _criteria.icl(self, x, weights)
