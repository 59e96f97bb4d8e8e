"""The prior of a mixture's parameters, for fits of greatest posterior density (MAP)."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _checks
from .._abstract_mixture import AbstractMixture
from .._data import Samples, completed
from .._engine.conjugate import Conjugate
from .._engine.frame import Frame
from .._engine.summary import Summary
from .._linalg import einsum
from .options import optional, sweepable


class ConjugatePrior(eqx.Module):
    r"""A prior that keeps covariances from collapsing, for `EMFitter` and `GradientFitter`.

    $$w \sim \mathrm{Dir}(\alpha),\quad
      \mu_k \mid \Sigma_k \sim \mathcal{N}(\mu_P, \Sigma_k/\kappa),\quad
      \Sigma_k \sim \mathcal{W}^{-1}(\Lambda_0, \nu)$$

    and its relatives for other structures: one inverse Wishart where a covariance is shared, an
    inverse gamma for each variance of diagonal and spherical ones. The defaults are those of mclust
    (Fraley & Raftery 2007): κ = 0.01, μ_P the mean of the data, ν = d + 2, and Λ₀ the covariance of
    the data, or the mean of their variances, over K^(2/d). They move a fit to regular clusters
    little.

    With it a fit maximises log L + log p(θ), and `result.gmm` is the mode. `result.log_likelihood`
    and the criteria stay those of the likelihood.

    **Arguments:**

    - `concentration`: α ≥ 1; 1 is flat.
    - `shrinkage`: κ ≥ 0.
    - `mean`: μ_P, `(d,)`.
    - `dof`: ν.
    - `scale`: Λ₀, `(d, d)`, or its diagonal `(d,)`, in the squared units of the data.

    `strength` multiplies the logarithm of the whole prior.
    """

    concentration: Float[Array, ""] | float = eqx.field(default=1.0, converter=sweepable)
    shrinkage: Float[Array, ""] | float = eqx.field(default=0.01, converter=sweepable)
    mean: Any = None
    dof: Float[Array, ""] | float | None = eqx.field(default=None, converter=optional(sweepable))
    scale: Any = None
    strength: Float[Array, ""] | float = 1.0

    def beside(self, weights: Any) -> "ConjugatePrior":
        """The prior beside sample weights that a fit scales to a mean of one."""
        if weights is None:
            return self
        mean = jnp.mean(_checks.as_floating(weights, "weights"))
        return eqx.tree_at(lambda prior: prior.strength, self, self.strength / mean)

    def __check_init__(self):
        alpha = self.concentration
        if _checks.is_concrete(alpha) and not float(alpha) >= 1:
            raise ValueError(f"concentration={float(alpha):g}; expected at least 1, which is flat.")
        _check_values(self.mean, "mean")
        _check_values(self.scale, "scale")

    def of(self, x: Samples, gmm: AbstractMixture, weights: Float[Array, " n"] | None) -> Conjugate:
        """The prior of mixtures like this one, of these rows."""
        x = completed(x, weights)
        frame = Frame.of_data(x, weights, turned=False)
        spread = None
        if self.scale is None:
            spread = _spread(x, weights, frame, type(gmm.structure).axis_aligned)
        return self.about(frame.centre, spread, gmm)

    def of_summary(self, summary: Summary, gmm: AbstractMixture) -> Conjugate:
        """The prior of mixtures like this one, of rows that were summarised."""
        # As of n − 1 degrees of freedom.
        spread = summary.covariance * (summary.counted / (summary.counted - 1))
        return self.about(summary.mean, spread, gmm)

    def about(
        self, centre: Float[Array, " d"], spread: Array | None, gmm: AbstractMixture
    ) -> Conjugate:
        """The prior of mixtures like this one.

        **Arguments:**

        - `centre`: the mean of the data.
        - `spread`: their covariance or variances, where no scale was given.
        """
        structure, (k, d), dtype = type(gmm.structure), gmm.means.shape, gmm.dtype
        if structure.n_latent is not None:
            raise ValueError(
                f"a ConjugatePrior has no form for {structure.covariance_type!r} covariances. "
                "Leave it out; reg_covar holds components open."
            )
        mean = centre if self.mean is None else _shaped(self.mean, "mean", ((d,),), dtype)
        if self.scale is None:
            assert spread is not None
            scale = _scale(spread, structure) / k ** (2 / d)
        else:
            shapes = ((d,),) if structure.axis_aligned else ((d,), (d, d))
            scale = _shaped(self.scale, "scale", shapes, dtype)
        return Conjugate(
            jnp.asarray(self.concentration, dtype),
            jnp.asarray(self.shrinkage, dtype),
            mean,
            scale,
            jnp.asarray(d + 2 if self.dof is None else self.dof, dtype),
            jnp.asarray(self.strength, dtype),
        )


def _spread(x, weights, frame, diagonal) -> Float[Array, "d d"] | Float[Array, " d"]:
    """The covariance of the data, or its diagonal."""
    counts = jnp.ones_like(x[:, 0]) if weights is None else weights
    # As of n − 1 degrees of freedom; filled-up rows have no weight.
    total = jnp.sum(counts) - jnp.sum(counts) / jnp.sum((counts > 0).astype(x.dtype))
    z = frame.apply(x)
    if diagonal:
        return (counts @ z**2) / total * frame.root**2
    return einsum("nd,n,ne->de", z, counts, z) / total * frame.root[:, None] * frame.root


def _scale(spread, structure) -> Float[Array, "d d"] | Float[Array, " d"]:
    """What the prior of a structure has in place of the covariance of the data."""
    if not structure.axis_aligned:
        return spread
    variance = jnp.mean(spread)
    share = variance / len(spread) if structure.isotropic else variance
    return jnp.broadcast_to(share, spread.shape)


def _shaped(value: Any, name: str, shapes: tuple[tuple[int, ...], ...], dtype: Any) -> Array:
    array = _checks.as_floating(value, name, dtype)
    if array.shape not in shapes:
        known = " or ".join(map(str, shapes))
        raise ValueError(f"{name} of the prior has shape {array.shape}; expected {known}.")
    return array


def _check_values(value: Any, name: str) -> None:
    """Finite numbers; of a scale, positive variances or a symmetric positive definite matrix."""
    if value is None or not _checks.is_concrete(value):
        return
    values = _checks.as_floating(value, name)
    _checks.check_finite(values, f"{name} of the prior", "Expected finite numbers.")
    if name == "mean":
        return
    if values.ndim == 2:
        _checks.check_symmetric(values)
    square = values.ndim == 2 and values.shape[0] == values.shape[1]
    least = np.linalg.eigvalsh(np.asarray(values))[0] if square else np.asarray(values).min()
    if not least > 0:
        raise ValueError(f"scale of the prior has the variance {least:g}; expected positive ones.")
