"""Sufficient statistics of the E-step, and the M-step that turns them into a model.

EM is `maximise(expect(gmm, rows))`. Moments add: over chunks in a loop, over devices in a `psum`,
over files in Python, if the same model took them.
"""

import dataclasses
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._chunks import chunk_of, fold
from .._components import Components
from .._covariance import AbstractCovariance
from .._covariance.base import Factors
from .._linalg import log_weight, product
from .._reductions import largest, total
from .form import Form
from .frame import Frame, times
from .ladder import Ladder, fourth_powers, reach, reach_of
from .packed import Packed
from .way import AbstractWay

# What one step may leave of a deviation whose variance is nothing but rounding.
_NARROWER = 1 / 8
# Bytes that a fit may take beside its data, to keep what its steps would compute again.
_KEPT_BYTES = 2**27


class Moments(eqx.Module):
    """What the M-step needs to know of the data, under the model that took it."""

    weight: Float[Array, " k"]
    """n_k = Σ_i z_ik"""
    first: Float[Array, "k d"]
    """Σ_i z_ik (z_i − μ_k), in the frame of the rows"""
    scatter: Factors
    """Σ_i z_ik y yᵀ with y = W_k(x_i − μ_k), or what the structure needs of it"""
    log_likelihood: Float[Array, ""]
    """Σ_i log p(x_i)"""
    count: Float[Array, ""]
    """Σ_i of the sample weights; n without them"""

    def __add__(self, other: Self) -> Self:
        return jax.tree.map(jnp.add, self, other)


class Rows(eqx.Module):
    """The rows of a fit, in a frame in which they are close to isotropic."""

    frame: Frame
    reach: Float[Array, " d"]
    """How far they lie from the origin of the frame"""
    kept: Float[Array, "c d r"] | None
    """The rows in the frame, chunk by chunk, a feature a row; None where there are too many"""
    x: Float[Array, "n d"] | None
    """The rows as they came, where they are not kept"""
    n: int = eqx.field(static=True)
    per_chunk: int = eqx.field(static=True)

    @classmethod
    def of(
        cls,
        x: Float[Array, "n d"],
        weights: Float[Array, " n"] | None,
        ladder: Ladder,
        axis_aligned: bool,
        keep: bool = True,
    ) -> Self:
        """The rows of x, for mixtures whose factors are axis-aligned or not."""
        n, d = x.shape
        fastest = ladder.ways[0]
        frame = Frame.of_data(x, weights, turned=fastest is Packed and not axis_aligned)
        rows = ladder.rows(fastest, n, x.dtype)
        if not (keep and n * d * x.dtype.itemsize <= _KEPT_BYTES):
            return cls(frame, _reach(x, weights, frame, rows), None, x, n, rows)
        if rows == n:
            z = frame.apply(x)
            return cls(frame, reach(z, weights), z.T[None], None, n, rows)
        kept = jax.lax.map(lambda i: frame.apply(chunk_of(x, i, rows)).T, jnp.arange(-(-n // rows)))
        return cls(frame, _reach(x, weights, frame, rows), kept, None, n, rows)

    def chunk(self, i: Array | int) -> Float[Array, "d r"]:
        """The i-th chunk of rows."""
        if self.kept is not None:
            return self.kept[i]
        assert self.x is not None
        return self.frame.apply(chunk_of(self.x, i, self.per_chunk)).T


def _reach(
    x: Float[Array, "n d"], weights: Float[Array, " n"] | None, frame: Frame, rows: int
) -> Float[Array, " d"]:
    """`reach` of all rows, chunk by chunk."""

    def chunk(i: Array | int, present: Array | None) -> tuple[Array, Array]:
        z = frame.apply(chunk_of(x, i, rows))
        counted = None if weights is None else chunk_of(weights, i, rows)
        return fourth_powers(z, times(counted, present))

    return reach_of(*fold(chunk, x.shape[0], rows, x))


def expect(
    form: Form,
    rows: Rows,
    weights: Float[Array, " n"] | None,
    ladder: Ladder,
    number: Int[Array, ""],
) -> tuple[Moments, Float[Array, ""]]:
    """The E-step: moments by one way of the ladder, and the size of what cancels in it.

    Where that is above one, or NaN, the moments are not accurate.

    **Arguments:**

    - `form`: the model in the frame of the rows.
    """

    def pass_by(way: type[AbstractWay]) -> tuple[Moments, Float[Array, ""]]:
        prepared = way.of(form)

        def take(z: Float[Array, "d r"], counted: Array | None) -> PyTree:
            terms = prepared.terms(z)
            share, log_prob = _responsibilities(prepared.log_joint(terms), counted)
            if counted is None:
                totals = jnp.sum(log_prob), jnp.asarray(log_prob.size, log_prob.dtype)
            else:
                totals = jnp.sum(counted * log_prob), jnp.sum(counted)
            return prepared.sums(terms, z, share), totals

        def chunk(i: Array | int, present: Array | None) -> PyTree:
            z = rows.chunk(i)
            counted = None if weights is None else chunk_of(weights, i, rows.per_chunk)
            counted = times(counted, present)
            # A slower way takes fewer rows at once than the one that the chunks were made for.
            few = min(ladder.rows(way, rows.per_chunk, z.dtype), rows.per_chunk)
            if few == rows.per_chunk:
                return take(z, counted)

            def part(j: Array | int, present: Array | None) -> PyTree:
                part_of = None if counted is None else chunk_of(counted, j, few)
                return take(chunk_of(z, j, few, axis=1), times(part_of, present))

            return fold(part, rows.per_chunk, few, z)

        sums, totals = fold(chunk, rows.n, rows.per_chunk, rows.reach)
        moments = Moments(*prepared.moments(sums), *totals)
        return moments, way.size(*jax.lax.stop_gradient((form, rows.reach)))

    return ladder.switch(number, pass_by)


def _responsibilities(
    log_joint: Float[Array, "k n"], weights: Float[Array, " n"] | None
) -> tuple[Float[Array, "k n"], Float[Array, " n"]]:
    """(z times the sample weights, log p)."""
    # Kept from −∞, where no component has any density, so that a difference is not NaN.
    lowest = float(jnp.finfo(log_joint.dtype).min)
    top = jax.lax.stop_gradient(jnp.maximum(largest(log_joint, axis=0), lowest))
    terms = jnp.exp(log_joint - top)
    sums = total(terms, axis=0)
    scale = 1 / sums if weights is None else weights / sums
    return terms * scale, jnp.squeeze(jnp.log(sums) + top, axis=0)


def is_empty(moments: Moments) -> Bool[Array, " k"]:
    """Which components have lost all their samples, to rounding (scikit-learn's threshold)."""
    return moments.weight <= 10 * float(jnp.finfo(moments.weight.dtype).eps)


def maximise(
    gmm: Components,
    form: Form,
    moments: Moments,
    frame: Frame,
    floor: Float[Array, " d"],
    frozen: frozenset[str] = frozenset(),
) -> Components:
    """The M-step: the model of greatest expected likelihood given the moments that `gmm` took.

    w_k = n_k/n, μ_k' = μ_k + Σ z(x − μ_k)/n_k, and Σ_k' the structure's fit to the scatter about
    μ_k' plus the floor on its diagonal. A component that has lost all its samples keeps its
    mean and covariance, at weight zero.

    **Arguments:**

    - `form`: the model in the frame.
    """
    empty = is_empty(moments)
    weight = jnp.where(empty, 0, moments.weight)
    logits, means, structure = gmm.logits, gmm.means, gmm.structure
    if "weights" not in frozen:
        logits = log_weight(weight) - jnp.log(jnp.sum(weight))
    if "means" not in frozen:
        shift = frame.vectors_back(moments.first / jnp.where(empty, 1, weight)[:, None])
        means = means + jnp.where(empty[:, None], 0, shift)
    if "covariances" not in frozen:
        # About the means as they are stored: an offset may have rounded them.
        shift = frame.vectors(means - gmm.means)
        first, moved = (form.times(form.factors, v) for v in (moments.first, shift))
        # Σ z(y − m)(y − m)ᵀ = S − (f − n_k m/2)mᵀ − m(f − n_k m/2)ᵀ
        cross = form.outer(first - moments.weight[:, None] * moved / 2, moved)
        scatter = moments.scatter - cross - (cross if form.axis_aligned else cross.mT)
        structure = fit_structure(type(gmm.structure), gmm.factors(), scatter, weight, floor)
    return dataclasses.replace(gmm, logits=logits, means=means, structure=structure)


def fit_structure(
    structure: type[AbstractCovariance],
    factors: Factors,
    scatter: Factors,
    weight: Float[Array, " k"],
    floor: Float[Array, " d"],
) -> AbstractCovariance:
    """The structure that fits a scatter about the means, plus a floor on its variances.

    **Arguments:**

    - `factors`: W, the frame of the scatter, in the units of the data.
    - `weight`: n_k, zero for a component that keeps the covariance that it has.
    - `floor`: what is added to the variance of each feature.
    """
    flat, total = factors.ndim == 2, jnp.sum(weight)
    weight = total[None] if structure.shared else weight
    # A component without samples enters with next to no weight and its own covariance.
    empty = weight <= 0
    weight = jnp.where(empty, float(jnp.finfo(weight.dtype).eps) * total, weight)
    each, empty = (v[:, None] if flat else v[:, None, None] for v in (weight, empty))
    identity = jnp.ones_like(factors) if flat else jnp.eye(factors.shape[-1], dtype=factors.dtype)
    added = factors**2 * floor if flat else product(factors * floor, factors.mT)
    scatter = jnp.where(empty, each * identity, scatter + each * added)
    fitted = structure.fitted(weight, factors, scatter)
    return _repaired(fitted, factors, scatter / each)


def _repaired(fitted: AbstractCovariance, factors: Factors, scatter: Factors) -> AbstractCovariance:
    """The covariances as fitted or, where one is singular to rounding, a step towards that.

    In its own frame such a component takes the variances and leaves out the correlations, which
    are its frame's then. Of all scalings of that frame this is the best one, so the likelihood
    does not fall; and no deviation narrows to less than an eighth, so that the next scatter is
    taken about the new mean and in a frame in which it is accurate.

    **Arguments:**

    - `factors`: W, the frame.
    - `scatter`: what a component's covariance is in its frame.
    """
    flat = factors.ndim == 2
    variances = scatter if flat else jnp.diagonal(scatter, axis1=1, axis2=2)
    deviations = jnp.sqrt(jnp.maximum(variances, _NARROWER**2))
    scaled = factors / deviations if flat else factors / deviations[:, :, None]
    leaves = jax.tree.leaves(fitted)
    # A leaf has an axis of components, or all of them share it.
    own = [leaf.ndim > 0 and leaf.shape[0] == len(factors) for leaf in leaves]
    sound = jnp.ones(len(factors), bool)
    for leaf, one_each in zip(leaves, own, strict=True):
        finite = jnp.isfinite(leaf)
        sound &= jnp.all(finite.reshape(len(finite), -1), axis=1) if one_each else jnp.all(finite)
    chosen = [
        jnp.where(
            sound.reshape(-1, *(1,) * (leaf.ndim - 1)) if one_each else jnp.all(sound), leaf, repair
        )
        for leaf, one_each, repair in zip(
            leaves, own, jax.tree.leaves(type(fitted).from_factors(scaled)), strict=True
        )
    ]
    return jax.tree.unflatten(jax.tree.structure(fitted), chosen)
