"""Stepwise EM: an M-step after each batch of rows, for rows that are seen once or a few times."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .. import _checks, _rows
from .._abstract_mixture import AbstractMixture
from .._components import check_mixture
from .._engine.density import at_points, log_prob_of
from .._engine.floor import RELATIVE, Floor
from .._engine.form import Form
from .._engine.frame import Frame
from .._engine.ladder import Ladder, reach
from .._engine.moments import Moments, maximise, transported
from .._engine.rows import Rows
from .._init import initialize
from .._programs import Program
from .._sources.base import AbstractSource, ahead, check_no_weights, checked, filled
from .._sources.open import rows_from
from .options import floor, positive, sweepable
from .result import FitError, FitResult, announce, conclude, mean_of
from .state import FitState
from .status import Status

# One row of so many is held out, of so many rows at the beginning.
_HELD_OUT, _WITHIN = 16, 2**18
# Rows for each mean and variance of a component, before which no M-step is made.
_ENOUGH = 10
# By how much later models count more in the average (Shamir & Zhang 2013).
_LATER = 3


class StepwiseState(eqx.Module):
    """Stepwise EM between two batches."""

    gmm: AbstractMixture
    """The model in hand, which is noisy; `StepwiseEM.model` averages"""
    frame: Frame
    floor: Floor
    moments: Moments
    """s, about the model in hand"""
    averaged: Moments
    """The average of s over the steps, about the model in hand"""
    n_steps: Int[Array, ""]
    n_rows: Int[Array, ""]
    log_likelihood: Float[Array, ""]
    """Of the last batch, under the model before it was seen, in nats a sample"""


class StepwiseEM(eqx.Module):
    r"""EM that updates the model after each batch of rows (Cappé & Moulines 2009).

    $$s \leftarrow (1-\gamma_t)\, s + \gamma_t\, \bar s(\text{batch}; \theta),\qquad
      \gamma_t = (t + t_0)^{-a}$$

    where s are the moments that the M-step reads, a row each, and θ is the model that the M-step
    makes of s. Moments are kept about the model in hand, so that nothing cancels. The result is
    that of the average of s over the steps, in which later ones count more.

    One row in 16 of the first 262,144 is held out. The fit ends where their likelihood has not
    risen by `tol` in `patience` looks at it, one in `every` batches after those rows and one after
    each pass, or after `max_passes`.

    **Arguments:**

    - `batch_size`: rows between two M-steps.
    - `decay`: a, above ½ and up to 1.
    - `offset`: t₀ ≥ 0.
    - `max_passes`: how often all rows are read at most; an iterator is read once.
    - `tol`, `patience`, `every`: see above.
    - `reg_covar`: as in `EMFitter`, relative to the variances of the first rows.

    The rows have to come in random order: those of a sorted file, one kind after the other, would
    be forgotten in turn.
    """

    batch_size: int = eqx.field(default=4096, static=True, converter=positive("batch_size"))
    decay: Float[Array, ""] | float = eqx.field(default=0.6, converter=sweepable)
    offset: Float[Array, ""] | float = eqx.field(default=2.0, converter=sweepable)
    max_passes: int = eqx.field(default=3, static=True, converter=positive("max_passes"))
    tol: Float[Array, ""] | float = eqx.field(default=1e-4, converter=sweepable)
    patience: int = eqx.field(default=5, static=True, converter=positive("patience"))
    every: int = eqx.field(default=32, static=True, converter=positive("every"))
    reg_covar: Float[Array, "*d"] | float = eqx.field(default=RELATIVE, converter=floor)

    def __check_init__(self):
        if _checks.is_concrete(self.decay) and not 0.5 < float(self.decay) <= 1:
            raise ValueError(f"decay={float(self.decay):g}; expected above 0.5 and at most 1.")

    def init(self, x: Any, gmm: AbstractMixture, *, weights: Any = None) -> StepwiseState:
        """The state before any step.

        **Arguments:**

        - `x`: the first rows, `(n, d)`, which say what units the features have.
        - `gmm`: where to start.
        """
        x = _checks.check_data(x, 1, check_mixture(gmm).n_features)
        gmm = _checks.in_dtype(gmm, _checks.promote(x.dtype, gmm.dtype))
        x = x.astype(gmm.dtype)
        weights = _checks.check_weights(weights, x.shape[0], x.dtype)
        return _begin.at(x.size)(self, *_rows.fill(x, weights), gmm)

    def step(self, state: StepwiseState, x: Any, *, weights: Any = None) -> StepwiseState:
        """The state after one more batch of rows, `(n, d)`.

        **Raises:** `ValueError` for rows that are not finite.
        """
        x = _checks.check_data(x, 1, state.gmm.n_features).astype(state.gmm.dtype)
        if weights is not None:
            weights = _checks.as_weights(weights, x.shape[:1], x.dtype)
        n = x.shape[0]
        x, weights = _rows.fill(x, weights)
        weights = jnp.ones(n, x.dtype) if weights is None else weights
        return self._step(state, x, weights, n)

    def _step(self, state: StepwiseState, x: Any, weights: Any, n: int) -> StepwiseState:
        ladder = Ladder.of(state.gmm, len(x), products=2).ends()
        program = _advance.at(x.size * state.gmm.means.size)
        return program(self, state, x, weights, np.int32(n), ladder)

    def model(self, state: StepwiseState) -> AbstractMixture:
        """The model of the averaged moments; the start until there are rows enough for a step."""
        return _model(state)

    def fit(
        self,
        x: Any,
        gmm: Any = None,
        *,
        weights: Any = None,
        key: PRNGKeyArray | None = None,
        callback: Callable[[StepwiseState], Any] | None = None,
    ) -> FitResult:
        """Fit the mixture to rows that come in batches.

        **Arguments:**

        - `x`: a source, see `gmmx.rows_from`, also one that can be read once; or an array
            `(n, d)`, in whose order the rows are taken.
        - `gmm`: where to start, or the number of components, for a start from the data.
        - `weights`: of the rows of an array.
        - `key`: of the start, where it is made here.
        - `callback`: called with the state at each look at the held-out rows; the fit ends when it
            returns `True`.

        **Returns:** a `FitResult` whose likelihoods are those of the held-out rows: `history` at
        each look, and of the best model, which is the one returned. `n_iter` counts the batches.

        **Raises:** `ValueError` for rows that cannot be fitted; `FitError`, with the model so far,
        where such rows come after others.
        """
        if not isinstance(x, AbstractSource):
            x = rows_from(np.asarray(x), weights=None if weights is None else np.asarray(weights))
            weights = None
        check_no_weights(weights)
        run = _Stream(self, x, gmm, key)
        result = run(callback)
        # A stream that has ended is no failure.
        if Status[result.status] != Status[Status.passes_ended]:
            announce(result)
        return result


@Program
def _begin(settings, x, weights, gmm) -> StepwiseState:
    axis_aligned = type(gmm.structure).axis_aligned
    frame = Frame.of_data(x, weights, turned=not axis_aligned)
    weight, means, factors = (
        jnp.zeros_like(like) for like in (gmm.logits, gmm.means, gmm.factors())
    )
    zero = jnp.zeros((), gmm.dtype)
    behind = None if gmm.log_background_weight is None else zero
    nothing = Moments(weight, means, factors, zero, zero, behind)
    none = jnp.zeros((), jnp.int32)
    least = jnp.full((), -jnp.inf, gmm.dtype)
    absolute = Floor.of(settings.reg_covar, x, weights)
    return StepwiseState(gmm, frame, absolute, nothing, nothing, none, none, least)


@Program
def _advance(settings, state, x, weights, n, ladder) -> StepwiseState:
    gmm, frame, dtype = state.gmm, state.frame, state.gmm.dtype
    form = Form.of(gmm, frame)
    # A batch has its own reach: later rows may lie farther away than the first ones.
    rows = Rows(frame, reach(frame.apply(x), weights), None, None, None, 0, 0)
    rows = rows.holding(x, gmm, ladder)
    way = ladder.choose(form, rows.reach)
    batch, _ = rows.expect(form, weights, ladder, way)
    step = (state.n_steps + 1).astype(dtype)
    n_rows = state.n_rows + n
    ready = n_rows >= _ENOUGH * gmm.means.size
    # All rows alike, until there are enough for an M-step.
    rate = (step + jnp.asarray(settings.offset, dtype)) ** -jnp.asarray(settings.decay, dtype)
    moments = _mixed(state.moments, batch, jnp.where(ready, jnp.minimum(rate, 1), 1 / step))
    averaged = _mixed(state.averaged, moments, (_LATER + 1) / (step + _LATER))
    moved = maximise(gmm, form, moments, frame, state.floor.variances)
    sound = ready & jnp.isfinite(batch.log_likelihood)
    moved = jax.tree.map(lambda a, b: jnp.where(sound, a, b), moved, gmm)
    return dataclasses.replace(
        state,
        gmm=moved,
        moments=transported(moments, gmm, form, moved, frame),
        averaged=transported(averaged, gmm, form, moved, frame),
        n_steps=state.n_steps + 1,
        n_rows=n_rows,
        log_likelihood=batch.log_likelihood / batch.count,
    )


def _mixed(old: Moments, new: Moments, rate: Array) -> Moments:
    """(1 − γ) old + γ new, a row each."""
    each = 1 / jnp.where(new.count > 0, new.count, 1)
    return jax.tree.map(lambda a, b: (1 - rate) * a + rate * each * b, old, new)


@Program
def _model(state) -> AbstractMixture:
    form = Form.of(state.gmm, state.frame)
    added = state.floor.variances
    moved = maximise(state.gmm, form, state.averaged, state.frame, added)
    seen = state.n_rows >= _ENOUGH * state.gmm.means.size
    return jax.tree.map(lambda a, b: jnp.where(seen, a, b), moved, state.gmm)


class _Stream:
    """One fit to rows that come in batches."""

    def __init__(self, settings: StepwiseEM, source: AbstractSource, gmm: Any, key: Any):
        self.settings, self.source = settings, source
        self.passes = 1 if source.once else settings.max_passes
        self.gmm, self.key = gmm, key
        self.state: StepwiseState | None = None
        self.n_steps = 0
        self.best: tuple[float, Any] = -np.inf, None
        self.reference, self.since = -np.inf, 0
        self.history: list[float] = []
        self.held_out: list[np.ndarray] = []
        self.held_weights: list[np.ndarray] = []

    def __call__(self, callback: Callable[[StepwiseState], Any] | None) -> FitResult:
        status = Status.passes_ended
        try:
            for number in range(self.passes):
                ended = self._pass(number == 0, callback)
                if ended is not None:
                    status = ended
                    break
        except KeyboardInterrupt:
            if not self.n_steps:
                raise
            status = Status.interrupted
        except (ValueError, OSError) as error:
            if not self.n_steps:
                raise
            message = f"{error} (The exception's `result` holds the model so far.)"
            raise FitError(message, self._result(Status.interrupted)) from error
        return self._result(status)

    def _pass(self, is_first: bool, callback: Any) -> Any:
        """All rows once; the status where the fit ended in it, else None."""
        begin, ended = 0, None
        for x, weights, n in self._batches(is_first):
            if self.state is None:
                self._begin(x[:n], weights[:n])
            assert self.state is not None
            weights = self._without_held_out(x, weights, n, begin, is_first)
            begin += n
            if weights.any():
                self.state = self.settings._step(self.state, *jax.device_put((x, weights)), n)
                self.n_steps += 1
            # Looks compare only where all rows that are held out are there.
            complete = not is_first or begin >= _WITHIN
            if complete and self.n_steps % self.settings.every == 0:
                ended = self._look(callback)
            if ended is not None:
                return ended
        return self._look(callback)

    def _batches(self, is_first: bool) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        size, dtype = self.settings.batch_size, self._dtype()
        # In a later pass they were looked at before.
        blocks = checked(self.source, size, dtype if is_first else None)
        return ahead(filled(blocks, size, dtype))

    def _dtype(self) -> Any:
        own = self.source.dtype if self.source.dtype.kind == "f" else np.dtype("float32")
        dtype = own if isinstance(self.gmm, int) else _checks.promote(own, self.gmm.dtype)
        return jax.dtypes.canonicalize_dtype(dtype)

    def _begin(self, x: np.ndarray, weights: np.ndarray) -> None:
        """The start, and the units of the first rows."""
        counts = None if (weights == 1).all() else weights
        if isinstance(self.gmm, int):
            self.gmm = initialize(
                x, self.gmm, method="em", key=self.key, weights=counts,
                reg_covar=self.settings.reg_covar,
            )  # fmt: skip
        self.state = self.settings.init(x, self.gmm, weights=counts)

    def _without_held_out(
        self, x: np.ndarray, weights: np.ndarray, n: int, begin: int, is_first: bool
    ) -> np.ndarray:
        """The weights of a batch, zero for rows that are held out."""
        chosen = np.arange(-begin % _HELD_OUT, min(n, max(0, _WITHIN - begin)), _HELD_OUT)
        if is_first and chosen.size:
            self.held_out.append(x[chosen])
            self.held_weights.append(weights[chosen])
        weights[chosen] = 0
        return weights

    def _look(self, callback: Any) -> Any:
        """Compare the averaged model on the rows held out; the status that ends the fit."""
        assert self.state is not None
        gmm = self.settings.model(self.state)
        x, weights = np.concatenate(self.held_out), np.concatenate(self.held_weights)
        value = float(mean_of(at_points(gmm, x, log_prob_of), jax.device_put(weights)))
        self.history.append(value)
        if not np.isfinite(value):
            return Status.non_finite
        if value > self.best[0]:
            self.best = value, gmm
        self.since += 1
        if value > self.reference + float(self.settings.tol):
            self.reference, self.since = value, 0
        if callback is not None and callback(self.state) is True:
            return Status.interrupted
        return Status.converged if self.since >= self.settings.patience else None

    def _result(self, status: Any) -> FitResult:
        state = self.state
        assert state is not None
        value, gmm = self.best
        # None where no look was taken.
        gmm = self.settings.model(state) if gmm is None else gmm
        dtype = gmm.dtype
        spurious = state.floor.spurious(gmm, state.n_rows.astype(dtype), frozenset())
        ended = dataclasses.replace(
            FitState.begin(gmm, None, dtype),
            n_iter=state.n_steps,
            log_likelihood=jnp.asarray(value, dtype),
            log_likelihood_diff=jnp.asarray(np.diff(self.history[-2:]).sum(), dtype),
            status=status,
        )
        result = conclude(ended, floor=state.floor.variances, spurious=spurious)
        return dataclasses.replace(result, history=jnp.asarray(self.history, dtype))
