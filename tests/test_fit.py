"""What every fitter does: it is watched, stopped, transformed, and compiled once."""

import signal
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gmmx
from gmmx import EMFitter, GradientFitter, Restarts, Status

K, D = 2, 2

# Fitters that do not rest before they are told to.
FITTERS = {
    "em": EMFitter(tol=0, max_iter=1000),
    "gradient": GradientFitter(tol=0, patience=10_000, max_iter=1000),
    "restarts": Restarts(EMFitter(tol=0, max_iter=1000), 3),
}

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(params=FITTERS)
def fitter(request):
    return FITTERS[request.param]


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    return rng.normal(size=(50, D)) + 2.5 * rng.integers(0, 2, size=(50, 1))


@pytest.fixture(scope="module")
def gmm(x):
    return gmmx.initialize(x, K, method="random")


class Watch:
    """A callback that does something after the third block."""

    def __init__(self, then):
        self.then, self.seen = then, []

    def __call__(self, state):
        self.seen.append(int(state.n_iter))
        return self.then() if len(self.seen) == 3 else None


def press_ctrl_c():
    # Python's own handler, which a runner started in the background does not have.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def interrupt():
    raise KeyboardInterrupt


# What Ctrl-C does, and the exception that it becomes.
@pytest.mark.parametrize("how", [press_ctrl_c, interrupt])
def test_an_interrupted_fit_gives_back_its_best(fitter, x, gmm, how):
    watch = Watch(how)
    with pytest.warns(gmmx.FitWarning, match="interrupted"):
        result = fitter.fit(x, gmm, callback=watch)
    assert result.status == Status.interrupted and not result.converged
    assert result.n_iter == watch.seen[-1] < 1000 and len(watch.seen) == 3
    assert result.log_likelihood > gmm.score(x)
    assert result.log_likelihood >= np.max(result.history) - 1e-12
    assert len(result.history) == result.n_iter and np.isfinite(result.history).all()


class StoppedBeforeItsFirstStep(EMFitter):
    def update(self, state, data, weights, ladder):
        interrupt()


def test_a_fit_that_is_interrupted_as_it_compiles_gives_back_its_start(x, gmm):
    with pytest.warns(gmmx.FitWarning, match="After 0 steps the fit was interrupted"):
        result = StoppedBeforeItsFirstStep().fit(x, gmm, callback=lambda state: None)
    np.testing.assert_array_equal(result.gmm.means, gmm.means)
    assert result.n_iter == len(result.history) == 0
    np.testing.assert_allclose(result.log_likelihood, gmm.score(x), rtol=1e-12)


def test_a_callback_ends_the_fit(fitter, x, gmm):
    watch = Watch(lambda: True)
    with pytest.warns(gmmx.FitWarning):
        result = fitter.fit(x, gmm, callback=watch)
    assert len(watch.seen) == 3 and watch.seen == sorted(watch.seen)
    assert result.n_iter == watch.seen[-1] < 1000
    assert not result.converged and result.log_likelihood > gmm.score(x)


def test_a_callback_sees_the_whole_fit(x, gmm):
    watch = Watch(lambda: None)
    result = EMFitter().fit(x, gmm, callback=watch)
    alone = EMFitter().fit(x, gmm)
    assert watch.seen[-1] == result.n_iter
    np.testing.assert_array_equal(result.history, alone.history)


def test_progress_shows_the_likelihood(x, gmm, capsys):
    result = EMFitter().fit(x, gmm, progress=True)
    shown = capsys.readouterr().err
    assert f"{float(result.log_likelihood):.6f}" in shown and "log-likelihood" in shown
    EMFitter().fit(x, gmm)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("make", [EMFitter, lambda **limit: Restarts(EMFitter(**limit), 3)])
@pytest.mark.parametrize("max_iter", [5, 2500])
def test_a_fit_is_the_same_whether_it_is_watched_or_not(x, gmm, make, max_iter):
    """Unwatched a small fit is one program, up to some two thousand steps, and goes on after."""
    fitter = make(tol=0, max_iter=max_iter)
    with pytest.warns(gmmx.FitWarning, match=f"After {max_iter} steps max_iter was reached"):
        alone, watched = fitter.fit(x, gmm), fitter.fit(x, gmm, callback=lambda state: None)
    assert alone.n_iter == watched.n_iter == len(alone.history) == max_iter
    assert bool(alone.status == watched.status) and alone.start == watched.start
    np.testing.assert_allclose(alone.history, watched.history, rtol=1e-12)
    np.testing.assert_allclose(alone.log_likelihood, watched.log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(alone.gmm.means, watched.gmm.means, rtol=1e-9)


SWEEPS = {
    "em": (
        EMFitter,
        [
            {"tol": 1e-3, "max_iter": 20, "reg_covar": 1e-6},
            {"tol": 1e-5, "max_iter": 33, "reg_covar": 1e-3},
            {"tol": 1e-9, "max_iter": 500, "reg_covar": 0},
            {"tol": np.float32(1e-4), "max_iter": 7, "reg_covar": 1},
            {"tol": jnp.asarray(1e-4), "max_iter": 7, "reg_covar": np.asarray(1e-5)},
            {"tol": jnp.float32(1e-4), "max_iter": 7, "reg_covar": jnp.asarray(1e-5)},
        ],
    ),
    "gradient": (
        GradientFitter,
        [
            {"learning_rate": 0.05, "tol": 1e-3, "max_iter": 20, "reg_covar": 1e-6},
            {"learning_rate": 0.01, "tol": 1e-5, "max_iter": 33, "reg_covar": 1e-3},
            {"learning_rate": 0.002, "tol": 1e-9, "max_iter": 300, "patience": 40},
        ],
    ),
    "restarts": (
        lambda **settings: Restarts(EMFitter(**settings), 3),
        [
            {"tol": 1e-3, "max_iter": 20, "reg_covar": 1e-6},
            {"tol": 1e-5, "max_iter": 33, "reg_covar": 1e-3},
            {"tol": 0, "max_iter": 300, "reg_covar": 1e-2},
        ],
    ),
}


@pytest.mark.parametrize("which", SWEEPS)
def test_other_settings_compile_nothing_new(x, gmm, which, compilations):
    make, sweep = SWEEPS[which]

    def fit(x, settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gmmx.FitWarning)
            return make(**settings).fit(x, gmm)

    jax.clear_caches()
    with compilations() as first:
        fit(x[:-1], sweep[0])
    assert first, "a first fit was not seen to compile"
    for settings in sweep[1:]:
        with compilations() as again:
            fit(x[:-1], settings)
        assert not again, f"{settings} compiled {len(again)} programs"
    # The counter would have seen it: a size that was not met compiles.
    with compilations() as other:
        fit(x[:20], sweep[0])
    assert other


def test_lengths_share_programs(compilations):
    """A hundred lengths are eight sizes, in fits, starts, densities and criteria."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(768, D)) + 2.5 * rng.integers(0, 2, size=(768, 1))
    lengths = np.linspace(50, 768, 100).astype(int)
    assert len(set(lengths)) == 100
    start = gmmx.initialize(x, K)
    calls = {
        "fit": lambda x: EMFitter(max_iter=500).fit(x, start),
        "fit of weights": lambda x: EMFitter(max_iter=500).fit(x, start, weights=np.ones(len(x))),
        "initialize": lambda x: gmmx.initialize(x, K),
        "predict": start.predict,
        "predict_proba": start.predict_proba,
        "log_prob": start.log_prob,
        "score": start.score,
        "icl": start.icl,
        "noise_score": lambda x: start.noise_score(x, 0.5),
        "regress": lambda x: start.regress([0], x[:, :1]),
        "posterior": lambda x: start.posterior(x, None, 0.1).mean(),
        "from_responsibilities": lambda x: gmmx.GaussianMixture.from_responsibilities(
            x, np.full((len(x), K), 1 / K)
        ),
    }
    found = {}
    for name, call in calls.items():
        with compilations() as programs:
            for n in lengths:
                call(x[:n])
        found[name] = len(programs)
    # A fit is one program of each size, whether its rows have weights or not.
    assert found.pop("fit") <= 8 and found.pop("fit of weights") == 0, found
    # The others are one program of each size, `regress` two and one of no size.
    assert found["initialize"] > 0 and max(found.values()) <= 17, found


def test_settings_are_swept_under_vmap(x, gmm):
    """A tolerance or a regularisation is an array like any other."""
    reg_covar = jnp.array([1e-6, 1e-2, 1.0])
    together = jax.vmap(lambda reg: EMFitter(reg_covar=reg).fit(x, gmm))(reg_covar)
    for i, reg in enumerate(reg_covar):
        alone = EMFitter(reg_covar=reg).fit(x, gmm)
        np.testing.assert_allclose(together.log_likelihood[i], alone.log_likelihood, rtol=1e-12)


@pytest.fixture
def debug_nans():
    jax.config.update("jax_debug_nans", True)
    yield
    jax.config.update("jax_debug_nans", False)


@pytest.mark.usefixtures("debug_nans")
@pytest.mark.parametrize(
    "fitter", [EMFitter(), GradientFitter(max_iter=500), gmmx.Restarts(EMFitter(), 2)], ids=repr
)
def test_a_good_fit_computes_no_nan(x, fitter):
    def fit(x):
        return fitter.fit(x, gmmx.initialize(x, K)).log_likelihood

    np.testing.assert_allclose(fit(x), jax.jit(fit)(x), rtol=1e-6)


def test_vmap_equals_the_loop():
    """Over 100 data sets, over 20 starts, and over both."""
    rng = np.random.default_rng(0)
    sets = jnp.asarray(rng.normal(size=(100, 40, D)) + 4 * rng.integers(0, 2, size=(100, 40, 1)))
    keys = jax.random.split(jax.random.key(0), 20)
    fitter = EMFitter(max_iter=20)

    def fit(x, key):
        return fitter.fit(x, gmmx.initialize(x, K, method="random_from_data", key=key))

    @jax.jit
    def loop(sets, keys):
        return jax.lax.map(lambda x: jax.lax.map(lambda key: fit(x, key), keys), sets)

    over_starts = jax.vmap(fit, (None, 0))
    wanted = loop(sets, keys)
    for together, part in (
        (jax.jit(jax.vmap(fit, (0, None)))(sets, keys[0]), np.s_[:, 0]),
        (jax.jit(over_starts)(sets[0], keys), np.s_[0]),
        (jax.jit(jax.vmap(over_starts, (0, None)))(sets, keys), np.s_[:]),
    ):
        assert jax.tree.structure(together) == jax.tree.structure(wanted)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b[part], rtol=1e-7, atol=1e-7)
    assert float(jnp.mean(wanted.converged)) > 0.5


def test_a_loop_of_gradient_fits(x):
    starts = [gmmx.initialize(x, K, key=jax.random.key(seed)) for seed in range(3)]
    fitter = GradientFitter(max_iter=50)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    together = eqx.filter_vmap(lambda gmm: fitter.fit(x, gmm))(stack)
    for i, gmm in enumerate(starts):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gmmx.FitWarning)
            alone = fitter.fit(x, gmm)
        np.testing.assert_allclose(together.log_likelihood[i], alone.log_likelihood, rtol=1e-9)


def test_arguments_by_keyword_and_lists(x, gmm):
    by_position = EMFitter().fit(x, gmm)
    by_keyword = EMFitter().fit(x=x.tolist(), gmm=gmm, weights=[1] * len(x))
    np.testing.assert_allclose(by_keyword.log_likelihood, by_position.log_likelihood, rtol=1e-12)


def test_the_data_are_not_in_the_result(fitter, x, gmm):
    short = eqx.tree_at(lambda f: f.tol, fitter, 0.1) if hasattr(fitter, "tol") else fitter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        result = short.fit(x, gmm)
    assert all(leaf.size < x.size for leaf in jax.tree.leaves(result.gmm))
    assert len(x) not in {size for leaf in jax.tree.leaves(result) for size in leaf.shape}


def test_a_model_within_a_module_trains_over_all_leaves(x, gmm):
    """The owner of a mixture runs Optax over everything it holds."""

    class Owner(eqx.Module):
        gmm: gmmx.GaussianMixture
        shift: jax.Array

        def loss(self, x):
            return -self.gmm.score(x + self.shift)

    owner = Owner(gmm, jnp.zeros(D))
    optimiser = optax.adam(0.05)

    @jax.jit
    def step(owner, state):
        value, gradient = jax.value_and_grad(Owner.loss)(owner, x)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(owner, updates), state, value

    state, values = optimiser.init(owner), []
    for _ in range(100):
        owner, state, value = step(owner, state)
        values.append(float(value))
    assert values[-1] < values[0] - 0.01
