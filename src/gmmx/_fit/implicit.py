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
from jaxtyping import Array, Float, PyTree

from .._abstract_mixture import AbstractMixture
from .._data import Samples
from .._engine.form import Form
from .._engine.kinds import ladder_of, rows_of
from .._engine.moments import maximise
from .frozen import split
from .krylov import solve_by_products
from .result import FitResult, mean_of
from .standardise import Standardisation

_NOT_CONVERGED = (
    "the fit has not converged enough to be differentiated: its model is too far from the fixed "
    "point of EM, or a component has lost all its samples or become equal to another. Lower tol "
    "and raise max_iter, for instance EMFitter(tol=1e-12, max_iter=10_000), or take fewer "
    "components. If no gradient through the fit is wanted, pass jax.lax.stop_gradient(x) to it."
)
_NOT_ISOLATED = (
    "the linear system of the gradient through a fit was not solved: the optimum is not isolated, "
    "or nearly so. Two components may be equal, or one may rest on too few samples: take fewer "
    "components, raise reg_covar, or fit in float64 "
    "(jax.config.update('jax_enable_x64', True))."
)


_Tree = TypeVar("_Tree")


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


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def fixed_point(
    frozen: frozenset[str],
    gmm: AbstractMixture,
    log_likelihood: Float[Array, ""],
    inputs: Inputs,
) -> tuple[AbstractMixture, Float[Array, ""]]:
    """The arguments as they are, with the derivatives of an EM fixed point and of its likelihood.

    **Arguments:**

    - `frozen`: the parameters that EM leaves alone.
    - `gmm`: what a fit ended at, and `log_likelihood` its mean over the data. Their own
        derivatives are not looked at.
    - `inputs`: what the derivatives are with respect to.
    """
    return gmm, log_likelihood


@fixed_point.defjvp
def _fixed_point_jvp(frozen, primals, tangents):
    inputs, moved = primals[2], tangents[2]
    # By its own name, so that a derivative of this derivative is right as well.
    gmm, log_likelihood = fixed_point(frozen, *primals)
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
        return jax.tree.map(jnp.subtract, split(units.into(after), frozen)[0], free)

    free = split(units.into(gmm), frozen)[0]
    left, push = jax.linearize(lambda free: residual(free, inputs), free)

    # Newton's step to the fixed point says how far the fit is from it.
    away = _solve(push, left)
    _, change = jax.jvp(lambda free: model(free, inputs).log_prob(inputs.x), (free,), (away,))
    weights = 1 if inputs.weights is None else inputs.weights
    distance = jnp.sqrt(jnp.mean(weights * change**2))
    free = eqx.error_if(free, ~(distance <= bound(distance.dtype)), _NOT_CONVERGED)

    _, forced = jax.jvp(lambda inputs: residual(free, inputs), (inputs,), (moved,))
    free_moved = _solve(push, forced)
    _, gmm_moved = jax.jvp(model, (free, inputs), (free_moved, moved))
    _, value_moved = jax.jvp(
        lambda free, inputs: mean_of(model(free, inputs).log_prob(inputs.x), inputs.weights),
        (free, inputs),
        (free_moved, moved),
    )
    return (gmm, log_likelihood), (gmm_moved, value_moved)


def bound(dtype: Any) -> float:
    """How far from its fixed point a fit may be: the root mean square, over the samples, of the
    change that Newton's step makes to log p(x), in nats.

    It is ε^⅓, 6·10⁻⁶ in float64 and 5·10⁻³ in float32: the step of the best central difference.
    The relative error that is left in a gradient is of this order, over √(1 − ρ) where EM has the
    spectral radius ρ.
    """
    return float(jnp.finfo(dtype).eps) ** (1 / 3)


def _solve(push: Callable[[PyTree], PyTree], b: PyTree) -> PyTree:
    """x of −push(x) = b, where push is the derivative of M(θ) − θ; differentiable both ways.

    The eigenvalues of I − ∂M lie in (0, 1] with nothing added to the variances (Dempster, Laird
    & Rubin 1977), which Krylov methods are quick on.
    """

    def solve(matvec: Callable[[Array], Array], b: Array) -> Array:
        x, found = solve_by_products(matvec, b)
        return eqx.error_if(x, ~found, _NOT_ISOLATED)

    # As one vector: JAX transposes the solve only where every array of b depends on what is
    # differentiated, and the floor alone does not move the weights in one step.
    b, unravel = ravel_pytree(b)

    def matvec(x: Array) -> Array:
        return -ravel_pytree(push(unravel(x)))[0]

    return unravel(jax.lax.custom_linear_solve(matvec, b, solve, transpose_solve=solve))
