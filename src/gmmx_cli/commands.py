"""The sub-commands of `gmmx`, one function for each.

JAX, the library and the readers of files are imported when a command runs, not for its help.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import reports, words
from .interrupts import ctrl_c

if TYPE_CHECKING:
    from gmmx._abstract_mixture import AbstractMixture

    from .large import LargeRows
    from .rows import Asked, Rows
    from .tables import Format, Table


app = typer.Typer(
    name="gmmx",
    help="Fit Gaussian mixtures to data, select among them, and use them.",
    epilog="DATA is a .csv, .tsv, .txt, .parquet, .npy or .npz file, or - for CSV from the "
    "standard input. A file that is large beside the memory, and a pattern of several files in "
    "quotes, such as 'part-*.npy', is read in blocks, once a step. Results go to the standard "
    "output, progress and messages to the standard error. Compiled programs are kept in a cache "
    "folder, so that later commands start faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DATA = "The data: .csv, .tsv, .txt, .parquet, .npy or .npz; - for CSV from the standard input."
Data = Annotated[str, typer.Argument(metavar="DATA", help=_DATA, show_default=False)]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model file written by fit.", show_default=False)
]
Columns = Annotated[
    str | None,
    typer.Option(metavar="A,B,…", help="Columns to use, by name; for .npy by number, from 0."),
]
Exclude = Annotated[str | None, typer.Option(metavar="A,B,…", help="Columns to leave out.")]
DropMissing = Annotated[
    bool, typer.Option("--drop-missing", help="Drop rows with empty cells or NaN.")
]
Missing = Annotated[
    bool,
    typer.Option("--missing", help="Use rows with empty cells or NaN for what they do hold."),
]
Noise = Annotated[
    str | None,
    typer.Option("--noise-columns", metavar="A,B,…",
                 help="Columns with the deviation of the noise of each feature, in their order."),
]  # fmt: skip
Labels = Annotated[
    str | None,
    typer.Option("--label-column", metavar="COLUMN",
                 help="Column with the component of each row, from 0; empty where not known."),
]  # fmt: skip
Background = Annotated[
    bool,
    typer.Option("--background", help="Fit a uniform background too, over the range of the data: "
                 "for clutter and outliers. predict counts it as one more component."),
]  # fmt: skip
Scale = Annotated[
    bool,
    typer.Option("--scale", help="Fit with each feature scaled to unit variance. The model is in "
                 "the units of the data; spherical and EII become diag; EVE, VVE, EEV and VEV "
                 "become full."),
]  # fmt: skip
Separator = Annotated[
    str | None,
    typer.Option(metavar="CHARACTER", help="What separates the fields of a text file: a character, "
                 "tab or space. (found out by default)"),
]  # fmt: skip
Decimal = Annotated[
    Literal[".", ","] | None,
    typer.Option(help="Decimal sign of a text file. (found out by default)"),
]
Array = Annotated[str | None, typer.Option(metavar="NAME", help="Which array of an .npz file.")]
Weights = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column that says how often each row counts.")
]
Size = Annotated[
    int, typer.Option("--components", "-k", min=1, help="Number of components.", show_default=False)
]
Sizes = Annotated[
    str,
    typer.Option("--components", "-k", metavar="RANGE",
                 help="Numbers of components, for example 1-10 or 2,4,8."),
]  # fmt: skip
Rank = Annotated[
    int | None,
    typer.Option(metavar="R", help="Number of latent factors, for low_rank, low_rank_spherical, "
                 "tied_loadings and tied_loadings_spherical."),
]  # fmt: skip
Ranks = Annotated[
    str | None,
    typer.Option("--rank", metavar="RANGE",
                 help="Numbers of latent factors to try, for low_rank and its relatives, for "
                 "example 2-5 or 2,5,10."),
]  # fmt: skip
Trainer = Annotated[
    Literal["em", "gradient"],
    typer.Option(help="Expectation-maximisation, or gradient descent (Adam)."),
]
Tol = Annotated[
    float | None,
    typer.Option(help="Change of the mean log-likelihood at which a fit has converged. "
                 "(em: 0.001, gradient: 0.0001)"),
]  # fmt: skip
MaxIter = Annotated[
    int | None, typer.Option(help="Maximum number of steps. (em: 100, gradient: 2000)")
]
RegCovar = Annotated[
    float | None,
    typer.Option(help="Number added to the variances, as a part of each feature's variance in the "
                 "data. (1e-8)"),
]  # fmt: skip
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.")]
Starts = Annotated[
    int, typer.Option("--n-init", min=1, help="Number of starts; the best fit is kept.")
]
Dtype = Annotated[
    Literal["float32", "float64"] | None,
    typer.Option(help="Precision of the fit. (float32, or float64 where the data need it)"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
State = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Save the state of the fit; the same command resumes it."),
]
Picture = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Plot the result to a .png, .pdf, .svg or .jpg file."),
]
ModelOut = Annotated[
    str | None,
    typer.Option("--out", "-o", metavar="FILE", help="Write the model to a .safetensors file."),
]
RowsOut = Annotated[
    str | None,
    typer.Option("--out", "-o", metavar="FILE",
                 help="Write to a .csv, .tsv, .parquet or .npy file in place of printing CSV."),
]  # fmt: skip


def _show_version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        sys.stdout.write(f"gmmx {version('gmmx')}\n")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Do not use or fill the cache of compiled programs.")
    ] = False,
) -> None:
    """The options that come before a command."""
    if no_cache:
        os.environ["GMMX_CACHE"] = "0"
    # Some versions of JAX log false alarms when they load a program from the cache.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@app.command()
def fit(
    data: Data,
    components: Size,
    covariance: Annotated[
        str,
        typer.Option(
            help="Covariance structure: full, tied, diag, spherical, tied_diag, or one of "
            "mclust's fourteen: EII, VII, EEI, VEI, EVI, VVI, EEE, VEE, EVE, VVE, EEV, "
            "VEV, EVV, VVV; or, with --rank, low_rank and its relatives."
        ),
    ] = "full",
    rank: Rank = None,
    trainer: Trainer = "em",
    columns: Columns = None,
    exclude: Exclude = None,
    weights: Weights = None,
    drop_missing: DropMissing = False,
    missing: Missing = False,
    noise_columns: Noise = None,
    label_column: Labels = None,
    background: Background = False,
    scale: Scale = False,
    array: Array = None,
    separator: Separator = None,
    decimal: Decimal = None,
    tol: Tol = None,
    max_iter: MaxIter = None,
    reg_covar: RegCovar = None,
    n_init: Starts = 1,
    seed: Seed = 0,
    dtype: Dtype = None,
    out: ModelOut = None,
    checkpoint: State = None,
    plot: Picture = None,
    json: Json = False,
) -> None:
    """Fit a mixture to data.

    Example: gmmx fit measurements.csv -k 3 --columns height,width --out model.safetensors
    """
    from .rows import Asked, read_rows
    from .tables import check_output, check_place

    check_output(out, ".safetensors")
    check_output(plot, reports.PICTURES, "--plot")
    check_place(checkpoint)
    how = _format(array, separator, decimal)
    asked = Asked(columns, exclude, weights, drop_missing, missing, noise_columns, label_column)
    rows = read_rows(data, how, asked)
    if scale:
        rows = rows.scaled()
    gmmx, jax = _library(_precision(dtype, rows))
    x, counts = rows.given(gmmx), rows.weights
    pictures = reports.plotting() if plot else None
    ctrl_c.message = "interrupted before the first step; no model was written."
    fit_key, start_key = jax.random.split(jax.random.key(seed))
    fitter: Any = _fitter(gmmx, trainer, tol, max_iter, reg_covar)
    start = gmmx.initialize(
        x, components, covariance, rank=rank, method="em", key=start_key, weights=counts,
        reg_covar=fitter.reg_covar, background=background,
    )  # fmt: skip
    if n_init > 1:
        fitter = gmmx.Restarts(fitter, n_init)
    words.say(rows.described())
    result = fitter.fit(
        x, start, weights=counts, key=fit_key, progress=_has_progress(), callback=ctrl_c.step,
        checkpoint=None if checkpoint is None else gmmx.Checkpoint(checkpoint),
    )  # fmt: skip
    result, x = rows.back(gmmx, result)
    _save(out, result.gmm, rows.names)
    # There is nothing left to keep.
    ctrl_c.steps, ctrl_c.message = False, "interrupted."
    if plot and pictures is not None:
        reports.draw_fit(pictures, result.gmm, _complete(result.gmm, x), rows.names, plot)
        words.say(f"wrote the plot to {plot}")
    report = reports.of_fit(gmmx, result, x, counts, rows.names, trainer)
    reports.show(report, json, reports.fit_text)
    if ctrl_c.pressed:
        raise typer.Exit(ctrl_c.status)


@app.command()
def predict(
    model: Model,
    data: Data,
    proba: Annotated[
        bool, typer.Option("--proba", help="Give the probability of each component.")
    ] = False,
    append: Annotated[
        bool, typer.Option("--append", help="Give the columns of the data too.")
    ] = False,
    columns: Columns = None,
    drop_missing: DropMissing = False,
    missing: Missing = False,
    noise_columns: Noise = None,
    array: Array = None,
    separator: Separator = None,
    decimal: Decimal = None,
    out: RowsOut = None,
    json: Json = False,
) -> None:
    """Give the most probable component of each row.

    Example: gmmx predict model.safetensors measurements.csv --out labels.csv
    """
    from .rows import Asked

    _check_rows(out, json)
    gmm, x, table = _model_and_data(
        model, data, _format(array, separator, decimal),
        Asked(columns, drop_missing=drop_missing, missing=missing, noise_columns=noise_columns),
    )  # fmt: skip
    if not proba and gmm.n_labels > gmm.n_components:
        words.say(f"component {gmm.n_components} is the background.")
    if table is None:
        if append:
            raise ValueError("--append is for data that fit into memory; these are read in blocks.")
        _stream(gmm, x, lambda x: _predicted(gmm, x, proba), out, json)
        return
    rows = _predicted(gmm, x, proba)
    _give_rows((_without(table, rows) if append else {}) | rows, out, json)


def _predicted(gmm: Any, x: Any, proba: bool) -> dict[str, Any]:
    """The columns of a prediction."""
    if not proba:
        return {"component": gmm.predict(x)}
    values = gmm.predict_proba(x)
    names = [f"component_{k}" for k in range(gmm.n_components)]
    names += ["background"] * (gmm.n_labels - gmm.n_components)
    return {name: values[:, k] for k, name in enumerate(names)}


@app.command()
def score(
    model: Model,
    data: Data,
    per_row: Annotated[
        bool, typer.Option("--per-row", help="Give the log-density of each row.")
    ] = False,
    columns: Columns = None,
    drop_missing: DropMissing = False,
    missing: Missing = False,
    noise_columns: Noise = None,
    array: Array = None,
    separator: Separator = None,
    decimal: Decimal = None,
    out: RowsOut = None,
    json: Json = False,
) -> None:
    """Score a model on data: log-likelihood, AIC, BIC, ICL.

    Example: gmmx score model.safetensors new.csv
    """
    from .rows import Asked

    _check_rows(out, json)
    if out is not None and not per_row:
        raise typer.BadParameter("it can only be used with --per-row.", param_hint="--out")
    gmm, x, table = _model_and_data(
        model, data, _format(array, separator, decimal),
        Asked(columns, drop_missing=drop_missing, missing=missing, noise_columns=noise_columns),
    )  # fmt: skip
    if per_row and table is None:
        _stream(gmm, x, lambda x: {"log_density": gmm.log_prob(x)}, out, json)
        return
    if per_row:
        _give_rows({"log_density": gmm.log_prob(x)}, out, json)
        return
    n, found = reports.criteria(gmm, x)
    report = {"n_samples": n, "log_likelihood": found.pop("log_likelihood")}
    reports.show(report | found, json, reports.score_text)


@app.command()
def sample(
    model: Model,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Number of rows.")] = 100,
    seed: Seed = 0,
    labels: Annotated[
        bool, typer.Option("--labels", help="Add the component of each row, as a column.")
    ] = False,
    out: RowsOut = None,
    json: Json = False,
) -> None:
    """Draw rows from a model.

    Example: gmmx sample model.safetensors -n 1000 --seed 7 --out new.parquet
    """
    _check_rows(out, json)
    gmm, header = _model(model)
    import jax

    drawn, components = gmm.sample_with_labels(rows, key=jax.random.key(seed))
    columns = {name: drawn[:, i] for i, name in enumerate(_names(gmm, header))}
    _give_rows(columns | ({"component": components} if labels else {}), out, json)


@app.command()
def select(
    data: Data,
    components: Sizes = "1-9",
    covariance: Annotated[
        str, typer.Option(metavar="A,B,…", help="Covariance structures to try, also mclust's.")
    ] = "full,tied,diag,spherical",
    rank: Ranks = None,
    criterion: Annotated[
        Literal["bic", "icl", "aic", "held_out"],
        typer.Option(help="Criterion to select by; held_out is the likelihood of held-out rows."),
    ] = "bic",
    trainer: Trainer = "em",
    columns: Columns = None,
    exclude: Exclude = None,
    weights: Weights = None,
    drop_missing: DropMissing = False,
    missing: Missing = False,
    noise_columns: Noise = None,
    background: Background = False,
    array: Array = None,
    separator: Separator = None,
    decimal: Decimal = None,
    tol: Tol = None,
    max_iter: MaxIter = None,
    reg_covar: RegCovar = None,
    n_init: Starts = 1,
    seed: Seed = 0,
    dtype: Dtype = None,
    out: ModelOut = None,
    plot: Picture = None,
    json: Json = False,
) -> None:
    """Select the number of components and the covariance structure.

    Example: gmmx select measurements.csv -k 1-10 --criterion bic --out best.safetensors
    """
    from .rows import Asked, read_rows
    from .tables import check_output

    check_output(out, ".safetensors")
    check_output(plot, reports.PICTURES, "--plot")
    sizes = _range(components)
    asked = Asked(columns, exclude, weights, drop_missing, missing, noise_columns)
    rows = read_rows(data, _format(array, separator, decimal), asked)
    gmmx, jax = _library(_precision(dtype, rows))
    pictures = reports.plotting() if plot else None
    selection = gmmx.select(
        rows.given(gmmx), sizes, words.split(covariance),
        rank=None if rank is None else _range(rank, "--rank"), criterion=criterion,
        weights=rows.weights, background=background,
        fitter=_fitter(gmmx, trainer, tol, max_iter, reg_covar), n_init=n_init,
        key=jax.random.key(seed), callback=lambda row: words.say(
            f"{row.covariance_type}, {row.n_components}: {criterion} {getattr(row, criterion):.6g}"
        ),
    )  # fmt: skip
    if all(candidate.failed for candidate in selection.candidates):
        words.say("every fit failed. Raise --reg-covar, or take fewer components.")
        raise typer.Exit(1)
    _save(out, selection.best.gmm, rows.names)
    if plot and pictures is not None:
        reports.save_figure(pictures.selection(selection).figure, plot)
        words.say(f"wrote the plot to {plot}")
    reports.show(reports.of_selection(selection), json, lambda _: str(selection))


@app.command()
def info(model: Model, json: Json = False) -> None:
    """Show what a model file holds.

    Example: gmmx info model.safetensors
    """
    gmm, header = _model(model)
    names = _names(gmm, header)
    report = header | reports.of_model(gmm, names)
    reports.show(report, json, reports.info_text)


# What the commands share


def _save(out: str | None, gmm: "AbstractMixture", names: list[str]) -> None:
    """Write a model, if asked to."""
    import gmmx

    if out is not None:
        gmmx.save(out, gmm, feature_names=names)
        words.say(f"wrote the model to {out}")


def _check_rows(out: str | None, json: bool) -> None:
    """Check, before any work, that rows can be written to `out`."""
    from .tables import check_output

    check_output(out)
    if out is not None and json:
        raise typer.BadParameter("choose one of --json and --out.", param_hint="--json")


def _stream(
    gmm: Any, source: Any, columns: Callable[[Any], dict[str, Any]], out: str | None, json: bool
) -> None:
    """Write the columns of each block of rows as it is read."""
    from gmmx._sources.base import checked

    from . import large

    large.check_output(out, json)
    blocks = checked(source, max(1, 2**20 // gmm.n_features), "float64")
    large.write((columns(block.x) for block in blocks), out)


def _without(table: "Table", new: dict[str, Any]) -> dict[str, Any]:
    """The columns of a table, which may not have the names of the new ones."""
    taken = [name for name in new if name in table.columns]
    if taken:
        raise ValueError(
            f"{table.source} already has a column {words.listed(taken)}. Rename it, or leave out "
            "--append."
        )
    return table.frame.to_dict()


def _give_rows(columns: dict[str, Any], out: str | None, json: bool) -> None:
    """Write columns to a file, or print them as CSV or JSON."""
    import numpy as np
    import polars as pl

    from .tables import typed, write

    rows = pl.DataFrame(
        {name: c if isinstance(c, pl.Series) else np.asarray(c) for name, c in columns.items()}
    )
    if json:
        reports.show(typed(rows).to_dict(as_series=False), True, str)
    else:
        write(rows, out)


def _has_progress() -> bool:
    """Whether the standard error is a terminal, and tqdm is installed."""
    import importlib.util

    return sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None


def _library(dtype: str) -> tuple[Any, Any]:
    """gmmx and jax, set to compute in this dtype and to keep compiled programs."""
    import jax

    jax.config.update("jax_enable_x64", dtype == "float64")
    import gmmx

    gmmx.enable_compilation_cache()
    return gmmx, jax


def _fitter(
    gmmx: Any, trainer: str, tol: float | None, max_iter: int | None, reg_covar: float | None
) -> Any:
    """The trainer, with its own defaults for options that were not given."""
    given = {"tol": tol, "max_iter": max_iter, "reg_covar": reg_covar}
    settings = {name: value for name, value in given.items() if value is not None}
    return {"em": gmmx.EMFitter, "gradient": gmmx.GradientFitter}[trainer](**settings)


def _range(text: str, option: str = "--components") -> list[int]:
    """Numbers from text: 1-10, or 2,4,8, or both, as 1-4,8."""
    sizes: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            sizes += range(int(first), int(last or first) + 1)
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(
            f"{text!r}; expected for example 1-10 or 2,4,8.", param_hint=option
        )
    return sizes


def _format(array: str | None, separator: str | None, decimal: str | None) -> "Format":
    """How a file is read."""
    from .tables import Format

    separator = {"tab": "\t", "\\t": "\t", "space": " "}.get(separator or "", separator)
    if separator is not None and (len(separator) != 1 or not separator.isascii()):
        raise typer.BadParameter(
            f"{separator!r}; expected one character, tab or space.", param_hint="--separator"
        )
    return Format(array, separator, decimal)


def _precision(asked: str | None, rows: "Rows | LargeRows") -> str:
    """The dtype of a fit to these columns; says where numbers are rounded."""
    from . import precision

    loss = precision.changed(rows.names, rows.x, precision.by_float32(rows.x))
    if loss is not None and asked == "float32":
        words.say(f"float32 changes {loss}. Use --dtype float64.")
    elif loss is not None and asked is None:
        words.say(f"the fit is in float64, since float32 would change {loss}.")
    return asked or ("float32" if loss is None else "float64")


def _model(path: str) -> tuple[Any, dict[str, Any]]:
    """The model in its stored dtype, and the header."""
    # So that a model in float64 is not rounded.
    _library("float64")
    from gmmx import _io

    return _io.read(path)


def _names(gmm: "AbstractMixture", header: dict[str, Any]) -> list[str]:
    return header["feature_names"] or [str(i) for i in range(gmm.n_features)]


def _model_and_data(
    model: str, data: str, how: "Format", asked: "Asked"
) -> tuple["AbstractMixture", Any, "Table | None"]:
    """The model, the columns of the data to use with it, and all columns of these rows.

    The table is None for data that are read in blocks.
    """
    import gmmx

    from . import large, tables
    from .rows import of_table

    gmm, header = _model(model)
    if large.in_blocks(data):
        if asked.columns is None and header["feature_names"] is not None:
            asked = dataclasses.replace(asked, columns=words.joined(header["feature_names"]))
        return gmm, large.read(data, how.separator, asked).given(gmmx), None
    table = tables.read(data, how)
    names = words.split(asked.columns)
    if names is None:
        fitted = header["feature_names"]
        if fitted is not None and set(fitted) <= set(table.columns):
            names = fitted
        elif fitted is not None and table.named and fitted != [str(i) for i in range(len(fitted))]:
            raise ValueError(
                f"the model was fitted to the columns {words.listed(fitted)}, and {data} has the "
                f"columns {words.listed(table.columns)}. Name the ones to use, in the order of the "
                "model: --columns"
            )
        else:
            names = table.features(asked.others)
    if len(names) != gmm.n_features:
        raise ValueError(
            f"{data} has {len(names)} columns, and the model has {gmm.n_features} features. "
            "Name the columns to use: --columns"
        )
    rows, table = of_table(table, names, asked)
    return gmm, rows.given(gmmx), table


def _complete(gmm: Any, x: Any) -> Any:
    """Rows that can be drawn: what is missing by its mean, and some of those in blocks."""
    if hasattr(x, "blocks"):
        from gmmx._sources.survey import survey

        return survey(x, gmm.dtype, turned=False)[1][0]
    return getattr(gmm, "mixture", gmm).impute(x) if hasattr(x, "deviations") else x
