"""Many fits to samples like the one in hand, in blocks of one compiled program."""

import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .. import _checks
from .._chunks import rows_per_chunk
from .._data import Data, Samples
from .._fit.base import AbstractFitter
from .._fit.restarts import Restarts
from .._fit.result import FitWarning
from .._programs import Program


def replicate(
    program: Program, n: int, x: Any, n_components: int, key: PRNGKeyArray, *arguments: Any
) -> PyTree:
    """`program(numbers, key, *arguments)` of the numbers 0 to n − 1, joined.

    A block is as many fits to rows like x as stay in the cache. All blocks are of one size, so that
    they share a program. Ctrl-C ends with the blocks that are done.

    **Arguments:**

    - `x`: the rows, or what has their shape and dtype.
    """
    each = rows_per_chunk(n, 2 * x.size * n_components, x.dtype.itemsize, least=1)
    each = -(-n // -(-n // each))
    run = program.at(each * x.size * n_components * x.shape[1])
    found = []
    try:
        for start in range(0, n, each):
            numbers = jax.device_put(np.arange(start, start + each, dtype=np.int32))
            found.append(jax.device_get(run(numbers, key, *arguments)))
    except KeyboardInterrupt:
        if not found:
            raise
        warnings.warn(
            f"interrupted after {len(found) * each} of {n} samples.", FitWarning, stacklevel=3
        )
    return jax.tree.map(lambda *parts: jax.device_put(np.concatenate(parts)[:n]), *found)


def sample_size(x: Samples, counts: Float[Array, " n"] | None) -> int:
    """How many samples the rows stand for: the sum of the weights."""
    total = x.shape[0] if counts is None else float(np.sum(np.asarray(counts, np.float64)))
    if round(total) < 1:
        raise ValueError(
            f"weights have a sum of {total:g}; expected the number of samples, at least one: they "
            "say how often each sample counts."
        )
    return round(total)


def present(n: Int[Array, ""], size: int, dtype: Any) -> Float[Array, " size"]:
    """One for the first n of the rows, and zero for what fills them up."""
    return (jnp.arange(size, dtype=n.dtype) < n).astype(dtype)


def check_concrete(name: str, *values: Any) -> None:
    """Refuse what is traced, where Python has to see values."""
    if not _checks.is_concrete(*values):
        raise ValueError(f"{name} looks at values, so it cannot stand inside jit, vmap or grad.")


def check_fitter(fitter: AbstractFitter, name: str) -> None:
    """Refuse a fitter of several starts."""
    if isinstance(fitter, Restarts):
        raise ValueError(
            f"fitter is a Restarts; {name} makes the starts itself. Pass the fitter inside it."
        )


def check_drawn(x: Any, fix: str) -> None:
    """Refuse rows that cannot be drawn from a mixture."""
    if isinstance(x, Data):
        raise ValueError(
            "x is a gmmx.Data, whose rows, with their noise and their gaps, cannot be drawn from a "
            f"mixture; expected an array (n, d). {fix}"
        )


def check_numbers(n_components: int | Iterable[int]) -> list[int]:
    """The numbers of components to test."""
    numbers = [n_components] if isinstance(n_components, int) else list(n_components)
    if not numbers:
        raise ValueError("n_components is empty: name at least one number, or range(1, 6).")
    return [_checks.check_count(k, "n_components") for k in numbers]
