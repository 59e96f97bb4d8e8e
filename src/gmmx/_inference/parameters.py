"""The parameters of a mixture as people read them, apart from the leaves that are trained."""

from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._abstract_mixture import AbstractMixture


class Parameters(eqx.Module):
    """Weights, means and covariances, or something of each of them, such as an end of an interval.

    The order of all of them as a vector is that of the fields, each by rows.
    """

    weights: Float[Array, "*batch k"]
    """w_k"""
    means: Float[Array, "*batch k d"]
    """μ_k"""
    covariances: Array
    """Σ_k in the shape of the structure, see `GaussianMixture.covariances`"""
    background_weight: Float[Array, "*batch"] | None = None
    """w_0; None without a background"""

    @classmethod
    def of(cls, gmm: AbstractMixture) -> Self:
        """Those of a mixture."""
        log_weight = gmm.log_background_weight
        behind = None if log_weight is None else jnp.exp(log_weight)
        return cls(gmm.weights, gmm.means, gmm.covariances, behind)

    def ravel(self) -> tuple[np.ndarray, Callable[[Any], "Parameters"]]:
        """All of them as a vector in float64, and the way back."""
        flat, unravel = ravel_pytree(self)
        return np.asarray(flat, np.float64), lambda v: unravel(jax.device_put(v.astype(flat.dtype)))

    def name(self, place: int | np.integer) -> str:
        """What stands at a place of the vector: `means[0, 1]`."""
        for name in ("weights", "means", "covariances"):
            value = getattr(self, name)
            if place < value.size:
                index = ", ".join(str(int(i)) for i in np.unravel_index(place, value.shape))
                return f"{name}[{index}]" if index else name
            place -= value.size
        return "background_weight"
