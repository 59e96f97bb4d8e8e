"""What a covariance structure answers; everything else in the library asks only this."""

import abc
from typing import ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._checks import check_positive, check_symmetric
from .._linalg import damp, einsum, inverse_lower, reverse_root
from .._noise import noisy_root
from .._orthogonal import condition_factor, lower_factor

_registry: "dict[str, type[AbstractCovariance]]" = {}


class AbstractCovariance(eqx.Module):
    """The covariances of all K components at once, held as the Cholesky factor of the precision.

    With Λ_k = W_kᵀW_k and W_k lower triangular, a component's density needs matrix products only:
    y = W_k(x − μ_k) and log|W_k|. The leaves are W with its diagonal in logs, so that any real
    values are a valid structure.

    A subclass names itself in `covariance_type` and is then found under that name by
    `GaussianMixture.create`, `from_parameters`, `initialize` and the rest. Its methods come in
    four groups: parameters, the density as it is defined (whitened), the density as a product of
    features and coefficients (packed), and the M-step.

    The moments that a structure sees stand in the frame of the model that took them, that is,
    in y rather than in x: there they are of order one whatever the units of the data.
    """

    covariance_type: ClassVar[str]
    closed_under_linear_maps: ClassVar[bool]
    """Whether the covariances of Ax are of the same structure for any A"""
    separable: ClassVar[bool] = True
    """Whether each component has leaves of its own, along their first axis"""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("covariance_type")
        if name is not None:
            _registry[name] = cls

    # Parameters

    @classmethod
    @abc.abstractmethod
    def from_covariances(cls, covariances: Array) -> Self:
        """The structure with these covariances, in the structure's natural shape."""

    @classmethod
    def from_precisions(cls, precisions: Array) -> Self:
        """The structure with these precisions, in the structure's natural shape.

        As it stands here for matrices; a structure of variances has its own.
        """
        # A matrix that was inverted is symmetric only as far as its condition lets it.
        check_symmetric(precisions, rtol=1e-5)
        factor = reverse_root((precisions + precisions.mT) / 2)
        check_positive(jnp.diagonal(factor, axis1=-2, axis2=-1), n_own=1)
        return cls.from_precisions_cholesky(factor.mT)

    @classmethod
    @abc.abstractmethod
    def from_precisions_cholesky(cls, precisions_cholesky: Array) -> Self:
        """The structure with these factors, in scikit-learn's shapes (upper: Λ = UUᵀ)."""

    @classmethod
    @abc.abstractmethod
    def from_scale(cls, scale: Float[Array, " d"], n_components: int) -> Self:
        """The structure whose components all have these standard deviations and no correlation."""

    @classmethod
    @abc.abstractmethod
    def natural_shape(cls, n_components: int, n_features: int) -> tuple[int, ...]:
        """The shape of `covariances`."""

    @property
    @abc.abstractmethod
    def covariances(self) -> Array:
        """Covariances in the natural shape."""

    @property
    @abc.abstractmethod
    def precisions(self) -> Array:
        """Precisions in the natural shape."""

    @property
    @abc.abstractmethod
    def precisions_cholesky(self) -> Array:
        """Factors of the precisions in scikit-learn's shapes (upper: Λ = UUᵀ)."""

    @abc.abstractmethod
    def n_parameters(self, n_components: int, n_features: int) -> int:
        """The number of free covariance parameters."""

    @abc.abstractmethod
    def rescale(self, scale: Float[Array, " d"]) -> Self:
        """The covariances of x·scale, feature by feature."""

    @abc.abstractmethod
    def usable_scale(self, scale: Float[Array, " d"]) -> Float[Array, " d"]:
        """The scale nearest to this one under which `rescale` stays in the structure."""

    @abc.abstractmethod
    def factors(self, n_components: int, n_features: int) -> Float[Array, "k d d"]:
        """The dense lower factors W_k."""

    @abc.abstractmethod
    def in_frame(self, root: Float[Array, "d d"]) -> Self:
        """The covariances of z where x = Lz, L lower triangular: W becomes WL.

        Asked only of a structure that is closed under linear maps.
        """

    def take(self, components: Int[Array, " m"]) -> Self:
        """The covariances of these components; the last one's in place of those beyond it.

        Asked only of a structure that is separable.
        """
        return jax.tree.map(lambda leaf: jnp.take(leaf, components, axis=0, mode="clip"), self)

    # The algebra. What is here is right for any structure and gives dense covariances; a
    # structure that is preserved by an operation says so by a method of its own.

    def distinct_factors(self, n_components: int, n_features: int) -> Float[Array, "j d d"]:
        """The dense lower factors W, once where the components share one: j is K or one."""
        return self.factors(n_components, n_features)

    def with_distinct_factors(self, factors: Float[Array, "j d d"]) -> "AbstractCovariance":
        """The structure of these factors, made of `distinct_factors` by one and the same map."""
        return structure_named("full").from_precisions_cholesky(factors.mT)

    def marginal(
        self, indices: np.ndarray, n_components: int, n_features: int
    ) -> "AbstractCovariance":
        """The covariances of these features, in this order."""
        rest = np.setdiff1d(np.arange(n_features), indices)
        factors = self.distinct_factors(n_components, n_features)
        factors = factors[:, :, np.concatenate([indices, rest])]
        # With these features first, their factor is the leading block of the triangle.
        return self.with_distinct_factors(lower_factor(factors)[:, : indices.size, : indices.size])

    def conditional(
        self, given: np.ndarray, rest: np.ndarray, n_components: int, n_features: int
    ) -> "tuple[AbstractCovariance, AbstractCovariance, Float[Array, 'k u o']]":
        """The given features' covariances, the others' given those, and the gains.

        The others' means are μ_u + G(x_o − μ_o), with the gains G = Σ_uoΣ_oo⁻¹.
        """
        factors = self.distinct_factors(n_components, n_features)
        factors = factors[:, :, np.concatenate([given, rest])]
        marginal, conditional, gains = condition_factor(factors, given.size)
        gains = jnp.broadcast_to(gains, (n_components, *gains.shape[1:]))
        marginal, conditional = map(self.with_distinct_factors, (marginal, conditional))
        return marginal, conditional, gains

    def convolve(
        self, noise: Float[Array, "*m"], n_components: int, n_features: int
    ) -> "AbstractCovariance":
        """The covariances Σ_k + C, C being σ² `()`, variances `(d,)` or a matrix `(d, d)`."""
        roots = inverse_lower(self.distinct_factors(n_components, n_features))
        return self.with_distinct_factors(inverse_lower(noisy_root(roots, noise)))

    # The density, whitened

    @abc.abstractmethod
    def whiten(self, x: Float[Array, "n d"], means: Float[Array, "k d"]) -> Float[Array, "k d n"]:
        """y = W_k(x − μ_k), subtracted first: as accurate as the data are."""

    def whiten_centred(
        self, x: Float[Array, "n d"], means: Float[Array, "k d"]
    ) -> Float[Array, "k d n"]:
        """y as well, for x that lie about the origin: W_kx may be one product for all components.

        Asked only where √`cancellation` is small against 1/ε.
        """
        return self.whiten(x, means)

    def distances_centred(
        self, x: Float[Array, "n d"], means: Float[Array, "k d"]
    ) -> Float[Array, "n k"]:
        """‖y‖² with y = `whiten_centred(x, means)`."""
        return jnp.sum(self.whiten_centred(x, means) ** 2, axis=1).T

    def damp(
        self, y: Float[Array, "k d n"], variance: Float[Array, "*n"]
    ) -> tuple[Float[Array, "k d n"], Float[Array, "k #n"]]:
        """(I + s_iW_kW_kᵀ)⁻¹y_i and ½ log|I + s_iW_kW_kᵀ|, for one s or one a sample.

        It is what noise of variance s in each feature of x makes of a density:
        (Σ_k + sI)⁻¹(x − μ_k) = W_kᵀ(I + sW_kW_kᵀ)⁻¹y.
        """
        return damp(self.factors(*y.shape[:2]), y, variance)

    @abc.abstractmethod
    def half_log_det(self, n_features: int) -> Float[Array, " *k"]:
        """log|W_k| = ½ log|Λ_k|."""

    @abc.abstractmethod
    def precision_trace(self, n_features: int) -> Float[Array, " *k"]:
        """tr Λ_k, what `reg_covar` penalises."""

    @abc.abstractmethod
    def scatter(self, y: Float[Array, "k d n"], responsibilities: Float[Array, "k n"]) -> Array:
        """Σ_i z_ik yyᵀ, or as much of it as the M-step needs."""

    def centred_sums(
        self,
        y: Float[Array, "k d n"],
        responsibilities: Float[Array, "k n"],
        x: Float[Array, "n d"],
    ) -> PyTree:
        """What `centred_moments` takes, additive over rows; y = `whiten_centred(x, means)`."""
        weight = jnp.sum(responsibilities, axis=1)
        raw = einsum("kn,nd->kd", responsibilities, x)
        return weight, raw, self.scatter(y, responsibilities)

    def centred_moments(
        self, sums: PyTree, means: Float[Array, "k d"]
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Array]:
        """(n_k, Σ z(x − μ_k), the scatter in this structure's frame) from the sums."""
        weight, raw, scatter = sums
        return weight, raw - weight[:, None] * means, scatter

    # The density, packed: log-densities and moments as two matrix products. A feature is a row, so
    # that both products read the features along their rows.

    @abc.abstractmethod
    def packed_coefficients(
        self, means: Float[Array, "k d"], constant: Float[Array, " k"]
    ) -> PyTree:
        """What turns features into log-densities; `constant` is added to each component's."""

    @abc.abstractmethod
    def packed_features(self, x: Float[Array, "n d"]) -> Float[Array, "p n"]:
        """The features φ(x)."""

    @abc.abstractmethod
    def packed_log_density(
        self, coefficients: PyTree, features: Float[Array, "p n"]
    ) -> Float[Array, "k n"]:
        """Θφ(x)."""

    @abc.abstractmethod
    def packed_sums(
        self, features: Float[Array, "p n"], responsibilities: Float[Array, "k n"]
    ) -> PyTree:
        """φzᵀ, additive over rows."""

    @abc.abstractmethod
    def packed_moments(
        self, sums: PyTree, means: Float[Array, "k d"]
    ) -> tuple[Float[Array, " k"], Float[Array, "k d"], Array]:
        """(n_k, Σ z(x − μ_k), the scatter in this structure's frame) from the sums."""

    @abc.abstractmethod
    def cancellation(
        self, reaches: Float[Array, "c d"], means: Float[Array, "k d"]
    ) -> Float[Array, "c k"]:
        """Σ_ij |Λ_k,ij| e_i e_j with e_i = max(reach_i, |μ_k,i|): the size of the packed terms.

        Rounding leaves an error of about ε times this in a packed log-density, and the same
        relative error in the packed covariance.
        """

    def cancellation_at_most(
        self, reaches: Float[Array, "c d"], means: Float[Array, "k d"]
    ) -> Float[Array, "c k"]:
        """‖|W_k|(reach + |μ_k|)‖², not less than `cancellation`: one product with vectors."""
        factors = jnp.abs(self.factors(*means.shape))
        extents = reaches[:, None] + jnp.abs(means)
        return jnp.sum(einsum("kde,cke->ckd", factors, extents) ** 2, axis=-1)

    # The M-step

    @abc.abstractmethod
    def maximise(
        self,
        weight: Float[Array, " k"],
        first: Float[Array, "k d"],
        second: Array,
        shift: Float[Array, "k d"],
        reg_covar: Float[Array, ""],
    ) -> Self:
        """The structure of most likelihood when the means move by `shift`.

        `weight` is n_k, `first` Σ z(x − μ_k) in the data's units, `second` the scatter in this
        structure's frame. `reg_covar` is added to the variances. A component of no weight keeps
        its factor.
        """


def structure_named(covariance_type: str) -> type[AbstractCovariance]:
    """The structure class of this name."""
    if not isinstance(covariance_type, str) or covariance_type not in _registry:
        known = ", ".join(repr(name) for name in _registry)
        raise ValueError(
            f"covariance_type={covariance_type!r} is not known. It has to be one of {known}."
        )
    return _registry[covariance_type]
