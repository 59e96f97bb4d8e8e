"""What a covariance structure is: three methods, and what follows from them."""

import abc
import difflib
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_positive, check_symmetric
from .._linalg import damp, inverse_lower, inverse_root, product, reverse_root
from .._noise import noisy_root
from .._orthogonal import condition_factor, lower_factor
from .factors import AnyFactors, Factors, LowRankFactors

_registry: "dict[str, type[AbstractCovariance]]" = {}

_Structure = TypeVar("_Structure", bound="AbstractCovariance")


class AbstractCovariance(eqx.Module):
    """The covariances of all K components, by the Cholesky factors W of their precisions.

    With Λ_k = W_kᵀW_k and W_k lower triangular, a component's density needs matrix products only:
    y = W_k(x − μ_k) and log|W_k|. The leaves are unconstrained: a structure holds logarithms of
    what has to be positive, so that any real values are valid.

    A subclass sets `covariance_type` and is then known under that name everywhere. It answers
    three questions, `factors`, `fitted` and `n_parameters`; the class variables say what kind of
    factors it has. All else follows, and may be overridden where a structure knows better.
    """

    covariance_type: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    """Other names of the structure; files and reports have `covariance_type`"""
    axis_aligned: ClassVar[bool] = False
    """Whether the factors are diagonal; they are then held as vectors"""
    isotropic: ClassVar[bool] = False
    """Whether a component has one variance for all features; implies `axis_aligned`"""
    shared: ClassVar[bool] = False
    """Whether all components have the same covariance"""
    closed_under_scaling: ClassVar[bool] = False
    """Whether the structure survives a change of the units of single features"""
    log_scale: ClassVar[tuple[str, int]] = ("log_cholesky", -1)
    """The leaf that holds logarithms of scales, and how often: −1 for log(1/σ), 2 for log σ²"""
    n_latent: ClassVar[int | None] = None
    """How many latent factors a component has, if it has any: see `low_rank.py`"""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("covariance_type")
        if name is not None:
            # The other names of a parent stay the parent's.
            names = (name, *cls.__dict__.get("aliases", ()))
            _registry.update(dict.fromkeys(names, cls))

    @abc.abstractmethod
    def factors(self, n_components: int, n_features: int) -> Factors:
        """W: `(j, d, d)`, or `(j, d)` if axis-aligned."""

    @classmethod
    @abc.abstractmethod
    def fitted(cls, weight: Float[Array, " j"], factors: Factors, scatter: Factors) -> Self:
        """The structure of greatest likelihood given a scatter: the M-step.

        **Arguments:**

        - `weight`: n_j, the total responsibility of each component, or of all of them if shared.
        - `factors`: W_j, the frame in which the scatter is given.
        - `scatter`: Σ_i z_ij y_i y_iᵀ with y = W_j(x − μ_j), or its diagonal if axis-aligned.

        **Returns:** the structure whose covariances fit W_j⁻¹(scatter_j / n_j)W_j⁻ᵀ best; NaN
        where a variance is not positive.
        """

    @classmethod
    @abc.abstractmethod
    def n_parameters(cls, n_components: int, n_features: int) -> int:
        """The number of free covariance parameters."""

    @classmethod
    def triangle(cls, leaf: str) -> int | None:
        """The first diagonal that is read of a leaf `(…, d, d)`; None where all of it is.

        0 for a lower triangle with logarithms on its diagonal, 1 for a strictly upper one.
        """
        return {"orientation": 1, "log_cholesky": None if cls.axis_aligned else 0}.get(leaf)

    @classmethod
    def of_rank(cls, rank: Any, n_features: int | None) -> "type[AbstractCovariance]":
        """The structure with so many latent factors; itself, as it has none.

        **Raises:** `ValueError` where a rank is given.
        """
        if rank is not None:
            raise ValueError(
                f"rank={rank!r} was given, but {cls.covariance_type!r} covariances have no rank. "
                "Leave it out, or take covariance_type='low_rank'."
            )
        return cls

    @classmethod
    def fewest_samples(cls, n_features: int) -> int:
        """How many samples a component needs for a covariance that is regular by itself."""
        return 1 if cls.shared else 2 if cls.axis_aligned else n_features + 1

    # Parameters, in the shapes that users see

    @classmethod
    def natural_shape(cls, n_components: int, n_features: int) -> tuple[int, ...]:
        """The shape of covariances: `(k, d, d)`, `(k, d)` if axis-aligned, `(k,)` if isotropic.

        Without the axis of components if shared.
        """
        own = 0 if cls.isotropic else 1 if cls.axis_aligned else 2
        return (() if cls.shared else (n_components,)) + (n_features,) * own

    @classmethod
    def from_factors(cls, factors: AnyFactors) -> Self:
        """The structure of these factors, or the one that fits their covariances best."""
        return _fit_identity(cls, factors)

    @classmethod
    def from_covariances(cls, covariances: Array) -> Self:
        """The structure of covariances in their natural shape.

        **Raises:** `ValueError` where one is not symmetric positive definite.
        """
        if cls.axis_aligned:
            check_positive(covariances, n_own=0 if cls.isotropic else 1)
            return cls.from_factors(1 / jnp.sqrt(cls._as_factors(covariances)))
        check_symmetric(covariances)
        factors = inverse_root(covariances)
        check_positive(jnp.diagonal(factors, axis1=-2, axis2=-1), n_own=1)
        return cls.from_factors(cls._as_factors(factors))

    @classmethod
    def from_precisions(cls, precisions: Array) -> Self:
        """The structure of precisions in their natural shape."""
        if cls.axis_aligned:
            return cls.from_covariances(1 / precisions)
        # A matrix that was inverted is symmetric only as far as its condition lets it.
        check_symmetric(precisions, rtol=1e-5)
        factors = reverse_root((precisions + precisions.mT) / 2)
        check_positive(jnp.diagonal(factors, axis1=-2, axis2=-1), n_own=1)
        return cls.from_factors(cls._as_factors(factors))

    @classmethod
    def from_precisions_cholesky(cls, precisions_cholesky: Array) -> Self:
        """The structure of scikit-learn's factors, upper triangular with Λ = UUᵀ."""
        factors = cls._as_factors(precisions_cholesky)
        return cls.from_factors(factors if cls.axis_aligned else factors.mT)

    @classmethod
    def from_scale(cls, scale: Float[Array, " d"], n_components: int) -> Self:
        """The structure whose components all have these standard deviations, uncorrelated."""
        diagonal = jnp.tile(1 / scale, (1 if cls.shared else n_components, 1))
        if cls.axis_aligned:
            return cls.from_factors(diagonal)
        return cls.from_factors(diagonal[:, :, None] * jnp.eye(scale.size, dtype=scale.dtype))

    def covariances(self, n_components: int, n_features: int) -> Array:
        """Σ in the natural shape."""
        factors = self.factors(n_components, n_features)
        if self.axis_aligned:
            return self._natural(factors**-2)
        root = inverse_lower(factors)
        return self._natural(product(root, root.mT))

    def precisions(self, n_components: int, n_features: int) -> Array:
        """Λ in the natural shape."""
        factors = self.factors(n_components, n_features)
        return self._natural(factors**2 if self.axis_aligned else product(factors.mT, factors))

    def precisions_cholesky(self, n_components: int, n_features: int) -> Array:
        """scikit-learn's factors, upper triangular with Λ = UUᵀ, in the natural shape."""
        factors = self.factors(n_components, n_features)
        return self._natural(factors if self.axis_aligned else factors.mT)

    @classmethod
    def _as_factors(cls, natural: Array) -> Factors:
        natural = natural[..., None] if cls.isotropic else natural
        return natural[None] if cls.shared else natural

    @classmethod
    def _natural(cls, factors: Factors) -> Array:
        factors = factors[..., 0] if cls.isotropic else factors
        return factors[0] if cls.shared else factors

    # The algebra. Results are exact: tied, full or diagonal covariances, unless a structure that
    # is preserved by an operation says so by a method of its own.

    def dense_factors(self, n_components: int, n_features: int) -> Float[Array, "j d d"]:
        """The factors as matrices, once where components share one."""
        factors = self.factors(n_components, n_features)
        if self.axis_aligned:
            return factors[:, :, None] * jnp.eye(n_features, dtype=factors.dtype)
        return factors

    def marginal(
        self, indices: np.ndarray, n_components: int, n_features: int
    ) -> "AbstractCovariance":
        """The covariances of these features, in this order."""
        factors = self.factors(n_components, n_features)
        if self.axis_aligned:
            return exact(factors[:, indices], n_components)
        rest = np.setdiff1d(np.arange(n_features), indices)
        factors = factors[:, :, np.concatenate([indices, rest])]
        # With these features first, their factor is the leading block of the triangle.
        leading = lower_factor(factors)[:, : indices.size, : indices.size]
        return exact(leading, n_components)

    def conditional(
        self, given: np.ndarray, rest: np.ndarray, n_components: int, n_features: int
    ) -> "tuple[AbstractCovariance, AbstractCovariance, Float[Array, 'k u o']]":
        """The given features' covariances, the others' given those, and the gains.

        The others' means are μ_u + G(x_o − μ_o), with the gains G = Σ_uoΣ_oo⁻¹.
        """
        factors = self.factors(n_components, n_features)
        if self.axis_aligned:
            # Features are independent within a component.
            marginal = self.marginal(given, n_components, n_features)
            conditional = self.marginal(rest, n_components, n_features)
            gains = jnp.zeros((n_components, rest.size, given.size), factors.dtype)
            return marginal, conditional, gains
        factors = factors[:, :, np.concatenate([given, rest])]
        marginal, conditional, gains = condition_factor(factors, given.size)
        gains = jnp.broadcast_to(gains, (n_components, *gains.shape[1:]))
        return exact(marginal, n_components), exact(conditional, n_components), gains

    def convolve(
        self, noise: Float[Array, "*m"], n_components: int, n_features: int
    ) -> "AbstractCovariance":
        """The covariances Σ_k + C, C being σ² `()`, variances `(d,)` or a matrix `(d, d)`."""
        factors = self.factors(n_components, n_features)
        if self.axis_aligned and noise.ndim < 2:
            return exact(factors / jnp.sqrt(1 + noise * factors**2), n_components)
        roots = inverse_lower(self.dense_factors(n_components, n_features))
        return exact(inverse_lower(noisy_root(roots, noise)), n_components)

    def damp(
        self, y: Float[Array, "k d n"], variance: Float[Array, "*n"]
    ) -> tuple[Float[Array, "k d n"], Float[Array, "k #n"]]:
        """(I + s_iW_kW_kᵀ)⁻¹y_i and ½ log|I + s_iW_kW_kᵀ|, for one s or one a sample.

        This is what noise of variance s in each feature of x makes of a density:
        (Σ_k + sI)⁻¹(x − μ_k) = W_kᵀ(I + sW_kW_kᵀ)⁻¹y.
        """
        factors = self.factors(*y.shape[:2])
        if not self.axis_aligned:
            return damp(factors, y, variance)
        ratio = factors[:, :, None] ** 2 * variance
        half_log_det = jnp.sum(jnp.log1p(ratio), axis=1) / 2
        return y / (1 + ratio), jnp.broadcast_to(half_log_det, (y.shape[0], ratio.shape[2]))


# Compiled as one program, since mixtures of known parameters are built outside of any other.
@partial(jax.jit, static_argnames="structure")
def _fit_identity(structure: type[_Structure], factors: Factors) -> _Structure:
    """The structure fitted to covariances that are the identity in the frame of these factors."""
    if structure.axis_aligned:
        unit = jnp.ones_like(factors)
    else:
        identity = jnp.eye(factors.shape[-1], dtype=factors.dtype)
        unit = jnp.broadcast_to(identity, factors.shape)
    return structure.fitted(jnp.ones_like(factors, shape=factors.shape[:1]), factors, unit)


def exact(factors: AnyFactors, n_components: int) -> AbstractCovariance:
    """The structure of these factors, to the last digit: tied, full, diagonal or of low rank."""
    if isinstance(factors, LowRankFactors):
        rank = factors.loadings.shape[2]
        return structure_named("low_rank", rank).from_factors(factors)
    if factors.ndim == 2:
        shape = (n_components, factors.shape[1])
        return structure_named("diag").from_factors(jnp.broadcast_to(factors, shape))
    # One component is full as well as tied; full is what most operations make.
    one_for_all = factors.shape[0] < n_components
    return structure_named("tied" if one_for_all else "full").from_factors(factors)


def structure_named(
    covariance_type: str, rank: Any = None, n_features: int | None = None
) -> type[AbstractCovariance]:
    """The structure class of this name and, if it has latent factors, of this rank.

    **Raises:** `ValueError` for an unknown name, and for a rank that is missing, that the structure
    does not have, or that is not below the number of features.
    """
    if not isinstance(covariance_type, str) or covariance_type not in _registry:
        folded = {name.lower(): name for name in _registry}
        close = difflib.get_close_matches(str(covariance_type).lower(), folded, n=1)
        meant = f" Did you mean {folded[close[0]]!r}?" if close else ""
        known = ", ".join(repr(name) for name in _registry)
        raise ValueError(
            f"covariance_type={covariance_type!r} is unknown.{meant} Expected one of {known}."
        )
    return _registry[covariance_type].of_rank(rank, n_features)
