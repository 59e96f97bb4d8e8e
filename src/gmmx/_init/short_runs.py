"""The start that short runs of EM tell apart."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._components import Components
from .._covariance import AbstractCovariance
from .._data import Samples, completed, take
from .._engine.floor import Floor
from .._engine.form import Form
from .._engine.frame import Frame
from .._engine.kinds import ladder_of, rows_of
from .._engine.memberships import clusters_of
from .._engine.moments import maximise
from . import kmeans
from .within import rounded

# How many starts are compared, and the steps of EM that each of them gets.
_RUNS = 6
_STEPS = 40
# Rows that are enough to tell starts apart, in all and for each component.
_ROWS = 2**14
_ROWS_EACH = 100


def by_short_runs(
    mixture: type[Components],
    structure: type[AbstractCovariance],
    k: int,
    x: Samples,
    weights: Float[Array, " n"],
    key: PRNGKeyArray,
    reg_covar: Float[Array, "*d"],
) -> Components:
    """The likeliest, after a few steps of EM, of starts by k-means (Biernacki et al. 2003).

    Their distances are taken in three ways: with each feature scaled, in the covariance of all
    rows, and in that of near ones, which finds clusters however they are elongated; for structures
    of low rank, whose covariances are too large for that, in the first way alone. A start with a
    component that has collapsed is taken only where all of them have one. Of many rows some are
    drawn.
    """
    n, key = x.shape[0], jax.random.fold_in(key, 1)
    most = max(_ROWS, _ROWS_EACH * k)
    if n > most:
        # By weight, so that each of those drawn counts once.
        some = kmeans.draw(weights, jax.random.uniform(key, (most,), weights.dtype))
        x, weights = take(x, some), jnp.ones(most, weights.dtype)
    points = completed(x, weights)
    seen = _views(points, weights, k, key, structure)

    def start(number: Array, key: PRNGKeyArray) -> Components:
        z = seen[number % len(seen)]
        labels = kmeans.lloyd(z, weights, kmeans.plusplus(z, weights, k, key))
        members = jax.nn.one_hot(labels, k, dtype=z.dtype) * weights[:, None]
        return clusters_of(points, members, structure).fit(mixture, structure, reg_covar)

    floor = Floor.of(reg_covar, x, weights)
    like = jax.eval_shape(start, jnp.zeros((), jnp.int32), key)
    ladder = ladder_of(like, x, x.shape[0], products=2).ends()
    rows = rows_of(x, like, weights, ladder)

    def run(begin: tuple[Array, PRNGKeyArray]) -> tuple[Components, Array, Array]:
        def step(_: Array, carry: tuple[Components, Array]) -> tuple[Components, Array]:
            gmm, _ = carry
            form = Form.of(gmm, rows.frame)
            way = ladder.choose(form, rows.reach)
            moments, _ = rows.expect(form, weights, ladder, way)
            return maximise(gmm, form, moments, rows.frame, floor.variances), moments.log_likelihood

        gmm = start(*begin)
        gmm, value = jax.lax.fori_loop(0, _STEPS, step, (gmm, jnp.zeros((), gmm.dtype)))
        sound = ~jnp.any(floor.spurious(gmm, jnp.sum(weights), frozenset()))
        return gmm, jnp.where(jnp.isfinite(value), value, -jnp.inf), sound

    numbers = jnp.arange(_RUNS, dtype=jnp.int32)
    found, values, sound = jax.lax.map(run, (numbers, jax.random.split(key, _RUNS)))
    best = jnp.argmax(jnp.where(sound | ~jnp.any(sound), values, -jnp.inf))
    return jax.tree.map(lambda leaf: leaf[best], found)


def _views(
    points: Float[Array, "n d"],
    weights: Float[Array, " n"],
    k: int,
    key: PRNGKeyArray,
    structure: type[AbstractCovariance],
) -> Float[Array, "v n d"]:
    """The rows in the units in which distances are taken."""
    scaled = Frame.of_data(points, weights, turned=False).apply(points)
    if structure.n_latent is not None:
        return scaled[None]
    white = Frame.of_data(points, weights, turned=True).apply(points)
    return jnp.stack([scaled, rounded(white, weights, k, key), white])
