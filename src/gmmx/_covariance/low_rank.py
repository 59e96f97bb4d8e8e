"""A few latent factors for each component, and noise: mixtures of factor analysers.

No d × d array is built, neither in a density nor in the M-step, except where a caller asks for
covariances. The step is one of EM in which the covariance of the latent factors is free (PX-EM:
Liu, Rubin & Wu 1998): it never lowers the likelihood, as EM does not, and turns faster.
"""

import functools
from typing import Any, ClassVar, Self, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_count
from .._grouped import grouped_product
from .._linalg import einsum, inverse_lower, product, whiten_by
from .._orthogonal import lower_root
from .base import AbstractCovariance, exact
from .factors import LowRankFactors
from .gains import LowRankGains

# The least variance of noise, in ε times that of the feature: below it nothing but rounding is left
# of a variance from which that of the factors is subtracted.
_LEAST = 64
# The most features for which covariances are made dense where an operation needs that.
_MOST_DENSE = 512

_LowRank = TypeVar("_LowRank", bound="AbstractLowRank")


class AbstractLowRank(AbstractCovariance):
    r"""Covariances Σ_k = F_kF_kᵀ + Ψ_k: x = μ_k + F_kz + ε with z ~ N(0, I), ε ~ N(0, Ψ_k).

    F_k is `(d, r)` and Ψ_k diagonal. F_k is unique up to a rotation of the latent factors z.
    """

    scaled_loadings: eqx.AbstractVar[Float[Array, "*k d r"]]
    """Ψ_k^-½F_k, or what components share of it"""
    log_cholesky: eqx.AbstractVar[Float[Array, "k *d"]]
    """log Ψ_k^-½"""

    n_latent: ClassVar[int | None] = None
    one_variance: ClassVar[bool] = False
    """Whether the noise of a component has the same variance in all features"""

    def __check_init__(self):
        shape = getattr(self.scaled_loadings, "shape", None)
        if shape is not None and self.n_latent is not None and shape[-1:] != (self.n_latent,):
            raise ValueError(
                f"scaled_loadings has shape {shape}; expected {self.n_latent} as the last axis, "
                "the rank."
            )

    def __reduce__(self):
        # Classes of a rank are made when they are asked for, so a pickle cannot name them.
        parent = next(cls for cls in type(self).__mro__ if "covariance_type" in cls.__dict__)
        return _remade, (parent, self.n_latent, self.scaled_loadings, self.log_cholesky)

    @classmethod
    def of_rank(cls, rank: Any, n_features: int | None) -> type[AbstractCovariance]:
        name = cls.covariance_type
        if rank is None:
            if cls.n_latent is not None:
                return cls
            raise ValueError(
                f"covariance_type={name!r} needs a rank: pass rank=5, for instance, the number of "
                "latent factors of a component. Of known loadings a mixture is made by "
                "GaussianMixture.from_loadings."
            )
        rank = check_count(rank, "rank")
        if n_features is not None and rank >= n_features:
            raise ValueError(
                f"rank={rank}, but there are {n_features} features: expected 1 to "
                f"{n_features - 1}. With as many factors as features take covariance_type='full'."
            )
        return _of_rank(cls, rank)

    def factors(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, n_components: int, n_features: int
    ) -> LowRankFactors:
        diagonal = jnp.exp(self.log_cholesky).reshape(n_components, -1)
        return LowRankFactors(
            jnp.broadcast_to(diagonal, (n_components, n_features)), self.scaled_loadings
        )

    @classmethod
    def fitted(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, weight: Float[Array, " k"], factors: LowRankFactors, scatter: LowRankFactors
    ) -> Self:
        # With C = SGᵀ/n, the latent factors have the second moments Φ = M⁻¹ + GC = TTᵀ. EM has the
        # loadings CΦ⁻¹; with z as T times a standard normal one they are CT⁻ᵀ. The diagonal of the
        # new covariance is that of S/n.
        cross, square, second = second_moments(weight, factors, scatter)
        loadings = whiten_by(second, cross.mT).mT
        return cls.of_parts(factors, loadings, square - jnp.sum(loadings**2, axis=2), square)

    @classmethod
    def of_parts(
        cls,
        factors: LowRankFactors,
        loadings: Float[Array, "k d r"],
        rest: Float[Array, "k d"],
        square: Float[Array, "k d"],
    ) -> Self:
        """The structure of loadings and of what these leave of the variances, in a frame."""
        rest = jnp.maximum(rest, _LEAST * float(jnp.finfo(rest.dtype).eps) * square)
        # Neither variances nor loadings are left where rounding is more than the samples.
        deviation = jnp.sqrt(jnp.where(square > 0, rest, jnp.nan))
        return cls.from_factors(
            LowRankFactors(factors.diagonal / deviation, loadings / deviation[:, :, None])
        )

    @classmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        rank = cls._known_rank()
        # A rotation of the latent factors changes nothing.
        loadings = n_features * rank - rank * (rank - 1) // 2
        return n_components * (loadings + (1 if cls.one_variance else n_features))

    @classmethod
    def fewest_samples(cls, n_features: int) -> int:
        return cls._known_rank() + 2

    @classmethod
    def _known_rank(cls) -> int:
        assert cls.n_latent is not None  # that of a class from `of_rank`
        return cls.n_latent

    # Construction

    @classmethod
    def from_covariances(cls, covariances: Array) -> Self:
        raise ValueError(
            f"{cls.covariance_type!r} covariances are not made from dense ones. From loadings and "
            "variances take GaussianMixture.from_loadings; from memberships of samples, "
            "GaussianMixture.from_responsibilities."
        )

    @classmethod
    def from_precisions(cls, precisions: Array) -> Self:
        return cls.from_covariances(precisions)

    @classmethod
    def from_precisions_cholesky(cls, precisions_cholesky: Array) -> Self:
        return cls.from_covariances(precisions_cholesky)

    @classmethod
    def from_scale(cls, scale: Float[Array, " d"], n_components: int) -> Self:
        # Loadings of zero would stay zero: they are a saddle of the likelihood. So a part of each
        # variance, half of it at most, is on waves along the features.
        rank, d = cls._known_rank(), scale.size
        phase = np.outer(np.arange(d) + 0.5, np.arange(rank) + 1) * np.pi / d
        loadings = jnp.asarray(np.cos(phase) / np.sqrt(2 * rank), scale.dtype)
        deviation = jnp.sqrt(1 - jnp.sum(loadings**2, axis=1))
        diagonal = jnp.broadcast_to(1 / (scale * deviation), (n_components, d))
        loadings = jnp.broadcast_to(loadings / deviation[:, None], (n_components, d, rank))
        return cls.from_factors(LowRankFactors(diagonal, loadings))

    # Parameters

    @property
    def loadings(self) -> Float[Array, "k d r"]:
        """F_k, in the units of the data"""
        factors = self._own_factors()
        return factors.loadings / factors.diagonal[:, :, None]

    @property
    def noise_variances(self) -> Float[Array, "k d"]:
        """Ψ_k"""
        return self._own_factors().diagonal ** -2

    def _own_factors(self) -> LowRankFactors:
        return self.factors(len(self.log_cholesky), self.scaled_loadings.shape[-2])

    def covariances(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        identity = jnp.eye(n_features, dtype=self.scaled_loadings.dtype)
        loadings = self.loadings
        return product(loadings, loadings.mT) + self.noise_variances[:, :, None] * identity

    def pooled(self, weights: Float[Array, " k"]) -> Float[Array, "d d"]:
        """Σ_k w_kΣ_k"""
        loadings = self.loadings
        return einsum("k,kir,kjr->ij", weights, loadings, loadings) + jnp.diag(
            weights @ self.noise_variances
        )

    def precisions(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        factors = self.factors(n_components, n_features)
        white = factors.latent().white
        identity = jnp.eye(n_features, dtype=white.dtype)
        scale = factors.diagonal
        return scale[:, :, None] * (identity - product(white.mT, white)) * scale[:, None]

    def precisions_cholesky(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        return self.dense_factors(n_components, n_features).mT

    # The algebra

    def dense_factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        return _dense(self.factors(n_components, n_features))

    def roots_of(self, matrix: Float[Array, "m d"]) -> Float[Array, "k m dr"]:
        """[AΨ^½, AF], whose square is AΣAᵀ."""
        noise = matrix * jnp.sqrt(self.noise_variances)[:, None]
        loadings = product(matrix, self.loadings)
        return jnp.concatenate([noise, loadings], axis=2)

    def place(self, normals: Float[Array, "n q"], labels: Int[Array, " n"]) -> Float[Array, "n d"]:
        """F_kz + ε for each row of d + r standard normal numbers, k being its label."""
        d = self.scaled_loadings.shape[-2]
        noise = jnp.sqrt(self.noise_variances)[labels] * normals[:, :d]
        return noise + grouped_product(normals[:, d:], self.loadings, labels)

    def marginal(
        self, indices: np.ndarray, n_components: int, n_features: int
    ) -> AbstractCovariance:
        factors = self.factors(n_components, n_features)
        return self._of_some(_some(factors, indices))

    def conditional(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, given: np.ndarray, rest: np.ndarray, n_components: int, n_features: int
    ) -> tuple[AbstractCovariance, AbstractCovariance, LowRankGains]:
        factors = self.factors(n_components, n_features)
        seen, others = _some(factors, given), _some(factors, rest)
        latent = seen.latent()
        left = others.loadings / others.diagonal[:, :, None]
        gains = LowRankGains(None, left, latent.gains * seen.diagonal[:, None])
        known = product(others.loadings, latent.inverse_root.mT)
        conditional = LowRankFactors(others.diagonal, known)
        return self._of_some(seen), self._of_others(conditional), gains

    def _of_others(self, factors: LowRankFactors) -> AbstractCovariance:
        """The covariances of features given others."""
        return self._of_some(factors)

    def given_noisy(
        self, noise: Float[Array, "*d"], n_components: int, n_features: int
    ) -> tuple[AbstractCovariance, AbstractCovariance, LowRankGains]:
        """The covariances of x + ε, ε ~ N(0, N), those of x given x + ε, and the gains.

        With κ = Ψ/(Ψ + N) and the latent factors z given x + ε, x has the mean
        μ + κ(x + ε − μ) + (1 − κ)Fz and the variances κN.

        **Arguments:**

        - `noise`: σ² `()`, or variances `(d,)`; infinite ones leave a feature open, which is then
            standard normal in the first covariances.
        """
        factors = self.factors(n_components, n_features)
        variances = factors.diagonal**-2
        noise = jnp.broadcast_to(noise, (n_features,))
        open_, finite = jnp.isinf(noise), jnp.where(jnp.isinf(noise), 1, noise)
        total = jnp.where(open_, 1, variances + finite)
        share = jnp.where(open_, 0, variances / total)
        diagonal = 1 / jnp.sqrt(total)
        loadings = self.loadings
        seen = LowRankFactors(
            diagonal, jnp.where(open_[:, None], 0, loadings * diagonal[:, :, None])
        )
        latent = seen.latent()
        left = (1 - share)[:, :, None] * loadings
        gains = LowRankGains(share, left, latent.gains * diagonal[:, None])
        spread = jnp.sqrt(jnp.where(open_, variances, share * finite))
        known = product(left, latent.inverse_root.mT) / spread[:, :, None]
        return (
            exact(seen, n_components),
            exact(LowRankFactors(1 / spread, known), n_components),
            gains,
        )

    def convolve(
        self, noise: Float[Array, "*m"], n_components: int, n_features: int
    ) -> AbstractCovariance:
        if noise.ndim == 2:
            return super().convolve(noise, n_components, n_features)
        factors = self.factors(n_components, n_features)
        shrunk = 1 / jnp.sqrt(1 + noise * factors.diagonal**2)
        noisy = LowRankFactors(factors.diagonal * shrunk, factors.loadings * shrunk[:, :, None])
        return exact(noisy, n_components) if noise.ndim else type(self).from_factors(noisy)

    def _of_some(self, factors: LowRankFactors) -> AbstractCovariance:
        """The covariances of some features; full if these are no more than the latent factors."""
        if factors.diagonal.shape[1] <= factors.loadings.shape[2]:
            return exact(_dense(factors), len(factors))
        return type(self).from_factors(factors)


def _some(factors: LowRankFactors, indices: np.ndarray) -> LowRankFactors:
    return LowRankFactors(factors.diagonal[:, indices], factors.loadings[:, indices])


def _dense(factors: LowRankFactors) -> Float[Array, "k d d"]:
    """The factors as matrices, of as many features as these may have.

    **Raises:** `ValueError` of more features.
    """
    k, d = factors.diagonal.shape
    if d > _MOST_DENSE:
        raise ValueError(
            f"this operation has no form for covariances of low rank, and dense ones would take "
            f"{k} × {d} × {d} numbers; expected at most {_MOST_DENSE} features. Take fewer of them "
            "first: gmm.marginal(indices)."
        )
    identity = jnp.eye(d, dtype=factors.diagonal.dtype)
    roots = jnp.concatenate([jnp.broadcast_to(identity, (k, d, d)), factors.loadings], axis=2)
    return inverse_lower(lower_root(roots / factors.diagonal[:, :, None]))


class LowRankCovariance(AbstractLowRank):
    """Covariances F_kF_kᵀ + Ψ_k with loadings and diagonal noise of each component's own.

    Mixtures of factor analysers (Ghahramani & Hinton 1996; UUU of McNicholas & Murphy 2008).
    """

    scaled_loadings: Float[Array, "k d r"]
    log_cholesky: Float[Array, "k d"]
    """log 1/√ψ_kj"""

    covariance_type: ClassVar[str] = "low_rank"
    closed_under_scaling: ClassVar[bool] = True

    @classmethod
    def from_factors(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, factors: LowRankFactors
    ) -> Self:
        return cls(factors.loadings, jnp.log(factors.diagonal))


class LowRankSphericalCovariance(AbstractLowRank):
    """Covariances F_kF_kᵀ + ψ_kI: the noise of a component has one variance.

    Mixtures of probabilistic principal components (Tipping & Bishop 1999).
    """

    scaled_loadings: Float[Array, "k d r"]
    log_cholesky: Float[Array, " k"]
    """log 1/√ψ_k"""

    covariance_type: ClassVar[str] = "low_rank_spherical"
    aliases: ClassVar[tuple[str, ...]] = ("ppca",)

    one_variance: ClassVar[bool] = True

    @classmethod
    def from_factors(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, factors: LowRankFactors
    ) -> Self:
        factors = with_one_variance(factors)
        return cls(factors.loadings, jnp.log(factors.diagonal[:, 0]))


def second_moments(
    weight: Float[Array, " k"], factors: LowRankFactors, scatter: LowRankFactors
) -> tuple[Float[Array, "k d r"], Float[Array, "k d"], Float[Array, "k r r"]]:
    """E[yzᵀ], the diagonal of E[yyᵀ], and E[zzᵀ], under the model in hand."""
    latent, n = factors.latent(), weight[:, None]
    cross = scatter.loadings / n[:, :, None]
    return cross, scatter.diagonal / n, latent.covariance + product(latent.gains, cross)


def with_one_variance(factors: LowRankFactors) -> LowRankFactors:
    """The same loadings F, and noise of the mean of the variances."""
    # In units of the first feature, so that nothing depends on those of the data.
    diagonal = factors.diagonal
    unit = diagonal[:, :1]
    unit = unit / jnp.sqrt(jnp.mean((unit / diagonal) ** 2, axis=1, keepdims=True))
    scaled = factors.loadings * (unit / diagonal)[:, :, None]
    return LowRankFactors(jnp.broadcast_to(unit, diagonal.shape), scaled)


@functools.cache
def _of_rank(structure: type[_LowRank], rank: int) -> type[_LowRank]:
    """The structure as a class that knows its rank, the same one each time."""
    body = {"n_latent": rank, "__module__": structure.__module__, "__doc__": structure.__doc__}
    return type(structure)(structure.__name__, (structure,), body)


def _remade(structure: type[_LowRank], rank: int | None, *leaves: Any) -> _LowRank:
    return (structure if rank is None else _of_rank(structure, rank))(*leaves)
