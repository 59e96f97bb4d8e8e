"""Draw docs/images/layout.png: the layers of the code, from the bottom up."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[2]

# From the bottom up: what the layer is, its files and folders, its colour.
LAYERS = [
    ("checks, linear algebra,\nchunks of rows, files", "_checks _data _linalg _orthogonal _noise "
     "_reductions _chunks _grouped _rows _sources _spread _processes "
     "_files _cache _programs", "#d9dde1"),
    ("covariance structures", "_covariance", "#cfe3f5"),
    ("weights, means, structure", "_components", "#cfe3f5"),
    ("log-densities and moments\nof many rows", "_engine", "#fbdcc4"),
    ("operations on mixtures", "_algebra _scores _pathwise _divergences _criteria _sampling "
     "_anomaly _raw _summary",
     "#fbdcc4"),
    ("the classes that users see", "_abstract_mixture _mixture", "#cfe3f5"),
    ("before a background;\none for each sample", "_background _batch", "#cfe3f5"),
    ("posteriors, starts, trainers,\nlayers of networks", "_posterior _init _fit nn", "#d5ebd3"),
    ("selection, errors, files,\npictures, other libraries", "_select _selection _inference "
     "_clusters _io plot sklearn numpyro flowjax", "#d5ebd3"),
    ("the command line", "gmmx_cli", "#d5ebd3"),
]  # fmt: skip
WIDTH, HEIGHT, GAP, CHIP, PER_LINE = 10.0, 0.5, 0.14, 1.13, 6


def check_complete():
    """Every file and folder of the library has its place, once."""
    drawn = sorted(" ".join(names for _, names, _ in LAYERS).split())
    found = {path.stem for path in (ROOT / "src" / "gmmx").iterdir() if path.suffix in ("", ".py")}
    wanted = sorted(found - {"__init__", "__main__", "__pycache__"} | {"gmmx_cli"})
    assert drawn == wanted, set(drawn) ^ set(wanted)


def draw_layer(axes, bottom, text, names, colour):
    """One layer; returns its height."""
    lines = [names[i : i + PER_LINE] for i in range(0, len(names), PER_LINE)]
    height = max(HEIGHT, 0.38 * len(lines) + 0.12)
    box = FancyBboxPatch(
        (0.55, bottom), WIDTH - 0.6, height, boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=colour, edgecolor="none",
    )  # fmt: skip
    axes.add_patch(box)
    middle = bottom + height / 2
    axes.text(0.75, middle, text, va="center", fontsize=10, color="#222222", linespacing=1.15)
    for row, line in enumerate(lines):
        y = middle + 0.38 * ((len(lines) - 1) / 2 - row)
        for column, name in enumerate(line):
            x = 3.08 + CHIP * (column + 0.5)
            chip = FancyBboxPatch(
                (x - CHIP / 2 + 0.04, y - 0.14), CHIP - 0.08, 0.28,
                boxstyle="round,pad=0,rounding_size=0.06", facecolor="white",
                edgecolor="#888888", linewidth=0.7,
            )  # fmt: skip
            axes.add_patch(chip)
            axes.text(x, y - 0.01, name, ha="center", va="center",
                      fontsize=min(8.5, 102 / len(name)), family="monospace")  # fmt: skip
    return height


check_complete()
figure, axes = plt.subplots(figsize=(9.2, 6.2), layout="constrained")
bottom = 0.0
for text, names, colour in LAYERS:
    bottom += draw_layer(axes, bottom, text, names.split(), colour) + GAP
top = bottom - GAP
arrow = FancyArrowPatch(
    (0.28, top), (0.28, 0), arrowstyle="-|>", mutation_scale=16, color="#555555", linewidth=1.4
)
axes.add_patch(arrow)
axes.text(0.1, top / 2, "imports", rotation=90, ha="center", va="center", color="#333333")
axes.set(xlim=(-0.05, WIDTH), ylim=(-0.05, top + 0.05))
axes.axis("off")
figure.savefig(ROOT / "docs" / "images" / "layout.png", dpi=130, facecolor="white")
