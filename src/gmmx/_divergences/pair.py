"""What all comparisons of two mixtures begin with."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _checks
from .._mixture import GaussianMixture


def matched(p: GaussianMixture, q: GaussianMixture) -> tuple[GaussianMixture, GaussianMixture]:
    """The two mixtures in the wider of their dtypes.

    **Raises:** `ValueError` where they are not of the same space.
    """
    if p.n_features != q.n_features:
        raise ValueError(
            f"p has {p.n_features} features and q has {q.n_features}; two mixtures of the same "
            "features were wanted. Take the marginal of one of them first?"
        )
    p, q = _checks.same_dtype(p, q)
    return p, q


def factors(gmm: GaussianMixture) -> Float[Array, "k d d"]:
    """The dense factors W_k of the precisions."""
    return gmm.structure.factors(gmm.n_components, gmm.n_features)


def half_log_det(gmm: GaussianMixture) -> Float[Array, " k"]:
    """log|W_k|, for every component also where they share it."""
    return jnp.broadcast_to(gmm.structure.half_log_det(gmm.n_features), (gmm.n_components,))
