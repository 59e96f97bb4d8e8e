"""Mixtures as vectors without constraints, such as the outputs of a network, and back.

A vector holds the logits (K), the means (K·d) and what the leaves of the structure are read for:
of a triangular matrix its triangle. Each scale σ of the structure has a floor s, by

    σ = s + eᵛ

for the number v in the vector. A scale is what the structure's `log_scale` names: a conditional
deviation 1/W_ii, a deviation, or a volume |Σ_k|^(1/2d). In every structure |Σ_k| ≥ s²ᵈ, so that no
density exceeds (2πs²)^(−d/2) and a likelihood is bounded.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from . import _checks
from ._components import AbstractComponents, check_gaussian
from ._covariance import AbstractCovariance, structure_named

MIN_SCALE = 1e-3
"""The floor of scales, for data of unit variance"""


def raw_size(n_components: int, n_features: int, covariance_type: str = "full") -> int:
    """How many numbers `from_raw` takes: K logits, K·d means, and those of the covariances.

    No number is without effect. For `"full"` covariances it is K(1 + d + d(d + 1)/2). The same
    number added to all logits changes nothing, nor does one added to a shape of the families, such
    as A in Σ_k = λ_kA: there are as many numbers as parameters otherwise.
    """
    k, d = _checked_sizes(n_components, n_features)
    return k + k * d + sum(_sizes(structure_named(covariance_type), k, d))


def unpack(
    raw: Any, n_components: int, n_features: int, covariance_type: str, min_scale: Any
) -> tuple[Float[Array, "*batch k"], Float[Array, "*batch k d"], AbstractCovariance]:
    """The leaves of the mixtures of vectors `(*batch, size)`, with the batch's axes first."""
    k, d = _checked_sizes(n_components, n_features)
    structure = structure_named(covariance_type)
    raw = _checks.as_floating(raw, "raw")
    size = raw_size(k, d, covariance_type)
    if raw.ndim == 0 or raw.shape[-1] != size:
        raise ValueError(
            f"raw has shape {raw.shape}; expected (*batch, {size}), which is "
            f"gmmx.raw_size({k}, {d}, {covariance_type!r})."
        )
    floor, largest = _checked_floor(min_scale, raw.dtype), math.exp(_longest(raw.dtype))
    raw = jnp.clip(raw, -largest, largest)
    *parts, _ = jnp.split(raw, np.cumsum([k, k * d, *_sizes(structure, k, d)]), axis=-1)
    logits, means, *parts = parts
    shapes, tree = _skeleton(structure, k, d)
    leaves = [
        _leaf(structure, name, shape, part, floor)
        for (name, shape), part in zip(shapes, parts, strict=True)
    ]
    means = means.reshape(*means.shape[:-1], k, d)
    return logits, means, jax.tree.unflatten(tree, leaves)


def pack(gmm: AbstractComponents, min_scale: Any) -> Float[Array, " size"]:
    """The vector of a mixture, the inverse of `unpack`."""
    check_gaussian(gmm)
    floor, structure = _checked_floor(min_scale, gmm.dtype), type(gmm.structure)
    name, unit = structure.log_scale
    shapes, _ = _skeleton(structure, *gmm.means.shape)
    parts = [gmm.logits, gmm.means.reshape(-1)]
    for (leaf_name, shape), leaf in zip(shapes, jax.tree.leaves(gmm.structure), strict=True):
        numbers, logs = _read(structure, leaf_name, shape)
        part = leaf.reshape(-1)[numbers]
        if leaf_name == name:
            log_scale = part / unit
            above = jnp.log(-jnp.expm1(jnp.log(floor) - log_scale))
            part = jnp.where(logs, log_scale + above, part)
            if _checks.is_concrete(part) and not bool(jnp.all(jnp.isfinite(part))):
                least = float(jnp.exp(jnp.min(jnp.where(logs, log_scale, jnp.inf))))
                raise ValueError(
                    f"the least scale of the mixture is {least:g}; expected more than "
                    f"min_scale={float(floor):g}. Pass a smaller min_scale."
                )
        parts.append(part)
    return jnp.concatenate(parts)


def _leaf(
    structure: type[AbstractCovariance],
    name: str,
    shape: tuple[int, ...],
    part: Float[Array, "*batch size"],
    floor: Float[Array, ""],
) -> Array:
    """A leaf of the structure from its numbers, which are bounded so that no factor overflows."""
    longest, (scale_name, unit) = _longest(part.dtype), structure.log_scale

    def as_logs(v: Array) -> Array:
        v = jnp.clip(v, -longest, longest)
        return unit * jnp.logaddexp(jnp.log(floor), v) if name == scale_name else v

    batch, offset = part.shape[:-1], structure.triangle(name)
    if offset is None:
        return as_logs(part).reshape(*batch, *shape)
    d = shape[-1]
    part = part.reshape(*batch, *shape[:-2], -1)
    square = _fill_lower(part, d - offset)
    if offset == 0:
        diagonal = as_logs(jnp.diagonal(square, axis1=-2, axis2=-1))
        return jnp.where(jnp.eye(d, dtype=bool), diagonal[..., None, :], square)
    # Below the diagonal of a matrix one smaller, transposed.
    return jnp.pad(square.mT, [(0, 0)] * (square.ndim - 2) + [(0, 1), (1, 0)])


def _longest(dtype: Any) -> float:
    """The largest logarithm: a fourth power of its exponential does not overflow."""
    return math.log(float(jnp.finfo(dtype).max)) / 4


def _fill_lower(v: Float[Array, "*k t"], d: int) -> Float[Array, "*k d d"]:
    """The lower triangle of these numbers: the d last rows of [v_d … v_t, v_t … v_1] as a square.

    The numbers come to their places without a scatter, which a CPU does one by one (as in
    TensorFlow Probability's `fill_triangular`).
    """
    square = jnp.concatenate([v[..., d:], v[..., ::-1]], axis=-1)
    return jnp.tril(square.reshape(*v.shape[:-1], d, d))


@functools.lru_cache(maxsize=256)
def _read(
    structure: type[AbstractCovariance], name: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The places in the leaf of the numbers that it is read for, and which of them are logs."""
    offset, size = structure.triangle(name), math.prod(shape)
    if offset is None:
        return np.arange(size), np.ones(size, bool)
    d, count = shape[-1], size // shape[-1] ** 2
    edge = d - offset
    order = np.arange(edge * (edge + 1) // 2)
    square = np.concatenate([order[edge:], order[::-1]]).reshape(edge, edge)
    rows, columns = np.tril_indices(edge)
    if offset:
        places, logs = columns * d + rows + 1, np.zeros(rows.size, bool)
    else:
        places, logs = rows * d + columns, rows == columns
    by_number = np.argsort(square[rows, columns])
    places, logs = places[by_number], logs[by_number]
    every = np.arange(count)[:, None] * d**2 + places
    return every.reshape(-1), np.tile(logs, count)


@functools.lru_cache(maxsize=256)
def _skeleton(structure: type[AbstractCovariance], k: int, d: int) -> tuple[Any, Any]:
    """The names and shapes of the leaves, and how they make a structure."""
    made = jax.eval_shape(lambda: structure.from_scale(jnp.ones(d), k))
    leaves, tree = jax.tree_util.tree_flatten_with_path(made)
    shapes = tuple((path[0].name, leaf.shape) for path, leaf in leaves)
    if structure.log_scale[0] not in dict(shapes):
        raise ValueError(
            f"the structure {structure.covariance_type!r} has no leaf {structure.log_scale[0]!r}: "
            "set its class variable log_scale to the leaf that holds the scales."
        )
    return shapes, tree


def _sizes(structure: type[AbstractCovariance], k: int, d: int) -> list[int]:
    return [_read(structure, *leaf)[0].size for leaf in _skeleton(structure, k, d)[0]]


def _checked_sizes(n_components: Any, n_features: Any) -> tuple[int, int]:
    k = _checks.check_count(n_components, "n_components")
    return k, _checks.check_count(n_features, "n_features")


def _checked_floor(min_scale: Any, dtype: Any) -> Float[Array, ""]:
    # Most often a Python number, which is also known inside a transformation.
    if not isinstance(min_scale, Tracer) and not 0 < float(min_scale) < math.inf:
        raise ValueError(
            f"min_scale={min_scale!r}; expected a positive number, in the units of the data, such "
            f"as {MIN_SCALE:g} times a feature's deviation."
        )
    return jnp.asarray(min_scale, dtype)
