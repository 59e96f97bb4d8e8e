"""What is known of each row: noise, gaps, projections, labels and weights."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from . import _checks
from ._linalg import einsum, log_weight, whiten_by


class Data(eqx.Module):
    r"""Rows as they were measured, for `fit`, `initialize`, `select` and every density.

    Row i observes the complete $v_i \in \mathbb{R}^d$, of which the mixture is the distribution,
    with noise, in part, or by a projection:

    $$x_i = R_i v_i + \varepsilon_i,\qquad \varepsilon_i \sim \mathcal{N}(0, C_i),\qquad
      p(x_i) = \sum_k w_k\, \mathcal{N}(x_i;\, R_i\mu_k,\, R_i\Sigma_kR_i^\top + C_i)$$

    A fit to such rows finds the mixture of the $v_i$ (extreme deconvolution; Bovy, Hogg & Roweis
    2011), and `gmm.log_prob(data)` is the density of the rows as they were measured, where
    `gmm.log_prob(x)` is that of complete points without noise.

    **Arguments:**

    - `x`: the rows, `(n, d)`; `(n, m)` with a projection.
    - `weights`: how often each row counts, `(n,)`.
    - `noise`: variances of the noise, `()`, `(m,)` or `(n, m)`, or its covariances, `(m, m)` or
        `(n, m, m)`. An infinite variance says that the number was not observed. `(m, m)` is one
        matrix, also where there are m rows.
    - `projection`: R, `(m, d)`, or `(n, m, d)` for one a row; None is the identity.
    - `labels`: the component of each row, `(n,)`, and −1 where it is not known; or `(n, k)`, the
        probability of each component, by which its density at the row is multiplied. Zero
        excludes a component.
    - `missing`: True takes NaN, masked and null values as not observed; or a boolean mask of x.
        Noise of what is missing is not looked at, and may be NaN.

    Values are missing at random: that one is missing depends on nothing but what was observed.

    **Raises:** `ValueError`, with the row, for noise that is negative or not symmetric positive
    semi-definite, invalid labels, and shapes that do not fit.
    """

    x: Float[Array, "n m"]
    """What was observed, and zero where nothing was"""
    deviations: Float[Array, "n m"]
    """Of the noise of each number; infinite where it was not observed"""
    projection: Float[Array, "n m d"] | Float[Array, "m d"] | None
    origin: Float[Array, " d"] | None
    """What was subtracted from the complete rows before they were projected"""
    labels: Int[Array, " n"] | Float[Array, "n k"] | None
    weights: Float[Array, " n"] | None
    patterns: "Patterns | None"
    """Made by a fit: which rows were observed alike"""

    def __init__(
        self,
        x: Any,
        *,
        weights: Any = None,
        noise: Any = None,
        projection: Any = None,
        labels: Any = None,
        missing: Any = False,
    ):
        gaps = isinstance(missing, bool | np.bool_) and bool(missing)
        x = _checks.as_floating(x, "x", may_be_missing=gaps)
        if x.ndim != 2 or x.size == 0:
            raise ValueError(f"x has shape {x.shape}; expected (n, m), a row for each sample.")
        (n, m), dtype = x.shape, x.dtype
        absent = _absent(x, missing)
        self.projection, self.origin = _as_projection(projection, n, m, dtype), None
        variances, covariances = _as_variances(noise, absent, n, m, dtype)
        if covariances is not None:
            if absent is not None:
                # Combined with no number that was observed, but NaN would go into all of them.
                x = _checks.array_module(x).where(absent, 0, x)
            if projection is None:
                # An offset would be rounded when numbers are combined.
                self.origin = _mean_of_observed(x, absent)
                x = x - self.origin
            x, self.projection, variances = _decorrelated(x, self.projection, covariances)
        # On the host where values are concrete, which compiles nothing for another number of rows.
        xp = _checks.array_module(x, variances)
        x, variances = xp.asarray(x), xp.asarray(variances)
        unseen = xp.isinf(variances)
        unseen = unseen if absent is None else unseen | xp.asarray(absent)
        self.x = jnp.asarray(xp.where(unseen, xp.zeros((), dtype), x), dtype)
        deviations = xp.where(unseen, xp.asarray(xp.inf, dtype), xp.sqrt(variances))
        self.deviations = jnp.asarray(deviations, dtype)
        _checks.check_finite(self.x, "x", _GAPS)
        self.labels = None if labels is None else _as_labels(labels, n, dtype)
        self.weights = None if weights is None else _checks.as_weights(weights, (n,), dtype)
        self.patterns = None

    @property
    def decides(self) -> bool:
        """Whether any label says something; True where Python cannot see them."""
        if self.labels is None or not _checks.is_concrete(self.labels):
            return self.labels is not None
        values = np.asarray(self.labels)
        if values.ndim == 1:
            return bool((values >= 0).any())
        return bool((values != values[:, :1]).any())

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d): d is the number of features of the mixture."""
        n, m = self.x.shape
        return n, m if self.projection is None else self.projection.shape[-1]

    @property
    def size(self) -> int:
        """n·d"""
        return self.shape[0] * self.shape[1]

    @property
    def dtype(self) -> Any:
        """Of the rows."""
        return self.x.dtype

    def log_prior(self, n_components: int) -> Float[Array, "n k"] | None:
        """How probable each component is for a row by its label; None without labels."""
        if self.labels is None:
            return None
        if jnp.issubdtype(self.labels.dtype, jnp.floating):
            return log_weight(self.labels)
        of_each = jnp.arange(n_components, dtype=self.labels.dtype)
        possible = (self.labels[:, None] < 0) | (self.labels[:, None] == of_each)
        return jnp.where(possible, jnp.zeros((), self.dtype), -jnp.inf)

    def completed(self, weights: Float[Array, " n"] | None = None) -> Float[Array, "n d"]:
        """A rough guess of the complete rows: to find units and a start, never in a likelihood.

        What is missing is the mean of what was observed; a projection is inverted by least
        squares about the mean that fits all rows best.
        """
        seen = jnp.isfinite(self.deviations).astype(self.dtype)
        counted = seen if weights is None else seen * weights[:, None]
        if self.projection is None:
            total = jnp.sum(counted, axis=0)
            origin = self.x[0]
            mean = origin + jnp.sum(counted * (self.x - origin), axis=0) / jnp.maximum(total, 1)
            return jnp.where(seen > 0, self.x, mean)
        n = self.shape[0]
        matrices = jnp.broadcast_to(self.projection, (n, *self.projection.shape[-2:]))
        matrices = matrices * seen[:, :, None]
        normal = einsum("nmd,nm,nme->de", matrices, counted, matrices)
        mean = _solved(normal, einsum("nmd,nm->d", matrices, counted * self.x)[:, None])[:, 0]
        apart = (self.x - einsum("nmd,d->nm", matrices, mean)) * seen
        solved = _solved(einsum("nmd,nld->nml", matrices, matrices), apart[:, :, None])
        points = mean + einsum("nmd,nm->nd", matrices, solved[:, :, 0])
        return points if self.origin is None else points + self.origin


_GAPS = (
    "gmmx.Data(x, missing=True) takes NaN and nulls as missing values; infinite values have to be "
    "dropped."
)


class Patterns(eqx.Module):
    """Blocks of rows, all rows of a block with the same deviations of noise."""

    deviations: Float[Array, "p m"]
    """Those that there are"""
    of_block: Int[Array, " b"]
    """Which of them a block has"""


Samples = Float[Array, "n d"] | Data
"""Rows of a fit: complete points, or what is known of them"""


def completed(x: Samples, weights: Float[Array, " n"] | None) -> Float[Array, "n d"]:
    """The rows themselves, or a rough guess of what they are, see `Data.completed`."""
    return x.completed(weights) if isinstance(x, Data) else x


def take(x: Samples, rows: Int[Array, " r"]) -> Any:
    """Some of the rows."""
    if not isinstance(x, Data):
        return x[rows]
    return of_rows(lambda leaf: leaf[rows], x)


def of_rows(fn: Any, x: Data) -> Data:
    """`fn` of every array of the data that has a row for each sample."""
    common = jax.tree.leaves(shared_by_rows(x))
    return jax.tree.map(lambda leaf: leaf if any(leaf is a for a in common) else fn(leaf), x)


def shared_by_rows(x: Data) -> tuple[Any, ...]:
    """What all rows share."""
    projection = x.projection
    one = projection if projection is not None and projection.ndim == 2 else None
    return one, x.origin, x.patterns


def without_weights(x: Any, weights: Any) -> tuple[Any, Any]:
    """The rows, and their weights by themselves."""
    if not isinstance(x, Data) or x.weights is None:
        return x, weights
    if weights is not None:
        raise ValueError("weights were given twice, in gmmx.Data and beside it. Pass one of them.")
    return eqx.tree_at(lambda data: data.weights, x, None), x.weights


def check_rows(x: Any, n_components: int, n_features: int | None = None) -> Samples:
    """Rows to fit: an array `(n, d)`, finite, or `Data`; at least as many as components."""
    if not isinstance(x, Data):
        return _checks.check_data(x, n_components, n_features)
    check_components(x, n_components, n_features)
    _check_seen(x)
    if x.shape[0] < n_components:
        raise ValueError(
            f"the data have {x.shape[0]} rows, fewer than the {n_components} components. Take "
            "fewer components."
        )
    return x


def _check_seen(x: Data) -> None:
    """Refuse a feature that no row measures."""
    # With an origin each number is of the feature of its place, and of some before it.
    if (x.projection is not None and x.origin is None) or not _checks.is_concrete(x):
        return
    unseen = ~np.isfinite(np.asarray(x.deviations)).any(axis=0)
    if unseen.any():
        raise ValueError(
            f"feature {int(np.argmax(unseen))} was observed in no row. Leave it out of the data."
        )


def check_components(x: Data, n_components: int, n_features: int | None) -> None:
    """Whether these rows are of a mixture of so many components and features."""
    _, d = x.shape
    if n_features is not None and d != n_features:
        raise ValueError(
            f"the data are of {d} features, but the mixture has {n_features}. Make a mixture for "
            "them by gmmx.initialize(data, n_components)."
        )
    labels = x.labels
    if labels is None:
        return
    if labels.ndim == 2 and labels.shape[1] != n_components:
        raise ValueError(
            f"labels has shape {labels.shape}; expected one column for each of the {n_components} "
            "components."
        )
    if labels.ndim == 1 and _checks.is_concrete(labels):
        values = np.asarray(labels)
        if values.max() >= n_components:
            row = int(np.argmax(values >= n_components))
            raise ValueError(
                f"labels[{row}] = {values[row]}, but there are {n_components} components: "
                f"expected 0 to {n_components - 1}, or −1 where it is not known."
            )


def _absent(x: Array, missing: Any) -> Any:
    """Which numbers are missing; None where none is."""
    if isinstance(missing, bool | np.bool_):
        if not missing:
            return None
        missing = _checks.array_module(x).isnan(x)
    mask = missing if isinstance(missing, jax.Array) else np.asarray(missing)
    if mask.shape != x.shape or mask.dtype != bool:
        raise ValueError(
            f"missing has shape {mask.shape} and dtype {mask.dtype}; expected True, False, or a "
            f"boolean mask of the shape of x, {x.shape}."
        )
    return None if _checks.is_concrete(mask) and not mask.any() else mask


def _mean_of_observed(x: Float[Any, "n m"], absent: Any) -> Float[Array, " m"]:
    """The mean of each number, of zeros where it is missing."""
    xp = _checks.array_module(x)
    if absent is None:
        return jnp.asarray(xp.mean(x, axis=0), x.dtype)
    observed = xp.sum(~xp.asarray(absent), axis=0, dtype=x.dtype)
    return jnp.asarray(xp.sum(x, axis=0) / xp.maximum(observed, 1), x.dtype)


def _as_projection(projection: Any, n: int, m: int, dtype: Any) -> Array | None:
    if projection is None:
        return None
    matrix = _checks.as_floating(projection, "projection", dtype)
    if matrix.ndim not in (2, 3) or matrix.shape[-2] != m or matrix.shape[:-2] not in ((), (n,)):
        raise ValueError(
            f"projection has shape {matrix.shape}, and x has {n} rows of {m} numbers: expected "
            f"({m}, d), or ({n}, {m}, d) for one a row."
        )
    _checks.check_finite(matrix, "projection")
    return matrix


def _as_variances(noise: Any, absent: Any, n: int, m: int, dtype: Any) -> tuple[Any, Any]:
    """Variances `(n, m)`, or covariances `(n, m, m)`, without those of what is missing."""
    if noise is None:
        return np.zeros((n, m), dtype), None
    noise = _checks.as_floating(noise, "noise", dtype, may_be_missing=absent is not None)
    shape = noise.shape
    if m == 1 and shape == (n, 1, 1):
        noise, shape = noise[:, :, 0], (n, 1)
    dense = shape in ((m, m), (n, m, m)) and m > 1
    if not dense and shape not in ((), (m,), (n, 1), (n, m)):
        raise ValueError(
            f"noise has shape {shape}, and x has {n} rows of {m} numbers: expected variances, (), "
            f"({m},) or ({n}, {m}), or covariances, ({m}, {m}) or ({n}, {m}, {m})."
        )
    if absent is not None and (dense or shape == (n, m)):
        xp = _checks.array_module(noise, absent)
        seen = ~xp.asarray(absent)
        seen = seen[:, :, None] & seen[:, None, :] if dense else seen
        noise = xp.where(seen, xp.asarray(noise), xp.zeros((), dtype))
    if _checks.is_concrete(noise):
        _check_noise(np.asarray(noise), dense)
    xp = _checks.array_module(noise)
    noise = xp.asarray(noise)
    if dense:
        return np.zeros((n, m), dtype), noise if noise.ndim == 3 else noise[None]
    return xp.broadcast_to(noise, (n, m)), None


def _check_noise(values: np.ndarray, dense: bool) -> None:
    def where(bad: Any, of_row: int) -> str:
        return f" in row {np.argwhere(bad)[0][0]}" if bad.ndim > of_row else ""

    wrong = np.isnan(values) | (np.isinf(values) if dense else values == -np.inf)
    if wrong.any():
        raise ValueError(f"noise holds values that are NaN or infinite{where(wrong, 1 + dense)}.")
    if not dense:
        if (values < 0).any():
            bad = values < 0
            raise ValueError(
                f"noise holds the negative variance {values[bad][0]:g}{where(bad, 1)}. Pass "
                "variances, the squares of deviations."
            )
        return
    _checks.check_symmetric(jnp.asarray(values))
    least = np.linalg.eigvalsh(values)[..., 0]
    bad = least < -1e3 * np.finfo(values.dtype).eps * np.abs(values).max(axis=(-2, -1))
    if bad.any():
        raise ValueError(
            f"a covariance of noise is not positive semi-definite{where(bad, 0)}: its least "
            f"eigenvalue is {least[bad][0]:g}."
        )


def _decorrelated(
    x: Float[Array, "n m"], projection: Array | None, covariances: Float[Any, "j m m"]
) -> tuple[Any, Array, Any]:
    """Numbers whose noise is independent: M⁻¹x, M⁻¹R and D, with C = MDMᵀ and a unit triangle M.

    By elimination, also where C is singular. |M| is one, so the density stays what it is.

    **Arguments:**

    - `covariances`: C, one for each row or one for all.
    """
    m = x.shape[1]
    xp = _checks.array_module(x, covariances)
    identity = xp.eye(m, dtype=x.dtype)
    matrix = identity if projection is None else xp.asarray(projection)
    inverse = xp.broadcast_to(identity, covariances.shape)
    rows = xp.concatenate([xp.asarray(covariances), inverse], axis=2)
    later = xp.arange(m)
    tiny = xp.asarray(jnp.finfo(x.dtype).eps, x.dtype) * xp.abs(covariances).max(axis=(1, 2))
    for j in range(m):
        pivot = rows[:, j, j]
        sound = pivot > tiny
        share = rows[:, :, j] / xp.where(sound, pivot, 1)[:, None]
        share = xp.where(sound[:, None] & (later > j), share, 0)
        rows = rows - share[:, :, None] * rows[:, j, None, :]
    variances = xp.maximum(xp.diagonal(rows[:, :, :m], axis1=1, axis2=2), 0)
    inverse = rows[:, :, m:] if len(rows) > 1 else rows[0, :, m:]
    moved = xp.matmul(inverse, xp.asarray(x)[:, :, None])[:, :, 0]
    projected = jnp.asarray(xp.matmul(inverse, matrix), x.dtype)
    return moved, projected, xp.broadcast_to(variances, x.shape)


def _as_labels(labels: Any, n: int, dtype: Any) -> Array:
    if isinstance(labels, np.ma.MaskedArray) and np.issubdtype(labels.dtype, np.integer):
        labels = labels.filled(-1)
    values = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if values.shape == (n,) and jnp.issubdtype(values.dtype, jnp.integer):
        if _checks.is_concrete(values):
            bad = (np.asarray(values) < -1) | (np.asarray(values) >= 2**31)
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(
                    f"labels[{row}] = {int(values[row])}; expected a component, counted from 0, or "
                    "−1 where it is not known."
                )
        return jnp.asarray(values, jnp.int32)
    if values.ndim != 2 or values.shape[0] != n:
        raise ValueError(
            f"labels has shape {values.shape} and dtype {values.dtype}; expected integers ({n},), "
            f"−1 where the component is not known, or probabilities ({n}, k). pandas.factorize "
            "makes integers of names, and −1 of nulls."
        )
    probabilities = _checks.as_floating(labels, "labels", dtype)
    _checks.check_finite(probabilities, "labels")
    if _checks.is_concrete(probabilities):
        values = np.asarray(probabilities)
        bad = (values < 0).any(axis=1) | ~(values > 0).any(axis=1)
        if bad.any():
            raise ValueError(
                f"labels of row {int(np.argmax(bad))} are negative or all zero; expected how "
                "probable each component is, at least one of them possible."
            )
    return probabilities


def _solved(matrix: Float[Array, "*n d d"], b: Float[Array, "*n d p"]) -> Float[Array, "*n d p"]:
    """A⁻¹b of a positive semi-definite A, with a little on its diagonal."""
    d = matrix.shape[-1]
    identity = jnp.eye(d, dtype=matrix.dtype)
    size = jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True)
    size = jnp.where(size > 0, size, 1)
    matrix = matrix / size + 1e3 * float(jnp.finfo(matrix.dtype).eps) * identity
    both = jnp.concatenate([jnp.broadcast_to(identity, matrix.shape), b / size], axis=-1)
    white = whiten_by(matrix, both)
    return jnp.matmul(white[..., :d].mT, white[..., d:], precision=jax.lax.Precision.HIGHEST)
