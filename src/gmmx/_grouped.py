"""Products of rows with the matrix of each row's group, at the cost of one matrix a row."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._linalg import einsum

# Rows of a block, which share a matrix product. The last block of a group is partly empty: larger
# blocks waste more, smaller ones read the matrices more often.
_BLOCK = 128


def grouped_product(
    x: Float[Array, "n m"], matrices: Float[Array, "k d m"], labels: Int[Array, " n"]
) -> Float[Array, "n d"]:
    """M_k x for each row x of group k.

    The rows are sorted into blocks of one group each. There are at most n/b + K blocks of b rows,
    whatever the labels, so shapes are static and no matrix is gathered row by row.
    """
    n, k = x.shape[0], matrices.shape[0]
    if n <= _BLOCK:
        return einsum("nm,ndm->nd", x, matrices[labels])
    count = jnp.bincount(labels, length=k)
    n_blocks = -(-count // _BLOCK)
    last_row, last_block = jnp.cumsum(count), jnp.cumsum(n_blocks)
    order = jnp.argsort(labels)
    group = labels[order]
    rank = jnp.arange(n) - (last_row - count)[group]
    slot = ((last_block - n_blocks)[group] * _BLOCK + rank).astype(order.dtype)
    most = n // _BLOCK + k
    blocks = jnp.zeros((most * _BLOCK, x.shape[1]), x.dtype).at[slot].set(x[order])
    owner = jnp.searchsorted(last_block, jnp.arange(most), side="right")
    owner = jnp.minimum(owner, k - 1)
    blocks = einsum("bnm,bdm->bnd", blocks.reshape(most, _BLOCK, -1), matrices[owner])
    back = jnp.zeros_like(slot).at[order].set(slot)
    return blocks.reshape(most * _BLOCK, -1)[back]
