"""Many mixtures at once: one for each value that was conditioned on, or each row of a network."""

from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from . import _checks
from ._covariance import AbstractCovariance
from ._mixture import GaussianMixture
from ._raw import MIN_SCALE, unpack


class MixtureBatch(eqx.Module):
    """Mixtures of K components in d dimensions, one for each index of the leading axes.

    They come from `GaussianMixture.condition`, and from the outputs of a network by `from_raw`.
    Their methods are those of a mixture, with the axes of the batch first. What else a mixture has
    is taken by `map`: `batch.map(lambda gmm: gmm.collapse())`.

    Conditioning changes the weights and the means of a mixture with the value, but not its
    covariances. They are then stored once, and `shared` is true.
    """

    logits: Float[Array, "*batch k"]
    means: Float[Array, "*batch k d"]
    structure: AbstractCovariance
    """One for all mixtures, or with the axes of the batch first in each leaf"""
    shared: bool = eqx.field(static=True)
    """Whether there is one structure, which shapes alone do not tell"""

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
        """The mixtures of vectors of any real numbers, such as the outputs of a network.

        **Arguments:**

        - `raw`: `(*batch, size)`, with one axis more than `GaussianMixture.from_raw` takes, or
            several.

        **Raises:** `ValueError` where the size does not fit, or `min_scale` is not positive.
        """
        leaves = unpack(raw, n_components, n_features, covariance_type, min_scale)
        if leaves[0].ndim == 1:
            raise ValueError(
                f"raw has shape {jnp.shape(raw)}: one mixture. Take GaussianMixture.from_raw."
            )
        return cls(*leaves, shared=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The leading axes."""
        return self.logits.shape[:-1]

    @property
    def n_components(self) -> int:
        """K"""
        return self.means.shape[-2]

    @property
    def n_features(self) -> int:
        """d"""
        return self.means.shape[-1]

    @property
    def weights(self) -> Float[Array, "*batch k"]:
        """The weights, of sum one in each mixture."""
        return jax.nn.softmax(self.logits)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> "GaussianMixture | MixtureBatch":
        """A `GaussianMixture` where every leading axis is indexed, else a smaller batch."""
        places = np.arange(int(np.prod(self.shape))).reshape(self.shape)
        if not _checks.is_concrete(index):
            places = jnp.asarray(places)
        places = places[index]

        def take(leaf: Array) -> Array:
            own = leaf.shape[len(self.shape) :]
            return leaf.reshape(-1, *own)[places]

        structure = self.structure if self.shared else jax.tree.map(take, self.structure)
        logits, means = take(self.logits), take(self.means)
        if logits.ndim == 1:
            return GaussianMixture(logits, means, structure)
        return MixtureBatch(logits, means, structure, self.shared)

    def map(self, fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
        """`fn(gmm, *args)` for each mixture, by `jax.vmap`.

        **Arguments:**

        - `fn`: takes a `GaussianMixture` and its part of `args`.
        - `args`: arrays with the axes of the batch first.

        **Returns:** what `fn` returns, with the axes of the batch first.
        """
        return self._mapped_over(fn, 0, *args)

    def _mapped_over(self, fn: Callable[..., PyTree], outputs: PyTree, *args: PyTree) -> PyTree:
        """`map`, where the axes of the batch come first in what `outputs` says, see `jax.vmap`."""
        depth = len(self.shape)
        for leaf in jax.tree.leaves(args):
            if jnp.shape(leaf)[:depth] != self.shape:
                raise ValueError(
                    f"an argument has shape {jnp.shape(leaf)}, but the batch has {self.shape}: "
                    "its axes have to come first. What is the same for all mixtures goes into the "
                    "function: batch.map(lambda gmm: fn(gmm, x))."
                )

        def one(logits: Array, means: Array, structure: AbstractCovariance, *args: PyTree):
            return fn(GaussianMixture(logits, means, structure), *args)

        inputs = (0, 0, None if self.shared else 0, *(0 for _ in args))
        for _ in range(depth):
            one = jax.vmap(one, in_axes=inputs, out_axes=outputs)
        return one(self.logits, self.means, self.structure, *args)

    # Moments

    def mean(self) -> Float[Array, "*batch d"]:
        """The mean of each whole mixture."""
        return _mapped(GaussianMixture.mean, self)

    def covariance(self) -> Float[Array, "*batch d d"]:
        """The covariance of each whole mixture."""
        return _mapped(GaussianMixture.covariance, self)

    # Densities

    def log_prob(self, x: Any) -> Float[Array, "*batch_and_points"]:
        """The log-density of each mixture at its own points.

        **Arguments:**

        - `x`: `(*batch, d)`, or `(*batch, *points, d)`. For points that are the same for all,
            `batch.map(lambda gmm: gmm.log_prob(x))`.
        """
        x = _checks.check_points(x, self.n_features, self.means.dtype)
        return _mapped(GaussianMixture.log_prob, self, x)

    def predict_proba(self, x: Any) -> Float[Array, "*batch_and_points k"]:
        """The responsibilities p(k | x) of each mixture at its own points, as in `log_prob`."""
        x = _checks.check_points(x, self.n_features, self.means.dtype)
        return _mapped(GaussianMixture.predict_proba, self, x)

    def sample(
        self, n_samples: int, *, key: PRNGKeyArray | None = None, pathwise: bool = False
    ) -> Float[Array, "*batch n d"]:
        """Draws from each mixture; the key is `jax.random.key(0)` by default.

        **Arguments:**

        - `pathwise`: with the derivatives of the distribution, see `GaussianMixture.sample`.
        """
        keys = jax.random.split(_checks.as_key(key), self.shape)
        return self.map(lambda gmm, key: gmm.sample(n_samples, key=key, pathwise=pathwise), keys)

    # Algebra, of each mixture

    def marginal(self, indices: Any) -> "MixtureBatch":
        """The mixtures of some of the features."""
        return self._each(lambda gmm: gmm.marginal(indices))

    def affine(self, matrix: Any, offset: Any = None) -> "MixtureBatch":
        """The mixtures of Ax + b, with one A `(m, d)` and one b `(m,)` for all."""
        return self._each(lambda gmm: gmm.affine(matrix, offset))

    def convolve(self, noise_covariance: Any) -> "MixtureBatch":
        """The mixtures of x + ε, ε ~ N(0, C), with one C for all."""
        return self._each(lambda gmm: gmm.convolve(noise_covariance))

    def condition(self, indices: Any, values: Any) -> "MixtureBatch":
        """The mixtures of the other features given these.

        **Arguments:**

        - `values`: what the features are, one row for each mixture: `(*batch, m)`, or `(*batch,)`
            where `indices` is one integer.
        """
        values = _checks.as_floating(values, "values")
        return self._each(lambda gmm, value: gmm.condition(indices, value), values)

    def _each(self, fn: Callable[..., Any], *args: PyTree) -> "MixtureBatch":
        """`fn`, which returns a mixture, for each; one structure stays one."""

        def leaves(gmm: GaussianMixture, *args: PyTree) -> tuple[Array, Array, AbstractCovariance]:
            changed = fn(gmm, *args)
            return changed.logits, changed.means, changed.structure

        outputs = (0, 0, None if self.shared else 0)
        logits, means, structure = self._mapped_over(leaves, outputs, *args)
        return MixtureBatch(logits, means, structure, self.shared)


@eqx.filter_jit
def _mapped(fn: Callable[..., PyTree], batch: MixtureBatch, *args: Array) -> PyTree:
    """`batch.map`, as one program when it is called from Python."""
    return batch.map(fn, *args)


def joined(
    logits: Float[Array, "*batch k"],
    means: Float[Array, "*batch k d"],
    structure: AbstractCovariance,
) -> GaussianMixture | MixtureBatch:
    """One mixture, or a batch of mixtures that share a structure."""
    if logits.ndim == 1:
        return GaussianMixture(logits, means, structure)
    return MixtureBatch(logits, means, structure, shared=True)
