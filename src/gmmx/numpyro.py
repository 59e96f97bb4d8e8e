"""To and from the mixtures of numpyro. Requires numpyro: `pip install gmmx[numpyro]`."""

import jax.numpy as jnp

from ._batch import MixtureBatch
from ._components import check_gaussian
from ._covariance import structure_named
from ._linalg import inverse_lower
from ._mixture import GaussianMixture

try:
    import numpyro.distributions as dist
except ImportError as error:
    raise ImportError("gmmx.numpyro requires numpyro: pip install gmmx[numpyro]") from error


def to_numpyro(gmm: GaussianMixture | MixtureBatch) -> dist.MixtureSameFamily:
    """The mixture as a numpyro distribution with `MultivariateNormal` components.

    A `gmmx.MixtureBatch` becomes a distribution of the same batch shape. Both are functions of the
    leaves, so gradients pass through them.
    """
    if isinstance(gmm, MixtureBatch):
        roots = gmm.map(lambda one: inverse_lower(one.dense_factors()))
    else:
        check_gaussian(gmm)
        roots = inverse_lower(gmm.dense_factors())
    components = dist.MultivariateNormal(gmm.means, scale_tril=roots)
    # numpyro refuses −∞, the logit of a weight of zero.
    logits = jnp.maximum(gmm.logits, float(jnp.finfo(gmm.means.dtype).min) / 2)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)


def from_numpyro(mixture: dist.MixtureSameFamily) -> GaussianMixture:
    """The `GaussianMixture` of a numpyro mixture of normal distributions.

    Components of type `MultivariateNormal` become full covariances, `Normal(…).to_event(1)`
    diagonal ones, and `Normal` diagonal ones of one feature.

    **Raises:** `ValueError` for components of another type, a batch of mixtures, or a mixture of
    matrices.
    """
    if not isinstance(mixture, dist.MixtureSameFamily):
        raise ValueError(f"Got a {type(mixture).__name__}; expected a MixtureSameFamily.")
    if mixture.batch_shape:
        raise ValueError(
            f"The mixture has batch_shape {mixture.batch_shape}; expected a single mixture. "
            "Convert them one by one, or under jax.vmap."
        )
    if len(mixture.event_shape) > 1:
        raise ValueError(
            f"The mixture has event_shape {mixture.event_shape}; expected a mixture of vectors. "
            "Reshape the parameters of the components to vectors."
        )
    components = mixture.component_distribution
    if isinstance(components, dist.Independent):
        components = components.base_dist
    logits = jnp.asarray(mixture.mixing_distribution.logits)
    k = logits.shape[0]
    if isinstance(components, dist.MultivariateNormal):
        means = jnp.asarray(components.loc)
        name, factors = "full", inverse_lower(jnp.asarray(components.scale_tril))
    elif isinstance(components, dist.Normal):
        means, scale = (
            jnp.broadcast_to(jnp.asarray(value), components.batch_shape).reshape(k, -1)
            for value in (components.loc, components.scale)
        )
        name, factors = "diag", 1 / scale
    else:
        raise ValueError(
            f"The components are of type {type(components).__name__}; expected MultivariateNormal "
            "or Normal."
        )
    means = jnp.broadcast_to(means, (k, means.shape[-1]))
    factors = jnp.broadcast_to(factors, (k, *factors.shape[1:]))
    return GaussianMixture(logits, means, structure_named(name).from_factors(factors))
