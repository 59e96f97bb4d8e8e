"""Rows are filled up to a few sizes, and nobody sees what is filled in.

Under `jit` nothing is filled in, so that results are compared with what they are there.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmx
from gmmx import EMFitter, GradientFitter, Restarts
from gmmx._rows import size

K, D = 3, 2
# A size, and one row less and more than it: 64 and 9,216 are sizes.
SMALL = (63, 64, 65)
LARGE = (9_215, 9_216, 9_217)

pytestmark = pytest.mark.usefixtures("optax_promotion")


def clusters(n):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, D)) + 3 * rng.integers(0, K, size=(n, 1))


def same(found, wanted, rtol=1e-12):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(initial=0))


def fitted(fitter, x, gmm, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        return fitter.fit(x, gmm, **options)


def same_fits(found, wanted):
    """A fit from Python and one under `jit`, whose history is as long as it may become."""
    n = int(found.n_iter)
    assert n == wanted.n_iter and bool(found.status == wanted.status)
    same((found.gmm, found.log_likelihood), (wanted.gmm, wanted.log_likelihood))
    same(found.history, wanted.history[:n])


def test_the_sizes():
    for n in (*SMALL, *LARGE):
        assert (size(n) == n) == (n in (64, 9_216))
    grown = [size(n) for n in range(1, 20_000)]
    assert all(n <= filled < max(1.5 * n, n + 2) for n, filled in enumerate(grown, 1))
    assert grown == sorted(grown)
    # Of the largest data no copy is made.
    assert size(300_001) == 300_001


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("n", [*SMALL, *LARGE])
def test_a_fit(n, weighted):
    x = clusters(n)
    weights = np.random.default_rng(1).exponential(size=n) if weighted else None
    start = gmmx.initialize(x, K)
    fitter = EMFitter(tol=1e-5, max_iter=10)
    wanted = jax.jit(lambda x, weights: fitter.fit(x, start, weights=weights))(x, weights)
    same_fits(fitted(fitter, x, start, weights=weights), wanted)


@pytest.mark.parametrize(
    "fitter",
    [
        GradientFitter(max_iter=5),
        GradientFitter(max_iter=5, batch_size=16, validation_fraction=0.3),
        Restarts(EMFitter(max_iter=5), 3, method="random"),
    ],
    ids=["gradient", "minibatches", "restarts"],
)
def test_fits_that_draw(fitter):
    """What they draw for a row does not depend on how many are filled in."""
    x = clusters(65)
    start = gmmx.initialize(x, K)
    wanted = jax.jit(lambda x: fitter.fit(x, start))(x)
    found = fitted(fitter, x, start)
    same_fits(found, wanted)
    assert found.start == wanted.start


@pytest.mark.parametrize("method", ["kmeans", "kmeans++", "random", "random_from_data"])
@pytest.mark.parametrize("n", SMALL)
def test_a_start(n, method):
    x, weights = clusters(n), np.random.default_rng(1).exponential(size=n)
    for counts in (None, weights):
        found = gmmx.initialize(x, K, method=method, weights=counts)
        start = jax.jit(lambda x, w: gmmx.initialize(x, K, method=method, weights=w))
        same(found, start(x, counts))


@pytest.mark.parametrize("n", [*SMALL, *LARGE])
def test_what_a_mixture_says_of_its_data(structures, n):
    gmm, x = structures["full"].mixture(K, D), clusters(n)

    def everything(x):
        z = gmm.predict_proba(x)
        return (
            gmm.log_prob(x), gmm.component_log_prob(x), z, gmm.predict(x),
            gmm.score(x), gmm.aic(x), gmm.bic(x), gmm.icl(x),
            gmmx.GaussianMixture.from_responsibilities(x, z),
        )  # fmt: skip

    same(everything(x), jax.jit(everything)(jnp.asarray(x)))


@pytest.mark.parametrize("n", SMALL)
def test_a_selection(n):
    """Its criteria are those of its mixtures and of n rows."""
    x = clusters(n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        chosen = gmmx.select(x, [1, K], "diag", fitter=EMFitter(max_iter=5))
    criteria = jax.jit(lambda gmm, x: (gmm.score(x), gmm.bic(x), gmm.icl(x), gmm.aic(x)))
    for row in chosen.candidates:
        found = (row.log_likelihood, row.bic, row.icl, row.aic)
        np.testing.assert_allclose(found, criteria(row.gmm, x), rtol=1e-12)
        np.testing.assert_allclose(row.result.log_likelihood, row.log_likelihood, rtol=1e-12)


def test_padded_rows_change_nothing_and_compile_once(compilations):
    gmm = gmmx.GaussianMixture.create(K, D, dtype=np.float64)
    score = jax.jit(lambda x, weights: gmm.score(x, weights=weights))
    x = clusters(20)
    found = []
    score(*gmmx.pad_rows(x, 8))
    with compilations() as compiled:
        for n in (17, 20, 24):
            rows, weights = gmmx.pad_rows(clusters(n), 24)
            assert rows.shape == (24, D) and np.asarray(weights).sum() == n
            found.append(score(rows, weights))
    assert not compiled
    for n, value in zip((17, 20, 24), found, strict=True):
        np.testing.assert_allclose(value, gmm.score(clusters(n)), rtol=1e-12)
    own = np.linspace(1, 2, 20)
    rows, weights = jax.jit(lambda x: gmmx.pad_rows(x, 8, weights=own))(x)
    np.testing.assert_array_equal(weights, np.append(own, np.zeros(4)))
    np.testing.assert_array_equal(rows[20:], np.tile(x[-1], (4, 1)))
    with pytest.raises(ValueError, match="at least one row"):
        gmmx.pad_rows(x[:0], 8)
