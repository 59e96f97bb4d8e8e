"""What a fitter is, and the one loop that runs every fit.

Where the data are concrete, Python runs blocks of steps, so that a fit can be watched and
interrupted and go on in a slower way where the faster one is not accurate. Inside a transformation
the same steps run in one `lax.while_loop`.
"""

import abc
import dataclasses
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .. import _checks, _rows, _summary
from .._abstract_mixture import AbstractMixture
from .._chunks import in_batches, varying
from .._components import AbstractComponents
from .._data import Samples, check_rows, without_weights
from .._engine.floor import RELATIVE
from .._engine.kinds import ladder_of
from .._engine.ladder import Ladder
from .._engine.summary import AxisName, Summary
from .._init import initialize
from .._programs import Program
from .._sources.base import AbstractSource, check_no_weights
from .._sources.spread import SpreadSource
from .._spread import spread_of
from .checkpoint import Checkpoint, Journal
from .implicit import constant, refuse
from .passes import fit_source
from .progress import Bar
from .result import FitResult, announce, conclude, mean_of
from .state import FitState, where
from .status import Status
from .trace import with_history

_log = logging.getLogger(__name__)

# The longest block between two looks at the keyboard, in seconds and in steps.
_BLOCK_SECONDS = 0.5
_BLOCK_STEPS = 128
# The first block of a fit that nobody watches, before any step was timed: this many
# multiplications, n·K·d² a step, take less than that on any machine.
_FIRST_BLOCK = 2**31
# A fit of so many multiplications a step is small. Its first steps are one program with what stands
# before them, since each program that is called costs what many steps of a small fit do; and its
# programs are compiled soon rather than well.
_SMALL = 2**24
_STEPS_AT_ONCE = 2**11


class AbstractFitter(eqx.Module):
    """A way to fit a mixture. Fitters hold configuration only and are interchangeable.

    A step moves the model and then evaluates it, so that the likelihood of the model in hand is
    always known. A subclass gives `init`, `update` and `evaluate`, each a pure function, and
    `without_limit`; `prepare` if its steps need more of the data than the data; and `attach` if
    its fits can be differentiated.
    """

    max_iter: eqx.AbstractVar[int]

    @property
    def reg_covar(self) -> Any:
        """The variance floor of starts that are made for this fitter, see `gmmx.initialize`."""
        return RELATIVE

    def __repr__(self) -> str:
        return _summary.as_typed(self)

    @property
    def by_sums(self) -> bool:
        """Whether models are evaluated by sums over rows, which may come in blocks; `summarised`"""
        return False

    def ladder(self, x: Samples, gmm: AbstractMixture) -> Ladder:
        """The ways that `evaluate` may take over the rows, see `gmmx._engine.ladder`."""
        return ladder_of(gmm, x, x.shape[0], products=2)

    def beside(self, weights: Any) -> Self:
        """This fitter, for samples of these weights, which a fit scales to a mean of one."""
        return self

    @property
    def axis_name(self) -> AxisName:
        """The axis of a mesh along which the rows of the devices are taken together."""
        return None

    def as_weights(self, weights: Any, n: int, dtype: Any) -> Float[Array, " n"] | None:
        """The sample weights, scaled to a mean of one."""
        return _checks.check_weights(weights, n, dtype)

    def arrange(
        self, x: Samples, gmm: AbstractMixture, weights: Float[Array, " n"] | None
    ) -> tuple[Any, Float[Array, " m"] | None]:
        """The rows as a fit on the host takes them: filled up, so that few sizes are compiled."""
        return _rows.fill(x, weights)

    def prepare(
        self,
        x: Samples,
        gmm: AbstractMixture,
        weights: Float[Array, " n"] | None,
        ladder: Ladder,
    ) -> PyTree:
        """What the other methods get as data: x by default.

        Computed once a fit, for mixtures of the shape of `gmm`. It is not a part of the state: a
        checkpoint does not hold it.
        """
        return x

    @abc.abstractmethod
    def init(
        self,
        data: PyTree,
        gmm: AbstractMixture,
        weights: Float[Array, " n"] | None,
        key: PRNGKeyArray,
    ) -> FitState:
        """The state before the start was evaluated, see `FitState.begin`."""

    @abc.abstractmethod
    def update(
        self, state: FitState, data: PyTree, weights: Float[Array, " n"] | None, ladder: Ladder
    ) -> FitState:
        """Move the model, by what `evaluate` found of it."""

    @abc.abstractmethod
    def evaluate(
        self, state: FitState, data: PyTree, weights: Float[Array, " n"] | None, ladder: Ladder
    ) -> FitState:
        """Evaluate the model in hand: its likelihood, and what `update` needs.

        What ends the fit is written into the state's `status`. Where the way of the state was not
        accurate, `way` is raised by one, and the step is repeated.
        """

    def moved(
        self, state: FitState, data: PyTree, weights: Float[Array, " n"] | None, ladder: Ladder
    ) -> FitState:
        """The state whose model is evaluated next: the start itself, then what `update` makes."""
        moved = jax.lax.cond(
            state.n_iter < 0,
            lambda state: state,
            lambda state: self.update(state, data, weights, ladder),
            state,
        )
        return dataclasses.replace(moved, n_iter=state.n_iter + 1)

    def summarised(self, summary: Summary, gmm: AbstractMixture, ladder: Ladder) -> PyTree:
        """What the other methods get as data, for rows that come in blocks.

        Such a fitter evaluates a model by sums over rows, in three parts: what is `asked` of each
        block, the `sums` over it, and the state that is `answered`. A fitter that does not says so
        here, and this is the default.
        """
        raise ValueError(
            f"{type(self).__name__} takes all rows at once, and a source gives them in blocks. Fit "
            "by gmmx.EMFitter, or pass the rows as an array."
        )

    def asked(self, state: FitState, data: PyTree) -> PyTree:
        """What `sums` has to know of the model in hand."""
        raise NotImplementedError

    def sizes(self, data: PyTree, asked: PyTree, ladder: Ladder) -> Float[Array, " ways"]:
        """For each way of the ladder the size of what cancels in it; accurate up to one."""
        raise NotImplementedError

    def sums(
        self,
        data: PyTree,
        gmm: AbstractMixture,
        asked: PyTree,
        x: Float[Array, "n d"],
        weights: Float[Array, " n"],
        ladder: Ladder,
    ) -> PyTree:
        """Of a block of rows, by the one way of the ladder; they are added over all blocks."""
        raise NotImplementedError

    def answered(self, state: FitState, data: PyTree, asked: PyTree, sums: PyTree) -> FitState:
        """The state after all rows were seen, as after `evaluate`."""
        raise NotImplementedError

    def finish(self, state: FitState) -> FitResult:
        """The result, from the last state; its `history` is filled in later."""
        return conclude(state)

    def attach(
        self,
        result: FitResult,
        x: Samples,
        start: AbstractMixture | None,
        weights: Float[Array, " n"] | None,
    ) -> FitResult:
        """The result with the derivatives of the fit, where a transformation takes any.

        A fitter that has none says so when they are asked for, and this is the default.

        **Arguments:**

        - `result`: of constants.
        - `start`: what the fit began with; None where it made its own.
        """
        return refuse(type(self).__name__, result, (self, x, start, weights))

    def _start(self, x: Any, n_components: Any, weights: Any, key: Any) -> AbstractMixture:
        """The mixture that a fit of so many components starts from."""
        if isinstance(n_components, bool) or not isinstance(n_components, int | np.integer):
            raise ValueError(
                f"gmm={n_components!r}; expected a GaussianMixture to start from, such as "
                "gmmx.initialize(x, 3), or a number of components: fit(x, 3)."
            )
        return initialize(
            x, int(n_components), method="em", key=key, weights=weights, reg_covar=self.reg_covar
        )

    @abc.abstractmethod
    def without_limit(self) -> Self:
        """This fitter with its `max_iter` forgotten, so that another one compiles nothing new."""

    def fit(
        self,
        x: Any,
        gmm: Any = None,
        *,
        weights: Any = None,
        key: PRNGKeyArray | None = None,
        progress: bool = False,
        callback: Callable[[FitState], Any] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> FitResult:
        """Fit the mixture to data.

        **Arguments:**

        - `x`: the data, `(n, d)`; or `gmmx.Data`, rows with noise, gaps or labels; or a source of
            rows that are read in blocks, see `gmmx.rows_from`.
        - `gmm`: where to start, for instance `gmmx.initialize(x, n_components, "diag")`; or the
            number of components, for a start of full covariances by short runs of EM.
        - `weights`: how often each sample counts, `(n,)`; only their ratios matter.
        - `key`: for fitters that draw; `jax.random.key(0)` by default.
        - `progress`: show a bar with the likelihood (needs `tqdm`).
        - `callback`: called with the state after each block of steps; the fit ends when it
            returns `True`.
        - `checkpoint`: where to keep the state, so that the same call resumes a fit that was
            killed; see `gmmx.Checkpoint`.

        **Returns:** a `FitResult`. Ctrl-C ends the fit and returns the model as it is then.

        **Raises:** `ValueError` for data that cannot be fitted; `FitError`, which holds the last
        good model, where a covariance became singular or the likelihood is not finite. Warns
        (`FitWarning`) where the fit has not converged. Under `jit` or `vmap` nothing is raised,
        and the result's status says it. A gradient through the fit raises where it cannot be
        taken, see `attach`.
        """
        if not isinstance(gmm, AbstractComponents):
            gmm = self._start(x, gmm, weights, key)
        if isinstance(x, AbstractSource):
            check_no_weights(weights)
            result = fit_source(self, x, gmm, key, progress, callback, checkpoint)
            announce(result)
            return result
        x, weights = without_weights(check_rows(x, gmm.n_labels, gmm.n_features), weights)
        dtype = _checks.promote(x.dtype, gmm.dtype)
        x, gmm = _checks.in_dtype((x, gmm), dtype)
        solver = self.beside(weights)
        if self.axis_name is not None and _checks.is_concrete(x, gmm):
            raise ValueError(
                f"axis_name={self.axis_name!r} names an axis of a mesh, and there is none here: "
                "call fit inside jax.shard_map. An array that is spread over devices needs no "
                "axis_name."
            )
        weights = self.as_weights(weights, x.shape[0], dtype)
        if not _checks.is_concrete(x, gmm, weights, key, self):
            if checkpoint is not None:
                raise ValueError("a fit inside jit, vmap or grad has no checkpoints.")
            return solve(solver, x, gmm, weights, key)
        if self.by_sums and spread_of(x) is not None:
            # What lies on several devices stays there.
            source = SpreadSource(x, weights)
            result = fit_source(self, source, gmm, key, progress, callback, checkpoint)
            announce(result)
            return result
        journal = Journal(checkpoint, solver.without_limit(), x, gmm, weights, key)
        shape, (x, weights) = x.shape, self.arrange(x, gmm, weights)
        run = _Run(solver, x, gmm, weights, key, journal)
        result = run.watched(progress, callback) if progress or callback or checkpoint else run()
        if _log.isEnabledFor(logging.INFO):
            _log.info("fit of %s: step %d, %s", shape, result.n_iter, Status[result.status])
        announce(result)
        return result


# The one loop


def _advance(
    fitter: AbstractFitter,
    state: FitState,
    data: PyTree,
    weights: Array | None,
    limit: Int[Array, ""] | int,
    ladder: Ladder,
    steps: int,
) -> tuple[FitState, Float[Array, "steps *starts"]]:
    """Steps until the fit ends, `limit` is reached or no way of the ladder is accurate.

    And the likelihoods of the models that were evaluated, in an array for so many `steps`.
    """
    begun = state.n_iter
    value = state.log_likelihood
    # One place more, for what is not to be seen: a step that is repeated, the model at the end.
    history = varying(jnp.full((steps + 1, *value.shape), -jnp.inf, value.dtype), state)

    def going(carry: tuple[FitState, Array]) -> Array:
        state, _ = carry
        running = (state.status == Status.running) & (state.n_iter < limit)
        return running & (state.way <= ladder.last)

    def step(carry: tuple[FitState, Array]) -> tuple[FitState, Array]:
        before, history = carry
        moved = fitter.moved(before, data, weights, ladder)
        after = fitter.evaluate(moved, data, weights, ladder)
        if ladder.may_fail:
            # Not accurate: as it was, in a slower way.
            slower = dataclasses.replace(before, way=after.way)
            after = where(after.way > before.way, slower, after)
        place = after.n_iter - begun - 1
        place = jnp.where(place < 0, steps, place)
        value = after.log_likelihood
        return after, jax.lax.dynamic_update_index_in_dim(history, value, place, 0)

    state, history = jax.lax.while_loop(going, step, (state, history))
    return state, history[:steps]


def _begin(fitter, x, gmm, weights, key, ladder) -> tuple[PyTree, FitState]:
    """The data that steps take, and the first state."""
    data = fitter.prepare(x, gmm, weights, ladder)
    key = _checks.as_key(key)
    state = fitter.init(data, gmm, weights, key)
    # With a named axis all devices have the same state.
    return data, varying(state, (x, gmm, weights) if fitter.axis_name is None else gmm)


@eqx.filter_jit
def solve(
    fitter: AbstractFitter,
    x: Samples,
    gmm: AbstractMixture,
    weights: Array | None,
    key: PRNGKeyArray | None,
    limit: Int[Array, ""] | None = None,
) -> FitResult:
    """The whole fit as one pure function; its derivatives are not those of its steps.

    **Arguments:**

    - `limit`: on the number of steps, where it is less than `max_iter`.
    """
    settings, fixed = eqx.partition(fitter, eqx.is_array)
    ladder = fitter.ladder(x, gmm)

    def steps(arguments: PyTree) -> FitResult:
        settings, data, start, counts, key, limit = arguments
        solver = eqx.combine(settings, fixed)
        most = solver.max_iter
        rows, state = _begin(solver, data, start, counts, key, ladder)
        end = most if limit is None else limit
        state, history = _advance(solver, state, rows, counts, end, ladder.ends(), most)
        result = solver.finish(state)
        of_start = history.reshape(most, -1)[:, result.start]
        # The last value is of the model that came out, and not of the start of a step.
        past = jnp.arange(most, dtype=jnp.int32) < result.n_iter
        return dataclasses.replace(result, history=jnp.where(past, of_start, -jnp.inf))

    # Beside the n × K × d numbers of y there are as many again that come and go.
    batches = in_batches(steps, 2 * x.size * gmm.n_components, x.dtype.itemsize)
    result = batches((*constant((settings, x, gmm, weights)), key, limit))
    return fitter.attach(result, x, gmm, weights)


@dataclasses.dataclass(frozen=True)
class _Same:
    """Stands for an array of x in what a program returns, where itself would be a copy."""

    number: int


def _without(x: Samples, data: PyTree) -> PyTree:
    numbers = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(x))}
    return jax.tree.map(
        lambda leaf: _Same(numbers[id(leaf)]) if id(leaf) in numbers else leaf, data
    )


def _with(x: Samples, data: PyTree) -> PyTree:
    leaves = jax.tree.leaves(x)
    return jax.tree.map(lambda leaf: leaves[leaf.number] if isinstance(leaf, _Same) else leaf, data)


@partial(Program, small=_SMALL)
def _prepare(fitter, x, gmm, weights, key, ladder) -> tuple[PyTree, FitState]:
    data, state = _begin(fitter, x, gmm, weights, key, ladder)
    return _without(x, data), state


@partial(Program, small=_SMALL)
def _block(fitter, state, data, weights, limit, ladder) -> tuple[Any, ...]:
    state, history = _advance(fitter, state, data, weights, limit, ladder, _BLOCK_STEPS)
    return state, fitter.finish(state), history, state.status == Status.running


@Program
def _whole(fitter, x, gmm, weights, key, limit, ladder) -> tuple[Any, ...]:
    """A small fit: what `_prepare` and `_block` do, as one program."""
    first = ladder.only(ladder.first)
    data, state = _begin(fitter, x, gmm, weights, key, ladder)
    state, history = _advance(fitter, state, data, weights, limit, first, _STEPS_AT_ONCE)
    going = state.status == Status.running
    return _without(x, data), state, fitter.finish(state), history, going


class _Run:
    """One fit that Python drives, block by block."""

    def __init__(self, fitter, x, gmm, weights, key, journal: Journal):
        self.fitter, self.limit = fitter.without_limit(), fitter.max_iter
        self.x, self.gmm, self.weights, self.key = x, gmm, weights, key
        self.ladder = fitter.ladder(x, gmm)
        self.journal = journal
        self.each = x.size * gmm.means.size
        self.small = self.each <= _SMALL
        self.blocks: list[np.ndarray] = []
        self.result: FitResult | None = None
        self.interrupted = False

    def __call__(self) -> FitResult:
        """The fit that nobody watches."""
        if not self.small:
            return self.watched(False, None)
        limit = np.int32(min(self.limit, _STEPS_AT_ONCE - 1))
        arguments = (self.fitter, self.x, self.gmm, self.weights, self.key, limit, self.ladder)
        try:
            data, state, self.result, *seen = _whole.compile_soon(*arguments)
            history, going, n_iter = jax.device_get((*seen, state.n_iter))
            self.blocks.append(history[: n_iter + 1])
            if going and n_iter < self.limit:
                data = _with(self.x, data)
                self._blocks(state, data, Bar(self.limit, False), None, _BLOCK_STEPS - 1)
        except KeyboardInterrupt:
            self.interrupted = True
        return self._ended()

    def watched(self, progress: bool, callback: Callable[[FitState], Any] | None) -> FitResult:
        """The fit in blocks that can be seen and interrupted."""
        data, state = self._prepared()
        seen = self.journal.resume(state, self.limit)
        if seen is None:
            self.journal.begin(state)
        else:
            state, self.blocks = seen
        quiet = not progress and callback is None and not self.journal
        steps = _FIRST_BLOCK // self.each if quiet else 1
        with Bar(self.limit, progress) as bar:
            if int(state.n_iter) > 0:
                bar.update(int(state.n_iter), state)
            try:
                self._blocks(state, data, bar, callback, int(np.clip(steps, 1, _BLOCK_STEPS - 1)))
            except KeyboardInterrupt:
                self.interrupted = True
        return self._ended()

    def _prepared(self) -> tuple[PyTree, FitState]:
        arguments = (self.fitter, self.x, self.gmm, self.weights, self.key, self.ladder)
        data, state = _prepare.at(self.each)(*arguments)
        return _with(self.x, data), state

    def _blocks(self, state, data, bar: Bar, callback, steps: int) -> None:
        """Blocks of steps, each as long as half a second, to the end of the fit."""
        going, n_iter, way = True, int(state.n_iter), int(state.way)
        try:
            while going and (n_iter < self.limit or self.result is None):
                began = time.perf_counter()
                end = np.int32(min(self.limit, max(n_iter, 0) + steps))
                ladder = self.ladder.only(way)
                arguments = (self.fitter, state, data, self.weights, end, ladder)
                new, result, *seen = _block.at(self.each)(*arguments)
                history, going, reached, way = jax.device_get((*seen, new.n_iter, new.way))
                made, way = int(reached) - n_iter, int(way)
                # At once, so that Ctrl-C finds a state and the trace of that state.
                state, n_iter, self.result = new, int(reached), result
                self.blocks = [*self.blocks, history[:made]]
                if way > ladder.last:
                    name = self.ladder.ways[way].__name__.lower()
                    _log.debug("step %d: the rows are %s from here on", n_iter, name)
                    continue
                if not made:  # it had ended when it was resumed
                    break
                bar.update(made - (made == n_iter + 1), state)
                self.journal.keep(state, self.blocks)
                if callback is not None and callback(state) is True:
                    self.interrupted = True
                    break
                seconds = (time.perf_counter() - began) / max(made, 1)
                steps = int(np.clip(_BLOCK_SECONDS / seconds, 1, _BLOCK_STEPS - 1))
        finally:
            self.journal.end(state, self.blocks)

    def _ended(self) -> FitResult:
        """The result, with the likelihoods of its steps."""
        result = self.result
        if result is None:
            # Interrupted before its start was evaluated.
            value = mean_of(self.gmm.log_prob(self.x), self.weights)
            start = FitState.begin(self.gmm, None, value.dtype)
            n_iter = jnp.zeros((), jnp.int32)
            result = conclude(dataclasses.replace(start, n_iter=n_iter, log_likelihood=value))
        return with_history(result, self.blocks, self.x.dtype, self.interrupted)
