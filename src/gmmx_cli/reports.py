"""Results as text, as JSON and as plots."""

import importlib
import json
import math
import sys
from collections.abc import Callable
from typing import Any

from tabulate import tabulate

from . import words

# Features in the table of components; --json has all of them.
_MOST = 6
# Features in a plot of pairs.
_MOST_PAIRED = 5
PICTURES = ".png, .pdf, .svg or .jpg"
"""Formats of plots"""


def show(report: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str]) -> None:
    """Print a report to the standard output."""
    content = json.dumps(_plain(report), allow_nan=False, indent=2) if as_json else text(report)
    sys.stdout.write(content + "\n")


def _plain(value: Any) -> Any:
    """The value in lists and numbers, with None for NaN and infinity: as JSON has it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def of_model(gmm: Any, names: list[str]) -> dict[str, Any]:
    """The parameters of a mixture."""
    import jax

    # One program in place of many small ones.
    weights, deviations, covariances = jax.jit(_parameters)(gmm)
    return {
        "covariance_type": gmm.covariance_type,
        **({} if gmm.structure.n_latent is None else {"rank": gmm.structure.n_latent}),
        "n_components": gmm.n_components,
        "n_features": gmm.n_features,
        "n_parameters": gmm.n_parameters,
        "feature_names": names,
        "weights": weights,
        "means": gmm.means,
        "deviations": deviations,
        **covariances,
        **_background(gmm),
    }


def _background(gmm: Any) -> dict[str, Any]:
    if gmm.n_labels == gmm.n_components:
        return {}
    box = gmm.background
    return {"background": {"weight": gmm.background_weight, "low": box.low, "high": box.high}}


def _parameters(gmm: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The weights, the standard deviations of all features, and the covariances by name."""
    import jax.numpy as jnp

    structure = gmm.structure
    if structure.n_latent is not None:
        # In the parts that they are made of: they may be too large to be dense.
        loadings, noise = structure.loadings, structure.noise_variances
        deviations = jnp.sqrt(jnp.sum(loadings**2, axis=2) + noise)
        return gmm.weights, deviations, {"loadings": loadings, "noise_variances": noise}
    covariances = gmm.covariances
    variances = covariances[None] if structure.shared else covariances
    if structure.isotropic:
        variances = variances[:, None]
    elif not structure.axis_aligned:
        variances = jnp.diagonal(variances, axis1=1, axis2=2)
    deviations = jnp.sqrt(jnp.broadcast_to(variances, gmm.means.shape))
    return gmm.weights, deviations, {"covariances": covariances}


def of_fit(
    gmmx: Any, result: Any, x: Any, counts: Any, names: list[str], trainer: str
) -> dict[str, Any]:
    """How a fit ended, and its mixture."""
    model = of_model(result.gmm, names)
    n, found = criteria(result.gmm, x) if counts is None else (float(counts.sum()), {})
    return {
        "trainer": trainer,
        "converged": bool(result.converged),
        "message": words.of_options(gmmx.Status[result.status]),
        "n_iter": int(result.n_iter),
        "log_likelihood": float(result.log_likelihood),
        # The criteria need the number of rows, which weights leave open.
        **{name: value for name, value in found.items() if name != "log_likelihood"},
        **model,
        "sizes": n * model["weights"],
    }


def criteria(gmm: Any, x: Any) -> tuple[float, dict[str, Any]]:
    """How many rows there are; and the mean log-likelihood, AIC, BIC and ICL of them."""
    from gmmx import _criteria

    if not hasattr(x, "blocks"):
        found = {name: float(getattr(gmm, name)(x)) for name in ("score", "aic", "bic", "icl")}
        return x.shape[0], {"log_likelihood": found.pop("score"), **found}
    # One pass over the rows for all of them.
    n, log_l, certainty = _criteria.totals(gmm, x)
    bic, icl, aic = _criteria.criteria(gmm, math.log(n), log_l, certainty)
    return n, {"log_likelihood": log_l / n, "aic": aic, "bic": bic, "icl": icl}


def of_selection(selection: Any) -> dict[str, Any]:
    """The table row by row, and its best row."""
    table = selection.to_dict()
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    best = rows[selection.candidates.index(selection.best)]
    return {"criterion": selection.criterion, "best": best, "candidates": rows}


# Text


def _pairs(values: dict[str, str]) -> str:
    return tabulate(values.items(), tablefmt="plain", disable_numparse=True)


def _components(report: dict[str, Any]) -> str:
    """A table of the weights, sizes, means and deviations."""
    from gmmx._summary import mean_and_deviation

    names, width = report["feature_names"], min(report["n_features"], _MOST)
    columns: dict[str, Any] = {"component": range(report["n_components"])}
    columns["weight"] = [f"{weight:.4f}" for weight in report["weights"].tolist()]
    if "sizes" in report:
        columns["rows"] = [f"{size:.1f}" for size in report["sizes"].tolist()]
    for j, name in enumerate(names[:width]):
        pairs = zip(
            report["means"][:, j].tolist(), report["deviations"][:, j].tolist(), strict=True
        )
        columns[name] = [mean_and_deviation(*pair) for pair in pairs]
    # The cells are text already.
    table = tabulate(columns, headers="keys", stralign="right", disable_numparse=True)
    notes = ["mean ± deviation of each feature"]
    if "background" in report:
        notes.append(f"a uniform background has the weight {report['background']['weight']:.4f}")
    if len(names) > width:
        notes.append(f"… and {len(names) - width} more features; --json shows all")
    return "\n".join([table, *notes])


def _size(report: dict[str, Any]) -> str:
    k, d = report["n_components"], report["n_features"]
    rank = f" of rank {report['rank']}" if "rank" in report else ""
    return (
        f"{k} component{'s' * (k > 1)}, {report['covariance_type']}{rank}, of {d} "
        f"feature{'s' * (d > 1)}; {report['n_parameters']} parameters"
    )


def fit_text(report: dict[str, Any]) -> str:
    """A fit as text."""
    ended = "converged" if report["converged"] else "not converged"
    pairs = {
        "mixture": _size(report),
        "fit": f"{ended} after {report['n_iter']} steps ({report['trainer']})",
    }
    return f"{_pairs(pairs | _criteria(report))}\n\n{_components(report)}"


def score_text(report: dict[str, Any]) -> str:
    """A score as text."""
    return _pairs({"rows": str(report["n_samples"])} | _criteria(report))


def _criteria(report: dict[str, Any]) -> dict[str, str]:
    known = {name: f"{report[name]:.2f}" for name in ("aic", "bic", "icl") if name in report}
    return {"log-likelihood": f"{report['log_likelihood']:.6f} nats a row"} | {
        name.upper(): value for name, value in known.items()
    }


def info_text(report: dict[str, Any]) -> str:
    """A model file as text."""
    pairs = {
        "mixture": _size(report),
        "dtype": report["dtype"],
        "written by": f"gmmx {report['gmmx_version']}, format {report['format_version']}",
    }
    return f"{_pairs(pairs)}\n\n{_components(report)}"


# Plots


def plotting() -> Any:
    """`gmmx.plot`, or an error if it cannot be used."""
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError('--plot needs matplotlib: pip install "gmmx[plot]"') from error
    # This backend needs no display.
    matplotlib.use("Agg")
    return importlib.import_module("gmmx.plot")


def draw_fit(plot: Any, gmm: Any, x: Any, names: list[str], path: str) -> None:
    """Plot the components over the data; of more than two features the first five in pairs."""
    if gmm.n_features == 1:
        figure = plot.histogram(gmm, x, feature_names=names).figure
    elif gmm.n_features == 2:
        figure = plot.ellipses(gmm, x, feature_names=names).figure
    else:
        dims = range(min(gmm.n_features, _MOST_PAIRED))
        figure = plot.pairs(gmm, x, dims=dims, feature_names=names).flat[0].figure
    save_figure(figure, path)


def save_figure(figure: Any, path: str) -> None:
    """Write a plot, in the format that the name ends in."""
    figure.savefig(path, dpi=150, bbox_inches="tight")
