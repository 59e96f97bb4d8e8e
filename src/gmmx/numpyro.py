"""To and from numpyro's mixtures. Needs numpyro: `pip install gmmx[numpyro]`."""

import jax.numpy as jnp

from ._covariance import structure_named
from ._linalg import inverse_lower
from ._mixture import GaussianMixture

try:
    import numpyro.distributions as dist
except ImportError as error:
    raise ImportError("gmmx.numpyro needs numpyro: pip install gmmx[numpyro]") from error


def to_numpyro(gmm: GaussianMixture) -> dist.MixtureSameFamily:
    """The mixture as numpyro has it, of `MultivariateNormal` components.

    A function of the leaves: inside a model their gradients are the distribution's.
    """
    roots = inverse_lower(gmm.structure.factors(gmm.n_components, gmm.n_features))
    components = dist.MultivariateNormal(gmm.means, scale_tril=roots)
    # A weight of zero has the logit −∞, which numpyro refuses.
    logits = jnp.maximum(gmm.logits, float(jnp.finfo(gmm.dtype).min) / 2)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)


def from_numpyro(mixture: dist.MixtureSameFamily) -> GaussianMixture:
    """The `GaussianMixture` of a numpyro mixture of normal distributions.

    Components of type `MultivariateNormal` become full covariances, `Normal(…).to_event(1)`
    diagonal ones, and `Normal` diagonal ones of one feature.

    **Raises:** `ValueError` for components of another type, a batch of mixtures, or a mixture of
    matrices.
    """
    if not isinstance(mixture, dist.MixtureSameFamily):
        raise ValueError(f"{type(mixture).__name__} was given; a MixtureSameFamily was wanted.")
    if mixture.batch_shape:
        raise ValueError(
            f"The mixture has batch_shape {mixture.batch_shape}; one mixture was wanted. Convert "
            "them one by one, or under jax.vmap."
        )
    if len(mixture.event_shape) > 1:
        raise ValueError(
            f"The mixture has event_shape {mixture.event_shape}; one of vectors was wanted. "
            "Reshape the components' parameters, so that each is a vector."
        )
    components = mixture.component_distribution
    if isinstance(components, dist.Independent):
        components = components.base_dist
    logits = jnp.asarray(mixture.mixing_distribution.logits)
    k = logits.shape[0]
    if isinstance(components, dist.MultivariateNormal):
        means, factors = (
            jnp.asarray(components.loc),
            inverse_lower(jnp.asarray(components.scale_tril)),
        )
        name, upper = "full", factors.mT
    elif isinstance(components, dist.Normal):
        means, scale = (
            jnp.broadcast_to(jnp.asarray(value), components.batch_shape).reshape(k, -1)
            for value in (components.loc, components.scale)
        )
        name, upper = "diag", 1 / scale
    else:
        raise ValueError(
            f"The components are of type {type(components).__name__}; MultivariateNormal or "
            "Normal was wanted."
        )
    means = jnp.broadcast_to(means, (k, means.shape[-1]))
    upper = jnp.broadcast_to(upper, (k, *upper.shape[1:]))
    return GaussianMixture(logits, means, structure_named(name).from_precisions_cholesky(upper))
