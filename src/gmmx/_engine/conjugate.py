"""A conjugate prior: what it adds to the moments of the E-step, and its density."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._components import AbstractComponents
from .._covariance import AbstractCovariance
from .._linalg import product
from .form import Form
from .frame import Frame
from .moments import Added, Moments


class Conjugate(eqx.Module):
    """Dirichlet weights, and normal–inverse-Wishart means and covariances.

    The relatives of the inverse Wishart for other structures: one for the shared covariance, or an
    inverse gamma for each variance (Fraley & Raftery 2007).
    """

    concentration: Float[Array, ""]
    """α of the weights"""
    shrinkage: Float[Array, ""]
    """κ, how many samples at `mean` a component's mean counts"""
    mean: Float[Array, " d"]
    scale: Float[Array, "d d"] | Float[Array, " d"]
    """Λ₀, or its diagonal"""
    dof: Float[Array, ""]
    """ν"""
    strength: Float[Array, ""]
    """By which all of it is multiplied, where weights were scaled by as much"""

    def more(self, structure: type[AbstractCovariance], k: int) -> Float[Array, ""]:
        """What the prior adds to the number of samples that a covariance is divided by."""
        d = self.mean.size
        # The normal prior of a mean has a covariance of its own in its density.
        means = jnp.where(self.shrinkage > 0, k if structure.shared else 1, 0)
        means = means.astype(self.dof.dtype)
        if structure.isotropic:
            return (self.dof + 2) / d + means
        return self.dof + (2 if structure.axis_aligned else d + 1) + means

    def added(self, gmm: AbstractComponents, form: Form, frame: Frame) -> Added:
        """κ samples at the prior mean, and Λ₀ as a scatter, under the model in hand."""
        structure, k = type(gmm.structure), gmm.means.shape[0]
        weight = jnp.broadcast_to(self.shrinkage, gmm.logits.shape)
        first = self.shrinkage * frame.vectors(self.mean - gmm.means)
        white = form.times(form.factors, first)
        apart = form.outer(white, white) / jnp.where(self.shrinkage > 0, self.shrinkage, 1)
        factors = gmm.factors()
        if factors.ndim == 2:
            scatter = apart + factors**2 * self.scale
        else:
            matrix = self.scale if self.scale.ndim == 2 else jnp.diag(self.scale)
            scatter = apart + product(product(factors, matrix), factors.mT)
        nothing = jnp.zeros_like(self.shrinkage)
        more = self.more(structure, k)
        added = Added(
            Moments(weight, first, scatter, nothing, nothing),
            self.concentration - 1,
            more / k if structure.shared else more,
        )
        return jax.tree.map(lambda leaf: leaf * self.strength, added)

    def log_prob(self, gmm: AbstractComponents) -> Float[Array, ""]:
        """log p(θ), less a constant; of the weights only where they are not zero."""
        structure, k = type(gmm.structure), gmm.means.shape[0]
        factors = gmm.factors()
        apart = gmm.means - self.mean
        if factors.ndim == 2:
            diagonal, white = factors, apart * factors
            trace = jnp.sum(factors**2 * self.scale)
        else:
            diagonal = jnp.diagonal(factors, axis1=1, axis2=2)
            white = product(factors, apart[:, :, None])[:, :, 0]
            matrix = self.scale if self.scale.ndim == 2 else jnp.diag(self.scale)
            trace = jnp.sum(product(factors, matrix) * factors)
        log_weights = jnp.where(gmm.logits == -jnp.inf, 0, gmm.log_weights)
        weights = (self.concentration - 1) * jnp.sum(log_weights)
        log_dets = self.more(structure, k) * jnp.sum(jnp.log(diagonal))
        log_prob = weights + log_dets - (trace + self.shrinkage * jnp.sum(white**2)) / 2
        return log_prob * self.strength
