"""Standard errors of the parameters of a fitted mixture, from the curvature of its likelihood."""

import warnings
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float

from .. import _checks, _summary
from .._fit.frozen import check_frozen
from .._fit.result import FitWarning
from .information import Information, information, score_products, subject
from .parameters import Parameters

METHODS = ("information", "sandwich")

# A model that lies further from the maximum, in standard errors, is warned of.
_FAR = 0.1
# A parameter that moves by more than this part along directions that change no density has no
# standard error, in powers of ε.
_MOVES = 0.4


class StandardErrors(eqx.Module):
    """The standard errors of all parameters, in the shapes of the parameters.

    NaN where the data say nothing of a parameter, such as those of a component of weight zero.
    """

    weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    covariances: Array
    """In the shape of `GaussianMixture.covariances`"""
    background_weight: Float[Array, ""] | None
    """None without a background"""
    covariance_matrix: Float[Array, "q q"]
    """The covariances of the estimates, in the order of the fields, each by rows"""
    estimates: Parameters
    """What the errors are of"""

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def summary(self, *, names: Any = None) -> _summary.Summary:
        """Weights and means with their standard errors, to be printed.

        **Arguments:**

        - `names`: of the features.
        """
        d = self.means.shape[1]
        names = _summary.feature_names(names, None, d)
        found, errors = (
            np.column_stack([part.weights, part.means]) for part in (self.estimates, self)
        )
        rows = [
            [str(i), *map(_summary.mean_and_deviation, *pair)]
            for i, pair in enumerate(zip(found, errors, strict=True))
        ]
        after = []
        weight, error = self.estimates.background_weight, self.background_weight
        if weight is not None and error is not None:
            pair = _summary.mean_and_deviation(float(weight), float(error))
            after.append(f"and a background of weight {pair}")
        return _summary.Summary(
            ["Estimates ± standard errors"], ["k", "weight", *names], rows, "r" * (d + 2), after
        )


def errors_of(estimates: Parameters, matrix: Float[np.ndarray, "q q"]) -> StandardErrors:
    """The standard errors, of the covariances of the estimates."""
    unravel = estimates.ravel()[1]
    # Of rounding, where a parameter cannot move: the weight of a single component.
    errors = unravel(np.sqrt(np.maximum(np.diagonal(matrix), 0)))
    matrix = np.asarray(matrix, estimates.means.dtype)
    return StandardErrors(
        errors.weights, errors.means, errors.covariances, errors.background_weight,
        _checks.as_floating(matrix, "matrix"), estimates,
    )  # fmt: skip


def standard_errors(
    gmm: Any,
    x: Any,
    *,
    method: str = "information",
    weights: Any = None,
    frozen: str | Iterable[str] = (),
) -> StandardErrors:
    r"""Standard errors of the weights, means and covariances of a mixture fitted to x.

    With the observed information $H = -\nabla^2 \log L$ at the maximum of the likelihood and the
    scores $s_i = \nabla \log p(x_i)$, in the leaves, and the derivatives J of the parameters,

    $$\text{information: } J H^{-1} J^\top, \qquad
      \text{sandwich: } J H^{-1} \Big(\sum_i s_i s_i^\top\Big) H^{-1} J^\top.$$

    The inverse is taken in the directions that change the density, see `gmmx.Information`. The
    first is right if the data come from such a mixture. The sandwich is right for the best mixture
    of this kind also where they do not (Huber 1967; White 1982). Both hold for many samples and
    components that are well determined: else prefer `gmmx.bootstrap`.

    **Arguments:**

    - `gmm`: the fitted mixture. Fit it to the end, such as by `gmmx.EMFitter(tol=1e-8,
        max_iter=10_000)`.
    - `x`: the data of the fit, `(n, d)` or `gmmx.Data`.
    - `method`: `"information"` or `"sandwich"`.
    - `weights`: how often each sample counts, `(n,)`; their sum is the number of samples.
    - `frozen`: parameters that were not fitted, as in `gmmx.EMFitter`.

    **Returns:** a `StandardErrors`. Warns (`FitWarning`) where the mixture lies further than a
    tenth of a standard error from the maximum.

    **Raises:** `ValueError` where the mixture is at no maximum of the likelihood, with the
    parameters along which it still rises; and inside `jit`.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; expected 'information' or 'sandwich'.")
    gmm, x, weights = subject(gmm, x, weights)
    if not _checks.is_concrete(gmm, x, weights):
        raise ValueError(
            "standard_errors looks at values, so it cannot stand inside jit, vmap or grad. There, "
            "take gmmx.information."
        )
    frozen = check_frozen(frozen)
    found = information(gmm, x, weights=weights, frozen=frozen)
    directions = found.bases()[0]
    inverse = _inverse(found, directions)
    _warn_of_distance(found, directions, inverse)
    if method == "sandwich":
        program = score_products.at(x.size * gmm.means.size)
        products = np.asarray(program(gmm, x, weights, frozen), np.float64)
        inverse = inverse @ (directions.T @ products @ directions) @ inverse
    moved = np.asarray(found.jacobian, np.float64) @ directions
    matrix = moved @ inverse @ moved.T
    unknown = _unknown(found)
    matrix[unknown] = matrix[:, unknown] = np.nan
    return errors_of(found.parameters, matrix)


def _inverse(found: Information, directions: Float[np.ndarray, "p m"]) -> Float[np.ndarray, "m m"]:
    """(BᵀHB)⁻¹ for the directions B that change the density."""
    matrix = directions.T @ np.asarray(found.matrix, np.float64) @ directions
    diagonal = np.diagonal(matrix)
    # In units in which each direction alone counts the same.
    size = np.sqrt(np.where(diagonal > 0, diagonal, 1))
    values, vectors = np.linalg.eigh(matrix / np.outer(size, size))
    least = values.size * float(np.finfo(found.matrix.dtype).eps)
    if not values[0] > least:  # NaN too
        moved = np.asarray(found.jacobian, np.float64) @ (directions @ (vectors[:, 0] / size))
        flat = found.parameters.ravel()[0]
        share = np.abs(moved) / np.where(flat == 0, 1, np.abs(flat))
        most = ", ".join(found.parameters.name(i) for i in np.argsort(-share)[:3])
        raise ValueError(
            "the mixture is at no maximum of the likelihood of x, or at one that is not isolated: "
            f"the likelihood does not fall along a direction that moves {most}. Fit it to the "
            "end, EMFitter(tol=1e-8, max_iter=10_000), or take fewer components."
        )
    inverse = (vectors / values) @ vectors.T
    return inverse / np.outer(size, size)


def _warn_of_distance(
    found: Information, directions: Float[np.ndarray, "p m"], inverse: Float[np.ndarray, "m m"]
) -> None:
    gradient = np.asarray(found.gradient, np.float64) @ directions
    distance = float(np.sqrt(gradient @ inverse @ gradient))
    if distance > _FAR:
        warnings.warn(
            f"the mixture lies {distance:.2g} standard errors from the maximum of the likelihood "
            "of x, at which they are defined. Fit it to the end, EMFitter(tol=1e-8, "
            "max_iter=10_000), without a prior.",
            FitWarning,
            stacklevel=3,
        )


def _unknown(found: Information) -> Bool[np.ndarray, " q"]:
    """The parameters that move where the density does not, as those of an absent component."""
    jacobian = np.asarray(found.jacobian, np.float64)
    known, lost = (np.linalg.norm(jacobian @ basis, axis=1) for basis in found.bases())
    least = float(np.finfo(found.matrix.dtype).eps) ** _MOVES
    # A weight of zero is at its bound, which has no derivatives.
    parameters = found.parameters
    at_bound = parameters.ravel()[0] == 0
    end = at_bound.size - (parameters.background_weight is not None)
    at_bound[parameters.weights.size : end] = False
    return at_bound | (lost > least * np.hypot(known, lost))
