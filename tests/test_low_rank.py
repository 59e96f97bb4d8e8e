"""Mixtures of factor analysers: covariances FFᵀ + Ψ, which are never made dense."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jaxprs import largest, traced

import gmmx
from gmmx._covariance import LOW_RANK, structure_named
from gmmx._covariance.factors import LowRankFactors

# A noise variance that tends to zero makes EM slow: some of these fits end by their limit.
pytestmark = pytest.mark.filterwarnings("ignore:.*max_iter was reached:gmmx.FitWarning")

K, D, R, N = 3, 6, 2, 300
OWN = ("low_rank", "low_rank_spherical")
TIED = ("tied_loadings", "tied_loadings_spherical")
NAMES = (*OWN, *TIED)


def parameters(name, seed=0, k=K, d=D, r=R):
    """Weights, means, loadings and variances of noise."""
    rng = np.random.default_rng(seed)
    variances = rng.uniform(0.2, 1, size=k if name.endswith("spherical") else (k, d))
    loadings = rng.normal(size=(k, d, r)) * rng.uniform(0.3, 1.5, size=(k, 1, r))
    loadings = np.broadcast_to(loadings[0], (k, d, r)) if name in TIED else loadings
    return rng.dirichlet(np.full(k, 5.0)), 2 * rng.normal(size=(k, d)), loadings, variances


def dense(loadings, variances):
    """FFᵀ + Ψ"""
    k, d, _ = loadings.shape
    noise = np.broadcast_to(variances.reshape(k, -1), (k, d))
    return loadings @ loadings.transpose(0, 2, 1) + noise[:, :, None] * np.eye(d)


def mixture(name, dtype=np.float64, seed=0):
    given = [np.asarray(v, dtype) for v in parameters(name, seed)]
    if name in TIED:
        given[2] = given[2][0]
    return gmmx.GaussianMixture.from_loadings(*given)


def full(gmm):
    """The same mixture with full covariances."""
    return gmmx.GaussianMixture.from_parameters(gmm.weights, gmm.means, gmm.covariances)


def drawn(name="low_rank", n=N, seed=1):
    """Rows of the mixture, by NumPy."""
    weights, means, loadings, variances = parameters(name)
    rng = np.random.default_rng(seed)
    labels = rng.choice(K, size=n, p=weights)
    noise = np.sqrt(np.broadcast_to(variances.reshape(K, -1), (K, D)))[labels]
    latent = np.einsum("ndr,nr->nd", loadings[labels], rng.normal(size=(n, R)))
    return means[labels] + latent + noise * rng.normal(size=(n, D))


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module", params=OWN)
def own(request):
    return request.param


@pytest.fixture(scope="module")
def x():
    return drawn()


def test_the_names_are_those_of_structures_with_a_rank():
    assert {structure_named(name, 2).covariance_type for name in LOW_RANK} == {*NAMES}


def test_density_is_scipys(name, dtype, x):
    weights, means, loadings, variances = parameters(name)
    gmm, x = mixture(name, dtype), x.astype(dtype)
    covariances = dense(loadings, variances)
    joint = np.stack([
        np.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(x.astype(float))
        for w, m, c in zip(weights, means, covariances, strict=True)
    ], axis=1)  # fmt: skip
    tolerance = {"rtol": 1e-11} if dtype == np.float64 else {"rtol": 2e-5}
    np.testing.assert_allclose(gmm.component_log_prob(x), joint, **tolerance)
    np.testing.assert_allclose(gmm.log_prob(x), scipy.special.logsumexp(joint, 1), **tolerance)
    np.testing.assert_allclose(gmm.covariances, covariances, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        gmm.precisions, np.linalg.inv(covariances), rtol=1e-4, atol=1e-4 * dtype.itemsize
    )
    upper = np.asarray(gmm.precisions_cholesky)
    np.testing.assert_allclose(upper @ upper.transpose(0, 2, 1), gmm.precisions, atol=1e-4)


def test_loadings_come_back(name):
    _, _, loadings, variances = parameters(name)
    structure = mixture(name).structure
    assert structure.n_latent == R and structure.covariance_type == name
    np.testing.assert_allclose(structure.loadings, loadings, rtol=1e-12)
    noise = np.broadcast_to(variances.reshape(K, -1), (K, D))
    np.testing.assert_allclose(structure.noise_variances, noise, rtol=1e-12)


def expected(n, covariances, scatter):
    """Σ_k of the expected log-likelihood, less a constant."""
    traces = np.trace(np.linalg.solve(covariances, scatter), axis1=1, axis2=2)
    return -(n @ np.linalg.slogdet(covariances)[1] + traces.sum()) / 2


def test_the_m_step_is_that_of_dense_arrays(name):
    """Of factor analysis with a free covariance of the factors, in the units of the data."""
    rng = np.random.default_rng(3)
    _, _, loadings, variances = parameters(name)
    rows = rng.normal(size=(K, 40, D)) @ rng.normal(size=(K, D, D))
    n, scatter = np.array([40.0, 20.0, 10.0]), np.einsum("knd,kne->kde", rows, rows)
    scatter *= (n / 40)[:, None, None]
    noise = np.broadcast_to(variances.reshape(K, -1), (K, D))

    new = []
    moments = []
    for f, psi, s in zip(loadings, noise, scatter / n[:, None, None], strict=True):
        gain = f.T @ np.linalg.inv(f @ f.T + np.diag(psi))
        moments.append((s @ gain.T, np.eye(R) - gain @ f + gain @ s @ gain.T, np.diag(s)))
    share = n / n.sum()
    common = np.stack([
        np.linalg.solve(
            sum(w / psi[j] * m[1] for w, psi, m in zip(share, noise, moments, strict=True)),
            sum(w / psi[j] * m[0][j] for w, psi, m in zip(share, noise, moments, strict=True)),
        )
        for j in range(D)
    ])  # fmt: skip
    pooled = sum(w * m[1] for w, m in zip(share, moments, strict=True))
    for cross, second, square in moments:
        f = common if name in TIED else cross @ np.linalg.inv(second)
        rest = square - 2 * (f * cross).sum(1) + ((f @ second) * f).sum(1)
        rest = np.full(D, rest.mean()) if name.endswith("spherical") else rest
        new.append(f @ (pooled if name in TIED else second) @ f.T + np.diag(rest))

    white = 1 / np.sqrt(noise)
    factors = LowRankFactors(jnp.asarray(white), jnp.asarray(loadings * white[:, :, None]))
    gains = np.asarray(factors.latent().gains)
    y = white[:, :, None] * scatter * white[:, None]
    seen = LowRankFactors(
        jnp.asarray(np.diagonal(y, axis1=1, axis2=2)), jnp.asarray(y @ gains.transpose(0, 2, 1))
    )
    fitted = jax.jit(structure_named(name, R).fitted)(jnp.asarray(n), factors, seen)
    found = np.asarray(fitted.covariances(K, D))
    np.testing.assert_allclose(found, new, rtol=1e-9, atol=1e-12)
    before = expected(n, dense(loadings, variances), scatter)
    assert expected(n, found, scatter) > before


@pytest.fixture(scope="module")
def start(x):
    return functools.cache(lambda name: gmmx.initialize(x, K, name, rank=R))


def test_em_never_lowers_the_likelihood(name, x, start):
    fit = gmmx.EMFitter(tol=0, max_iter=300).fit(x, start(name))
    assert len(fit.history) == 300 and (np.diff(fit.history) > -1e-11).all()
    # Better than the mixture that the rows are of, which is of the first structure.
    if name == "low_rank":
        assert fit.log_likelihood > mixture(name).score(x)


def test_squared_extrapolation_saves_steps(x, start):
    fit, fast = (
        gmmx.EMFitter(tol=1e-4, accelerate=fast).fit(x, start("low_rank")) for fast in (False, True)
    )
    assert fast.log_likelihood > fit.log_likelihood - 1e-3
    assert fast.n_iter <= fit.n_iter


def test_as_many_factors_as_features_but_one_are_full(own):
    """They can be any covariances of the least eigenvalue Ψ."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(150, 3)) @ rng.normal(size=(3, 3)) for _ in range(2)]
    x = np.concatenate([rows[0], rows[1] + 5.0])
    fitter = gmmx.EMFitter(tol=1e-11, max_iter=3000, accelerate=True)
    wanted = fitter.fit(x, gmmx.initialize(x, 2))
    fit = fitter.fit(x, gmmx.initialize(x, 2, own, rank=2))
    np.testing.assert_allclose(fit.log_likelihood, wanted.log_likelihood, atol=1e-6)
    np.testing.assert_allclose(fit.gmm.log_prob(x), wanted.gmm.log_prob(x), atol=2e-3)


def test_float32_far_from_the_origin(own, x, start):
    offset = np.array([1e3, -1e3, 0, 30, 1e4, -1e4])
    far = (x + offset).astype(np.float32)
    near = far.astype(np.float64) - offset
    fitter = gmmx.EMFitter(tol=0, max_iter=300)
    exact = fitter.fit(near, start(own))
    begun = dataclasses.replace(start(own), means=start(own).means + offset)
    begun = jax.tree.map(lambda leaf: leaf.astype(np.float32), begun)
    single = fitter.fit(far, begun)
    np.testing.assert_allclose(single.log_likelihood, exact.log_likelihood, atol=1e-3)
    np.testing.assert_allclose(single.gmm.score(far), exact.gmm.score(near), atol=1e-3)


def test_float32_where_factors_are_far_wider_than_noise():
    """Woodbury's two terms would cancel to three digits."""
    weights, means, loadings, variances = parameters("low_rank")
    given = weights, means, 30 * loadings, 1e-2 * variances
    gmm = gmmx.GaussianMixture.from_loadings(*given)
    x = np.asarray(gmm.sample(200, key=jax.random.key(1))).astype(np.float32)
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), gmm)
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), single)
    difference = np.asarray(single.log_prob(x)) - np.asarray(exact.log_prob(x.astype(np.float64)))
    assert np.abs(difference).mean() < 1e-3


@pytest.mark.parametrize("name", ["low_rank", "tied_loadings_spherical"])
def test_derivatives_are_those_of_finite_differences(name, x):
    """And as many of them are independent as parameters are counted."""
    gmm, some = mixture(name), jnp.asarray(x[:60])
    flat, unravel = jax.flatten_util.ravel_pytree(gmm)
    along = jnp.asarray(np.random.default_rng(5).normal(size=flat.shape))

    @jax.jit
    def both(flat):
        def of(flat):
            return unravel(flat).component_log_prob(some).ravel()

        return of(flat), jax.jacrev(of)(flat), jax.jvp(of, (flat,), (along,))[1]

    _, jacobian, forward = both(flat)
    ahead, behind = (both(flat + h * along)[0] for h in (1e-5, -1e-5))
    np.testing.assert_allclose(jacobian @ along, forward, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose((ahead - behind) / 2e-5, forward, rtol=1e-6, atol=1e-6)
    values = np.linalg.svd(jacobian, compute_uv=False)
    assert (values > 1e-9 * values[0]).sum() == gmm.n_parameters


def test_number_of_parameters():
    one = D * R - R * (R - 1) // 2
    numbers = {name: structure_named(name, R).n_parameters(K, D) for name in NAMES}
    assert numbers == {
        "low_rank": K * (one + D), "low_rank_spherical": K * (one + 1),
        "tied_loadings": one + K * D, "tied_loadings_spherical": one + K,
    }  # fmt: skip
    # With d − 1 factors and one variance of noise there are as many as in full covariances.
    assert structure_named("ppca", D - 1).n_parameters(1, D) == D * (D + 1) // 2


def same(found, wanted):
    """Whether two mixtures have the same parameters."""
    np.testing.assert_allclose(found.weights, wanted.weights, rtol=1e-9)
    np.testing.assert_allclose(found.means, wanted.means, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.covariances, wanted.covariances, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["low_rank_spherical", "tied_loadings"])
def test_algebra_is_that_of_full_covariances(name):
    gmm = mixture(name)
    other = full(gmm)
    value = np.array([0.3, -1.0])
    for operation, structure in (
        (lambda gmm: gmm.marginal([4, 0, 2]), name),
        # As few features as factors.
        (lambda gmm: gmm.marginal([4, 0]), "full"),
        (lambda gmm: gmm.condition([1, 4], value), "low_rank" if name in TIED else name),
        (lambda gmm: gmm.convolve(0.3), name),
    ):
        found, wanted = operation(gmm), operation(other)
        assert found.covariance_type == structure
        wanted = wanted if structure == "full" else full(wanted)
        same(found if structure == "full" else full(found), wanted)
    variances = np.linspace(0, 1, D)
    noisy = gmm.convolve(variances)
    assert noisy.covariance_type == "low_rank"
    same(full(noisy), full(other.convolve(variances)))
    matrix = np.random.default_rng(0).normal(size=(2, D))
    same(gmm.affine(matrix, np.ones(2)), other.affine(matrix, np.ones(2)))
    np.testing.assert_allclose(gmm.covariance(), other.covariance(), rtol=1e-9)


def test_moments_given_features(x):
    gmm = mixture("low_rank")
    (mean, covariance), (wanted, spread) = (
        g.regress([0, 3], x[:7, [0, 3]]) for g in (gmm, full(gmm))
    )
    np.testing.assert_allclose(mean, wanted, rtol=1e-9)
    np.testing.assert_allclose(covariance, spread, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "own, noise",
    [("low_rank_spherical", "one"), ("low_rank", "variances"), ("low_rank", "of each")],
)
def test_posterior_under_noise_is_that_of_full_covariances(own, noise, x):
    y = x[:5]
    variances = np.linspace(0.1, 1, D)
    variances[2] = np.inf
    given = {"one": 0.3, "variances": variances, "of each": np.tile(variances, (5, 1))}[noise]
    gmm = mixture(own)
    found, wanted = (g.posterior(y, None, given) for g in (gmm, full(gmm)))
    for method in ("log_evidence", "responsibilities", "mean", "mode", "covariance"):
        np.testing.assert_allclose(
            getattr(found, method)(), getattr(wanted, method)(), rtol=1e-8, atol=1e-11
        )
    if noise != "of each":
        assert found.conditional.structure.covariance_type == "low_rank"
        draws = np.asarray(found.sample(4000))
        error = np.sqrt(np.diagonal(found.covariance(), axis1=1, axis2=2) / 4000)
        assert (np.abs(draws.mean(1) - found.mean()) < 5 * error).all()
        spread = np.stack([np.cov(of_one.T) for of_one in draws])
        np.testing.assert_allclose(spread, found.covariance(), atol=0.35)


def test_draws_have_the_moments_of_the_mixture(own):
    gmm, n = mixture(own), 20_000
    draws, labels = gmm.sample_with_labels(n)
    for k in range(K):
        own = np.asarray(draws)[labels == k]
        covariance = np.asarray(gmm.covariances)[k]
        scale = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose((own.mean(0) - gmm.means[k]) / scale, 0, atol=0.1)
        np.testing.assert_allclose(
            np.cov(own.T) / np.outer(scale, scale), covariance / np.outer(scale, scale), atol=0.1
        )


def test_latent_factors(own, x):
    gmm = mixture(own)
    _, means, loadings, variances = parameters(own)
    found, covariance = gmm.latent_factors(x[:9])
    gain = loadings.transpose(0, 2, 1) @ np.linalg.inv(dense(loadings, variances))
    wanted = np.einsum("krd,nkd->nkr", gain, x[:9, None] - means)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(covariance, np.eye(R) - gain @ loadings, rtol=1e-8, atol=1e-12)
    with pytest.raises(ValueError, match="no latent factors"):
        full(gmm).latent_factors(x)


def test_score_under_noise(x):
    gmm = mixture("low_rank")
    for sigma in (0.0, 0.5, np.linspace(0.1, 1, 4)):
        wanted = full(gmm).noise_score(x[:4], sigma)
        np.testing.assert_allclose(gmm.noise_score(x[:4], sigma), wanted, rtol=1e-8, atol=1e-11)


@pytest.mark.usefixtures("optax_promotion")
def test_other_trainers(x, start):
    wanted = gmmx.EMFitter(tol=1e-3).fit(x, start("low_rank")).log_likelihood
    fit = gmmx.GradientFitter(max_iter=800).fit(x, start("low_rank"))
    np.testing.assert_allclose(fit.log_likelihood, wanted, atol=5e-3)
    best = gmmx.Restarts(gmmx.EMFitter(tol=1e-3), 2).fit(x, start("low_rank"))
    assert best.gmm.structure.n_latent == R and best.log_likelihood > wanted - 0.1


def test_selection_over_ranks(x):
    fitter = gmmx.EMFitter(tol=1e-3)
    found = gmmx.select(x, K, ("diag", "low_rank"), rank=(1, R), fitter=fitter)
    assert (found.best.covariance_type, found.best.rank) == ("low_rank", R)
    assert found.to_dict()["rank"] == [None, 1, R]


def test_files_and_pickles(name, tmp_path, x):
    gmm = mixture(name)
    gmmx.save(tmp_path / "model.safetensors", gmm)
    for again in (gmmx.load(tmp_path / "model.safetensors"), pickle.loads(pickle.dumps(gmm))):
        assert jax.tree.structure(again) == jax.tree.structure(gmm)
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(gmm), strict=True):
            np.testing.assert_array_equal(a, b)
    assert "of rank 2" in str(gmm)


def test_bad_input(x):
    for rank, message in ((None, "needs a rank"), (0, "positive"), (D, "covariance_type='full'")):
        with pytest.raises(ValueError, match=message):
            gmmx.initialize(x, K, "low_rank", rank=rank)
    with pytest.raises(ValueError, match="'diag' covariances have no rank"):
        gmmx.initialize(x, K, "diag", rank=2)
    with pytest.raises(ValueError, match="'full' covariances have no rank"):
        gmmx.select(x, 2, "full", rank=2)
    weights, means, loadings, variances = parameters("low_rank")
    with pytest.raises(ValueError, match="not positive"):
        gmmx.GaussianMixture.from_loadings(weights, means, loadings, 0 * variances)
    with pytest.raises(ValueError, match="loadings has shape"):
        gmmx.GaussianMixture.from_loadings(weights, means, loadings[:, 1:], variances)
    with pytest.raises(ValueError, match="from_loadings"):
        gmmx.GaussianMixture.from_parameters(weights, means, variances, "low_rank")


def test_what_has_no_form_is_refused(x):
    gmm = mixture("low_rank")
    gaps = np.where((np.arange(D) == 1) & (np.arange(N) % 2 == 0)[:, None], np.nan, x)
    data = gmmx.Data(gaps, missing=True)
    for call in (gmm.log_prob, gmm.impute, lambda data: gmmx.EMFitter().fit(data, gmm)):
        with pytest.raises(ValueError, match=r"rows of gmmx\.Data"):
            call(data)
    with pytest.raises(ValueError, match="ConjugatePrior has no form"):
        gmmx.EMFitter(prior=gmmx.ConjugatePrior()).fit(x, gmm)

    def fitted(x):
        return gmmx.EMFitter(max_iter=2).fit(x, gmm).log_likelihood

    with pytest.raises(NotImplementedError, match="of low rank"):
        jax.grad(fitted)(x)


def test_many_features_are_never_made_dense():
    """Neither a fit nor the algebra builds an array of d × d; what would need one is refused."""
    d, n, rank = 1000, 64, 3
    gmm = gmmx.GaussianMixture.create(2, d, "low_rank", rank=rank)
    x = jax.ShapeDtypeStruct((n, d), np.float64)
    seen = np.zeros(d // 2)
    for call in (
        lambda x: gmmx.EMFitter(max_iter=2).fit(x, gmm),
        lambda x: gmmx.initialize(x, 2, "low_rank", rank=rank),
        lambda x: gmm.log_prob(x),
        lambda x: gmm.condition(list(range(d // 2)), seen + x[0, 0]),
        lambda x: gmm.posterior(x, None, 0.5).mean(),
        lambda x: gmm.latent_factors(x),
        lambda x: gmm.convolve(x[0] ** 2).marginal(list(range(9))),
    ):
        size, _ = largest(traced(call, x))
        assert size < d * d
    assert gmm.sample(3).shape == (3, d)
    for call in (gmm.collapse, lambda: gmm.reduce(1), lambda: gmmx.product(gmm, gmm)):
        with pytest.raises(ValueError, match="Take fewer of them"):
            call()


def test_the_estimator_takes_a_rank(x):
    sklearn = pytest.importorskip("gmmx.sklearn")
    estimator = sklearn.GaussianMixture(K, covariance_type="low_rank", rank=R, random_state=0)
    estimator.fit(x)
    assert estimator.loadings_.shape == (K, D, R) and estimator.noise_variances_.shape == (K, D)
    gmm = gmmx.GaussianMixture.from_sklearn(estimator)
    np.testing.assert_allclose(estimator.score_samples(x), gmm.log_prob(x), rtol=1e-10)
    np.testing.assert_allclose(estimator.bic(x), gmm.bic(x), rtol=1e-10)
    draws, labels = estimator.sample(50)
    assert draws.shape == (50, D) and (np.diff(labels) >= 0).all()
    with pytest.raises(ValueError, match="no rank"):
        sklearn.GaussianMixture(K, rank=R).fit(x)
