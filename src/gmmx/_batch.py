"""Many mixtures at once, such as one for each value that was conditioned on."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from . import _checks
from ._covariance import AbstractCovariance
from ._mixture import GaussianMixture


class MixtureBatch(eqx.Module):
    """Mixtures of K components in d dimensions, one for each index of the leading axes.

    Conditioning changes the weights and the means of a mixture with the value, but not its
    covariances. They are then stored once, and `shared` is true.
    """

    logits: Float[Array, "*batch k"]
    means: Float[Array, "*batch k d"]
    structure: AbstractCovariance
    """One for all mixtures, or with the axes of the batch first in each leaf"""
    shared: bool = eqx.field(static=True)
    """Whether there is one structure, which shapes alone do not tell"""

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

        axes = (0, 0, None if self.shared else 0, *(0 for _ in args))
        for _ in range(depth):
            one = jax.vmap(one, in_axes=axes)
        return one(self.logits, self.means, self.structure, *args)

    def mean(self) -> Float[Array, "*batch d"]:
        """The mean of each whole mixture."""
        return _mapped(GaussianMixture.mean, self)

    def covariance(self) -> Float[Array, "*batch d d"]:
        """The covariance of each whole mixture."""
        return _mapped(GaussianMixture.covariance, self)

    def log_prob(self, x: Any) -> Float[Array, "*batch_and_points"]:
        """The log-density of each mixture at its own points.

        **Arguments:**

        - `x`: `(*batch, d)`, or `(*batch, *points, d)`. For points that are the same for all,
            `batch.map(lambda gmm: gmm.log_prob(x))`.
        """
        x = _checks.check_points(x, self.n_features, self.means.dtype)
        return _mapped(GaussianMixture.log_prob, self, x)

    def sample(
        self, n_samples: int, *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch n d"]:
        """Draws from each mixture; the key is `jax.random.key(0)` by default."""
        keys = jax.random.split(_checks.as_key(key), self.shape)
        return self.map(lambda gmm, key: gmm.sample(n_samples, key=key), keys)


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
