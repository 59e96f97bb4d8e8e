"""Log-densities of many rows."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree

from .. import _checks
from .._chunks import map_rows, varying
from .._components import AbstractComponents
from .._data import Data, Samples, check_components
from .._programs import Program
from .._rows import cut, fill_rows, size
from .._sources.base import AbstractSource, ahead, checked, filled
from .._spread import axes_of, n_devices, on_each, spread_of
from . import observed
from .form import Form
from .frame import Frame
from .ladder import Ladder, reach
from .packed import Packed
from .rows import with_row
from .way import AbstractWay
from .whitened import log_joint_at

Reduce = Callable[[Float[Array, "k n"]], PyTree]
"""A function of log-joints, component by component and row by row, that puts rows first"""

# Of a block of rows of a source.
_NUMBERS = 2**20


def log_prob_of(log_joint: Float[Array, "k n"]) -> Float[Array, " n"]:
    """log Σ_k w_k N(x; μ_k, Σ_k)"""
    return jax.nn.logsumexp(log_joint, axis=0)


def log_joint_of(log_joint: Float[Array, "k n"]) -> Float[Array, "n k"]:
    """log w_k N(x; μ_k, Σ_k)"""
    return log_joint.T


def responsibilities_of(log_joint: Float[Array, "k n"]) -> Float[Array, "n k"]:
    """p(k | x)"""
    return jax.nn.softmax(log_joint, axis=0).T


def labels_of(log_joint: Float[Array, "k n"]) -> Int[Array, " n"]:
    """The most probable component; −1 where the density is NaN."""
    # The first place of the largest value, found by two reductions that vectorise, where those of
    # `jnp.argmax` do not. With a few units in the last place to spare: a compiler may compute the
    # log-joints again, and round them otherwise. NaN is not at least anything.
    k = log_joint.shape[0]
    largest = jnp.max(log_joint, axis=0)
    least = largest - 4 * float(jnp.finfo(largest.dtype).eps) * jnp.abs(largest)
    place = jnp.where(log_joint >= least, jnp.arange(k, dtype=jnp.int32)[:, None], k)
    first = jnp.min(place, axis=0)
    return jnp.where(first == k, -1, first)


def uncertainty_of(log_joint: Float[Array, "k n"]) -> Float[Array, " n"]:
    """1 − max_k p(k | x), as the sum of the others: of a small one no digit is lost."""
    others = jnp.arange(log_joint.shape[0])[:, None] != jnp.argmax(log_joint, axis=0)
    return jnp.sum(jnp.where(others, jax.nn.softmax(log_joint, axis=0), 0), axis=0)


def evaluate(gmm: AbstractComponents, x: Samples, reduce: Reduce) -> PyTree:
    """`reduce` of log w_k N(x_i; μ_k, Σ_k), without holding n × K × d numbers.

    From Python one program is called, compiled for few sizes of x; inside a transformation it is
    a plain function.

    **Raises:** `ValueError` where Python sees that x is not finite.
    """
    if isinstance(x, Data):
        return observed.evaluate(gmm, x, reduce)
    sharding = spread_of(x)
    ladder = Ladder.of(gmm, x.shape[0] // n_devices(sharding), products=1)
    if not _checks.is_concrete(gmm, x):
        return traced(gmm, x, reduce, ladder)
    filled = fill_rows(x)
    program = _program.at(filled.size * gmm.means.size)
    values, bad = program(gmm, filled, reduce, ladder.only(0), sharding)
    for number in range(1, len(ladder.ways)):
        if bad:
            _checks.check_finite(x, "x", _checks.DROP_OR_TAKE)
            values, bad = program(gmm, filled, reduce, ladder.only(number), sharding)
    if bad:
        _checks.check_finite(x, "x", _checks.DROP_OR_TAKE)
    return cut(values, x.shape[0])


def at_blocks(
    gmm: AbstractComponents, source: AbstractSource, reduce: Reduce
) -> Iterator[tuple[PyTree, np.ndarray]]:
    """`evaluate` of the rows of a source, block by block in NumPy, and the weights of the rows."""
    if source.n_features != gmm.n_features:
        raise ValueError(
            f"the rows have {source.n_features} features, but the mixture has {gmm.n_features}."
        )
    floating = source.dtype if source.dtype.kind == "f" else jnp.float32
    dtype = jax.dtypes.canonicalize_dtype(_checks.promote(floating, gmm.dtype))
    gmm = _checks.in_dtype(gmm, dtype)
    n_rows = max(1, _NUMBERS // source.n_features)
    for x, weights, n in ahead(filled(checked(source, n_rows, dtype), n_rows, dtype)):
        # All of one size, but for the last.
        values = evaluate(gmm, jax.device_put(x[: size(n)]), reduce)
        yield jax.tree.map(lambda leaf: np.asarray(leaf)[:n], values), weights[:n]  # noqa: B023


def at_points(gmm: AbstractComponents, x: Any, reduce: Reduce) -> PyTree:
    """`evaluate` at what a caller gives: points `(*batch, d)` of any dtype, `Data` or a source."""
    if isinstance(x, AbstractSource):
        found = [values for values, _ in at_blocks(gmm, x, reduce)]
        return jax.tree.map(lambda *parts: jax.device_put(np.concatenate(parts)), *found)
    if isinstance(x, Data):
        check_components(x, gmm.n_labels, gmm.n_features)
        gmm, x = _checks.same_dtype(gmm, x)
        return evaluate(gmm, x, reduce)
    x = _checks.as_points(x, gmm.n_features, gmm.dtype)
    batch = x.shape[:-1]
    rows = x if len(batch) == 1 else x.reshape(-1, gmm.n_features)
    values = evaluate(_checks.in_dtype(gmm, x.dtype), rows, reduce)
    if len(batch) == 1:
        return values
    return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), values)


@partial(Program, jit=partial(jax.jit, static_argnames=("reduce", "ladder", "sharding")))
def _program(gmm, x, reduce, ladder, sharding):
    """The values by the one way of the ladder, and whether it was not accurate or x not finite."""

    def own(gmm: AbstractComponents, x: Array) -> tuple[PyTree, Array]:
        first = jnp.asarray(ladder.first, jnp.int32)
        values, cancelled = by_way(gmm, x, reduce, ladder, first)
        return values, ~(jnp.all(jnp.isfinite(x)) & (cancelled <= 1))

    if sharding is None:
        return own(gmm, x)
    axes = axes_of(sharding)

    def on_one(gmm: AbstractComponents, x: Array) -> tuple[PyTree, Array]:
        values, bad = own(gmm, x)
        return values, jax.lax.psum(bad.astype(jnp.int32), axes) > 0

    return on_each(on_one, sharding, 1, (P(axes), P()))(gmm, x)


def traced(
    gmm: AbstractComponents, x: Float[Array, "n d"], reduce: Reduce, ladder: Ladder
) -> PyTree:
    """The values where nobody can look at sizes: by the fastest way, or by one always accurate."""
    if x.shape[0] == 1 and gmm.structure.n_latent is None:
        # One point, as in a sampler or under `vmap`: nothing to choose, and nothing to keep.
        log_joint = log_joint_at(gmm, x[0])[:, None]
        return reduce(with_row(log_joint, gmm.background_log_joint(x)))
    ladder = ladder.ends()
    frame = _frame(ladder.ways[0], gmm)
    # A pass over the rows that a single way does not need.
    far = frame.centre if len(ladder.ways) == 1 else reach(frame.apply(x))
    return by_way(gmm, x, reduce, ladder, ladder.choose(Form.of(gmm, frame), far))[0]


def by_way(
    gmm: AbstractComponents,
    x: Samples,
    reduce: Reduce,
    ladder: Ladder,
    number: Int[Array, ""],
) -> tuple[PyTree, Float[Array, ""]]:
    """The values by one way of the ladder, and the size of what cancels in it, see `AbstractWay`.

    A gradient keeps the n × K log-joints and computes everything else again, chunk by chunk.
    """
    if isinstance(x, Data):
        return observed.evaluate(gmm, x, reduce), varying(jnp.zeros((), x.dtype), (gmm, x))

    def pass_by(way: type[AbstractWay]) -> tuple[PyTree, Float[Array, ""]]:
        frame = _frame(way, gmm)
        form = Form.of(gmm, frame)
        prepared = way.of(form)

        @jax.checkpoint
        def log_joint(rows: Float[Array, "r d"]) -> Float[Array, "l r"]:
            log_joint = prepared.log_joint(prepared.terms(frame.apply(rows).T))
            return with_row(log_joint, gmm.background_log_joint(rows))

        def chunk(rows: Float[Array, "r d"]) -> PyTree:
            return jax.checkpoint(reduce)(log_joint(rows))

        n = x.shape[0]
        values = map_rows(chunk, x, ladder.rows(way, n, x.dtype))
        if way.sure:
            return values, varying(jnp.zeros((), x.dtype), (gmm, x))
        fixed, rows = jax.lax.stop_gradient((form, x))
        return values, way.size(fixed, reach(frame.apply(rows)))

    return ladder.switch(number, pass_by)


def _frame(way: type[AbstractWay], gmm: AbstractComponents) -> Frame:
    """The frame of the model that a way needs; one that is always accurate needs none."""
    if way.sure:
        return Frame(jnp.zeros_like(gmm.means[0]), None, None)
    turned = way is Packed and not type(gmm.structure).axis_aligned
    return Frame.of_model(gmm, turned)
