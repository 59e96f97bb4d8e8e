"""Gradient descent on the negative log-likelihood, by any Optax optimiser."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, PyTree

from .._checks import check_count
from .._density import assess, log_prob_of
from .._mixture import GaussianMixture
from .._standardise import Standardisation
from .base import AbstractFitter, FitState
from .frozen import check_frozen, split
from .options import optional, positive, sweepable
from .result import FitResult, Status, conclude, mean_of, where


class _Memory(eqx.Module):
    units: Standardisation
    trained: GaussianMixture
    """The current model in those units; `FitState.gmm` is the best so far"""
    optimiser: PyTree
    best: Float[Array, ""]
    """The best objective so far"""
    reference: Float[Array, ""]
    """The objective that has to be bettered by tol, and the step that set it"""
    since: Int[Array, ""]
    held_out: Bool[Array, " n"] | None
    absent: Bool[Array, " k"]
    """The components of weight zero: nothing brings them back"""
    key: PRNGKeyArray

    def model(self, trained: GaussianMixture) -> GaussianMixture:
        """The mixture that `trained` stands for, with a logit of −∞ where the weight is zero."""
        logits = jnp.where(self.absent, -jnp.inf, trained.logits)
        return eqx.tree_at(lambda g: g.logits, trained, logits)


# In standardised units, where it takes Adam to EM's likelihood in 100 to 200 steps on real data.
_DEFAULT_RATE = 0.05


def _rate(value: Any) -> Any:
    return value if callable(value) else sweepable(value)


class GradientFitter(AbstractFitter):
    r"""Gradient descent on the negative log-likelihood.

    $$-\frac{1}{n}\sum_i \log \sum_k w_k \mathcal{N}(x_i; \mu_k, \Sigma_k)\,
      e^{-\frac{\epsilon}{2} \operatorname{tr} \Lambda_k}$$

    The last factor is the mean of the log-density over noise of variance ε about each sample. A
    component alone is best at Σ = S + εI, so ε means what it means to `EMFitter`, whose M-step
    has the same optimum; where components overlap and ε is large the two differ in how samples
    are shared. The data are standardised on the way in and the model brought back, so that a
    learning rate means the same in any units.

    One step is one pass over the data. The model returned is the one of the best likelihood met.

    **Arguments:**

    - `optimizer`: an Optax optimiser, `optax.sgd(0.1)`, or a function that makes one of a
        learning rate, `optax.adam`. With the second another rate compiles nothing new.
    - `learning_rate`: a number or an Optax schedule, for an `optimizer` that is a function; 0.05
        if there is none.
    - `tol`: the fit has converged when the likelihood has not risen by this much, in nats a
        sample, in `patience` steps.
    - `max_iter`: the most steps.
    - `reg_covar`: ε, in the squared units of the data.
    - `batch_size`: rows of a minibatch, drawn anew each pass; all of them if there is none.
    - `validation_fraction`: the part of the rows, drawn by the fit's key, that is held out;
        best and converged then go by the likelihood of those.
    - `frozen`: what stays as it is: any of `"weights"`, `"means"`, `"covariances"`.
    """

    optimizer: optax.GradientTransformation | Callable[[Any], optax.GradientTransformation] = (
        eqx.field(default=optax.adam, static=True)
    )
    learning_rate: Any = eqx.field(default=None, converter=optional(_rate))
    tol: Float[Array, ""] | float = eqx.field(default=1e-4, converter=sweepable)
    patience: Num[Array, ""] | float | int = eqx.field(default=30, converter=sweepable)
    max_iter: int = eqx.field(default=2000, static=True, converter=positive("max_iter"))
    reg_covar: Float[Array, ""] | float = eqx.field(default=1e-6, converter=sweepable)
    batch_size: int | None = eqx.field(default=None, static=True)
    validation_fraction: Float[Array, ""] | float | None = eqx.field(
        default=None, converter=optional(sweepable)
    )
    frozen: frozenset[str] = eqx.field(default=(), static=True, converter=check_frozen)

    def __check_init__(self):
        if self.batch_size is not None:
            check_count(self.batch_size, "batch_size")
        fraction = self.validation_fraction
        if isinstance(fraction, np.floating) and not 0 < fraction < 1:
            raise ValueError(
                f"validation_fraction={float(fraction)}; a part of the rows was wanted, between 0 "
                "and 1, or None to hold out none."
            )
        if isinstance(self.optimizer, tuple):
            if self.learning_rate is not None:
                raise ValueError(
                    "the optimizer has a learning rate of its own, and another was given. Pass "
                    "optimizer=optax.adam with a learning_rate, or optimizer=optax.adam(0.05)."
                )
            return
        if not callable(self.optimizer):
            raise ValueError(
                f"optimizer={self.optimizer!r}; an Optax optimiser was wanted, optax.adam(0.05), "
                "or a function that makes one of a learning rate, optax.adam."
            )

    def without_limit(self) -> Self:
        return dataclasses.replace(self, max_iter=1)

    def _optimiser(self, dtype: Any) -> optax.GradientTransformationExtraArgs:
        optimiser = self.optimizer
        # A transformation is a named tuple of functions; anything else makes one.
        if not isinstance(optimiser, tuple):
            rate = _DEFAULT_RATE if self.learning_rate is None else self.learning_rate
            optimiser = optimiser(rate if callable(rate) else jnp.asarray(rate, dtype))
        return optax.with_extra_args_support(cast(optax.GradientTransformation, optimiser))

    def _log_prob(
        self, trained: GaussianMixture, units: Standardisation, z: Float[Array, "n d"]
    ) -> Float[Array, " n"]:
        """log Σ w_k N(z; ·) exp(−ε/2 tr Λ_k), Λ in the data's own units."""
        trace = units.back(trained).structure.precision_trace(trained.n_features)
        floor = jnp.asarray(self.reg_covar, z.dtype) / 2 * trace
        logits = trained.log_weights - floor
        # The weights of that mixture do not sum to one: what they lack is put back.
        lessened = eqx.tree_at(lambda g: g.logits, trained, logits)
        return lessened.log_prob(z) + jax.nn.logsumexp(logits)

    def init(
        self,
        data: Float[Array, "n d"],
        gmm: GaussianMixture,
        weights: Float[Array, " n"] | None,
        key: PRNGKeyArray,
    ) -> FitState:
        x, units = data, Standardisation.of(gmm, data)
        absent = gmm.logits == -jnp.inf
        # The optimiser sees a number there: weight decay would make NaN of −∞.
        logits = jnp.where(absent, 0, gmm.logits)
        trained = eqx.tree_at(lambda g: g.logits, units.into(gmm), logits)
        free = cast(optax.Params, split(trained, self.frozen)[0])
        held_out = None
        if self.validation_fraction is not None:
            key, split_key = jax.random.split(key)
            n = x.shape[0]
            size = jnp.asarray(self.validation_fraction, x.dtype) * n
            order = jax.random.permutation(split_key, n)
            held_out = order < jnp.clip(jnp.round(size), 1, n - 1).astype(order.dtype)
        nothing = jnp.full((), -jnp.inf, x.dtype)
        zero = jnp.zeros((), jnp.int32)
        return FitState(
            gmm=gmm,
            n_iter=zero,
            log_likelihood=nothing,
            log_likelihood_diff=-nothing,
            status=Status.running,
            inner=_Memory(
                units=units,
                trained=trained,
                optimiser=self._optimiser(x.dtype).init(free),
                best=nothing,
                reference=nothing,
                since=zero,
                held_out=held_out,
                absent=absent,
                key=key,
            ),
        )

    def step(
        self, state: FitState, data: Float[Array, "n d"], weights: Float[Array, " n"] | None
    ) -> FitState:
        x, memory = data, state.inner
        z = memory.units.apply(x)
        train = jnp.ones(x.shape[0], x.dtype) if weights is None else weights
        watch = train
        if memory.held_out is not None:
            watch = jnp.where(memory.held_out, train, 0)
            train = jnp.where(memory.held_out, 0, train)
        free, frozen = split(memory.trained, self.frozen)
        update = _update_whole if self.batch_size is None else self._update_batches
        shuffle_key, key = jax.random.split(memory.key)

        def loss(free: GaussianMixture, z: Array, train: Array, size: Array) -> tuple[Array, Array]:
            trained = memory.model(eqx.combine(free, frozen))
            log_prob = self._log_prob(trained, memory.units, z)
            return -(train @ log_prob) / size, log_prob

        log_prob, free, optimiser = update(
            self._optimiser(x.dtype), loss, free, memory.optimiser, z, train, shuffle_key
        )
        shift = jnp.sum(jnp.log(memory.units.scale))
        log_likelihood = train @ log_prob / jnp.sum(train) - shift
        objective = watch @ log_prob / jnp.sum(watch) - shift

        better = objective > memory.best
        risen = objective > memory.reference + jnp.asarray(self.tol, x.dtype)
        since = jnp.where(risen, state.n_iter, memory.since)
        rested = (state.n_iter - since).astype(x.dtype) >= jnp.asarray(self.patience, x.dtype)
        status = Status.where(rested, Status.converged, Status.running)
        status = Status.where(jnp.isfinite(objective), status, Status.non_finite)
        return FitState(
            gmm=where(better, self._back(memory, state.gmm), state.gmm),
            n_iter=state.n_iter + 1,
            log_likelihood=log_likelihood,
            log_likelihood_diff=log_likelihood - state.log_likelihood,
            status=status,
            inner=_Memory(
                units=memory.units,
                trained=cast(GaussianMixture, eqx.combine(free, frozen)),
                optimiser=optimiser,
                best=jnp.where(better, objective, memory.best),
                reference=jnp.where(risen, objective, memory.reference),
                since=since,
                held_out=memory.held_out,
                absent=memory.absent,
                key=key,
            ),
        )

    def _back(self, memory: _Memory, gmm: GaussianMixture) -> GaussianMixture:
        """The current model in the data's units, what is frozen to the last digit as it was."""
        back = memory.units.back(memory.model(memory.trained))
        return eqx.combine(split(back, self.frozen)[0], split(gmm, self.frozen)[1])

    def _update_batches(self, optimiser, loss, free, state, z, train, key):
        """One pass of minibatches; the likelihoods are taken before it."""
        n = z.shape[0]
        size = min(cast(int, self.batch_size), n)
        n_batches = -(-n // size)
        order = jax.random.permutation(key, n)
        # The last batch is filled up with rows of the first.
        batches = jnp.resize(order, n_batches * size).reshape(n_batches, size)
        expected = size * jnp.mean(train)

        def one(carry, rows):
            free, state = carry
            return _descend(optimiser, loss, free, state, z[rows], train[rows], expected)[1:], None

        log_prob = loss(free, z, train, expected)[1]
        (free, state), _ = jax.lax.scan(one, (free, state), batches)
        return log_prob, free, state

    def finish(
        self,
        state: FitState,
        data: Float[Array, "n d"],
        weights: Float[Array, " n"] | None,
    ) -> FitResult:
        # In the ways that derivatives take.
        log_prob, _, packed = assess(state.gmm, data, log_prob_of, apart=False)
        return conclude(state, mean_of(log_prob, weights), packed)


def _descend(optimiser, loss, free, state, z, train, size):
    """One update of the optimiser."""
    (value, log_prob), gradient = jax.value_and_grad(loss, has_aux=True)(free, z, train, size)
    updates, state = optimiser.update(
        gradient, state, free, value=value, grad=gradient,
        value_fn=lambda free: loss(free, z, train, size)[0],
    )  # fmt: skip
    return log_prob, optax.apply_updates(free, updates), state


def _update_whole(optimiser, loss, free, state, z, train, key):
    """One update from all rows; the likelihoods come with its gradient."""
    return _descend(optimiser, loss, free, state, z, train, jnp.sum(train))
