"""What `gmmx.select` gives back: the table of fits, printed, exported and searched for its best."""

import dataclasses
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

    Printed, it is the table. `gmmx.plot.selection` draws it.
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
        values = np.array([getattr(candidate, self.criterion) for candidate in self.candidates])
        if np.isnan(values).all():
            first = self.candidates[0]
            raise ValueError(
                f"every fit failed, so none is best. The first, {_name(first)}: "
                f"{Status[first.result.status]}"
            )
        values = CRITERIA[self.criterion] * values
        sound = ~np.array([candidate.spurious for candidate in self.candidates])
        if np.isfinite(values[sound]).any():
            values = np.where(sound, values, np.nan)
        return self.candidates[int(np.nanargmax(values))]

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

    def summary(self) -> _summary.Summary:
        """The table, the best fit marked."""
        table = self.to_dict()
        del table["converged"]
        failed = all(candidate.failed for candidate in self.candidates)
        best = None if failed else self.candidates.index(self.best)
        return _summary.of_selection(table, best, self.criterion)

    def __str__(self) -> str:
        return str(self.summary())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def _name(candidate: Candidate) -> str:
    rank = "" if candidate.rank is None else f" of rank {candidate.rank}"
    return f"{candidate.covariance_type}{rank} with {candidate.n_components} components"
