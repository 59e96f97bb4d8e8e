"""Rows under factors of low rank, by what a row leaves of its latent factors.

With y = W(x − μ) and β = Gy, the mean of the latent factors given y,

    yᵀ(I + BBᵀ)⁻¹y = ‖y − Bβ‖² + ‖β‖²,

which is the least value that this has for any β. So nothing cancels, and an error in β counts only
squared; in Woodbury's ‖y‖² − ‖Ay‖² two numbers cancel that are as much larger than the result as
the variance of a feature is than its noise.

A few components are taken at a time, so that an array of rows × features of each stays in the
cache, and no K × d × n array is ever built of a large mixture.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._chunks import rows_per_chunk
from .._covariance.factors import LowRankFactors
from .._linalg import einsum, product
from .form import Form
from .way import AbstractWay
from .whitened import limited


class Seen(NamedTuple):
    """Rows as the components see them."""

    z: Float[Array, "d n"]
    latent: Float[Array, "k r n"]
    """β"""
    distance: Float[Array, "k n"]
    """(x − μ)ᵀΛ(x − μ)"""


class _Parts(NamedTuple):
    """The components, or one, in the frame of the rows."""

    mean: Float[Array, "*k d"]
    diagonal: Float[Array, "*k d"]
    loadings: Float[Array, "*k d r"]
    """F"""
    gains: Float[Array, "*k r d"]
    """GW"""


class LowRank(AbstractWay):
    """Three products of r × d for each row and component. As accurate as the data are, always."""

    form: Form
    parts: _Parts

    fewest_rows: ClassVar[int] = 256
    sure: ClassVar[bool] = True

    @classmethod
    def of(cls, form: Form) -> Self:
        factors = form.factors
        diagonal = factors.diagonal
        loadings = factors.loadings / diagonal[:, :, None]
        gains = factors.latent().gains * diagonal[:, None]
        return cls(form, _Parts(form.means, diagonal, loadings, gains))

    @classmethod
    def size(cls, form: Form, reach: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.zeros_like(reach[0])

    @classmethod
    def columns(cls, k: int, d: int, width: int) -> int:
        # x − μ and what is left of it for one component, and β for all of them.
        return 3 * d + k * (width + 2)

    def terms(self, z: Float[Array, "d n"]) -> Seen:
        # Shortened where a square would overflow.
        largest = jnp.maximum(jnp.max(self.parts.diagonal), 1)
        z = limited(z, jnp.max(jnp.abs(z), axis=0) * jax.lax.stop_gradient(largest))

        def one(part: _Parts) -> tuple[Array, Array]:
            apart = z - part.mean[:, None]
            latent = product(part.gains, apart)
            left = (apart - product(part.loadings, latent)) * part.diagonal[:, None]
            return latent, jnp.sum(left**2, axis=0) + jnp.sum(latent**2, axis=0)

        return Seen(z, *self._each(one, z, self.parts))

    def log_joint(self, terms: Seen) -> Float[Array, "k n"]:
        return self.form.constant[:, None] - terms.distance / 2

    def sums(
        self, terms: Seen, z: Float[Array, "d n"], share: Float[Array, "k n"]
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], LowRankFactors]:
        def one(known: tuple[_Parts, Array, Array]) -> tuple[Array, Array]:
            part, latent, share = known
            apart = terms.z - part.mean[:, None]
            square = part.diagonal**2 * jnp.sum(apart**2 * share, axis=1)
            cross = part.diagonal[:, None] * product(apart, (share * latent).T)
            return square, cross

        scatter = LowRankFactors(*self._each(one, terms.z, (self.parts, terms.latent, share)))
        return jnp.sum(share, axis=1), einsum("kn,dn->kd", share, terms.z), scatter

    def moments(
        self, sums: tuple[Float[Array, " k"], Float[Array, "k d"], LowRankFactors]
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], LowRankFactors]:
        weight, raw, scatter = sums
        return weight, raw - weight[:, None] * self.form.means, scatter

    def _each(self, fn: Callable[..., PyTree], z: Float[Array, "d n"], arrays: PyTree) -> PyTree:
        """`fn` of each component, as many at a time as stay in the cache."""
        k = len(self.form.means)
        at_once = rows_per_chunk(k, 3 * z.size, z.dtype.itemsize, least=1)
        if at_once >= k:
            return jax.vmap(fn)(arrays)
        # A batch of one would be slower than none.
        return jax.lax.map(jax.checkpoint(fn), arrays, batch_size=None if at_once == 1 else at_once)
