"""How many components, and of which structure: one fit for each, and criteria to choose by."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from . import _checks, _rows
from ._abstract_mixture import AbstractMixture
from ._background import BackgroundMixture, as_background
from ._components import Components
from ._covariance import LOW_RANK, AbstractCovariance, structure_named
from ._criteria import criteria, log_prob_and_certainty, totals
from ._data import Data, Samples, check_rows, completed, without_weights
from ._engine.density import evaluate
from ._fit.base import AbstractFitter, solve
from ._fit.em import EMFitter
from ._fit.restarts import Restarts, best_of, rank
from ._fit.result import FitError, FitResult, FitWarning
from ._fit.state import where
from ._init.clutter import without_clutter
from ._init.initialize import initialize, sample_of, scaled
from ._init.short_runs import RUNS, STEPS, Clusterings, clusterings, some_rows
from ._mixture import GaussianMixture
from ._programs import Program
from ._selection import CRITERIA, Candidate, Selection
from ._sources.base import AbstractSource, check_no_weights

# Multiplications of an EM step from which a second program for the smaller mixtures pays.
_WORTH_COMPILING = 2**29


def select(
    x: Any,
    n_components: int | Iterable[int] = range(1, 10),
    covariance_types: str | Iterable[str] = ("full", "tied", "diag", "spherical"),
    *,
    rank: int | Iterable[int] | None = None,
    criterion: str = "bic",
    fitter: AbstractFitter | None = None,
    n_init: int = 1,
    n_folds: int = 5,
    weights: Any = None,
    background: Any = None,
    key: PRNGKeyArray | None = None,
    callback: Callable[[Candidate], Any] | None = None,
) -> Selection:
    r"""Fit each number of components with each structure, and choose among them.

    With ν free parameters, n samples, likelihood L and responsibilities z,

    $$\mathrm{BIC} = \nu \log n - 2 \log L,\quad \mathrm{AIC} = 2\nu - 2 \log L,\quad
      \mathrm{ICL} = \mathrm{BIC} - 2 \sum_i \log \max_k z_{ik},$$

    smaller being better (Schwarz 1978; Akaike 1974; Biernacki, Celeux & Govaert 2000).

    A start is the likeliest of seven starts after 40 steps, as in
    `gmmx.initialize(method="em")`. Smaller mixtures are fitted as larger ones with components of
    weight zero: the result is the same, and one program serves several K.

    **Arguments:**

    - `x`: the data, `(n, d)`; or `gmmx.Data`, without labels; or a source (`gmmx.rows_from`),
        whose starts come from a sample of its rows.
    - `n_components`: the numbers to try.
    - `covariance_types`: the structures to try, by name; `gmmx.FAMILIES` are the fourteen of
        mclust.
    - `rank`: the ranks to try of `"low_rank"` and its relatives, one or several.
    - `criterion`: `"bic"`, `"icl"`, `"aic"`, or `"held_out"`, the mean log-likelihood of each
        sample under a fit that has not seen it: larger is better.
    - `fitter`: any fitter of one start; `EMFitter()` by default.
    - `n_init`: number of starts of each fit; the one of greatest likelihood is kept.
    - `n_folds`: for `"held_out"`, number of random parts of the data. Each part is held out once:
        its samples have no weight.
    - `weights`: how often each sample counts, `(n,)`; their sum is the n of the criteria.
    - `background`: of all candidates, for data with clutter or outliers; True for a uniform one on
        the box of the data, see `gmmx.initialize`.
    - `key`: `jax.random.key(0)` by default.
    - `callback`: called with each candidate.

    **Returns:** a `Selection`; its `best.gmm` is the fitted mixture. Ctrl-C
    returns the fits made. A fit that failed is a row with its status and without criteria; a
    warning (`FitWarning`) counts them.

    **Raises:** `ValueError` for data that cannot be fitted and for unknown settings.
    """
    sizes = _check_sizes(n_components)
    fitter = EMFitter() if fitter is None else fitter
    _check_settings(fitter, criterion)
    n_init = _checks.check_count(n_init, "n_init")
    if isinstance(x, AbstractSource):
        check_no_weights(weights)
        structures = _check_structures(covariance_types, rank, x.n_features)
        cells = _cells_of_source(
            x, structures, sizes, criterion, fitter, n_init, background, _checks.as_key(key)
        )
        return _collect(cells, len(structures) * len(sizes), criterion, callback)
    x, weights = without_weights(check_rows(x, max(sizes)), weights)
    structures = _check_structures(covariance_types, rank, x.shape[1])
    if isinstance(x, Data) and x.labels is not None:
        raise ValueError(
            "the data have labels, which name a component each: their number is known. Leave them "
            "out, or fit that number of components."
        )
    if not _checks.is_concrete(x, weights):
        raise ValueError("select chooses by values, so it cannot stand inside jit, vmap or grad.")
    count = float(x.shape[0] if weights is None else np.sum(np.asarray(weights, np.float64)))
    weights = _checks.check_weights(weights, x.shape[0], x.dtype)
    background = as_background(background, x)
    key = _checks.as_key(key)
    folds = None
    if criterion == "held_out":
        folds = _deal(x, weights, n_folds, max(sizes), key)

    n = x.shape[0]
    x, weights = _rows.fill(x, weights)
    keys, padded = jax.random.split(key, n_init), _padded(sizes, x)
    cells = (
        _Cell(structure, fitter, padded[k], k, background, x, n, count, keys).candidate(
            weights, folds
        )
        for structure in structures
        for k in sizes
    )
    return _collect(cells, len(structures) * len(sizes), criterion, callback)


def _collect(
    cells: Iterable[Candidate],
    asked: int,
    criterion: str,
    callback: Callable[[Candidate], Any] | None,
) -> Selection:
    """The selection of candidates, of those that were fitted where it is interrupted."""
    candidates = []
    try:
        for candidate in cells:
            candidates.append(candidate)
            if callback is not None:
                callback(candidate)
    except KeyboardInterrupt:
        if not candidates:
            raise
        warnings.warn(
            f"select was interrupted after {len(candidates)} of {asked} fits.",
            FitWarning,
            stacklevel=3,
        )
    selection = Selection(tuple(candidates), criterion)
    _announce(selection)
    return selection


def _cells_of_source(
    source: AbstractSource,
    structures: list[type[AbstractCovariance]],
    sizes: list[int],
    criterion: str,
    fitter: AbstractFitter,
    n_init: int,
    background: Any,
    key: PRNGKeyArray,
) -> Iterator[Candidate]:
    """One fit to all rows for each structure and size, from starts of a sample of them."""
    if criterion == "held_out":
        raise ValueError(
            "criterion='held_out' deals rows into folds, and a source gives them in blocks. Choose "
            "by 'bic', or fit to some of the files and compare gmm.score of the others."
        )
    x, weights, background = sample_of(source, max(sizes), background, key)
    solver = fitter
    if n_init > 1:
        solver = cast(Any, Restarts)(fitter, n_init, method="em")
    for structure in structures:
        for k in sizes:
            start = initialize(
                x, k, structure.covariance_type, rank=structure.n_latent, method="em", key=key,
                weights=weights, reg_covar=fitter.reg_covar, background=background,
            )  # fmt: skip
            with warnings.catch_warnings():
                # The table says how each fit ended.
                warnings.simplefilter("ignore", FitWarning)
                try:
                    result = solver.fit(source, start, key=key)
                except FitError as error:
                    result = error.result
            n, log_l, certainty = totals(result.gmm, source)
            log_l = math.nan if result.failed else log_l
            bic, icl, aic = criteria(result.gmm, math.log(n), log_l, certainty)
            yield Candidate(
                covariance_type=structure.covariance_type,
                n_components=k,
                n_parameters=result.gmm.n_parameters,
                log_likelihood=log_l / n,
                bic=bic,
                icl=icl,
                aic=aic,
                held_out=math.nan,
                result=result,
            )


def _check_sizes(n_components: int | Iterable[int]) -> list[int]:
    """The numbers of components to try, each once."""
    if isinstance(n_components, int | np.integer):
        n_components = [int(n_components)]
    sizes = [_checks.check_count(k, "n_components") for k in n_components]
    if not sizes:
        raise ValueError("n_components is empty: name at least one number, or range(1, 10).")
    return list(dict.fromkeys(sizes))


def _check_structures(
    names: str | Iterable[str], rank: int | Iterable[int] | None, n_features: int
) -> list[type[AbstractCovariance]]:
    """The structures to try, each once; those of low rank once for each rank."""
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("covariance_types is empty: name at least one structure.")
    ranks = list(rank) if isinstance(rank, Iterable) else [rank]
    found: list[type[AbstractCovariance]] = []
    for name in names:
        has_rank = name in LOW_RANK
        found += [structure_named(name, one, n_features) for one in (ranks if has_rank else [None])]
    if ranks != [None] and all(structure.n_latent is None for structure in found):
        structure_named(found[0].covariance_type, ranks[0])
    return list(dict.fromkeys(found))


def _check_settings(fitter: AbstractFitter, criterion: str) -> None:
    if isinstance(fitter, Restarts):
        raise ValueError(
            "fitter is a Restarts; select makes the starts itself. Pass the fitter inside it, and "
            f"n_init={fitter.n_init}."
        )
    if criterion not in CRITERIA:
        known = ", ".join(repr(name) for name in CRITERIA)
        raise ValueError(f"criterion={criterion!r} is unknown; expected one of {known}.")


def _padded(sizes: list[int], x: Any) -> dict[int, int]:
    """For each number of components, how many the program has that it is fitted in.

    One program for all costs up to twice the work of exact sizes; a second one, for the lower
    half, brings that to about 1.4. Compiling it takes seconds, so the work has to be worth it.
    """
    (n, d), largest = x.shape, max(sizes)
    lower = [k for k in sizes if 2 * k <= largest + 1]
    if not lower or n * largest * d * (d + 1) < _WORTH_COMPILING:
        return dict.fromkeys(sizes, largest)
    return {k: max(lower) if k in lower else largest for k in sizes}


def _deal(
    x: Samples, weights: Array | None, n_folds: Any, largest: int, key: PRNGKeyArray
) -> np.ndarray:
    """Which samples each fold holds out, (folds n), in parts of equal size."""
    n = x.shape[0]
    n_folds = _checks.check_count(n_folds, "n_folds")
    if not 2 <= n_folds <= n:
        raise ValueError(f"n_folds={n_folds}; expected 2 to {n}, the number of samples.")
    fold = np.asarray(jax.random.permutation(jax.random.fold_in(key, 1), n)) % n_folds
    held_out = fold == np.arange(n_folds)[:, None]
    counted = np.ones(n, bool) if weights is None else np.asarray(weights) > 0
    if (~held_out & counted).sum(axis=1).min() < largest or not (held_out & counted).any(1).all():
        raise ValueError(
            f"with {n_folds} folds too few samples are left for {largest} components. Take fewer "
            "components or another number of folds."
        )
    return held_out


@dataclasses.dataclass(frozen=True)
class _Cell:
    """One structure and number of components, fitted in a program of `padded` components."""

    structure: type[AbstractCovariance]
    fitter: AbstractFitter
    padded: int
    n_components: int
    background: Any
    x: Samples
    """The samples, filled up"""
    n: int
    """How many rows there are"""
    count: float
    """How many samples they stand for: the sum of the weights"""
    keys: Array

    def candidate(self, weights: Array | None, folds: np.ndarray | None) -> Candidate:
        """The fit to all samples, and its criteria."""
        n, held_out = self.n, math.nan
        counted = np.ones(n) if weights is None else np.asarray(weights)
        if folds is not None:
            # One program for all fits: with weights.
            weights = jnp.asarray(counted, self.x.dtype)
            held_out = self.held_out(counted, folds)
        result, log_prob, log_certainty = self.fit(weights)
        result = _trim(result, self.n_components)
        with np.errstate(invalid="ignore"):  # of a fit that failed
            mean, certainty = (
                float(counted @ np.asarray(v, np.float64)) / n for v in (log_prob, log_certainty)
            )
        total = math.nan if result.failed else self.count * mean
        bic, icl, aic = criteria(result.gmm, math.log(self.count), total, self.count * certainty)
        return Candidate(
            covariance_type=self.structure.covariance_type,
            n_components=self.n_components,
            n_parameters=result.gmm.n_parameters,
            log_likelihood=total / self.count,
            bic=bic,
            icl=icl,
            aic=aic,
            held_out=held_out,
            result=result,
        )

    def held_out(self, counted: np.ndarray, folds: np.ndarray) -> float:
        """The mean log-likelihood of each sample under a fit in which it had no weight."""
        log_prob = np.zeros(len(counted))
        for fold in folds:
            fold = np.pad(fold, (0, len(counted) - len(fold)))
            train = np.where(fold, 0, counted).astype(self.x.dtype)
            result, predicted, _ = self.fit(jnp.asarray(train * (self.n / train.sum())))
            log_prob[fold] = math.nan if result.failed else np.asarray(predicted)[fold]
        return float(counted.astype(np.float64) @ log_prob / self.n)

    def fit(self, weights: Array | None) -> tuple[FitResult, Array, Array]:
        """The likeliest of the fits, log p(x_i), and log max_k p(k | x_i)."""
        wanted = jax.device_put(np.int32(self.n_components))
        work = self.x.size * self.padded * self.x.shape[1]
        clusters, fit = _clusters.at(work), _fit.at(work)
        cluttered = self.background is not None
        low_rank = self.structure.n_latent is not None
        found = clusters(self.padded, self.x, wanted, weights, self.keys, cluttered, low_rank)
        result, dense = fit(
            self.structure, self.fitter, self.x, *found, weights, self.keys, self.background
        )
        return result, *evaluate(dense, self.x, log_prob_and_certainty)


# Three programs for each padded number of components, of which only the fit depends on the
# structure.


@Program
def _clusters(
    padded: int,
    x: Samples,
    wanted: Int[Array, ""],
    weights: Float[Array, " n"] | None,
    keys: Array,
    cluttered: bool,
    low_rank: bool,
) -> tuple[Clusterings, Float[Array, ""] | None]:
    """For each key, clusterings into the first `wanted` of `padded` clusters.

    And the share of what belongs to none of them, where there may be such.
    """
    counts = jnp.ones(x.shape[0], x.dtype) if weights is None else weights
    share = None
    if cluttered:
        counts, share = without_clutter(scaled(x, counts), counts, keys[0])

    def one(key: PRNGKeyArray) -> Clusterings:
        some, weight = some_rows(x, counts, padded, key)
        rows = completed(some, weight)
        return clusterings(rows, weight, padded, key, low_rank=low_rank, wanted=wanted)

    return jax.lax.map(one, keys), share


@Program
def _fit(
    structure: type[AbstractCovariance],
    fitter: AbstractFitter,
    x: Samples,
    starts: Clusterings,
    share: Float[Array, ""] | None,
    weights: Float[Array, " n"] | None,
    keys: Array,
    background: Any,
) -> tuple[FitResult, AbstractMixture]:
    """The likeliest of the fits from the clusters of each key, and its mixture as a full one.

    Of the clusterings of a key one is fitted to the end: the likeliest after a few steps.
    """
    all_steps = jnp.asarray(fitter.max_iter, jnp.int32)
    some_steps = jnp.minimum(STEPS, all_steps)

    def one(begin: tuple[Clusterings, PRNGKeyArray]) -> FitResult:
        starts, key = begin

        def fit(run: Array, limit: Array) -> FitResult:
            # A component without a cluster stands at weight zero.
            gmm = starts.of(run, structure).fit(GaussianMixture, structure, fitter.reg_covar)
            if background is not None:
                gmm = BackgroundMixture.of(gmm, background, share)
            return solve(fitter, x, gmm, weights, jax.random.split(key)[1], limit)

        def turn(best: tuple[Array, ...], run: Array) -> tuple[tuple[Array, ...], FitResult]:
            # One program for all: the last turn is the whole fit of the best one.
            last = run == RUNS
            chosen, limit = where(last, (best[0], all_steps), (run, some_steps))
            result = fit(chosen, limit)
            grade, value = rank(result)
            better = (grade > best[1]) | ((grade == best[1]) & (value > best[2]))
            return where(better, (run, grade, value), best), result

        zero = jnp.zeros((), jnp.int32)
        worst = zero, zero - 1, jnp.asarray(-jnp.inf, x.dtype)
        _, results = jax.lax.scan(turn, worst, jnp.arange(RUNS + 1, dtype=jnp.int32))
        return jax.tree.map(lambda leaf: leaf[-1], results)

    # One after the other: none waits for the slowest.
    results = jax.lax.map(one, (starts, keys))
    best = best_of(results)
    result = jax.tree.map(lambda leaf: leaf[best], results)
    gmm = result.gmm
    if structure.n_latent is not None:
        return result, gmm
    dense = structure_named("full").from_factors(gmm.dense_factors())
    return result, dataclasses.replace(gmm, structure=dense)


def trim(gmm: Components, k: int) -> Components:
    """The first k components of a mixture."""
    structure, d = type(gmm.structure), gmm.n_features
    few = eqx.filter_eval_shape(
        lambda: (jnp.ones(k), jnp.ones((k, d)), structure.from_scale(jnp.ones(d), k))
    )
    leaves = gmm.logits, gmm.means, gmm.structure
    # In NumPy: as JAX arrays each K would be a program of its own.
    leaves = jax.tree.map(lambda leaf, like: _leading(leaf, like.shape), leaves, few)
    logits, means, structure = leaves
    return dataclasses.replace(gmm, logits=logits, means=means, structure=structure)


def _trim(result: FitResult, k: int) -> FitResult:
    """The result without the components that are not there, and without empty history."""
    history = _leading(result.history, (int(result.n_iter),))
    return eqx.tree_at(
        lambda r: (r.gmm, r.history, r.spurious),
        result,
        (trim(result.gmm, k), history, result.spurious[:k]),
    )


def _leading(leaf: Array, shape: tuple[int, ...]) -> Array:
    return jax.device_put(np.asarray(leaf)[tuple(slice(length) for length in shape)])


def _announce(selection: Selection) -> None:
    """Warn, once, of the fits that did not end well."""
    told = []
    for what, group in (
        ("failed", [c for c in selection.candidates if c.failed]),
        ("did not converge", [c for c in selection.candidates if not c.failed and not c.converged]),
    ):
        if group:
            names = ", ".join(f"{c.covariance_type} {c.n_components}" for c in group)
            told.append(f"{len(group)} of {len(selection.candidates)} fits {what}: {names}")
    if told:
        message = f"{'; '.join(told)}. The status column says why."
        warnings.warn(message, FitWarning, stacklevel=3)
