r"""The observed information of a mixture: how sharply the likelihood falls around it.

The leaves of a mixture are unconstrained and more than the parameters: a constant added to all
logits, an entry that a structure does not read, or a component of weight zero change no density.
Along these directions the information is zero. They are known from what the density is made of, so
that no eigenvalue of the information has to be called zero.
"""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .. import _checks, _rows
from .._abstract_mixture import AbstractMixture
from .._chunks import chunk_of, fold, map_rows, rows_per_chunk
from .._components import check_mixture
from .._data import Samples, check_rows, take, without_weights
from .._engine.density import by_way, log_prob_of
from .._engine.ladder import Ladder
from .._fit.frozen import check_frozen, split
from .._linalg import einsum, inverse_lower, product
from .._programs import Program
from .parameters import Parameters

# Singular values of the derivatives of the density's parts that count as zero, in powers of ε of
# the dtype. The others are of order one, since each component is seen in its own units.
_ZERO = 0.5


class Information(eqx.Module):
    r"""The derivatives of $\log L(u) = \sum_i \log p(x_i; u)$ in the p leaves u of a mixture.

    The order of the leaves is that of `jax.flatten_util.ravel_pytree(gmm)`, without those of a
    background and without what is frozen.
    """

    matrix: Float[Array, "p p"]
    """−∇² log L, the observed information"""
    gradient: Float[Array, " p"]
    """∇ log L, zero at a maximum of the likelihood"""
    parameters: Parameters
    """Weights, means and covariances"""
    jacobian: Float[Array, "q p"]
    """The derivatives of the q numbers in `parameters`"""
    density_jacobian: Float[Array, "r p"]
    """Those of what the density is made of: w_k, W_kμ_k and W_k in the units of component k"""

    def bases(self) -> tuple[Float[np.ndarray, "p m"], Float[np.ndarray, "p l"]]:
        """Directions of u that change the density, and those that do not, p = m + l.

        The first are as many as there are free parameters, fewer where components have weight
        zero. They are not orthogonal: each leaf is taken in units in which it matters. The
        second span the null space of `matrix` at a maximum. Computed by NumPy.
        """
        jacobian = np.asarray(self.density_jacobian, np.float64)
        size = np.linalg.norm(jacobian, axis=0)
        size = np.where(size > 0, size, 1)
        _, values, directions = np.linalg.svd(jacobian / size)
        least = float(np.finfo(self.density_jacobian.dtype).eps) ** _ZERO
        rank = int((values > least * values[0]).sum())
        directions = directions.T / size[:, None]
        return directions[:, :rank], directions[:, rank:]


def information(
    gmm: Any, x: Any, *, weights: Any = None, frozen: str | Iterable[str] = ()
) -> Information:
    r"""The observed information $-\nabla^2_u \sum_i \log p(x_i; u)$ in the leaves of a mixture.

    Memory is that of one log-density for a few directions at once, and of the result.

    **Arguments:**

    - `x`: the data, `(n, d)` or `gmmx.Data`.
    - `weights`: how often each sample counts, `(n,)`: the sum is weighted by them.
    - `frozen`: parameters that were not fitted, any of `"weights"`, `"means"`, `"covariances"`.

    **Returns:** an `Information`. Its `matrix` has null directions, see `Information.bases`. It
    composes with `jit` and `vmap`.
    """
    gmm, x, weights = subject(gmm, x, weights)
    concrete = _checks.is_concrete(gmm, x, weights)
    program = _information.at(x.size * gmm.means.size) if concrete else _information
    return program(gmm, x, weights, check_frozen(frozen))


def subject(gmm: Any, x: Any, weights: Any) -> tuple[AbstractMixture, Samples, Array | None]:
    """What a caller gives, checked, of one dtype, and filled up where Python sees it."""
    gmm = check_mixture(gmm)
    x, weights = without_weights(check_rows(x, 1, gmm.n_features), weights)
    dtype = _checks.promote(x.dtype, gmm.dtype)
    x, gmm = _checks.in_dtype((x, gmm), dtype)
    if weights is not None:
        weights = _checks.as_weights(weights, x.shape[:1], dtype)
    if _checks.is_concrete(x, gmm, weights):
        x, weights = _rows.fill(x, weights)
    return gmm, x, weights  # pyright: ignore[reportReturnType]


def _log_prob(gmm: AbstractMixture, x: Samples) -> Float[Array, " n"]:
    """By the way whose second derivatives are accurate too."""
    ladder = Ladder.of(gmm, x.shape[0], products=1)
    ladder = ladder.only(ladder.last)
    return by_way(gmm, x, log_prob_of, ladder, jnp.full((), ladder.first, jnp.int32))[0]


@Program
def _information(
    gmm: AbstractMixture, x: Samples, weights: Float[Array, " n"] | None, frozen: frozenset[str]
) -> Information:
    free, held = split(gmm, frozen)
    flat, unravel = ravel_pytree(free)
    p, n = flat.size, x.shape[0]
    counts = jnp.ones(n, x.dtype) if weights is None else weights

    def mixture(flat: Array) -> AbstractMixture:
        return eqx.combine(unravel(flat), held)

    def log_likelihood(flat: Array) -> Array:
        return counts @ _log_prob(mixture(flat), x)

    gradient = jax.grad(log_likelihood)

    def along(direction: Array) -> Array:
        return -jax.jvp(gradient, (flat,), (direction,))[1]

    # A few directions at once, as many as stay in the cache.
    rows = rows_per_chunk(p, 4 * x.size * gmm.n_components, x.dtype.itemsize, least=1)
    matrix = map_rows(jax.vmap(along), jnp.eye(p, dtype=flat.dtype), rows)

    def seen(flat: Array) -> tuple[Array, Array]:
        moved = mixture(flat)
        return ravel_pytree(Parameters.of(moved))[0], _density_parts(moved, gmm)

    jacobian, parts = jax.jacfwd(seen)(flat)
    symmetric = (matrix + matrix.T) / 2
    return Information(symmetric, gradient(flat), Parameters.of(gmm), jacobian, parts)


def _density_parts(gmm: AbstractMixture, about: AbstractMixture) -> Float[Array, " r"]:
    """What the density is made of, in the units of each component of the mixture `about`.

    What belongs to a component of weight zero is left at zero, since no density depends on it.
    """
    about = jax.lax.stop_gradient(about)
    there = about.weights > 0
    before, after = about.distinct_factors(), gmm.distinct_factors()
    factors = product(after, inverse_lower(before))
    apart = einsum("kij,kj->ki", about.dense_factors(), gmm.means - about.means)
    if factors.shape[0] == there.size:
        factors = jnp.where(there[:, None, None], factors, 0)
    # Of weight zero the logarithm is −∞, so the weights themselves, in units of what they are.
    weights, before = (_shares(mixture) for mixture in (gmm, about))
    weights = weights / jnp.where(before > 0, before, 1)
    parts = [weights, jnp.where(there[:, None], apart, 0), factors]
    return jnp.concatenate([part.ravel() for part in parts])


def _shares(gmm: AbstractMixture) -> Float[Array, " l"]:
    """The weights, and that of a background."""
    behind = gmm.log_background_weight
    return gmm.weights if behind is None else jnp.append(gmm.weights, jnp.exp(behind))


@Program
def score_products(
    gmm: AbstractMixture, x: Samples, weights: Float[Array, " n"] | None, frozen: frozenset[str]
) -> Float[Array, "p p"]:
    """Σ_i s_i s_iᵀ of the scores s_i = ∇_u log p(x_i; u), of n × p numbers a chunk at a time."""
    free, held = split(gmm, frozen)
    flat, unravel = ravel_pytree(free)
    n = x.shape[0]
    counts = jnp.ones(n, x.dtype) if weights is None else weights
    rows = rows_per_chunk(n, 4 * flat.size, x.dtype.itemsize)

    def score(place: Array) -> Array:
        row = take(x, place[None])
        return jax.grad(lambda flat: _log_prob(eqx.combine(unravel(flat), held), row)[0])(flat)

    def chunk(i: Array | int, present: Array | None) -> Array:
        places = chunk_of(jnp.arange(n), i, rows)
        scores, counted = jax.vmap(score)(places), counts[places]
        counted = counted if present is None else counted * present
        return einsum("n,np,nq->pq", counted, scores, scores)

    return fold(chunk, n, rows, counts)
