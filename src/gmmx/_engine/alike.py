"""Rows of `Data` in blocks that were observed alike: with the same gaps and the same noise.

What such rows say of u is linear in them, by matrices that are found once for a block and not once
for a row, so that a step costs little more than one over complete rows.
"""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .. import _rows
from .._chunks import chunk_of, fold
from .._components import AbstractComponents
from .._data import Data, Patterns, of_rows
from .._linalg import product
from .form import Form
from .frame import Frame
from .ladder import Ladder, reach
from .moments import Moments
from .observed import FramedMixture, Numbers, narrow
from .rows import AbstractRows, chunks_of, responsibilities
from .way import AbstractWay

# Rows that a block may have, the quickest first; and how many times the rows there may be once
# blocks of so many are filled up.
_BLOCKS = {1024: 1.2, 512: 1.25, 256: 1.3, 128: 1.4, 64: 1.5}
# Numbers of blocks that there are to an octave, as a power of two and one more.
_FINENESS = 4
# Rows to look at, to see that hardly any two are alike.
_SAMPLE = 512


def in_blocks(
    x: Data, weights: Float[Array, " n"] | None
) -> tuple[Data, Float[Array, " m"]] | None:
    """The rows in blocks that were observed alike, filled up by rows of weight zero.

    None where there would be many more rows. On the host: it depends on values.
    """
    deviations, n = np.asarray(x.deviations), x.shape[0]
    some = deviations[np.linspace(0, n - 1, min(n, _SAMPLE)).astype(int)]
    if len(np.unique(some, axis=0)) > len(some) / 2:
        return None
    # By a key for each row, which sorts faster than rows do.
    bits = deviations.astype(np.float64).view(np.uint64)
    factors = np.random.default_rng(0).integers(2**63, size=bits.shape[1], dtype=np.uint64) | 1
    keys = (bits * factors).sum(axis=1, dtype=np.uint64)
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    distinct, which = deviations[first], which.reshape(-1)
    if not np.array_equal(distinct[which], deviations):
        return None
    counts = np.bincount(which, minlength=len(distinct))
    for block, most in _BLOCKS.items():
        blocks = -(-counts // block)
        needed = int(blocks.sum())
        step = 1 << max(0, needed.bit_length() - _FINENESS)
        total = -(-needed // step) * step
        if total * block <= most * n:
            break
    else:
        return None
    starts = np.concatenate([[0], np.cumsum(blocks)[:-1]]) * block
    order = np.argsort(which, kind="stable")
    within = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    places = starts[which[order]] + within
    # A row that fills a block up is a copy of one that is in it.
    source = np.repeat(order[np.cumsum(counts) - counts], blocks * block)
    source = np.concatenate([source, np.full((total - needed) * block, order[0])])
    source[places] = order
    counted = np.zeros(total * block, x.dtype)
    counted[places] = 1 if weights is None else np.asarray(weights)[order]
    of_block = np.concatenate([np.repeat(np.arange(len(distinct)), blocks),
                               np.full(total - needed, which[order[0]])])  # fmt: skip
    moved = of_rows(lambda leaf: jax.device_put(np.asarray(leaf)[source]), x)
    patterns = Patterns(
        jnp.asarray(_rows.fill_rows(distinct)), jax.device_put(of_block.astype(np.int32))
    )
    moved = eqx.tree_at(lambda data: data.patterns, moved, patterns, is_leaf=lambda v: v is None)
    return moved, jax.device_put(counted)


class AlikeRows(AbstractRows):
    """Rows in blocks that were observed alike.

    What a row says of u is linear in it, and for all rows of a block by the same matrices.
    """

    frame: Frame
    reach: Float[Array, " d"]
    x: Data
    log_background: Float[Array, " n"] | None

    @classmethod
    def of(cls, x: Data, weights: Float[Array, " n"] | None, gmm: AbstractComponents) -> Self:
        """The rows, in units of their deviations, for mixtures like this one."""
        points = x.completed(weights)
        frame = Frame.of_data(points, weights, turned=False)
        return cls(frame, reach(frame.apply(points), weights), x, gmm.log_background(x))

    def expect(
        self,
        form: Form,
        weights: Float[Array, " n"] | None,
        ladder: Ladder,
        number: Int[Array, ""],
    ) -> tuple[Moments, Float[Array, ""]]:
        patterns, scale = self.x.patterns, self.frame.root
        assert patterns is not None and scale is not None
        prior, n = FramedMixture.of(form, self.frame), self.x.shape[0]
        size = n // patterns.of_block.size
        maps = Maps.of(prior, patterns.deviations / scale)
        known = self.beside(form, weights)

        def pass_by(way: type[AbstractWay]) -> tuple[Moments, Float[Array, ""]]:
            def block(i: Array | int, present: Array | None) -> PyTree:
                data = of_rows(lambda leaf: chunk_of(leaf, i, size), self.x)
                counted, behind = chunks_of(known, i, size)
                rows = Numbers.of(data, self.frame, len(form.means), behind)
                return maps.at(patterns.of_block[i]).sums(way, form, rows, counted)

            weight, first, scatter, *totals = fold(block, n, size, self.frame.centre)
            moments = Moments(weight, form.times(prior.roots, first), scatter, *totals)
            fixed, seen = jax.lax.stop_gradient((maps, (form, self.reach)))
            sizes = jax.vmap(lambda one: way.size(one.form(seen[0]), seen[1]))(fixed)
            return moments, jnp.max(sizes)

        return ladder.switch(number, pass_by)


class Maps(eqx.Module):
    """What rows of one pattern say under each component; with an axis of patterns before all."""

    white: Float[Array, "*p j d d"]
    """E: the density has the exponent −½‖E(x − μ_k)‖²"""
    back: Float[Array, "*p j d d"]
    """B: the mean of u is BᵀE(x − μ_k)"""
    roots: Float[Array, "*p j d d"]
    """S: the covariance of u is SSᵀ"""
    constant: Float[Array, "*p k"]
    """Of the log-joint"""

    @classmethod
    def of(cls, prior: FramedMixture, deviations: Float[Array, "p d"]) -> Self:
        """By taking in rows that have a one in one place and zeros elsewhere."""
        roots, d = prior.roots, prior.means.shape[1]
        seen = jnp.isfinite(deviations).T
        noise = jnp.where(seen, deviations.T, 1)
        identity = jnp.eye(d, dtype=roots.dtype)

        def take(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            white, gains, root, constant = carry
            h = roots[:, i, :, None]
            root, gain, scale, log_variance = narrow(root, h, noise[i], seen[i])
            error = identity[i][:, None] - jnp.sum(h[:, :, None] * gains, axis=1)
            row = error * scale[:, None]
            white = jax.lax.dynamic_update_index_in_dim(white, row, i, axis=1)
            gains = gains + gain[:, :, None] * error[:, None]
            return white, gains, root, constant - log_variance / 2

        shape = (len(roots), d, d, len(deviations))
        nothing = jnp.zeros(shape, roots.dtype)
        begin = (
            nothing,
            nothing,
            jnp.broadcast_to(identity[:, :, None], shape),
            jnp.zeros((len(roots), len(deviations)), roots.dtype),
        )
        white, _, root, constant = (
            jnp.moveaxis(a, -1, 0) for a in jax.lax.fori_loop(0, d, take, begin)
        )
        # A number is worth what its whitened form is: u has the mean Lᵀ(LLᵀ + C)⁻¹x = (EL)ᵀEx.
        return cls(white, product(white, roots), root, prior.log_weights + constant)

    def at(self, which: Int[Array, ""]) -> Self:
        """Those of one pattern."""
        return jax.tree.map(lambda leaf: leaf[which], self)

    def form(self, form: Form) -> Form:
        """Of one pattern, the mixture of what was observed: E in place of W."""
        return Form(self.constant, form.means, self.white)

    def sums(
        self,
        way: type[AbstractWay],
        form: Form,
        rows: Numbers,
        weights: Float[Array, " n"] | None,
    ) -> tuple[Array, ...]:
        """n_k, Σ z E[u], Σ z E[uuᵀ], Σ log p and the number of samples, of rows of one pattern."""
        observed = self.form(form)
        prepared = way.of(observed)
        terms = prepared.terms(rows.values)
        log_joint = rows.log_joint(prepared.log_joint(terms))
        share, totals = responsibilities(log_joint, weights, len(form.means))
        weight, first, scatter = prepared.moments(prepared.sums(terms, rows.values, share))
        first = form.times(self.back.mT, observed.times(self.white, first))
        scatter = product(product(self.back.mT, scatter), self.back)
        own = jnp.sum(weight, keepdims=True) if form.shared else weight
        within = own[:, None, None] * product(self.roots, self.roots.mT)
        return weight, first, scatter + within, *totals
