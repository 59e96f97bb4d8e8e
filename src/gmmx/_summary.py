"""Summaries for people: tables of components and of fits, and settings as they would be typed."""

import dataclasses
import html
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import scipy.special
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Shaped
from tabulate import tabulate

from . import _checks
from ._components import AbstractComponents
from ._covariance.factors import LowRankFactors
from ._criteria import criteria, log_prob_and_certainty
from ._data import Data, without_weights
from ._engine.density import at_points, labels_of

MOST_COMPONENTS = 12
MOST_FEATURES = 8

# A text table that is wider puts deviations below means.
_WIDEST = 100
# An array of more settings is printed by its shape.
_MOST_VALUES = 8


@dataclasses.dataclass(frozen=True, repr=False)
class Summary:
    """Lines and a table: text where it is printed, HTML in a notebook."""

    before: Sequence[str]
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """A row may begin with a mark, for which there is no heading"""
    align: str = ""
    """`l` or `r` for each column"""
    after: Sequence[str] = ()

    def _table(self, rows: Sequence[Sequence[str]], style: str) -> str:
        sides = [{"l": "left", "r": "right"}[side] for side in self.align]
        # The cells are text already; tabulate would write numbers in its own way.
        return tabulate(rows, self.headings, style, colalign=sides, disable_numparse=True)

    def __str__(self) -> str:
        if not self.rows:
            return "\n".join([*self.before, *self.after])
        table = self._table(self.rows, "simple")
        if max(map(len, table.splitlines())) > _WIDEST:
            stacked = [[cell.replace(" ± ", "\n±") for cell in row] for row in self.rows]
            table = self._table(stacked, "simple")
        return "\n".join([*self.before, table, *self.after])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        before, after = (
            "".join(f"<div>{html.escape(line)}</div>" for line in lines)
            for lines in (self.before, self.after)
        )
        return before + (self._table(self.rows, "html") if self.rows else "") + after


# Mixtures


def of_mixture(
    gmm: AbstractComponents, x: Any = None, *, names: Any = None, spurious: Any = None
) -> Summary:
    """Weights, means and deviations of the components, as a table.

    A stack of mixtures, or one that is traced, is a line.

    **Arguments:**

    - `x`: data, `(n, d)` or `gmmx.Data`, for the sizes of the components and the criteria.
    - `names`: of the features; by default the columns of a data frame x.
    - `spurious`: which components to mark, `(k,)`.
    """
    if not _has_values(gmm):
        return Summary([line(gmm)])
    k, d = gmm.means.shape
    names, d_shown = feature_names(names, x, d), min(d, MOST_FEATURES)
    weights = scipy.special.softmax(np.asarray(gmm.logits, np.float64))
    background = _background_weight(gmm)
    weights = weights * (1 - background)
    # The largest ones, in their own order.
    shown = np.sort(np.argsort(-weights, kind="stable")[:MOST_COMPONENTS])
    columns = {
        "k": [str(i) for i in shown],
        "weight": [f"{w:#.3g}" for w in weights[shown]],
    }
    before, after, sizes = [line(gmm)], [], None
    if x is not None:
        criteria, sizes = _at_data(gmm, x)
        before.append(criteria)
        columns["size"] = [f"{sizes[i]:,}" for i in shown]
    means, deviations = np.asarray(gmm.means, np.float64)[shown], _deviations(gmm, shown)
    headings = [*columns, *names[:d_shown]]
    values = zip(means[:, :d_shown].T, deviations[:, :d_shown].T, strict=True)
    cells = [list(map(mean_and_deviation, *column)) for column in values]
    rows = [list(row) for row in zip(*columns.values(), *cells, strict=True)]
    align = "r" * len(headings)
    if background:
        size = "" if sizes is None else f", size {sizes[k]:,}"
        after.append(f"and a background of weight {background:#.3g}{size}")
    if k > len(shown):
        after.append(f"… and {k - len(shown)} more components of smaller weight")
    if d > d_shown:
        after.append(f"… and {d - d_shown} more features")
    if spurious is not None and np.any(spurious):
        headings, align = ["", *headings], "l" + align
        rows = [["*" if spurious[i] else "", *row] for i, row in zip(shown, rows, strict=True)]
        after.append(
            f"* {np.sum(spurious)} of {k} components are no clusters: only the variance floor "
            "keeps them from collapsing, or they rest on too few samples"
        )
    return Summary(before, headings, rows, align, after)


def _background_weight(gmm: AbstractComponents) -> float:
    log_weight = gmm.log_background_weight
    return 0.0 if log_weight is None else math.exp(float(log_weight))


def line(gmm: AbstractComponents) -> str:
    """The sizes of a mixture, or of a stack of them, in a line."""
    shape = getattr(gmm.means, "shape", ())
    if len(shape) < 2:
        return eqx.tree_pformat(gmm)
    *batch, k, d = shape
    rank = gmm.structure.n_latent
    text = (
        f"{_count(k, 'component')} in {_count(d, 'feature')}, {gmm.structure.covariance_type} "
        f"covariances{'' if rank is None else f' of rank {rank}'}, "
        f"{np.dtype(gmm.means.dtype).name}"
    )
    if batch:
        text = f"{' × '.join(map(str, batch))} mixtures of {text}"
    if not _checks.is_concrete(gmm):
        text += ", traced"
    return f"{type(gmm).__name__}: {text}"


def feature_names(names: Any, x: Any, d: int) -> list[str]:
    """The names of the features: given, from the columns of a data frame, or numbers."""
    names = getattr(x, "columns", None) if names is None else names
    names = [f"feature {i}" for i in range(d)] if names is None else [str(name) for name in names]
    if len(names) != d:
        raise ValueError(f"Got {len(names)} names of features; expected {d}, one for each feature.")
    return names


def mean_and_deviation(mean: float, deviation: float) -> str:
    """Both to three digits of the deviation: `1600000123.4 ± 50.2`."""
    if not (math.isfinite(mean) and 0 < deviation < math.inf):
        return f"{mean:.6g} ± {deviation:.3g}"
    power = math.floor(math.log10(deviation))
    if -6 < power < 6 and abs(mean) < 1e15:
        places = max(2 - power, 0)
        return f"{mean:.{places}f} ± {deviation:.{places}f}"
    digits = 2 + max(math.floor(math.log10(abs(mean))) - power, 0) if mean else 2
    digits = min(digits, 16)  # a double has 17
    return f"{mean:.{digits}e} ± {deviation:.2e}"


def _has_values(gmm: AbstractComponents) -> bool:
    """Whether it is one mixture, whose numbers can be seen."""
    leaves = jax.tree.leaves(gmm)
    return (
        np.ndim(gmm.means) == 2
        and all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
        and _checks.is_concrete(gmm)
    )


def _deviations(gmm: AbstractComponents, shown: Int[np.ndarray, " s"]) -> Float[np.ndarray, "s d"]:
    """Of the components that are shown, in NumPy, which compiles nothing."""
    factors = gmm.factors()
    if isinstance(factors, LowRankFactors):
        diagonal, loadings = (np.asarray(v, np.float64)[shown] for v in jax.tree.leaves(factors))
        return np.sqrt(1 + np.sum(loadings**2, axis=2)) / diagonal
    factors = np.asarray(factors)
    factors = np.broadcast_to(factors, (gmm.n_components, *factors.shape[1:]))[shown]
    factors = factors.astype(np.float64)
    if factors.ndim == 2:
        return np.broadcast_to(1 / factors, (len(shown), gmm.n_features))
    return np.linalg.norm(np.linalg.inv(factors), axis=-1)


def _at_data(gmm: AbstractComponents, x: Any) -> tuple[str, Shaped[np.ndarray, " k"]]:
    """The likelihood and the criteria in a line, and how many rows are most probably of each."""
    x, weights = without_weights(x, None)
    x = x if isinstance(x, Data) else _checks.check_data(x, 1, gmm.n_features)
    log_prob, certainty, labels = map(np.asarray, at_points(gmm, x, _of_rows))
    counts = np.ones(len(labels), int) if weights is None else np.asarray(weights, np.float64)
    n, total = counts.sum(), counts @ log_prob.astype(np.float64)
    bic, icl, aic = criteria(gmm, math.log(n), total, counts @ certainty.astype(np.float64))
    text = (
        f"{_count(len(labels), 'row')}: mean log-likelihood {total / n:.4f} nats, BIC {bic:.1f}, "
        f"ICL {icl:.1f}, AIC {aic:.1f}"
    )
    known = labels >= 0
    sizes = np.bincount(labels[known], counts[known], gmm.n_labels)
    return text, sizes.round(1) if weights is not None else sizes.astype(int)


def _of_rows(
    log_joint: Float[Array, "k n"],
) -> tuple[Float[Array, " n"], Float[Array, " n"], Int[Array, " n"]]:
    return *log_prob_and_certainty(log_joint), labels_of(log_joint)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# Fits


def of_fit(result: Any, ending: str, x: Any = None, *, names: Any = None) -> Summary:
    """How a fit ended, and the mixture that it found; a line or two of many fits.

    **Arguments:**

    - `result`: a `gmmx.FitResult`.
    - `ending`: the message of its status; of many fits how often each status occurs.
    - `x`, `names`: see `of_mixture`.
    """
    gmm, likelihoods = result.gmm, result.log_likelihood
    if not _checks.is_concrete(result) or not isinstance(likelihoods, jax.Array | np.ndarray):
        return Summary([f"{type(result).__name__} of {line(gmm)}"])
    likelihoods = np.asarray(likelihoods, np.float64)
    if likelihoods.ndim:
        low, high = (f"{end(likelihoods, initial=start, where=likelihoods == likelihoods):.4f}"
                     for end, start in ((np.min, np.inf), (np.max, -np.inf)))  # fmt: skip
        return Summary(
            [
                f"{likelihoods.size:,} fits: {ending}; mean log-likelihoods from {low} to {high} "
                "nats a sample",
                line(gmm),
            ]
        )
    state = "Converged" if result.converged else "Not converged"
    change = float(result.log_likelihood_diff)
    last = f", changed by {change:.1e} in the last step" if math.isfinite(change) else ""
    about = of_mixture(gmm, x, names=names, spurious=np.asarray(result.spurious))
    before = [
        f"{state} after {_count(int(result.n_iter), 'step')}: {ending}",
        f"Mean log-likelihood {float(likelihoods):.4f} nats a sample{last}",
    ]
    return dataclasses.replace(about, before=[*before, *about.before])


def counts(names: Sequence[str], values: Int[Any, "*batch"]) -> str:
    """How often each name occurs, by its index: `7 converged, 1 max_steps_reached`."""
    found = Counter(names[value] for value in np.ravel(values))
    return ", ".join(f"{count:,} {name}" for name, count in found.most_common())


def of_selection(table: dict[str, list[Any]], best: int | None, criterion: str) -> Summary:
    """The fits of a selection, the best one marked.

    **Arguments:**

    - `table`: a list for each column.
    - `best`: the row of the best fit; None where every fit failed.
    """
    headings = [name.replace("_", " ") for name in table]
    rows = [
        [_cell(name, value) for name, value in zip(table, row, strict=True)]
        for row in zip(*table.values(), strict=True)
    ]
    align = "l" + "r" * (len(headings) - 2) + "l"
    if best is None:
        return Summary([], headings, rows, align)
    rows = [["*" if i == best else "", *row] for i, row in enumerate(rows)]
    return Summary([], ["", *headings], rows, "l" + align, [f"* the best by {criterion}"])


def of_criterion(
    criterion: str,
    structures: Sequence[str],
    sizes: Sequence[int],
    values: Sequence[Sequence[float]],
    best: Sequence[tuple[str, float]],
) -> Summary:
    """A criterion, a row for each number of components and a column for each structure.

    **Arguments:**

    - `best`: the best fits by name, with their values.
    """
    rows = [
        [str(k), *(_cell(criterion, value) for value in row)]
        for k, row in zip(sizes, values, strict=True)
    ]
    after = [
        f"{name}: {_cell(criterion, value)}" + (f" ({value - best[0][1]:+.4g})" if i else "")
        for i, (name, value) in enumerate(best)
    ]
    heading = f"The best by {criterion}:" if best else "Every fit failed."
    align = "r" * (1 + len(structures))
    return Summary([], ["K", *structures], rows, align, ["", heading, *after])


def _cell(column: str, value: Any) -> str:
    if isinstance(value, float):
        digits = 4 if column in ("log_likelihood", "held_out") else 1
        return "–" if math.isnan(value) else f"{value:.{digits}f}"
    return value.replace("_", " ") if column == "status" else str(value)


# Settings


def as_typed(module: eqx.Module) -> str:
    """A module of settings as it would be typed, without what is at its default."""
    given = []
    for field in dataclasses.fields(module):  # pyright: ignore[reportArgumentType]
        value = getattr(module, field.name)
        if field.default is dataclasses.MISSING and not field.kw_only:
            given.append(_typed(value))
        elif not _is_default(value, field):
            given.append(f"{field.name}={_typed(value)}")
    return f"{type(module).__name__}({', '.join(given)})"


def _is_default(value: Any, field: dataclasses.Field) -> bool:
    default = field.metadata.get("converter", lambda value: value)(field.default)
    if isinstance(value, jax.Array | np.ndarray):  # several settings, or a traced one
        return False
    return type(value) is type(default) and bool(value == default)


def _typed(value: Any) -> str:
    if hasattr(value, "tolist") and not isinstance(value, Tracer) and value.size <= _MOST_VALUES:
        return repr(value.tolist())
    if isinstance(value, frozenset):
        names = tuple(sorted(value))
        return repr(names[0] if len(names) == 1 else names)
    if hasattr(value, "_fields"):  # Optax's transformations do not know what made them
        return f"<{type(value).__name__}>"
    if hasattr(value, "__qualname__"):
        package = value.__module__.partition(".")[0]
        return value.__qualname__ if package == "__main__" else f"{package}.{value.__qualname__}"
    return as_typed(value) if isinstance(value, eqx.Module) else eqx.tree_pformat(value)
