"""A mixture before a background."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from scipy.special import logsumexp

import gmmx

LOW, HIGH = np.array([-3.0, -1.0]), np.array([5.0, 4.0])
WEIGHTS, BEHIND = np.array([0.5, 0.2]), 0.3
MEANS = np.array([[0.0, 1.0], [3.0, 2.0]])
COVARIANCES = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.1], [-0.1, 0.3]]])


def before(background=None, weight=BEHIND, dtype=np.float64, offset=0.0):
    parameters = WEIGHTS / WEIGHTS.sum(), MEANS + offset, COVARIANCES
    gmm = gmmx.GaussianMixture.from_parameters(*(np.asarray(p, dtype) for p in parameters))
    box = gmmx.UniformBackground(*(np.asarray(v + offset, dtype) for v in (LOW, HIGH)))
    return gmmx.BackgroundMixture.of(gmm, box if background is None else background, weight)


def drawn(n=300, seed=0):
    """Rows, and which of them are of the background."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=n, p=[*WEIGHTS, BEHIND])
    x = rng.uniform(LOW, HIGH, (n, 2))
    for k in range(2):
        own = labels == k
        x[own] = rng.multivariate_normal(MEANS[k], COVARIANCES[k], own.sum())
    return np.clip(x, LOW, HIGH), labels


def lines(seed):
    """350 rows along a pair of lines, before 754 that lie anywhere."""
    rng = np.random.default_rng(seed)
    t, left = rng.uniform(size=350), np.arange(350) % 2 == 0
    x = np.stack([np.where(left, 20 + 30 * t, 80 - 30 * t), 20 + 60 * t], axis=1)
    clutter = rng.uniform(0, 100, (754, 2))
    return np.concatenate([x + 0.3 * rng.normal(size=x.shape), clutter]), np.arange(1104) >= 350


def log_joint(x, inside=True):
    """By SciPy, component by component, the background last."""
    of_each = [
        np.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(x)
        for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
    ]
    behind = np.log(BEHIND) - np.log(HIGH - LOW).sum()
    behind = np.where(inside, behind, -np.inf) * np.ones(len(x))
    return np.stack([*of_each, behind], axis=1)


def test_densities_are_the_reference():
    rng = np.random.default_rng(0)
    x = rng.uniform(LOW - 1, HIGH + 1, (200, 2))
    gmm, joint = before(), log_joint(x, ((x >= LOW) & (x <= HIGH)).all(axis=1))
    np.testing.assert_allclose(gmm.component_log_prob(x), joint, rtol=1e-10)
    np.testing.assert_allclose(gmm.log_prob(x), logsumexp(joint, axis=1), rtol=1e-10)
    proba = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    np.testing.assert_allclose(gmm.predict_proba(x), proba, atol=1e-12)
    np.testing.assert_array_equal(gmm.predict(x), joint.argmax(axis=1))
    np.testing.assert_allclose(gmm.weights, WEIGHTS)
    np.testing.assert_allclose(gmm.background_weight, BEHIND)
    log_likelihood = logsumexp(joint, axis=1).sum()
    assert gmm.n_parameters == 2 + 4 + 6
    np.testing.assert_allclose(gmm.bic(x), 12 * np.log(200) - 2 * log_likelihood)


def test_the_density_integrates_to_one():
    axes = [np.linspace(low - 6, high + 6, 801) for low, high in zip(LOW, HIGH, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    # At the middles of cells, the box of which the grid divides.
    centre = grid[:-1, :-1] + (grid[1, 1] - grid[0, 0]) / 2
    cell = np.prod(grid[1, 1] - grid[0, 0])
    assert np.exp(before().log_prob(centre)).sum() * cell == pytest.approx(1, abs=2e-3)


def test_rows_with_gaps_and_noise():
    x, _ = drawn(50)
    rng = np.random.default_rng(1)
    missing = rng.uniform(size=x.shape) < 0.3
    variances = rng.uniform(0, 0.5, size=x.shape)
    found = before().log_prob(gmmx.Data(x, missing=missing, noise=variances))
    for i in range(len(x)):
        seen = ~missing[i]
        joint = [np.log(BEHIND) - np.log(HIGH - LOW)[seen].sum()]
        for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
            part = (c + np.diag(variances[i]))[np.ix_(seen, seen)]
            apart = x[i, seen] - m[seen]
            log_det = np.linalg.slogdet(2 * np.pi * part)[1]
            joint.append(np.log(w) - (apart @ np.linalg.solve(part, apart) + log_det) / 2)
        np.testing.assert_allclose(found[i], logsumexp(joint), atol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_the_formulas(weighted):
    x, _ = drawn()
    counts = np.random.default_rng(2).uniform(0.5, 2, len(x)) if weighted else np.ones(len(x))
    joint = log_joint(x)
    share = np.exp(joint - logsumexp(joint, axis=1, keepdims=True)) * counts[:, None]
    total = share.sum(axis=0)
    fitter, given = gmmx.EMFitter(max_iter=1, reg_covar=0), counts if weighted else None
    with pytest.warns(gmmx.FitWarning):
        found = fitter.fit(x, before(), weights=given).gmm
    np.testing.assert_allclose(found.weights, total[:2] / total.sum(), rtol=1e-9)
    np.testing.assert_allclose(found.background_weight, total[2] / total.sum(), rtol=1e-9)
    means = share[:, :2].T @ x / total[:2, None]
    np.testing.assert_allclose(found.means, means, rtol=1e-9)
    for k in range(2):
        apart = x - means[k]
        covariance = (share[:, k, None] * apart).T @ apart / total[k]
        np.testing.assert_allclose(found.covariances[k], covariance, rtol=1e-8)


@pytest.mark.filterwarnings("ignore:.*max_iter was reached:gmmx.FitWarning")
@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("kind", ["plain", "gaps", "noise", "labels"])
def test_the_likelihood_never_falls(kind, accelerate):
    x, labels = drawn(200, seed=3)
    rng = np.random.default_rng(4)
    given = {
        "plain": lambda: x,
        "gaps": lambda: gmmx.Data(x, missing=rng.uniform(size=x.shape) < 0.3),
        "noise": lambda: gmmx.Data(x, noise=rng.uniform(0, 1, x.shape)),
        "labels": lambda: gmmx.Data(x, labels=np.where(rng.uniform(size=200) < 0.3, labels, -1)),
    }[kind]()
    start = gmmx.initialize(given, 2, background=True)
    result = gmmx.EMFitter(tol=1e-5, max_iter=2000, accelerate=accelerate).fit(given, start)
    assert np.diff(np.asarray(result.history)).min() > -1e-10
    np.testing.assert_allclose(result.log_likelihood, result.gmm.score(given), rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_clutter_is_told_from_lines(seed):
    x, clutter = lines(seed)
    start = gmmx.initialize(x, 2, method="em", background=True)
    noise = np.asarray(gmmx.EMFitter(max_iter=300).fit(x, start).gmm.predict(x)) == 2
    assert noise[clutter].mean() >= 0.95
    assert noise[~clutter].mean() <= 0.15


def test_select_and_restarts_take_a_background():
    x, _ = lines(0)
    selection = gmmx.select(x, range(1, 4), "full", background=True)
    assert selection.best.n_components == 2
    assert isinstance(selection.best.gmm, gmmx.BackgroundMixture)
    best = selection.best.result.log_likelihood
    np.testing.assert_allclose(selection.best.gmm.score(x), best, rtol=1e-6)
    start = gmmx.initialize(x, 2, background=True)
    result = gmmx.Restarts(gmmx.EMFitter(max_iter=300), 3).fit(x, start)
    assert result.log_likelihood >= best - 1e-3


def test_both_trainers_have_the_same_optimum(optax_promotion):
    x, _ = drawn()
    start = before()
    by_em = gmmx.EMFitter(tol=1e-12, max_iter=3000, reg_covar=0).fit(x, start)
    trainer = gmmx.GradientFitter(optax.lbfgs(), tol=1e-10, max_iter=1000, reg_covar=0)
    by_gradient = trainer.fit(x, start)
    np.testing.assert_allclose(by_gradient.log_likelihood, by_em.log_likelihood, atol=1e-8)
    np.testing.assert_allclose(by_gradient.gmm.background_weight, by_em.gmm.background_weight,
                               atol=1e-4)  # fmt: skip


def test_without_weight_it_is_the_plain_fit():
    x, _ = drawn()
    start = before(weight=0.0)
    result = gmmx.EMFitter().fit(x, start)
    plain = gmmx.EMFitter().fit(x, start.mixture)
    np.testing.assert_allclose(result.gmm.means, plain.gmm.means, rtol=1e-10)
    np.testing.assert_allclose(result.log_likelihood, plain.log_likelihood, rtol=1e-12)
    assert result.gmm.background_weight == 0


def test_frozen_weights_keep_the_background():
    x, _ = drawn()
    result = gmmx.EMFitter(frozen="weights").fit(x, before())
    np.testing.assert_array_equal(result.gmm.background_logit, before().background_logit)
    np.testing.assert_array_equal(result.gmm.logits, before().logits)
    assert not np.allclose(result.gmm.means, MEANS)


def test_a_label_names_the_background():
    x, labels = drawn()
    given = gmmx.Data(x, labels=labels)
    result = gmmx.EMFitter().fit(given, gmmx.initialize(given, 2, background=True))
    shares = np.bincount(labels) / len(labels)
    np.testing.assert_allclose(result.gmm.weights, shares[:2], rtol=1e-9)
    np.testing.assert_allclose(result.gmm.background_weight, shares[2], rtol=1e-9)
    np.testing.assert_allclose(result.gmm.means[0], x[labels == 0].mean(axis=0), rtol=1e-9)


def test_a_background_of_your_own():
    x, _ = drawn()
    wide = gmmx.GaussianMixture.from_parameters([1.0], [[1.0, 1.5]], [[[9.0, 0], [0, 9.0]]])
    start = before(wide)
    result = gmmx.EMFitter(tol=1e-8, max_iter=500).fit(x, start)
    assert np.diff(np.asarray(result.history)).min() > -1e-12
    np.testing.assert_array_equal(result.gmm.background.means, wide.means)
    assert 0.05 < result.gmm.background_weight < 0.6


def test_float32_far_from_zero():
    x, _ = drawn()
    start = before()
    exact = gmmx.EMFitter(tol=1e-6, max_iter=300).fit(x, start).log_likelihood
    moved = before(dtype=np.float32, offset=1e4)
    found = gmmx.EMFitter(tol=1e-6, max_iter=300).fit((x + 1e4).astype(np.float32), moved)
    assert found.gmm.dtype == np.float32
    # The rows themselves are rounded to 1e-3 there.
    np.testing.assert_allclose(found.log_likelihood, exact, atol=1e-3)


def test_transformations(tmp_path):
    x, _ = drawn()
    gmm = before()
    np.testing.assert_allclose(jax.jit(lambda g, x: g.log_prob(x))(gmm, x), gmm.log_prob(x))
    slope = jax.grad(lambda g: jnp.sum(g.log_prob(jnp.asarray(x))))(gmm)
    behind = np.asarray(gmm.predict_proba(x))[:, 2]
    np.testing.assert_allclose(slope.background_logit, (behind - BEHIND).sum(), rtol=1e-8)
    np.testing.assert_array_equal(slope.background.low, 0)
    fits = jax.vmap(lambda w: gmmx.EMFitter(max_iter=20).fit(x, gmm, weights=w))
    weights = np.random.default_rng(0).uniform(size=(3, len(x)))
    single = gmmx.EMFitter(max_iter=20).fit(x, gmm, weights=weights[1])
    together = fits(jnp.asarray(weights))
    np.testing.assert_allclose(together.gmm.means[1], single.gmm.means, rtol=1e-6)
    gmmx.save(tmp_path / "model.safetensors", gmm)
    loaded = gmmx.load(tmp_path / "model.safetensors")
    assert jax.tree.structure(loaded) == jax.tree.structure(gmm)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(gmm), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_gradient_through_a_fit():
    x, _ = drawn(120)
    wide = gmmx.GaussianMixture.from_parameters([1.0], [[1.0, 1.5]], [[[9.0, 0], [0, 9.0]]])
    fitter = gmmx.EMFitter(tol=1e-14, max_iter=5000)

    @jax.jit
    def weight(x):
        return fitter.fit(x, before(wide)).gmm.background_weight

    direction = np.random.default_rng(0).normal(size=x.shape)
    slope = np.sum(np.asarray(jax.grad(weight)(jnp.asarray(x))) * direction)
    step = 1e-5
    apart = weight(jnp.asarray(x + step * direction)) - weight(jnp.asarray(x - step * direction))
    np.testing.assert_allclose(slope, apart / (2 * step), rtol=1e-4)


def test_draws():
    gmm = before()
    x, labels = gmm.sample_with_labels(4000)
    counts = np.bincount(np.asarray(labels), minlength=3)
    np.testing.assert_allclose(counts / 4000, [*WEIGHTS, BEHIND], atol=0.04)
    far = np.asarray(x)[np.asarray(labels) == 2]
    assert (far >= LOW).all() and (far <= HIGH).all()
    np.testing.assert_allclose(far.mean(axis=0), (LOW + HIGH) / 2, atol=0.3)


def test_the_summary_tells_of_it():
    x, _ = drawn()
    text = str(before().summary(x))
    assert "background of weight 0.300" in text


def test_bad_input_is_refused_with_the_fix():
    x, _ = drawn()
    gmm = before()
    with pytest.raises(ValueError, match="constant feature"):
        gmmx.initialize(np.column_stack([x, np.ones(len(x))]), 2, background=True)
    with pytest.raises(ValueError, match="finite low below a finite high"):
        gmmx.UniformBackground([0.0, 1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="expected \\(d,\\)"):
        gmmx.UniformBackground([0.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="log_prob"):
        gmmx.initialize(x, 2, background=3.0)
    with pytest.raises(ValueError, match="0 to 1"):
        before(weight=1.5)
    with pytest.raises(ValueError, match=r"gmm\.mixture"):
        gmmx.kl_divergence(gmm, gmm.mixture, key=jax.random.key(0), n_samples=10)
    for refused in (gmmx.entropy_bounds, gmmx.sklearn.to_sklearn):
        with pytest.raises(ValueError, match=r"gmm\.mixture"):
            refused(gmm)
    assert isinstance(gmmx.initialize(x, 2, background=False), gmmx.GaussianMixture)
    with pytest.raises(ValueError, match="UniformBackground"):
        gmmx.save("nowhere.safetensors", before(gmm.mixture))
    turned = gmmx.Data(x, noise=np.eye(2))
    with pytest.raises(ValueError, match="background of your own"):
        gmmx.initialize(turned, 2, background=True)


def test_all_of_it_in_one_call(optax_promotion):
    """Gaps, noise, weights, labels, a background and a prior; one optimum for both trainers."""
    x, labels = drawn(150, seed=5)
    rng = np.random.default_rng(6)
    given = gmmx.Data(
        x,
        missing=rng.uniform(size=x.shape) < 0.2,
        noise=rng.uniform(0, 0.3, x.shape),
        weights=rng.uniform(0.5, 2, len(x)),
        labels=np.where(rng.uniform(size=len(x)) < 0.2, labels, -1),
    )
    prior = gmmx.ConjugatePrior(concentration=2.0)
    by_em = gmmx.EMFitter(tol=1e-11, max_iter=5000, prior=prior, reg_covar=0).fit(given, before())
    trainer = gmmx.GradientFitter(optax.lbfgs(), tol=1e-10, max_iter=2000, prior=prior, reg_covar=0)
    by_gradient = trainer.fit(given, before())
    np.testing.assert_allclose(by_gradient.log_likelihood, by_em.log_likelihood, atol=1e-5)
    np.testing.assert_allclose(by_gradient.gmm.means, by_em.gmm.means, atol=1e-3)
    assert by_em.converged and by_em.gmm.predict(given).max() == 2
