"""The rows of a table that a command was asked to use, and what is known of each."""

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from . import large, precision, tables, words

if TYPE_CHECKING:
    import gmmx


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which columns and rows, by the options of a command."""

    columns: str | None = None
    exclude: str | None = None
    weights: str | None = None
    drop_missing: bool = False
    missing: bool = False
    noise_columns: str | None = None
    label_column: str | None = None

    @property
    def noise(self) -> list[str]:
        """The columns of noise."""
        return words.split(self.noise_columns) or []

    @property
    def others(self) -> list[str]:
        """The columns that are no features."""
        named = [name for name in (self.weights, self.label_column) if name is not None]
        return [*(words.split(self.exclude) or []), *named, *self.noise]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Features, and what else is known of the rows."""

    names: list[str]
    """Of the features"""
    x: np.ndarray
    """`(n, d)`, NaN where a cell is empty"""
    weights: np.ndarray | None = None
    deviations: np.ndarray | None = None
    """Of the noise of each number, `(n, d)`"""
    labels: np.ndarray | None = None
    units: np.ndarray | None = None
    """By which the features were divided, `(d,)`"""

    def described(self) -> str:
        """How many rows of which features."""
        more = ", …" * (len(self.names) > 8)
        gaps = int(np.isnan(self.x).any(axis=1).sum())
        incomplete = f", {gaps} of them with missing values" if gaps else ""
        return f"{len(self.x)} rows of {', '.join(self.names[:8])}{more}{incomplete}"

    def given(self, gmmx: Any) -> Any:
        """As the library takes them."""
        gaps = np.isnan(self.x).any()
        if self.deviations is None and self.labels is None and not gaps:
            return self.x
        noise = None if self.deviations is None else np.square(self.deviations)
        return gmmx.Data(self.x, noise=noise, labels=self.labels, missing=bool(gaps))

    def scaled(self) -> Self:
        """With each feature, unless it is constant, divided by its deviation."""
        units = np.nanstd(self.x, axis=0)
        units = np.where(units > 0, units, 1)
        deviations = None if self.deviations is None else self.deviations / units
        return dataclasses.replace(self, x=self.x / units, deviations=deviations, units=units)

    def back(self, gmmx: Any, result: "gmmx.FitResult") -> "tuple[gmmx.FitResult, Any]":
        """The result, and the rows, in the units of the data."""
        if self.units is None:
            return result, self.given(gmmx)
        import jax.numpy as jnp

        units = jnp.asarray(self.units, result.gmm.dtype)
        deviations = None if self.deviations is None else self.deviations * self.units
        rows = dataclasses.replace(self, x=self.x * self.units, deviations=deviations)
        given = rows.given(gmmx)
        gmm = _in_units(gmmx, result.gmm, units)
        log_likelihood = gmm.score(given, weights=self.weights)
        changed = {"gmm": gmm, "log_likelihood": log_likelihood, "floor": result.floor * units**2}
        return dataclasses.replace(result, **changed), given


def _in_units(gmmx: Any, gmm: Any, units: Any) -> Any:
    """The mixture of x·units, exactly: a structure that units do not keep becomes diag or full."""
    from gmmx._covariance.base import exact

    structure, factors = type(gmm.structure), gmm.factors() / units
    closed = structure.closed_under_scaling
    scaled = structure.from_factors(factors) if closed else exact(factors, gmm.n_components)
    changed = {"means": gmm.means * units, "structure": scaled}
    if gmm.n_labels > gmm.n_components:
        box = gmm.background
        changed["background"] = gmmx.UniformBackground(box.low * units, box.high * units)
    return dataclasses.replace(gmm, **changed)


def read_rows(source: str, how: tables.Format, asked: Asked) -> "Rows | large.LargeRows":
    """The rows of a file, or of several."""
    if large.in_blocks(source):
        return large.read(source, how.separator, asked)
    table = tables.read(source, how)
    named = words.split(asked.columns) or table.features(asked.others)
    names = [name for name in named if name not in (words.split(asked.exclude) or [])]
    rows, table = of_table(table, names, asked)
    if asked.columns is None:
        _say_row_numbers(table, names, rows.x)
    return rows


def of_table(table: tables.Table, names: list[str], asked: Asked) -> tuple[Rows, tables.Table]:
    """The rows, and the table, of what can be used; others are dropped or refused."""
    if asked.noise and len(asked.noise) != len(names):
        raise ValueError(
            f"--noise-columns names {len(asked.noise)} columns, and there are {len(names)} "
            "features: expected one for each, in the same order."
        )
    if asked.missing and asked.drop_missing:
        raise ValueError("choose one of --missing and --drop-missing.")
    if asked.missing and asked.weights is not None:
        table.check_complete([asked.weights], table.numbers([asked.weights]))
    more = [*([] if asked.weights is None else [asked.weights]), *asked.noise]
    x = table.numbers(names)
    x = np.column_stack([x, table.numbers(more)]) if more else x
    if not (asked.drop_missing or asked.missing):
        table.check_complete([*names, *more], x)
    usable = x if asked.drop_missing else x[:, :0]
    kept: np.ndarray = np.asarray(~np.isnan(usable).any(axis=1))
    if not kept.all():
        words.say(f"dropped {(~kept).sum()} of {len(kept)} rows, which have missing values.")
        x, table = x[kept], table.where(kept)
    if not len(x) or np.isnan(x[:, : len(names)]).all():
        raise ValueError(f"{table.source}: no row is complete.")
    d = len(names)
    loss = precision.changed(names, x[:, :d], table.lost(names, x[:, :d]))
    if loss is not None:
        words.say(f"float64 changes {loss}. Subtract an offset from the column first.")
    at = d + (asked.weights is not None)
    deviations = _deviations(table, asked.noise, x[:, at:]) if asked.noise else None
    return Rows(
        names,
        x[:, :d] if deviations is None else np.where(np.isnan(deviations), np.nan, x[:, :d]),
        None if asked.weights is None else x[:, d],
        None if deviations is None else np.nan_to_num(deviations, nan=0.0),
        _labels(table, asked.label_column),
    ), table


def _deviations(table: tables.Table, names: list[str], values: np.ndarray) -> np.ndarray:
    bad = values < 0
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{table.source}: column {names[column]!r} holds the negative deviation "
            f"{values[row, column]:g} in row {row + 1}."
        )
    return values


def _labels(table: tables.Table, name: str | None) -> np.ndarray | None:
    """The component of each row, −1 where the cell is empty."""
    if name is None:
        return None
    values = table.numbers([name])[:, 0]
    known = ~np.isnan(values)
    bad = known & ((values < 0) | (values != np.round(values)))
    if bad.any():
        raise ValueError(
            f"{table.source}: column {name!r} holds {values[bad][0]:g} in row "
            f"{np.flatnonzero(bad)[0] + 1}; expected a component, 0, 1, 2, …, or an empty cell."
        )
    return np.where(known, np.nan_to_num(values), -1).astype(int)


def _say_row_numbers(table: tables.Table, names: list[str], x: np.ndarray) -> None:
    """Point out columns that only count the rows."""
    for j, name in enumerate(names):
        if table.named and len(x) > 2 and np.array_equal(x[:, j], x[0, j] + np.arange(len(x))):
            fix = words.option("--exclude", [name])
            words.say(f"column {name!r} only counts the rows. To leave it out: {fix}")
