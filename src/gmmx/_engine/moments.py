"""Sufficient statistics of the E-step, and the M-step that turns them into a model.

EM is `maximise` of what `expect` of the rows gives. Moments add: over chunks in a loop, over
devices in a `psum`, over files in Python, if the same model took them.
"""

import dataclasses
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._components import Components
from .._covariance import AbstractCovariance
from .._covariance.factors import (
    AnyFactors,
    LowRankFactors,
    diagonal_scatter,
    own_scatter,
    relative_variances,
)
from .._linalg import inverse_lower, product
from .form import Form
from .frame import Frame

# What one step may leave of a deviation whose variance is nothing but rounding.
_NARROWER = 1 / 8


class Moments(eqx.Module):
    """What the M-step needs to know of the data, under the model that took it."""

    weight: Float[Array, " k"]
    """n_k = Σ_i z_ik"""
    first: Float[Array, "k d"]
    """Σ_i z_ik (z_i − μ_k), in the frame of the rows"""
    scatter: AnyFactors
    """Σ_i z_ik y yᵀ with y = W_k(x_i − μ_k), or what the structure needs of it"""
    log_likelihood: Float[Array, ""]
    """Σ_i log p(x_i)"""
    count: Float[Array, ""]
    """Σ_i of the sample weights; n without them"""
    background: Float[Array, ""] | None = None
    """n_0, the samples of a background; None without one"""

    def __add__(self, other: Self) -> Self:
        return jax.tree.map(jnp.add, self, other)


class Added(eqx.Module):
    """What a conjugate prior adds to the M-step."""

    moments: Moments
    """As of samples at the mean of the prior, and the scale of the covariances as a scatter"""
    of_weights: Float[Array, ""]
    """Samples of each component, for the weights"""
    of_covariances: Float[Array, ""]
    """Samples of each component, for what covariances are divided by"""


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
    added: Added | None = None,
) -> Components:
    """The M-step: the model of greatest expected likelihood given the moments that `gmm` took.

    w_k = n_k/n, μ_k' = μ_k + Σ z(x − μ_k)/n_k, and Σ_k' the structure's fit to the scatter about
    μ_k' plus the floor on its diagonal. A component that has lost all its samples keeps its
    mean and covariance, at weight zero.

    **Arguments:**

    - `form`: the model in the frame.
    - `added`: what a prior of the parameters adds; then the model has the greatest posterior.
    """
    empty = is_empty(moments)
    weight = jnp.where(empty, 0, moments.weight)
    means, structure = gmm.means, gmm.structure
    if "weights" not in frozen:
        counted = weight if added is None else weight + jnp.where(weight > 0, added.of_weights, 0)
        gmm = gmm.of_counts(counted, moments.background)
    if added is not None:
        moments = dataclasses.replace(moments, background=None) + added.moments
        empty = moments.weight <= 0
        weight = moments.weight
    if "means" not in frozen:
        shift = frame.vectors_back(moments.first / jnp.where(empty, 1, weight)[:, None])
        means = means + jnp.where(empty[:, None], 0, shift)
    if "covariances" not in frozen:
        # About the means as they are stored: an offset may have rounded them.
        scatter = _scatter_about(moments, form, frame.vectors(means - gmm.means))
        if added is not None:
            # κ samples move a mean; a covariance is divided by other numbers of samples.
            weight = weight - added.moments.weight + added.of_covariances
        structure = fit_structure(type(gmm.structure), gmm.factors(), scatter, weight, floor)
    return dataclasses.replace(gmm, means=means, structure=structure)


def _scatter_about(moments: Moments, form: Form, shift: Float[Array, "k d"]) -> AnyFactors:
    """The scatter of y about means that are moved by so much, in the frame."""
    first, moved = (form.whiten(v) for v in (moments.first, shift))
    # Σ z(y − m)(y − m)ᵀ = S − (f − n_k m/2)mᵀ − m(f − n_k m/2)ᵀ
    about = first - moments.weight[:, None] * moved / 2
    return form.without(moments.scatter, about, moved)


def transported(
    moments: Moments, gmm: Components, form: Form, moved: Components, frame: Frame
) -> Moments:
    """The same moments about another model: y' = W'W⁻¹(y − W(μ' − μ)).

    **Arguments:**

    - `gmm`, `form`: the model that took them, and this model in the frame.
    - `moved`: the other model.
    """
    shift = frame.vectors(moved.means - gmm.means)
    scatter, old, new = _scatter_about(moments, form, shift), gmm.factors(), moved.factors()
    if form.axis_aligned:
        scatter = scatter * (new / old) ** 2
    else:
        turn = product(new, inverse_lower(old))
        scatter = product(product(turn, scatter), turn.mT)
    first = moments.first - moments.weight[:, None] * shift
    return dataclasses.replace(moments, first=first, scatter=scatter)


def fit_structure(
    structure: type[AbstractCovariance],
    factors: AnyFactors,
    scatter: AnyFactors,
    weight: Float[Array, " k"],
    floor: Float[Array, " d"],
) -> AbstractCovariance:
    """The structure that fits a scatter about the means, plus a floor on its variances.

    **Arguments:**

    - `factors`: W, the frame of the scatter, in the units of the data.
    - `weight`: n_k, zero for a component that keeps the covariance that it has.
    - `floor`: what is added to the variance of each feature.
    """
    total = jnp.sum(weight)
    weight = total[None] if structure.shared else weight
    # A component without samples enters with next to no weight and its own covariance.
    empty = weight <= 0
    weight = jnp.where(empty, float(jnp.finfo(weight.dtype).eps) * total, weight)
    own, added = own_scatter(factors), diagonal_scatter(factors, floor)

    def total_of(scatter: Array, own: Array, added: Array) -> Array:
        each, none = (v.reshape(-1, *(1,) * (scatter.ndim - 1)) for v in (weight, empty))
        return jnp.where(none, each * own, scatter + each * added)

    scatter = jax.tree.map(total_of, scatter, own, added)
    fitted = structure.fitted(weight, factors, scatter)  # pyright: ignore[reportArgumentType]
    return _repaired(fitted, factors, relative_variances(factors, scatter) / weight[:, None])


def _repaired(
    fitted: AbstractCovariance, factors: AnyFactors, variances: Float[Array, "j d"]
) -> AbstractCovariance:
    """The covariances as fitted or, where one is singular to rounding, a step towards that.

    In its own frame such a component takes the variances and leaves out the correlations, which
    are its frame's then. Of all scalings of that frame this is the best one, so the likelihood
    does not fall; and no deviation narrows to less than an eighth, so that the next scatter is
    taken about the new mean and in a frame in which it is accurate.

    **Arguments:**

    - `factors`: W, the frame.
    - `variances`: those that it should have, in units of those that the frame gives it.
    """
    deviations = jnp.sqrt(jnp.maximum(variances, _NARROWER**2))
    dense = not isinstance(factors, LowRankFactors) and factors.ndim == 3
    scaled = factors / (deviations[:, :, None] if dense else deviations)
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
