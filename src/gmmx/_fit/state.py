"""A fit between two steps."""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._abstract_mixture import AbstractMixture
from .status import Status


class FitState(eqx.Module):
    """A fit between two steps."""

    gmm: AbstractMixture
    """The model, the best so far where the fitter does not always rise"""
    n_iter: Int[Array, ""]
    """How many steps were made; −1 before the start was evaluated"""
    log_likelihood: Float[Array, "*starts"]
    """Mean log-likelihood of the model in hand, in nats a sample"""
    log_likelihood_diff: Float[Array, "*starts"]
    """Its change in the last step"""
    status: Status
    way: Int[Array, ""]
    """Which way of the fitter's ladder the steps go"""
    inner: PyTree
    """What the fitter itself remembers"""

    @classmethod
    def begin(cls, gmm: AbstractMixture, inner: PyTree, dtype: Any) -> Self:
        """The state before the start was evaluated."""
        return cls(
            gmm=gmm,
            n_iter=jnp.full((), -1, jnp.int32),
            log_likelihood=jnp.full((), -jnp.inf, dtype),
            log_likelihood_diff=jnp.full((), jnp.inf, dtype),
            status=Status.running,
            way=jnp.zeros((), jnp.int32),
            inner=inner,
        )


def where(condition: Bool[Array, ""], true: PyTree, false: PyTree) -> Any:
    """Select between two trees of like structure, leaf by leaf."""
    return jax.tree.map(lambda a, b: jax.lax.select(condition, a, b), true, false)


def squared_norm(tree: PyTree) -> Float[Array, ""]:
    """The sum of the squares of all numbers in a tree."""
    squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)]
    return sum(squares[1:], squares[0])


def difference(a: Array, b: Array) -> Array:
    """a − b; zero for the logit of a component that is not there."""
    return jnp.where(jnp.isfinite(a) & jnp.isfinite(b), a - b, 0)
