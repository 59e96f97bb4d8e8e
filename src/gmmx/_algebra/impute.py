"""What rows leave open, filled in: the mean of the complete row given what was observed of it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import _checks
from .._components import AbstractComponents
from .._data import Data, check_components
from .._engine.observed import over_rows
from . import observed


def impute(
    gmm: AbstractComponents, x: Any, n_samples: int | None, key: PRNGKeyArray | None
) -> Float[Array, "n d"] | Float[Array, "n s d"]:
    """See `GaussianMixture.impute`."""
    x = x if isinstance(x, Data) else Data(x, missing=True)
    check_components(x, gmm.n_components, gmm.n_features)
    gmm, x = _checks.same_dtype(gmm, x)
    if n_samples is None:
        values = over_rows(gmm, x, observed.mean)
    else:
        n_samples = _checks.check_count(n_samples, "n_samples")
        label_key, noise_key = jax.random.split(_checks.as_key(key))
        shape = (x.shape[0], n_samples)
        uniform = jax.random.uniform(label_key, shape, x.dtype)
        noise = jax.random.normal(noise_key, (*shape, gmm.n_features), x.dtype)
        values = over_rows(gmm, x, observed.draw, uniform, noise)
    if x.projection is not None:
        return values
    # What was measured without noise stays as it is, to the last digit.
    exact, seen = x.deviations == 0, x.x
    if n_samples is not None:
        exact, seen = exact[:, None], seen[:, None]
    return jnp.where(exact, seen, values)
