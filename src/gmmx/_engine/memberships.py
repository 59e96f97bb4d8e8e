"""The M-step of memberships that are given, in place of those of a model."""

from typing import Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._chunks import chunk_of, fold, rows_per_chunk
from .._components import Components
from .._covariance import AbstractCovariance
from .._linalg import einsum, log_weight
from .floor import absolute
from .frame import Frame
from .moments import fit_structure


class Clusters(eqx.Module):
    """Weight, mean and scatter of each cluster, in units of the deviations of all rows."""

    frame: Frame
    weight: Float[Array, " k"]
    means: Float[Array, "k d"]
    """Those of all rows for a cluster without members"""
    scatter: Float[Array, "k d d"] | Float[Array, "k d"]
    """Σ_i z_ik (x_i − μ_k)(x_i − μ_k)ᵀ, or its diagonal"""

    @classmethod
    def of(cls, x: Float[Array, "n d"], memberships: Float[Array, "n k"], diagonal: bool) -> Self:
        """The clusters of memberships, weighted if the rows are."""
        (n, d), k = x.shape, memberships.shape[1]
        frame = Frame.of_data(x, jnp.sum(memberships, axis=1), turned=False)
        weight = jnp.sum(memberships, axis=0)
        # In two passes: about the means of the clusters nothing large cancels.
        first = einsum("nk,nd->kd", memberships, frame.apply(x))
        means = first / jnp.where(weight > 0, weight, 1)[:, None]
        rows = rows_per_chunk(n, 2 * k * d, x.dtype.itemsize)

        def chunk(i: Array | int, present: Array | None) -> Array:
            z, share = frame.apply(chunk_of(x, i, rows)).T, chunk_of(memberships, i, rows).T
            share = share if present is None else share * present
            apart = z - means[:, :, None]
            if diagonal:
                return einsum("kn,kdn->kd", share, apart**2)
            return einsum("kdn,ken->kde", share[:, None] * apart, apart)

        return cls(frame, weight, means, fold(chunk, n, rows, x))

    def fit(
        self,
        mixture: type[Components],
        structure: type[AbstractCovariance],
        reg_covar: Float[Array, "*d"],
    ) -> Components:
        """The mixture of greatest expected likelihood.

        A component without members has the mean and the deviations of all rows, at weight zero.
        """
        scatter, d, scale = self.scatter, self.means.shape[1], self.frame.root
        assert scale is not None  # what is not turned is scaled
        if structure.axis_aligned and scatter.ndim == 3:
            scatter = jnp.diagonal(scatter, axis1=1, axis2=2)
        scatter = jnp.sum(scatter, axis=0, keepdims=True) if structure.shared else scatter
        factors = jnp.broadcast_to(1 / scale, (scatter.shape[0], d))
        if not structure.axis_aligned:
            factors = factors[:, :, None] * jnp.eye(d, dtype=factors.dtype)
        fitted = fit_structure(
            structure, factors, scatter, self.weight, absolute(reg_covar, scale**2)
        )
        means = self.frame.centre + self.frame.vectors_back(self.means)
        return mixture(log_weight(self.weight), means, fitted)


@eqx.filter_jit
def fit_memberships(
    mixture: type[Components],
    structure: type[AbstractCovariance],
    x: Float[Array, "n d"],
    memberships: Float[Array, "n k"],
    reg_covar: Float[Array, "*d"],
) -> Components:
    """The mixture of greatest expected likelihood given memberships."""
    clusters = Clusters.of(x, memberships, structure.axis_aligned)
    return clusters.fit(mixture, structure, reg_covar)
