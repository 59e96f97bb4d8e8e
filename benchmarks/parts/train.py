"""Training: 20 iterations on three grids, and all four structures at one size."""

from dataclasses import replace

from ..cases import MAIN, QUICK, STRUCTURES, Case, points
from . import grid


def run(session):
    def cases(dtype):
        size = QUICK["train"]["samples"][-1] if session.quick else MAIN["train"]
        found = points("train", dtype, session.quick)
        others = [
            replace(Case("train", *size, dtype), covariance_type=kind)
            for kind in STRUCTURES
            if kind != "full"
        ]
        return found + (others if dtype == "float32" else [])

    grid.run(session, "train", cases)
