"""Rows in chunks that stay in the cache, so that no array of n × K × d is ever built."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, PyTree, Shaped

# Bytes of working set a chunk may take. On a CPU the terms have to stay in the cache between the
# two products that read them; on an accelerator a chunk has to be large enough to fill it.
_CPU_BYTES = 5 * 2**20
_ACCELERATOR_BYTES = 2**28

# Most rows of a chunk on a CPU, where reductions over components wait for memory if rows are
# longer: a fit of d = 2, K = 64 took four times as long without.
_CPU_ROWS = 8192


def rows_per_chunk(n: int, columns: int, itemsize: int, least: int = 256) -> int:
    """How many of n rows to take at once when each needs this many columns of working set.

    At least `least`, below which a chunk's products would not pay for the chunk. A divisor of n
    where there is one nearby, since then no row is visited twice.
    """
    on_cpu = jax.default_backend() == "cpu"
    budget = _CPU_BYTES if on_cpu else _ACCELERATOR_BYTES
    rows = max(least, budget // (columns * itemsize))
    rows = min(rows, _CPU_ROWS) if on_cpu else rows
    if n <= 1.5 * rows:
        return n
    for candidate in range(rows, rows // 2, -1):
        if n % candidate == 0:
            return candidate
    return rows


def chunk_of(a: Array, i: Array | int, rows: int, axis: int = 0) -> Array:
    """The i-th chunk of rows, along `axis`. The last one reaches back over the one before it.

    So data are never copied to be padded.
    """
    n = a.shape[axis]
    if rows == n:
        return a
    return jax.lax.dynamic_slice_in_dim(a, jnp.minimum(i * rows, n - rows), rows, axis)


def fold(
    fn: Callable[[Array | int, Float[Array, " r"] | None], PyTree], n: int, rows: int, like: Array
) -> PyTree:
    """Σ over chunks i of `fn(i, present)`.

    `present` is zero where `chunk_of` gives rows that were seen already and one elsewhere, and
    None where all rows are new in every chunk.

    **Arguments:**

    - `like`: an array of the rows' dtype, which varies over devices where the rows do.
    """
    if rows == n:
        return fn(0, None)

    # A derivative takes each chunk again, rather than keep what all of them held.
    @jax.checkpoint
    def chunk(i: Array) -> PyTree:
        present = None
        if n % rows:
            present = (jnp.arange(rows, dtype=i.dtype) >= i * rows - (n - rows)).astype(like.dtype)
        return fn(i, present)

    shapes = jax.eval_shape(chunk, jnp.zeros((), jnp.int32))
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    count = -(-n // rows)
    return jax.lax.fori_loop(
        0, count, lambda i, total: jax.tree.map(jnp.add, total, chunk(i)), varying(nothing, like)
    )


def varying(tree: PyTree, like: PyTree) -> PyTree:
    """The arrays of a tree, marked as different on each device where those of `like` are.

    Inside `shard_map` a loop must carry what it began with, also in this respect; a constant is
    the same on all devices, what is computed from the data is not.
    """
    axes: set = set().union(*map(_axes_of, jax.tree.leaves(like)))

    def mark(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        missing = tuple(axes - _axes_of(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree) if axes else tree


def _axes_of(leaf: Any) -> set[str]:
    """The mesh axes over which an array differs; none where this version of JAX does not say."""
    kind = jax.typeof(leaf) if hasattr(jax, "typeof") else None
    kind = getattr(kind, "manual_axis_type", None)
    return set() if kind is None else set(kind.varying)


def map_rows(
    fn: Callable[[PyTree], PyTree], arrays: PyTree[Shaped[Array, "n ..."]], rows: int
) -> PyTree:
    """`fn` over all rows, chunk by chunk, its outputs joined along the first axis."""
    n = jax.tree.leaves(arrays)[0].shape[0]
    if rows == n:
        return fn(arrays)
    count = -(-n // rows)

    def chunks(a: Array) -> Array:
        if n % rows:
            a = jnp.pad(a, [(0, count * rows - n)] + [(0, 0)] * (a.ndim - 1), mode="edge")
        return a.reshape(count, rows, *a.shape[1:])

    mapped = jax.lax.map(fn, jax.tree.map(chunks, arrays))
    return jax.tree.map(lambda leaf: leaf.reshape(count * rows, *leaf.shape[2:])[:n], mapped)


def in_batches(
    fn: Callable[[PyTree], PyTree], columns: int, itemsize: int
) -> Callable[[PyTree], PyTree]:
    """`fn`, whose `vmap` over very many goes in batches that stay in the cache.

    One call has a working set of this many columns. A loop in `fn` then ends with the last of its
    batch, not with the last of all.
    """

    @custom_vmap
    def call(arguments: PyTree) -> PyTree:
        return fn(arguments)

    @call.def_vmap
    def _(size: int, in_batched: list[PyTree], arguments: PyTree) -> tuple[PyTree, PyTree]:
        batched = in_batched[0]
        many = jax.vmap(fn, in_axes=(jax.tree.map(lambda b: 0 if b else None, batched),))
        rows = rows_per_chunk(size, columns, itemsize, least=1)
        if rows == size:
            found = many(arguments)
        else:
            count = -(-size // rows)
            index = jnp.minimum(jnp.arange(count * rows), size - 1).reshape(count, rows)
            found = jax.lax.map(
                lambda i: many(jax.tree.map(lambda a, b: a[i] if b else a, arguments, batched)),
                index,
            )
            found = jax.tree.map(lambda a: a.reshape(count * rows, *a.shape[2:])[:size], found)
        return found, jax.tree.map(lambda _: True, found)

    return call
