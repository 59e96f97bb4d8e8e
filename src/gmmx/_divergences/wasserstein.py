"""The Wasserstein distances between Gaussians and between mixtures."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._algebra.pair import matched
from .._components import AbstractComponents
from .._linalg import inverse_lower, inverse_root, orthogonalise_rows, product, safe_sqrt


def wasserstein_gaussian(
    mean_p: Any, covariance_p: Any, mean_q: Any, covariance_q: Any
) -> Float[Array, "*batch"]:
    r"""The Wasserstein distance W₂ between two Gaussians.

    $$W_2^2 = \|\mu_0 - \mu_1\|^2 + \operatorname{tr}\big(
      \Sigma_0 + \Sigma_1 - 2(\Sigma_0^{1/2}\Sigma_1\Sigma_0^{1/2})^{1/2}\big)$$

    **Arguments:** means `(*batch, d)` and covariances `(*batch, d, d)`, symmetric positive
    definite.

    **Returns:** `(*batch,)`, in the units of x. It differentiates twice, also where eigenvalues
    are equal. At distance zero, where it has no derivative, the gradient is zero.

    **Raises:** `ValueError` where shapes do not fit, or a covariance is not symmetric positive
    definite; inside a transformation the distance is NaN where it is not positive definite.
    """
    names = ("mean_p", "covariance_p", "mean_q", "covariance_q")
    arrays = [
        _checks.as_floating(v, name)
        for v, name in zip((mean_p, covariance_p, mean_q, covariance_q), names, strict=True)
    ]
    d = arrays[0].shape[-1] if arrays[0].ndim else 0
    for value, name in zip(arrays, names, strict=True):
        expected = (d,) if name.startswith("mean") else (d, d)
        if d == 0 or value.shape[-len(expected) :] != expected:
            raise ValueError(
                f"{name} has shape {value.shape}; expected means of shape (*batch, d) and "
                "covariances of shape (*batch, d, d), all of the same d."
            )
        _checks.check_finite(value, name)
    try:
        np.broadcast_shapes(*(v.shape[: -1 - i % 2] for i, v in enumerate(arrays)))
    except ValueError:
        shapes = ", ".join(f"{name} {v.shape}" for name, v in zip(names, arrays, strict=True))
        raise ValueError(
            f"the leading axes of {shapes} do not broadcast; expected the same ones, or none."
        ) from None
    m0, c0, m1, c1 = _checks.same_dtype(*arrays)
    roots = (inverse_lower(_checked_factor(covariance)) for covariance in (c0, c1))
    return safe_sqrt(jnp.sum((m0 - m1) ** 2, axis=-1) + _bures(*roots))


def _checked_factor(covariance: Float[Array, "*k d d"]) -> Float[Array, "*k d d"]:
    _checks.check_symmetric(covariance)
    factor = inverse_root(covariance)
    _checks.check_positive(jnp.diagonal(factor, axis1=-2, axis2=-1), n_own=1)
    return factor


def mixture_wasserstein(p: AbstractComponents, q: AbstractComponents) -> Float[Array, ""]:
    r"""The mixture Wasserstein distance MW₂ (Delon & Desolneux 2020).

    $$MW_2^2(p, q) = \min_{\pi} \sum_{kl} \pi_{kl}\, W_2^2(p_k, q_l)$$

    over the couplings π of the weights: the least cost of transport among plans that are mixtures
    themselves. It is at least W₂, in the units of x.

    The coupling is exact: SciPy solves the linear program on the host, in a callback that works
    under `jit`, `vmap` (one at a time) and differentiation. Derivatives are those of the envelope
    theorem, with the best coupling and its dual prices held fixed. Second derivatives leave out
    the coupling's own movement, which goes by jumps.
    """
    p, q = matched(p, q)
    cost = pairwise_squared_wasserstein(p, q)
    weights = (p.weights, q.weights)
    coupling, *prices = _transport(*jax.lax.stop_gradient((cost, *weights)))
    total = jnp.sum(coupling * cost)
    for price, weight in zip(prices, weights, strict=True):
        total = total + jnp.sum(price * (weight - jax.lax.stop_gradient(weight)))
    return safe_sqrt(total)


@jax.jit
def pairwise_squared_wasserstein(
    p: AbstractComponents, q: AbstractComponents
) -> Float[Array, "k l"]:
    """W₂² between every component of p and every component of q."""
    p, q = matched(p, q)
    roots = inverse_lower(q.dense_factors())

    def with_all(component: tuple[Array, Array]) -> Array:
        root, mean = component
        return jnp.sum((mean - q.means) ** 2, axis=-1) + _bures(
            jnp.broadcast_to(root, roots.shape), roots
        )

    # One component of p at a time, so that no K₁ × K₂ × d × d array is stored.
    return jax.lax.map(with_all, (inverse_lower(p.dense_factors()), p.means))


@jax.jit
def _bures(a: Float[Array, "*#k d d"], b: Float[Array, "*#k d d"]) -> Float[Array, "..."]:
    """tr(Σ₀ + Σ₁ − 2(Σ₀^½Σ₁Σ₀^½)^½), where Σ₀ = AAᵀ and Σ₁ = BBᵀ.

    It is the least ‖A − BU‖² over orthogonal U, which the polar factor of BᵀA attains (Bhatia,
    Jain & Lim 2019): a sum of squares, in which nothing cancels where the two are close.
    """
    cross = product(b.mT, a)
    rotation, rows = orthogonalise_rows(cross)
    norms = jnp.linalg.norm(rows, axis=-1)
    unit = rows / jnp.where(norms > 0, norms, 1)[..., None]
    # QBᵀAZᵀ is diagonal. U is held constant: it is the best one, so that first derivatives do not
    # depend on how it moves. Second ones do, by the part of QBᵀAZᵀ that is not symmetric.
    seen = product(product(rotation, cross), unit.mT)
    uneven = (seen - seen.mT) ** 2 / (norms[..., :, None] + norms[..., None, :])
    correction = jnp.sum(jnp.triu(uneven, 1), axis=(-2, -1))
    nearest = a - product(b, product(rotation.mT, unit))
    return jnp.sum(nearest**2, axis=(-2, -1)) - correction


def _transport(
    cost: Float[Array, "k l"], p: Float[Array, " k"], q: Float[Array, " l"]
) -> tuple[Float[Array, "k l"], Float[Array, " k"], Float[Array, " l"]]:
    """The coupling of least cost, and the dual prices of the weights of each side."""
    shapes = tuple(jax.ShapeDtypeStruct(array.shape, cost.dtype) for array in (cost, p, q))
    return jax.pure_callback(_solve, shapes, cost, p, q, vmap_method="sequential")


def _solve(cost: Any, p: Any, q: Any) -> tuple[np.ndarray, ...]:
    """The transport problem as a linear program, on the host, in float64."""
    from scipy import sparse
    from scipy.optimize import linprog

    dtype = np.asarray(cost).dtype
    cost, p, q = (np.asarray(value, float) for value in (cost, p, q))
    if not (np.isfinite(cost).all() and np.isfinite(p).all() and np.isfinite(q).all()):
        return tuple(np.full(shape, np.nan, dtype) for shape in (cost.shape, p.shape, q.shape))
    largest = cost.max() or 1.0
    sums = sparse.vstack(
        [
            sparse.kron(sparse.eye(p.size), np.ones((1, q.size))),
            sparse.kron(np.ones((1, p.size)), sparse.eye(q.size)),
        ]
    ).tocsr()
    # Without the last sum, which follows from the others.
    totals = np.concatenate([p / p.sum(), q / q.sum()])[:-1]
    solution = linprog(cost.ravel() / largest, A_eq=sums[:-1], b_eq=totals, method="highs-ds")
    if solution.x is None:
        raise RuntimeError(f"The transport of the weights was not solved: {solution.message}")
    prices = np.append(solution.eqlin.marginals, 0.0) * largest
    coupling = solution.x.reshape(cost.shape)
    parts = (coupling, prices[: p.size], prices[p.size :])
    return tuple(value.astype(dtype) for value in parts)
