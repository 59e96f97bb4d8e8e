"""A background that the Gaussians of a mixture stand before: rows that belong to no cluster."""

import dataclasses
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from . import _checks
from ._abstract_mixture import AbstractMixture
from ._components import check_mixture
from ._covariance import AbstractCovariance
from ._data import Data, Samples
from ._linalg import log_weight
from ._mixture import GaussianMixture
from ._sampling import draw


class UniformBackground(eqx.Module):
    r"""The uniform density on a box: $b(x) = 1/\prod_j (h_j - l_j)$ in it, and zero outside.

    Of a row with gaps it is the density of what was observed.

    **Arguments:**

    - `low`, `high`: the ends of the box, `(d,)`, in the units of the data.
    """

    low: Float[Array, " d"]
    high: Float[Array, " d"]

    def __init__(self, low: Any, high: Any):
        low, high = (_checks.as_floating(v, name) for v, name in ((low, "low"), (high, "high")))
        if low.ndim != 1 or low.shape != high.shape:
            raise ValueError(
                f"low has shape {low.shape} and high has shape {high.shape}; expected (d,) each."
            )
        if _checks.is_concrete(low, high):
            ends = np.stack([np.asarray(low), np.asarray(high)])
            bad = ~(np.isfinite(ends).all(axis=0) & (ends[0] < ends[1]))
            if bad.any():
                j = int(np.argmax(bad))
                raise ValueError(
                    f"the box of the background goes from {ends[0, j]:g} to {ends[1, j]:g} in "
                    f"feature {j}; expected a finite low below a finite high. A constant feature "
                    "tells no background from clusters: leave it out."
                )
        dtype = _checks.promote(low.dtype, high.dtype)
        self.low, self.high = jnp.asarray(low, dtype), jnp.asarray(high, dtype)

    @classmethod
    def of(cls, x: Any) -> Self:
        """On the box of the data, an array `(n, d)` or `gmmx.Data`."""
        if not isinstance(x, Data):
            x = _checks.check_data(x, 1)
            xp = _checks.array_module(x)
            return cls(xp.min(xp.asarray(x), axis=0), xp.max(xp.asarray(x), axis=0))
        _check_unprojected(x)
        xp = _checks.array_module(x.x, x.deviations)
        values, seen = xp.asarray(x.x), xp.isfinite(xp.asarray(x.deviations))
        low = xp.min(xp.where(seen, values, xp.inf), axis=0)
        return cls(low, xp.max(xp.where(seen, values, -xp.inf), axis=0))

    def log_prob(self, x: Samples) -> Float[Array, " n"]:
        """log b(x) of each row."""
        if isinstance(x, Data):
            _check_unprojected(x)
            points, seen = x.x, jnp.isfinite(x.deviations)
        else:
            points, seen = x, jnp.ones(x.shape, bool)
        # The ends count as inside, also in a dtype that has rounded them.
        ends = jnp.maximum(jnp.abs(self.low), jnp.abs(self.high))
        margin = 4 * float(jnp.finfo(self.low.dtype).eps) * ends
        inside = (points >= self.low - margin) & (points <= self.high + margin)
        volume = jnp.sum(jnp.where(seen, jnp.log(self.high - self.low), 0), axis=1)
        return jnp.where(jnp.all(inside | ~seen, axis=1), -volume, -jnp.inf)

    def sample(self, n_samples: int, *, key: PRNGKeyArray) -> Float[Array, "n d"]:
        """Draws, `(n_samples, d)`."""
        shape = (n_samples, self.low.size)
        return self.low + (self.high - self.low) * jax.random.uniform(key, shape, self.low.dtype)


def _check_unprojected(x: Data) -> None:
    if x.projection is not None:
        raise ValueError(
            "the rows are projections, or have noise that is a matrix, of which the box of a "
            "uniform background says nothing. Pass a background of your own, with a method "
            "log_prob(x)."
        )


def as_background(background: Any, x: Any) -> Any:
    """What a caller asks for: True is uniform on the box of x, and False none."""
    if background is True:
        return UniformBackground.of(x)
    return None if background is False else background


class BackgroundMixture(AbstractMixture):
    r"""A mixture of K Gaussians before a background of fixed density b, whose weight is fitted.

    $$p(x) = \sum_{k=1}^K w_k\, \mathcal{N}(x; \mu_k, \Sigma_k) + w_0\, b(x),\qquad
      w_0 + \sum_k w_k = 1$$

    Rows that belong to no cluster, clutter or outliers, then move no mean and widen no covariance
    (Banfield & Raftery 1993). `predict` and `predict_proba` count the background as component K,
    the last one. `gmmx.initialize(x, n_components, background=True)` makes one to start a fit from.
    """

    logits: Float[Array, " k"]
    """Unnormalised log-weights of the Gaussians, beside that of the background"""
    means: Float[Array, "k d"]
    """μ_k"""
    structure: AbstractCovariance
    """The covariances, see `gmmx.AbstractCovariance`"""
    background_logit: Float[Array, ""]
    """The unnormalised log-weight of the background"""
    background: Any
    """b: a module with `log_prob(x)`. It is not trained"""

    @classmethod
    def of(cls, gmm: GaussianMixture, background: Any, weight: Any = 0.1) -> "BackgroundMixture":
        """The mixture before a background.

        **Arguments:**

        - `background`: a `gmmx.UniformBackground`, or any module whose `log_prob(x)` gives the
            log-density of rows `(n, d)`, such as a wide `GaussianMixture`. A fit to `gmmx.Data`
            passes those.
        - `weight`: w_0, from 0 to 1.
        """
        check_mixture(gmm)
        if not isinstance(gmm, GaussianMixture):
            raise ValueError(f"gmm is a {type(gmm).__name__}; expected a GaussianMixture.")
        if not callable(getattr(background, "log_prob", None)):
            raise ValueError(
                f"background is of type {type(background).__name__}; expected a module with a "
                "method log_prob(x), such as gmmx.UniformBackground.of(x)."
            )
        if _checks.is_concrete(weight) and not 0 <= float(weight) <= 1:
            raise ValueError(f"weight={float(weight):g}; expected a part of the rows, 0 to 1.")
        weight = jnp.asarray(weight, gmm.dtype)
        background = _checks.in_dtype(background, gmm.dtype)
        logits = gmm.log_weights + log_weight(1 - weight)
        return cls(logits, gmm.means, gmm.structure, log_weight(weight), background)

    @property
    def mixture(self) -> GaussianMixture:
        """The Gaussians alone, with weights of sum one."""
        return GaussianMixture(self.logits, self.means, self.structure)

    @property
    def background_weight(self) -> Float[Array, ""]:
        """w_0"""
        return jnp.exp(self.log_background_weight)

    @property
    def n_labels(self) -> int:
        return self.n_components + 1

    @property
    def n_parameters(self) -> int:
        """Those of the Gaussians, and the weight of the background."""
        return super().n_parameters + 1

    @property
    def log_weights(self) -> Float[Array, " k"]:
        """log w_k, of sum 1 − w_0"""
        return self._log_shares()[:-1]

    @property
    def weights(self) -> Float[Array, " k"]:
        """w_k, of sum 1 − w_0"""
        return jnp.exp(self.log_weights)

    @property
    def log_background_weight(self) -> Float[Array, ""]:
        """log w_0"""
        return self._log_shares()[-1]

    def _log_shares(self) -> Float[Array, " l"]:
        logits = self._leaf("log_weights", self.logits)
        return jax.nn.log_softmax(jnp.concatenate([logits, self.background_logit[None]]))

    def log_background(self, x: Samples) -> Float[Array, " n"]:
        arrays, rest = eqx.partition(self.background, eqx.is_array)
        return eqx.combine(jax.lax.stop_gradient(arrays), rest).log_prob(x)

    def parts(self) -> dict[str, tuple[PyTree, ...]]:
        return super().parts() | {"weights": (self.logits, self.background_logit)}

    def of_counts(self, counts: Float[Array, " k"], background: Float[Array, ""] | None) -> Self:
        assert background is not None
        total = jnp.log(jnp.sum(counts) + background)
        logits, behind = log_weight(counts) - total, log_weight(background) - total
        return dataclasses.replace(self, logits=logits, background_logit=behind)

    def sample(self, n_samples: int, *, key: PRNGKeyArray | None = None) -> Float[Array, "n d"]:
        """Draws, `(n_samples, d)`, where the background has a method `sample(n, key=key)`."""
        return self.sample_with_labels(n_samples, key=key)[0]

    def sample_with_labels(
        self, n_samples: int, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "n d"], Int[Array, " n"]]:
        """Draws, and the component that each comes from; K for the background."""
        n_samples = _checks.check_count(n_samples, "n_samples")
        behind, before, which = jax.random.split(_checks.as_key(key), 3)
        drawn, labels = draw(self.mixture, n_samples, before)
        uniform = jax.random.uniform(which, (n_samples,), self.dtype)
        clutter = uniform < self.background_weight
        others = self.background.sample(n_samples, key=behind)
        x = jnp.where(clutter[:, None], others, drawn)
        return x, jnp.where(clutter, self.n_components, labels)
