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
from ._covariance import structure_named
from ._files import FileError, from_json, read_tensors, write_tensors
from ._mixture import GaussianMixture

_FORMAT = "gmmx.GaussianMixture"
_VERSION = 1
_DTYPES = ("float32", "float64")
_PLAIN = (str, int, float, bool, type(None))


def save(
    path: str | os.PathLike[str],
    gmm: GaussianMixture,
    *,
    feature_names: Sequence[str] | None = None,
) -> None:
    """Write a mixture to a file, in safetensors.

    The leaves are stored as they are, so what is read back is the same to the last bit. The
    header names the format and its version, the structure and the dtype. The file is written
    whole or not at all: if writing fails, a file that was there is untouched.

    **Arguments:**

    - `path`: by custom it ends in `.safetensors`.
    - `feature_names`: names of the d features, kept in the header for whoever reads it.

    **Raises:** `ValueError` for what is not one valid mixture, and `OSError` where the file cannot
    be written.
    """
    _checks.check_mixture(gmm)
    if not _checks.is_concrete(gmm):
        raise ValueError("a mixture cannot be saved inside jit, vmap or grad. Return it first.")
    if feature_names is not None and len(feature_names) != gmm.n_features:
        raise ValueError(
            f"{len(feature_names)} feature_names were given for {gmm.n_features} features."
        )
    arrays, settings = _fields(gmm.structure)
    arrays = {f"structure.{name}": np.asarray(value) for name, value in arrays.items()}
    arrays |= {"logits": np.asarray(gmm.logits), "means": np.asarray(gmm.means)}
    metadata = {
        "format": _FORMAT,
        "format_version": str(_VERSION),
        "gmmx_version": version("gmmx"),
        "covariance_type": gmm.covariance_type,
        "dtype": str(arrays["means"].dtype),
    }
    if settings:
        metadata["settings"] = json.dumps(settings)
    if feature_names is not None:
        metadata["feature_names"] = json.dumps([str(name) for name in feature_names])
    try:
        _check_arrays(arrays, metadata["dtype"])
        # What could not be read back is not written.
        _build(arrays, gmm.covariance_type, settings)
    except ValueError as error:
        raise ValueError(f"this mixture cannot be saved: {error}") from error
    write_tensors(path, arrays, metadata)


def load(path: str | os.PathLike[str], *, dtype: Any = None) -> GaussianMixture:
    """Read a mixture from a file that `gmmx.save` wrote.

    Nothing in a file is run, and all of it is checked before it is used.

    **Arguments:**

    - `dtype`: of the leaves, float32 or float64; as they were stored if there is none.

    **Raises:** `gmmx.FileError`, a `ValueError`, for a file that is cut off, damaged, of another
    format, of a newer gmmx, of a structure that is not known here, or no valid mixture; and for
    one of float64 where JAX is not set to use it, which would round it.
    """
    return read(path, dtype=dtype)[0]


def read(
    path: str | os.PathLike[str], *, dtype: Any = None
) -> tuple[GaussianMixture, dict[str, Any]]:
    """The mixture and what the header says: the versions, the dtype, perhaps feature names."""
    arrays, metadata = read_tensors(path, _FORMAT, _VERSION)
    settings = from_json(path, metadata, "settings")
    names = from_json(path, metadata, "feature_names")
    stored = metadata.get("dtype", "")
    try:
        if not isinstance(settings, dict | None):
            raise ValueError("the header's 'settings' are damaged.")
        _check_arrays(arrays, stored)
        wanted = _check_dtype(stored, dtype)
        with np.errstate(over="ignore"):
            arrays = {name: value.astype(wanted) for name, value in arrays.items()}
        gmm = _build(arrays, metadata.get("covariance_type", ""), settings or {})
        if names is not None and not _is_names(names, gmm.n_features):
            raise ValueError("the header's 'feature_names' are not one name a feature.")
    except ValueError as error:
        raise FileError(path, str(error)) from error
    header = {name: metadata.get(name, "unknown") for name in ("format_version", "gmmx_version")}
    return gmm, header | {"dtype": stored, "feature_names": names}


def _is_names(names: Any, n_features: int) -> bool:
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return texts and len(names) == n_features


def _fields(structure: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A structure's arrays by the names of its fields, and its static settings."""
    arrays, settings = {}, {}
    for field in dataclasses.fields(structure):
        part = settings if field.metadata.get("static") else arrays
        part[field.name] = getattr(structure, field.name)
    for name, value in settings.items():
        if not isinstance(value, _PLAIN):
            raise ValueError(
                f"{type(structure).__name__}.{name} is static and no number or text, and a file "
                "cannot hold it. Make it an array, or a number."
            )
    return arrays, settings


def _check_arrays(arrays: dict[str, np.ndarray], dtype: str) -> None:
    """Refuse other dtypes than the one that is announced."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype[:40]!r} is not known; float32 or float64 was wanted.")
    for name, value in arrays.items():
        if value.dtype != dtype:
            raise ValueError(f"{name[:40]} is of dtype {value.dtype}; {dtype} was wanted.")


def _check_dtype(stored: str, asked: Any) -> np.dtype:
    """The dtype to load, which JAX has to be set to use."""
    dtype = np.dtype(stored if asked is None else asked)
    if dtype.name not in _DTYPES:
        raise ValueError(f"dtype={dtype}; float32 or float64 was wanted.")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            "it is to be loaded in float64, which JAX is not set to use, and would be rounded. "
            "Call jax.config.update('jax_enable_x64', True) first, or "
            "gmmx.load(path, dtype='float32') to have it rounded."
        )
    return dtype


def _build(
    arrays: dict[str, np.ndarray], covariance_type: str, settings: dict[str, Any]
) -> GaussianMixture:
    """The mixture of these arrays.

    **Raises:** `ValueError` where they are not those of one mixture.
    """
    if len(covariance_type) > 100:
        raise ValueError(f"its covariance_type, {covariance_type[:40]}…, is no name.")
    try:
        structure = structure_named(covariance_type)
    except ValueError as error:
        raise ValueError(f"{error} If it is a structure of yours, import its module.") from error
    fields = [f for f in dataclasses.fields(structure) if not f.metadata.get("static")]
    annotations = {f"structure.{field.name}": field.type for field in fields}
    annotations |= {f.name: f.type for f in dataclasses.fields(GaussianMixture)[:2]}
    if annotations.keys() != arrays.keys():
        raise ValueError(
            f"tensors {', '.join(sorted(annotations))} were wanted for the structure "
            f"{covariance_type!r}; there are {', '.join(sorted(arrays))[:200] or 'none'}."
        )
    _check_shapes(arrays, annotations)
    _check_values(arrays)
    leaves = {name: jnp.asarray(value) for name, value in arrays.items()}
    own = {field.name: leaves[f"structure.{field.name}"] for field in fields}
    try:
        return GaussianMixture(leaves["logits"], leaves["means"], structure(**own, **settings))
    except TypeError as error:
        raise ValueError(f"the structure {covariance_type!r} does not take it: {error}") from error


def _check_shapes(arrays: dict[str, np.ndarray], annotations: dict[str, Any]) -> None:
    """Refuse shapes other than those that the fields are annotated with.

    So a structure says its shapes once, where it declares its leaves. An axis named in two
    arrays is of one length.
    """
    with jaxtyped("context"):
        # The means first: they have both axes, whatever the structure.
        for name in ("means", *(name for name in arrays if name != "means")):
            # None where jaxtyping is switched off.
            axes = getattr(annotations[name], "dim_str", None)
            wanted: Any = np.ndarray if axes is None else Shaped[np.ndarray, axes]
            if 0 in arrays[name].shape or not isinstance(arrays[name], wanted):
                raise ValueError(
                    f"{name} has shape {arrays[name].shape}, but ({axes}) was wanted beside means "
                    f"of shape {arrays['means'].shape}. (Of a stack of mixtures take one: "
                    "jax.tree.map(lambda leaf: leaf[0], stack).)"
                )


def _check_values(arrays: dict[str, np.ndarray]) -> None:
    """Refuse NaN and infinity; a component of weight zero, whose logit is −∞, is none of that."""
    for name, value in arrays.items():
        good = np.isfinite(value)
        if name == "logits":
            good |= np.isneginf(value) & good.any()
        if not good.all():
            raise ValueError(f"{name} holds {int((~good).sum())} values that are NaN or infinite.")
