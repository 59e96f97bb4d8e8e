"""What `gmmx.select` gives back: the table of fits, printed, exported and searched for its best."""

import dataclasses
import math
from typing import Any

import numpy as np

from ._fit.result import FitResult
from ._fit.status import Status
from ._mixture import GaussianMixture

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
    def gmm(self) -> GaussianMixture:
        """The fitted mixture"""
        return self.result.gmm

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
    def failed(self) -> bool:
        """Whether the fit broke down; then its criteria are NaN."""
        return self.status in ("singular_covariance", "non_finite")


_COLUMNS = (
    "covariance_type", "n_components", "n_parameters", "log_likelihood", "bic", "icl", "aic",
    "held_out", "n_iter", "converged", "status",
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

        **Raises:** `ValueError` where every fit failed.
        """
        values = np.array([getattr(candidate, self.criterion) for candidate in self.candidates])
        if np.isnan(values).all():
            first = self.candidates[0]
            raise ValueError(
                f"every fit failed, so none is best. The first, {_name(first)}: "
                f"{Status[first.result.status]}"
            )
        return self.candidates[int(np.nanargmax(CRITERIA[self.criterion] * values))]

    def to_dict(self) -> dict[str, list[Any]]:
        """The table, a list for each column: `pandas.DataFrame(selection.to_dict())`.

        A fit that failed has NaN for its criteria.
        """
        columns = [c for c in _COLUMNS if c != "held_out" or self.criterion == "held_out"]
        return {c: [getattr(row, c) for row in self.candidates] for c in columns}

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """The criterion as curves, see `gmmx.plot.selection`."""
        from .plot import selection

        return selection(self, ax=ax, **options)

    def _cells(self) -> tuple[list[str], list[list[str]], int | None]:
        """The headings, the cells as text, and which row is the best one."""
        table = self.to_dict()
        del table["converged"]
        headings = [name.replace("_", " ") for name in table]
        rows = [
            [_cell(name, table[name][i]) for name in table] for i in range(len(self.candidates))
        ]
        failed = all(candidate.failed for candidate in self.candidates)
        return headings, rows, None if failed else self.candidates.index(self.best)

    def __str__(self) -> str:
        headings, rows, best = self._cells()
        widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
        # Text to the left, numbers to the right.
        sides = [str.ljust, *[str.rjust] * (len(headings) - 2), str.ljust]

        def line(mark: str, cells: list[str]) -> str:
            placed = (side(c, w) for side, c, w in zip(sides, cells, widths, strict=True))
            return f"{mark} {'  '.join(placed)}".rstrip()

        lines = [line(" ", headings), line(" ", ["-" * width for width in widths])]
        lines += [line("*" if i == best else " ", row) for i, row in enumerate(rows)]
        return "\n".join([*lines, f"* the best by {self.criterion}" if best is not None else ""])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        headings, rows, best = self._cells()
        head = "".join(f"<th>{heading}</th>" for heading in headings)
        body = ""
        for i, row in enumerate(rows):
            style = ' style="font-weight: bold"' if i == best else ""
            body += f"<tr{style}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _name(candidate: Candidate) -> str:
    return f"{candidate.covariance_type} with {candidate.n_components} components"


def _cell(column: str, value: Any) -> str:
    if isinstance(value, float):
        digits = 4 if column in ("log_likelihood", "held_out") else 1
        return "–" if math.isnan(value) else f"{value:.{digits}f}"
    return value.replace("_", " ") if column == "status" else str(value)
