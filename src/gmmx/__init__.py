"""Gaussian mixtures for JAX: an Equinox module, trained by EM or by any Optax optimiser."""

import logging as _logging
from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import nn as nn
from ._algebra.product import product as product
from ._anomaly import log_prob_threshold as log_prob_threshold
from ._background import BackgroundMixture as BackgroundMixture
from ._background import UniformBackground as UniformBackground
from ._batch import MixtureBatch as MixtureBatch
from ._cache import enable_compilation_cache as enable_compilation_cache
from ._clusters import MergedClusters as MergedClusters
from ._clusters import merge_by_entropy as merge_by_entropy
from ._covariance import FAMILIES as FAMILIES
from ._covariance import AbstractCovariance as AbstractCovariance
from ._covariance.diagonal import DiagonalCovariance as DiagonalCovariance
from ._covariance.eev import EEVCovariance as EEVCovariance
from ._covariance.eii import EIICovariance as EIICovariance
from ._covariance.eve import EVECovariance as EVECovariance
from ._covariance.evi import EVICovariance as EVICovariance
from ._covariance.evv import EVVCovariance as EVVCovariance
from ._covariance.full import FullCovariance as FullCovariance
from ._covariance.spherical import SphericalCovariance as SphericalCovariance
from ._covariance.tied import TiedCovariance as TiedCovariance
from ._covariance.tied_diagonal import TiedDiagonalCovariance as TiedDiagonalCovariance
from ._covariance.vee import VEECovariance as VEECovariance
from ._covariance.vei import VEICovariance as VEICovariance
from ._covariance.vev import VEVCovariance as VEVCovariance
from ._covariance.vve import VVECovariance as VVECovariance
from ._data import Data as Data
from ._divergences.entropy import EntropyBounds as EntropyBounds
from ._divergences.entropy import entropy_bounds as entropy_bounds
from ._divergences.kl import MonteCarlo as MonteCarlo
from ._divergences.kl import kl_divergence as kl_divergence
from ._divergences.kl import kl_upper_bound as kl_upper_bound
from ._divergences.kl import kl_variational as kl_variational
from ._divergences.overlap import integrated_squared_error as integrated_squared_error
from ._divergences.overlap import log_overlap as log_overlap
from ._divergences.overlap import pairwise_log_overlap as pairwise_log_overlap
from ._divergences.wasserstein import mixture_wasserstein as mixture_wasserstein
from ._divergences.wasserstein import wasserstein_gaussian as wasserstein_gaussian
from ._files import FileError as FileError
from ._fit.base import AbstractFitter as AbstractFitter
from ._fit.checkpoint import Checkpoint as Checkpoint
from ._fit.em import EMFitter as EMFitter
from ._fit.gradient import GradientFitter as GradientFitter
from ._fit.prior import ConjugatePrior as ConjugatePrior
from ._fit.restarts import Restarts as Restarts
from ._fit.result import FitError as FitError
from ._fit.result import FitResult as FitResult
from ._fit.result import FitWarning as FitWarning
from ._fit.state import FitState as FitState
from ._fit.status import Status as Status
from ._fit.stepwise import StepwiseEM as StepwiseEM
from ._fit.stepwise import StepwiseState as StepwiseState
from ._inference.bootstrap import Bootstrap as Bootstrap
from ._inference.bootstrap import bootstrap as bootstrap
from ._inference.errors import StandardErrors as StandardErrors
from ._inference.errors import standard_errors as standard_errors
from ._inference.information import Information as Information
from ._inference.information import information as information
from ._inference.parameters import Parameters as Parameters
from ._inference.ratio import BootstrapTest as BootstrapTest
from ._inference.ratio import RatioTest as RatioTest
from ._inference.ratio import bootstrap_test as bootstrap_test
from ._init.initialize import initialize as initialize
from ._io import load as load
from ._io import save as save
from ._mixture import GaussianMixture as GaussianMixture
from ._posterior import AbstractPosterior as AbstractPosterior
from ._raw import raw_size as raw_size
from ._rows import pad_rows as pad_rows
from ._select import select as select
from ._selection import Candidate as Candidate
from ._selection import Selection as Selection
from ._sources.arrays import ArraySource as ArraySource
from ._sources.base import AbstractSource as AbstractSource
from ._sources.base import Block as Block
from ._sources.iterators import IteratorSource as IteratorSource
from ._sources.open import rows_from as rows_from
from ._sources.tables import TableSource as TableSource

GaussianMixtureModelJax = GaussianMixture
"""The name of the package GMMX"""

__version__ = _version("gmmx")

_logging.getLogger("gmmx").addHandler(_logging.NullHandler())

if _TYPE_CHECKING:
    from . import flowjax as flowjax
    from . import numpyro as numpyro
    from . import plot as plot
    from . import sklearn as sklearn
    from .sklearn import GaussianMixture as GaussianMixtureSKLearn  # noqa: F401


def __getattr__(name: str) -> _Any:
    """What needs an optional package is imported when it is asked for."""
    if name == "GaussianMixtureSKLearn":
        return _import_module("gmmx.sklearn").GaussianMixture
    if name in ("flowjax", "numpyro", "plot", "sklearn"):
        return _import_module(f"gmmx.{name}")
    raise AttributeError(f"module 'gmmx' has no attribute {name!r}")
