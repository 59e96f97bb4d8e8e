"""Checkpoints: a fit that was killed resumes, and its result is the same."""

import dataclasses
import functools
import hashlib
import json
import os
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from .._abstract_mixture import AbstractMixture
from .._checks import as_key
from .._data import Samples
from .._files import FileError, from_json, read_tensors, write_tensors
from .result import FitWarning
from .state import FitState

_FORMAT = "gmmx.Checkpoint"
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a fit keeps its state, so that the same call resumes it.

    `fitter.fit(x, gmm, checkpoint=gmmx.Checkpoint("fit.ckpt"))` starts a fit and writes its whole
    state to the file at intervals. After a kill the same call resumes from the file, and the
    result is the same to the last bit. After the end of the fit the same call returns its result;
    with a larger `max_iter` it continues, and with one below the steps made it raises. To start
    again, delete the file.

    **Arguments:**

    - `path`: the file, in safetensors. It is replaced as a whole or not at all.
    - `every`: minimum number of seconds between two writes. The state is also written at the
        beginning and the end of the fit, and at Ctrl-C.
    """

    path: str | os.PathLike[str]
    every: float = 60.0

    def __post_init__(self):
        if not self.every >= 0:
            raise ValueError(f"every={self.every!r}; expected a number of seconds.")


class Journal:
    """The checkpoint of one fit. Without a `Checkpoint` it does nothing."""

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        fitter: eqx.Module,
        x: Samples | str,
        gmm: AbstractMixture,
        weights: Array | None,
        key: PRNGKeyArray | None,
    ):
        self.partial: dict[str, np.ndarray] = {}
        """What the file holds of a pass over rows that was not over"""
        self.reads_only = False
        """Whether another process writes the file"""
        self._checkpoint = checkpoint
        if checkpoint is None:
            return
        self._identity = {
            "fitter": _describe(fitter),
            "x": _identity(x),
            "start": [gmm.covariance_type, *map(_digest, jax.tree.leaves(gmm))],
            "weights": None if weights is None else _digest(weights),
            "key": _digest(as_key(key)),
        }
        self._last = time.monotonic()

    def __bool__(self) -> bool:
        return self._checkpoint is not None

    def resume(self, like: FitState, limit: int) -> tuple[FitState, list[np.ndarray]] | None:
        """The state and the likelihoods up to it; None if nothing has been written yet.

        **Arguments:**

        - `like`: a state of the same fit.
        - `limit`: the fit's `max_iter`.

        **Raises:** `FileError` where the file is of another fit, or of none, or of one that has
        made more steps than `limit`.
        """
        if self._checkpoint is None or not Path(self._checkpoint.path).exists():
            return None
        path = self._checkpoint.path
        arrays, metadata = read_tensors(path, _FORMAT, _VERSION, oldest=_VERSION)
        _check_same(path, from_json(path, metadata, "identity"), self._identity)
        history = arrays.pop("history", None)
        self.partial = {name: arrays.pop(name) for name in [*arrays] if name.startswith("pass.")}
        leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
        wanted = {_name(at): leaf for at, leaf in leaves if _is_stored(leaf)}
        if history is None or wanted.keys() != arrays.keys():
            raise _of_another_version(path, metadata)
        filled = []
        for at, leaf in leaves:
            if _is_stored(leaf):
                leaf = _decode(arrays[_name(at)], leaf)
            if leaf is None:
                raise _of_another_version(path, metadata)
            filled.append(leaf)
        state = jax.tree_util.tree_unflatten(treedef, filled)
        if history.shape != (int(state.n_iter) + 1, *state.log_likelihood.shape):
            raise FileError(path, "its trace and its number of steps do not agree. Delete it.")
        if state.n_iter > limit:
            raise FileError(
                path,
                f"its fit has made {int(state.n_iter)} steps, more than max_iter={limit}. Raise "
                "max_iter, or give another path to fit from the start.",
            )
        return state, [history]

    def begin(self, state: FitState) -> None:
        """Write the first state, so that a path that cannot be written fails before the fit."""
        if self._checkpoint is not None:
            self._write(state, [])

    def keep(
        self,
        state: FitState,
        blocks: Sequence[np.ndarray],
        partial: Callable[[], Mapping[str, np.ndarray]] = dict,
    ) -> None:
        """Write the state if the last write was long ago.

        **Arguments:**

        - `partial`: gives what is known of a pass over rows that is not over.
        """
        if self._checkpoint is not None and (
            time.monotonic() - self._last >= self._checkpoint.every
        ):
            self.end(state, blocks, partial())

    def end(
        self,
        state: FitState,
        blocks: Sequence[np.ndarray],
        partial: Mapping[str, np.ndarray] = types.MappingProxyType({}),
    ) -> None:
        """Write the state. A full disk does not end a fit: it warns."""
        if self._checkpoint is None:
            return
        try:
            self._write(state, blocks, partial)
        except OSError as error:
            warnings.warn(f"the checkpoint was not written: {error}", FitWarning, stacklevel=4)

    def _write(
        self,
        state: FitState,
        blocks: Sequence[np.ndarray],
        partial: Mapping[str, np.ndarray] = types.MappingProxyType({}),
    ) -> None:
        assert self._checkpoint is not None
        if self.reads_only:
            return
        leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(state, eqx.is_array))
        arrays = {_name(at): _encode(leaf) for at, leaf in leaves} | dict(partial)
        empty = np.zeros((0, *state.log_likelihood.shape), state.log_likelihood.dtype)
        arrays["history"] = np.concatenate([empty, *blocks])
        metadata = {
            "format": _FORMAT,
            "format_version": str(_VERSION),
            "gmmx_version": version("gmmx"),
            "identity": json.dumps(self._identity),
        }
        write_tensors(self._checkpoint.path, arrays, metadata)
        self._last = time.monotonic()


# Leaves of a state


def _name(at: tuple[Any, ...]) -> str:
    return "state" + jax.tree_util.keystr(at)


def _is_stored(leaf: Any) -> bool:
    return eqx.is_array(leaf)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _encode(leaf: Array | np.ndarray) -> np.ndarray:
    """A leaf as an array of a dtype that NumPy itself has."""
    value = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    # bfloat16 and its like, which an optimiser may keep its averages in, as their bytes.
    return value[..., None].view(np.uint8) if value.dtype.kind == "V" else value


def _decode(value: np.ndarray, like: Array) -> Array | None:
    """The leaf; None where it is not such a one."""
    if _is_key(like):
        impl = jax.random.key_impl(like)
        wanted = jax.eval_shape(jax.random.key_data, like)
        if not _fits(value, wanted):
            return None
        return jax.random.wrap_key_data(jnp.asarray(value), impl=impl)
    if like.dtype.kind == "V" and value.dtype == np.uint8:
        value = value.view(like.dtype)[..., 0]
    return jax.device_put(value) if _fits(value, like) else None


def _fits(value: np.ndarray, like: Any) -> bool:
    return value.shape == like.shape and value.dtype == like.dtype


def _of_another_version(path: Any, metadata: Mapping[str, str]) -> FileError:
    writer = metadata.get("gmmx_version", "an unknown version")[:40]
    return FileError(
        path,
        f"its state, written by gmmx {writer}, does not fit this fitter. Resume with the versions "
        "of gmmx and Optax that started the fit, or delete the file to start again.",
    )


# The identity of a fit


def _identity(x: Samples | str) -> Any:
    """Of all that is known of the rows; of a source what it is told by."""
    if isinstance(x, str | jax.Array):
        return x if isinstance(x, str) else _digest(x)
    found = jax.tree_util.tree_leaves_with_path(x)
    return [f"{jax.tree_util.keystr(at)} {_digest(leaf)}" for at, leaf in found]


def _digest(value: Array | np.ndarray) -> str:
    """Dtype, shape and a hash of all bytes: less work than one step of the fit."""
    array = np.ascontiguousarray(_encode(value))
    short = hashlib.blake2b(array.data, digest_size=12).hexdigest()
    return f"{value.dtype} {value.shape} {short}"


def _check_same(path: Any, kept: Any, now: Mapping[str, Any]) -> None:
    """Refuse to resume with other data or other settings."""
    if not isinstance(kept, dict):
        raise FileError(path, "its header's 'identity' is damaged.")
    # Through JSON, as what was kept has gone.
    now = json.loads(json.dumps(now))
    if kept == now:
        return
    causes = []
    old, new = kept.get("fitter"), now["fitter"]
    if isinstance(old, dict) and old != new:
        names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
        causes += [f"{name} was {_brief(old.get(name))}, is {_brief(new.get(name))}"
                   for name in names]  # fmt: skip
    told = {
        "x": "the data", "start": "the starting mixture", "weights": "the sample weights",
        "key": "the key",
    }  # fmt: skip
    causes += [f"{label} differ" for name, label in told.items() if kept.get(name) != now[name]]
    raise FileError(
        path,
        f"it is the checkpoint of another fit ({'; '.join(causes)}). To resume that fit, call fit "
        "with its original arguments. To start again, delete the file or give another path.",
    )


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _describe(value: Any, above: tuple[int, ...] = ()) -> Any:
    """The settings of a fitter as JSON, the same in every process.

    Optax's optimisers are functions that hold their settings in closures, so closures are
    described too.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.ndarray | jax.Array) and value.shape:
        return _digest(value)
    if isinstance(value, int) and abs(value) > 2**53:
        return repr(value)
    if isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        # As 40 is 40.0: Optax's schedules make the one the other as they first run.
        return repr(complex(value)) if np.iscomplexobj(value) else repr(float(value))
    if id(value) in above:
        return "itself"
    within = functools.partial(_describe, above=(*above, id(value)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: within(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"fitter": _name_of(type(value)), **fields}
    if isinstance(value, Mapping):
        return {str(name): within(item) for name, item in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(str(within(item)) for item in value)
    if isinstance(value, Sequence):
        return [within(item) for item in value]
    if isinstance(value, functools.partial):
        return [within(value.func), within(value.args), within(value.keywords)]
    if isinstance(value, types.MethodType):
        return [within(value.__func__), within(value.__self__)]
    if isinstance(value, types.FunctionType):
        return _describe_function(value, within)
    if isinstance(value, type | types.ModuleType):
        return _name_of(value)
    # What is left: functions of other kinds, as of jit or NumPy, and objects of classes.
    inner = getattr(value, "__wrapped__", None)
    held = {} if inner is not None else getattr(value, "__dict__", {})
    return [_name_of(type(value)), _name_of(value), within(inner), within(held)]


def _describe_function(function: types.FunctionType, within: Any) -> Any:
    body = json.dumps(_describe_code(function.__code__, within)).encode()
    short = hashlib.blake2b(body, digest_size=6).hexdigest()
    defaults = [*(function.__defaults__ or ()), function.__kwdefaults__]
    held = [*defaults, *map(_content, function.__closure__ or ()), _global_data(function)]
    return [f"{_name_of(function)} {short}", *map(within, held)]


def _global_data(function: types.FunctionType) -> dict[str, Any]:
    """The numbers, texts and arrays among the globals that a function reads."""
    data = (int, float, str, np.number, np.ndarray, jax.Array)
    read = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {name: value for name, value in read.items() if isinstance(value, data)}


def _describe_code(code: types.CodeType, within: Any) -> Any:
    """The instructions, with the names and constants that they refer to by number."""
    constants = [
        _describe_code(c, within) if isinstance(c, types.CodeType) else within(c)
        for c in code.co_consts
    ]
    return [code.co_code.hex(), code.co_names, code.co_varnames, constants]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty as yet
        return None


def _name_of(value: Any) -> str | None:
    """Of a class, function or module; None for an object without a name."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return name and f"{getattr(value, '__module__', None)}.{name}"
