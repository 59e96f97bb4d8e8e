"""Mixtures as flowjax distributions. Requires flowjax: `pip install gmmx[flowjax]`."""

from typing import ClassVar

from jaxtyping import Array, Float, PRNGKeyArray

from ._mixture import GaussianMixture

try:
    from flowjax.distributions import AbstractDistribution
except ImportError as error:
    raise ImportError("gmmx.flowjax requires flowjax: pip install gmmx[flowjax]") from error


class MixtureDistribution(AbstractDistribution):
    """A `GaussianMixture` as a flowjax distribution, for instance the `base_dist` of a flow.

    The leaves of the mixture are trained with the flow. Draws are pathwise, so losses over samples
    have the right gradients in all leaves, the weights included.
    """

    gmm: GaussianMixture
    cond_shape: ClassVar[None] = None  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`(d,)`"""
        return (self.gmm.n_features,)

    def _log_prob(self, x: Float[Array, " d"], condition: Array | None = None) -> Float[Array, ""]:
        return self.gmm.log_prob(x)

    def _sample(self, key: PRNGKeyArray, condition: Array | None = None) -> Float[Array, " d"]:
        return self.gmm.sample(1, key=key, pathwise=True)[0]
