"""The latent factors of covariances of low rank, given points."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _checks
from .._chunks import map_rows, rows_per_chunk
from .._components import AbstractComponents
from .._linalg import product
from .._rows import by_rows


def latent_factors(
    gmm: AbstractComponents, x: Any
) -> tuple[Float[Array, "*batch k r"], Float[Array, "k r r"]]:
    """See `GaussianMixture.latent_factors`."""
    if gmm.structure.n_latent is None:
        raise ValueError(
            f"{gmm.structure.covariance_type!r} covariances have no latent factors; expected "
            "'low_rank' or a relative of it: gmmx.initialize(x, 3, 'low_rank', rank=5)."
        )
    x = _checks.check_points(x, gmm.n_features, gmm.dtype)
    gmm = _checks.in_dtype(gmm, x.dtype)
    means = by_rows(lambda x: _means(gmm, x), x.shape[:-1], x, gmm)
    return means, gmm.factors().latent().covariance


@jax.jit
def _means(gmm: AbstractComponents, x: Float[Array, "n d"]) -> Float[Array, "n k r"]:
    """G_kW_k(x − μ_k)"""
    factors = gmm.factors()
    gains = factors.latent().gains * factors.diagonal[:, None]

    def rows(x: Float[Array, "m d"]) -> Float[Array, "m k r"]:
        return jnp.moveaxis(product(gains, x.T - gmm.means[:, :, None]), 2, 0)

    return map_rows(rows, x, rows_per_chunk(len(x), 2 * gmm.means.size, x.dtype.itemsize))
