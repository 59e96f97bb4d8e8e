"""What `gmmx.select` gives back: the table of fits, printed, exported and searched for its best."""

import dataclasses
import math
from typing import Any

import numpy as np

from . import _summary
from ._fit.result import FitResult
from ._fit.status import Status

CRITERIA = {"bic": -1, "icl": -1, "aic": -1, "held_out": 1}
"""The criteria by name, and the sign of what is better"""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One row of a selection: a fitted mixture and its criteria."""

    covariance_type: str
    n_components: int
    n_parameters: int
    log_likelihood: float
    """The mean log-likelihood of the data, in nats a sample"""
    bic: float
    icl: float
    aic: float
    held_out: float
    """The mean log-likelihood of rows that the fit did not see; NaN where none were held out"""
    result: FitResult
    """The fit to all data"""

    @property
    def gmm(self) -> Any:
        """The fitted mixture"""
        return self.result.gmm

    @property
    def rank(self) -> int | None:
        """The number of latent factors of a component, of a structure that has some"""
        return self.gmm.structure.n_latent

    @property
    def structure(self) -> str:
        """The name of the structure, with its rank if it has one"""
        return self.covariance_type + ("" if self.rank is None else f" of rank {self.rank}")

    @property
    def n_iter(self) -> int:
        """How many steps were made"""
        return int(self.result.n_iter)

    @property
    def converged(self) -> bool:
        """Whether the fit ended by itself"""
        return bool(self.result.converged)

    @property
    def status(self) -> str:
        """The name of the fit's status, one of `gmmx.Status`"""
        names = Status._name_to_item  # Equinox has no public way from an item to its name.
        return next(name for name, item in names.items() if bool(item == self.result.status))

    @property
    def spurious(self) -> bool:
        """Whether a component is no cluster, see `gmmx.FitResult.spurious`."""
        return bool(np.asarray(self.result.spurious).any())

    @property
    def failed(self) -> bool:
        """Whether the fit broke down; then its criteria are NaN."""
        return bool(self.result.failed)


_COLUMNS = (
    "covariance_type", "rank", "n_components", "n_parameters", "log_likelihood", "bic", "icl",
    "aic", "held_out", "n_iter", "converged", "status",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, repr=False)
class Selection:
    """The outcome of `gmmx.select`: a table of fits, and the best of them.

    Printed, it is its `table` or, with one structure, its `summary`. `gmmx.plot.selection` draws
    it.
    """

    candidates: tuple[Candidate, ...]
    """One for each structure and number of components, in the order they were asked for"""
    criterion: str
    """What the best is chosen by"""

    @property
    def best(self) -> Candidate:
        """The candidate of the best criterion.

        A component that collapses onto a few samples raises the likelihood without any bound, so
        a candidate with such a component is best only where every other one has some as well.

        **Raises:** `ValueError` where every fit failed.
        """
        found = self.top(1)
        if not found:
            first = self.candidates[0]
            raise ValueError(
                f"every fit failed, so none is best. The first, {_name(first)}: "
                f"{Status[first.result.status]}"
            )
        return found[0]

    def top(self, number: int = 3) -> tuple[Candidate, ...]:
        """So many of the best candidates, the best first.

        Those with a component that is no cluster come after all others. Fits that failed are left
        out.
        """
        worse, values = -CRITERIA[self.criterion], map(self._value, self.candidates)
        order = [
            (candidate.spurious, worse * value, i)
            for i, (candidate, value) in enumerate(zip(self.candidates, values, strict=True))
            if not np.isnan(value)
        ]
        return tuple(self.candidates[i] for *_, i in sorted(order)[:number])

    def _value(self, candidate: Candidate) -> float:
        return getattr(candidate, self.criterion)

    def to_dict(self) -> dict[str, list[Any]]:
        """The table, a list for each column: `pandas.DataFrame(selection.to_dict())`.

        A fit that failed has NaN for its criteria.
        """
        left_out = set() if self.criterion == "held_out" else {"held_out"}
        if all(row.rank is None for row in self.candidates):
            left_out.add("rank")
        columns = [c for c in _COLUMNS if c not in left_out]
        return {c: [getattr(row, c) for row in self.candidates] for c in columns}

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """The criterion as curves, see `gmmx.plot.selection`."""
        from .plot import selection

        return selection(self, ax=ax, **options)

    def table(self) -> _summary.Summary:
        """The criterion of all fits, with a column for each structure; then the best three."""
        structures = list(dict.fromkeys(c.structure for c in self.candidates))
        sizes = list(dict.fromkeys(c.n_components for c in self.candidates))
        values = {(c.n_components, c.structure): self._value(c) for c in self.candidates}
        cells = [[values.get((k, name), math.nan) for name in structures] for k in sizes]
        best = [(_name(candidate), self._value(candidate)) for candidate in self.top()]
        return _summary.of_criterion(self.criterion, structures, sizes, cells, best)

    def summary(self) -> _summary.Summary:
        """All columns, with a row for each fit, the best one marked."""
        table = self.to_dict()
        del table["converged"]
        best = next((self.candidates.index(candidate) for candidate in self.top(1)), None)
        return _summary.of_selection(table, best, self.criterion)

    def __str__(self) -> str:
        return str(self._shown())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._shown()._repr_html_()

    def _shown(self) -> _summary.Summary:
        one = len({candidate.structure for candidate in self.candidates}) == 1
        return self.summary() if one else self.table()


def _name(candidate: Candidate) -> str:
    return f"{candidate.structure} with {candidate.n_components} components"
