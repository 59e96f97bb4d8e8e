"""The posterior under y = Ax + b + ε: every form of its arguments, conditioning, and draws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operations import dense, given, mixed

import gmmx

K, D, N = 3, 3, 5
M = 2
A = np.random.default_rng(0).normal(size=(M, D))
B = np.array([0.3, -1.0])
ROOT = np.random.default_rng(1).normal(size=(M, M))
C = ROOT @ ROOT.T + 0.1 * np.eye(M)


def reference(gmm, y, a, c, b):
    """Log-evidence, shares, component means and covariances of one observation."""
    found = given(dense(gmm), y[None], a, c, b)
    return found.log_evidence[0], found.shares[0], found.means[0], found.covariances


def moments(shares, means, covariances):
    mean, covariance = mixed(shares[None], means[None], covariances)
    return mean[0], covariance[0]


def observations(m=M, n=N, seed=2):
    return 2 * np.random.default_rng(seed).normal(size=(n, m))


def full(noise, m):
    return noise if np.ndim(noise) == 2 else noise * np.eye(m)


@eqx.filter_jit
def everything(gmm, *args):
    posterior = gmm.posterior(*args)
    return {**summary(posterior), "mixture": posterior.mixture()}


def holds(gmm, y, args, operators, skipped=0):
    """Every method is the reference's at every sample: operators are (A, C, b, y), one a sample.

    They may skip the first samples.
    """
    got = everything(gmm, y, *args)
    parts = np.asarray(got["mixture"].weights), np.asarray(got["mixture"].means)
    for i, (a, c, b, seen) in enumerate(operators, skipped):
        evidence, shares, means, covariances = reference(gmm, seen, a, c, b)
        mean, covariance = moments(shares, means, covariances)
        wanted = {
            "evidence": evidence, "shares": shares, "mean": mean, "covariance": covariance,
            "mode": means[shares.argmax()],
        }  # fmt: skip
        for name, value in wanted.items():
            np.testing.assert_allclose(got[name][i], value, rtol=1e-9, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(parts[0][i], shares, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(parts[1][i], means, rtol=1e-9, atol=1e-10)
        one = dense(got["mixture"][i])[2]
        np.testing.assert_allclose(one, covariances, rtol=1e-9, atol=1e-10)


CASES = {
    "denoising": (None, 0.3, 0),
    "heteroscedastic": (None, np.array([0.1, 1.0, 3.0]), 0),
    "fewer numbers": (A, C, B),
    "more numbers": (np.random.default_rng(4).normal(size=(5, D)), 0.2, 0.5),
    "a row of zeros": (np.array([[1.0, 1, 0], [0, 0, 0]]), 0.2, 0),
}


# Every case once, and one for each structure.
@pytest.mark.parametrize(
    "case, name",
    [(case, "full") for case in CASES]
    + [("denoising", "diag"), ("fewer numbers", "tied"), ("more numbers", "spherical")],
)
def test_posterior_is_the_reference(structures, case, name):
    gmm, (a, c, b) = structures[name].mixture(K, D), CASES[case]
    m = D if a is None else len(a)
    y = observations(m)
    operator = np.eye(D) if a is None else a, full(c, m), b
    holds(gmm, y, (a, c, b), [(*operator, one) for one in y])


def test_any_leading_axes(structures):
    gmm, y = structures["tied"].mixture(K, D), observations()
    whole = gmm.posterior(y, A, C, B)
    one = gmm.posterior(y[0], A, C, B)
    assert isinstance(one.mixture(), gmmx.GaussianMixture)
    assert one.mixture().covariance_type == "tied"
    np.testing.assert_allclose(one.mean(), whole.mean()[0], rtol=1e-10, atol=1e-12)
    axes = gmm.posterior(np.stack([y, y]), A, C, B)
    assert axes.covariance().shape == (2, N, D, D) and axes.mixture().shape == (2, N)
    np.testing.assert_allclose(axes.mode()[1], whole.mode(), rtol=1e-10, atol=1e-12)
    noise = np.broadcast_to(C, (2, N, M, M))
    own = gmm.posterior(np.stack([y, y]), A, noise, B)
    assert own.mixture().shape == (2, N)
    np.testing.assert_allclose(own.mean()[1], whole.mean(), rtol=1e-9, atol=1e-10)


def per_sample(n=N):
    rng = np.random.default_rng(6)
    roots = rng.normal(size=(n, M, M))
    return rng.normal(size=(n, M, D)), roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(M)


# Each way of giving them once, and one for each structure.
@pytest.mark.parametrize(
    "which, name",
    [
        ("A", "full"), ("C", "diag"), ("both", "tied"), ("variances", "spherical"),
        ("one variance", "full"),
    ],
)  # fmt: skip
def test_operators_of_their_own(structures, which, name):
    gmm, y = structures[name].mixture(K, D), observations()
    own_a, own_c = per_sample()
    b = observations(seed=9)
    variances = np.random.default_rng(7).uniform(0.1, 2, size=(N, M))
    a, c = {
        "A": (own_a, C), "C": (A, own_c), "both": (own_a, own_c), "variances": (A, variances),
        "one variance": (own_a, variances[:, :1]),
    }[which]  # fmt: skip
    operators = []
    for i in range(N):
        own = c if c.shape == (M, M) else c[i]
        operators.append((a if a.ndim == 2 else a[i], full(own, M), b[i], y[i]))
    holds(gmm, y, (a, c, b), operators)


@pytest.mark.parametrize("name", ["full", "spherical"])
def test_what_was_not_observed_counts_nowhere(structures, name):
    """Infinite noise is the marginal's observation, whatever stands in y."""
    gmm, y = structures[name].mixture(K, D), observations(D)
    seen = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 1, 1], [0, 0, 0]], bool)
    noise = np.where(seen, 0.2, np.inf)
    holed = np.where(seen, y, np.nan)
    operators = [
        (np.eye(D)[s], 0.2 * np.eye(s.sum()), 0, one[s])
        for s, one in zip(seen[:4], y[:4], strict=True)
    ]
    holds(gmm, holed, (None, noise), operators)
    # The last sample was not observed at all: its posterior is the prior.
    posterior = gmm.posterior(holed, None, noise)
    np.testing.assert_allclose(posterior.log_evidence()[4], 0, atol=1e-12)
    np.testing.assert_allclose(posterior.mean()[4], gmm.mean(), rtol=1e-12)
    # One mask for all samples.
    operators = [(*operators[0][:3], one[seen[0]]) for one in y]
    holds(gmm, np.where(seen[0], y, np.nan), (None, noise[0]), operators)


def test_posterior_is_conditioning_of_the_joint(structures):
    """(x, y) as one mixture, conditioned on y by the algebra."""
    gmm, y = structures["full"].mixture(K, D), observations()
    weights, means, covariances = dense(gmm)
    both = np.concatenate([np.eye(D), A])
    joint = both @ covariances @ both.T
    joint[:, D:, D:] += C
    joint = (joint + joint.transpose(0, 2, 1)) / 2
    means = means @ both.T + np.concatenate([np.zeros(D), B])
    model = gmmx.GaussianMixture.from_parameters(weights, means, joint)
    conditional = model.condition([D, D + 1], y)
    posterior = gmm.posterior(y, A, C, B).mixture()
    np.testing.assert_allclose(conditional.means, posterior.means, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(conditional.weights, posterior.weights, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(
        dense(conditional[0])[2], dense(posterior[0])[2], rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize("name", ["tied", "diag"])
def test_evidence_is_the_observed_mixture_and_integrates(structures, name):
    gmm = structures[name].mixture(K, D)
    a = A[:1]
    grid = np.linspace(-60, 60, 20_001)[:, None]
    posterior = gmm.posterior(grid, a, 0.3, 0.1)
    np.testing.assert_allclose(np.trapezoid(np.exp(posterior.log_evidence()), grid[:, 0]), 1)
    by_algebra = gmm.affine(a, [0.1]).convolve(0.3)
    np.testing.assert_allclose(
        posterior.log_evidence(), by_algebra.log_prob(grid), rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(posterior.observed.covariance(), by_algebra.covariance(), rtol=1e-11)


def test_samples_have_the_posteriors_moments(structures):
    gmm, y = structures["full"].mixture(K, D), observations(n=2)
    n = 40_000
    for posterior in (gmm.posterior(y, A, C, B), gmm.posterior(y, A, np.stack([C, C]), B)):
        x = np.asarray(posterior.sample(n, key=jax.random.key(3)))
        assert x.shape == (2, n, D)
        for i in range(2):
            mean, covariance = moments(*reference(gmm, y[i], A, C, B)[1:])
            spread = np.sqrt(np.diag(covariance) / n)
            assert (np.abs(x[i].mean(0) - mean) < 5 * spread).all()
            # Five standard errors, the fourth moments taken from the draws.
            apart = x[i] - mean
            squares = apart[:, :, None] * apart[:, None]
            assert (np.abs(squares.mean(0) - covariance) < 5 * squares.std(0) / np.sqrt(n)).all()
        np.testing.assert_array_equal(posterior.sample(2), posterior.sample(2))


def summary(posterior):
    return {
        "evidence": posterior.log_evidence(), "mean": posterior.mean(), "mode": posterior.mode(),
        "covariance": posterior.covariance(), "shares": posterior.responsibilities(),
        "sample": posterior.sample(2, key=jax.random.key(1)),
    }  # fmt: skip


def test_gradients_where_some_was_not_observed(structures):
    """Finite differences; nothing depends on what stands in y there."""
    gmm, y = structures["full"].mixture(K, D), jnp.asarray(observations())
    noise = np.where([[1, 1], [0, 1], [1, 0], [1, 1], [0, 0]], 0.3, np.inf)
    leaves, tree = jax.tree.flatten((gmm, y, jnp.asarray(A), jnp.asarray(0.7)))
    rng = np.random.default_rng(0)
    weights = {part: rng.normal() for part in ("mean", "mode", "covariance", "evidence")}

    @jax.jit
    def both(leaves):
        def loss(leaves):
            gmm, y, a, scale = tree.unflatten(leaves)
            # Not a product with infinity, whose derivative is 0·∞.
            seen = np.isfinite(noise)
            variances = jnp.where(seen, scale * np.where(seen, noise, 1), jnp.inf)
            values = summary(gmm.posterior(y, a, variances))
            return sum(w * jnp.sum(values[part] ** 2) for part, w in weights.items())

        return jax.value_and_grad(loss)(leaves)

    gradient = both(leaves)[1]
    along = [rng.normal(size=leaf.shape) for leaf in leaves]
    step = 1e-5
    ends = [
        both([leaf + h * v for leaf, v in zip(leaves, along, strict=True)])[0]
        for h in (step, -step)
    ]
    exact = sum(np.sum(np.asarray(g) * v) for g, v in zip(gradient, along, strict=True))
    np.testing.assert_allclose(exact, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)
    by_y = tree.unflatten(gradient)[1]
    np.testing.assert_array_equal(np.asarray(by_y)[np.isinf(noise)], 0)


def own_variances(n=N, d=7, decades=3, seed=11):
    """Deviations of so many decades about one; of the first sample nothing was observed."""
    rng = np.random.default_rng(seed)
    noise = 100.0 ** rng.uniform(-decades, decades, size=(n, d))
    noise[rng.random((n, d)) < 0.3] = np.inf
    noise[0] = np.inf
    return noise


@pytest.mark.parametrize("name", ["full", "tied", "diag", "spherical"])
def test_variances_of_their_own_without_an_operator(structures, name):
    gmm, noise = structures[name].mixture(K, 7), own_variances()
    y = observations(7)
    operators = [
        (np.eye(7)[s], np.diag(own[s]), 0, one[s])
        for s, own, one in zip(np.isfinite(noise), noise, y, strict=True)
    ]
    holds(gmm, np.where(np.isinf(noise), np.nan, y), (None, noise), operators[1:], skipped=1)


@pytest.mark.parametrize("collinear", [False, True])
def test_float32_under_any_noise_far_from_the_origin(structures, collinear):
    """Noise of 1e-3 to 1e3 of the widths, at 1e4; features that are the same up to 1e-3."""
    d, rng = 7, np.random.default_rng(12)
    weights, means, covariances = structures["full"].parameters(K, d)
    if collinear:
        roots = rng.normal(size=(K, d, 1)) + 1e-3 * rng.normal(size=(K, d, d))
        covariances = roots @ roots.transpose(0, 2, 1)
    single = structures["full"].of(weights, means + 1e4, covariances, np.float32)
    noise = own_variances(40).astype(np.float32)
    y = single.sample(40, key=jax.random.key(4))
    seen = np.isfinite(noise)
    exact = dense(jax.tree.map(lambda leaf: leaf.astype(np.float64), single))
    posterior = single.posterior(np.where(seen, y, np.nan), None, noise)
    got = {"evidence": posterior.log_evidence(), "mean": posterior.mean()}
    for i in range(1, len(noise)):
        s = seen[i]
        found = given(
            exact, np.asarray(y, float)[i : i + 1, s], np.eye(d)[s], np.diag(noise[i, s]), 0
        )
        size = np.abs(found.log_evidence[0]) + d
        np.testing.assert_allclose(got["evidence"][i], found.log_evidence[0], atol=2e-4 * size)
        mean, _ = moments(found.shares[0], found.means[0], found.covariances)
        # A step of float32 at 1e4 is 1e-3.
        np.testing.assert_allclose(got["mean"][i], mean, atol=2e-3)


def test_derivatives_under_variances_of_their_own(structures):
    """By both modes, to second order; none where nothing was observed."""
    noise = jnp.asarray(own_variances(decades=0.5))
    y = jnp.asarray(observations(7))
    rng = np.random.default_rng(13)
    for name in ("full", "tied"):
        gmm = structures[name].mixture(K, 7)
        leaves, tree = jax.tree.flatten((gmm, y, jnp.zeros_like(y)))
        along = [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in leaves]

        def value(leaves, tree=tree):
            gmm, y, log_scale = tree.unflatten(leaves)
            seen = jnp.isfinite(noise)
            own = jnp.where(seen, jnp.exp(log_scale) * jnp.where(seen, noise, 1), jnp.inf)
            posterior = gmm.posterior(y, None, own)
            means = jnp.sum(jnp.sin(posterior.mean())) + jnp.sum(jnp.cos(posterior.mode()))
            return means + jnp.sum(jnp.tanh(posterior.log_evidence() / 20))

        @jax.jit
        def three(step, leaves=leaves, along=along, value=value):
            moved = [leaf + step * v for leaf, v in zip(leaves, along, strict=True)]
            gradient = jax.grad(value)
            slope, curve = jax.jvp(gradient, (moved,), (along,))
            by_forward = jax.jvp(value, (moved,), (along,))[1]
            return value(moved), slope, by_forward, curve

        step = 1e-5
        _, slope, by_forward, curve = three(0.0)
        ahead, behind = three(step), three(-step)
        along_slope = sum(jnp.vdot(g, v) for g, v in zip(slope, along, strict=True))
        np.testing.assert_allclose(along_slope, (ahead[0] - behind[0]) / (2 * step), rtol=1e-5)
        np.testing.assert_allclose(along_slope, by_forward, rtol=1e-9)
        for got, a, b in zip(curve, ahead[1], behind[1], strict=True):
            wanted = (a - b) / (2 * step)
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())
        np.testing.assert_array_equal(np.asarray(tree.unflatten(slope)[1])[np.isinf(noise)], 0)


@pytest.mark.parametrize("name", ["full", "spherical"])
def test_float32_far_and_narrow(structures, name):
    """Components of width 1e-2 at 1e4, under noise as wide, half as wide and a hundredth."""
    weights, means, covariances = structures[name].parameters(K, D)
    single = structures[name].of(weights, means + 1e4, 1e-4 * covariances, np.float32)
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), single)
    y = np.asarray(single.means) + np.float32(1e-2)
    for sigma in (1e-2, 5e-3, 1e-4):
        got, wanted = (
            g.posterior(y.astype(g.dtype), None, np.asarray(sigma**2, g.dtype))
            for g in (single, exact)
        )
        # A step of float32 at 1e4 is 1e-3: the result is the nearest one that can be stored.
        np.testing.assert_allclose(got.mean(), wanted.mean(), atol=1.1e-3)
        np.testing.assert_allclose(got.mode(), wanted.mode(), atol=1.1e-3)
        np.testing.assert_allclose(got.log_evidence(), wanted.log_evidence(), rtol=2e-4, atol=2e-3)
        a, b = (np.asarray(p.mixture().structure.factors(K, D)) for p in (got, wanted))
        scale = np.sqrt(np.einsum("kij,kij->kj", b, b))[:, None]
        np.testing.assert_allclose(a / scale, b / scale, atol=1e-5)


def test_precise_observations_of_a_float32_prior():
    """Noise of a millionth of the prior's width: positive, and of the noise's own width."""
    gmm = gmmx.GaussianMixture.create(2, D, dtype=np.float32)
    noise = np.array([1e-12, np.inf, 1e-12], np.float32)
    posterior = gmm.posterior(np.zeros((2, D), np.float32), None, noise)
    widths = np.sqrt(np.asarray(posterior.mixture()[0].covariances)[:, [0, 2], [0, 2]])
    np.testing.assert_allclose(widths, 1e-6, rtol=1e-4)
    np.testing.assert_allclose(posterior.mean()[:, [0, 2]], 0, atol=1e-6)


def test_a_variance_a_sample_where_the_batch_is_square(structures):
    gmm, y = structures["full"].mixture(K, D), observations(D)[:D]
    variances = np.array([0.1, 0.5, 2.0])
    one = gmm.posterior(y, None, variances[:, None]).mean()
    rows = np.where(np.eye(D, dtype=bool), np.inf, variances[:, None])
    other = gmm.posterior(y[None], None, rows[None]).mean()[0]
    for i in range(D):
        np.testing.assert_allclose(one[i], gmm.posterior(y[i], None, variances[i]).mean())
        np.testing.assert_allclose(other[i], gmm.posterior(y[i], None, rows[i]).mean())


@pytest.mark.parametrize(
    "args, message",
    [
        ((np.zeros((5, 4)), None, 1.0), "3 numbers are observed"),
        ((np.zeros((5, 3)), A, 1.0), "2 numbers are observed"),
        ((np.zeros((5, 2)), A.T, 1.0), r"expected \(m, 3\)"),
        ((np.zeros((5, 0)), np.zeros((0, 3)), 1.0), r"expected \(m, 3\)"),
        ((np.zeros((5, 2)), np.zeros((4, 2, 3)), 1.0), "leading axes"),
        ((np.zeros((2, 2)), A, np.array([[1.0, np.inf], [2, 3]])), r"y\[None\]"),
        ((np.zeros((2, 2)), A, np.array([[1.0, 2], [3, 4]])), r"y\[None\]"),
        ((np.zeros((5, 2)), A, np.ones(3)), "noise_covariance has shape"),
        ((np.zeros((5, 2)), A, 0.0), "gmm.condition"),
        ((np.zeros((5, 2)), A, np.array([1.0, 0])), "gmm.condition"),
        ((np.zeros((5, 2)), A, np.ones((2, 2))), "gmm.condition"),
        ((np.zeros((5, 2)), A, -1.0), "negative variance"),
        ((np.zeros((5, 2)), A, np.nan), "NaN or infinite"),
        ((np.zeros((5, 2)), A, np.diag([1.0, np.inf])), "NaN or infinite"),
        ((np.zeros((5, 2)), A, np.array([[1.0, 0.5], [0, 1]])), "not symmetric"),
        ((np.full((5, 2), np.nan), A, 1.0), "y holds 10 values"),
        ((np.zeros((5, 2)), np.full((2, 3), np.inf), 1.0), "A holds"),
        ((np.zeros((5, 2)), A, 1.0, np.zeros(3)), "b has shape"),
    ],
)
def test_bad_input_is_refused_with_the_fix(args, message):
    with pytest.raises(ValueError, match=message):
        gmmx.GaussianMixture.create(2, D).posterior(*args)
