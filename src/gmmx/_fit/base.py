"""What a fitter is: four verbs, and one `fit` that drives them.

Where the data are concrete, Python drives blocks of steps, so that a fit can be watched and
interrupted, unless it is over before anybody could; inside a transformation the same steps run in
one `lax.while_loop`.
"""

import abc
import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .. import _checks
from .._chunks import in_batches
from .._mixture import GaussianMixture
from .checkpoint import Checkpoint, Journal
from .implicit import constant, refuse
from .result import FitResult, Status, announce

_log = logging.getLogger(__name__)

# The longest block between two looks at the keyboard, in seconds and in steps.
_BLOCK_SECONDS = 0.5
_BLOCK_STEPS = 128

# The first block of a fit that nobody watches, before any step was timed: of so many
# multiplications, n·K·d² a step, which take less than that on any machine.
_FIRST_BLOCK = 2**31

# A fit that nobody watches is one program where so many steps take so many multiplications at most:
# fewer than above, since a fitter may make several fits in one. Each program that is called costs
# what many steps of a small fit do. By the data alone, so that other settings compile nothing new.
_STEPS_AT_ONCE = 2**11
_AT_ONCE = 2**29


class FitState(eqx.Module):
    """A fit between two steps."""

    gmm: GaussianMixture
    n_iter: Int[Array, ""]
    log_likelihood: Float[Array, "*starts"]
    """Of the model before the last step, whose likelihood that step took"""
    log_likelihood_diff: Float[Array, "*starts"]
    status: Status
    inner: PyTree
    """What the fitter itself remembers"""


class AbstractFitter(eqx.Module):
    """A way to fit a mixture. Fitters hold configuration only and are interchangeable.

    A subclass gives `init`, `step` and `finish`, each a pure function, and `without_limit`;
    `prepare`, if its steps want more of the data than the data; and `attach`, if its fits can be
    differentiated.
    """

    max_iter: eqx.AbstractVar[int]

    def prepare(self, x: Float[Array, "n d"], gmm: GaussianMixture) -> PyTree:
        """What `init`, `step` and `finish` get as data: x, if a fitter does not say otherwise.

        Made once a fit, for mixtures of the shape of `gmm`. It is no part of the state: a
        checkpoint does not hold it.
        """
        return x

    @abc.abstractmethod
    def init(
        self,
        data: PyTree,
        gmm: GaussianMixture,
        weights: Float[Array, " n"] | None,
        key: PRNGKeyArray,
    ) -> FitState:
        """The state before the first step."""

    @abc.abstractmethod
    def step(self, state: FitState, data: PyTree, weights: Float[Array, " n"] | None) -> FitState:
        """One step; what ends the fit is written into the state's status."""

    @abc.abstractmethod
    def finish(
        self,
        state: FitState,
        data: PyTree,
        weights: Float[Array, " n"] | None,
    ) -> FitResult:
        """The result, from the last state; its `history` is left empty."""

    def attach(
        self,
        result: FitResult,
        x: Float[Array, "n d"],
        start: GaussianMixture | None,
        weights: Float[Array, " n"] | None,
    ) -> FitResult:
        """The result with the derivatives of the fit, where a transformation takes any.

        A fitter that has none says so when they are asked for, and this is the default.

        **Arguments:**

        - `result`: of constants.
        - `start`: what the fit began with; None where it made its own.
        """
        return refuse(type(self).__name__, result, (self, x, start, weights))

    @abc.abstractmethod
    def without_limit(self) -> Self:
        """This fitter with its `max_iter` forgotten, so that another one compiles nothing new."""

    def fit(
        self,
        x: Any,
        gmm: GaussianMixture,
        *,
        weights: Any = None,
        key: PRNGKeyArray | None = None,
        progress: bool = False,
        callback: Callable[[FitState], Any] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> FitResult:
        """Fit the mixture to data.

        **Arguments:**

        - `x`: the data, `(n, d)`.
        - `gmm`: where to start, for instance `gmmx.initialize(x, n_components)`.
        - `weights`: how often each sample counts, `(n,)`; only their ratios matter.
        - `key`: for fitters that draw; `jax.random.key(0)` if there is none.
        - `progress`: show a bar with the likelihood (needs `tqdm`).
        - `callback`: called with the state after each block of steps; the fit ends when it
            returns `True`.
        - `checkpoint`: where to keep the state, so that the same call resumes a fit that was
            killed; see `gmmx.Checkpoint`.

        **Returns:** a `FitResult`. Ctrl-C ends the fit and returns the model as it is then; a fit
        of small data that nothing watches is over too soon for that, and only stops.

        **Raises:** `ValueError` for data that cannot be fitted; `FitError`, which holds the last
        good model, where a covariance became singular or the likelihood not finite. Warns
        (`FitWarning`) where the fit has not converged. Under `jit` or `vmap` nothing of this is
        raised, and the result's status says it. A gradient through the fit raises where it cannot
        be taken, see `attach`.
        """
        x = _checks.check_data(x, gmm.n_components, gmm.n_features)
        dtype = _checks.promote(x.dtype, gmm.dtype)
        x, gmm = _checks.in_dtype((x, gmm), dtype)
        weights = _checks.check_weights(weights, x.shape[0], dtype)
        key = jax.random.key(0) if key is None else key
        if not _checks.is_concrete(x, gmm, weights, key, self):
            if checkpoint is not None:
                raise ValueError("a fit inside jit, vmap or grad has no checkpoints.")
            return solve(self, x, gmm, weights, key)
        result = _observe(self, x, gmm, weights, key, progress, callback, checkpoint)
        if _log.isEnabledFor(logging.INFO):
            _log.info("fit of %s: step %d, %s", x.shape, result.n_iter, Status[result.status])
        announce(result)
        return result


def _advance(
    fitter: AbstractFitter,
    state: FitState,
    data: PyTree,
    weights: Array | None,
    limit: Int[Array, ""] | int,
    history: Float[Array, "steps *starts"],
) -> tuple[FitState, Float[Array, "steps *starts"]]:
    """Steps until the fit ends or `limit` is reached, and the likelihoods of those steps."""
    start = state.n_iter

    def going(carry: tuple[FitState, Array]) -> Array:
        return (carry[0].status == Status.running) & (carry[0].n_iter < limit)

    def step(carry: tuple[FitState, Array]) -> tuple[FitState, Array]:
        state, history = carry
        state = fitter.step(state, data, weights)
        index = state.n_iter - start - 1
        # A step that was taken back has not moved the counter; it writes nothing.
        index = jnp.where(index < 0, history.shape[0], index)
        return state, history.at[index].set(state.log_likelihood, mode="drop")

    return jax.lax.while_loop(going, step, (state, history))


def _empty_history(state: FitState, steps: int) -> Float[Array, "steps *starts"]:
    value = state.log_likelihood
    return jnp.full((steps, *value.shape), jnp.nan, value.dtype)


def _whole(
    fitter: AbstractFitter,
    x: Array,
    gmm: GaussianMixture,
    weights: Array | None,
    key: PRNGKeyArray,
    limit: Int[Array, ""] | int,
    steps: int,
) -> tuple[FitResult, FitState, Float[Array, "steps *starts"]]:
    """A fit up to `limit`, the state that it ended with, and the likelihoods of its steps."""
    data = fitter.prepare(x, gmm)
    state = fitter.init(data, gmm, weights, key)
    history = _empty_history(state, steps)
    state, history = _advance(fitter, state, data, weights, limit, history)
    return fitter.finish(state, data, weights), state, history


@eqx.filter_jit
def solve(
    fitter: AbstractFitter,
    x: Array,
    gmm: GaussianMixture,
    weights: Array | None,
    key: PRNGKeyArray,
) -> FitResult:
    """The whole fit as one pure function; its derivatives are not those of its steps."""
    settings, fixed = eqx.partition(fitter, eqx.is_array)

    def steps(arguments: PyTree) -> FitResult:
        settings, data, start, counts, key = arguments
        solver = eqx.combine(settings, fixed)
        limit = solver.max_iter
        result, _, history = _whole(solver, data, start, counts, key, limit, limit)
        of_starts = history.reshape(limit, -1)
        return dataclasses.replace(result, history=of_starts[:, result.start])

    # Beside the n × K × d numbers of y there are as many again that come and go.
    batches = in_batches(steps, 2 * x.size * gmm.n_components, x.dtype.itemsize)
    result = batches((*constant((settings, x, gmm, weights)), key))
    return fitter.attach(result, x, gmm, weights)


@eqx.filter_jit
def _at_once(fitter, x, gmm, weights, key, limit) -> tuple[FitResult, FitState, Array, Array]:
    """The whole fit, and whether it would go on."""
    whole = _whole(fitter, x, gmm, weights, key, limit, _STEPS_AT_ONCE)
    return *whole, whole[1].status == Status.running


class _Rows:
    """Stands for x in what a program returns, where x itself would be a copy of all the data."""


def _begin(fitter, x, gmm, start) -> tuple[PyTree, Any]:
    data, state = _prepared(fitter, x, gmm, start)
    return jax.tree.map(lambda leaf: x if isinstance(leaf, _Rows) else leaf, data), state


@eqx.filter_jit
def _prepared(fitter, x, gmm, start) -> tuple[PyTree, Any]:
    """The data that steps take, and the first state where weights and key say how to start."""
    data = fitter.prepare(x, gmm)
    state = None if start is None else fitter.init(data, gmm, *start)
    return jax.tree.map(lambda leaf: _Rows() if leaf is x else leaf, data), state


@eqx.filter_jit
def _block(fitter, state, data, weights, limit) -> tuple[FitState, Array, Array]:
    """The state after some steps, the likelihoods of those steps, and whether the fit goes on."""
    history = _empty_history(state, _BLOCK_STEPS)
    state, history = _advance(fitter, state, data, weights, limit, history)
    return state, history, state.status == Status.running


@eqx.filter_jit
def _end(fitter, state, data, weights) -> FitResult:
    return fitter.finish(state, data, weights)


def _observe(
    fitter: AbstractFitter,
    x: Array,
    gmm: GaussianMixture,
    weights: Array | None,
    key: PRNGKeyArray,
    progress: bool,
    callback: Callable[[FitState], Any] | None,
    checkpoint: Checkpoint | None,
) -> FitResult:
    """The same steps driven from Python, in blocks short enough to be watched and interrupted."""
    limit, fitter = fitter.max_iter, fitter.without_limit()
    watched = progress or callback is not None or checkpoint is not None
    each = x.size * gmm.means.size
    journal = Journal(checkpoint, fitter, x, gmm, weights, key)
    resumed = journal.resume()
    if not watched and each * _STEPS_AT_ONCE <= _AT_ONCE:
        most = np.int32(min(limit, _STEPS_AT_ONCE))
        result, state, *seen = _at_once(fitter, x, gmm, weights, key, most)
        history, going = jax.device_get(seen)
        if limit <= _STEPS_AT_ONCE or not going:
            return _with_trace(result, history)
        resumed = state, [history]
    if resumed is None:
        data, state = _begin(fitter, x, gmm, (weights, key))
        n_iter, going, blocks = 0, True, []
        journal.begin(state)
    else:
        data, _ = _begin(fitter, x, gmm, None)
        state, blocks = resumed
        n_iter, going = int(state.n_iter), bool(state.status == Status.running)
    interrupted = False
    first = 1 if watched else _FIRST_BLOCK // each
    steps = int(np.clip(first, 1, _BLOCK_STEPS))
    with _Bar(limit, progress) as bar:
        if n_iter:
            bar.update(n_iter, state)
        try:
            while n_iter < limit and going:
                began = time.perf_counter()
                block_end = np.int32(min(limit, n_iter + steps))
                advanced, *seen = _block(fitter, state, data, weights, block_end)
                reached, values, going = jax.device_get((advanced.n_iter, *seen))
                done = int(reached) - n_iter
                # At once, so that Ctrl-C finds a state and the trace of that state.
                state, n_iter, blocks = advanced, n_iter + done, [*blocks, values[:done]]
                bar.update(done, state)
                journal.keep(state, blocks)
                if callback is not None and callback(state) is True:
                    interrupted = True
                if interrupted:
                    break
                seconds = (time.perf_counter() - began) / max(done, 1)
                steps = int(np.clip(_BLOCK_SECONDS / seconds, 1, _BLOCK_STEPS))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            journal.end(state, blocks)
    result = _end(fitter, state, data, weights)
    history = np.concatenate([np.zeros((0, *np.shape(state.log_likelihood)), x.dtype), *blocks])
    result = _with_trace(result, history)
    if interrupted and bool(result.status == Status.max_steps_reached):
        result = dataclasses.replace(result, status=Status.interrupted)
    return result


def _with_trace(result: FitResult, history: Float[np.ndarray, "steps *starts"]) -> FitResult:
    """The result, with the likelihoods of its steps, of the start that it is of."""
    # In NumPy: as a JAX array each length would be a program of its own.
    made, start = jax.device_get((result.n_iter, result.start))
    of_start = history.reshape(len(history), math.prod(history.shape[1:]))[:made, start]
    return dataclasses.replace(result, history=jax.device_put(of_start))


class _Bar:
    """A progress bar that shows the likelihood, or nothing."""

    def __init__(self, total: int, shown: bool):
        self._bar = None
        if shown:
            try:
                from tqdm.auto import tqdm
            except ImportError as error:
                raise ImportError("progress=True needs tqdm: pip install tqdm") from error
            self._bar = tqdm(total=total, desc="fit", unit="step")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, steps: int, state: FitState) -> None:
        if self._bar is not None:
            value = float(np.max(np.asarray(state.log_likelihood)))
            self._bar.set_postfix_str(f"log-likelihood {value:.6f}", refresh=False)
            self._bar.update(steps)
