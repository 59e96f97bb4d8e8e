"""Prediction of labels on three grids."""

from ..cases import points
from . import grid


def run(session):
    grid.run(session, "predict", lambda dtype: points("predict", dtype, session.quick))
