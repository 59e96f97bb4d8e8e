"""Centred: y = W_kz − W_kμ_k, where one product Wz serves all components. It cancels once."""

from typing import Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._covariance.factors import Factors
from .._linalg import einsum, product
from .._reductions import sum_of_squares
from .form import Form
from .way import AbstractWay

# The largest √S at which y is accurate, with S as in `packed`: see docs/accuracy.md.
_LIMIT = {jnp.dtype("float32"): 3.3e3, jnp.dtype("float64"): 1e5}


class Centred(AbstractWay):
    """One product for all components, from which their whitened means are subtracted.

    For dense factors: axis-aligned ones are whitened at the same cost.
    """

    form: Form
    centres: Float[Array, "k d"]
    """W_kμ_k"""

    @classmethod
    def of(cls, form: Form) -> Self:
        return cls(form, form.times(form.factors, form.means))

    @classmethod
    def size(cls, form: Form, reach: Float[Array, " d"]) -> Float[Array, ""]:
        spread = form.times(jnp.abs(form.factors), form.extents(reach))
        return jnp.sqrt(jnp.max(jnp.sum(spread**2, axis=1))) / _LIMIT[spread.dtype]

    @classmethod
    def columns(cls, k: int, d: int, width: int) -> int:
        return (k + 2) * d

    def terms(self, z: Float[Array, "d n"]) -> Float[Array, "k d n"]:
        (k, d), n, factors = self.form.means.shape, z.shape[1], self.form.factors
        if self.form.shared:
            return product(factors[0], z) - self.centres[:, :, None]
        # −Wμ is one more column of W, which spares a pass over y.
        extended = jnp.concatenate([factors, -self.centres[:, :, None]], axis=2)
        rows = jnp.concatenate([z, jnp.ones_like(z[:1])])
        return product(extended.reshape(k * d, d + 1), rows).reshape(k, d, n)

    def log_joint(self, terms: Float[Array, "k d n"]) -> Float[Array, "k n"]:
        return self.form.constant[:, None] - sum_of_squares(terms, axis=1) / 2

    def sums(
        self, terms: Float[Array, "k d n"], z: Float[Array, "d n"], share: Float[Array, "k n"]
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Array]:
        k, d, n = terms.shape
        own = share[:, None] * terms
        if self.form.shared:
            square = einsum("kdn,ken->de", own, terms)[None]
        else:
            # Σ z y(z, 1)ᵀ is again one product for all components; `moments` makes Σ z yyᵀ of it.
            rows = jnp.concatenate([z, jnp.ones_like(z[:1])])
            square = product(own.reshape(k * d, n), rows.T).reshape(k, d, d + 1)
        return jnp.sum(share, axis=1), einsum("kn,dn->kd", share, z), square

    def moments(
        self, sums: tuple[Float[Array, " k"], Float[Array, "k d"], Array]
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Factors]:
        weight, raw, square = sums
        first = raw - weight[:, None] * self.form.means
        if self.form.shared:
            return weight, first, square
        # Σ z y(Wz − Wμ)ᵀ with the same y in both sums. From W Σ z(z − μ) instead of Σ z y, the two
        # would be rounded apart, and their difference be off by ε·S.
        extended = jnp.concatenate([self.form.factors, -self.centres[:, :, None]], axis=2)
        return weight, first, product(square, extended.mT)
