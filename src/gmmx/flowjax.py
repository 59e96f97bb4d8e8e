"""A mixture as a flowjax distribution. Needs flowjax: `pip install gmmx[flowjax]`."""

from typing import ClassVar

from jaxtyping import Array, Float, PRNGKeyArray

from ._mixture import GaussianMixture

try:
    from flowjax.distributions import AbstractDistribution
except ImportError as error:
    raise ImportError("gmmx.flowjax needs flowjax: pip install gmmx[flowjax]") from error


class MixtureDistribution(AbstractDistribution):
    """A `GaussianMixture` wherever flowjax takes a distribution, for instance a `base_dist`.

    The mixture's leaves are trained along with the flow. Draws are pathwise, so that losses over
    samples of the flow have the right gradients, those of the weights included.
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
