"""Six figures: time along each grid, one line per library, dtype and device."""

from pathlib import Path

from .timing import summary

AXES = {
    "components": ("k", "components"),
    "features": ("d", "features"),
    "samples": ("n", "samples"),
}
TITLES = {"train": "Training, 20 iterations", "predict": "Prediction"}
# A palette that is safe for colour-blind readers (Okabe and Ito).
COLOURS = {
    "gmmx": "#0072B2", "scikit-learn": "#D55E00", "GMMX 0.7": "#009E73", "pomegranate": "#CC79A7",
}  # fmt: skip
MARKERS = {"gmmx": "o", "scikit-learn": "s", "GMMX 0.7": "^", "pomegranate": "D"}


def lines(reports, task, grid):
    """The points (size, summary) along a grid, by (library, device, dtype)."""
    found, key = {}, AXES[grid][0]
    for report in reports:
        for row in report["parts"].get(task, {"rows": ()})["rows"]:
            on_grid = grid in row["grids"]
            for peer in COLOURS if on_grid else ():
                if peer in row["times"]:
                    device = report["peers"].get(peer, {}).get("device", "CPU")
                    line = found.setdefault((peer, device, row["dtype"]), [])
                    line.append((row[key], summary(row["times"][peer])))
    return {name: sorted(points, key=lambda p: p[0]) for name, points in found.items()}


def fixed(rows, grid):
    """The sizes that stay the same along a grid, as text."""
    others = [
        (label, key) for label, key in (("n", "n"), ("d", "d"), ("K", "k")) if key != AXES[grid][0]
    ]
    return ", ".join(f"{label} = {rows[0][key]:,}" for label, key in others)


def draw(reports, folder):
    """Draw the figures of the first report, with lines of the others added; return their paths."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    folder, paths = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    for task, title in TITLES.items():
        for grid, (_, label) in AXES.items():
            found = lines(reports, task, grid)
            if not found:
                continue
            rows = [r for r in reports[0]["parts"][task]["rows"] if grid in r["grids"]]
            with mpl.rc_context(style):
                figure, axes = plt.subplots(figsize=(5.4, 4.1), layout="constrained")
                for (peer, device, dtype), points in found.items():
                    _line(axes, peer, device, dtype, points)
                axes.set_xscale("log", base=2)
                axes.set_yscale("log")
                _ticks(axes, sorted({size for points in found.values() for size, _ in points}))
                axes.set(xlabel=f"number of {label}", ylabel="time")
                axes.set_title(f"{title}: {fixed(rows, grid)}", fontsize=10.5, loc="left")
                axes.grid(which="major", color="0.9", linewidth=0.8)
                axes.set_axisbelow(True)
                figure.legend(
                    loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=3
                )
                path = folder / f"{task}-{grid}.png"
                figure.savefig(path, dpi=160)
                plt.close(figure)
            paths.append(path)
    return paths


def _line(axes, peer, device, dtype, points):
    where = "" if device == "CPU" else f", {device}"
    sizes = [size for size, _ in points]
    axes.fill_between(
        sizes, [s["min"] for _, s in points], [s["max"] for _, s in points],
        color=COLOURS[peer], alpha=0.15, linewidth=0,
    )  # fmt: skip
    axes.plot(
        sizes, [s["median"] for _, s in points], label=f"{peer}, {dtype}{where}",
        color=COLOURS[peer], marker=MARKERS[peer], markersize=4.5,
        linestyle="-" if dtype == "float32" else "--",
        markerfacecolor=COLOURS[peer] if device == "CPU" else "white",
        linewidth=2.2 if peer == "gmmx" else 1.5, zorder=3 if peer == "gmmx" else 2,
    )  # fmt: skip


def _ticks(axes, sizes):
    """Label the axes with the sizes (every second one if there are many) and with times."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    shown = sizes[:: 2 if len(sizes) > 7 else 1]
    axes.set_xticks(shown, [f"{size:,}" for size in shown], fontsize=9)
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    wide = high / low > 30
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _unit(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _unit(seconds):
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor > 0.999 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    return ""
