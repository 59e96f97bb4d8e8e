"""Fits from several starts."""

import dataclasses
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._abstract_mixture import AbstractMixture
from .._background import BackgroundMixture
from .._data import Samples
from .._engine.ladder import Ladder
from .._engine.summary import AxisName, Summary
from .._init import initialize
from .base import AbstractFitter
from .options import positive
from .result import FitResult
from .state import FitState, where
from .status import Status


class _Data(eqx.Module):
    x: Samples | Summary
    """From which the other starts come"""
    inner: PyTree
    """The data of the inner fitter"""


class Restarts(AbstractFitter):
    """Fits from `n_init` starts at once, under `vmap`; keeps the best.

    That is the one of greatest likelihood among those whose components are all clusters, see
    `FitResult.spurious`: a component that collapses onto a few samples raises the likelihood
    without any bound.

    The first start is the mixture that `fit` is given. The others come from the data, by
    `gmmx.initialize` with the same number of components and the same structure.

    **Arguments:**

    - `fitter`: any fitter.
    - `n_init`: number of starts.
    - `method`: of the other starts, see `gmmx.initialize`.
    """

    fitter: AbstractFitter
    n_init: int = eqx.field(default=10, static=True, converter=positive("n_init"))
    method: str = eqx.field(default="kmeans++", static=True)

    @property
    def max_iter(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the inner fitter."""
        return self.fitter.max_iter

    @property
    def reg_covar(self) -> Any:
        return self.fitter.reg_covar

    @property
    def axis_name(self) -> AxisName:
        if self.fitter.axis_name is not None:
            raise ValueError(
                "Restarts draws its starts from the rows of one device: with an axis_name fit each "
                "start by itself."
            )
        return None

    @property
    def by_sums(self) -> bool:
        return self.fitter.by_sums

    def without_limit(self) -> Self:
        return dataclasses.replace(self, fitter=self.fitter.without_limit())

    def beside(self, weights: Any) -> Self:
        return dataclasses.replace(self, fitter=self.fitter.beside(weights))

    def ladder(self, x: Samples, gmm: AbstractMixture) -> Ladder:
        return self.fitter.ladder(x, gmm)

    def arrange(
        self, x: Samples, gmm: AbstractMixture, weights: Float[Array, " n"] | None
    ) -> tuple[Any, Float[Array, " m"] | None]:
        return self.fitter.arrange(x, gmm, weights)

    def prepare(
        self,
        x: Samples,
        gmm: AbstractMixture,
        weights: Float[Array, " n"] | None,
        ladder: Ladder,
    ) -> _Data:
        return _Data(x, self.fitter.prepare(x, gmm, weights, ladder))

    def init(
        self,
        data: _Data,
        gmm: AbstractMixture,
        weights: Float[Array, " n"] | None,
        key: PRNGKeyArray,
    ) -> FitState:
        fit_keys = jax.random.split(key, self.n_init)

        rows, counts = data.x, weights
        if isinstance(rows, Summary):
            rows, counts = rows.x, rows.weights
        background = gmm.background if isinstance(gmm, BackgroundMixture) else None

        def start(key: PRNGKeyArray) -> AbstractMixture:
            return initialize(
                rows, gmm.n_components, gmm.covariance_type, method=self.method, key=key,
                weights=counts, reg_covar=self.reg_covar, background=background,
                rank=gmm.structure.n_latent,
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
        best = jnp.argmax(_rankable(members.log_likelihood, 1))
        running = jnp.any(members.status == Status.running)
        return FitState(
            gmm=jax.tree.map(lambda leaf: leaf[best], members.gmm),
            n_iter=jnp.max(members.n_iter),
            log_likelihood=members.log_likelihood,
            log_likelihood_diff=members.log_likelihood_diff,
            status=Status.where(
                running, Status.running, jax.tree.map(lambda leaf: leaf[best], members.status)
            ),
            way=jnp.max(members.way),
            inner=members,
        )

    def update(
        self, state: FitState, data: _Data, weights: Float[Array, " n"] | None, ladder: Ladder
    ) -> FitState:
        def advance(member: FitState) -> FitState:
            moved = self.fitter.update(member, data.inner, weights, ladder)
            return where(member.status == Status.running, moved, member)

        return self._gather(jax.vmap(advance)(state.inner))

    def evaluate(
        self, state: FitState, data: _Data, weights: Float[Array, " n"] | None, ladder: Ladder
    ) -> FitState:
        def advance(member: FitState) -> FitState:
            # All of them go the same way, and made as many steps if they still run.
            member = dataclasses.replace(member, way=state.way)
            begun = dataclasses.replace(member, n_iter=state.n_iter)
            seen = self.fitter.evaluate(begun, data.inner, weights, ladder)
            return where(member.status == Status.running, seen, member)

        return self._gather(jax.vmap(advance)(state.inner))

    def summarised(self, summary: Summary, gmm: AbstractMixture, ladder: Ladder) -> _Data:
        return _Data(summary, self.fitter.summarised(summary, gmm, ladder))

    def asked(self, state: FitState, data: _Data) -> PyTree:
        return jax.vmap(lambda member: self.fitter.asked(member, data.inner))(state.inner)

    def sizes(self, data: _Data, asked: PyTree, ladder: Ladder) -> Float[Array, " ways"]:
        each = jax.vmap(lambda form: self.fitter.sizes(data.inner, form, ladder))(asked)
        return jnp.max(each, axis=0)

    def sums(
        self,
        data: _Data,
        gmm: AbstractMixture,
        asked: PyTree,
        x: Float[Array, "n d"],
        weights: Float[Array, " n"],
        ladder: Ladder,
    ) -> PyTree:
        return jax.vmap(
            lambda form: self.fitter.sums(data.inner, gmm, form, x, weights, ladder)
        )(asked)  # fmt: skip

    def answered(self, state: FitState, data: _Data, asked: PyTree, sums: PyTree) -> FitState:
        def advance(member: FitState, asked: PyTree, sums: PyTree) -> FitState:
            member = dataclasses.replace(member, way=state.way)
            begun = dataclasses.replace(member, n_iter=state.n_iter)
            seen = self.fitter.answered(begun, data.inner, asked, sums)
            return where(member.status == Status.running, seen, member)

        return self._gather(jax.vmap(advance)(state.inner, asked, sums))

    def finish(self, state: FitState) -> FitResult:
        results = jax.vmap(self.fitter.finish)(state.inner)
        best = best_of(results)
        result = jax.tree.map(lambda leaf: leaf[best], results)
        # Nested starts have consecutive numbers.
        each = state.log_likelihood[0].size
        start = best.astype(result.start.dtype) * each + result.start
        return dataclasses.replace(result, start=start)

    def attach(
        self,
        result: FitResult,
        x: Samples,
        start: AbstractMixture | None,
        weights: Float[Array, " n"] | None,
    ) -> FitResult:
        """The inner fitter's derivatives, of the start that was chosen."""
        return self.fitter.attach(result, x, None, weights)


def best_of(results: FitResult) -> Int[Array, ""]:
    """Which of a batch of results to keep: the likeliest of those whose components are clusters.

    Of all that did not fail where none is such, and of all where every one failed.
    """
    grade, likely = rank(results)
    return jnp.argmax(jnp.where(grade == jnp.max(grade), likely, -jnp.inf))


def rank(result: FitResult) -> tuple[Int[Array, "*starts"], Float[Array, "*starts"]]:
    """The grade of a result, or of each of a batch, and its likelihood, which tells equals apart.

    Two where all components are clusters, one where some are not, zero where the fit failed.
    """
    sound = ~jnp.any(result.spurious, axis=-1)
    grade = jnp.where(result.failed, 0, jnp.where(sound, 2, 1)).astype(jnp.int32)
    return grade, _rankable(result.log_likelihood, grade.ndim)


def _rankable(log_likelihood: Float[Array, "*starts"], n_axes: int) -> Float[Array, "*outer"]:
    """The likelihood of each start, of so many axes of them; −∞ for one that failed."""
    ranked = jnp.where(jnp.isnan(log_likelihood), -jnp.inf, log_likelihood)
    # A start with starts of its own counts as the best of them.
    return jnp.max(ranked, axis=tuple(range(n_axes, ranked.ndim)))
