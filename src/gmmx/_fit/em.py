"""Closed-form expectation–maximisation."""

import dataclasses
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._accuracy import PACKED, Route
from .._mixture import GaussianMixture
from .._moments import Survey, expect, is_empty, maximise
from .base import AbstractFitter, FitState
from .frozen import check_frozen
from .implicit import Inputs, fixed_point, refuse
from .options import positive, sweepable
from .result import FitResult, Status, conclude, where

# The largest relative error of a covariance in a step that is not made again. The next step, which
# sees it, is accurate, and none converges on a step that is not.
_ROUGH = 0.02

# After so many steps in which too many rows were near narrow components, these are not whitened
# apart any more: each such step is made twice. The first steps may be of the kind in any fit.
_PATIENCE = 3


class _Memory(eqx.Module):
    previous: GaussianMixture
    """The model before the last step: of finite likelihood"""
    gain: Float[Array, ""]
    """The least gain of likelihood that the last M-step promised; zero without `reg_covar`"""
    route: Route
    crowded: Int[Array, ""]
    """How many steps were taken back because too many rows were near narrow components"""
    absent: Bool[Array, " k"]
    """The components that stood at weight zero before the first step: they have lost nothing"""
    empty: Bool[Array, ""]


class _Data(eqx.Module):
    x: Float[Array, "n d"]
    survey: Survey


class EMFitter(AbstractFitter):
    r"""Expectation–maximisation: responsibilities, then the parameters that fit them best.

    $$z_{ik} \propto w_k \mathcal{N}(x_i; \mu_k, \Sigma_k),\quad n_k = \sum_i z_{ik},\quad
      w_k = \tfrac{n_k}{n},\quad \mu_k = \tfrac{1}{n_k}\sum_i z_{ik} x_i,\quad
      \Sigma_k = \tfrac{1}{n_k}\sum_i z_{ik}(x_i-\mu_k)(x_i-\mu_k)^\top + \epsilon I$$

    The likelihood, less the penalty that ε stands for, never falls (Dempster, Laird & Rubin 1977).

    **Arguments:**

    - `tol`: the fit has converged when the mean log-likelihood changes by less in one step.
    - `max_iter`: the most steps.
    - `reg_covar`: ε, added to the variances, in the squared units of the data.
    - `frozen`: what stays as it is: any of `"weights"`, `"means"`, `"covariances"`.

    Another `tol`, `max_iter` or `reg_covar` compiles nothing new.
    """

    tol: Float[Array, ""] | float = eqx.field(default=1e-3, converter=sweepable)
    max_iter: int = eqx.field(default=100, static=True, converter=positive("max_iter"))
    reg_covar: Float[Array, ""] | float = eqx.field(default=1e-6, converter=sweepable)
    frozen: frozenset[str] = eqx.field(default=(), static=True, converter=check_frozen)

    def without_limit(self) -> Self:
        return dataclasses.replace(self, max_iter=1)

    def prepare(self, x: Float[Array, "n d"], gmm: GaussianMixture) -> _Data:
        return _Data(x, Survey.of(gmm, x, keep=True))

    def init(
        self,
        data: _Data,
        gmm: GaussianMixture,
        weights: Float[Array, " n"] | None,
        key: PRNGKeyArray,
    ) -> FitState:
        dtype = data.x.dtype
        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        route = data.survey.route(gmm)
        return FitState(
            gmm=gmm,
            n_iter=jnp.zeros((), jnp.int32),
            log_likelihood=jnp.full((), -jnp.inf, dtype),
            log_likelihood_diff=jnp.full((), jnp.inf, dtype),
            status=Status.running,
            inner=_Memory(gmm, zero, route, none, gmm.logits == -jnp.inf, jnp.asarray(False)),
        )

    def step(self, state: FitState, data: _Data, weights: Float[Array, " n"] | None) -> FitState:
        memory, gmm = state.inner, state.gmm
        x, survey = data.x, data.survey
        tol = jnp.asarray(self.tol, x.dtype)
        reg_covar = jnp.asarray(self.reg_covar, x.dtype)
        moments = expect(gmm, x, weights, survey, memory.route)
        log_likelihood = moments.log_likelihood / moments.count
        updated = maximise(gmm, moments, reg_covar, self.frozen)

        # The moments have to be accurate, and for the model that came out as well. Where they are
        # not, the step is taken back and made again in a slower way.
        crowded = moments.crowded > 0
        n_crowded = memory.crowded + crowded.astype(jnp.int32)
        wanted = survey.route(updated, apart=n_crowded < _PATIENCE)
        error = memory.route.error(wanted)
        taken_back = crowded | (error > _ROUGH)
        slower = where(crowded, memory.route.together(), memory.route.both(wanted))
        again = dataclasses.replace(
            state, inner=dataclasses.replace(memory, route=slower, crowded=n_crowded)
        )

        d = gmm.n_features
        narrowing = updated.structure.precision_trace(d) - gmm.structure.precision_trace(d)
        share = moments.weight / moments.count
        first = state.n_iter == 0
        change = jnp.where(first, jnp.inf, log_likelihood - state.log_likelihood)
        # What rounding alone may move the likelihood by.
        noise = 2e3 * float(jnp.finfo(x.dtype).eps) * jnp.maximum(1, jnp.abs(log_likelihood))
        fell = change - memory.gain < -jnp.maximum(tol, noise)
        singular = ~_is_finite(updated)
        non_finite = ~jnp.isfinite(log_likelihood)

        settled = (jnp.abs(change) < tol) & (error == 0)
        status = Status.where(settled, Status.converged, Status.running)
        status = Status.where(singular, Status.singular_covariance, status)
        status = Status.where(fell, Status.likelihood_decreased, status)
        status = Status.where(non_finite, Status.non_finite, status)
        good = where(singular, gmm, updated)
        moved = FitState(
            gmm=where(fell | non_finite, memory.previous, good),
            n_iter=state.n_iter + 1,
            log_likelihood=log_likelihood,
            log_likelihood_diff=change,
            status=status,
            inner=_Memory(
                previous=where(non_finite, memory.previous, gmm),
                gain=reg_covar / 2 * jnp.sum(share * narrowing),
                route=wanted,
                crowded=n_crowded,
                absent=memory.absent,
                empty=jnp.any(is_empty(moments) & ~memory.absent),
            ),
        )
        return where(taken_back, again, moved)

    def finish(
        self,
        state: FitState,
        data: _Data,
        weights: Float[Array, " n"] | None,
    ) -> FitResult:
        memory, survey = state.inner, data.survey
        # Of the moments that this makes a compiler leaves what the likelihood needs.
        survey = survey.together()
        route = survey.route(state.gmm)
        moments = expect(state.gmm, data.x, weights, survey, route)
        log_likelihood = moments.log_likelihood / moments.count
        lost = ~jnp.isfinite(log_likelihood) & (state.status != Status.non_finite)
        state = dataclasses.replace(
            state,
            gmm=where(lost, memory.previous, state.gmm),
            status=Status.where(lost, Status.non_finite, state.status),
        )
        log_likelihood = jnp.where(lost, state.log_likelihood, log_likelihood)
        packed = jnp.mean((memory.route.ways == PACKED).astype(data.x.dtype))
        return conclude(state, log_likelihood, packed, memory.empty)

    def attach(
        self,
        result: FitResult,
        x: Float[Array, "n d"],
        start: GaussianMixture | None,
        weights: Float[Array, " n"] | None,
    ) -> FitResult:
        """By the implicit function theorem, see the page on gradients through a fit."""
        if start is None and self.frozen:
            # What the frozen parameters were made from is not known here.
            name = "Restarts of an EMFitter with frozen parameters"
            return refuse(name, result, (self, x, weights))
        start = result.gmm if start is None else start
        inputs = Inputs(x, weights, jnp.asarray(self.reg_covar, x.dtype), start)
        found = fixed_point(self.frozen, result.gmm, result.log_likelihood, inputs)
        return dataclasses.replace(result, gmm=found[0], log_likelihood=found[1])


def _is_finite(gmm: GaussianMixture) -> Bool[Array, ""]:
    """Whether the parameters are finite; a weight of zero, a logit of −∞, is."""
    parts = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((gmm.means, gmm.structure))]
    return jnp.all(jnp.stack([*parts, ~jnp.any(jnp.isnan(gmm.logits))]))
