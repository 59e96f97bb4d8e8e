"""Layers of a network that end in a mixture."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from . import _checks
from ._batch import MixtureBatch
from ._covariance import structure_named
from ._mixture import GaussianMixture
from ._raw import MIN_SCALE, raw_size

# Of so many draws of the first means the one is taken whose nearest two lie furthest apart.
_DRAWS = 32
# At the start the mixture has about the mean and the variance of data in units of its deviations.
_SPREAD, _SCALE = 0.85, 0.5


class MixtureDensityHead(eqx.Module):
    r"""The last layer of a mixture density network (Bishop 1994): p(y | h) as a mixture.

    $$p(y | h) = \sum_k w_k(h)\, \mathcal{N}(y; \mu_k(h), \Sigma_k(h))$$

    A linear layer maps h to the numbers of which `MixtureBatch.from_raw` makes mixtures. It starts
    as a layer whose mixtures are, up to their dependence on h, one that suits targets of mean zero
    and variance one: its components lie apart and have deviations of one half. So standardise the
    targets, or set the bias to `gmm.to_raw(min_scale=…)` of a mixture that was fitted to them.

    **Arguments:**

    - `in_size`: the size of h.
    - `n_components`: K.
    - `n_features`: d, the size of y.
    - `covariance_type`: any structure.
    - `min_scale`: the floor of the scales, see `GaussianMixture.from_raw`. It bounds the likelihood
        of the training data: without it one target that is met exactly would have any density.
    - `dtype`: of the parameters; JAX's default float type by default.
    - `key`: for the start.

    **Raises:** `ValueError` where a size is not positive, or `min_scale` is not.
    """

    weight: Float[Array, "size in_size"]
    bias: Float[Array, " size"]
    n_components: int = eqx.field(static=True)
    n_features: int = eqx.field(static=True)
    covariance_type: str = eqx.field(static=True)
    min_scale: float = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        n_components: int,
        n_features: int,
        covariance_type: str = "full",
        *,
        min_scale: float = MIN_SCALE,
        dtype: Any = None,
        key: PRNGKeyArray,
    ):
        in_size = _checks.check_count(in_size, "in_size")
        size = raw_size(n_components, n_features, covariance_type)
        dtype = jnp.zeros((), dtype).dtype
        weight_key, means_key = jax.random.split(key)
        bound = in_size**-0.5
        self.weight = jax.random.uniform(weight_key, (size, in_size), dtype, -bound, bound)
        means = _SPREAD * _apart(n_components, n_features, dtype, means_key)
        scale = jnp.full(n_features, min_scale + _SCALE, dtype)
        structure = structure_named(covariance_type).from_scale(scale, n_components)
        gmm = GaussianMixture(jnp.zeros(n_components, dtype), means, structure)
        self.bias = gmm.to_raw(min_scale=min_scale)
        self.n_components, self.n_features = n_components, n_features
        self.covariance_type, self.min_scale = covariance_type, float(min_scale)

    def __call__(self, h: Float[Array, "*batch in_size"]) -> GaussianMixture | MixtureBatch:
        """The mixture of one h `(in_size,)`, or a `gmmx.MixtureBatch` of as many as there are."""
        in_size = self.weight.shape[1]
        if jnp.ndim(h) == 0 or h.shape[-1] != in_size:
            raise ValueError(f"h has shape {jnp.shape(h)}; expected (*batch, {in_size}).")
        raw = h @ self.weight.T + self.bias
        mixture = GaussianMixture if raw.ndim == 1 else MixtureBatch
        return mixture.from_raw(
            raw, self.n_components, self.n_features, self.covariance_type, min_scale=self.min_scale
        )

    def loss(
        self, h: Float[Array, "*batch in_size"], y: Float[Array, "*batch d"], weights: Any = None
    ) -> Float[Array, ""]:
        """The mean of −log p(y | h), in nats a row.

        **Arguments:**

        - `weights`: how often each row counts, `(*batch,)`. Where it is zero, h and y may hold
            anything, NaN too.
        """
        if weights is None:
            return -jnp.mean(self(h).log_prob(y))
        weights = _checks.as_weights(weights, jnp.shape(h)[:-1], h.dtype)
        # Zeros before anything is computed: the derivative of what is left out later is NaN too.
        h, y = (jnp.where(weights[..., None] > 0, v, 0) for v in (h, y))
        return -jnp.sum(weights * self(h).log_prob(y)) / jnp.sum(weights)


def _apart(k: int, d: int, dtype: Any, key: PRNGKeyArray) -> Float[Array, "k d"]:
    """Normal means of which no two are close."""
    draws = jax.random.normal(key, (_DRAWS, k, d), dtype)
    square = jnp.sum((draws[:, :, None] - draws[:, None]) ** 2, axis=-1)
    square = jnp.where(jnp.eye(k, dtype=bool), jnp.inf, square)
    return draws[jnp.argmax(jnp.min(square, axis=(1, 2)))]
