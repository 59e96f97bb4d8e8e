"""An array that lies on several devices, as a source: it stays there."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from .._spread import axes_of, spread_of
from .base import AbstractSource, Block


class SpreadSource(AbstractSource):
    """Rows of an array that are spread over devices, one block for all of them."""

    x: Float[Array, "n d"]
    weights: Float[Array, " n"] | None

    def __init__(self, x: Float[Array, "n d"], weights: Any):
        self.x, self.sharding = x, spread_of(x)
        self.weights = None
        if weights is not None:
            assert self.sharding is not None  # of an array that is spread
            rows = NamedSharding(self.sharding.mesh, P(axes_of(self.sharding)))
            self.weights = jax.device_put(weights, rows)

    @property
    def n_features(self) -> int:
        return self.x.shape[1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.x.dtype)

    def blocks(self, n_rows: int) -> Iterator[Block]:
        """The rows on the host, of one device at a time."""
        shards = [shard for shard in self.x.addressable_shards if not shard.replica_id]
        for shard in sorted(shards, key=lambda shard: shard.index[0].start or 0):
            begin, x = shard.index[0].start or 0, np.asarray(shard.data)
            weights = None if self.weights is None else np.asarray(self.weights[shard.index[0]])
            for first in range(0, len(x), n_rows):
                rows = slice(first, first + n_rows)
                some = None if weights is None else weights[rows]
                yield Block(x[rows], some, "x", begin + first)
