"""Draw docs/images/families.png: three components of each of mclust's fourteen families."""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse

import gmmx

# Of three components: their places, and what each family has of these, or its first for all.
PLACES = [(-1.2, -1.1), (1.2, -1.1), (0, 0.9)]
VOLUMES = (0.5, 0.22, 0.8)
RATIOS = (2.5, 1.25, 5.0)
ANGLES = (35, -40, 5)
COLOURS = ("#0072b2", "#d55e00", "#009e73")


def own(letter, values, identity):
    """The values of the components: each its own, one for all, or that of the identity."""
    return {"V": values, "E": values[:1] * 3, "I": (identity,) * 3}[letter]


figure, panels = plt.subplots(2, 7, figsize=(10.5, 3.5), layout="constrained")
for name, axes in zip(gmmx.FAMILIES, panels.ravel(), strict=True):
    parts = zip(
        PLACES, own(name[0], VOLUMES, 1), own(name[1], RATIOS, 1), own(name[2], ANGLES, 0),
        strict=True,
    )  # fmt: skip
    for color, (place, volume, ratio, angle) in zip(COLOURS, parts, strict=True):
        # Half axes of the product `volume`.
        long, short = np.sqrt(volume * ratio), np.sqrt(volume / ratio)
        axes.add_patch(Ellipse(place, 2 * long, 2 * short, angle=angle, fc=color, alpha=0.25))
        axes.add_patch(Ellipse(place, 2 * long, 2 * short, angle=angle, ec=color, fill=False))
        turn = np.deg2rad(angle)
        for half, way in ((long, turn), (short, turn + np.pi / 2)):
            ends = np.outer([-half, half], [np.cos(way), np.sin(way)]) + place
            axes.plot(*ends.T, color=color, lw=0.8, ls=":")
    axes.set_title(name, fontsize=11)
    axes.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_color("0.8")
figure.savefig(Path(__file__).parent.parent / "images" / "families.png", dpi=110, facecolor="white")
