"""Rows of a fit, and the E-step over them."""

import abc
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._chunks import chunk_of, fold, varying
from .._components import AbstractComponents
from .._reductions import largest, total
from .form import Form
from .frame import Frame, times
from .ladder import Ladder, fourth_powers, reach, reach_of
from .moments import Moments
from .packed import Packed
from .summary import Summary
from .way import AbstractWay

# Bytes that a fit may take beside its data, to keep what its steps would compute again.
_KEPT_BYTES = 2**27


class AbstractRows(eqx.Module):
    """The rows of a fit, as its steps take them."""

    frame: eqx.AbstractVar[Frame]
    """In which the rows are close to isotropic"""
    reach: eqx.AbstractVar[Float[Array, " d"]]
    """How far they lie from the origin of the frame"""
    x: eqx.AbstractVar[Any]
    """The rows as they came, where they are read anew in each step"""
    log_background: eqx.AbstractVar[Float[Array, " n"] | None]
    """log b(x_i) of a background; None without one"""

    @abc.abstractmethod
    def expect(
        self,
        form: Form,
        weights: Float[Array, " n"] | None,
        ladder: Ladder,
        number: Int[Array, ""],
    ) -> tuple[Moments, Float[Array, ""]]:
        """The E-step: moments by one way of the ladder, and the size of what cancels in it.

        Where that is above one, or NaN, the moments are not accurate.

        **Arguments:**

        - `form`: the model in the frame of the rows.
        """

    def beside(self, form: Form, weights: Float[Array, " n"] | None) -> tuple[Array | None, ...]:
        """What the E-step reads of each row beside its values: weights, and log w_0 b(x_i)."""
        background = self.log_background
        if background is None or form.log_background_weight is None:
            return weights, None
        return weights, background + form.log_background_weight


class Rows(AbstractRows):
    """Complete rows without noise."""

    frame: Frame
    reach: Float[Array, " d"]
    kept: Float[Array, "c d r"] | None
    """The rows in the frame, chunk by chunk, a feature a row; None where there are too many"""
    x: Float[Array, "n d"] | None
    """The rows as they came, where they are not kept"""
    log_background: Float[Array, " n"] | None
    n: int = eqx.field(static=True)
    per_chunk: int = eqx.field(static=True)

    @classmethod
    def of(
        cls,
        x: Float[Array, "n d"],
        weights: Float[Array, " n"] | None,
        ladder: Ladder,
        gmm: AbstractComponents,
        keep: bool = True,
    ) -> Self:
        """The rows of x, for mixtures like this one."""
        (n, d), axis_aligned = x.shape, type(gmm.structure).axis_aligned
        fastest = ladder.ways[0]
        frame = Frame.of_data(x, weights, turned=fastest is Packed and not axis_aligned)
        behind = gmm.log_background(x)
        rows = ladder.rows(fastest, n, x.dtype)
        if not (keep and n * d * x.dtype.itemsize <= _KEPT_BYTES):
            return cls(frame, _reach(x, weights, frame, rows), None, x, behind, n, rows)
        if rows == n:
            z = frame.apply(x)
            return cls(frame, reach(z, weights), z.T[None], None, behind, n, rows)
        kept = jax.lax.map(lambda i: frame.apply(chunk_of(x, i, rows)).T, jnp.arange(-(-n // rows)))
        return cls(frame, _reach(x, weights, frame, rows), kept, None, behind, n, rows)

    @classmethod
    def of_summary(cls, summary: Summary, ladder: Ladder, gmm: AbstractComponents) -> Self:
        """The frame and the reach of rows that come in blocks, and none of these rows."""
        turned = ladder.ways[0] is Packed and not type(gmm.structure).axis_aligned
        frame = summary.frame(turned)
        return cls(frame, summary.reach(frame), None, None, None, 0, 0)

    def holding(self, x: Float[Array, "n d"], gmm: AbstractComponents, ladder: Ladder) -> Self:
        """The same frame and reach, with a block of rows."""
        n, rows = len(x), ladder.rows(ladder.ways[0], len(x), x.dtype)
        return type(self)(self.frame, self.reach, None, x, gmm.log_background(x), n, rows)

    def chunk(self, i: Array | int) -> Float[Array, "d r"]:
        """The i-th chunk of rows."""
        if self.kept is not None:
            return self.kept[i]
        assert self.x is not None
        return self.frame.apply(chunk_of(self.x, i, self.per_chunk)).T

    def expect(
        self,
        form: Form,
        weights: Float[Array, " n"] | None,
        ladder: Ladder,
        number: Int[Array, ""],
    ) -> tuple[Moments, Float[Array, ""]]:
        known = self.beside(form, weights)

        def pass_by(way: type[AbstractWay]) -> tuple[Moments, Float[Array, ""]]:
            prepared = way.of(form)

            def take(z: Float[Array, "d r"], counted: Array | None, behind: Array | None) -> PyTree:
                terms = prepared.terms(z)
                log_joint = with_row(prepared.log_joint(terms), behind)
                share, totals = responsibilities(log_joint, counted, len(form.means))
                return prepared.sums(terms, z, share), totals

            def chunk(i: Array | int, present: Array | None) -> PyTree:
                z = self.chunk(i)
                counted, behind = chunks_of(known, i, self.per_chunk)
                counted = times(counted, present)
                # A slower way takes fewer rows at once than the one that the chunks were made for.
                few = min(ladder.rows(way, self.per_chunk, z.dtype), self.per_chunk)
                if few == self.per_chunk:
                    return take(z, counted, behind)

                def part(j: Array | int, present: Array | None) -> PyTree:
                    some, far = chunks_of((counted, behind), j, few)
                    return take(chunk_of(z, j, few, axis=1), times(some, present), far)

                return fold(part, self.per_chunk, few, z)

            rows = self.x if self.kept is None else self.kept
            assert rows is not None  # either the one or the other
            sums, totals = fold(chunk, self.n, self.per_chunk, rows)
            moments = Moments(*prepared.moments(sums), *totals)
            return moments, way.size(*jax.lax.stop_gradient((form, self.reach)))

        return ladder.switch(number, pass_by)


def _reach(
    x: Float[Array, "n d"], weights: Float[Array, " n"] | None, frame: Frame, rows: int
) -> Float[Array, " d"]:
    """`reach` of all rows, chunk by chunk."""

    def chunk(i: Array | int, present: Array | None) -> tuple[Array, Array]:
        z = frame.apply(chunk_of(x, i, rows))
        counted = None if weights is None else chunk_of(weights, i, rows)
        return fourth_powers(z, times(counted, present))

    return reach_of(*fold(chunk, x.shape[0], rows, x))


def chunks_of(known: tuple[Array | None, ...], i: Array | int, rows: int) -> Any:
    """The i-th chunk of each array that is there."""
    return jax.tree.map(lambda leaf: chunk_of(leaf, i, rows), known)


def with_row(log_joint: Float[Array, "k n"], row: Float[Array, " n"] | None) -> Array:
    """Log-joints and, after those of the components, one of a background."""
    return log_joint if row is None else jnp.concatenate([log_joint, row[None]])


def responsibilities(
    log_joint: Float[Array, "l n"], weights: Float[Array, " n"] | None, n_components: int
) -> tuple[Float[Array, "k n"], tuple[Float[Array, ""], ...]]:
    """z times the sample weights; and the sums of log p, of the weights, and of a background's z.

    **Arguments:**

    - `log_joint`: of the components, and of a background after them.
    """
    # Kept from −∞, where no component has any density, so that a difference is not NaN.
    lowest = float(jnp.finfo(log_joint.dtype).min)
    top = jax.lax.stop_gradient(jnp.maximum(largest(log_joint, axis=0), lowest))
    terms = jnp.exp(log_joint - top)
    sums = total(terms, axis=0)
    scale = 1 / sums if weights is None else weights / sums
    log_prob = jnp.squeeze(jnp.log(sums) + top, axis=0)
    if weights is None:
        count = varying(jnp.asarray(log_prob.size, log_prob.dtype), log_prob)
        totals = jnp.sum(log_prob), count
    else:
        totals = jnp.sum(weights * log_prob), jnp.sum(weights)
    share = terms * scale
    if len(share) == n_components:
        return share, totals
    return share[:n_components], (*totals, jnp.sum(share[n_components]))
