"""Rows as they were measured: noise, gaps, projections, labels and weights."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from conftest import STRUCTURES

import gmmx
from gmmx._engine.form import Form
from gmmx._engine.kinds import ladder_of, rows_of

K, D, N = 3, 4, 60


@pytest.fixture(scope="module")
def truth():
    return STRUCTURES["full"].parameters(K, D, seed=3)


def rows(parameters, n, seed=0):
    """Complete rows and the component of each."""
    weights, means, covariances = parameters
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(weights), size=n, p=weights)
    roots = np.linalg.cholesky(covariances)
    noise = rng.normal(size=(n, means.shape[1]))
    return means[labels] + np.einsum("nde,ne->nd", roots[labels], noise), labels


def spd(rng, *shape):
    """Random covariances, of moderate condition."""
    root = rng.normal(size=(*shape, shape[-1]))
    return root @ np.swapaxes(root, -1, -2) / shape[-1] + 0.1 * np.eye(shape[-1])


def measured(kind, n=N, d=D, seed=0):
    """(arguments of `Data` beside x; projections (n m d) and covariances (n m m); what is seen)."""
    rng = np.random.default_rng(seed)
    identity = np.broadcast_to(np.eye(d), (n, d, d))
    nothing, seen = np.zeros((n, d, d)), np.ones((n, d), bool)
    if kind == "complete":
        return {}, identity, nothing, seen
    if kind == "gaps":
        seen = rng.uniform(size=(n, d)) > 0.3
        seen[0] = False
        return {"missing": ~seen}, identity, nothing, seen
    if kind == "one variance":
        return {"noise": 0.3}, identity, 0.3 * identity, seen
    if kind == "variances":
        v = rng.uniform(0, 2, size=(n, d)) * (rng.uniform(size=(n, d)) > 0.2)
        seen = rng.uniform(size=(n, d)) > 0.2
        noise = v[:, :, None] * np.eye(d)
        return {"noise": np.where(seen, v, np.inf)}, identity, noise, seen
    if kind == "a matrix":
        c = spd(rng, d)
        return {"noise": c}, identity, np.broadcast_to(c, (n, d, d)), seen
    if kind == "matrices":
        c = spd(rng, n, d)
        c[::3] = 0
        c[1::3, :, 0] = c[1::3, 0, :] = 0
        return {"noise": c}, identity, c, seen
    if kind in ("gaps and a matrix", "gaps and matrices"):
        c = spd(rng, d) if kind == "gaps and a matrix" else spd(rng, n, d)
        seen = rng.uniform(size=(n, d)) > 0.3
        return {"noise": c, "missing": ~seen}, identity, np.broadcast_to(c, (n, d, d)), seen
    if kind == "a projection":
        r = rng.normal(size=(2, d))
        return (
            {"projection": r, "noise": 0.2},
            np.broadcast_to(r, (n, 2, d)),
            np.broadcast_to(0.2 * np.eye(2), (n, 2, 2)),
            seen[:, :2],
        )
    assert kind == "projections"
    r, c = rng.normal(size=(n, 2, d)), spd(rng, n, 2)
    return {"projection": r, "noise": c}, r, c, seen[:, :2]


KINDS = (
    "complete", "gaps", "one variance", "variances", "a matrix", "matrices", "gaps and a matrix",
    "gaps and matrices", "a projection", "projections",
)  # fmt: skip


def data(kind, v, seed=0, dtype=np.float64, **others):
    """The complete rows v, measured."""
    arguments, projections, covariances, _ = measured(kind, len(v), v.shape[1], seed)
    rng = np.random.default_rng(seed + 1)
    noise = [rng.multivariate_normal(np.zeros(len(c)), c) for c in covariances]
    y = np.einsum("nmd,nd->nm", projections, v) + np.array(noise)
    arguments = {
        key: value if np.asarray(value).dtype == bool else np.asarray(value, dtype)
        for key, value in arguments.items()
    }
    return gmmx.Data(y.astype(dtype), **arguments, **others), y


def expected(parameters, kind, y, seed=0):
    """log-joints (n k), E[v] and E[vvᵀ] − E[v]E[v]ᵀ by component, on dense matrices in NumPy."""
    weights, means, covariances = parameters
    _, projections, noises, seen = measured(kind, len(y), means.shape[1], seed)
    joint, centres, spreads = [], [], []
    for row, r, c, s in zip(y, projections, noises, seen, strict=True):
        row, r, c = row[s], r[s], c[np.ix_(s, s)]
        each = [[], [], []]
        for w, m, cov in zip(weights, means, covariances, strict=True):
            total = r @ cov @ r.T + c
            gain = cov @ r.T @ np.linalg.inv(total) if len(row) else np.zeros((len(m), 0))
            apart = row - r @ m
            value = apart @ np.linalg.solve(total, apart) if len(row) else 0.0
            log_det = np.linalg.slogdet(2 * np.pi * total)[1] if len(row) else 0.0
            each[0].append(np.log(w) - (value + log_det) / 2)
            each[1].append(m + gain @ apart)
            each[2].append(cov - gain @ r @ cov)
        for found, one in zip((joint, centres, spreads), each, strict=True):
            found.append(one)
    return np.array(joint), np.array(centres), np.array(spreads)


def shares_of(joint):
    return np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))


@pytest.mark.parametrize("kind", KINDS)
def test_densities_are_the_reference(kind, structure):
    weights, means, covariances = structure.parameters(K, D, seed=2)
    parameters = weights, means, structure.dense(covariances, K, D)
    gmm = structure.of(weights, means, covariances)
    given, y = data(kind, rows(parameters, N)[0])
    joint, centres, _ = expected(parameters, kind, y)
    np.testing.assert_allclose(gmm.component_log_prob(given), joint, rtol=1e-10, atol=1e-10)
    log_prob = np.logaddexp.reduce(joint, 1)
    np.testing.assert_allclose(gmm.log_prob(given), log_prob, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gmm.predict_proba(given), shares_of(joint), atol=1e-10)
    np.testing.assert_array_equal(gmm.predict(given), joint.argmax(1))
    mean = np.einsum("nk,nkd->nd", shares_of(joint), centres)
    np.testing.assert_allclose(gmm.impute(given), mean, rtol=1e-9, atol=1e-9)
    bic = gmm.n_parameters * np.log(N) - 2 * log_prob.sum()
    np.testing.assert_allclose(gmm.bic(given), bic, rtol=1e-10)


def one_step(parameters, kind, y, floor, seed=0):
    """One step of extreme deconvolution (Bovy, Hogg & Roweis 2011) on dense matrices."""
    joint, centres, spreads = expected(parameters, kind, y, seed)
    shares = shares_of(joint)
    weight = shares.sum(0)
    means = np.einsum("nk,nkd->kd", shares, centres) / weight[:, None]
    apart = centres - means
    scatter = np.einsum("nk,nkd,nke->kde", shares, apart, apart)
    scatter += np.einsum("nk,nkde->kde", shares, spreads)
    return weight / len(y), means, scatter / weight[:, None, None] + np.diag(floor)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_extreme_deconvolution(kind, truth):
    given, y = data(kind, rows(truth, N)[0])
    parameters = STRUCTURES["full"].parameters(K, D, seed=9)
    gmm = STRUCTURES["full"].of(*parameters)
    floor = np.full(D, 1e-6)
    with pytest.warns(gmmx.FitWarning):
        result = gmmx.EMFitter(max_iter=5, tol=0, reg_covar=floor).fit(given, gmm)
    for value in np.asarray(result.history):
        joint = expected(parameters, kind, y)[0]
        np.testing.assert_allclose(value, np.logaddexp.reduce(joint, 1).mean(), rtol=1e-10)
        parameters = one_step(parameters, kind, y, floor)
    np.testing.assert_allclose(result.gmm.weights, parameters[0], rtol=1e-8)
    np.testing.assert_allclose(result.gmm.means, parameters[1], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(result.gmm.covariances, parameters[2], rtol=1e-8, atol=1e-8)


# Mean log-likelihoods that XDGMM of astroML 1.0.2 finds from the start below after these steps
# (`logL / 500` between calls of `_EMstep`): full noise matrices, and their diagonals alone.
ASTROML_STEPS = (0, 1, 2, 3, 5, 10, 20, 50, 200)
ASTROML = {
    "full": (
        -6.411007554459495, -5.4943352327495925, -5.390756764704325, -5.347755121873646,
        -5.300767274037781, -5.259102596626823, -5.239911771942538, -5.161736754098301,
        -5.154928354340519,
    ),
    "diagonal": (
        -6.425781313802457, -5.554135049839513, -5.454167274732301, -5.415485596240269,
        -5.372447517410637, -5.32548951735785, -5.28700249611998, -5.230559726620288,
        -5.222382943415376,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ASTROML)
def test_steps_are_those_of_astroml(kind):
    n, d, k = 500, 3, 3
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0, 0], [3, 0, 1], [0, 3, -2]])
    v = centres[rng.integers(k, size=n)] + rng.normal(size=(n, d)) * [1, 0.6, 0.8]
    root = 0.4 * rng.normal(size=(n, d, d))
    noise = root @ root.transpose(0, 2, 1) * (1 if kind == "full" else np.eye(d))
    x = v + np.einsum("nde,ne->nd", np.linalg.cholesky(noise), rng.normal(size=(n, d)))
    start = gmmx.GaussianMixture.from_parameters(
        [0.5, 0.3, 0.2], x[:3], np.tile(np.cov(x.T), (k, 1, 1))
    )
    noise = noise if kind == "full" else np.diagonal(noise, axis1=1, axis2=2)
    with pytest.warns(gmmx.FitWarning):
        result = gmmx.EMFitter(max_iter=200, tol=0, reg_covar=0.0).fit(
            gmmx.Data(x, noise=noise), start
        )
    found = np.append(result.history, result.log_likelihood)[list(ASTROML_STEPS)]
    np.testing.assert_allclose(found, ASTROML[kind], rtol=1e-10)


def test_rows_in_blocks_are_rows_by_themselves(truth):
    """Many rows of few patterns go in blocks, of which nothing is to be seen."""
    n = 4_000
    v, labels = rows(truth, n)
    rng = np.random.default_rng(4)
    patterns = np.where(rng.uniform(size=(6, D)) < 0.3, np.inf, rng.choice([0.0, 0.5], (6, D)))
    noise = patterns[rng.integers(6, size=n)]
    labels = np.where(rng.uniform(size=n) < 0.2, labels, -1)
    weights = rng.uniform(0.2, 2, size=n)
    given = gmmx.Data(v, noise=noise, labels=labels)
    fitter = gmmx.EMFitter(max_iter=3, tol=0)
    for name in ("full", "tied"):
        start = gmmx.initialize(given, K, name)
        blocks, _ = fitter.arrange(given, start, None)
        assert blocks.patterns is not None
        with pytest.warns(gmmx.FitWarning):
            result = fitter.fit(given, start, weights=weights)
        # Inside a transformation no row is moved.
        alone = jax.jit(lambda x, g, w: fitter.fit(x, g, weights=w))(given, start, weights)
        np.testing.assert_allclose(result.history, alone.history, rtol=1e-11)
        np.testing.assert_allclose(result.gmm.means, alone.gmm.means, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            result.gmm.covariances, alone.gmm.covariances, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("name", ["full", "tied"])
def test_both_ways_over_rows_agree(name, truth):
    """Entry by entry and number by number, in chunks that no number of rows divides."""
    n = 3_000
    v, labels = rows(truth, n)
    rng = np.random.default_rng(5)
    noise = np.where(rng.uniform(size=v.shape) < 0.2, np.inf, rng.uniform(0, 1, size=v.shape))
    given = gmmx.Data(v, noise=noise, labels=np.where(rng.uniform(size=n) < 0.2, labels, -1))
    weights = jnp.asarray(rng.uniform(0.2, 2, size=n))
    gmm = STRUCTURES[name].mixture(K, D)
    ladder = ladder_of(gmm, given, n, products=2)
    found = rows_of(given, gmm, weights, ladder)
    assert [way.__name__ for way in ladder.ways] == ["Eliminated", "Sequential"]

    @jax.jit
    def both(found):
        form = Form.of(gmm, found.frame)
        ways = (ladder.only(number) for number in (0, 1))
        return [found.expect(form, weights, way, jnp.zeros((), jnp.int32)) for way in ways]

    (fast, size), (sure, nothing) = both(found)
    assert 0 < size < 1 and nothing == 0
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(sure), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_collinear_features_go_the_careful_way(truth):
    """In float32, where Cholesky factors of a covariance would cancel."""
    v, _ = rows(truth, 400)
    rng = np.random.default_rng(0)
    v[:, 1] = v[:, 0] + 1e-2 * rng.normal(size=400)
    noise = 1e-8 * rng.uniform(size=v.shape)
    ends, wide = [], gmmx.initialize(v, 2)
    for dtype in (np.float32, np.float64):
        given = gmmx.Data(v.astype(dtype), noise=noise.astype(dtype))
        start = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), wide)
        ends.append(jax.jit(gmmx.EMFitter(max_iter=5).fit)(given, start).log_likelihood)
    np.testing.assert_allclose(*ends, atol=1e-3)


@hypothesis.given(
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(list(STRUCTURES)),
    labelled=st.sampled_from([None, "some", "probabilities"]),
    weighted=st.booleans(),
    accelerate=st.booleans(),
    seed=st.integers(0, 3),
)
@hypothesis.settings(max_examples=24)
def test_the_likelihood_never_falls(kind, name, labelled, weighted, accelerate, seed):
    """In any combination of what may be known of rows."""
    structure = STRUCTURES[name]
    weights, means, covariances = structure.parameters(K, D, seed)
    v, labels = rows((weights, means, structure.dense(covariances, K, D)), N, seed)
    rng = np.random.default_rng(seed)
    if labelled == "some":
        labels = np.where(rng.uniform(size=N) < 0.3, labels, -1)
    elif labelled == "probabilities":
        labels = rng.dirichlet(np.ones(K), size=N) + 0.2 * np.eye(K)[labels]
    others = {"labels": None if labelled is None else labels}
    others["weights"] = rng.uniform(0.5, 2, size=N) if weighted else None
    given, _ = data(kind, v, seed, **others)
    fitter = gmmx.EMFitter(tol=1e-9, max_iter=40, accelerate=accelerate)
    result = jax.jit(fitter.fit)(given, structure.of(weights, means + 1, covariances))
    history = np.asarray(result.history)[: int(result.n_iter)]
    assert np.isfinite(history).all()
    # Less what the variance floor may cost.
    assert (np.diff(history) > -1e-7).all()


# What is the same


@pytest.fixture(scope="module")
def fitted(truth):
    """A start, and how to fit from it."""
    start = STRUCTURES["full"].of(*truth)
    fitter = gmmx.EMFitter(tol=1e-12, max_iter=20_000)

    def fit(x, **others):
        return fitter.fit(x, start, **others).gmm

    return fit


def same(a, b, rtol=1e-7):
    for name in ("weights", "means", "covariances"):
        one, other = getattr(a, name), getattr(b, name)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


def test_without_noise_it_is_the_plain_fit(truth, fitted):
    v, _ = rows(truth, N)
    same(fitted(gmmx.Data(v)), fitted(v))
    same(fitted(gmmx.Data(v, noise=0.0)), fitted(v))


def test_infinite_noise_and_a_projection_are_gaps(truth, fitted):
    v, _ = rows(truth, N)
    gaps = np.zeros((N, D), bool)
    gaps[:, 2] = np.arange(N) % 2 == 0
    missing = fitted(gmmx.Data(np.where(gaps, np.nan, v), missing=True))
    same(fitted(gmmx.Data(v, missing=gaps)), missing)
    same(fitted(gmmx.Data(v, noise=np.where(gaps, np.inf, 0))), missing)
    masked = np.ma.masked_array(v, gaps)
    same(fitted(gmmx.Data(masked, missing=True)), missing)
    # The projection leaves the feature out, or holds it against infinite noise.
    projection = np.broadcast_to(np.eye(D), (N, D, D)).copy()
    projection[gaps] = 0
    same(fitted(gmmx.Data(v, noise=np.where(gaps, np.inf, 0), projection=projection)), missing)


def test_noise_of_what_is_missing_is_not_looked_at(truth):
    v, _ = rows(truth, N)
    gaps = np.random.default_rng(0).uniform(size=v.shape) < 0.3
    x, gmm = np.where(gaps, np.nan, v), STRUCTURES["full"].of(*truth)
    variances, matrices = np.full(v.shape, 0.3), np.tile(0.2 + np.eye(D), (N, 1, 1))
    either = gaps[:, :, None] | gaps[:, None, :]
    for noise, unknown in ((variances, gaps), (matrices, either)):
        wanted = gmm.log_prob(gmmx.Data(x, missing=True, noise=noise))
        nan = gmmx.Data(x, missing=True, noise=np.where(unknown, np.nan, noise))
        np.testing.assert_array_equal(gmm.log_prob(nan), wanted)
    traced = jax.jit(lambda x, c: gmm.log_prob(gmmx.Data(x, missing=True, noise=c)))
    np.testing.assert_allclose(traced(x, jnp.asarray(matrices)), wanted, rtol=1e-10)


def test_a_weight_of_two_is_the_row_twice(truth, fitted):
    given, _ = data("gaps", rows(truth, N)[0], weights=1.0 + (np.arange(N) < 20))
    twice = np.concatenate([np.arange(N), np.arange(20)])
    doubled = jax.tree.map(lambda leaf: leaf[twice], without_weights(given))
    same(fitted(given), fitted(doubled))


def without_weights(given):
    return gmmx.Data(given.x, noise=np.square(given.deviations))


def test_labels_of_all_rows_are_discriminant_analysis(truth, structure):
    v, labels = rows(truth, 400)
    start = gmmx.initialize(gmmx.Data(v, labels=labels), K, structure.name)
    result = gmmx.EMFitter(reg_covar=0.0).fit(gmmx.Data(v, labels=labels), start)
    hard = gmmx.GaussianMixture.from_responsibilities(
        v, np.eye(K)[labels], structure.name, reg_covar=0.0
    )
    same(result.gmm, hard)
    np.testing.assert_allclose(result.gmm.weights, np.bincount(labels) / 400)


# Optima


def test_one_component_reaches_the_optimum_of_the_observed_likelihood():
    structure = STRUCTURES["full"]
    weights, means, covariances = structure.parameters(1, D, seed=5)
    v, _ = rows((weights, means, covariances), 200)
    seen = np.random.default_rng(0).uniform(size=v.shape) > 0.3
    given = gmmx.Data(v, missing=~seen)
    fitter = gmmx.EMFitter(tol=1e-13, max_iter=2000, reg_covar=0.0)
    result = fitter.fit(given, structure.of(weights, means, covariances))
    best = minimised(given, structure.of(weights, means, covariances))
    np.testing.assert_allclose(result.log_likelihood, best, atol=1e-8)


def test_it_ends_at_least_as_high_as_gradients(truth):
    v, _ = rows(truth, 300)
    given = gmmx.Data(v, missing=np.random.default_rng(1).uniform(size=v.shape) < 0.3)
    start = gmmx.initialize(given, K)
    result = gmmx.EMFitter(tol=1e-11, max_iter=5000, accelerate=True).fit(given, start)
    assert float(result.log_likelihood) > minimised(given, start) - 1e-6


def minimised(given, start, steps=2000):
    """The likelihood that L-BFGS reaches from the start, on what `log_prob` says."""
    leaves, treedef = jax.tree.flatten(start)
    shapes = [leaf.shape for leaf in leaves]
    ends = np.cumsum([leaf.size for leaf in leaves])

    @jax.jit
    @jax.value_and_grad
    def loss(flat):
        parts = jnp.split(flat, ends[:-1])
        gmm = treedef.unflatten(p.reshape(s) for p, s in zip(parts, shapes, strict=True))
        return -jnp.mean(gmm.log_prob(given))

    flat = np.concatenate([np.ravel(leaf) for leaf in leaves])
    found = scipy.optimize.minimize(
        lambda v: tuple(map(np.asarray, loss(v))), flat, jac=True, method="L-BFGS-B",
        options={"maxiter": steps, "ftol": 1e-15, "gtol": 1e-9, "maxfun": 4 * steps},
    )  # fmt: skip
    return -found.fun


def test_both_trainers_have_the_same_optimum(truth, optax_promotion):
    given, _ = data("gaps", rows(truth, 150)[0])
    start = STRUCTURES["full"].of(*truth)
    em = gmmx.EMFitter(tol=1e-9, max_iter=20_000)
    descent = gmmx.GradientFitter(optax.adam, learning_rate=0.02, tol=1e-9, max_iter=5000)
    results = [fitter.fit(given, start) for fitter in (em, descent)]
    np.testing.assert_allclose(*(r.log_likelihood for r in results), atol=1e-4)


# Precision


@pytest.mark.parametrize("kind", ["variances", "gaps", "matrices", "projections"])
def test_float32(kind, truth):
    """Noise from a thousandth to a thousand times a component's width, far from the origin."""
    v, _ = rows(truth, N)
    weights, means, covariances = truth
    rng = np.random.default_rng(2)
    offset = 1e4
    arguments, projections, noises, _ = measured(kind)
    scale = 10 ** rng.uniform(-3, 3, size=N)
    if "noise" in arguments:
        shape = (N,) + (1,) * (np.ndim(arguments["noise"]) - 1)
        arguments["noise"] = (arguments["noise"] * scale.reshape(shape) ** 2).astype(np.float32)
    if kind == "projections":
        offset = 10.0
    y = np.einsum("nmd,nd->nm", projections, v + offset)
    noise = np.array([rng.multivariate_normal(np.zeros(len(c)), c) for c in noises])
    y = (y + noise * scale[:, None]).astype(np.float32)
    if "projection" in arguments:
        arguments["projection"] = arguments["projection"].astype(np.float32)
    single = gmmx.Data(y, **arguments)
    assert single.dtype == np.float32
    double = jax.tree.map(lambda leaf: leaf.astype(np.float64), single)
    gmm = STRUCTURES["full"].of(weights, means + offset, covariances, np.float32)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), gmm)
    got, wanted = gmm.log_prob(single), wide.log_prob(double)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-3)
    fitter = gmmx.EMFitter(tol=1e-6, max_iter=5)
    ends = [jax.jit(fitter.fit)(*pair) for pair in ((single, gmm), (double, wide))]
    np.testing.assert_allclose(*(end.log_likelihood for end in ends), atol=1e-3)


def test_units_do_not_matter(truth):
    v, _ = rows(truth, N)
    units = np.array([1e-9, 1.0, 1e6, 1e-3])
    noise = measured("variances")[0]["noise"]
    fit = jax.jit(gmmx.EMFitter(max_iter=30, tol=0).fit, static_argnums=1)
    data = (gmmx.Data(v * u, noise=noise * u**2) for u in (np.ones(D), units))
    plain, scaled = (fit(given, K) for given in data)
    shift = np.log(units) @ np.isfinite(noise).sum(0) / N
    np.testing.assert_allclose(scaled.log_likelihood, plain.log_likelihood - shift, rtol=1e-8)
    np.testing.assert_allclose(scaled.gmm.means / units, plain.gmm.means, rtol=1e-5, atol=1e-6)


# Derivatives


@pytest.mark.parametrize("kind", ["variances", "projections"])
def test_gradients_are_differences(kind, truth):
    given, _ = data(kind, rows(truth, 6)[0])
    finite = jax.tree.map(jnp.isfinite, given)
    gmm = STRUCTURES["full"].of(*truth)

    @jax.jit
    def value(given, gmm):
        return jnp.sum(gmm.log_prob(given) * jnp.arange(1.0, 7.0))

    gradients = jax.grad(value, argnums=(0, 1))(given, gmm)
    rng = np.random.default_rng(0)
    along = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), (given, gmm))
    # Numbers that were not observed stay so, and noise of zero stays at zero.
    moving = jax.tree.map(lambda leaf, ok: (ok & (leaf != 0)).astype(leaf.dtype), given, finite)
    along = jax.tree.map(jnp.multiply, along[0], moving), along[1]

    def at(step):
        moved = jax.tree.map(
            lambda leaf, way: jnp.where(jnp.isfinite(leaf), leaf + step * way, leaf),
            (given, gmm), along,
        )  # fmt: skip
        return float(value(*moved))

    slope = (8 * (at(1e-4) - at(-1e-4)) - (at(2e-4) - at(-2e-4))) / 12e-4
    parts = jax.tree.map(lambda g, way: jnp.sum(jnp.where(way != 0, g * way, 0)), gradients, along)
    np.testing.assert_allclose(sum(jax.tree.leaves(parts)), slope, rtol=1e-7)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_the_gradient_through_a_fit(truth):
    """In the rows and in their noise."""
    weights, means, covariances = truth
    apart = weights, 4 * means, covariances
    v, _ = rows(apart, N)
    noise = np.random.default_rng(0).uniform(0.01, 0.1, size=v.shape)
    start = STRUCTURES["full"].of(*apart)
    fitter = gmmx.EMFitter(tol=1e-14, max_iter=5000)

    @jax.jit
    def mean(v, noise):
        result = fitter.fit(gmmx.Data(v, noise=noise), start)
        return result.gmm.means[0, 0] + result.log_likelihood

    gradients = jax.grad(mean, argnums=(0, 1))(v, noise)
    rng = np.random.default_rng(1)
    along = [rng.normal(size=v.shape) for _ in range(2)]
    slope = sum(np.vdot(g, a) for g, a in zip(gradients, along, strict=True))
    ends = [mean(v + s * along[0], noise + s * along[1]) for s in (1e-5, -1e-5)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-4)


def test_the_gradient_through_a_fit_with_gaps(truth):
    """In the noise; where nothing was observed there is none."""
    weights, means, covariances = truth
    apart = weights, 4 * means, covariances
    v, _ = rows(apart, 4 * N)
    gaps = np.random.default_rng(0).uniform(size=v.shape) < 0.05
    start = STRUCTURES["full"].of(*apart)
    fitter = gmmx.EMFitter(tol=1e-14, max_iter=5000)

    @jax.jit
    def variance(size):
        noise = jnp.where(gaps, jnp.inf, 0.05 * size)
        return fitter.fit(gmmx.Data(v, noise=noise), start).gmm.covariances[0, 0, 0]

    slope = (variance(1 + 1e-4) - variance(1 - 1e-4)) / 2e-4
    np.testing.assert_allclose(jax.grad(variance)(1.0), slope, rtol=1e-4)
    forwards = jax.jvp(lambda g: g.log_prob(gmmx.Data(v, missing=gaps)), (start,), (start,))[1]
    assert np.isfinite(forwards).all()


# Everything takes it


def test_it_goes_where_an_array_goes(truth, tmp_path):
    given, _ = data("variances", rows(truth, 90)[0])
    fitter = gmmx.EMFitter(tol=1e-6, max_iter=300)
    start = gmmx.initialize(given, K, "diag")
    plain = fitter.fit(given, start)
    kept = fitter.fit(given, start, checkpoint=gmmx.Checkpoint(tmp_path / "fit.ckpt"))
    same(plain.gmm, kept.gmm)
    again = fitter.fit(given, start, checkpoint=gmmx.Checkpoint(tmp_path / "fit.ckpt"))
    same(plain.gmm, again.gmm)
    several = gmmx.Restarts(fitter, n_init=3).fit(given, start)
    assert several.log_likelihood >= plain.log_likelihood - 1e-9
    chosen = gmmx.select(given, [1, 2, 3], ["full", "diag"], fitter=gmmx.EMFitter(tol=1e-3))
    gmm = chosen.best.result.gmm
    np.testing.assert_allclose(chosen.best.bic, gmm.bic(given), rtol=1e-9)
    np.testing.assert_allclose(gmm.score(given), chosen.best.log_likelihood, rtol=1e-9)


def test_a_vmap_of_fits(truth):
    fits = [data("variances", rows(truth, N, seed)[0], seed)[0] for seed in range(3)]
    start = STRUCTURES["full"].of(*truth)
    fitter = gmmx.EMFitter(tol=1e-6, max_iter=20)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fits)
    together = jax.vmap(fitter.fit, in_axes=(0, None))(stacked, start)
    for i, given in enumerate(fits):
        alone = jax.jit(fitter.fit)(given, start)
        np.testing.assert_allclose(together.log_likelihood[i], alone.log_likelihood, rtol=1e-9)


def test_another_number_of_rows_compiles_nothing(truth, compilations):
    fitter, start = gmmx.EMFitter(tol=1e-3), STRUCTURES["diag"].mixture(K, D)

    def both(n):
        given, _ = data("variances", rows(truth, n)[0])
        return fitter.fit(given, start).gmm.log_prob(given)

    both(63)
    with compilations() as counted:
        data("variances", rows(truth, 62)[0])
    made = len(counted)
    with compilations() as counted:
        both(62)
    # Those that make the data, and no others.
    assert len(counted) <= made


def test_labels_name_the_components(truth):
    v, labels = rows(truth, 200)
    known = np.where(np.arange(200) < 60, labels, -1)
    result = gmmx.EMFitter().fit(gmmx.Data(v, labels=known), K)
    predicted = np.asarray(result.gmm.predict(v))
    assert (predicted == labels).mean() > 0.8
    of_known = np.asarray(result.gmm.predict(gmmx.Data(v, labels=known)))
    assert (of_known[:60] == labels[:60]).all()
    hidden = np.ma.masked_array(labels, np.arange(200) >= 60)
    np.testing.assert_array_equal(gmmx.Data(v, labels=hidden).labels, known)
    # Labels that say nothing do not decide the start.
    nothing = gmmx.initialize(gmmx.Data(v, labels=np.full(200, -1)), K, method="em")
    plain = gmmx.initialize(v, K, method="em")
    np.testing.assert_allclose(nothing.means, plain.means, rtol=1e-9)
    # A set of components, by zeros.
    possible = np.where(np.arange(K) == labels[:, None], 0.0, 1.0)
    others = np.asarray(result.gmm.predict(gmmx.Data(v, labels=possible)))
    assert (others != labels).all()


def test_draws_have_the_moments_of_the_posterior(truth):
    gmm = STRUCTURES["full"].of(*truth)
    v, _ = rows(truth, 3)
    for kind in ("gaps", "variances", "projections"):
        given, y = data(kind, v)
        draws = np.asarray(gmm.impute(given, n_samples=20_000, key=jax.random.key(1)))
        assert draws.shape == (3, 20_000, D)
        joint, centres, spreads = expected(truth, kind, y)
        shares = shares_of(joint)
        mean = np.einsum("nk,nkd->nd", shares, centres)
        apart = centres - mean[:, None]
        covariance = np.einsum("nk,nkd,nke->nde", shares, apart, apart)
        covariance += np.einsum("nk,nkde->nde", shares, spreads)
        for i in range(3):
            # Rounding leaves a variance of zero a little below it.
            variances = np.maximum(np.diagonal(covariance[i]), 0)
            error = np.sqrt(variances / 20_000)
            assert (np.abs(draws[i].mean(0) - mean[i]) <= 5 * error + 1e-9).all()
            size = np.sqrt(np.outer(variances, variances))
            assert (np.abs(np.cov(draws[i].T) - covariance[i]) <= 0.1 * size + 1e-12).all()


def test_what_was_measured_stays(truth):
    gmm = STRUCTURES["full"].of(*truth)
    v, _ = rows(truth, N)
    gaps = np.where(np.random.default_rng(0).uniform(size=v.shape) < 0.3, np.nan, v)
    for values in (gmm.impute(gaps), gmm.impute(gaps, n_samples=2)[:, 0]):
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(np.asarray(values)[~np.isnan(gaps)], v[~np.isnan(gaps)])


# Bad input

X = np.zeros((5, 2))
BAD = {
    "negative variance": (lambda: gmmx.Data(X, noise=np.array([1.0, -1.0])), "negative variance"),
    "negative in a row": (
        lambda: gmmx.Data(X, noise=np.where(np.arange(5)[:, None] == 3, -1.0, 1.0) * [1, 1]),
        "in row 3",
    ),
    "no covariance": (
        lambda: gmmx.Data(X, noise=np.array([[1.0, 2.0], [2.0, 1.0]])), "semi-definite"
    ),
    "not symmetric": (
        lambda: gmmx.Data(X, noise=np.array([[1.0, 0.5], [0.0, 1.0]])), "not symmetric"
    ),
    "noise of another shape": (lambda: gmmx.Data(X, noise=np.ones(3)), r"expected variances"),
    "noise is NaN": (lambda: gmmx.Data(X, noise=np.nan), "NaN"),
    "NaN": (lambda: gmmx.Data(np.full((5, 2), np.nan)), "missing=True"),
    "NaN in fit": (lambda: gmmx.EMFitter().fit(np.full((5, 2), np.nan), 2), "gmmx.Data"),
    "masked": (lambda: gmmx.EMFitter().fit(np.ma.masked_equal(X, 0), 2), "gmmx.Data"),
    "infinite": (lambda: gmmx.Data(np.full((5, 2), np.inf), missing=True), "infinite"),
    "a mask of another shape": (lambda: gmmx.Data(X, missing=np.ones(5, bool)), "boolean mask"),
    "NaN in noise of what was measured": (
        lambda: gmmx.Data([[np.nan, 1.0]], missing=True, noise=[[np.nan, np.nan]]), "in row 0"
    ),
    "a label too high": (lambda: gmmx.initialize(gmmx.Data(X, labels=[0, 1, 2, 0, 0]), 2), "2"),
    "a label too low": (lambda: gmmx.Data(X, labels=[0, 1, -2, 0, 0]), "−1"),
    "labels of another length": (lambda: gmmx.Data(X, labels=[0, 1]), "integers"),
    "an impossible row": (lambda: gmmx.Data(X, labels=np.zeros((5, 2))), "row 0"),
    "a projection of another shape": (lambda: gmmx.Data(X, projection=np.ones((3, 4))), "expected"),
    "too few features": (
        lambda: gmmx.GaussianMixture.create(2, 3).log_prob(gmmx.Data(X)), "3"
    ),
    "weights twice": (
        lambda: gmmx.EMFitter().fit(gmmx.Data(X, weights=np.ones(5)), 2, weights=np.ones(5)),
        "twice",
    ),
    "a feature that nobody measured": (
        lambda: gmmx.EMFitter().fit(gmmx.Data(X, missing=np.tile([False, True], (5, 1))), 2),
        "feature 1 was observed in no row",
    ),
    "a feature that nobody measured, among correlated ones": (
        lambda: gmmx.EMFitter().fit(
            gmmx.Data(X * [1, np.nan], missing=True, noise=1 + np.eye(2)), 2
        ),
        "feature 1 was observed in no row",
    ),
    "plots": (lambda: gmmx.plot.density(gmmx.GaussianMixture.create(2, 2), gmmx.Data(X)), "impute"),
    "a huge label": (lambda: gmmx.Data(X, labels=np.array([0, 1, 2**32, 0, 0])), "−1"),
    "one row": (lambda: gmmx.Data(np.zeros(3)), "expected"),
    "select with labels": (
        lambda: gmmx.select(gmmx.Data(X, labels=[0, 1, -1, 0, 0]), 2), "labels"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_the_fix(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_row_of_which_nothing_was_observed_says_nothing(truth, fitted):
    v, _ = rows(truth, N)
    more = np.concatenate([v, np.full((1, D), np.nan)])
    given = gmmx.Data(more, missing=True)
    np.testing.assert_allclose(fitted(given).log_prob(given)[-1], 0, atol=1e-12)
    same(fitted(given), fitted(v), rtol=1e-5)
