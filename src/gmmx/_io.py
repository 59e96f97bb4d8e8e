"""Mixtures in files."""

import dataclasses
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped, jaxtyped

from . import _checks
from ._abstract_mixture import AbstractMixture
from ._background import BackgroundMixture, UniformBackground
from ._components import check_mixture
from ._covariance import structure_named
from ._covariance.factors import LowRankFactors
from ._files import FileError, from_json, read_tensors, write_tensors
from ._mixture import GaussianMixture

_FORMAT = "gmmx.GaussianMixture"
_VERSION = 1
_DTYPES = ("float32", "float64")
_PLAIN = (str, int, float, bool, type(None))


def save(
    path: str | os.PathLike[str],
    gmm: AbstractMixture,
    *,
    feature_names: Sequence[str] | None = None,
) -> None:
    """Write a mixture to a file, in safetensors.

    The leaves are stored as they are, so `gmmx.load` returns the same mixture to the last bit. The
    header holds the format and its version, the structure and the dtype. The file is written
    whole or not at all: if writing fails, an existing file is unchanged.

    **Arguments:**

    - `path`: the file; its name usually ends in `.safetensors`.
    - `feature_names`: names of the d features. They are stored in the header.

    A new file gets the permissions of any new file, and a file that is replaced keeps its own.

    **Raises:** `ValueError` if `gmm` is not one valid mixture, or its background is not a
    `gmmx.UniformBackground`; and `OSError` if the file cannot be
    written, for instance `PermissionError` if it is read-only.
    """
    check_mixture(gmm)
    if not _checks.is_concrete(gmm):
        raise ValueError(
            "a mixture cannot be saved inside jit, vmap or grad. Return it and save it outside."
        )
    if feature_names is not None and len(feature_names) != gmm.n_features:
        raise ValueError(
            f"feature_names has {len(feature_names)} names; expected {gmm.n_features}, one for "
            "each feature."
        )
    arrays, settings = _fields(gmm.structure)
    arrays = {f"structure.{name}": np.asarray(value) for name, value in arrays.items()}
    arrays |= {"logits": np.asarray(gmm.logits), "means": np.asarray(gmm.means)}
    arrays |= _background_fields(gmm)
    metadata = {
        "format": _FORMAT,
        "format_version": str(_VERSION),
        "gmmx_version": version("gmmx"),
        "covariance_type": gmm.covariance_type,
        "dtype": str(arrays["means"].dtype),
    }
    if settings:
        metadata["settings"] = json.dumps(settings)
    if gmm.structure.n_latent is not None:
        metadata["rank"] = str(gmm.structure.n_latent)
    if feature_names is not None:
        metadata["feature_names"] = json.dumps([str(name) for name in feature_names])
    try:
        # Only what can be read back is written.
        _check_arrays(arrays, metadata["dtype"])
        _build(arrays, gmm.covariance_type, settings, gmm.structure.n_latent)
    except ValueError as error:
        raise ValueError(f"this mixture cannot be saved: {error}") from error
    write_tensors(path, arrays, metadata)


def load(path: str | os.PathLike[str], *, dtype: Any = None) -> AbstractMixture:
    """Read a mixture from a file written by `gmmx.save`.

    Loading a file runs no code from it, and checks everything before use.

    **Arguments:**

    - `dtype`: of the leaves, float32 or float64; by default the stored one.

    **Raises:** `gmmx.FileError`, a `ValueError`, if the file is incomplete, damaged, of another
    format, of a newer gmmx or of an unknown structure, or if it does not hold a valid mixture.
    Also if it holds float64 and JAX is not set to use it, which would round the values.
    """
    return read(path, dtype=dtype)[0]


def read(
    path: str | os.PathLike[str], *, dtype: Any = None
) -> tuple[AbstractMixture, dict[str, Any]]:
    """The mixture, and from the header the versions, the dtype and the feature names, if any."""
    arrays, metadata = read_tensors(path, _FORMAT, _VERSION)
    settings, rank = from_json(path, metadata, "settings"), from_json(path, metadata, "rank")
    names = from_json(path, metadata, "feature_names")
    stored = metadata.get("dtype", "")
    try:
        if not isinstance(settings, dict | None):
            raise ValueError("'settings' in the header is damaged.")
        _check_arrays(arrays, stored)
        target = _check_dtype(stored, dtype)
        with np.errstate(over="ignore"):
            arrays = {name: value.astype(target) for name, value in arrays.items()}
        gmm = _build(arrays, metadata.get("covariance_type", ""), settings or {}, rank)
        if names is not None and not _is_names(names, gmm.n_features):
            raise ValueError("'feature_names' in the header is not one name for each feature.")
    except ValueError as error:
        raise FileError(path, str(error)) from error
    header = {name: metadata.get(name, "unknown") for name in ("format_version", "gmmx_version")}
    return gmm, header | {"dtype": stored, "feature_names": names}


def _is_names(names: Any, n_features: int) -> bool:
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return texts and len(names) == n_features


def _fields(structure: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a structure and its static settings, by the names of its fields."""
    arrays, settings = {}, {}
    for field in dataclasses.fields(structure):
        part = settings if field.metadata.get("static") else arrays
        part[field.name] = getattr(structure, field.name)
    for name, value in settings.items():
        if not isinstance(value, _PLAIN):
            raise ValueError(
                f"{type(structure).__name__}.{name} is a static {type(value).__name__}; a file "
                "can hold only numbers, text and arrays. Make it one of these."
            )
    return arrays, settings


_BACKGROUND = ("background.logit", "background.low", "background.high")


def _background_fields(gmm: AbstractMixture) -> dict[str, np.ndarray]:
    """The arrays of a background."""
    if not isinstance(gmm, BackgroundMixture):
        return {}
    if not isinstance(gmm.background, UniformBackground):
        raise ValueError(
            f"the background is a {type(gmm.background).__name__}; a file can hold a "
            "gmmx.UniformBackground. Save gmm.mixture, and join them again by "
            "gmmx.BackgroundMixture.of."
        )
    values = gmm.background_logit, gmm.background.low, gmm.background.high
    return {name: np.asarray(v) for name, v in zip(_BACKGROUND, values, strict=True)}


def _check_arrays(arrays: dict[str, np.ndarray], dtype: str) -> None:
    """Refuse arrays that are not of the dtype in the header."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype[:40]!r} is unknown; expected float32 or float64.")
    for name, value in arrays.items():
        if value.dtype != dtype:
            raise ValueError(f"{name[:40]} has dtype {value.dtype}; expected {dtype}.")


def _check_dtype(stored: str, asked: Any) -> np.dtype:
    """The dtype to load; JAX has to be set to use it."""
    dtype = np.dtype(stored if asked is None else asked)
    if dtype.name not in _DTYPES:
        raise ValueError(f"dtype={dtype}; expected float32 or float64.")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            "it is to be loaded as float64, which JAX is set to round to float32. Call "
            "jax.config.update('jax_enable_x64', True) first, or load it rounded: "
            "gmmx.load(path, dtype='float32')."
        )
    return dtype


def _build(
    arrays: dict[str, np.ndarray], covariance_type: str, settings: dict[str, Any], rank: Any
) -> AbstractMixture:
    """The mixture of these arrays.

    **Raises:** `ValueError` if they are not those of one mixture.
    """
    background = {name: arrays[name] for name in arrays if name in _BACKGROUND}
    arrays = {name: value for name, value in arrays.items() if name not in _BACKGROUND}
    if len(covariance_type) > 100:
        raise ValueError(f"covariance_type={covariance_type[:40]!r}… is too long for a name.")
    try:
        structure = structure_named(covariance_type, rank)
    except ValueError as error:
        raise ValueError(f"{error} If the structure is your own, import its module.") from error
    fields = [f for f in dataclasses.fields(structure) if not f.metadata.get("static")]
    annotations = {f"structure.{field.name}": field.type for field in fields}
    annotations |= {f.name: f.type for f in dataclasses.fields(GaussianMixture)[:2]}
    if annotations.keys() != arrays.keys():
        raise ValueError(
            f"it holds the tensors {', '.join(sorted(arrays))[:200] or '(none)'}; for the "
            f"structure {covariance_type!r} expected {', '.join(sorted(annotations))}."
        )
    _check_shapes(arrays, annotations)
    _check_values(arrays)
    leaves = {name: jnp.asarray(value) for name, value in arrays.items()}
    own = {field.name: leaves[f"structure.{field.name}"] for field in fields}
    try:
        gmm = GaussianMixture(leaves["logits"], leaves["means"], structure(**own, **settings))
    except TypeError as error:
        raise ValueError(f"the structure {covariance_type!r} cannot be made: {error}") from error
    _check_factors(gmm)
    return _before(gmm, background) if background else gmm


def _before(gmm: GaussianMixture, background: dict[str, np.ndarray]) -> BackgroundMixture:
    """The mixture before this background."""
    if len(background) < len(_BACKGROUND):
        raise ValueError(f"it holds {', '.join(background)}; expected {', '.join(_BACKGROUND)}.")
    logit, low, high = (background[name] for name in _BACKGROUND)
    if logit.shape or np.isnan(logit) or low.shape != (gmm.n_features,):
        raise ValueError("the background does not fit the means.")
    uniform = UniformBackground(low, high)
    return BackgroundMixture(gmm.logits, gmm.means, gmm.structure, jnp.asarray(logit), uniform)


def _check_shapes(arrays: dict[str, np.ndarray], annotations: dict[str, Any]) -> None:
    """Refuse shapes other than those in the annotations of the fields.

    An axis of one name has one length in all arrays.
    """
    with jaxtyped("context"):
        # The means first: they have the axes k and d for every structure.
        for name in ("means", *(name for name in arrays if name != "means")):
            # None if jaxtyping is switched off.
            axes = getattr(annotations[name], "dim_str", None)
            expected: Any = np.ndarray if axes is None else Shaped[np.ndarray, axes]
            if 0 in arrays[name].shape or not isinstance(arrays[name], expected):
                raise ValueError(
                    f"{name} has shape {arrays[name].shape}, and means has shape "
                    f"{arrays['means'].shape}; expected ({axes}) and (k d). Of a stack of "
                    "mixtures take one: jax.tree.map(lambda leaf: leaf[0], stack)."
                )


def _check_values(arrays: dict[str, np.ndarray]) -> None:
    """Refuse NaN and infinity. A logit of −∞ is valid: a component of weight zero."""
    for name, value in arrays.items():
        good = np.isfinite(value)
        if name == "logits":
            good |= np.isneginf(value) & good.any()
        if not good.all():
            raise ValueError(f"{name} holds {int((~good).sum())} values that are NaN or infinite.")


# One program in place of many small ones.
_factors = jax.jit(GaussianMixture.factors)


def _check_factors(gmm: GaussianMixture) -> None:
    """Refuse finite leaves of which no log-density can be computed."""
    factors, means = _factors(gmm), np.asarray(gmm.means)
    if isinstance(factors, LowRankFactors):
        # W, if the covariances are finite in its units.
        factors = np.where(np.isfinite(factors.variances), factors.diagonal, np.nan)
    factors = np.asarray(factors)
    diagonal = factors if factors.ndim == 2 else np.diagonal(factors, axis1=1, axis2=2)
    good = np.isfinite(factors.reshape(len(factors), -1)).all(axis=1)
    good = np.logical_and(good, (diagonal > 0).all(axis=1))
    if not good.all():
        which = f"of component {int(np.argmin(good))}" if len(good) > 1 else "of the components"
        raise ValueError(
            f"structure gives a covariance {which} that is zero or infinite in {factors.dtype}."
        )
    # A bound of |W(μ_j − μ_k)|: beyond the range of the dtype it is infinity minus infinity.
    with np.errstate(over="ignore"):
        reach = np.abs(factors).sum(axis=-1).max() * (means.max(axis=0) - means.min(axis=0)).max()
    if not np.isfinite(reach):
        raise ValueError(
            f"means and structure give distances between the components, in units of their widths, "
            f"that are infinite in {factors.dtype}."
        )
