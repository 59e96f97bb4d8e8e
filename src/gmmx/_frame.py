"""Coordinates in which the data, or the model, look round: z = L⁻¹(x − c).

Packed moments cancel where the data reach far in units of a component's width. Seen from their
midst, and in the axes of their own covariance, they reach least.
"""

from typing import TYPE_CHECKING, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._chunks import fold, rows_per_chunk
from ._linalg import einsum, inverse_lower, inverse_root

if TYPE_CHECKING:
    from ._mixture import GaussianMixture


class Frame(eqx.Module):
    """x = c + Lz. Where the structure does not survive a rotation, L is the identity: None."""

    centre: Float[Array, " d"]
    root: Float[Array, "d d"] | None
    inverse: Float[Array, "d d"] | None

    @classmethod
    def of_data(cls, gmm: "GaussianMixture", x: Float[Array, "n d"], turned: bool) -> Self:
        """The data's own mean and, if `turned`, covariance, where `gmm` has a use for it."""
        centre = jnp.mean(x, axis=0)
        if not (turned and gmm.structure.closed_under_linear_maps):
            return cls(centre, None, None)
        # Through the correlations, and these kept from being singular: the frame need not be
        # exact, only near.
        deviation = jnp.sqrt(jnp.mean((x - centre) ** 2, axis=0))
        deviation = jnp.where(deviation > 0, deviation, 1)

        def square(block: Array, present: Array | None, _: None) -> Array:
            z = (block - centre) / deviation
            return einsum("nd,ne->de", z if present is None else z * present[:, None], z)

        n, d = x.shape
        correlation = fold(square, x, None, rows_per_chunk(n, 2 * d, x.dtype.itemsize)) / n
        floor = 1e2 * float(jnp.finfo(x.dtype).eps) * jnp.eye(d, dtype=x.dtype)
        inverse = inverse_root(correlation + floor) / deviation
        return cls(centre, inverse_lower(inverse), inverse)

    @classmethod
    def of_model(cls, gmm: "GaussianMixture", turned: bool) -> Self:
        """The mixture's mean and, if `turned`, the heaviest component's axes.

        Takes no part in any gradient, since no value depends on the frame it is found in.
        """
        gmm = jax.lax.stop_gradient(gmm)
        centre = gmm.mean()
        if not (turned and gmm.structure.closed_under_linear_maps):
            return cls(centre, None, None)
        factors = gmm.structure.factors(gmm.n_components, gmm.n_features)
        inverse = factors[jnp.argmax(gmm.logits)]
        return cls(centre, inverse_lower(inverse), inverse)

    def apply(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """z = L⁻¹(x − c)"""
        x = x - self.centre
        return x if self.inverse is None else einsum("nd,ed->ne", x, self.inverse)

    def model(self, gmm: "GaussianMixture") -> "GaussianMixture":
        """The mixture of z, up to its constant: the density of z is |L| times that of x."""
        means, structure = self.apply(gmm.means), gmm.structure
        if self.root is not None:
            structure = structure.in_frame(self.root)
        return eqx.tree_at(lambda g: (g.means, g.structure), gmm, (means, structure))

    def vectors_back(self, z: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """Lz: differences of points, in the units of x."""
        return z if self.root is None else einsum("ke,de->kd", z, self.root)
