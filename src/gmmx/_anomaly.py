"""A threshold of the log-density, below which a sample counts as an anomaly."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks
from ._components import check_mixture
from ._engine.density import at_points, log_prob_of


def log_prob_threshold(gmm: Any, x: Any, rate: Any, weights: Any = None) -> Float[Array, ""]:
    """The log-density below which at most the share `rate` of the samples lies.

    It is the highest log-density of a sample for which this holds. Anomalies are where
    `gmm.log_prob(new) < threshold`. If these n samples were not used for the fit, a new sample of
    the same distribution lies below with a probability of at most `rate` + 1/(n + 1).

    **Arguments:**

    - `x`: samples without anomalies, `(n, d)`, held out from the fit.
    - `rate`: the rate of false alarms, from 0 to below 1.
    - `weights`: how often each sample counts, `(n,)`.

    **Raises:** `ValueError` if there are no samples, or if `rate` is no such share.
    """
    if _checks.is_concrete(rate) and not 0 <= rate < 1:
        raise ValueError(
            f"rate={rate!r}; expected the share of false alarms, from 0 to below 1. For one sample "
            "in a hundred pass 0.01."
        )
    log_prob = at_points(check_mixture(gmm), x, log_prob_of)
    if log_prob.size == 0:
        raise ValueError(
            f"x has shape {jnp.shape(x)} and holds no samples; expected (n, {gmm.n_features}) with "
            "n ≥ 1. Hold out some rows of the data from the fit, and pass them."
        )
    xp = _checks.array_module(log_prob, jnp.asarray(rate))
    values = xp.asarray(log_prob).ravel()
    order = xp.argsort(values)
    counts = xp.ones(values.size)
    if weights is not None:
        weights = _checks.as_weights(weights, log_prob.shape, log_prob.dtype)
        counts = xp.asarray(weights).ravel().astype(counts.dtype)[order]
    below = xp.cumsum(counts) - counts
    few_enough = below <= xp.asarray(rate, counts.dtype) * xp.sum(counts)
    threshold = xp.max(xp.where(few_enough & (counts > 0), values[order], -xp.inf))
    # NaN is sorted to the end, and would count as a high density.
    return jnp.asarray(xp.where(xp.isnan(values).any(), xp.nan, threshold), log_prob.dtype)
