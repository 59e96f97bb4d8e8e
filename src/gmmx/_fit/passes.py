"""A fit to rows that come in blocks: each step is a pass over them.

A pass adds up the sums of its blocks, on the host and in float64, so that neither their size nor
their order nor their number counts. Four small programs serve all steps: what precedes them, what
moves the model, the sums of a block, and what these say of the model.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from .. import _checks, _rows
from .._engine.ladder import Ladder
from .._engine.summary import Summary
from .._processes import gathered
from .._programs import Program
from .._sources.base import AbstractSource, ahead, checked, filled
from .._sources.spread import SpreadSource
from .._sources.survey import survey
from .._spread import axes_of, n_devices, on_each
from .checkpoint import Checkpoint, Journal
from .progress import RowBar
from .result import FitError, FitResult
from .state import FitState
from .status import Status
from .trace import with_history

_log = logging.getLogger(__name__)

# Bytes of a block: enough that to start a program for it costs nothing beside the work.
_CPU_BYTES = 2**22
_ACCELERATOR_BYTES = 2**26


@Program
def _open(fitter, summary, gmm, key, ladder) -> tuple[PyTree, FitState]:
    data = fitter.summarised(summary, gmm, ladder)
    return data, fitter.init(data, gmm, None, _checks.as_key(key))


@Program
def _move(fitter, state, data, ladder) -> tuple[FitState, PyTree, Array]:
    """The model to evaluate next, what is asked of the rows, and the sizes of the ways."""
    moved = fitter.moved(state, data, None, ladder)
    asked = fitter.asked(moved, data)
    return moved, asked, fitter.sizes(data, asked, ladder)


@Program
def _sums(fitter, data, gmm, asked, x, weights, ladder, sharding) -> PyTree:
    """The sums over a block, which may be spread over devices: only sums cross them."""
    known = data, gmm, asked
    if sharding is None:
        return fitter.sums(*known, x, weights, ladder)

    def own(known: PyTree, x: Array, weights: Array) -> PyTree:
        return jax.lax.psum(fitter.sums(*known, x, weights, ladder), axes_of(sharding))

    return on_each(own, sharding, 1, P())(known, x, weights)


@Program
def _answer(fitter, state, data, asked, sums) -> tuple[FitState, FitResult, Array]:
    state = fitter.answered(state, data, asked, sums)
    return state, fitter.finish(state), state.status == Status.running


def fit_source(
    fitter: Any,
    source: AbstractSource,
    gmm: Any,
    key: Any,
    progress: bool,
    callback: Callable[[FitState], Any] | None,
    checkpoint: Checkpoint | None,
) -> FitResult:
    """`fitter.fit` of a source."""
    if source.once:
        raise ValueError(
            f"these rows can be read once, and {type(fitter).__name__} reads them in each step. "
            "Pass gmmx.rows_from(f) with a function f that returns a new iterator at each call."
        )
    if source.n_features != gmm.n_features:
        raise ValueError(
            f"the rows have {source.n_features} features, but the mixture has {gmm.n_features}. "
            "Make a mixture for these rows by gmmx.initialize(source, n_components)."
        )
    floating = source.dtype if source.dtype.kind == "f" else jnp.float32
    dtype = jax.dtypes.canonicalize_dtype(_checks.promote(floating, gmm.dtype))
    gmm = _checks.in_dtype(gmm, dtype)
    seed = np.asarray(jax.random.key_data(_checks.as_key(key))).ravel()
    found, sample = survey(source, dtype, not type(gmm.structure).axis_aligned, seed)
    if found.n < gmm.n_components:
        raise ValueError(f"there are {found.n} rows for {gmm.n_components} components.")
    weighted = found.total != found.n
    solver = fitter.beside(np.asarray([found.total / found.n]) if weighted else None)
    journal = Journal(checkpoint, solver.without_limit(), found.fingerprint(), gmm, None, key)
    journal.reads_only = source.together and jax.process_index() > 0
    summary = Summary.of(found, sample, dtype)
    run = _Passes(solver, source, gmm, key, summary, found.own, found.n / found.total, journal)
    return run(progress, callback)


class _Passes:
    """One fit that Python drives, block of rows by block of rows."""

    def __init__(self, fitter, source, gmm, key, summary, n: int, scale: float, journal: Journal):
        self.fitter, self.limit = fitter.without_limit(), fitter.max_iter
        self.source, self.scale, self.dtype = source, scale, gmm.dtype
        self.n = n
        self.sharding: NamedSharding | None = source.sharding
        self.each = n
        if not isinstance(source, SpreadSource):
            self.each = _rows_per_block(n, source.n_features, gmm.dtype, n_devices(self.sharding))
        local = self.each // n_devices(self.sharding)
        self.ladder: Ladder = Ladder.of(gmm, local, products=2)
        self.work = local * source.n_features * gmm.means.size
        self.journal = journal
        self.data, self.state = _open.at(self.work)(self.fitter, summary, gmm, key, self.ladder)
        self.trace: list[np.ndarray] = []
        self.result: FitResult | None = None
        self.partial: tuple[int, list[np.ndarray]] = 0, []
        """Rows of the pass that were seen, and the sums over them"""

    def __call__(self, progress: bool, callback: Callable[[FitState], Any] | None) -> FitResult:
        seen = self.journal.resume(self.state, self.limit)
        if seen is None:
            self.journal.begin(self.state)
        else:
            self.state, self.trace = seen
            self.partial = _unpacked(self.journal.partial)
        interrupted = False
        with RowBar(self.n, self.limit, progress) as bar:
            try:
                interrupted = self._steps(bar, callback)
            except KeyboardInterrupt:
                if self.result is None:
                    raise
                interrupted = True
            except (ValueError, OSError) as error:
                if self.result is None:
                    raise
                message = f"The rows could not be read to the end: {error} (The exception's "
                raise FitError(
                    message + "`result` holds the model so far.)", self.result
                ) from error
            finally:
                partial = {} if self.source.together else _packed(self.partial)
                self.journal.end(self.state, self.trace, partial)
        assert self.result is not None
        return with_history(self.result, self.trace, self.dtype, interrupted)

    def _steps(self, bar: RowBar, callback: Callable[[FitState], Any] | None) -> bool:
        """Steps to the end of the fit; whether the callback ended it."""
        going, way = True, int(self.state.way)
        n_iter = int(self.state.n_iter)
        bar.resume(max(n_iter, 0), self.state)
        if n_iter >= 0:
            # It was resumed: what is known of the model in hand.
            self.result = eqx.filter_jit(self.fitter.finish)(self.state)
            going = bool(self.state.status == Status.running)
        while going and (n_iter < self.limit or n_iter < 0):
            began = time.perf_counter()
            arguments = self.fitter, self.state, self.data, self.ladder
            moved, asked, sizes = _move.at(self.work)(*arguments)
            accurate = np.asarray(sizes) <= 1
            way = next((i for i in range(way, len(accurate)) if accurate[i]), len(accurate) - 1)
            sums = self._pass(moved, asked, self.ladder.only(way), bar)
            sums = jax.tree.map(lambda leaf: np.asarray(leaf, self.dtype), sums)
            moved = dataclasses.replace(moved, way=jax.device_put(np.int32(way)))
            answer = _answer.at(self.work)(self.fitter, moved, self.data, asked, sums)
            value, still, reached = jax.device_get(
                (answer[0].log_likelihood, answer[2], answer[0].n_iter)
            )
            # At once, so that Ctrl-C finds a state and what belongs to it.
            self.state, self.result, self.partial = answer[0], answer[1], (0, [])
            self.trace, n_iter, going = [*self.trace, value[None]], int(reached), bool(still)
            bar.step(n_iter, self.state)
            _say(n_iter, value, self.n, time.perf_counter() - began, self.limit)
            self.journal.keep(self.state, self.trace)
            if callback is not None and callback(self.state) is True:
                return True
        return False

    def _pass(self, moved: FitState, asked: PyTree, ladder: Ladder, bar: RowBar) -> PyTree:
        """The sums over all rows."""
        done, leaves = self.partial
        bar.update(done)
        waiting, treedef = None, None
        known = self.fitter, self.data, moved.gmm, asked
        for x, weights, n in self._blocks(done):
            sums = _sums.at(self.work)(*known, x, weights, ladder, self.sharding)
            treedef = jax.tree.structure(sums)
            # While one block is computed, the sums of the one before it are added.
            done, leaves = self._added(done, leaves, waiting, bar)
            waiting = sums, n
        done, leaves = self._added(done, leaves, waiting, bar)
        if done != self.n or treedef is None:
            raise ValueError(
                f"the source gave {self.n} rows at first, and {done} in a later pass. It has to "
                "give the same rows each time."
            )
        if self.source.together:
            leaves = [sum(each[1:], each[0]) for each in zip(*gathered(leaves), strict=True)]
        return jax.tree.unflatten(treedef, leaves)

    def _added(self, done: int, leaves: list[np.ndarray], waiting: Any, bar: RowBar) -> Any:
        """The rows and sums so far, and those of a block."""
        if waiting is None:
            return done, leaves
        sums, n = waiting
        new = [np.array(leaf, np.float64) for leaf in jax.device_get(jax.tree.leaves(sums))]
        leaves = [np.add(a, b, out=a) for a, b in zip(leaves, new, strict=True)] if leaves else new
        self.partial = done + n, leaves
        bar.update(n)
        # Processes resume at the same step, from one file.
        if done + n < self.n and not self.source.together:
            self.journal.keep(self.state, self.trace, lambda: _packed(self.partial))
        return self.partial

    def _blocks(self, skip: int) -> Iterator[tuple[Array, Array, int]]:
        """The rows on the device or devices, without the first so many."""
        scale, source = np.asarray(self.scale, self.dtype), self.source
        if isinstance(source, SpreadSource):
            weights = jnp.ones(self.n, self.dtype) if source.weights is None else source.weights
            if not skip:
                yield _checks.in_dtype(source.x, self.dtype), weights * scale, self.n
            return
        place = None
        if self.sharding is not None:
            place = NamedSharding(self.sharding.mesh, P(axes_of(self.sharding)))
        blocks = checked(source, self.each)
        for x, weights, n in ahead(filled(blocks, self.each, self.dtype, skip)):
            weights *= scale
            yield *jax.device_put((x, weights), place), n


def _rows_per_block(n: int, d: int, dtype: Any, devices: int) -> int:
    """How many rows are taken at once: one size for all blocks, a multiple of the devices."""
    on_cpu = jax.default_backend() == "cpu"
    budget = _CPU_BYTES // devices if on_cpu else _ACCELERATOR_BYTES
    most = max(256, budget // (d * np.dtype(dtype).itemsize))
    # No power of two, of which the chunks would be too: their rows compete for lines of the cache.
    most -= most % 8000 if most > 8000 else 0
    return min(most, _rows.size(-(-n // devices))) * devices


def _packed(partial: tuple[int, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """What a checkpoint holds of a pass that is not over."""
    done, leaves = partial
    arrays = {f"pass.{i}": leaf for i, leaf in enumerate(leaves)}
    return {"pass.rows": np.asarray(done), **arrays} if done else {}


def _unpacked(arrays: dict[str, np.ndarray]) -> tuple[int, list[np.ndarray]]:
    if not arrays:
        return 0, []
    return int(arrays["pass.rows"]), [arrays[f"pass.{i}"] for i in range(len(arrays) - 1)]


def _say(n_iter: int, value: np.ndarray, n: int, seconds: float, limit: int) -> None:
    _log.info(
        "step %d: log-likelihood %.6f, %.3g rows a second, at most %.0f s left",
        n_iter, np.max(value), n / seconds, (limit - n_iter) * seconds,
    )  # fmt: skip
