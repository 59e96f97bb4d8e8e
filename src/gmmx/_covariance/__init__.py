import importlib
import pkgutil

from .base import AbstractCovariance as AbstractCovariance
from .base import structure_named as structure_named

# Every module of this folder is a structure or serves one: a new file is found by being here.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

LOW_RANK = (
    "low_rank", "low_rank_spherical", "ppca", "tied_loadings", "tied_loadings_spherical"
)  # fmt: skip
"""The names of the structures that have a rank"""

FAMILIES = (
    "EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV",
    "VVV",
)  # fmt: skip
"""The fourteen families of the package mclust, in its order, as names of structures.

The letters say whether components share volume, shape and orientation (E), have their own (V), or
have none (I): Σ_k = λ_k D_k A_k D_kᵀ, with the volume λ_k, the shape A_k, diagonal of determinant
one, and the orientation D_k, orthogonal (Celeux & Govaert 1995).
"""
