"""Rows in chunks that stay in the cache, so that no array of n × K × d is ever built."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, PyTree

# Bytes of working set a chunk may take. On a CPU the features have to stay in the cache between
# the two products that read them; on an accelerator a chunk has to be large enough to fill it.
_CPU_BYTES = 5 * 2**20
_ACCELERATOR_BYTES = 2**28

# Bytes that a fit may take beside its data, to keep what its steps would make anew each time.
_KEPT_BYTES = 2**27


def rows_per_chunk(
    n: int, columns: int, itemsize: int, least: int = 256, most: int | None = None
) -> int:
    """How many of n rows to take at once when each needs this many columns of working set.

    Not fewer than `least`, below which a chunk's products would not pay for the chunk, and on a CPU
    not many more than `most`.

    A divisor of n where there is one nearby, since then no row is padded or visited twice.
    """
    on_cpu = jax.default_backend() == "cpu"
    budget = _CPU_BYTES if on_cpu else _ACCELERATOR_BYTES
    rows = max(least, budget // (columns * itemsize))
    if on_cpu and most is not None:
        rows = min(rows, most)
    if n <= 1.5 * rows:
        return n
    for candidate in range(rows, rows // 2, -1):
        if n % candidate == 0:
            return candidate
    return rows


def worth_keeping(n: int, columns: int, itemsize: int) -> bool:
    """Whether so many columns of all n rows may stay in memory for the length of a fit."""
    return n * columns * itemsize <= _KEPT_BYTES


def zeros_like_of(fn: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    """Zeros of the shapes that `fn` returns."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fn, *arguments))


def chunk_of(a: Float[Array, "n ..."], i: Array, rows: int) -> Float[Array, "r ..."]:
    """The i-th chunk of rows. The last one reaches back over rows of the one before it.

    So the data are never copied to be padded.
    """
    return jax.lax.dynamic_slice_in_dim(a, jnp.minimum(i * rows, a.shape[0] - rows), rows)


def fold(
    fn: Callable[[PyTree, Float[Array, " r"] | None, PyTree], PyTree],
    arrays: PyTree[Float[Array, "n ..."]],
    per_chunk: PyTree,
    rows: int,
) -> PyTree:
    """Σ over chunks of `fn(arrays of the chunk, present, per_chunk[i])`.

    `present` is zero where `chunk_of` gives rows that were seen already and one elsewhere, and
    None where all rows are new in every chunk.
    """
    first = jax.tree.leaves(arrays)[0]
    n = first.shape[0]
    if rows == n:
        return fn(arrays, None, jax.tree.map(lambda leaf: leaf[0], per_chunk))

    # A derivative takes each chunk again, rather than keep what all of them held.
    @jax.checkpoint
    def chunk(i: Array) -> PyTree:
        block = jax.tree.map(lambda a: chunk_of(a, i, rows), arrays)
        present = None
        if n % rows:
            present = (jnp.arange(rows) >= i * rows - (n - rows)).astype(first.dtype)
        return fn(block, present, jax.tree.map(lambda leaf: leaf[i], per_chunk))

    return jax.lax.fori_loop(
        0,
        -(-n // rows),
        lambda i, total: jax.tree.map(jnp.add, total, chunk(i)),
        zeros_like_of(chunk, 0),
    )


def map_rows(
    fn: Callable[[PyTree], PyTree], arrays: PyTree[Float[Array, "n ..."]], rows: int
) -> PyTree:
    """`fn` over all rows, chunk by chunk, its outputs put together along the first axis."""
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
    """`fn`, of which a `vmap` over very many is made in batches that stay in the cache.

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
