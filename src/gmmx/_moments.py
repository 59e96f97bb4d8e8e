"""Sufficient statistics of the E-step, and the M-step that turns them into a model.

EM is `maximise(expect(gmm, x))`. `Moments` add: over chunks in a loop, over devices in a `psum`,
over files in Python, so long as the same model took them.
"""

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ._accuracy import PACKED, WHITENED, Plan, Route, everywhere, reach
from ._chunks import chunk_of, fold, worth_keeping, zeros_like_of
from ._density import log_constant, log_joint_of
from ._frame import Frame
from ._linalg import einsum
from ._near import Tiles, by_near
from ._reductions import largest, total

if TYPE_CHECKING:
    from ._mixture import GaussianMixture


class Moments(eqx.Module):
    """What the M-step needs to know of the data, under the model that took it."""

    weight: Float[Array, " k"]
    """n_k = Σ_i z_ik"""
    first: Float[Array, "k d"]
    """Σ_i z_ik (x_i − μ_k)"""
    second: Array
    """Σ_i z_ik y yᵀ with y = W_k(x_i − μ_k), or as much of it as the structure needs"""
    log_likelihood: Float[Array, ""]
    """Σ_i log p(x_i)"""
    count: Float[Array, ""]
    """Σ_i of the sample weights; n without them"""
    crowded: Float[Array, ""]
    """In how many chunks so many rows are near narrow components that nothing here is accurate"""

    def __add__(self, other: Self) -> Self:
        return jax.tree.map(jnp.add, self, other)


class Survey(eqx.Module):
    """What the data look like from afar: taken once a fit."""

    frame: Frame
    reaches: Float[Array, "c d"]
    """How far each chunk of rows reaches in that frame"""
    rows: Float[Array, "c d r"] | None
    """Each chunk in that frame, a feature a row; None where each step makes them anew"""
    plan: Plan = eqx.field(static=True)

    @classmethod
    def of(cls, gmm: "GaussianMixture", x: Float[Array, "n d"], keep: bool) -> Self:
        """The survey of x for mixtures of this shape.

        **Arguments:**

        - `keep`: whether to keep the rows, if x is not too large for that. A derivative in x sees
            those alone that are made anew.
        """
        n, d = x.shape
        plan = Plan.of(gmm, x, products=2)
        count = -(-n // plan.rows)
        frame = Frame.of_data(gmm, x, turned=plan.fastest == PACKED)
        if plan.fastest == WHITENED:
            return cls(frame, jnp.full((count, d), jnp.inf, x.dtype), None, plan)
        keep = keep and worth_keeping(n, d, x.dtype.itemsize)

        def chunk(i: Array) -> tuple[Array, Array | None]:
            z = frame.apply(chunk_of(x, i, plan.rows))
            return reach(z), z.T if keep else None

        reaches, rows = jax.lax.map(chunk, jnp.arange(count))
        return cls(frame, reaches, rows, plan)

    def route(self, gmm: "GaussianMixture", apart: bool | Bool[Array, ""] = True) -> Route:
        """The fastest accurate route to this model's moments.

        **Arguments:**

        - `apart`: whether narrow components may be whitened apart. `Moments.crowded` says whether
            what came of it is accurate.
        """
        plan = self.plan
        if plan.fastest == WHITENED:
            return Route.whitened(self.reaches.shape[0], gmm.means)
        apart = apart & plan.apart
        return Route.of(self.frame.model(gmm), self.reaches, plan.fastest, apart)

    def together(self) -> Self:
        """The same for routes that whiten no component apart, and are always accurate."""
        return dataclasses.replace(self, plan=dataclasses.replace(self.plan, apart=False))


def _responsibilities(
    log_joint: Float[Array, "k n"], weights: Float[Array, " n"] | None
) -> tuple[Float[Array, "k n"], Float[Array, " n"]]:
    """(z times the sample weights, log p)."""
    # Kept from −∞, where no component has any density, so that a difference is not NaN.
    lowest = float(jnp.finfo(log_joint.dtype).min)
    top = jnp.maximum(largest(log_joint, axis=0), lowest)
    terms = jnp.exp(log_joint - top)
    sums = total(terms, axis=0)
    scale = 1 / sums if weights is None else weights / sums
    return terms * scale, jnp.squeeze(jnp.log(sums) + top, axis=0)


def times(weights: Array | None, present: Array | None) -> Array | None:
    """Sample weights of the rows that are present; None stands for one each."""
    if weights is None or present is None:
        return present if weights is None else weights
    return weights * present


def _totals(log_prob: Array, weights: Array | None, crowded: int = 0) -> tuple[Array, ...]:
    """What moments hold beside those of the components."""
    if weights is None:
        log_likelihood, count = jnp.sum(log_prob), jnp.asarray(log_prob.size, log_prob.dtype)
    else:
        log_likelihood, count = jnp.sum(weights * log_prob), jnp.sum(weights)
    return log_likelihood, count, jnp.full_like(count, crowded)


def rows_moments(
    gmm: "GaussianMixture",
    x: Float[Array, "n d"],
    scatter: Array,
    responsibilities: Float[Array, "k n"],
    centre: Float[Array, " d"],
    totals: tuple[Float[Array, ""], ...],
) -> Moments:
    """Moments of rows whose responsibilities, and scatter in y, are known."""
    weight = jnp.sum(responsibilities, axis=1)
    raw = einsum("kn,dn->kd", responsibilities, x.T - centre[:, None])
    first = raw - weight[:, None] * (gmm.means - centre)
    return Moments(weight, first, scatter, *totals)


def expect(
    gmm: "GaussianMixture",
    x: Float[Array, "n d"],
    weights: Float[Array, " n"] | None,
    survey: Survey,
    route: Route,
) -> Moments:
    """The moments of x under the model.

    **Arguments:**

    - `survey`: of x.
    - `route`: the way to take for each chunk of rows, see `_accuracy`.
    """
    frame, plan = survey.frame, survey.plan
    constant = log_constant(gmm)
    seen = frame.model(gmm)
    structure = seen.structure

    def whitened(x: Array, weights: Array | None) -> Moments:
        def block(arrays: tuple[Array, Array | None], present: Array | None, _: None) -> Moments:
            x, weights = arrays[0], times(arrays[1], present)
            y = gmm.structure.whiten(x, gmm.means)
            z, log_prob = _responsibilities(log_joint_of(constant, y), weights)
            scatter = gmm.structure.scatter(y, z)
            return rows_moments(gmm, x, scatter, z, frame.centre, _totals(log_prob, weights))

        return fold(block, (x, weights), None, min(plan.whitened_rows, x.shape[0]))

    if plan.fastest == WHITENED:
        return whitened(x, weights)

    # Each way slices what it needs itself: what is handed to a branch is copied.

    def rows_of(i: Array) -> Array:
        return chunk_of(x, i, plan.rows)

    def seen_rows_of(i: Array) -> Array:
        return frame.apply(rows_of(i)) if survey.rows is None else survey.rows[i].T

    def from_frame(moments: tuple[Array, Array, Array], totals: tuple[Array, ...]) -> Moments:
        weight, first, second = moments
        return Moments(weight, frame.vectors_back(first), second, *totals)

    def centred(weights: Array | None, i: Array) -> Moments:
        def block(arrays: tuple[Array, Array | None], present: Array | None, _: None) -> PyTree:
            x, weights = arrays[0], times(arrays[1], present)
            y = structure.whiten_centred(x, seen.means)
            z, log_prob = _responsibilities(log_joint_of(constant, y), weights)
            return structure.centred_sums(y, z, x), _totals(log_prob, weights)

        rows = seen_rows_of(i), weights
        sums, totals = fold(block, rows, None, min(plan.centred_rows, plan.rows))
        return from_frame(structure.centred_moments(sums, seen.means), totals)

    def coefficients_of() -> PyTree:
        return structure.packed_coefficients(seen.means, constant)

    # For small data they cost as much as a chunk.
    coefficients = jax.lax.cond(
        route.any_packed, coefficients_of, lambda: zeros_like_of(coefficients_of)
    )

    def packed(weights: Array | None, i: Array) -> tuple[PyTree, Moments]:
        features = structure.packed_features(seen_rows_of(i))
        log_joint = structure.packed_log_density(coefficients, features)
        nothing = zeros_like_of(centred, weights, i)
        nothing = nothing.weight, nothing.first, nothing.second

        def none(crowded: int = 0) -> tuple[Array, Moments]:
            z, log_prob = _responsibilities(log_joint, weights)
            return z, Moments(*nothing, *_totals(log_prob, weights, crowded))

        def some(tiles: Tiles, log_joint: Array) -> tuple[Array, Moments]:
            rows = tiles.rows(rows_of(i))
            y = tiles.whiten(gmm, rows)
            log_joint = tiles.put(log_joint_of(tiles.of_component(constant), y), log_joint)
            z, log_prob = _responsibilities(log_joint, weights)
            own = tiles.moments(gmm, rows, y, tiles.get(z))
            return z, Moments(*own, *_totals(log_prob, weights))

        if plan.apart:
            crowded = partial(none, crowded=1)
            z, apart = by_near(log_joint, constant, route, none, some, crowded)
        else:
            z, apart = none()
        return structure.packed_sums(features, z), apart

    ways_to = [
        lambda weights, i: (zeros_like_of(packed, weights, i)[0], whitened(rows_of(i), weights)),
        lambda weights, i: (zeros_like_of(packed, weights, i)[0], centred(weights, i)),
        packed,
    ]

    def chunk(
        block: tuple[Array, Array | None], present: Array | None, at: tuple[Array, Array]
    ) -> PyTree:
        weights, (way, i) = times(block[1], present), at
        return jax.lax.switch(everywhere(way), ways_to[: plan.fastest + 1], weights, i)

    at = route.ways, jnp.arange(route.ways.size)
    sums, moments = fold(chunk, (x, weights), at, plan.rows)
    if plan.fastest < PACKED:
        return moments

    def unpacked() -> Moments:
        found = structure.packed_moments(sums, seen.means)
        if plan.apart:
            # Those of narrow components were taken apart.
            found = jax.tree.map(lambda of_all: jnp.where(route.narrow, 0, of_all.T).T, found)
        nothing = jnp.zeros((), x.dtype)
        return from_frame(found, (nothing,) * 3)

    return moments + jax.lax.cond(route.any_packed, unpacked, lambda: zeros_like_of(unpacked))


def maximise(
    gmm: "GaussianMixture",
    moments: Moments,
    reg_covar: Float[Array, ""],
    frozen: frozenset[str] = frozenset(),
) -> "GaussianMixture":
    """The model of most expected likelihood given the moments that `gmm` took: the M-step.

    w_k = n_k/n, μ_k' = μ_k + Σ z(x − μ_k)/n_k, and Σ_k' the structure's own scatter about μ_k'
    plus `reg_covar` on its diagonal. A component that has lost all its samples keeps its mean
    and covariance, at weight zero.
    """
    empty = is_empty(moments)
    weight = jnp.where(empty, 0, moments.weight)
    logits, means, structure = gmm.logits, gmm.means, gmm.structure
    if "weights" not in frozen:
        logits = jnp.log(weight) - jnp.log(jnp.sum(weight))
    if "means" not in frozen:
        means = means + moments.first / jnp.where(empty, 1, weight)[:, None]
        means = jnp.where(empty[:, None], gmm.means, means)
    if "covariances" not in frozen:
        # About the means as they are stored: an offset may have rounded them.
        structure = structure.maximise(
            weight, moments.first, moments.second, means - gmm.means, reg_covar
        )
    return eqx.tree_at(lambda g: (g.logits, g.means, g.structure), gmm, (logits, means, structure))


def is_empty(moments: Moments) -> Bool[Array, " k"]:
    """Which components have lost all their samples, to rounding (scikit-learn's threshold)."""
    return moments.weight <= 10 * float(jnp.finfo(moments.weight.dtype).eps)
