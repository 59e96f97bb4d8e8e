"""The variance floor: what a fit adds to variances, and which components rest on it alone."""

from typing import Any, Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._components import AbstractComponents
from .._covariance.factors import trace_of
from .._data import Samples
from .frame import mean_and_variance

RELATIVE = 1e-8
"""The floor by default, as a part of each feature's variance"""

# The least floor, in squares of ε: a component as narrow as that is one point to rounding.
_LEAST = 2**12
# A floor of more than this part of a feature's variance is there to smooth.
_SMOOTHING = 1e-3
# A component's variances may come from the floor to this part of one direction.
_MOST = 0.5


class Floor(eqx.Module):
    """What is added to the variance of each feature."""

    variances: Float[Array, " d"]
    """F, in the squared units of the data"""
    common: Float[Array, ""]
    """tr F(S + F)⁻¹ of all rows as one component: one for each constant feature"""
    smoothing: Bool[Array, ""]
    """Whether it is so large that it shapes the clusters, and does not only hold them open"""

    @classmethod
    def of(cls, reg_covar: Any, x: Samples, weights: Float[Array, " n"] | None) -> Self:
        """The floor of a fit to these rows.

        **Arguments:**

        - `reg_covar`: as a part of each feature's variance `()`, or the variances `(d,)`.
        """
        return cls.of_variances(reg_covar, mean_and_variance(x, weights)[1])

    @classmethod
    def of_variances(cls, reg_covar: Any, square: Float[Array, " d"]) -> Self:
        """The floor beside these variances of the features."""
        variances = absolute(reg_covar, square)
        smoothing = jnp.any((square > 0) & (variances > _SMOOTHING * square))
        return cls(variances, jnp.sum(variances / (square + variances)), smoothing)

    def shares(self, gmm: AbstractComponents) -> Float[Array, " k"]:
        """tr FΛ_k: in how many directions a component has no variance but the floor."""
        return jnp.broadcast_to(trace_of(gmm.factors(), self.variances), gmm.logits.shape)

    def spurious(
        self, gmm: AbstractComponents, count: Float[Array, ""], frozen: frozenset[str]
    ) -> Bool[Array, " k"]:
        """Which components are collapses of the fit, and no clusters.

        In one direction at least half of such a component's variance is the floor, or its samples
        are fewer than its covariance takes to be regular.

        **Arguments:**

        - `count`: the number of samples.
        - `frozen`: what was not fitted. Covariances that were given are no collapse.
        """
        few = gmm.weights * count < type(gmm.structure).fewest_samples(gmm.n_features) - 0.5
        on_floor = ~self.smoothing & (self.shares(gmm) - self.common >= _MOST)
        fitted = "covariances" not in frozen
        return (few | on_floor) & (gmm.weights > 0) & fitted


def absolute(reg_covar: Any, square: Float[Array, " d"]) -> Float[Array, " d"]:
    """The variances to add, of `reg_covar` and the features' variances.

    At least those of rounding. A constant feature counts as of variance one: no unit is better
    than another for it.
    """
    dtype = square.dtype
    reg_covar = jnp.asarray(reg_covar, dtype)
    if reg_covar.shape not in ((), square.shape):
        raise ValueError(
            f"reg_covar has shape {reg_covar.shape}; expected one number, a part of each feature's "
            f"variance, or one variance for each feature, {square.shape}."
        )
    square = jnp.where(square > 0, square, 1)
    least = _LEAST * float(jnp.finfo(dtype).eps) ** 2 * square
    return jnp.maximum(reg_covar if reg_covar.ndim else reg_covar * square, least)
