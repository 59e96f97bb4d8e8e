"""Sufficient statistics of the E-step, and the M-step that turns them into a model.

EM is `maximise(expect(gmm, x))`. `Moments` add: over chunks in a loop, over devices in a `psum`,
over files in Python, so long as the same model took them.
"""

from typing import TYPE_CHECKING, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._accuracy import Plan, everywhere, packed_is_accurate, reach
from ._chunks import fold
from ._density import log_constant, whitened_log_joint
from ._frame import Frame
from ._linalg import einsum

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

    def __add__(self, other: Self) -> Self:
        return jax.tree.map(jnp.add, self, other)


class Survey(eqx.Module):
    """What the data look like from afar: taken once a fit."""

    frame: Frame
    reaches: Float[Array, "c d"]
    """How far each chunk of rows reaches in that frame"""

    @classmethod
    def of(cls, gmm: "GaussianMixture", x: Float[Array, "n d"]) -> Self:
        n, d = x.shape
        plan = Plan.of(gmm, x, products=2)
        count = -(-n // plan.rows)
        if not plan.packable:
            return cls(
                Frame(jnp.mean(x, axis=0), None, None), jnp.full((count, d), jnp.inf, x.dtype)
            )
        frame = Frame.of_data(gmm, x)

        def chunk(i: Array) -> Array:
            start = jnp.minimum(i * plan.rows, n - plan.rows)
            rows = jax.lax.dynamic_slice_in_dim(x, start, plan.rows)
            return reach(frame.apply(rows))

        return cls(frame, jax.lax.map(chunk, jnp.arange(count)))

    def packed_is_accurate(self, gmm: "GaussianMixture") -> Bool[Array, " c"]:
        """For each chunk, whether packed moments of this model are accurate there."""
        return packed_is_accurate(self.frame.model(gmm), self.reaches)


def _responsibilities(log_joint: Array, weights: Array | None, axis: int) -> tuple[Array, Array]:
    """(z times the sample weights, log p) from log-joints with the components along `axis`."""
    # Kept from −∞, where no component has any density, so that a difference is not NaN.
    lowest = jnp.finfo(log_joint.dtype).min
    top = jnp.max(log_joint, axis=axis, keepdims=True, initial=lowest)
    terms = jnp.exp(log_joint - top)
    total = jnp.sum(terms, axis=axis, keepdims=True)
    log_prob = jnp.squeeze(jnp.log(total) + top, axis)
    scale = 1 / total if weights is None else jnp.expand_dims(weights, axis) / total
    return terms * scale, log_prob


def times(weights: Array | None, present: Array | None) -> Array | None:
    """Sample weights of the rows that are present; None stands for one each."""
    if weights is None or present is None:
        return present if weights is None else weights
    return weights * present


def _total(log_prob: Array, weights: Array | None) -> tuple[Array, Array]:
    if weights is None:
        return jnp.sum(log_prob), jnp.asarray(log_prob.size, log_prob.dtype)
    return jnp.sum(weights * log_prob), jnp.sum(weights)


def scatter_moments(
    gmm: "GaussianMixture",
    x: Float[Array, "n d"],
    y: Float[Array, "k d n"],
    responsibilities: Float[Array, "k n"],
    centre: Float[Array, " d"],
    totals: tuple[Float[Array, ""], Float[Array, ""]],
) -> Moments:
    """Moments of rows whose responsibilities are known."""
    weight = jnp.sum(responsibilities, axis=1)
    raw = einsum("kn,nd->kd", responsibilities, x - centre)
    first = raw - weight[:, None] * (gmm.means - centre)
    return Moments(weight, first, gmm.structure.scatter(y, responsibilities), *totals)


def _whitened(gmm: "GaussianMixture", x: Array, weights: Array | None, frame: Frame) -> Moments:
    log_joint, y = whitened_log_joint(gmm, x)
    responsibilities, log_prob = _responsibilities(log_joint, weights, axis=0)
    totals = _total(log_prob, weights)
    return scatter_moments(gmm, x, y, responsibilities, frame.centre, totals)


def expect(
    gmm: "GaussianMixture",
    x: Float[Array, "n d"],
    weights: Float[Array, " n"] | None,
    frame: Frame,
    packed: Bool[Array, " c"],
) -> Moments:
    """The moments of x under the model.

    **Arguments:**

    - `frame`: where the data look round.
    - `packed`: for each chunk of rows whether to take packed moments, see `_accuracy`.
    """
    plan = Plan.of(gmm, x, products=2)

    def take_whitened(x: Array, weights: Array | None) -> Moments:
        return fold(
            lambda block, present, _: _whitened(gmm, block[0], times(block[1], present), frame),
            (x, weights),
            None,
            min(plan.whitened_rows, x.shape[0]),
        )

    if not plan.packable:
        return take_whitened(x, weights)

    seen = frame.model(gmm)
    structure = seen.structure
    coefficients = structure.packed_coefficients(seen.means, log_constant(gmm))

    def take_packed(x: Array, weights: Array | None):
        features = structure.packed_features(coefficients, frame.apply(x))
        log_joint = structure.packed_log_density(coefficients, features)
        responsibilities, log_prob = _responsibilities(log_joint, weights, axis=1)
        return structure.packed_sums(features, responsibilities), _total(log_prob, weights)

    def zeros(fn, x, weights):
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fn, x, weights))

    def chunk(block: tuple[Array, Array | None], present: Array | None, packed: Array):
        return jax.lax.cond(
            everywhere(packed),
            lambda x, weights: (take_packed(x, weights), zeros(take_whitened, x, weights)),
            lambda x, weights: (zeros(take_packed, x, weights), take_whitened(x, weights)),
            block[0],
            times(block[1], present),
        )

    (sums, totals), moments = fold(chunk, (x, weights), packed, plan.rows)
    weight, first, second = structure.packed_moments(sums, seen.means)
    return moments + Moments(weight, frame.vectors_back(first), second, *totals)


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
    return moments.weight <= 10 * jnp.finfo(moments.weight.dtype).eps
