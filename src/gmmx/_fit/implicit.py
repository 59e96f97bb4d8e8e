"""The gradient through a fit, by the implicit function theorem.

EM ends where its map has nothing to move, θ* = M(θ*, u) for the inputs u: data, sample weights,
the variance floor, and the parameters that are frozen. By the implicit function theorem

    dθ* = (I − ∂M/∂θ)⁻¹ ∂M/∂u du,

so a derivative needs products with ∂M for one EM step, and a linear solve by such products. It
does not depend on the steps of the fit. (Christianson 1994; Blondel et al. 2022.)

I − ∂M is regular where the optimum is isolated: M does not depend on a shift of all logits, nor
on the entries of a factor that are not read, so that there I − ∂M is the identity.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from .._abstract_mixture import AbstractMixture
from .._data import Samples
from .._engine.form import Form
from .._engine.kinds import ladder_of, rows_of
from .._engine.moments import maximise
from .frozen import split
from .krylov import solve_by_products
from .result import FitResult, mean_of
from .standardise import Standardisation
from .state import difference, squared_norm

_NOT_CONVERGED = (
    "the fit has not converged enough to be differentiated: its model is too far from the fixed "
    "point of EM, or a component has lost all its samples or become equal to another. Lower tol "
    "and raise max_iter, for instance EMFitter(tol=1e-12, max_iter=10_000), or take fewer "
    "components. In a batch, EMFitter(on_unconverged='nan') marks this fit and keeps the others. "
    "If no gradient through the fit is wanted, pass jax.lax.stop_gradient(x) to it."
)
_NOT_ISOLATED = (
    "the linear system of the gradient through a fit was not solved: the optimum is not isolated, "
    "or nearly so. Two components may be equal, or one may rest on too few samples: take fewer "
    "components, raise reg_covar, or fit in float64 "
    "(jax.config.update('jax_enable_x64', True))."
)


POLICIES = ("raise", "nan", "zero")
"""What becomes of a derivative that cannot be relied on: an error, NaN, or zero"""

# The largest relative error of a derivative, as it is estimated.
_LARGEST_ERROR = 2e-2
# Newton's method doubles the digits in each step.
_NEWTON_STEPS = 5

_Tree = TypeVar("_Tree")


def check_policy(policy: str) -> str:
    """One of `POLICIES`."""
    if policy not in POLICIES:
        names = ", ".join(map(repr, POLICIES))
        raise ValueError(f"on_unconverged={policy!r}; expected one of {names}.")
    return policy


def constant(tree: _Tree) -> _Tree:
    """The tree, with its arrays held constant in derivatives."""
    return jax.tree.map(lambda v: jax.lax.stop_gradient(v) if eqx.is_array(v) else v, tree)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _refuse(name: str, result: PyTree, inputs: PyTree) -> PyTree:
    return result


@_refuse.defjvp
def _refuse_jvp(name, primals, tangents):
    raise NotImplementedError(
        f"there is no gradient through a fit by {name}: fit with EMFitter, which has one. If none "
        "is wanted, pass jax.lax.stop_gradient(x) to the fit, and so with all that it is given."
    )


def refuse(name: str, result: FitResult, inputs: PyTree) -> FitResult:
    """The result as it is; a derivative of it in the inputs is an error."""
    arrays, rest = eqx.partition(result, eqx.is_inexact_array)
    return eqx.combine(_refuse(name, arrays, eqx.filter(inputs, eqx.is_inexact_array)), rest)


class Inputs(eqx.Module):
    """What a fixed point of EM depends on."""

    x: Samples
    weights: Float[Array, " n"] | None
    floor: Float[Array, " d"]
    start: AbstractMixture
    """Of which the frozen parameters stay, and only they count"""


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def fixed_point(
    frozen: frozenset[str],
    policy: str,
    gmm: AbstractMixture,
    log_likelihood: Float[Array, ""],
    inputs: Inputs,
) -> tuple[AbstractMixture, Float[Array, ""]]:
    """The arguments as they are, with the derivatives of an EM fixed point and of its likelihood.

    If a derivative is taken, the model and its likelihood are those of the fixed point, so that
    what is computed from them is differentiated there as well.

    **Arguments:**

    - `frozen`: the parameters that EM leaves alone.
    - `policy`: what a derivative is that cannot be relied on, see `POLICIES`.
    - `gmm`: what a fit ended at, and `log_likelihood` its mean over the data. Their own
        derivatives are not looked at.
    - `inputs`: what the derivatives are with respect to.
    """
    return gmm, log_likelihood


@fixed_point.defjvp
def _fixed_point_jvp(frozen, policy, primals, tangents):
    inputs, moved = primals[2], tangents[2]
    # By its own name, so that a derivative of this derivative is right as well.
    gmm, log_likelihood = fixed_point(frozen, policy, *primals)
    # Units in which all features count alike, and the frame of the E-step: no value depends on
    # either.
    seen, data, counts = constant((gmm, inputs.x, inputs.weights))
    units = Standardisation.of(seen, data, counts)
    ladder = ladder_of(seen, data, data.shape[0], products=2).ends()
    rows = rows_of(data, seen, counts, ladder, keep=False)
    way = ladder.choose(Form.of(seen, rows.frame), rows.reach)

    def model(free: PyTree, inputs: Inputs) -> AbstractMixture:
        held = split(units.into(inputs.start), frozen)[1]
        return units.back(eqx.combine(free, held))

    def residual(free: PyTree, inputs: Inputs) -> PyTree:
        before = model(free, inputs)
        background = before.log_background(inputs.x)
        moving = dataclasses.replace(rows, x=inputs.x, log_background=background)
        form = Form.of(before, rows.frame)
        moments, _ = moving.expect(form, inputs.weights, ladder, way)
        after = maximise(before, form, moments, rows.frame, inputs.floor, frozen)
        return jax.tree.map(difference, split(units.into(after), frozen)[0], free)

    free = split(units.into(gmm), frozen)[0]
    shift, reliable = _approach(residual, model, *constant((free, inputs)))
    free = _settled(policy, reliable, jax.tree.map(jnp.add, free, shift), _NOT_CONVERGED)

    _, push = jax.linearize(lambda free: residual(free, inputs), free)
    _, forced = jax.jvp(lambda inputs: residual(free, inputs), (inputs,), (moved,))
    free_moved = _solve(push, _linear(policy, reliable, forced), policy)
    free_moved = _linear(policy, reliable, free_moved)
    gmm, gmm_moved = jax.jvp(model, (free, inputs), (free_moved, moved))
    log_likelihood, value_moved = jax.jvp(
        lambda free, inputs: mean_of(model(free, inputs).log_prob(inputs.x), inputs.weights),
        (free, inputs),
        (free_moved, moved),
    )
    return (gmm, log_likelihood), (gmm_moved, value_moved)


def _approach(
    residual: Callable[[PyTree, Inputs], PyTree],
    model: Callable[[PyTree, Inputs], AbstractMixture],
    free: PyTree,
    inputs: Inputs,
) -> tuple[PyTree, Bool[Array, ""]]:
    """What leads to the fixed point by Newton's method, and whether its derivative is reliable.

    The size of a step is the root mean square, over the samples, of the change that it makes to
    log p(x). The first step has to be small: the fit then ended near this fixed point. The last
    one says how well rounding lets the point be known, and ‖step‖/‖residual‖ how much the solution
    of the linear system enlarges what is wrong: it is 1/(1 − ρ), as the residual that EM leaves
    lies along its slowest direction. The product of the two estimates the relative error of the
    derivative.
    """
    dtype = jax.tree.leaves(free)[0].dtype
    weights = 1 if inputs.weights is None else inputs.weights
    zero, none = jnp.zeros((), dtype), jax.tree.map(jnp.zeros_like, free)

    def going(carry: tuple[Any, ...]) -> Array:
        _, size, first, _, count = carry
        far = (size > bound(dtype) ** 2) & (first <= start_bound(dtype))
        return (count < 1) | ((count < _NEWTON_STEPS) & far)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        shift, _, first, growth, count = carry
        at = jax.tree.map(jnp.add, free, shift)
        left, push = jax.linearize(lambda free: residual(free, inputs), at)
        away = _solve(push, left, "nan")
        _, change = jax.jvp(lambda free: model(free, inputs).log_prob(inputs.x), (at,), (away,))
        size = jnp.sqrt(jnp.mean(weights * change**2))
        ratio = jnp.sqrt(
            squared_norm(away) / jnp.maximum(squared_norm(left), float(jnp.finfo(dtype).tiny))
        )
        first = jnp.where(count == 0, size, first)
        shift = jax.tree.map(jnp.add, shift, away)
        return shift, size, first, jnp.maximum(growth, ratio), count + 1

    start = (none, zero, zero, zero, jnp.zeros((), jnp.int32))
    shift, size, first, growth, _ = jax.lax.while_loop(going, step, start)
    error = growth * (size + float(jnp.finfo(dtype).eps))
    reliable = (first <= start_bound(dtype)) & (size <= bound(dtype)) & (error <= _LARGEST_ERROR)
    # What was not reached is not moved to: it may be NaN.
    return jax.tree.map(lambda leaf: jnp.where(reliable, leaf, 0), shift), reliable


def bound(dtype: Any) -> float:
    """How large the last of Newton's steps may be, in nats: the root mean square, over the samples,
    of the change that it makes to log p(x).

    It is ε^⅓, 6·10⁻⁶ in float64 and 5·10⁻³ in float32: the step of the best central difference.
    """
    return float(jnp.finfo(dtype).eps) ** (1 / 3)


def start_bound(dtype: Any) -> float:
    """How large the first of Newton's steps may be: how far the fit may be from its fixed point.

    The root of `bound`, 2·10⁻³ in float64 and 0.07 in float32. From further away the steps might
    lead to another fixed point, or to a saddle.
    """
    return bound(dtype) ** 0.5


def _settled(policy: str, reliable: Bool[Array, ""], tree: _Tree, message: str) -> _Tree:
    """The tree; an error at run time where the derivative is not reliable, if it may raise."""
    return eqx.error_if(tree, ~reliable, message) if policy == "raise" else tree


def _linear(policy: str, reliable: Bool[Array, ""], tree: PyTree) -> PyTree:
    """The derivative, or what stands for it where it is not reliable; linear in the tree."""
    if policy == "raise":
        return tree
    if policy == "zero":
        return jax.tree.map(lambda leaf: jnp.where(reliable, leaf, 0), tree)
    # A product, since the transpose of a choice of NaN would be zero.
    return jax.tree.map(
        lambda leaf: leaf * jnp.where(reliable, 1, jnp.nan).astype(leaf.dtype), tree
    )


def _solve(push: Callable[[PyTree], PyTree], b: PyTree, policy: str) -> PyTree:
    """x of −push(x) = b, where push is the derivative of M(θ) − θ; differentiable both ways.

    The eigenvalues of I − ∂M lie in (0, 1] with nothing added to the variances (Dempster, Laird
    & Rubin 1977), which Krylov methods are quick on.
    """

    def solve(matvec: Callable[[Array], Array], b: Array) -> Array:
        x, found = solve_by_products(matvec, b)
        return _linear(policy, found, _settled(policy, found, x, _NOT_ISOLATED))

    # As one vector: JAX transposes the solve only where every array of b depends on what is
    # differentiated, and the floor alone does not move the weights in one step.
    b, unravel = ravel_pytree(b)

    def matvec(x: Array) -> Array:
        return -ravel_pytree(push(unravel(x)))[0]

    return unravel(jax.lax.custom_linear_solve(matvec, b, solve, transpose_solve=solve))
