"""Whitened: y = W_k(z − μ_k), subtracted first. As accurate as the data are, always."""

import math
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._components import AbstractComponents
from .._covariance.factors import Factors
from .._linalg import einsum, whiten_apart
from .._reductions import sum_of_squares
from .form import Form
from .frame import Frame
from .way import AbstractWay


class Whitened(AbstractWay):
    """One product for each component, of rows from which its mean was subtracted."""

    form: Form

    fewest_rows: ClassVar[int] = 64
    sure: ClassVar[bool] = True

    @classmethod
    def of(cls, form: Form) -> Self:
        return cls(form)

    @classmethod
    def size(cls, form: Form, reach: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.zeros_like(reach[0])

    @classmethod
    def columns(cls, k: int, d: int, width: int) -> int:
        # Both z − μ_k and y are held.
        return 2 * k * d

    def terms(self, z: Float[Array, "d n"]) -> Float[Array, "k d n"]:
        z = limited(z, jnp.max(jnp.abs(z), axis=0))
        if self.form.axis_aligned:
            y = (z - self.form.means[:, :, None]) * self.form.factors[:, :, None]
        else:
            y = whiten_apart(self.form.factors, z.T, self.form.means)
        # Where the square of even the nearest component overflows, the order is kept.
        return limited(y, jnp.min(jnp.max(jnp.abs(y), axis=1), axis=0))

    def log_joint(self, terms: Float[Array, "k d n"]) -> Float[Array, "k n"]:
        return self.form.constant[:, None] - sum_of_squares(terms, axis=1) / 2

    def sums(
        self, terms: Float[Array, "k d n"], z: Float[Array, "d n"], share: Float[Array, "k n"]
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Factors]:
        # Not by the roots of the shares, whose derivatives are infinite at zero.
        own = share[:, None] * terms
        if self.form.axis_aligned:
            scatter = jnp.sum(own * terms, axis=2)
        else:
            scatter = einsum("kdn,ken->kde", own, terms)
        if self.form.shared:
            scatter = jnp.sum(scatter, axis=0, keepdims=True)
        return jnp.sum(share, axis=1), einsum("kn,dn->kd", share, z), scatter

    def moments(
        self, sums: tuple[Float[Array, " k"], Float[Array, "k d"], Factors]
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Factors]:
        weight, raw, scatter = sums
        return weight, raw - weight[:, None] * self.form.means, scatter


def limited(values: Float[Array, "*k d n"], sizes: Float[Array, " n"]) -> Float[Array, "*k d n"]:
    """The values, each row shortened so that a sum of squares of this size does not overflow."""
    limit = math.sqrt(float(jnp.finfo(values.dtype).max) / values.shape[-2]) / 2
    sizes = jax.lax.stop_gradient(sizes)
    return values * jnp.where(sizes > limit, limit / sizes, 1)


def log_joint_at(gmm: AbstractComponents, point: Float[Array, " d"]) -> Float[Array, " k"]:
    """log w_k N(x; μ_k, Σ_k) at one point, written out: to call a matrix product costs more."""
    factors = gmm.factors()
    apart = limited(point[:, None], jnp.max(jnp.abs(point), keepdims=True))[:, 0] - gmm.means
    y = factors * apart if factors.ndim == 2 else jnp.sum(factors * apart[:, None, :], axis=2)
    nearest = jnp.min(jnp.max(jnp.abs(y), axis=1), keepdims=True)
    y = limited(y[:, :, None], nearest)[:, :, 0]
    return gmm.log_constant(factors) - jnp.sum(y**2, axis=1) / 2


def whiten(gmm: AbstractComponents, x: Float[Array, "n d"]) -> Float[Array, "k d n"]:
    """y = W_k(x − μ_k) of every row, in the units of x."""
    frame = Frame(jnp.zeros_like(gmm.means[0]), None, None)
    return Whitened.of(Form.of(gmm, frame)).terms(x.T)
