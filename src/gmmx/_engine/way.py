"""What a way to log-densities and moments is."""

import abc
from typing import ClassVar, Self

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from .._covariance.factors import AnyFactors
from .form import Form


class AbstractWay(eqx.Module):
    """A way to log w_k N(x; μ_k, Σ_k) and to the sums of the M-step, prepared for one mixture.

    The same log-joints serve densities and the E-step. A feature is a row of every array, so that
    products read along rows of z.
    """

    fewest_rows: ClassVar[int] = 256
    """Rows below which a chunk does not pay"""
    sure: ClassVar[bool] = False
    """Whether it is always accurate"""

    @classmethod
    @abc.abstractmethod
    def of(cls, form: Form) -> Self:
        """What does not depend on the rows, computed once for a pass."""

    @classmethod
    @abc.abstractmethod
    def size(cls, form: Form, reach: Float[Array, " d"]) -> Float[Array, ""]:
        """The size of the terms that cancel, in units of the largest that is accurate.

        Above one, or NaN, this way is not accurate for rows of this reach.
        """

    @classmethod
    @abc.abstractmethod
    def columns(cls, k: int, d: int, width: int) -> int:
        """Numbers of working set for each row; `width` is that of packed features."""

    @abc.abstractmethod
    def terms(self, z: Float[Array, "d n"]) -> PyTree:
        """What log-joints and sums both read: y = W_k(z − μ_k), or features of z."""

    @abc.abstractmethod
    def log_joint(self, terms: PyTree) -> Float[Array, "k n"]:
        """log w_k N(x; μ_k, Σ_k)"""

    @abc.abstractmethod
    def sums(self, terms: PyTree, z: Float[Array, "d n"], share: Float[Array, "k n"]) -> PyTree:
        """What `moments` takes, additive over rows; `share` is z_ik times the sample weights."""

    @abc.abstractmethod
    def moments(self, sums: PyTree) -> tuple[Float[Array, " k"], Float[Array, "k d"], AnyFactors]:
        """n_k, Σ_i z_ik(z_i − μ_k) and the scatter Σ_i z_ik y yᵀ."""
