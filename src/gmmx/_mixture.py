"""The Gaussian mixture: the face of the library."""

from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from . import _checks, _rows
from ._abstract_mixture import AbstractMixture
from ._algebra import condition, linear, merge
from ._algebra.impute import impute
from ._algebra.latent import latent_factors
from ._components import check_mixture
from ._covariance import AbstractCovariance, structure_named
from ._covariance.factors import LowRankFactors
from ._covariance.low_rank import AbstractLowRank
from ._engine.floor import RELATIVE
from ._engine.memberships import fit_memberships
from ._linalg import einsum, inverse_lower, log_weight
from ._pathwise import pathwise as reparameterised
from ._raw import MIN_SCALE, pack, unpack
from ._sampling import draw
from ._scores import noise_score

if TYPE_CHECKING:
    from ._batch import MixtureBatch
    from ._posterior import AbstractPosterior


class GaussianMixture(AbstractMixture):
    r"""A mixture of K Gaussians in d dimensions.

    $$p(x) = \sum_{k=1}^K w_k\, \mathcal{N}(x; \mu_k, \Sigma_k)$$

    Every leaf is unconstrained: the weights are softmax(`logits`) and the structure holds the
    Cholesky factor of each precision with its diagonal in logarithms. Any real values are a valid
    mixture, so a larger module that holds one can be trained over all leaves at once.

    Methods are plain functions of the leaves: they compose with `jax.jit`, `jax.vmap`,
    `jax.grad` and `equinox.filter_vmap` over a stack of mixtures. They take x of shape
    `(*batch, d)`: one point, a batch, or any leading axes.
    """

    logits: Float[Array, " k"]
    """Unnormalised log-weights"""
    means: Float[Array, "k d"]
    """μ_k"""
    structure: AbstractCovariance
    """The covariances, see `gmmx.AbstractCovariance`"""

    def __init__(
        self, logits: Any = None, means: Any = None, structure: Any = None, **settings: Any
    ):
        if structure is None or settings:
            raise TypeError(
                "a GaussianMixture is made of its leaves logits, means and structure. To fit one "
                "to data, call gmmx.EMFitter().fit(x, n_components); for known parameters, "
                "GaussianMixture.from_parameters(weights, means, covariances). scikit-learn's "
                "interface is gmmx.sklearn.GaussianMixture."
            )
        self.logits, self.means, self.structure = logits, means, structure

    def __check_init__(self):
        if not all(hasattr(leaf, "shape") for leaf in (self.logits, self.means)):
            return
        if self.means.ndim != 2 or self.logits.shape != self.means.shape[:1]:
            raise ValueError(
                f"logits of shape {self.logits.shape} and means of shape {self.means.shape} do "
                "not fit; expected (k,) and (k, d)."
            )

    # Construction

    @classmethod
    def create(
        cls,
        n_components: int,
        n_features: int,
        covariance_type: str = "full",
        *,
        rank: int | None = None,
        key: PRNGKeyArray | None = None,
        dtype: Any = None,
    ) -> Self:
        """A mixture of equal weights and unit variances whose means lie apart.

        The means are drawn from a normal distribution that widens with the number of
        components, so that their overlap does not grow. To start a fit, prefer
        `gmmx.initialize`, which looks at the data.

        **Arguments:**

        - `rank`: the number of latent factors of a component, for `"low_rank"`.
        - `key`: for the means; `jax.random.key(0)` by default.
        - `dtype`: of the leaves; JAX's default float type by default.
        """
        n_components = _checks.check_count(n_components, "n_components")
        n_features = _checks.check_count(n_features, "n_features")
        dtype = jnp.zeros((), dtype).dtype
        key = _checks.as_key(key)
        spread = max(2.0, 2 * n_components ** (1 / n_features))
        means = spread * jax.random.normal(key, (n_components, n_features), dtype)
        scale = jnp.ones(n_features, dtype)
        structure = structure_named(covariance_type, rank, n_features)
        structure = structure.from_scale(scale, n_components)
        return cls(jnp.zeros(n_components, dtype), means, structure)

    @classmethod
    def from_parameters(
        cls,
        weights: Any,
        means: Any,
        covariances: Any,
        covariance_type: str = "full",
    ) -> Self:
        """A mixture with known parameters.

        **Arguments:**

        - `weights`: `(k,)`, non-negative, of sum one. A component of weight zero is not there,
            and the derivative in its weight is zero.
        - `means`: `(k, d)`.
        - `covariances`: `(k, d, d)` if full, `(d, d)` if tied, `(k, d)` if diag, `(k,)` if
            spherical.

        **Raises:** `ValueError`, naming the component, where a covariance is not symmetric
        positive definite, the weights are not a distribution, or the shapes do not fit.
        """
        structure = structure_named(covariance_type)
        weights, means, covariances = _checks.as_one_dtype(
            weights=weights, means=means, covariances=covariances
        )
        _checks.check_parameters(
            weights, means, covariances, structure.natural_shape, covariance_type
        )
        return cls(log_weight(weights), means, structure.from_covariances(covariances))

    @classmethod
    def from_loadings(cls, weights: Any, means: Any, loadings: Any, noise_variances: Any) -> Self:
        """A mixture of factor analysers: covariances F_kF_kᵀ + Ψ_k of low rank.

        **Arguments:**

        - `weights`: `(k,)`, non-negative, of sum one.
        - `means`: `(k, d)`.
        - `loadings`: F_k, `(k, d, r)` with r < d; or one F for all components, `(d, r)`.
        - `noise_variances`: the diagonal of Ψ_k, `(k, d)`; or one variance a component, `(k,)`, for
            probabilistic principal components.

        **Raises:** `ValueError` where shapes do not fit, a variance is not positive, or the weights
        are not a distribution.
        """
        weights, means, loadings, variances = _checks.as_one_dtype(
            weights=weights, means=means, loadings=loadings, noise_variances=noise_variances
        )
        own_loadings = loadings.ndim == 3
        if loadings.shape[:-1] != means.shape[0 if own_loadings else 1 :]:
            raise ValueError(
                f"loadings has shape {loadings.shape} and means has {means.shape}; expected "
                "(k, d, r), or (d, r) for all components, and (k, d)."
            )
        name = "low_rank" if own_loadings else "tied_loadings"
        name = name if variances.ndim == 2 else f"{name}_spherical"
        structure = structure_named(name, loadings.shape[-1], means.shape[1])
        own = (variances.ndim == 2) * 1
        _checks.check_parameters(
            weights, means, variances, lambda k, d: (k, d)[: own + 1], name, "noise_variances"
        )
        _checks.check_finite(loadings, "loadings")
        _checks.check_positive(variances, n_own=own)
        diagonal = 1 / jnp.sqrt(variances if own else jnp.tile(variances[:, None], means.shape[1]))
        factors = LowRankFactors(diagonal, loadings * diagonal[:, :, None])
        return cls(log_weight(weights), means, structure.from_factors(factors))

    @classmethod
    def from_responsibilities(
        cls,
        x: Any,
        responsibilities: Any,
        covariance_type: str = "full",
        *,
        rank: int | None = None,
        weights: Any = None,
        reg_covar: Any = RELATIVE,
    ) -> "GaussianMixture":
        """One M-step from given responsibilities, soft or one-hot, `(n, k)`.

        Of low rank, a few such steps: one alone does not find the loadings.

        **Arguments:**

        - `rank`: the number of latent factors of a component, for `"low_rank"`.
        - `weights`: sample weights, `(n,)`.
        - `reg_covar`: added to the variances: a part of each feature's variance in the data, or
            `(d,)`, the variances to add, in the squared units of the data.
        """
        responsibilities = _checks.as_floating(responsibilities, "responsibilities")
        if responsibilities.ndim != 2:
            raise ValueError(
                f"responsibilities has shape {responsibilities.shape}; expected "
                "(n_samples, n_components)."
            )
        x = _checks.check_data(x, responsibilities.shape[1])
        if responsibilities.shape[0] != x.shape[0]:
            raise ValueError(
                f"x has {x.shape[0]} samples and responsibilities {responsibilities.shape[0]} "
                "rows; expected one row for each sample."
            )
        _checks.check_finite(responsibilities, "responsibilities")
        if _checks.is_concrete(responsibilities) and (np.asarray(responsibilities) < 0).any():
            raise ValueError("responsibilities holds negative values; they are probabilities.")
        weights = _checks.check_weights(weights, x.shape[0], x.dtype)
        responsibilities = responsibilities.astype(x.dtype)
        if weights is not None:
            responsibilities = responsibilities * weights[:, None]
        if _checks.is_concrete(x, responsibilities):
            more = _rows.size(x.shape[0]) - x.shape[0]
            responsibilities = np.pad(np.asarray(responsibilities), ((0, more), (0, 0)))
            x = _rows.fill_rows(x)
        _checks.check_floor(reg_covar)
        floor = jnp.asarray(reg_covar, x.dtype)
        structure = structure_named(covariance_type, rank, x.shape[1])
        return fit_memberships(cls, structure, x, responsibilities, floor)

    @classmethod
    def from_raw(
        cls,
        raw: Any,
        n_components: int,
        n_features: int,
        covariance_type: str = "full",
        *,
        min_scale: Any = MIN_SCALE,
    ) -> Self:
        r"""The mixture of a vector of any real numbers, such as the output of a network.

        The vector holds the logits, the means and the free numbers of the covariances. Scales are
        bounded from below, $\sigma = s + e^v$ for a number v, so that no density exceeds
        $(2\pi s^2)^{-d/2}$. A scale is the deviation of a feature given those before it in a full
        or tied covariance, the deviation in a diagonal one, and $|\Sigma_k|^{1/2d}$ or a deviation
        along an axis where components share parts. So that nothing overflows, logarithms are cut
        at a quarter of the dtype's range, ±22 in float32, and all numbers at their exponentials.
        For many mixtures at once see `gmmx.MixtureBatch.from_raw`.

        **Arguments:**

        - `raw`: `(size,)`, with `size = gmmx.raw_size(n_components, n_features, covariance_type)`.
        - `min_scale`: the floor s, in the units of the features.

        **Raises:** `ValueError` where the size does not fit, or `min_scale` is not positive.
        """
        leaves = unpack(raw, n_components, n_features, covariance_type, min_scale)
        if leaves[0].ndim > 1:
            raise ValueError(
                f"raw holds mixtures of shape {leaves[0].shape[:-1]}; expected one. For a batch "
                "take gmmx.MixtureBatch.from_raw."
            )
        return cls(*leaves)

    def to_raw(self, *, min_scale: Any = MIN_SCALE) -> Float[Array, " size"]:
        """The vector of which `from_raw` makes this mixture, with the same `min_scale`.

        **Raises:** `ValueError` where a scale is not above `min_scale`.
        """
        return pack(check_mixture(self), min_scale)

    # scikit-learn

    @staticmethod
    def from_sklearn(estimator: Any) -> "GaussianMixture":
        """The mixture of a fitted scikit-learn estimator, see `gmmx.sklearn.from_sklearn`."""
        from .sklearn import from_sklearn

        return from_sklearn(estimator)

    def to_sklearn(self, **parameters: Any) -> Any:
        """A fitted `sklearn.mixture.GaussianMixture`, see `gmmx.sklearn.to_sklearn`."""
        from .sklearn import to_sklearn

        return to_sklearn(self, **parameters)

    # Moments

    def mean(self) -> Float[Array, " d"]:
        """The mean of the whole mixture, Σ w_k μ_k."""
        return check_mixture(self).weights @ self.means

    def covariance(self) -> Float[Array, "d d"]:
        """The covariance of the whole mixture, Σ w_k (Σ_k + (μ_k − μ)(μ_k − μ)ᵀ)."""
        structure = check_mixture(self).structure
        if isinstance(structure, AbstractLowRank):
            within = structure.pooled(self.weights)
        else:
            root = inverse_lower(self.dense_factors())
            within = einsum("k,kij,klj->il", self.weights, root, root)
        apart = self.means - self.mean()
        return within + einsum("k,ki,kl->il", self.weights, apart, apart)

    def latent_factors(self, x: Any) -> tuple[Float[Array, "*batch k r"], Float[Array, "k r r"]]:
        r"""What points say of the latent factors z of each component, x = μ_k + F_kz + ε.

        $$z \mid x, k \sim \mathcal{N}\big(M_k^{-1} F_k^\top \Psi_k^{-1} (x - \mu_k), M_k^{-1}\big),
          \quad M_k = I + F_k^\top \Psi_k^{-1} F_k$$

        Those of the likeliest component are `mean[jnp.arange(len(x)), gmm.predict(x)]`. Factors of
        different components have nothing in common, so a mean over components says little.

        **Returns:** the means, and the covariances, which do not depend on x.

        **Raises:** `ValueError` where the covariances are not of low rank.
        """
        return latent_factors(self, x)

    def noise_score(self, x: Any, sigma: Any) -> Float[Array, "*batch d"]:
        r"""The gradient in x of the log-density of the mixture under normal noise.

        $$\nabla_x \log \big(p * \mathcal{N}(0, \sigma^2 I)\big)(x)
          = -\sum_k r_k(x)\,(\Sigma_k + \sigma^2 I)^{-1}(x - \mu_k)$$

        **Arguments:**

        - `x`: points, `(*batch, d)`.
        - `sigma`: σ ≥ 0, in the units of x: one for all points, or a shape that broadcasts to
            `(*batch,)`. Zero gives the score of the mixture itself.

        **Returns:** the scores, `(*batch, d)`. They differentiate in x, σ and every leaf; exactly
        up to the second derivatives where each point has a σ of its own.
        """
        return noise_score(self, x, sigma)

    # Sampling

    def sample(
        self, n_samples: int, *, key: PRNGKeyArray | None = None, pathwise: bool = False
    ) -> Float[Array, "n d"]:
        """Draws from the mixture, `(n_samples, d)`.

        Without a key `jax.random.key(0)` is used: the draws are the same each time.

        **Arguments:**

        - `pathwise`: the same draws, but their derivatives are those of the distribution: the
            gradient of a mean over draws estimates, without bias, the gradient of the
            expectation in every leaf, the weights included (Figurnov, Mohamed & Mnih 2018).
            Without it a draw moves with the one component that it came from, and the weights
            have no gradient.
        """
        if not pathwise:
            return self.sample_with_labels(n_samples, key=key)[0]
        return reparameterised(self, jax.lax.stop_gradient(self).sample(n_samples, key=key))

    def sample_with_labels(
        self, n_samples: int, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "n d"], Int[Array, " n"]]:
        """Draws, and the component that each comes from."""
        n_samples = _checks.check_count(n_samples, "n_samples")
        return draw(self, n_samples, _checks.as_key(key))

    # Algebra

    def marginal(self, indices: Any) -> "GaussianMixture":
        """The mixture of some of the features.

        full, tied, diag, spherical, EII and low rank are preserved; the rest becomes full or diag.

        **Arguments:**

        - `indices`: the features to keep, in the order of the result: integers, negative ones
            counted from the end, one integer, or a boolean mask `(d,)`. They set shapes, so they
            cannot be traced.

        **Raises:** `ValueError` where a feature does not exist or is named twice.
        """
        return linear.marginal(self, indices)

    def affine(self, matrix: Any, offset: Any = None) -> "GaussianMixture":
        """The mixture of Ax + b; tied stays tied, and the rest becomes full.

        **Arguments:**

        - `matrix`: A, `(m, d)` with m ≤ d, of full row rank.
        - `offset`: b, `(m,)`; zero if there is none.

        **Raises:** `ValueError` where the covariance of Ax is singular.
        """
        return linear.affine(self, matrix, offset)

    def convolve(self, noise_covariance: Any) -> "GaussianMixture":
        """The mixture of x + ε, ε ~ N(0, C): its covariances are Σ_k + C.

        σ² preserves full, tied, diag, spherical, EII and low rank, variances full, tied, diag and
        low rank, a matrix full and tied; the rest becomes full, or diag where it can.

        **Arguments:**

        - `noise_covariance`: σ² `()`, variances `(d,)`, which may be zero, or a matrix `(d, d)`.
        """
        return linear.convolve(self, noise_covariance)

    def condition(self, indices: Any, values: Any) -> "GaussianMixture | MixtureBatch":
        r"""The mixture of the other features, in their order, given these.

        $$p(x_u | x_o) = \sum_k p(k | x_o)\,
        \mathcal{N}(x_u; \mu_{u,k} + G_k(x_o - \mu_{o,k}), (\Lambda_{uu,k})^{-1})$$

        Structures become what they become in `marginal`.

        **Arguments:**

        - `indices`: the features that are given, as in `marginal`.
        - `values`: what they are, `(*batch, m)`, in the order of `indices`; `(*batch,)` where that
            is one integer.

        **Returns:** a `GaussianMixture` for one value `(m,)`, else a `gmmx.MixtureBatch`, which
        holds the covariances once, since they do not depend on the values.
        """
        from ._batch import joined

        given, values = condition.check_values(self, indices, values)
        return joined(*condition.parts(given, values), given.structure)

    def regress(
        self, indices: Any, values: Any
    ) -> tuple[Float[Array, "*batch u"], Float[Array, "*batch u u"]]:
        """Gaussian mixture regression: mean and covariance of the other features given these.

        The moments of `condition(indices, values)`, without its n × K × u means (Ghahramani &
        Jordan 1994; `predict` in the package gmr).
        """
        given, values = condition.check_values(self, indices, values)
        mean = condition.over_rows(condition.mean, given, values)
        return mean, condition.over_rows(condition.covariance, given, values)

    def impute(
        self, x: Any, *, n_samples: int | None = None, key: PRNGKeyArray | None = None
    ) -> Float[Array, "n d"] | Float[Array, "n s d"]:
        """Complete rows: what is missing, by what was observed.

        E[v_i | x_i], the mean of the complete row, or draws of it. Numbers that were observed
        without noise stay as they are; noise is taken off the others.

        **Arguments:**

        - `x`: rows `(n, d)` in which NaN is missing, or `gmmx.Data`.
        - `n_samples`: how many draws of each row, in place of the mean.
        - `key`: of the draws; `jax.random.key(0)` by default.

        **Returns:** `(n, d)`, or the draws `(n, n_samples, d)`.
        """
        return impute(self, x, n_samples, key)

    def collapse(self) -> "GaussianMixture":
        """One Gaussian, full, of the mixture's mean and covariance."""
        return merge.collapse(self)

    def reduce(self, n_components: int) -> "GaussianMixture":
        """A mixture of fewer components, by greedy merging (Runnalls 2007).

        Again and again the two components are merged whose merging can raise the Kullback-Leibler
        divergence least, by its bound. The mean and the covariance of the whole mixture stay what
        they are. The covariances become full, unless nothing is to be merged.
        """
        return merge.reduce(self, n_components)

    def posterior(self, y: Any, A: Any, noise_covariance: Any, b: Any = 0) -> "AbstractPosterior":
        """p(x | y) where this mixture is the prior of x, and y = Ax + b + ε, ε ~ N(0, C).

        Denoising is `posterior(y, None, sigma**2)`, deblurring `posterior(y, blur, sigma**2)`,
        inpainting `posterior(y, None, jnp.where(seen, sigma**2, jnp.inf))`.

        **Arguments:**

        - `y`: `(*batch, m)`.
        - `A`: `(m, d)`, or `(*batch, m, d)` for one a sample; None for the identity.
        - `noise_covariance`: C: σ² `()`, variances `(m,)` or a matrix `(m, m)`; for one a sample
            `(*batch, m)`, `(*batch, 1)` or `(*batch, m, m)`; `(m, m)` is one matrix also where
            there are m samples. An infinite variance says that this number was not observed: it
            then counts nowhere, and y there may be anything.
        - `b`: `()`, `(m,)` or `(*batch, m)`.

        **Returns:** a `gmmx.AbstractPosterior`, with `mean`, `mode`, `covariance`, `sample`,
        `log_evidence`, `responsibilities` and `mixture`. With one operator for all samples the
        factors are computed here, once, and each sample costs products only.

        **Raises:** `ValueError` where shapes do not fit, or the noise is zero or singular: without
        noise, see `condition`.
        """
        from ._posterior import posterior

        return posterior(self, y, A, noise_covariance, b)
