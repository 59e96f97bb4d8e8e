"""The gains G of a conditional mean μ + G(y − ν) where they are of low rank."""

import equinox as eqx
from jaxtyping import Array, Float

from .._grouped import grouped_product
from .._linalg import einsum


class LowRankGains(eqx.Module):
    """G_k = D_k + L_kR_k: what is known of each feature itself, and by the latent factors."""

    diagonal: Float[Array, "k d"] | None
    """D_k; None where y holds other features than x"""
    left: Float[Array, "k d r"]
    right: Float[Array, "k r m"]

    def times(self, apart: Float[Array, "*batch k m"]) -> Float[Array, "*batch k d"]:
        """G_kv_k"""
        latent = einsum("krm,...km->...kr", self.right, apart)
        moved = einsum("kdr,...kr->...kd", self.left, latent)
        return moved if self.diagonal is None else moved + self.diagonal * apart

    def total(self, apart: Float[Array, "n k m"]) -> Float[Array, "n d"]:
        """Σ_k G_kv_k"""
        latent = einsum("krm,nkm->nkr", self.right, apart)
        moved = einsum("kdr,nkr->nd", self.left, latent)
        return (
            moved if self.diagonal is None else moved + einsum("nkd,kd->nd", apart, self.diagonal)
        )

    def grouped(self, apart: Float[Array, "n m"], labels: Array) -> Float[Array, "n d"]:
        """G_kv for each row v of component k"""
        latent = grouped_product(apart, self.right, labels)
        moved = grouped_product(latent, self.left, labels)
        return moved if self.diagonal is None else moved + self.diagonal[labels] * apart
