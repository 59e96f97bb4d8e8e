"""The E-step over rows with noise of their own, by a Cholesky factor for each row and component.

For few features, and written out entry by entry: each entry of a factor is an array over rows. With
the covariance T = Σ + C of what was observed, T = RRᵀ, and the root L of Σ, A = R⁻¹L and
y = R⁻¹(x − μ) give

    log p = −½‖y‖² − log|R|,    E[u] = Aᵀy,    Cov[u] = I − AᵀA.
"""

import math
from collections.abc import Iterable
from functools import reduce
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._linalg import einsum, inverse_lower
from .form import Form
from .observed import AbstractIntake, FramedMixture, Numbers
from .rows import responsibilities

MOST = 8
"""Features up to which entries are written out: the program grows with their third power"""

# The largest variance of a feature, in units of what the others leave of it, at which T is
# factorised accurately.
_LIMIT = {jnp.dtype("float32"): 2e3, jnp.dtype("float64"): 1e9}


class Eliminated(AbstractIntake):
    """By Cholesky factors, which cancel where features are nearly collinear."""

    fewest_rows: ClassVar[int] = 1024

    @classmethod
    def size(cls, form: Form, reach: Float[Array, " d"]) -> Float[Array, ""]:
        """The largest inflation Σ_jj Λ_jj of a variance by the other features. Noise lowers it."""
        variances = jnp.sum(inverse_lower(form.factors) ** 2, axis=2)
        precisions = jnp.sum(form.factors**2, axis=1)
        return jnp.max(variances * precisions) / _LIMIT[reach.dtype]

    @classmethod
    def sums(
        cls, form: Form, prior: FramedMixture, rows: Numbers, weights: Float[Array, " n"] | None
    ) -> tuple[Array, ...]:
        y, white, log_det = _factors(prior, rows)
        d, count = len(y), jnp.sum(rows.seen.astype(rows.values.dtype), axis=0)
        constant = prior.log_weights[:, None] - math.log(2 * math.pi) / 2 * count
        log_joint = rows.log_joint(constant - log_det - _sum(v**2 for v in y) / 2)
        share, totals = responsibilities(log_joint, weights, len(form.means))

        # One product sums all of them: a reduction along rows is not vectorised.
        u = [_sum(white[i][j] * y[i] for i in range(j, d)) for j in range(d)]
        pairs = [(a, b) for a in range(d) for b in range(a + 1)]
        squares = [
            u[a] * u[b] - _sum(white[i][a] * white[i][b] for i in range(a, d)) + float(a == b)
            for a, b in pairs
        ]
        sums = einsum("pkn,kn->kp", jnp.stack([*u, *squares]), share)
        place = [[pairs.index((max(a, b), min(a, b))) for b in range(d)] for a in range(d)]
        first, scatter = sums[:, :d], sums[:, d:][:, np.array(place)]
        if form.shared:
            scatter = jnp.sum(scatter, axis=0, keepdims=True)
        return jnp.sum(share, axis=1), first, scatter, *totals


def _factors(prior: FramedMixture, rows: Numbers) -> tuple[list[Array], list[list[Array]], Array]:
    """y, A and log|R|, entry by entry: arrays (k n), or (1 n) where components share a root."""
    seen, noise = rows.seen, rows.noise**2
    there = seen.astype(prior.means.dtype)
    d = prior.means.shape[1]
    roots = [[prior.roots[:, i, j, None] for j in range(i + 1)] for i in range(d)]
    apart = [jnp.where(seen[i], rows.values[i] - prior.means[:, i, None], 0) for i in range(d)]
    lower, inverse, y, white = [], [], [], []
    for i in range(d):
        row = []
        for j in range(i + 1):
            # What was not observed is a number of its own, of variance one, and zero.
            own = _sum(roots[i][k] * roots[j][k] for k in range(j + 1)) * (there[i] * there[j])
            own = own + noise[i] if i == j else own
            row.append(own - _sum(row[k] * (row if i == j else lower[j])[k] for k in range(j)))
            if j < i:
                row[j] = row[j] * inverse[j]
            else:
                inverse.append(jax.lax.rsqrt(row[i]))
                lower.append(row)
        y.append((apart[i] - _sum(row[k] * y[k] for k in range(i))) * inverse[i])
        white.append(
            [
                (roots[i][j] * there[i] - _sum(row[k] * white[k][j] for k in range(j, i)))
                * inverse[i]
                for j in range(i + 1)
            ]
        )
    return y, white, -_sum(jnp.log(v) for v in inverse)


def _sum(terms: Iterable[Array]) -> Any:
    """The sum of a few arrays; zero of none."""
    terms = list(terms)
    return reduce(jnp.add, terms) if terms else 0
