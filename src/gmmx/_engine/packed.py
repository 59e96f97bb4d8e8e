"""Packed: a quadratic form multiplied out, as two matrix products over features of z.

With φ(z) = (z_iz_j for i ≤ j, z, 1) the log-joints of all components are Θφ, and the sums that the
M-step needs are φ times the responsibilities. Axis-aligned forms need the squares only; shared ones
are linear in z but for one term that all components have in common. The terms cancel where a
component is narrow beside its distance from the origin. With e the extents of rows and means,
S_k = Σ_ij |Λ_k,ij|e_ie_j is the size of the terms. With S their mean over components, the error of
a log-density was measured at 0.06 to 0.5·ε·S in the mean over rows, and at 0.9·ε·S for axis-aligned
forms of 128 features; see docs/accuracy.md.
"""

from typing import Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._covariance.factors import Factors
from .._linalg import einsum, product
from .form import Form
from .way import AbstractWay

# The largest mean S that is accurate: there the mean error of a log-density was 2e-5 to 4e-4 nats
# in float32, and less than 1e-10 in float64.
_LIMIT = {jnp.dtype("float32"): 3.3e3, jnp.dtype("float64"): 1e5}


class Packed(AbstractWay):
    """Two matrix products for all components."""

    form: Form
    coefficients: Float[Array, "k p"]

    @classmethod
    def of(cls, form: Form) -> Self:
        precisions = form.precisions()
        linear = form.times(precisions, form.means)
        constant = form.constant - jnp.sum(linear * form.means, axis=1) / 2
        parts = [linear, constant[:, None]]
        if not form.shared:
            row, column, _ = _products(form)
            square = precisions if form.axis_aligned else precisions[:, row, column]
            twice = np.where(row == column, 1, 2).astype(square.dtype)
            parts = [-square * twice / 2, *parts]
        return cls(form, jnp.concatenate(parts, axis=1))

    @classmethod
    def size(cls, form: Form, reach: Float[Array, " d"]) -> Float[Array, ""]:
        extents = form.extents(reach)
        sizes = jnp.sum(form.times(jnp.abs(form.precisions()), extents) * extents, axis=1)
        # The mean is that of a log-density's error. A single component may be four times as narrow.
        size = jnp.maximum(jnp.mean(sizes), jnp.max(sizes) / 4)
        # A shared form is rounded twice, in its common and in its linear term.
        return size * (2 if form.shared else 1) / _LIMIT[sizes.dtype]

    @classmethod
    def columns(cls, k: int, d: int, width: int) -> int:
        return (width + k) // 2

    def terms(self, z: Float[Array, "d n"]) -> Float[Array, "p n"]:
        d = z.shape[0]
        extended = jnp.concatenate([z, jnp.ones_like(z[:1])])
        if self.form.shared:
            return extended
        # As gathers of rows: features by concatenation take three times as long.
        row, column, _ = _products(self.form)
        row, column = np.append(row, np.arange(d + 1)), np.append(column, np.full(d + 1, d))
        left, right = (extended.at[of].get(mode="promise_in_bounds") for of in (row, column))
        return left * right

    def log_joint(self, terms: Float[Array, "p n"]) -> Float[Array, "k n"]:
        log_joint = product(self.coefficients, terms)
        if not self.form.shared:
            return log_joint
        factor, z = self.form.factors[0], terms[:-1]
        y = factor[:, None] * z if self.form.axis_aligned else product(factor, z)
        return log_joint - jnp.sum(y**2, axis=0) / 2

    def sums(
        self, terms: Float[Array, "p n"], z: Float[Array, "d n"], share: Float[Array, "k n"]
    ) -> tuple[Float[Array, "p k"], Factors | None]:
        sums = einsum("pn,kn->pk", terms, share)
        if not self.form.shared:
            return sums, None
        counted = jnp.sum(share, axis=0) * z
        if self.form.axis_aligned:
            return sums, jnp.sum(counted * z, axis=1)[None]
        return sums, product(counted, z.T)[None]

    def moments(
        self, sums: tuple[Float[Array, "p k"], Factors | None]
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Factors]:
        form, (products, common) = self.form, sums
        d = form.means.shape[1]
        weight, raw = products[-1], products[-d - 1 : -1].T
        square = products[: -d - 1].T if common is None else common
        if common is None and not form.axis_aligned:
            square = square[:, _products(form)[2]]
        # Σ z(z − μ)(z − μ)ᵀ of what stands about the origin.
        scatter = form.without(square, raw - weight[:, None] * form.means / 2, form.means)
        if form.axis_aligned:
            scatter = scatter * form.factors**2
        else:
            scatter = product(product(form.factors, scatter), form.factors.mT)
        return weight, raw - weight[:, None] * form.means, scatter


def _products(form: Form) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of each product of features, and the place of each entry of a matrix."""
    d = form.means.shape[1]
    if form.axis_aligned:
        return np.arange(d), np.arange(d), np.arange(d)
    row, column = np.triu_indices(d)
    place = np.zeros((d, d), np.int32)
    place[row, column] = place[column, row] = np.arange(row.size)
    return row, column, place
