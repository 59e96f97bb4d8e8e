"""Rows of `Data`: what each of them says of the complete row, under every component.

With u = W_k(v − μ_k), which is standard normal, a number of a row is y = h·u + e + ε. The numbers
of a row are taken in one after the other, each by Potter's square-root form of the Kalman update
(Bierman 1977, Factorization Methods for Discrete Sequential Estimation): u has the mean m and the
covariance SSᵀ, and with a = Sᵀh and α = aᵀa + σ²

    m ← m + Sa(y − e − h·m)/α,    S ← S − Sa aᵀ/(α + σ√α),    log p ← log p + log N(y; e + h·m, α).

Noise may be zero, infinite or anything between, and nothing is inverted.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .. import _checks
from .._chunks import chunk_of, fold, map_rows, rows_per_chunk
from .._components import AbstractComponents
from .._covariance.factors import Factors, LowRankFactors
from .._data import Data, of_rows, shared_by_rows
from .._linalg import einsum, inverse_lower, product
from .._programs import Program
from .._reductions import sum_of_squares, total
from .._rows import cut, fill_rows
from . import reflected
from .form import Form
from .frame import Frame, times
from .ladder import Ladder
from .moments import Moments
from .rows import AbstractRows, chunks_of, responsibilities, with_row

# Rows below which a chunk of `over_rows` does not pay: its loops over features are short.
_FEWEST_ROWS = 64


class Numbers(eqx.Module):
    """A chunk of rows in a frame, number by number."""

    values: Float[Array, "m n"]
    deviations: Float[Array, "m n"]
    projection: Float[Array, "m d"] | Float[Array, "m d n"] | None
    log_scale: Float[Array, " n"]
    """log of the units of the values, summed over those that were observed"""
    log_prior: Float[Array, "l n"] | None
    """Of the components by the labels, and of a background"""
    behind: Float[Array, " n"] | None
    """log w_0 b(x) of a background"""

    @property
    def seen(self) -> Bool[Array, "m n"]:
        """Which numbers were observed."""
        return jnp.isfinite(self.deviations)

    @property
    def noise(self) -> Float[Array, "m n"]:
        """The deviations of the noise, and one where nothing was observed."""
        return jnp.where(self.seen, self.deviations, 1)

    def log_joint(self, values: Float[Array, "k n"]) -> Float[Array, "l n"]:
        """Log-joints in the frame, in the units of the rows and with what their labels say.

        With one more, after those of the components, where there is a background.
        """
        values = with_row(values - self.log_scale, self.behind)
        return values if self.log_prior is None else values + self.log_prior

    @classmethod
    def of(
        cls, data: Data, frame: Frame, n_components: int, behind: Float[Array, " n"] | None
    ) -> Self:
        """The rows in units of the frame, which is scaled and not turned."""
        seen = jnp.isfinite(data.deviations)
        scale, projection = frame.root, data.projection
        assert scale is not None and scale.ndim == 1
        if projection is None:
            apart = jnp.where(seen, data.x - frame.centre, 0)
        else:
            centre = frame.centre if data.origin is None else frame.centre - data.origin
            apart = jnp.where(seen, data.x - einsum("...md,d->...m", projection, centre), 0)
            projection = projection * scale
            # Each number in units of what it measures.
            scale = jnp.max(jnp.abs(projection), axis=-1)
            scale = jax.lax.stop_gradient(jnp.where(scale > 0, scale, 1))
            projection = projection / scale[..., None]
            projection = projection if projection.ndim == 2 else jnp.moveaxis(projection, 0, -1)
        prior = data.log_prior(n_components + (behind is not None))
        return cls(
            (apart / scale).T,
            jnp.where(seen, data.deviations / scale, jnp.inf).T,
            projection,
            jnp.sum(jnp.where(seen, jnp.log(scale), 0), axis=1),
            None if prior is None else prior.T,
            behind,
        )


class Expected(eqx.Module):
    """What rows say of the mean of u = W_k(v − μ_k)."""

    mean: Float[Array, "k d n"]
    log_joint: Float[Array, "l n"]
    """Of the components, and of a background after them"""


class Absorbed(eqx.Module):
    """What rows say of u = W_k(v − μ_k)."""

    mean: Float[Array, "k d n"]
    spread: Float[Array, "j d d n"] | Float[Array, "j d n"]
    """S, or the variances where numbers and features are independent"""
    log_joint: Float[Array, "l n"]
    """Of the components, and of a background after them"""


class FramedMixture(eqx.Module):
    """A mixture in a frame, as rows are taken in under it."""

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    roots: Factors
    """W⁻¹"""

    @classmethod
    def of(cls, form: Form, frame: Frame) -> Self:
        """A mixture of this form in this frame, which is scaled and not turned."""
        factors, d = form.factors, form.means.shape[1]
        assert frame.root is not None
        if form.axis_aligned:
            diagonal, roots = factors, 1 / factors
        else:
            diagonal, roots = jnp.diagonal(factors, axis1=1, axis2=2), inverse_lower(factors)
        # What the constant holds beside log w_k: log|W_k| in the units of x, and the 2π.
        rest = jnp.sum(jnp.log(diagonal), axis=1) - jnp.sum(jnp.log(frame.root))
        return cls(form.constant - rest + d * math.log(2 * math.pi) / 2, form.means, roots)

    def rows_at_once(self, x: Data, least: int) -> int:
        """How many rows to take at once, at least so many."""
        (k, d), (n, m) = self.means.shape, x.x.shape
        apart = self.roots.ndim == 2 and x.projection is None
        columns = 6 * k * d if apart else 3 * len(self.roots) * d * d + 2 * k * d + m * d
        return rows_per_chunk(n, columns, x.dtype.itemsize, least)


def expect(prior: FramedMixture, rows: Numbers) -> Expected:
    """The means and the log-joints of `absorb`, at less cost where features are measured."""
    if rows.projection is not None or prior.roots.ndim == 2:
        found = absorb(prior, rows)
        return Expected(found.mean, found.log_joint)
    seen = rows.seen.astype(rows.values.dtype)
    apart = jnp.where(rows.seen, rows.values - prior.means[:, :, None], 0)
    z, log_density = reflected.solve(prior.roots, rows.noise, seen, apart)
    constant = prior.log_weights[:, None] - math.log(2 * math.pi) / 2 * jnp.sum(seen, axis=0)
    return Expected(product(prior.roots.mT, z), rows.log_joint(constant + log_density))


def absorb(prior: FramedMixture, rows: Numbers) -> Absorbed:
    """All numbers of the rows, taken in."""
    seen, noise = rows.seen, rows.noise
    means, roots, d = prior.means, prior.roots, prior.means.shape[1]
    if rows.projection is None:
        apart = jnp.where(seen, rows.values - means[:, :, None], 0)
    else:
        apart = jnp.where(seen, rows.values - _projected(means, rows.projection), 0)
    log_weights = prior.log_weights[:, None]
    if roots.ndim == 2 and rows.projection is None:
        variance = roots[:, :, None] ** 2 + noise**2
        rate = jnp.where(seen, 1 / variance, 0)
        mean = roots[:, :, None] * apart * rate
        terms = apart**2 * rate + jnp.where(seen, jnp.log(2 * math.pi * variance), 0)
        spread = jnp.where(seen, noise**2 / variance, 1)
        return Absorbed(mean, spread, rows.log_joint(log_weights - jnp.sum(terms, axis=1) / 2))

    roots = roots[:, :, None] * jnp.eye(d, dtype=roots.dtype) if roots.ndim == 2 else roots
    n = rows.values.shape[1]

    def take(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mean, root, log_joint = carry
        if rows.projection is None:
            h = roots[:, i, :, None]
        else:
            row = rows.projection[i].reshape(d, -1)
            h = jnp.sum(roots[:, :, :, None] * row[:, None], axis=1)
        root, gain, scale, log_variance = narrow(root, h, noise[i], seen[i])
        error = apart[:, i] - total(h * mean, axis=1)[:, 0]
        mean = mean + gain * error[:, None]
        return mean, root, log_joint - ((error * scale) ** 2 + log_variance) / 2

    identity = jnp.eye(d, dtype=roots.dtype)
    begin = (
        jnp.zeros((len(means), d, n), roots.dtype),
        jnp.broadcast_to(identity[:, :, None], (len(roots), d, d, n)),
        jnp.broadcast_to(log_weights, (len(means), n)),
    )
    mean, root, log_joint = jax.lax.fori_loop(0, rows.values.shape[0], take, begin)
    return Absorbed(mean, root, rows.log_joint(log_joint))


def narrow(
    root: Float[Array, "j d d n"],
    h: Float[Array, "j d #n"],
    noise: Float[Array, " n"],
    seen: Bool[Array, " n"],
) -> tuple[Array, Array, Array, Array]:
    """S after a number h·u + ε was seen, the gain Sa/α, the scale 1/√α, and log 2πα.

    **Arguments:**

    - `noise`: the deviation of ε; any number where nothing was seen.
    """
    a = total(root * h[:, :, None], axis=1)[:, 0]
    variance = sum_of_squares(a, axis=1) + noise**2
    # No square root of zero where nothing was seen: it has no derivative.
    inverse = 1 / jnp.sqrt(variance)
    scale = jnp.where(seen, inverse, 0)
    log_variance = jnp.where(seen, jnp.log(2 * math.pi * variance), 0)
    gain = total(root * a[:, None], axis=2)[:, :, 0] * (scale**2)[:, None]
    shrunk = gain / (1 + noise * inverse)[:, None]
    return root - shrunk[:, :, None] * a[:, None], gain, scale, log_variance


def _projected(means: Float[Array, "k d"], projection: Array) -> Float[Array, "k m #n"]:
    if projection.ndim == 2:
        return einsum("md,kd->km", projection, means)[:, :, None]
    return einsum("mdn,kd->kmn", projection, means)


class ObservedRows(AbstractRows):
    """The rows of a fit to `Data`."""

    frame: Frame
    reach: Float[Array, " d"]
    """Nothing depends on it: there is one way over these rows"""
    x: Data
    log_background: Float[Array, " n"] | None

    @classmethod
    def of(cls, x: Data, weights: Float[Array, " n"] | None, gmm: AbstractComponents) -> Self:
        """The rows, in units of their deviations, for mixtures like this one."""
        frame = Frame.of_data(x.completed(weights), weights, turned=False)
        return cls(frame, jnp.zeros_like(frame.centre), x, gmm.log_background(x))

    def expect(
        self,
        form: Form,
        weights: Float[Array, " n"] | None,
        ladder: Ladder,
        number: Int[Array, ""],
    ) -> tuple[Moments, Float[Array, ""]]:
        prior, n = FramedMixture.of(form, self.frame), self.x.shape[0]
        known = self.beside(form, weights)

        def pass_by(way: type[AbstractIntake]) -> tuple[Moments, Float[Array, ""]]:
            size = prior.rows_at_once(self.x, way.fewest_rows)

            def chunk(i: Array | int, present: Array | None) -> PyTree:
                data = of_rows(lambda leaf: chunk_of(leaf, i, size), self.x)
                counted, behind = chunks_of(known, i, size)
                rows = Numbers.of(data, self.frame, len(form.means), behind)
                return way.sums(form, prior, rows, times(counted, present))

            weight, first, scatter, *totals = fold(chunk, n, size, self.frame.centre)
            moments = Moments(weight, form.times(prior.roots, first), scatter, *totals)
            return moments, way.size(*jax.lax.stop_gradient((form, self.reach)))

        return ladder.switch(number, pass_by)


class AbstractIntake(abc.ABC):
    """A way to the sums of the M-step over rows of `Data`."""

    sure: ClassVar[bool] = False
    """Whether it is always accurate"""
    fewest_rows: ClassVar[int] = 32
    """Rows below which a chunk does not pay"""

    @classmethod
    @abc.abstractmethod
    def size(cls, form: Form, reach: Float[Array, " d"]) -> Float[Array, ""]:
        """The size of what cancels, in units of the largest that is accurate."""

    @classmethod
    @abc.abstractmethod
    def sums(
        cls, form: Form, prior: FramedMixture, rows: Numbers, weights: Float[Array, " n"] | None
    ) -> tuple[Array, ...]:
        """n_k, Σ z E[u], Σ z E[uuᵀ], Σ log p and the number of samples."""


class Sequential(AbstractIntake):
    """Number by number."""

    sure: ClassVar[bool] = True

    @classmethod
    def size(cls, form: Form, reach: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.zeros_like(reach[0])

    @classmethod
    def sums(
        cls, form: Form, prior: FramedMixture, rows: Numbers, weights: Float[Array, " n"] | None
    ) -> tuple[Array, ...]:
        found = absorb(prior, rows)
        share, totals = responsibilities(found.log_joint, weights, len(form.means))
        first = einsum("kn,kdn->kd", share, found.mean)
        return jnp.sum(share, axis=1), first, _scatter(form, found, share), *totals


def _scatter(form: Form, found: Absorbed, share: Float[Array, "k n"]) -> Factors:
    """Σ_i z_ik E[uuᵀ], or what a structure needs of it."""
    own = share if not form.shared else jnp.sum(share, axis=0, keepdims=True)
    if found.spread.ndim == 3:
        within = einsum("jn,jdn->jd", own, found.spread)
    else:
        j, d, _, n = found.spread.shape
        weighted = (found.spread * own[:, None, None]).reshape(j, d, d * n)
        kind = "jdm,jdm->jd" if form.axis_aligned else "jdm,jem->jde"
        within = einsum(kind, weighted, found.spread.reshape(j, d, d * n))
    weighted = share[:, None] * found.mean
    kind = "kdn,kdn->kd" if form.axis_aligned else "kdn,ken->kde"
    between = einsum(kind, weighted, found.mean)
    return within + (jnp.sum(between, axis=0, keepdims=True) if form.shared else between)


def check_dense(gmm: AbstractComponents) -> None:
    """Raise `ValueError` where the covariances are of low rank, which rows of `Data` cannot be."""
    if gmm.structure.n_latent is not None:
        raise ValueError(
            f"rows of gmmx.Data cannot be of {gmm.structure.covariance_type!r} covariances: "
            "expected an array of complete rows without noise. Fill gaps in first, or take "
            "covariance_type='full' or 'diag'."
        )


def _framed(gmm: AbstractComponents) -> tuple[FramedMixture, Frame]:
    """A mixture in a frame of its own: its mean, and the size of its widest component."""
    check_dense(gmm)
    factors = gmm.factors()
    assert not isinstance(factors, LowRankFactors)
    roots = 1 / factors if factors.ndim == 2 else inverse_lower(factors)
    sizes = roots if roots.ndim == 2 else jnp.max(jnp.abs(roots), axis=2)
    log_weights = gmm.log_weights
    centre = jnp.exp(log_weights) @ gmm.means
    frame = Frame(*jax.lax.stop_gradient((centre, jnp.max(sizes, axis=0))), None)
    assert frame.root is not None
    scaled = roots / (frame.root if roots.ndim == 2 else frame.root[:, None])
    return FramedMixture(log_weights, frame.apply(gmm.means), scaled), frame


def over_rows(
    gmm: AbstractComponents, x: Data, fn: Callable[..., PyTree], *others: Array
) -> PyTree:
    """`fn(prior, frame, numbers, *others)` of all rows, chunk by chunk, its results rows first.

    From Python one program is called, compiled for few numbers of rows.

    **Arguments:**

    - `fn`: a function that is equal to itself in another call.
    - `others`: arrays of the same rows.
    """
    if not _checks.is_concrete(gmm, x, others):
        return _over_rows(gmm, x, fn, *others)
    program = _program.at(x.x.size * gmm.means.size * gmm.means.shape[1])
    return cut(program(gmm, fill_rows(x), fn, *map(fill_rows, others)), x.shape[0])


def _over_rows(gmm, x, fn, *others):
    prior, frame = _framed(gmm)
    common = {id(leaf) for leaf in jax.tree.leaves(shared_by_rows(x))}
    shared, own = eqx.partition(x, lambda leaf: id(leaf) in common)

    def chunk(rows: tuple[Data, tuple[Array, ...]]) -> PyTree:
        data, others = rows
        data = eqx.combine(shared, data)
        behind = gmm.background_log_joint(data)
        return fn(prior, frame, Numbers.of(data, frame, gmm.means.shape[0], behind), *others)

    size = prior.rows_at_once(x, _FEWEST_ROWS)
    if size < x.shape[0]:
        # A derivative takes each chunk again, rather than keep what all of them held.
        chunk = jax.checkpoint(chunk)
    return map_rows(chunk, (own, others), size)


_program = Program(_over_rows, jit=partial(jax.jit, static_argnames="fn"))


def evaluate(gmm: AbstractComponents, x: Data, reduce: Callable[[Array], PyTree]) -> PyTree:
    """`reduce` of the log-joints of the rows, see `gmmx._engine.density.evaluate`."""
    return over_rows(gmm, x, _OfLogJoint(reduce))


@dataclasses.dataclass(frozen=True)
class _OfLogJoint:
    """A function of rows that reads their log-joints alone."""

    reduce: Callable[[Array], PyTree]

    def __call__(self, prior: FramedMixture, frame: Frame, rows: Numbers) -> PyTree:
        return self.reduce(expect(prior, rows).log_joint)
