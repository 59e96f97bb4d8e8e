"""From mixtures to fitted attributes of scikit-learn, and back."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.utils.validation import check_is_fitted

from .. import _checks
from .._components import check_gaussian
from .._covariance import LOW_RANK, AbstractCovariance, structure_named
from .._covariance.factors import LowRankFactors
from .._covariance.low_rank import AbstractLowRank
from .._mixture import GaussianMixture

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")


@partial(jax.jit, static_argnames="structure")
def assemble(
    structure: type[AbstractCovariance],
    weights: Float[Array, " k"],
    means: Float[Array, "k d"],
    precisions_cholesky: Float[Array, "..."],
) -> GaussianMixture:
    """The mixture of the attributes that scikit-learn computes densities from."""
    covariances = structure.from_precisions_cholesky(precisions_cholesky)
    return GaussianMixture(jnp.log(weights), means, covariances)


def attributes_of(covariance_type: str) -> tuple[str, ...]:
    """The fitted attributes that densities are computed from."""
    if covariance_type in LOW_RANK:
        return ("weights_", "means_", "loadings_", "noise_variances_")
    return ("weights_", "means_", "precisions_cholesky_")


def assembled(covariance_type: str, rank: Any, weights: Any, means: Any, *rest: Any) -> Any:
    """The mixture of these attributes."""
    if covariance_type not in LOW_RANK:
        return assemble(structure_named(covariance_type, rank), weights, means, *rest)
    structure: Any = structure_named(covariance_type, rank, means.shape[1])
    loadings, variances = (jnp.asarray(part) for part in rest)
    diagonal = 1 / jnp.sqrt(variances)
    factors = LowRankFactors(diagonal, loadings * diagonal[:, :, None])
    return GaussianMixture(jnp.log(weights), jnp.asarray(means), structure.from_factors(factors))


@eqx.filter_jit
def _parameters(gmm: GaussianMixture) -> dict[str, Array]:
    structure = gmm.structure
    if isinstance(structure, AbstractLowRank):
        return {
            "weights_": gmm.weights,
            "means_": gmm.means,
            "loadings_": structure.loadings,
            "noise_variances_": structure.noise_variances,
        }
    return {
        "weights_": gmm.weights,
        "means_": gmm.means,
        "covariances_": gmm.covariances,
        "precisions_": gmm.precisions,
        "precisions_cholesky_": gmm.precisions_cholesky,
    }


def fitted_parameters(gmm: GaussianMixture) -> dict[str, np.ndarray]:
    """The fitted attributes of scikit-learn, as NumPy arrays that can be written to."""
    return {name: np.array(value) for name, value in _parameters(gmm).items()}


def check_known(covariance_type: str) -> None:
    """Refuse a structure that scikit-learn does not have."""
    if covariance_type not in COVARIANCE_TYPES:
        known = ", ".join(repr(name) for name in COVARIANCE_TYPES)
        raise ValueError(
            f"scikit-learn has no covariance_type={covariance_type!r}; expected one of "
            f"{known}. Make a mixture with full covariances from gmm.dense_factors() first."
        )


def to_sklearn(gmm: GaussianMixture, **parameters: Any) -> SklearnMixture:
    """The mixture as a fitted `sklearn.mixture.GaussianMixture`, in its own dtype.

    The means are equal to the last bit, the other parameters to rounding. `warm_start=True` is
    the default here, so `fit` continues from the mixture.

    **Arguments:**

    - `parameters`: further parameters of scikit-learn's class, for instance `max_iter`.

    **Raises:** `ValueError` if scikit-learn does not have the structure.
    """
    check_gaussian(gmm)
    check_known(gmm.covariance_type)
    estimator = SklearnMixture(
        gmm.n_components,
        covariance_type=gmm.covariance_type,
        **{"warm_start": True, **parameters},
    )
    never_fitted = {"converged_": False, "n_iter_": 0, "lower_bound_": -np.inf, "lower_bounds_": []}
    attributes = {**fitted_parameters(gmm), **never_fitted, "n_features_in_": gmm.n_features}
    for name, value in attributes.items():
        setattr(estimator, name, value)
    return estimator


def from_sklearn(estimator: Any) -> GaussianMixture:
    """The mixture of a fitted estimator: scikit-learn's, or `gmmx.sklearn.GaussianMixture`.

    The dtype is that of the estimator. Without `jax.config.update("jax_enable_x64", True)`,
    float64 becomes float32.

    **Raises:** `ValueError` if the estimator is not fitted.
    """
    names = attributes_of(estimator.covariance_type)
    check_is_fitted(estimator, list(names))
    leaves = _checks.as_one_dtype(**{name: getattr(estimator, name) for name in names})
    return assembled(estimator.covariance_type, getattr(estimator, "rank", None), *leaves)
