"""Closed-form expectation–maximisation."""

import dataclasses
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import _checks
from .._abstract_mixture import AbstractMixture
from .._covariance.factors import largest_factor
from .._data import Data, Samples
from .._engine.alike import in_blocks
from .._engine.conjugate import Conjugate
from .._engine.floor import RELATIVE, Floor
from .._engine.form import Form
from .._engine.kinds import rows_of
from .._engine.ladder import Ladder
from .._engine.moments import Moments, is_empty, maximise
from .._engine.rows import AbstractRows, Rows
from .._engine.summary import AxisName, Summary
from .base import AbstractFitter
from .frozen import check_frozen
from .implicit import Inputs, check_policy, fixed_point, refuse
from .options import floor, positive, sweepable
from .prior import ConjugatePrior
from .result import FitResult, conclude
from .squarem import Squarem
from .standardise import Standardisation
from .state import FitState, where
from .status import Status

# The least deviation of a component, in units of ε times that of the rows.
_NARROWEST = 4


class _Data(eqx.Module):
    rows: AbstractRows
    floor: Floor
    units: Standardisation | None
    """Where leaps are measured"""
    prior: Conjugate | None


class _Memory(eqx.Module):
    floor: Floor
    form: Form
    """The model in hand, in the frame of the rows"""
    moments: Moments
    """Of the model in hand"""
    floor_share: Float[Array, " k"]
    """tr FΛ_k of the model in hand, which the floor penalises"""
    log_prior: Float[Array, ""]
    """log p(θ) of the model in hand; zero without a prior"""
    previous: AbstractMixture
    """The model before the last step: of finite likelihood"""
    gain: Float[Array, ""]
    """By how much the last step changed the likelihood, or the posterior, without its sign"""
    settled: Bool[Array, ""]
    """Whether the last step found the fit converged: one more follows"""
    absent: Bool[Array, " k"]
    """The components at weight zero before the first step, which have lost nothing"""
    squarem: Squarem | None


class EMFitter(AbstractFitter):
    r"""Expectation–maximisation: responsibilities, then the parameters that fit them best.

    $$z_{ik} \propto w_k \mathcal{N}(x_i; \mu_k, \Sigma_k),\quad n_k = \sum_i z_{ik},\quad
      w_k = \tfrac{n_k}{n},\quad \mu_k = \tfrac{1}{n_k}\sum_i z_{ik} x_i,\quad
      \Sigma_k = \tfrac{1}{n_k}\sum_i z_{ik}(x_i-\mu_k)(x_i-\mu_k)^\top + F,\quad
      F = \epsilon \operatorname{diag}(s_1^2, \dots, s_d^2)$$

    The likelihood, less the penalty that F stands for, never falls (Dempster, Laird & Rubin 1977).

    The gains of single steps become small long before the fit is at its optimum. They fall by a
    ratio a, so a gain g leaves about g·a/(1 − a) to come (Aitken's estimate; Böhning et al. 1994).

    **Arguments:**

    - `tol`: the fit has converged when both the last gain of the mean log-likelihood and the
        estimate of all further gains are less; unless zero, also when the gain is rounding.
    - `look_ahead`: False leaves the estimate out: a fit ends by its last gain, as scikit-learn's.
    - `max_iter`: maximum number of steps.
    - `reg_covar`: ε, a part of each feature's variance s² in the data, added to the variances of
        the components; or `(d,)`, the variances to add, in the squared units of the data. A
        constant feature counts as of variance one. At least some ε² of the dtype are added.
    - `frozen`: what stays as it is: any of `"weights"`, `"means"`, `"covariances"`.
    - `accelerate`: every second step goes further than EM would, by squared extrapolation
        (Varadhan & Roland 2008), unless the likelihood would fall. This saves most steps of a fit
        that EM takes hundreds of, and costs little in a short one.
    - `on_unconverged`: what a derivative through the fit is where it cannot be relied on, see the
        page on gradients through a fit: `"raise"` an error, or `"nan"` or `"zero"`, which in a
        batch leave the other fits as they are.
    - `prior`: of the parameters; the fit then has the greatest posterior density (MAP).
    - `axis_name`: of a mesh, inside your own `jax.shard_map`: each device has some of the rows,
        moments are summed over this axis, and every device has the fit to all rows.

    Another `tol`, `max_iter` or `reg_covar` compiles nothing new.
    """

    tol: Float[Array, ""] | float = eqx.field(default=1e-5, converter=sweepable)
    max_iter: int = eqx.field(default=1000, static=True, converter=positive("max_iter"))
    reg_covar: Float[Array, "*d"] | float = eqx.field(default=RELATIVE, converter=floor)  # pyright: ignore[reportIncompatibleMethodOverride]
    frozen: frozenset[str] = eqx.field(default=(), static=True, converter=check_frozen)
    accelerate: bool = eqx.field(default=False, static=True)
    prior: ConjugatePrior | None = None
    look_ahead: bool = eqx.field(default=True, static=True)
    on_unconverged: str = eqx.field(default="raise", static=True, converter=check_policy)
    axis_name: AxisName = eqx.field(default=None, static=True)  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def by_sums(self) -> bool:
        return True

    def without_limit(self) -> Self:
        # Nor does the policy of derivatives change a step.
        return dataclasses.replace(self, max_iter=1, on_unconverged="raise")

    def beside(self, weights: Any) -> Self:
        if self.prior is None:
            return self
        return dataclasses.replace(self, prior=self.prior.beside(weights))

    def as_weights(self, weights: Any, n: int, dtype: Any) -> Float[Array, " n"] | None:
        if weights is None or self.axis_name is None:
            return super().as_weights(weights, n, dtype)
        # A mean of one over all devices, and not on each of them.
        weights = _checks.as_weights(weights, (n,), dtype)
        return weights / jax.lax.pmean(jnp.mean(weights), self.axis_name)

    def arrange(
        self, x: Samples, gmm: AbstractMixture, weights: Float[Array, " n"] | None
    ) -> tuple[Any, Float[Array, " m"] | None]:
        if isinstance(x, Data) and x.projection is None and not type(gmm.structure).axis_aligned:
            found = in_blocks(x, weights)
            if found is not None:
                return found
        return super().arrange(x, gmm, weights)

    def prepare(
        self,
        x: Samples,
        gmm: AbstractMixture,
        weights: Float[Array, " n"] | None,
        ladder: Ladder,
    ) -> _Data:
        if self.axis_name is not None:
            if isinstance(x, Data):
                raise ValueError("axis_name is for complete rows; x is a gmmx.Data.")
            diagonal = type(gmm.structure).axis_aligned
            summary = Summary.over(x, weights, self.axis_name, turned=not diagonal)
            data = self.summarised(summary, gmm, ladder)
            assert isinstance(data.rows, Rows)  # as are all that are summarised
            return dataclasses.replace(data, rows=data.rows.holding(x, gmm, ladder))
        rows = rows_of(x, gmm, weights, ladder)
        units = Standardisation.of(gmm, x, weights) if self.accelerate else None
        prior = None if self.prior is None else self.prior.of(x, gmm, weights)
        return _Data(rows, Floor.of(self.reg_covar, x, weights), units, prior)

    def init(
        self,
        data: _Data,
        gmm: AbstractMixture,
        weights: Float[Array, " n"] | None,
        key: PRNGKeyArray,
    ) -> FitState:
        zero, absent = jnp.zeros((), gmm.dtype), gmm.logits == -jnp.inf
        # The first evaluation fills these in.
        weight, means, factors = jax.tree.map(
            jnp.zeros_like, (gmm.logits, gmm.means, gmm.factors())
        )
        behind = None if gmm.log_background_weight is None else zero
        form = Form(weight, means, factors, behind)
        moments = Moments(weight, means, factors, zero, zero, behind)
        squarem = Squarem.begin(gmm) if self.accelerate else None
        settled = jnp.asarray(False)
        memory = _Memory(
            data.floor, form, moments, weight, zero, gmm, zero, settled, absent, squarem
        )
        return FitState.begin(gmm, memory, gmm.dtype)

    def update(
        self, state: FitState, data: _Data, weights: Float[Array, " n"] | None, ladder: Ladder
    ) -> FitState:
        """The M-step."""
        memory, frame = state.inner, data.rows.frame
        added = memory.floor.variances
        prior = None if data.prior is None else data.prior.added(state.gmm, memory.form, frame)
        updated = maximise(state.gmm, memory.form, memory.moments, frame, added, self.frozen, prior)
        squarem = memory.squarem
        if squarem is not None:
            assert data.units is not None  # both are there, or neither is
            updated, squarem = squarem.step(state.gmm, updated, data.units, self.frozen)
        memory = dataclasses.replace(memory, previous=state.gmm, squarem=squarem)
        return dataclasses.replace(state, gmm=updated, inner=memory)

    def evaluate(
        self, state: FitState, data: _Data, weights: Float[Array, " n"] | None, ladder: Ladder
    ) -> FitState:
        """The E-step."""
        form = self.asked(state, data)
        moments, size = data.rows.expect(form, weights, ladder, state.way)
        if self.axis_name is not None:
            moments = jax.lax.psum(moments, self.axis_name)
        after = self.answered(state, data, form, moments)
        return dataclasses.replace(after, way=jnp.where(size <= 1, state.way, state.way + 1))

    # The same in three parts, for rows that come in blocks: of each block `sums`.

    def summarised(self, summary: Summary, gmm: AbstractMixture, ladder: Ladder) -> _Data:
        rows = Rows.of_summary(summary, ladder, gmm)
        units = Standardisation.of_frame(gmm, summary.frame(False)) if self.accelerate else None
        prior = None if self.prior is None else self.prior.of_summary(summary, gmm)
        return _Data(rows, Floor.of_variances(self.reg_covar, summary.variance), units, prior)

    def asked(self, state: FitState, data: _Data) -> Form:
        return Form.of(state.gmm, data.rows.frame)

    def sizes(self, data: _Data, asked: Form, ladder: Ladder) -> Float[Array, " ways"]:
        return jnp.stack([way.size(asked, data.rows.reach) for way in ladder.ways])

    def sums(
        self,
        data: _Data,
        gmm: AbstractMixture,
        asked: Form,
        x: Float[Array, "n d"],
        weights: Float[Array, " n"],
        ladder: Ladder,
    ) -> Moments:
        assert isinstance(data.rows, Rows)  # complete rows, of which the summary is
        rows = data.rows.holding(x, gmm, ladder)
        return rows.expect(asked, weights, ladder, jnp.asarray(ladder.first, jnp.int32))[0]

    def answered(self, state: FitState, data: _Data, asked: Form, sums: Moments) -> FitState:
        """What the likelihood of the model in hand says of it."""
        memory, gmm, form, moments = state.inner, state.gmm, asked, sums
        tol, floor_share = jnp.asarray(self.tol, gmm.dtype), memory.floor.shares(gmm)
        log_likelihood = moments.log_likelihood / moments.count
        first = state.n_iter == 0
        change = jnp.where(first, jnp.inf, log_likelihood - state.log_likelihood)
        # With a prior it is the posterior that never falls.
        log_prior = memory.log_prior if data.prior is None else data.prior.log_prob(gmm)
        gain = change + (log_prior - memory.log_prior) / moments.count
        # The M-step promised at least this much, and with a floor it may be negative.
        share = memory.moments.weight / memory.moments.count
        promised = jnp.sum(share * (floor_share - memory.floor_share)) / 2
        # What rounding moves the likelihood by: usually, and at most.
        rounding = 4 * float(jnp.finfo(gmm.dtype).eps) * jnp.maximum(1, jnp.abs(log_likelihood))
        fell = gain - promised < -jnp.maximum(tol, 500 * rounding)
        squarem = memory.squarem
        if squarem is not None:
            # Of a leap nothing was promised. One that lowers the likelihood is taken back.
            fell &= ~squarem.leaping
        non_finite = ~jnp.isfinite(log_likelihood)
        # NaN, or narrower than rounding, beside the deviations of the rows.
        narrowest = _NARROWEST * float(jnp.finfo(gmm.dtype).eps)
        singular = ~first & ~(largest_factor(form.factors) * narrowest <= 1)
        lost = (fell | non_finite | singular) & ~first

        status = Status.where(memory.settled, Status.converged, Status.running)
        status = Status.where(fell, Status.likelihood_decreased, status)
        status = Status.where(non_finite, Status.non_finite, status)
        status = Status.where(singular, Status.singular_covariance, status)
        gained = jnp.abs(gain)
        settled = gained < tol
        if self.look_ahead:
            slowness = gained / memory.gain if squarem is None else squarem.slowness
            settled &= _left(gained, slowness) < tol
            settled |= (tol > 0) & (gained <= rounding)
        if squarem is not None:
            # How little a leap gains says nothing by itself; how much says that more is to come.
            settled &= ~squarem.leaping & (memory.gain < tol)
        memory = dataclasses.replace(
            memory,
            form=form,
            moments=moments,
            floor_share=floor_share,
            log_prior=log_prior,
            gain=gained,
            settled=settled,
        )
        after = dataclasses.replace(
            state,
            gmm=where(lost, memory.previous, gmm),
            log_likelihood=jnp.where(lost, state.log_likelihood, log_likelihood),
            log_likelihood_diff=change,
            status=status,
            inner=memory,
        )
        if squarem is None:
            return after
        refused = squarem.leaping & ~(gain >= 0) & ~first
        inner = dataclasses.replace(state.inner, squarem=squarem.refused())
        return where(refused, dataclasses.replace(state, gmm=memory.previous, inner=inner), after)

    def finish(self, state: FitState) -> FitResult:
        memory = state.inner
        return conclude(
            state,
            floor=memory.floor.variances,
            spurious=memory.floor.spurious(state.gmm, memory.moments.count, self.frozen),
            empty=jnp.any(is_empty(memory.moments) & ~memory.absent),
        )

    def attach(
        self,
        result: FitResult,
        x: Samples,
        start: AbstractMixture | None,
        weights: Float[Array, " n"] | None,
    ) -> FitResult:
        """By the implicit function theorem, see the page on gradients through a fit."""
        if start is None and self.frozen:
            # What the frozen parameters were made from is not known here.
            name = "Restarts of an EMFitter with frozen parameters"
            return refuse(name, result, (self, x, weights))
        if self.axis_name is not None:
            return refuse("an EMFitter with an axis_name", result, (self, weights))
        if self.prior is not None:
            return refuse("an EMFitter with a prior", result, (self, x, weights))
        if result.gmm.structure.n_latent is not None:
            # A rotation of the latent factors changes nothing: the fixed point is not isolated.
            return refuse("an EMFitter of low rank", result, (self, x, weights))
        begun: AbstractMixture = result.gmm if start is None else start
        inputs = Inputs(x, weights, Floor.of(self.reg_covar, x, weights).variances, begun)
        found = fixed_point(
            self.frozen, self.on_unconverged, result.gmm, result.log_likelihood, inputs
        )
        return dataclasses.replace(result, gmm=found[0], log_likelihood=found[1])


def _left(gain: Float[Array, ""], slowness: Float[Array, ""]) -> Float[Array, ""]:
    """What EM would still gain after a step of this gain.

    **Arguments:**

    - `slowness`: the ratio a by which each gain is smaller than the one before.
    """
    falling = jnp.where(slowness < 1, gain * slowness / (1 - slowness), jnp.inf)
    # Two gains of zero have no ratio.
    return jnp.where(gain > 0, falling, 0)
