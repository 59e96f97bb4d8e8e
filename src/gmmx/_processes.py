"""Several processes of `jax.distributed`: what each of them knows, told to all."""

from collections.abc import Sequence

import jax
import numpy as np


def gathered(arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The arrays of each process, in the order of the processes; of equal dtypes and ranks.

    As bytes, so that float64 stays what it is whatever JAX is set to.

    **Raises:** `RuntimeError` where another process has ended.
    """
    shapes = np.concatenate([np.asarray(a.shape, np.int32).ravel() for a in arrays])
    content = np.frombuffer(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays), np.uint8)
    all_shapes = _all(shapes)
    lengths = _all(np.asarray([content.size], np.int32))[:, 0]
    padded = _all(np.pad(content, (0, lengths.max() - content.size)))
    found = []
    for process, length in enumerate(lengths):
        at, part, own = 0, padded[process, :length].tobytes(), []
        dimensions = iter(all_shapes[process].tolist())
        for like in arrays:
            shape = tuple(next(dimensions) for _ in range(like.ndim))
            count = int(np.prod(shape, dtype=int))
            own.append(np.frombuffer(part, like.dtype, count, at).reshape(shape))
            at += count * like.dtype.itemsize
        found.append(own)
    return found


def _all(values: np.ndarray) -> np.ndarray:
    """The values of each process, along a new first axis."""
    from jax.experimental import multihost_utils

    try:
        return np.asarray(multihost_utils.process_allgather(values, tiled=False))
    except jax.errors.JaxRuntimeError as error:
        raise RuntimeError(
            "another process has ended, so this one cannot go on. Start all of them again: with a "
            f"checkpoint the fit resumes. ({str(error).splitlines()[0]})"
        ) from error
