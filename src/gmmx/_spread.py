"""Arrays whose rows lie on several devices: what is computed of each row stays there."""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def spread_of(x: Any) -> NamedSharding | None:
    """How the rows of an array are spread over devices; None where they are not, or otherwise."""
    if not isinstance(x, jax.Array) or isinstance(x, Tracer):
        return None
    sharding = x.sharding
    if not isinstance(sharding, NamedSharding) or len(sharding.device_set) == 1:
        return None
    spec = tuple(sharding.spec)
    rows, others = spec[:1], spec[1:]
    if not rows or rows[0] is None or any(axis is not None for axis in others):
        return None
    return sharding


def axes_of(sharding: NamedSharding) -> tuple[str, ...]:
    """The names of the axes of the mesh along which rows are spread."""
    axes = sharding.spec[0]
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def n_devices(sharding: NamedSharding | None) -> int:
    """Over how many devices rows are spread."""
    if sharding is None:
        return 1
    n = 1
    for axis in axes_of(sharding):
        n *= sharding.mesh.shape[axis]
    return n


def on_each(fn: Callable[..., Any], sharding: NamedSharding, n_known: int, out: Any) -> Any:
    """`fn(*known, *rows)` on each device, with its own rows (`shard_map`).

    **Arguments:**

    - `n_known`: how many arguments all devices have alike.
    - `out`: the specification of what comes out.
    """
    # In `jax.experimental` before JAX 0.6.
    place: Any = jax
    if not hasattr(jax, "shard_map"):
        from jax.experimental import shard_map as place
    rows = P(axes_of(sharding))

    def call(*arguments: Any) -> Any:
        specs = (P(),) * n_known + (rows,) * (len(arguments) - n_known)
        mapped = place.shard_map(fn, mesh=sharding.mesh, in_specs=specs, out_specs=out)
        return mapped(*arguments)

    return call
