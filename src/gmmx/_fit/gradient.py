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

from .._abstract_mixture import AbstractMixture
from .._checks import check_count
from .._data import Data, Samples, take
from .._engine.conjugate import Conjugate
from .._engine.density import by_way, log_prob_of
from .._engine.floor import RELATIVE, Floor
from .._engine.kinds import ladder_of
from .._engine.ladder import Ladder
from .base import AbstractFitter
from .frozen import check_frozen, keep, split
from .options import floor, optional, positive, sweepable
from .prior import ConjugatePrior
from .result import FitResult, conclude, mean_of
from .standardise import Standardisation
from .state import FitState, squared_norm, where
from .status import Status


class _Memory(eqx.Module):
    units: Standardisation
    floor: Floor
    prior: Conjugate | None
    count: Float[Array, ""]
    """The number of samples"""
    trained: AbstractMixture
    """The current model in those units; `FitState.gmm` is the best so far"""
    gradient: PyTree
    """Of the objective, in what is trained"""
    optimiser: PyTree
    value: Float[Array, ""]
    """The mean log-likelihood of `FitState.gmm`, on all rows and without `reg_covar`"""
    best: Float[Array, ""]
    """The best objective so far"""
    reference: Float[Array, ""]
    """The objective that has to be bettered by tol, and the step that set it"""
    since: Int[Array, ""]
    promise: Float[Array, ""]
    """½‖gradient‖² at the best model: about what is left to gain; zero where it is not known"""
    held_out: Bool[Array, " n"] | None
    absent: Bool[Array, " k"]
    """The components of weight zero: nothing brings them back"""
    key: PRNGKeyArray

    def model(self, trained: AbstractMixture) -> AbstractMixture:
        """The mixture that `trained` stands for, with a logit of −∞ where the weight is zero."""
        logits = jnp.where(self.absent, -jnp.inf, trained.logits)
        return eqx.tree_at(lambda g: g.logits, trained, logits)

    def log_prior(self, gmm: AbstractMixture) -> Float[Array, ""]:
        """log p(θ) of a mixture in the units of the data, in nats a sample."""
        if self.prior is None:
            return jnp.zeros_like(self.count)
        return self.prior.log_prob(gmm) / self.count


# In standardised units, where it takes Adam to EM's likelihood in 100 to 200 steps on real data.
_DEFAULT_RATE = 0.05

# What a gradient may promise at a model that counts as an optimum, in nats a sample.
_STEEP = 1e-2


def _rate(value: Any) -> Any:
    return value if callable(value) else sweepable(value)


class GradientFitter(AbstractFitter):
    r"""Gradient descent on the negative log-likelihood.

    $$-\frac{1}{n}\sum_i \log \sum_k w_k \mathcal{N}(x_i; \mu_k, \Sigma_k)\,
      e^{-\frac{1}{2} \operatorname{tr} F\Lambda_k},\quad
      F = \epsilon \operatorname{diag}(s_1^2, \dots, s_d^2)$$

    The last factor is the mean of the log-density over noise of covariance F about each sample. A
    component alone is best at Σ = S + F, so ε means what it means to `EMFitter`, whose M-step
    has the same optimum; where components overlap and ε is large the two differ in how samples
    are shared. The data are standardised first, so that a learning rate means the same in any
    units.

    One step is one pass over the data. The model returned is the one of the best likelihood met.

    **Arguments:**

    - `optimizer`: an Optax optimiser, `optax.sgd(0.1)`, or a function that makes one of a
        learning rate, `optax.adam`. With the second another rate compiles nothing new.
    - `learning_rate`: a number or an Optax schedule, for an `optimizer` that is a function; 0.05
        if there is none.
    - `tol`: the fit has converged when the likelihood has not risen by this much, in nats a
        sample, in `patience` steps, and its gradient is small.
    - `max_iter`: maximum number of steps.
    - `reg_covar`: ε, a part of each feature's variance s² in the data, or `(d,)`, the diagonal of
        F in the squared units of the data, as in `EMFitter`.
    - `batch_size`: rows of a minibatch, drawn anew each pass; all of them if there is none.
    - `validation_fraction`: the part of the rows, drawn by the fit's key, that is held out;
        best and converged then go by the likelihood of those.
    - `frozen`: what stays as it is: any of `"weights"`, `"means"`, `"covariances"`.
    - `prior`: of the parameters; the fit then has the greatest posterior density (MAP).
    """

    optimizer: optax.GradientTransformation | Callable[[Any], optax.GradientTransformation] = (
        eqx.field(default=optax.adam, static=True)
    )
    learning_rate: Any = eqx.field(default=None, converter=optional(_rate))
    tol: Float[Array, ""] | float = eqx.field(default=1e-4, converter=sweepable)
    patience: Num[Array, ""] | float | int = eqx.field(default=30, converter=sweepable)
    max_iter: int = eqx.field(default=2000, static=True, converter=positive("max_iter"))
    reg_covar: Float[Array, "*d"] | float = eqx.field(default=RELATIVE, converter=floor)  # pyright: ignore[reportIncompatibleMethodOverride]
    batch_size: int | None = eqx.field(default=None, static=True)
    validation_fraction: Float[Array, ""] | float | None = eqx.field(
        default=None, converter=optional(sweepable)
    )
    frozen: frozenset[str] = eqx.field(default=(), static=True, converter=check_frozen)
    prior: ConjugatePrior | None = None

    def __check_init__(self):
        if self.batch_size is not None:
            check_count(self.batch_size, "batch_size")
        fraction = self.validation_fraction
        if isinstance(fraction, np.floating) and not 0 < fraction < 1:
            raise ValueError(
                f"validation_fraction={float(fraction)}; expected a part of the rows, between 0 "
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
                f"optimizer={self.optimizer!r}; expected an Optax optimiser, optax.adam(0.05), or "
                "a function that makes one from a learning rate, optax.adam."
            )

    def without_limit(self) -> Self:
        return dataclasses.replace(self, max_iter=1)

    def beside(self, weights: Any) -> Self:
        if self.prior is None:
            return self
        return dataclasses.replace(self, prior=self.prior.beside(weights))

    def _optimiser(self, dtype: Any) -> optax.GradientTransformationExtraArgs:
        optimiser = self.optimizer
        # A transformation is a named tuple of functions; anything else makes one.
        if not isinstance(optimiser, tuple):
            rate = _DEFAULT_RATE if self.learning_rate is None else self.learning_rate
            optimiser = optimiser(rate if callable(rate) else jnp.asarray(rate, dtype))
        return optax.with_extra_args_support(cast(optax.GradientTransformation, optimiser))

    def ladder(self, x: Samples, gmm: AbstractMixture) -> Ladder:
        rows = x.shape[0] if self.batch_size is None else min(self.batch_size, x.shape[0])
        return ladder_of(gmm, x, rows, products=1)

    def init(
        self,
        data: Samples,
        gmm: AbstractMixture,
        weights: Float[Array, " n"] | None,
        key: PRNGKeyArray,
    ) -> FitState:
        x, units = data, Standardisation.of(gmm, data, weights)
        absent = gmm.logits == -jnp.inf
        # The optimiser sees a number there: weight decay would make NaN of −∞.
        logits = jnp.where(absent, 0, gmm.logits)
        trained = eqx.tree_at(lambda g: g.logits, units.into(gmm), logits)
        free = cast(optax.Params, split(trained, self.frozen)[0])
        held_out = None
        if self.validation_fraction is not None:
            key, split_key = jax.random.split(key)
            held_out = _some_of(weights, x, self.validation_fraction, split_key)
        nothing = jnp.full((), -jnp.inf, x.dtype)
        inner = self._optimiser(x.dtype).init(free)
        if isinstance(inner, optax.LookaheadState):
            raise ValueError(
                "optax.lookahead keeps two copies of the parameters, which a fit has no place for. "
                "Pass the optimiser inside it."
            )
        memory = _Memory(
            units=units,
            floor=Floor.of(self.reg_covar, x, weights),
            prior=None if self.prior is None else self.prior.of(x, gmm, weights),
            count=jnp.asarray(x.shape[0], x.dtype) if weights is None else jnp.sum(weights),
            trained=trained,
            gradient=jax.tree.map(jnp.zeros_like, free),
            optimiser=inner,
            value=nothing,
            best=nothing,
            reference=nothing,
            since=jnp.zeros((), jnp.int32),
            promise=jnp.zeros((), x.dtype),
            held_out=held_out,
            absent=absent,
            key=key,
        )
        return FitState.begin(gmm, memory, x.dtype)

    def _parts(
        self, memory: _Memory, data: Samples, weights: Float[Array, " n"] | None
    ) -> tuple[Samples, Array, Array]:
        """The rows in the units of the fit, and the weights to train and to watch with."""
        train = jnp.ones(data.shape[0], data.dtype) if weights is None else weights
        z = data
        if not (isinstance(data, Data) or _in_own_units(memory.trained, data)):
            z = memory.units.apply(data)
        if memory.held_out is None:
            return z, train, train
        watch = jnp.where(memory.held_out, train, 0)
        return z, jnp.where(memory.held_out, 0, train), watch

    def _objective(
        self, memory: _Memory, frozen: AbstractMixture, ladder: Ladder, way: Int[Array, ""]
    ) -> Callable[..., tuple[Array, tuple[Array, Array]]]:
        """−Σ w log Σ_k w_k N(z; ·) exp(−½ tr FΛ_k) / Σ w, Λ in the units of the data.

        With the log-densities of the rows, penalised and not, and the size of what cancels.
        """

        def loss(
            free: PyTree, z: Samples, train: Float[Array, " n"], total: Array
        ) -> tuple[Array, tuple[Array, Array]]:
            trained = memory.model(eqx.combine(free, frozen))
            back = memory.units.back(trained)
            penalty = memory.floor.shares(back) / 2

            def both(log_joint: Float[Array, "l n"], penalty: Array = penalty) -> Array:
                # A background has no covariance, so nothing is added to one.
                penalty = jnp.pad(penalty, (0, len(log_joint) - len(penalty)))
                penalised = log_prob_of(log_joint - penalty[:, None])
                return jnp.stack([penalised, log_prob_of(log_joint)], axis=1)

            model = back if _in_own_units(trained, z) else trained
            log_prob, size = by_way(model, z, both, ladder, way)
            return -(train @ log_prob[:, 0]) / total - memory.log_prior(back), (log_prob, size)

        return loss

    def update(
        self,
        state: FitState,
        data: Samples,
        weights: Float[Array, " n"] | None,
        ladder: Ladder,
    ) -> FitState:
        """One step of the optimiser, or a pass of minibatches."""
        memory = state.inner
        z, train, _ = self._parts(memory, data, weights)
        free, frozen = split(memory.trained, self.frozen)
        key, shuffle_key = jax.random.split(memory.key)
        loss = self._objective(memory, frozen, ladder, state.way)
        optimiser = self._optimiser(data.dtype)
        if self.batch_size is None:
            # The optimiser sees the objective in the units of the fit.
            value = -state.log_likelihood - _shift(memory, data)
            free, inner = _descend(
                optimiser, loss, free, memory.optimiser, value, memory.gradient,
                (z, train, jnp.sum(train)),
            )  # fmt: skip
        else:
            free, inner = _pass(
                optimiser, loss, free, memory.optimiser, z, train, self.batch_size, shuffle_key
            )
        trained = cast(AbstractMixture, eqx.combine(free, frozen))
        memory = dataclasses.replace(memory, trained=trained, optimiser=inner, key=key)
        return dataclasses.replace(state, inner=memory)

    def evaluate(
        self,
        state: FitState,
        data: Samples,
        weights: Float[Array, " n"] | None,
        ladder: Ladder,
    ) -> FitState:
        """The objective of the current model and its gradient."""
        memory = state.inner
        z, train, watch = self._parts(memory, data, weights)
        free, frozen = split(memory.trained, self.frozen)
        loss = self._objective(memory, frozen, ladder, state.way)
        arguments = (free, z, train, jnp.sum(train))
        if self.batch_size is None:
            (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(*arguments)
        else:
            (value, aux), gradient = loss(*arguments), memory.gradient
        log_prob, size = aux
        shift = _shift(memory, data)
        log_likelihood = -value - shift
        back = memory.units.back(memory.model(memory.trained))
        objective = watch @ log_prob[:, 0] / jnp.sum(watch) - shift + memory.log_prior(back)
        better = objective > memory.best
        risen = objective > memory.reference + jnp.asarray(self.tol, z.dtype)
        since = jnp.where(risen, state.n_iter, memory.since)
        rested = (state.n_iter - since).astype(z.dtype) >= jnp.asarray(self.patience, z.dtype)
        # A rest far from any optimum is one of the optimiser; above all if nothing was gained.
        # Where rows are held out the best model is none of the others.
        slope = squared_norm(gradient) / 2 if memory.held_out is None else memory.promise
        promise = jnp.where(better, slope, memory.promise)
        tol = jnp.asarray(self.tol, z.dtype)
        steep = promise > jnp.where(since > 0, jnp.maximum(_STEEP, 1e2 * tol), tol)
        ended = Status.where(steep, Status.stalled, Status.converged)
        status = Status.where(rested, ended, Status.running)
        status = Status.where(jnp.isfinite(objective), status, Status.non_finite)
        inner = dataclasses.replace(
            memory,
            gradient=gradient,
            value=jnp.where(better, mean_of(log_prob[:, 1], weights) - shift, memory.value),
            best=jnp.where(better, objective, memory.best),
            reference=jnp.where(risen, objective, memory.reference),
            since=since,
            promise=promise,
        )
        return dataclasses.replace(
            state,
            gmm=where(better, keep(back, state.gmm, self.frozen), state.gmm),
            log_likelihood=log_likelihood,
            log_likelihood_diff=log_likelihood - state.log_likelihood,
            status=status,
            way=jnp.where(size <= 1, state.way, state.way + 1),
            inner=inner,
        )

    def finish(self, state: FitState) -> FitResult:
        memory = state.inner
        state = dataclasses.replace(state, log_likelihood=memory.value)
        spurious = memory.floor.spurious(state.gmm, memory.count, self.frozen)
        return conclude(state, floor=memory.floor.variances, spurious=spurious)


def _in_own_units(gmm: AbstractMixture, data: Samples) -> bool:
    """Whether densities are taken in the units of the data.

    Each row of `Data` has units of its own, and a background is a density in those of the data.
    """
    return isinstance(data, Data) or gmm.log_background_weight is not None


def _shift(memory: _Memory, data: Samples) -> Float[Array, ""]:
    """What a log-density in the units of the fit has more than one in those of the data."""
    shift = jnp.sum(jnp.log(memory.units.scale))
    return jnp.zeros_like(shift) if _in_own_units(memory.trained, data) else shift


def _some_of(weights, x, fraction, key) -> Bool[Array, " n"]:
    """This part of the rows that count, drawn at random; at least one and not all."""
    counted = jnp.ones(x.shape[0], bool) if weights is None else weights > 0
    n = jnp.sum(counted)
    draws = jnp.where(counted, jax.random.uniform(key, counted.shape, x.dtype), jnp.inf)
    rank = jnp.argsort(jnp.argsort(draws))
    size = jnp.round(jnp.asarray(fraction, x.dtype) * n.astype(x.dtype))
    return rank < jnp.clip(size.astype(n.dtype), 1, n - 1)


def _descend(optimiser, loss, free, state, value, gradient, rows):
    """One update of the optimiser."""
    updates, state = optimiser.update(
        gradient, state, free, value=value, grad=gradient,
        value_fn=lambda free: loss(free, *rows)[0],
    )  # fmt: skip
    return optax.apply_updates(free, updates), state


def _pass(optimiser, loss, free, state, z, train, batch_size, key):
    """One pass of minibatches over the rows that count, in random order."""
    n = z.shape[0]
    size = min(batch_size, n)
    counted = train > 0
    count = jnp.sum(counted)
    # Rows without weight come last, and no batch reaches them.
    order = jnp.argsort(jnp.where(counted, jax.random.uniform(key, (n,)), jnp.inf))
    expected = size * jnp.sum(train) / count.astype(z.dtype)

    def one(i, carry):
        free, state = carry
        # The last batch is filled up with rows of the first.
        rows = order[(i * size + jnp.arange(size)) % count]
        arguments = (take(z, rows), train[rows], expected)
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(free, *arguments)
        return _descend(optimiser, loss, free, state, value, gradient, arguments)

    return jax.lax.fori_loop(0, -(-count // size), one, (free, state))
