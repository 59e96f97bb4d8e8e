"""Markdown tables of a report."""

from .timing import geometric_mean, in_units, ratio, summary

OURS = "gmmx"
OTHERS = ("gmmx in jit", "scikit-learn", "GMMX 0.7", "pomegranate")
COMPARED = ("scikit-learn", "GMMX 0.7", "pomegranate")


def table(header, rows, left=1):
    """A Markdown table; the first `left` columns are text, the others numbers."""
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, rule, *rows))


def spread(seconds):
    """A median with its range."""
    s = summary(seconds)
    return f"{in_units(s['median'])} ({in_units(s['least'])} to {in_units(s['most'])})"


def times(value):
    """A ratio: median with range."""
    return f"{value['median']:.3g}× ({value['least']:.3g} to {value['most']:.3g})"


def against(row, peer, ours=OURS):
    """The ratio of a peer's time to ours, or None."""
    found = row["times"]
    return ratio(found[peer], found[ours]) if peer in found and ours in found else None


def grid_summary(rows):
    """Geometric means of the ratios over a task's points, by dtype and peer."""
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
    return table((*header, "least", "most", "points"), lines, left=2)


def grid_points(rows):
    """One line a point."""
    peers = [p for p in OTHERS if any(p in row["times"] for row in rows)]
    compared = [p for p in COMPARED if p in peers]
    header = ["n", "d", "K", "dtype", OURS, *peers, *(f"{p} / gmmx" for p in compared)]
    lines = []
    for row in rows:
        cells = [f"{row['n']:,}", row["d"], row["k"], row["dtype"]]
        cells += [spread(row["times"][p]) if p in row["times"] else "–" for p in (OURS, *peers)]
        cells += [times(r) if (r := against(row, p)) else "–" for p in compared]
        cells.append(f"{row['of_roof']:.0%}" if "of_roof" in row else "–")
        cells.append("–" if row["packed"] is None else f"{row['packed']:.0%}")
        if any(r["covariance_type"] != "full" for r in rows):
            cells.insert(0, row["covariance_type"])
        lines.append(cells)
    if any(r["covariance_type"] != "full" for r in rows):
        header.insert(0, "structure")
    return table((*header, "of the roof", "packed"), lines, left=0)


def left_out(rows):
    """Who did not take part, and why: each reason once."""
    seen = {}
    for row in rows:
        for peer, reason in row["left_out"].items():
            seen.setdefault((peer, reason), []).append((row["n"], row["d"], row["k"]))
    lines = []
    for (peer, reason), sizes in seen.items():
        n, d, k = sizes[0]
        where = f"n={n:,}, d={d}, K={k}" if len(sizes) == 1 else f"{len(sizes)} points"
        lines.append(f"- {peer}, at {where}: {reason}")
    return "\n".join(lines)


def _grid(title, part):
    rows = [r for r in part["rows"] if r["covariance_type"] == "full"]
    texts = [f"## {title}", grid_summary(rows), grid_points(rows)]
    if others := [r for r in part["rows"] if r["covariance_type"] != "full"]:
        n, d, k, dtype = (others[0][key] for key in ("n", "d", "k", "dtype"))
        same = [r for r in rows if (r["n"], r["d"], r["k"], r["dtype"]) == (n, d, k, dtype)]
        texts += [f"### The structures at n={n:,}, d={d}, K={k}", grid_points(same + others)]
    roofs = (f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in part["roof"].items())
    texts.append("The matrix product reached " + ", ".join(roofs) + " in the same run.")
    if missing := left_out(part["rows"]):
        texts.append("Not timed:\n\n" + missing)
    return texts


def _memory(part):
    lines = [
        (r["where"], f"{r['n']:,}", r["d"], r["k"], f"{r['data_mb']:.0f} MB",
         *(f"{r['extra_mb'][name]:.0f} MB" for name in ("fit", "predict", "score")))
        for r in part["rows"]
    ]  # fmt: skip
    header = ("data in", "n", "d", "K", "data", "fit", "then predict", "then score")
    note = (
        "Peak memory beyond the data and what the process held before (imports, a small fit); "
        f"the aim is {part['target_mb']} MB. The columns are cumulative: a peak is never forgotten."
    )
    if any(r["bound"] for r in part["rows"]):
        note += " The warm-up had used as much, so the figures are upper bounds."
    return ["## Memory", note, table(header, lines)]


def _cold(part):
    lines = [(r["peer"], r["what"], spread(r["times"])) for r in part["rows"]]
    return ["## Small and cold", "n=1,000, d=4, K=3, float32, each in fresh processes.",
            table(("", "", "time"), lines, left=2)]  # fmt: skip


def _many(part):
    (row,) = part["rows"]
    lines = [(name, spread(seconds)) for name, seconds in row["times"].items()]
    faster = against(row, "scikit-learn")
    note = f"{row['count']:,} fits of n={row['n']}, d={row['d']}, K={row['k']}, 20 iterations each."
    if faster:
        note += (
            f" The ratio is {times(faster)}. {row['agreeing']:,} of the fits agree to 2e-3 nats a "
            f"sample: {row['apart_median']:.0e} in the median, {row['apart_most']:.0e} at most."
        )
    return ["## Many at once", note, table(("", "all fits"), lines)]


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
    header = ("", "n", "d", "K", "forward", "value and gradient", "gradient / forward")
    texts = ["## Gradient", "Of the mean negative log-likelihood, by all leaves, in float32.",
             table(header, lines)]  # fmt: skip
    apart = [max(row["apart"].values()) for row in part["rows"] if row["apart"]]
    if apart:
        texts.append(f"Values and gradients agree with numpyro's to {max(apart):.0e}.")
    if missing := left_out(part["rows"]):
        texts.append("Not timed:\n\n" + missing)
    return texts


def _roof(part):
    lines = []
    for r in part["rows"]:
        if "shape" in r:
            m, k, n = r["shape"]
            what = (
                f"({k:,}×{m:,})ᵀ({k:,}×{n:,})" if r["transposed"] else f"({m:,}×{k:,})({k:,}×{n:,})"
            )
        else:
            what = f"gmmx, {r['task']} n={r['n']:,}, d={r['d']}, K={r['k']}"
        share = f"{r['of_roof']:.0%}" if "of_roof" in r else ""
        lines.append((what, r["dtype"], f"{r['rate']:.0f}", share))
    return ["## Roof", table(("product", "dtype", "GFLOP/s", "of the best"), lines, left=2)]


def _accuracy(part):
    lines = []
    for r in part["rows"]:
        errors = (
            f"{r[w][s]:.0e}" for w in ("decided", "packed", "whitened") for s in ("mean", "most")
        )
        lines.append((f"{r['width']:g}", f"{r['share']:.0%}", *errors))
    header = ("width / spread", "taken packed", "error, mean", "most")
    header += ("all packed, mean", "most", "all whitened, mean", "most")
    gate, texts = part["gate"], ["## Accuracy gate", table(header, lines)]
    if len(gate["times"]) == 2:
        cost = ratio(gate["times"]["with"], gate["times"]["without"])
        texts.append(
            f"An EM step at n={gate['n']:,}, d={gate['d']}, K={gate['k']} takes {times(cost)} the "
            f"time of one without the gate ({gate['packed']['with']:.0%} of the rows packed)."
        )
    return texts


_PARTS = {
    "train": lambda part: _grid("Training, 20 iterations", part),
    "predict": lambda part: _grid("Prediction", part),
    "memory": _memory, "cold": _cold, "many": _many,
    "gradient": _gradient, "roof": _roof, "accuracy": _accuracy,
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
            versions = ", ".join(f"{k} {v}" for k, v in about.items() if k != "device")
            lines.append(f"- {name} on {about['device']}: {versions}")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def page(content):
    """All parts there are."""
    texts = [_setting(content)]
    for name, write in _PARTS.items():
        if name in content["parts"]:
            texts += write(content["parts"][name])
    return "\n\n".join(text for text in texts if text) + "\n"
