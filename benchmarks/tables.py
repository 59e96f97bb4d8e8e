"""Markdown of a report: the headline ratios, then a section per part."""

from .cases import ITERATIONS, MAIN
from .parts.quality import loss, near_best
from .timing import geometric_mean, in_units, ratio, summary

OURS = "gmmx"
OTHERS = ("gmmx in jit", "scikit-learn", "GMMX 0.7", "pomegranate")
COMPARED = ("scikit-learn", "GMMX 0.7", "pomegranate")

NOTE = (
    "All libraries get the same data and the same start, make the same number of iterations, and "
    "must reach the same result before they are timed. Times are medians with their range, which "
    "the figures shade. Ratios are computed round by round; their median and range are shown.\n\n"
    "Run `python benchmarks/run.py` to measure your own machine. `benchmarks/README.md` describes "
    "how each number is measured."
)


def table(header, rows, left=1):
    """A Markdown table. The first `left` columns are text, the others numbers."""
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, rule, *rows))


def median(seconds):
    return in_units(summary(seconds)["median"])


def spread(seconds):
    """A median with its range."""
    s = summary(seconds)
    return f"{in_units(s['median'])} ({in_units(s['min'])} to {in_units(s['max'])})"


def times(value):
    """A ratio: median with range."""
    return f"{value['median']:.3g}× ({value['min']:.3g} to {value['max']:.3g})"


def size(row):
    return f"n={row['n']:,}, d={row['d']}, K={row['k']}"


def against(row, peer, ours=OURS):
    """The ratio of a peer's time to ours, or None."""
    found = row["times"]
    return ratio(found[peer], found[ours]) if peer in found and ours in found else None


def headlines(parts):
    """One table of what readers look for first, from the parts that have been run."""
    writers = {
        "train": _train_headlines, "many": _many_headlines, "gradient": _gradient_headlines,
        "compile": _compile_headlines, "scripts": _scripts_headlines, "cold": _cold_headlines,
        "memory": _memory_headlines,
    }  # fmt: skip
    lines = [line for name in writers if name in parts for line in writers[name](parts[name])]
    header = ("", "case", "gmmx", "compared with", "ratio")
    return table(header, lines, left=2) if lines else ""


def _as_fast(theirs, ours):
    return f"{ratio(theirs, ours)['median']:.3g}× as fast"


def _train_headlines(part):
    rows = [r for r in part["rows"] if r["dtype"] == "float32" and r["grids"]]
    for peer in COMPARED:
        if ratios := [r["median"] for row in rows if (r := against(row, peer))]:
            case = f"{ITERATIONS} iterations in float32, geometric mean of {len(ratios)} sizes"
            yield "Training", case, "–", peer, f"{geometric_mean(ratios):.3g}× as fast"
    for row in rows:
        for peer in COMPARED if (row["n"], row["d"], row["k"]) == MAIN["train"] else ():
            if against(row, peer):
                ours, theirs = row["times"][OURS], row["times"][peer]
                yield "A large fit", size(row), median(ours), peer, _as_fast(theirs, ours)


def _many_headlines(part):
    (row,) = part["rows"]
    if against(row, "scikit-learn"):
        ours, theirs = row["times"][OURS], row["times"]["scikit-learn"]
        what = f"{row['count']:,} fits in one `vmap`"
        yield what, size(row), median(ours), "scikit-learn in a loop", _as_fast(theirs, ours)


def _compile_headlines(part):
    for row in part["rows"]:
        if (row["task"], row["n"], row["d"], row["k"]) == ("fit", 5_000, 16, 10):
            first, again = row["first"][OURS], row["again"][OURS]
            case = f"{size(row)}; CPU time, with compiling"
            more = f"{ratio(first, again)['median']:.3g}× the time"
            yield "The first fit", case, median(first), "the same fit again", more


def _scripts_headlines(part):
    walls = {row["name"]: row["wall"] for row in part["rows"]}
    for kind in ("no cache", "warm cache"):
        ours, theirs = walls[f"{OURS}, {kind}"], walls["scikit-learn"]
        case = f"iris, K=3; wall time, {kind} of compiled programs"
        what = "A script from start to labels"
        yield what, case, median(ours), "scikit-learn", _as_fast(theirs, ours)


def _cold_headlines(part):
    imports = [r for r in part["rows"] if r["what"].startswith("import")]
    ours = [sum(t) for t in zip(*(r["times"] for r in imports if r["peer"] == OURS), strict=True)]
    (theirs,) = (r["times"] for r in imports if r["peer"] != OURS)
    case = "with JAX, Equinox and Optax, in a new process"
    yield "Import", case, median(ours), "`sklearn.mixture`", _as_fast(theirs, ours)


def _gradient_headlines(part):
    row = part["rows"][0]
    forward, gradient = (row["times"].get(f"{OURS} {task}") for task in ("forward", "gradient"))
    if forward and gradient:
        more = f"{ratio(gradient, forward)['median']:.3g}× the time"
        what = "Value and gradient of the likelihood"
        yield what, size(row), median(gradient), "the value alone", more


def _memory_headlines(part):
    for row in part["rows"]:
        if row["where"] == "jax":
            extra, data = row["extra_mb"]["fit"], row["data_mb"]
            what, case = "Memory of a fit", f"{size(row)}; peak without the data"
            yield what, case, f"{extra:.0f} MB", f"the data, {data:.0f} MB", f"{extra / data:.3g}×"


def grid_summary(rows):
    """Geometric means of the ratios over a task's sizes, by dtype and peer."""
    lines = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        chosen = [row for row in rows if row["dtype"] == dtype and row["grids"]]
        for peer in COMPARED:
            ratios = [r["median"] for row in chosen if (r := against(row, peer))]
            if not ratios:
                continue
            by_grid = [
                geometric_mean(
                    [against(row, peer)["median"] for row in chosen
                     if grid in row["grids"] and against(row, peer)]
                )
                for grid in ("components", "features", "samples")
            ]  # fmt: skip
            values = (geometric_mean(ratios), *by_grid, min(ratios), max(ratios))
            lines.append([dtype, peer, *(f"{v:.3g}×" for v in values), len(ratios)])
    header = ("dtype", "against", "geometric mean", "components", "features", "samples")
    return table((*header, "min", "max", "sizes"), lines, left=2)


def grid_points(rows):
    """One line per size."""
    peers = [p for p in OTHERS if any(p in row["times"] for row in rows)]
    compared = [p for p in COMPARED if p in peers]
    structures = any(row["covariance_type"] != "full" for row in rows)
    header = ["n", "d", "K", "dtype", OURS, *peers, *(f"{p} / gmmx" for p in compared)]
    lines = []
    for row in rows:
        cells = [row["covariance_type"]] if structures else []
        cells += [f"{row['n']:,}", row["d"], row["k"], row["dtype"]]
        cells += [spread(row["times"][p]) if p in row["times"] else "–" for p in (OURS, *peers)]
        cells += [times(r) if (r := against(row, p)) else "–" for p in compared]
        cells.append(f"{row['of_roof']:.0%}" if "of_roof" in row else "–")
        lines.append(cells)
    first = ["structure"] if structures else []
    return table((*first, *header, "of the roof"), lines, left=len(first))


def left_out(rows):
    """The peers that were not timed, each reason once."""
    seen = {}
    for row in rows:
        for peer, reason in row["left_out"].items():
            seen.setdefault((peer, reason), []).append(row)
    lines = []
    for (peer, reason), found in seen.items():
        where = size(found[0]) if len(found) == 1 else f"{len(found)} sizes"
        lines.append(f"- {peer}, {where}: {reason}")
    return "Not timed:\n\n" + "\n".join(lines) if lines else ""


def _grid(title, part):
    rows = [r for r in part["rows"] if r["covariance_type"] == "full"]
    texts = [f"## {title}", grid_summary(rows), grid_points(rows)]
    if others := [r for r in part["rows"] if r["covariance_type"] != "full"]:
        first = others[0]
        same = [r for r in rows if all(r[key] == first[key] for key in ("n", "d", "k", "dtype"))]
        texts += [f"### Structures, {size(first)}", grid_points(same + others)]
    roofs = (f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in part["roof"].items())
    texts.append("The roof is the rate of a square matrix product: " + ", ".join(roofs) + ".")
    return [*texts, left_out(part["rows"])]


def _memory(part):
    lines = [
        (r["where"], f"{r['n']:,}", r["d"], r["k"], f"{r['data_mb']:.0f} MB",
         *(f"{r['extra_mb'][name]:.0f} MB" for name in ("fit", "predict", "score")))
        for r in part["rows"]
    ]  # fmt: skip
    header = ("data in", "n", "d", "K", "data", "fit", "then predict", "then score")
    note = (
        "Peak memory without the data and without what the process held before (imports, a small "
        f"fit). At most {part['target_mb']} MB are expected. The columns are cumulative."
    )
    if any(r["bound"] for r in part["rows"]):
        note += " The warm-up used as much, so these are upper bounds."
    return ["## Memory", note, table(header, lines)]


def _cold(part):
    lines = [(r["peer"], r["what"], spread(r["times"])) for r in part["rows"]]
    note = "n=1,000, d=4, K=3, float32, in new processes. Wall time."
    return ["## Small data in a new process", note, table(("", "", "time"), lines, left=2)]


def _compile(part):
    libraries = part["libraries"]
    ours, *others = libraries
    header = ["first call of", "n", "d", "K"]
    header += [f"{name}, {which}" for name in libraries for which in ("first", "again")]
    header += [f"{name} / {ours}, first" for name in others]
    lines = []
    for row in part["rows"]:
        cells = [f"`{row['task']}`", f"{row['n']:,}", row["d"], row["k"]]
        cells += [spread(row[which][name]) for name in libraries for which in ("first", "again")]
        cells += [times(ratio(row["first"][name], row["first"][ours])) for name in others]
        lines.append(cells)
    note = (
        "CPU time (user and system, all threads) of the first call in a new process, and of the "
        "same call again. The persistent cache is off. `select` tries 1 to K components with each "
        "structure; `gradient` is five steps of `GradientFitter`."
    )
    return ["## Compiling", note, table(header, lines)]


def _scripts(part):
    (theirs,) = (row["wall"] for row in part["rows"] if row["name"] == "scikit-learn")
    lines = [
        (row["name"], spread(row["wall"]), spread(row["cpu"]), times(ratio(row["wall"], theirs)))
        for row in part["rows"]
    ]
    note = (
        "A script imports the library, fits three components to the iris data and labels them. "
        "With a warm cache, JAX's persistent cache holds the programs of an earlier run."
    )
    header = ("", "wall time", "CPU time", "wall time / scikit-learn")
    return ["### From start to labels", note, table(header, lines)]


def _sizes(part):
    case, ours, lines = part["case"], part["rows"][0], []
    for row in part["rows"]:
        growth = "–" if row["growth_mb"] is None else f"{row['growth_mb']:.0f} MB"
        lines.append([
            row["name"], row["programs_first"], row["programs_later"], growth,
            in_units(row["new"]), in_units(row["known"]), f"{row['new'] / row['known']:.3g}×",
            f"{row['new'] / ours['new']:.3g}×",
        ])  # fmt: skip
    header = ["", "programs, first fit", "programs, others", "growth of memory",
              "new n", "known n", "new / known", f"new / {ours['name']}"]  # fmt: skip
    note = (
        f"{case['count']} fits with different n from {case['min']:,} to {case['max']:,}, "
        f"d={case['d']}, K={case['k']}, float32, then the same fits again. The first fit counts "
        "in the first column only. Times are mean CPU times of a fit."
    )
    if len(lines) == 1:
        header, lines = header[:-1], [lines[0][:-1]]
    return ["### Fits of many sizes", note, table(header, lines)]


def _many(part):
    (row,) = part["rows"]
    lines = [(name, spread(seconds)) for name, seconds in row["times"].items()]
    faster = against(row, "scikit-learn")
    note = f"{row['count']:,} fits with {size(row)}, {ITERATIONS} iterations each."
    if faster:
        note += (
            f" The ratio is {times(faster)}. {row['agreeing']:,} of the fits agree to 2e-3 nats "
            f"per sample; the median difference is {row['difference_median']:.0e}, the largest "
            f"{row['difference_max']:.0e}."
        )
    return ["## Many fits at once", note, table(("", "all fits"), lines), left_out(part["rows"])]


def _gradient(part):
    lines = []
    for row in part["rows"]:
        for peer in ("gmmx", "numpyro"):
            forward, gradient = (row["times"].get(f"{peer} {t}") for t in ("forward", "gradient"))
            lines.append((
                peer, f"{row['n']:,}", row["d"], row["k"],
                spread(forward) if forward else "–", spread(gradient) if gradient else "–",
                times(ratio(gradient, forward)) if forward and gradient else "–",
            ))  # fmt: skip
    header = ("", "n", "d", "K", "value", "value and gradient", "ratio")
    note = "The mean negative log-likelihood and its gradient with respect to all leaves, float32."
    texts = ["## Gradient", note, table(header, lines)]
    differences = [max(row["difference"].values()) for row in part["rows"] if row["difference"]]
    if differences:
        texts.append(f"Values and gradients agree with numpyro's to {max(differences):.0e}.")
    return [*texts, left_out(part["rows"])]


def _roof(part):
    lines = []
    for r in part["rows"]:
        if "shape" in r:
            m, k, n = r["shape"]
            what = (
                f"({k:,}×{m:,})ᵀ({k:,}×{n:,})" if r["transposed"] else f"({m:,}×{k:,})({k:,}×{n:,})"
            )
        else:
            what = f"gmmx, {r['task']}, {size(r)}"
        share = f"{r['of_roof']:.0%}" if "of_roof" in r else ""
        lines.append((what, r["dtype"], f"{r['rate']:.0f}", share))
    header = ("product", "dtype", "GFLOP/s", "of the best")
    return ["## Matrix products", table(header, lines, left=2)]


def _accuracy(part):
    peers = list(dict.fromkeys(name for row in part["rows"] for name in row["errors"]))
    header = ["width / distance"]
    header += [f"{name}, {which}" for name in peers for which in ("mean error", "max", "time")]
    lines = []
    for row in part["rows"]:
        cells = [f"{row['width']:g}"]
        for name in peers:
            if name in row["errors"]:
                error = row["errors"][name]
                cells += [f"{error['mean']:.0e}", f"{error['max']:.0e}", median(row["times"][name])]
            else:
                cells += ["–"] * 3
        lines.append(cells)
    note = (
        f"Errors of log p(x) in float32, in nats, for {size(part['rows'][0])}: means at distances "
        "of order one, components of the given width. The reference is float64."
    )
    return ["## Accuracy", note, table(header, lines), left_out(part["rows"])]


def _quality(part):
    rows = part["rows"]
    header = [
        "",
        "training: within 0.01",
        "mean loss",
        "held out: within 0.01",
        "mean loss",
        "CPU time",
    ]
    lines = []
    for name in rows[0]["held_out"]:
        cells = [name]
        for which in ("trained", "held_out"):
            cells += [f"{near_best(rows, which, name):.0%}", f"{loss(rows, which, name):.4f}"]
        lines.append([*cells, in_units(sum(row["seconds"][name] for row in rows))])
    names = {row["name"] for row in rows}
    note = (
        f"Fits of {len(names)} data sets, half of them real, with 100 to 2,100 training rows, "
        f"{len(rows)} cells in all: how often a fit is within 0.01 nats a sample of the best of "
        "all in the table, and how much worse it is on average. The number of components is "
        "given. All have full covariances, float64, and their own settings. The CPU time is that "
        "of all fits, without compiling."
    )
    return ["## Quality of fits", note, table(header, lines)]


_PARTS = {
    "train": lambda part: _grid(f"Training, {ITERATIONS} iterations", part),
    "predict": lambda part: _grid("Prediction", part),
    "memory": _memory, "cold": _cold, "compile": _compile, "scripts": _scripts, "sizes": _sizes,
    "many": _many, "gradient": _gradient, "roof": _roof, "accuracy": _accuracy,
    "quality": _quality,
}  # fmt: skip


def _setting(content):
    machine, lines = content["machine"], []
    memory = f", {machine['memory_gib']:.0f} GiB" if machine["memory_gib"] else ""
    lines.append(f"{machine['cpu']}, {machine['cores']} cores{memory}, {machine['system']}, "
                 f"Python {machine['python']}.")  # fmt: skip
    for name, about in content["peers"].items():
        if "absent" in about:
            lines.append(f"- {name}: {about['absent']}")
        else:
            versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
            blas = f"; BLAS: {', '.join(about['blas'])}" if "blas" in about else ""
            lines.append(f"- {name} on {about['device']}: {versions}{blas}")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def page(content, figures=()):
    """The whole page: headlines, machine and versions, figures, and the parts that have run."""
    parts = content["parts"]
    texts = ["# Benchmarks", headlines(parts), NOTE, _setting(content), *figures]
    for name, write in _PARTS.items():
        if name in parts:
            texts += write(parts[name])
    return "\n\n".join(text for text in texts if text) + "\n"
