"""The operations of the library, one row each: the contract of `test_operations.py` runs over it.

A row says how an operation is called, what it is in NumPy on dense matrices, what it needs beside
a mixture, which of that has a row for each sample, and which structures it keeps.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
from conftest import STRUCTURES, Structure

import gmmx

K, L, D, N = 3, 2, 4, 6
GIVEN, REST = [2, 0], [1, 3]
ALL = ("full", "tied", "diag", "spherical")


class Dense(NamedTuple):
    """A mixture in NumPy."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    @property
    def widths(self) -> np.ndarray:
        """The largest deviation of each feature within a component."""
        return np.sqrt(np.diagonal(self.covariances, axis1=1, axis2=2).max(axis=0))


def dense(gmm: gmmx.GaussianMixture) -> Dense:
    """The mixture of these leaves, in float64."""
    factors = np.asarray(gmm.dense_factors(), float)
    roots = [scipy.linalg.solve_triangular(w, np.eye(len(w)), lower=True) for w in factors]
    return Dense(
        softmax(np.asarray(gmm.logits, float)),
        np.asarray(gmm.means, float),
        np.stack([r @ r.T for r in roots]),
    )


# What operations are, on dense matrices


def softmax(a, axis=-1):
    return np.exp(a - np.logaddexp.reduce(a, axis=axis, keepdims=True))


def log_normal(x, mean, covariance):
    """log N(x; mean, covariance) at points `(*batch, d)`."""
    x = np.asarray(x)
    root = np.linalg.cholesky(covariance)
    apart = (x - mean).reshape(-1, len(mean))
    y = scipy.linalg.solve_triangular(root, apart.T, lower=True)
    value = -np.sum(y**2, axis=0) / 2 - np.log(np.diagonal(root)).sum()
    return (value - len(mean) / 2 * np.log(2 * np.pi)).reshape(x.shape[:-1])


def log_joint(p: Dense, x):
    with np.errstate(divide="ignore"):
        log_weights = np.log(p.weights)
    each = [log_normal(x, m, c) for m, c in zip(p.means, p.covariances, strict=True)]
    return log_weights + np.stack(each, axis=-1)


def log_density(p: Dense, x):
    return np.logaddexp.reduce(log_joint(p, x), axis=-1)


def mixed(shares, means, covariances):
    """Mean and covariance of a mixture, for shares `(n k)` and means `(n k d)`."""
    mean = np.einsum("nk,nkd->nd", shares, means)
    apart = means - mean[:, None]
    between = np.einsum("nk,nki,nkj->nij", shares, apart, apart)
    return mean, np.einsum("nk,kij->nij", shares, covariances) + between


def moments(p: Dense):
    mean, covariance = mixed(p.weights[None], p.means[None], p.covariances)
    return mean[0], covariance[0]


def marginal(p: Dense, kept):
    kept = np.asarray(kept)
    return Dense(p.weights, p.means[:, kept], p.covariances[:, kept[:, None], kept])


def conditional(p: Dense, values):
    """Shares `(n k)`, means `(n k u)` and covariances of the other features given values."""
    given, rest = np.array(GIVEN), np.array(REST)
    seen = marginal(p, given)
    across = p.covariances[:, rest[:, None], given]
    gains = across @ np.linalg.inv(seen.covariances)
    means = p.means[:, rest] + np.einsum("kuo,nko->nku", gains, values[:, None] - seen.means)
    rests = p.covariances[:, rest[:, None], rest] - gains @ across.transpose(0, 2, 1)
    return softmax(log_joint(seen, values)), means, rests


class Given(NamedTuple):
    """The posterior of one observation each (Bovy, Hogg & Roweis 2011)."""

    log_evidence: np.ndarray
    shares: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def given(p: Dense, y, a, c, b) -> Given:
    """The posterior of x at each y = ax + b + ε, ε ~ N(0, c)."""
    observed = Dense(p.weights, p.means @ a.T + b, a @ p.covariances @ a.T + c)
    gains = p.covariances @ a.T @ np.linalg.inv(observed.covariances)
    means = p.means + np.einsum("kdm,nkm->nkd", gains, y[:, None] - observed.means)
    joint = log_joint(observed, y)
    covariances = p.covariances - gains @ a @ p.covariances
    return Given(np.logaddexp.reduce(joint, -1), softmax(joint), means, covariances)


def modes(found: Given):
    return found.means[np.arange(len(found.means)), found.shares.argmax(1)]


def each_given(p: Dense, y, a, roots):
    """(log-evidence, mean) of each sample under an operator and a noise of its own."""
    parts = zip(y, a, roots, strict=True)
    found = [given(p, one[None], m, root @ root.T, 0.0) for one, m, root in parts]
    means = [mixed(f.shares, f.means, f.covariances)[0] for f in found]
    return np.concatenate([f.log_evidence for f in found]), np.concatenate(means)


def noise_score(p: Dense, x, sigma):
    scores = []
    for row, width in zip(x, sigma, strict=True):
        noisy = p.covariances + width**2 * np.eye(len(row))
        solved = np.linalg.solve(noisy, (row - p.means)[..., None])[..., 0]
        shares = softmax(log_joint(Dense(p.weights, p.means, noisy), row))
        scores.append(-shares @ solved)
    return np.array(scores)


def product(p: Dense, q: Dense):
    parts = []
    for i, j in itertools.product(range(len(p.weights)), range(len(q.weights))):
        total = p.covariances[i] + q.covariances[j]
        gain = p.covariances[i] @ np.linalg.inv(total)
        weight = p.weights[i] * q.weights[j] * np.exp(log_normal(q.means[j], p.means[i], total))
        mean = p.means[i] + gain @ (q.means[j] - p.means[i])
        parts.append((weight, mean, p.covariances[i] - gain @ p.covariances[i]))
    weights, means, covariances = (np.stack(part) for part in zip(*parts, strict=True))
    return Dense(weights / weights.sum(), means, covariances)


def collapsed(p: Dense):
    mean, covariance = moments(p)
    return Dense(np.ones(1), mean[None], covariance[None])


def runnalls(p: Dense, n: int):
    """The greedy algorithm on dense matrices, as the paper has it."""
    parts = [Dense(*part) for part in zip(*p, strict=True)]

    def merged(a, b):
        w = a.weights + b.weights
        apart = a.means - b.means
        mean = (a.weights * a.means + b.weights * b.means) / w
        between = a.weights * b.weights / w**2 * np.outer(apart, apart)
        within = (a.weights * a.covariances + b.weights * b.covariances) / w
        return Dense(w, mean, within + between)

    def cost(a, b):
        half = [
            part.weights * np.linalg.slogdet(part.covariances)[1] / 2
            for part in (merged(a, b), a, b)
        ]
        return half[0] - half[1] - half[2]

    while len(parts) > n:
        pairs = [(i, j) for j in range(len(parts)) for i in range(j)]
        i, j = min(pairs, key=lambda pair: cost(parts[pair[0]], parts[pair[1]]))
        # The merged component takes the place of the first of the two.
        parts[i] = merged(parts[i], parts[j])
        del parts[j]
    return Dense(*(np.stack(values) for values in zip(*parts, strict=True)))


def by_pairs(fn, p: Dense, q: Dense):
    """`fn` of mean and covariance of each component of p and each of q."""
    return np.array(
        [
            [fn(*one, *other) for other in zip(q.means, q.covariances, strict=True)]
            for one in zip(p.means, p.covariances, strict=True)
        ]
    )


def log_overlaps(p: Dense, q: Dense):
    return by_pairs(lambda m, a, n, b: log_normal(n, m, a + b), p, q)


def log_overlap(p: Dense, q: Dense):
    terms = log_overlaps(p, q) + np.log(p.weights)[:, None] + np.log(q.weights)
    return np.logaddexp.reduce(terms, axis=None)


def squared_error(p: Dense, q: Dense):
    pp, pq, qq = (np.exp(log_overlap(*pair)) for pair in ((p, p), (p, q), (q, q)))
    return pp - 2 * pq + qq


def kl(m, a, n, b):
    inverse, apart = np.linalg.inv(b), m - n
    logs = np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1]
    return (np.trace(inverse @ a) + apart @ inverse @ apart - len(m) + logs) / 2


def kl_variational(p: Dense, q: Dense):
    own = np.logaddexp.reduce(np.log(p.weights) - by_pairs(kl, p, p), axis=1)
    other = np.logaddexp.reduce(np.log(q.weights) - by_pairs(kl, p, q), axis=1)
    return p.weights @ (own - other)


def kl_upper_bound(p: Dense, q: Dense):
    """The bound, minimised over both splits in turn."""
    divergences, log_p, log_q = by_pairs(kl, p, q), np.log(p.weights)[:, None], np.log(q.weights)
    psi = np.zeros_like(divergences)
    for _ in range(2000):
        phi = psi + log_q - divergences
        phi = phi - np.logaddexp.reduce(phi, axis=1, keepdims=True)
        psi = log_p + phi - np.logaddexp.reduce(log_p + phi, axis=0)
    ratio = log_p + phi - log_q - psi
    return np.sum(np.exp(log_p + phi) * (ratio + divergences))


def entropy_bounds(p: Dense):
    d = p.means.shape[1]
    entropies = np.array([np.linalg.slogdet(2 * np.pi * np.e * c)[1] / 2 for c in p.covariances])

    def bhattacharyya(m, a, n, b):
        middle, apart = (a + b) / 2, m - n
        logs = [np.linalg.slogdet(c)[1] for c in (middle, a, b)]
        return apart @ np.linalg.solve(middle, apart) / 8 + (logs[0] - (logs[1] + logs[2]) / 2) / 2

    def pairs(log_likeness):
        return -np.logaddexp.reduce(np.log(p.weights) + log_likeness, axis=1)

    lower = (
        p.weights @ pairs(log_overlaps(p, p)),
        p.weights @ (entropies + pairs(-by_pairs(bhattacharyya, p, p))),
    )
    upper = (
        (d * np.log(2 * np.pi * np.e) + np.linalg.slogdet(moments(p)[1])[1]) / 2,
        p.weights @ (entropies + pairs(-by_pairs(kl, p, p))),
    )
    return max(lower), min(upper)


def squared_wasserstein(m, a, n, b):
    root = scipy.linalg.sqrtm(a)
    cross = scipy.linalg.sqrtm(root @ b @ root).real
    return np.sum((m - n) ** 2) + np.trace(a + b - 2 * cross)


def mixture_wasserstein(p: Dense, q: Dense):
    """The least cost of transport, by a dense linear program."""
    cost = by_pairs(squared_wasserstein, p, q)
    k, m = cost.shape
    sums = np.concatenate([np.kron(np.eye(k), np.ones(m)), np.kron(np.ones(k), np.eye(m))])
    totals = np.concatenate([p.weights, q.weights])
    found = scipy.optimize.linprog(cost.ravel(), A_eq=sums[:-1], b_eq=totals[:-1])
    return np.sqrt(found.fun)


# What operations are given beside a mixture


def points(p: Dense, rng, n: int = N, factor: float = 1.5):
    """Points as far from the components as these are wide."""
    k, d = p.means.shape
    roots = np.linalg.cholesky(p.covariances)[np.arange(n) % k]
    noise = factor * rng.normal(size=(n, d, 1))
    return p.means[np.arange(n) % k] + (roots @ noise)[..., 0]


def sigmas(p: Dense, n: int = N):
    """From a hundredth of the components' widths to a hundred times as much."""
    return np.geomspace(1e-2, 1e2, n) * p.widths.min()


def observation(p: Dense, rng, n: int = N):
    """(y, A, a root of C, b) of fewer numbers than features."""
    matrix = rng.normal(size=(2, p.means.shape[1])) / p.widths
    offset = rng.normal(size=2)
    y = points(p, rng, n) @ matrix.T + offset + 0.3 * rng.normal(size=(n, 2))
    return y, matrix, np.array([[0.5, 0], [0.2, 0.4]]), offset


def other(p: Dense, structure: Structure, rng):
    """Another mixture of this structure, a width away."""
    means = p.means[:L] + p.widths * rng.normal(size=(L, p.means.shape[1]))
    covariances = 1.7 * p.covariances[::-1][:L]
    return structure.of(rng.dirichlet(np.full(L, 5.0)), means, structure.natural(covariances))


# The table


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation."""

    name: str
    call: Callable[..., Any]
    """The operation of a mixture and of its inputs"""
    reference: Callable[..., Any] | None
    """The same in NumPy, of a `Dense` and of the inputs; None if it draws"""
    inputs: Callable[[Dense, Structure, np.random.Generator, int], tuple[Any, ...]] = (
        lambda p, structure, rng, n: ()
    )
    """What it is given beside the mixture, in float64, for n samples"""
    rows: tuple[int, ...] = ()
    """The inputs that have a row for each sample. Such an operation has one of results as well"""
    keeps: tuple[str, ...] | None = None
    """The structures that its result has if the mixture has them; None if it is no mixture"""
    scale: Callable[[Any, Dense], Any] = lambda value, p: 1 + np.abs(value)
    """The units of errors, given the result in float64; of a mixture, they are its own widths"""
    float32: float | None = 1e-4
    """The largest error in float32 in these units; None where nearly all of a value cancels"""
    rounding: int = 3
    """By how many ε of the size of a result's own numbers it may be off in float32 as well"""
    differentiable: bool = True
    differences: bool = True
    """Whether its derivatives are those of its values, and not of what the values estimate"""
    largest: Callable[[int, int, int], int] = lambda n, k, d: max(n * k, 2 * n * d)
    """The size of the largest array, of n rows, k components and d features"""
    bounded_gradient: bool = True
    """Whether this holds of its gradient as well"""
    many: int = 20_011
    """More rows than a chunk takes of 16 components and 8 features, divided by no chunk"""

    def __str__(self) -> str:
        return self.name


def arrays(result: Any) -> list[Any]:
    """What a result is compared by."""
    if isinstance(result, gmmx.GaussianMixture):
        return [result.weights, result.means, result.covariances]
    return jax.tree.leaves(result)


def natural(result: Any, reference: Any) -> list[np.ndarray]:
    """The reference of a result, in the shapes of `arrays(result)`."""
    if isinstance(reference, Dense):
        covariances = STRUCTURES[result.covariance_type].natural(reference.covariances)
        return [reference.weights, reference.means, covariances]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(reference)]


def of_features(features=None):
    """The scale of points of some features: the components' widths."""
    return lambda value, p: p.widths if features is None else p.widths[features]


def each(*scales):
    """A scale for each array of a result."""

    def scale(value, p):
        return [one(v, p) for one, v in zip(scales, value, strict=True)]

    return scale


def nats(value, p):
    return 1 + np.abs(value)


def one(value, p):
    return 1.0


def by_feature(value, p):
    return np.abs(value).max(axis=0)


def by_deviations(value, p):
    """Of covariances: the products of their own deviations."""
    deviations = np.sqrt(np.diagonal(value, axis1=-2, axis2=-1))
    return deviations[..., :, None] * deviations[..., None, :]


def of_points(p, structure, rng, n):
    return (points(p, rng, n),)


def of_values(p, structure, rng, n):
    return (points(p, rng, n)[:, GIVEN],)


def of_observations(p, structure, rng, n):
    return observation(p, rng, n)


def of_operators(p, structure, rng, n):
    """(y, A, a root of C), each for every sample."""
    matrices = rng.normal(size=(n, 2, p.means.shape[1])) / p.widths
    y = np.einsum("nmd,nd->nm", matrices, points(p, rng, n)) + 0.3 * rng.normal(size=(n, 2))
    return y, matrices, np.tril(0.2 * rng.normal(size=(n, 2, 2))) + 0.5 * np.eye(2)


def of_another(p, structure, rng, n):
    return (other(p, structure, rng),)


def posterior(gmm, y, a, root, b):
    return gmm.posterior(y, a, jnp.matmul(root, root.mT), b)


def given_all(p, y, a, root, b):
    return given(p, y, a, root @ root.T, b)


def without_penalty(name: str, weight: float):
    """A criterion less what it takes for parameters."""

    def call(gmm, x):
        return getattr(gmm, name)(x) - weight * gmm.n_parameters

    return call


def completed(p: Dense, x):
    joint = log_joint(p, x)
    return -2 * log_density(p, x).sum() - 2 * np.log(softmax(joint).max(axis=1)).sum()


_ROWS = [
    Operation("log_prob", lambda g, x: g.log_prob(x), log_density, of_points, rows=(0,)),
    Operation(
        "component_log_prob",
        lambda g, x: g.component_log_prob(x),
        log_joint,
        of_points,
        rows=(0,),
    ),
    Operation(
        "predict_proba",
        lambda g, x: g.predict_proba(x),
        lambda p, x: softmax(log_joint(p, x)),
        of_points,
        rows=(0,),
    ),
    Operation(
        "predict",
        lambda g, x: g.predict(x),
        lambda p, x: log_joint(p, x).argmax(axis=1),
        of_points,
        rows=(0,),
        differentiable=False,
    ),
    Operation(
        "noise_score",
        lambda g, x, sigma: g.noise_score(x, sigma),
        noise_score,
        lambda p, structure, rng, n: (points(p, rng, n), sigmas(p, n)),
        rows=(0, 1),
        scale=by_feature,
        float32=3e-5,
    ),
    Operation(
        "condition on many values",
        lambda g, v: (lambda batch: (batch.weights, batch.means))(g.condition(GIVEN, v)),
        lambda p, v: conditional(p, v)[:2],
        of_values,
        rows=(0,),
        scale=each(one, of_features(REST)),
        float32=1e-3,
        largest=lambda n, k, d: n * k * d,
    ),
    Operation(
        "regress",
        lambda g, v: g.regress(GIVEN, v),
        lambda p, v: mixed(*conditional(p, v)),
        of_values,
        rows=(0,),
        scale=each(of_features(REST), by_deviations),
        largest=lambda n, k, d: max(n * k, n * d * d),
    ),
    Operation(
        "posterior.log_evidence",
        lambda g, *given: posterior(g, *given).log_evidence(),
        lambda p, *args: given_all(p, *args).log_evidence,
        of_observations,
        rows=(0,),
        float32=2e-3,  # Aμ + b is rounded as well
    ),
    Operation(
        "posterior.responsibilities",
        lambda g, *given: posterior(g, *given).responsibilities(),
        lambda p, *args: given_all(p, *args).shares,
        of_observations,
        rows=(0,),
        float32=2e-3,
    ),
    Operation(
        "posterior.mean",
        lambda g, *given: posterior(g, *given).mean(),
        lambda p, *args: mixed(*given_all(p, *args)[1:])[0],
        of_observations,
        rows=(0,),
        scale=of_features(),
    ),
    Operation(
        "posterior.mode",
        lambda g, *given: posterior(g, *given).mode(),
        lambda p, *args: modes(given_all(p, *args)),
        of_observations,
        rows=(0,),
        scale=of_features(),
    ),
    Operation(
        "posterior.covariance",
        lambda g, *given: posterior(g, *given).covariance(),
        lambda p, *args: mixed(*given_all(p, *args)[1:])[1],
        of_observations,
        rows=(0,),
        scale=by_deviations,
        float32=2e-3,
        largest=lambda n, k, d: max(n * k, n * d * d),
    ),
    Operation(
        "posterior.sample",
        lambda g, *given: posterior(g, *given).sample(2, key=jax.random.key(1)),
        None,
        of_observations,
    ),
    Operation(
        "posterior of each sample",
        lambda g, *given: (lambda f: (f.log_evidence(), f.mean()))(posterior(g, *given, 0)),
        each_given,
        of_operators,
        rows=(0, 1, 2),
        scale=each(nats, of_features()),
        float32=2e-3,
        bounded_gradient=False,  # it keeps the factors of each sample
        many=2_011,
    ),
]

_MODELS = [
    Operation("mean", lambda g: g.mean(), lambda p: moments(p)[0], scale=of_features()),
    Operation("covariance", lambda g: g.covariance(), lambda p: moments(p)[1], scale=by_deviations),
    Operation("score", lambda g, x: g.score(x), lambda p, x: log_density(p, x).mean(), of_points),
    Operation(
        "aic", without_penalty("aic", 2), lambda p, x: -2 * log_density(p, x).sum(), of_points
    ),
    Operation(
        "bic",
        without_penalty("bic", float(np.log(N))),
        lambda p, x: -2 * log_density(p, x).sum(),
        of_points,
    ),
    Operation("icl", without_penalty("icl", float(np.log(N))), completed, of_points),
    Operation("sample", lambda g: g.sample(N, key=jax.random.key(1)), None, scale=of_features()),
    Operation(
        "sample(pathwise)",
        lambda g: g.sample(N, key=jax.random.key(1), pathwise=True),
        None,
        scale=of_features(),
        differences=False,
    ),
    Operation(
        "marginal",
        lambda g: g.marginal(GIVEN),
        lambda p: marginal(p, GIVEN),
        keeps=ALL,
    ),
    Operation(
        "condition",
        lambda g, v: g.condition(GIVEN, v),
        lambda p, v: (lambda shares, means, covariances: Dense(shares[0], means[0], covariances))(
            *conditional(p, v[None])
        ),
        lambda p, structure, rng, n: (points(p, rng, 1)[0, GIVEN],),
        keeps=ALL,
        rounding=8,  # G(x − μ) is a sum
    ),
    Operation(
        "affine",
        lambda g, a, b: g.affine(a, b),
        lambda p, a, b: Dense(p.weights, p.means @ a.T + b, a @ p.covariances @ a.T),
        lambda p, structure, rng, n: observation(p, rng, n)[1::2],
        keeps=("full", "tied"),
        rounding=8,  # Aμ is a sum
    ),
    Operation(
        "convolve",
        lambda g, c: g.convolve(c),
        lambda p, c: Dense(p.weights, p.means, p.covariances + c * np.eye(p.means.shape[1])),
        lambda p, structure, rng, n: (0.3 * p.widths.min() ** 2,),
        keeps=ALL,
    ),
    Operation(
        "convolve with variances",
        lambda g, c: g.convolve(c),
        lambda p, c: Dense(p.weights, p.means, p.covariances + np.diag(c)),
        lambda p, structure, rng, n: (rng.uniform(0.1, 2, len(p.widths)) * p.widths**2,),
        keeps=("full", "tied", "diag"),
    ),
    Operation(
        "convolve with a matrix",
        lambda g, root: g.convolve(jnp.matmul(root, root.T)),
        lambda p, root: Dense(p.weights, p.means, p.covariances + root @ root.T),
        lambda p, structure, rng, n: (
            np.tril(rng.normal(size=p.covariances[0].shape)) * p.widths[:, None] / 2
            + np.diag(p.widths),
        ),
        keeps=("full", "tied"),
    ),
    Operation("collapse", lambda g: g.collapse(), collapsed, keeps=("full",)),
    Operation("reduce", lambda g: g.reduce(2), lambda p: runnalls(p, 2), keeps=("full",)),
    Operation("product", gmmx.product, product, of_another, keeps=("full",)),
]

_DIVERGENCES = [
    Operation("pairwise_log_overlap", gmmx.pairwise_log_overlap, log_overlaps, of_another),
    Operation("log_overlap", gmmx.log_overlap, log_overlap, of_another),
    Operation(
        "integrated_squared_error",
        gmmx.integrated_squared_error,
        squared_error,
        of_another,
        float32=None,
    ),
    Operation("kl_variational", gmmx.kl_variational, kl_variational, of_another),
    Operation("kl_upper_bound", gmmx.kl_upper_bound, kl_upper_bound, of_another),
    Operation(
        "kl_divergence",
        lambda p, q: tuple(gmmx.kl_divergence(p, q, 50, key=jax.random.key(2))),
        None,
        of_another,
        differences=False,
    ),
    Operation(
        "mixture_wasserstein",
        gmmx.mixture_wasserstein,
        mixture_wasserstein,
        of_another,
        scale=lambda value, p: p.widths.max(),
        float32=1e-5,
    ),
    Operation("entropy_bounds", lambda g: tuple(gmmx.entropy_bounds(g)), entropy_bounds),
]

OPERATIONS = {operation.name: operation for operation in [*_ROWS, *_MODELS, *_DIVERGENCES]}

# What structures compute each in its own way. All else is computed from their factors, dense or
# diagonal, and from log-joints.
BY_STRUCTURE = {
    "log_prob", "noise_score", "covariance", "sample", "marginal", "condition", "affine",
    "convolve", "convolve with variances", "convolve with a matrix", "regress",
}  # fmt: skip


def is_repeated(test: str, structure: str, operation: str) -> bool:
    """Whether a test of an operation shows nothing that another structure has not shown.

    Values are compared with the reference for every structure, see
    `test_operations.test_it_is_the_reference`.
    """
    if structure in ("full", "diag") or test == "test_it_is_the_reference":
        return False
    # Chunks and leading axes are a matter of rows alone.
    of_rows = test in ("test_chunked_is_whole", "test_any_leading_axes")
    return of_rows or operation not in BY_STRUCTURE
