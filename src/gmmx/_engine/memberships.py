"""The M-step of memberships that are given, in place of those of a model."""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._chunks import chunk_of, fold, rows_per_chunk
from .._components import Components
from .._covariance import AbstractCovariance
from .._linalg import einsum, log_weight
from .floor import absolute
from .form import Form
from .frame import Frame
from .low_rank import LowRank
from .moments import fit_structure

# Steps of EM that turn loadings that fit no data into those of clusters, about.
_STEPS = 8


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


class Members(eqx.Module):
    """Rows and their memberships, for covariances of low rank: clusters without d × d scatters."""

    x: Float[Array, "n d"]
    memberships: Float[Array, "n k"]
    """Weighted if the rows are"""

    def fit(
        self,
        mixture: type[Components],
        structure: type[AbstractCovariance],
        reg_covar: Float[Array, "*d"],
    ) -> Components:
        """The mixture of these memberships, by some steps from loadings that fit no data.

        A component without members has the mean and the deviations of all rows, at weight zero.
        """
        x, memberships = self.x, self.memberships
        (n, d), k = x.shape, memberships.shape[1]
        frame = Frame.of_data(x, jnp.sum(memberships, axis=1), turned=False)
        weight, scale = jnp.sum(memberships, axis=0), frame.root
        assert scale is not None  # what is not turned is scaled
        first = einsum("nk,nd->kd", memberships, frame.apply(x))
        means = first / jnp.where(weight > 0, weight, 1)[:, None]
        floor, nothing = absolute(reg_covar, scale**2), jnp.zeros_like(weight)
        rows = rows_per_chunk(n, LowRank.columns(k, d, 0), x.dtype.itemsize, LowRank.fewest_rows)

        def step(_: Array, fitted: AbstractCovariance) -> AbstractCovariance:
            factors = fitted.factors(k, d)
            way = LowRank.of(Form(nothing, means, frame.factors(factors)))

            def chunk(i: Array | int, present: Array | None) -> PyTree:
                z, share = frame.apply(chunk_of(x, i, rows)).T, chunk_of(memberships, i, rows).T
                share = share if present is None else share * present
                return way.sums(way.terms(z), z, share)

            _, _, scatter = way.moments(fold(chunk, n, rows, x))
            return fit_structure(structure, factors, scatter, weight, floor)

        fitted = jax.lax.fori_loop(0, _STEPS, step, structure.from_scale(scale, k))
        means = frame.centre + frame.vectors_back(means)
        return mixture(log_weight(weight), means, fitted)


def clusters_of(
    x: Float[Array, "n d"], memberships: Float[Array, "n k"], structure: type[AbstractCovariance]
) -> Clusters | Members:
    """What `fit` needs of memberships, weighted if the rows are, for this structure."""
    if structure.n_latent is not None:
        return Members(x, memberships)
    return Clusters.of(x, memberships, structure.axis_aligned)


@eqx.filter_jit
def fit_memberships(
    mixture: type[Components],
    structure: type[AbstractCovariance],
    x: Float[Array, "n d"],
    memberships: Float[Array, "n k"],
    reg_covar: Float[Array, "*d"],
) -> Components:
    """The mixture of greatest expected likelihood given memberships."""
    return clusters_of(x, memberships, structure).fit(mixture, structure, reg_covar)
