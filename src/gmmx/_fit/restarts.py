"""Several starts at once, and the best of them."""

import dataclasses
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._init import initialize
from .._mixture import GaussianMixture
from .base import AbstractFitter, FitState
from .options import positive
from .result import FitResult, Status, where


class _Data(eqx.Module):
    x: Float[Array, "n d"]
    inner: PyTree
    """What the inner fitter made of x"""


class Restarts(AbstractFitter):
    """Fits from `n_init` starts together, under `vmap`, and keeps the one of most likelihood.

    One start is the mixture that `fit` is given; the others are made from the data, by
    `gmmx.initialize` with as many components and the same structure.

    **Arguments:**

    - `fitter`: any fitter.
    - `n_init`: how many starts.
    - `method`: how the others are made, see `gmmx.initialize`.
    """

    fitter: AbstractFitter
    n_init: int = eqx.field(default=10, static=True, converter=positive("n_init"))
    method: str = eqx.field(default="kmeans++", static=True)

    @property
    def max_iter(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner fitter's; an abstract field may be given by a property."""
        return self.fitter.max_iter

    def without_limit(self) -> Self:
        return dataclasses.replace(self, fitter=self.fitter.without_limit())

    def prepare(self, x: Float[Array, "n d"], gmm: GaussianMixture) -> _Data:
        return _Data(x, self.fitter.prepare(x, gmm))

    def init(
        self,
        data: _Data,
        gmm: GaussianMixture,
        weights: Float[Array, " n"] | None,
        key: PRNGKeyArray,
    ) -> FitState:
        fit_keys = jax.random.split(key, self.n_init)

        def start(key: PRNGKeyArray) -> GaussianMixture:
            return initialize(
                data.x, gmm.n_components, gmm.covariance_type, method=self.method, key=key,
                weights=weights,
            )  # fmt: skip

        starts = jax.tree.map(lambda leaf: leaf[None], gmm)
        if self.n_init > 1:
            drawn = jax.vmap(start)(jax.random.split(jax.random.fold_in(key, 1), self.n_init - 1))
            starts = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), starts, drawn)
        members = jax.vmap(self.fitter.init, in_axes=(None, 0, None, 0))(
            data.inner, starts, weights, fit_keys
        )
        return self._gather(members)

    def _gather(self, members: FitState) -> FitState:
        """The state of all starts, as one."""
        best = jnp.argmax(_rankable(members.log_likelihood))
        running = jnp.any(members.status == Status.running)
        return FitState(
            gmm=jax.tree.map(lambda leaf: leaf[best], members.gmm),
            n_iter=jnp.max(members.n_iter),
            log_likelihood=members.log_likelihood,
            log_likelihood_diff=members.log_likelihood_diff,
            status=Status.where(
                running, Status.running, jax.tree.map(lambda leaf: leaf[best], members.status)
            ),
            inner=members,
        )

    def step(self, state: FitState, data: _Data, weights: Float[Array, " n"] | None) -> FitState:
        def advance(member: FitState) -> FitState:
            moved = self.fitter.step(member, data.inner, weights)
            return where(member.status == Status.running, moved, member)

        return self._gather(jax.vmap(advance)(state.inner))

    def finish(self, state: FitState, data: _Data, weights: Float[Array, " n"] | None) -> FitResult:
        results = jax.vmap(self.fitter.finish, in_axes=(0, None, None))(
            state.inner, data.inner, weights
        )
        best = jnp.argmax(_rankable(results.log_likelihood))
        result = jax.tree.map(lambda leaf: leaf[best], results)
        # Starts that have starts of their own are counted through.
        each = state.log_likelihood[0].size
        start = best.astype(result.start.dtype) * each + result.start
        return dataclasses.replace(result, start=start)

    def attach(
        self,
        result: FitResult,
        x: Float[Array, "n d"],
        start: GaussianMixture | None,
        weights: Float[Array, " n"] | None,
    ) -> FitResult:
        """The inner fitter's derivatives, of the start that was chosen."""
        return self.fitter.attach(result, x, None, weights)


def _rankable(log_likelihood: Float[Array, "starts *inner"]) -> Float[Array, " starts"]:
    """Each start's likelihood, with one that failed as the last choice."""
    ranked = jnp.where(jnp.isnan(log_likelihood), -jnp.inf, log_likelihood)
    # A start that has starts of its own is as good as the best of them.
    return jnp.max(ranked.reshape(ranked.shape[0], -1), axis=1)
