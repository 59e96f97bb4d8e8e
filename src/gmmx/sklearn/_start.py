"""The start of a fit: memberships, drawn as scikit-learn draws them, and one M-step."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.utils import check_array

from .._covariance import AbstractCovariance
from .._mixture import GaussianMixture

ILL_DEFINED = (
    "Fitting the mixture model failed because some components have ill-defined empirical "
    "covariance (for instance caused by singleton or collapsed samples). Try to decrease the "
    "number of components, increase reg_covar, or scale the input data."
)

_Data = Float[np.ndarray, "n d"]
_Weights = Float[np.ndarray, " n"] | None
_Memberships = Float[np.ndarray, "n k"]


def _by_kmeans(x: _Data, weights: _Weights, k: int, random: np.random.RandomState) -> _Memberships:
    kmeans = KMeans(k, n_init=cast(Any, 1), random_state=random)
    labels = cast(np.ndarray, kmeans.fit(x, sample_weight=weights).labels_)
    return _one_hot(np.arange(len(x)), labels, k, x)


def _by_seeds(x: _Data, weights: _Weights, k: int, random: np.random.RandomState) -> _Memberships:
    _, rows = kmeans_plusplus(x, k, sample_weight=weights, random_state=random)
    return _one_hot(rows, np.arange(k), k, x)


def _at_random(x: _Data, weights: _Weights, k: int, random: np.random.RandomState) -> _Memberships:
    draws = random.uniform(size=(len(x), k)).astype(x.dtype)
    return draws / draws.sum(axis=1, keepdims=True)


def _from_data(x: _Data, weights: _Weights, k: int, random: np.random.RandomState) -> _Memberships:
    chances = None if weights is None else weights / weights.sum()
    rows = random.choice(len(x), size=k, replace=False, p=chances)
    return _one_hot(rows, np.arange(k), k, x)


def _one_hot(rows: np.ndarray, columns: np.ndarray, k: int, x: _Data) -> _Memberships:
    memberships = np.zeros((len(x), k), x.dtype)
    memberships[rows, columns] = 1
    return memberships


METHODS: dict[str, Callable[[_Data, _Weights, int, np.random.RandomState], _Memberships]] = {
    "kmeans": _by_kmeans,
    "k-means++": _by_seeds,
    "random": _at_random,
    "random_from_data": _from_data,
}


class Given(NamedTuple):
    """The parts of a start that the user gives; those that are None are estimated."""

    logits: Float[Array, " k"] | None
    means: Float[Array, "k d"] | None
    structure: AbstractCovariance | None

    @classmethod
    def checked(
        cls,
        structure: type[AbstractCovariance],
        shape: tuple[int, int],
        dtype: np.dtype,
        weights: object,
        means: object,
        precisions: object,
    ) -> "Given":
        """From `weights_init`, `means_init` and `precisions_init`.

        **Arguments:**

        - `shape`: (k, d).

        **Raises:** `ValueError` if they are not valid.
        """
        # By scikit-learn's names and in its words, which programs may match.
        precision = f"{structure.covariance_type} precision"
        weights = _of_shape(weights, "weights", shape[:1], dtype)
        means = _of_shape(means, "means", shape, dtype)
        if precisions is not None and structure.n_latent is not None:
            raise ValueError(
                f"precisions_init has no form for covariance_type={structure.covariance_type!r}; "
                "expected None."
            )
        precisions = _of_shape(precisions, precision, structure.natural_shape(*shape), dtype)
        if weights is not None:
            _check_distribution(weights)
        try:
            factors = None if precisions is None else structure.from_precisions(precisions)
        except ValueError as error:
            kind = "positive" if structure.axis_aligned else "symmetric, positive-definite"
            raise ValueError(f"'{precision}' should be {kind}") from error
        return cls(None if weights is None else jnp.log(weights), means, factors)


def _of_shape(
    value: object, name: str, shape: tuple[int, ...], dtype: np.dtype
) -> Float[Array, "..."] | None:
    if value is None:
        return None
    check: Any = check_array
    array = check(value, dtype=dtype, ensure_2d=False, allow_nd=True, input_name=name)
    if array.shape != shape:
        raise ValueError(
            f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}"
        )
    return jnp.asarray(array)


def _check_distribution(weights: Float[Array, " k"]) -> None:
    if bool(jnp.any((weights < 0) | (weights > 1))):
        raise ValueError(
            "The parameter 'weights' should be in the range [0, 1], but got max value "
            f"{weights.min():.5f}, min value {weights.max():.5f}"
        )
    if abs(1 - weights.sum()) > (1e-6 if weights.dtype == np.float32 else 1e-8):
        raise ValueError(
            f"The parameter 'weights' should be normalized, but got sum(weights) = "
            f"{weights.sum():.5f}"
        )


def start(
    x: _Data,
    weights: _Weights,
    structure: type[AbstractCovariance],
    n_components: int,
    method: str,
    random: np.random.RandomState,
    reg_covar: float,
    given: Given,
) -> GaussianMixture:
    """The mixture to start from: the given parts, and the others by one M-step."""
    parts = {name: part for name, part in given._asdict().items() if part is not None}
    if len(parts) < len(given):
        estimated = GaussianMixture.from_responsibilities(
            x,
            METHODS[method](x, weights, n_components, random),
            structure.covariance_type,
            rank=structure.n_latent,
            weights=weights,
            # scikit-learn's floor is in the squared units of the data.
            reg_covar=np.full(x.shape[1], reg_covar),
        )
        parts = {**{name: getattr(estimated, name) for name in given._fields}, **parts}
    gmm = GaussianMixture(**parts)
    check_defined(gmm, x)
    return gmm


def check_defined(gmm: GaussianMixture, x: _Data) -> None:
    """Refuse, in scikit-learn's words, a variance that is nothing but rounding.

    That of a feature given those before it, as the Cholesky factors have it.
    """
    if gmm.structure.n_latent is not None:
        # Its noise may be small where the factors explain a feature.
        return
    factors = np.asarray(gmm.factors())
    pivots = factors if factors.ndim == 2 else np.diagonal(factors, axis1=1, axis2=2)
    eps, d = float(np.finfo(x.dtype).eps), x.shape[1]
    with np.errstate(divide="ignore", over="ignore"):
        defined = pivots**-2.0 > np.maximum(64 * d * eps * x.var(axis=0), 2**13 * eps**2)
    if not defined.all():
        raise ValueError(ILL_DEFINED)
