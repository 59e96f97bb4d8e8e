"""A fit that was killed and resumed ends as if it had not been: to the last bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gmmx
from gmmx import Checkpoint, EMFitter, FitState, GradientFitter, Restarts
from gmmx._fit.base import _prepare
from gmmx._fit.checkpoint import Journal

pytestmark = [
    pytest.mark.usefixtures("optax_promotion"),
    pytest.mark.filterwarnings("ignore::gmmx.FitWarning"),
]

FITTERS = {
    "em": EMFitter(tol=1e-9, max_iter=60),
    "gradient": GradientFitter(
        optax.adam, learning_rate=0.02, max_iter=60, batch_size=64, validation_fraction=0.2
    ),
    "restarts": Restarts(EMFitter(tol=1e-9, max_iter=60), 3),
}


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(0, 1, (150, 2)), rng.normal(3, 2, (150, 2))])


@pytest.fixture
def start(x):
    return gmmx.initialize(x, 2, method="random")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.ckpt"


def same(a, b):
    """Equal results, to the last bit."""
    leaves = jax.tree.leaves(a), jax.tree.leaves(b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(p).tobytes() == np.asarray(q).tobytes() for p, q in zip(*leaves, strict=True)
    )


@pytest.fixture(autouse=True)
def single_steps(monkeypatch):
    """Every block one step, so that a fit can be stopped at any."""
    monkeypatch.setattr(gmmx._fit.base, "_BLOCK_SECONDS", 0.0)


def stop_at(n_iter):
    return lambda state: bool(state.n_iter >= n_iter)


# Killed as a machine is taken away: no handler runs.
PROGRAM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import conftest, gmmx, jax, numpy as np, test_checkpoint as t
x = np.load({data!r})
start = gmmx.initialize(x, 2, method="random")

def kill(state):
    if state.n_iter >= 7:
        os.kill(os.getpid(), signal.SIGKILL)

gmmx._fit.base._BLOCK_SECONDS = 0.0
with jax.numpy_dtype_promotion("standard"):
    t.FITTERS[{which!r}].fit(x, start, key=jax.random.key(3), callback=kill,
                             checkpoint=gmmx.Checkpoint({path!r}, every=0))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
@pytest.mark.parametrize("which", ["em", "gradient"])
def test_a_killed_fit_resumes(which, x, start, path, tmp_path):
    data = tmp_path / "x.npy"
    np.save(data, x)
    program = PROGRAM.format(
        tests=str(Path(__file__).parent), data=str(data), which=which, path=str(path)
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    seen = []
    resumed = FITTERS[which].fit(
        x, start, key=jax.random.key(3), checkpoint=Checkpoint(path),
        callback=lambda state: seen.append(int(state.n_iter)),
    )  # fmt: skip
    assert seen[0] == 8 and len(seen) > 3
    assert same(resumed, FITTERS[which].fit(x, start, key=jax.random.key(3)))


def test_restarts_resume_all_their_starts(x, start, path):
    fitter = FITTERS["restarts"]
    fitter.fit(x, start, callback=stop_at(7), checkpoint=Checkpoint(path))
    seen = []
    resumed = fitter.fit(x, start, checkpoint=Checkpoint(path), callback=seen.append)
    assert seen[0].n_iter == 8
    assert same(resumed, fitter.fit(x, start))


def test_a_checkpoint_changes_nothing(x, start, path):
    fitter = FITTERS["em"]
    assert same(fitter.fit(x, start, checkpoint=Checkpoint(path)), fitter.fit(x, start))


def test_an_ended_fit_gives_its_result_again(x, start, path):
    fitter = FITTERS["em"]
    first = fitter.fit(x, start, checkpoint=Checkpoint(path))
    steps = []
    again = fitter.fit(x, start, checkpoint=Checkpoint(path), callback=steps.append)
    assert same(first, again) and not steps


def test_with_more_steps_it_goes_on(x, start, path):
    EMFitter(tol=0, max_iter=5).fit(x, start, checkpoint=Checkpoint(path))
    more = EMFitter(tol=0, max_iter=12).fit(x, start, checkpoint=Checkpoint(path))
    assert more.n_iter == 12
    assert same(more, EMFitter(tol=0, max_iter=12).fit(x, start))


def test_ctrl_c_keeps_the_last_state(x, start, path):
    def interrupt(state):
        if state.n_iter >= 4:
            raise KeyboardInterrupt

    fitter = FITTERS["em"]
    stopped = fitter.fit(x, start, callback=interrupt, checkpoint=Checkpoint(path, every=1e9))
    assert stopped.status == gmmx.Status.interrupted and stopped.n_iter == 4
    seen = []
    resumed = fitter.fit(x, start, callback=seen.append, checkpoint=Checkpoint(path))
    assert seen[0].n_iter == 5
    assert same(resumed, fitter.fit(x, start))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(optax.cosine_decay_schedule(0.05, 40), mu_dtype="bfloat16"),
        optax.chain(optax.clip_by_global_norm(1.0), optax.noisy_sgd(0.01, key=7)),
    ],
    ids=["bfloat16", "noise"],
)
def test_states_of_optimisers_are_kept_whole(x, start, path, optimizer):
    fitter = GradientFitter(optimizer, max_iter=30)
    fitter.fit(x, start, callback=stop_at(5), checkpoint=Checkpoint(path))
    resumed = fitter.fit(x, start, checkpoint=Checkpoint(path))
    assert same(resumed, fitter.fit(x, start))


# Another fit's checkpoint


@pytest.fixture
def begun(x, start, path):
    """Keywords of a fit that has a checkpoint."""
    weights = np.linspace(1, 2, len(x))
    arguments = {"x": x, "gmm": start, "weights": weights, "key": jax.random.key(0)}
    EMFitter(max_iter=3).fit(**arguments, checkpoint=Checkpoint(path))
    return arguments


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.update(x=a["x"] + 1e-12), "the data differ"),
        (lambda a: a.update(x=a["x"][:-1], weights=a["weights"][:-1]), "the data differ"),
        (lambda a: a.update(weights=None), "the sample weights differ"),
        (lambda a: a.update(weights=a["weights"] ** 2), "the sample weights differ"),
        (lambda a: a.update(key=jax.random.key(1)), "the key differ"),
        (
            lambda a: a.update(gmm=gmmx.initialize(a["x"], 2, "diag")),
            "the starting mixture differ",
        ),
    ],
)
def test_other_data_are_refused(begun, path, change, message):
    change(begun)
    with pytest.raises(gmmx.FileError, match=rf"fit\.ckpt.*{message}.*delete the file"):
        EMFitter(max_iter=3).fit(**begun, checkpoint=Checkpoint(path))


def schedule(rate):
    return lambda step: rate / (1 + step)


def keyword(rate):
    def value(step, *, rate=rate):
        return rate

    return value


def of_global(rate):
    """A schedule that reads a global, as one of a script does."""
    names = {"RATE": rate}
    exec("def value(step): return RATE", names)
    return names["value"]


class Decay:
    """A schedule that is an object."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate / (1 + step)


def rates(one, other):
    return tuple(GradientFitter(learning_rate=rate) for rate in (one, other))


@pytest.mark.parametrize(
    "one, other, message",
    [
        (EMFitter(tol=1e-3), EMFitter(tol=1e-4), r"tol was 0\.001, is 0\.0001"),
        (EMFitter(), EMFitter(frozen="means"), "frozen was"),
        (EMFitter(), GradientFitter(), "fitter was gmmx._fit.em.EMFitter, is"),
        (Restarts(EMFitter(), 2), Restarts(EMFitter(), 3), "n_init was"),
        (GradientFitter(optax.sgd(0.1)), GradientFitter(optax.sgd(0.2)), "optimizer was"),
        (GradientFitter(optax.adam), GradientFitter(optax.lion), "optimizer was"),
        (
            GradientFitter(learning_rate=schedule(0.1)),
            GradientFitter(learning_rate=schedule(0.2)),
            "learning_rate was",
        ),
        (
            GradientFitter(learning_rate=lambda step: 0.1),
            GradientFitter(learning_rate=lambda step: 0.2),
            "learning_rate was",
        ),
        # The same instructions with other names, in a nested function or not.
        (*rates(lambda step: jnp.sin(step), lambda step: jnp.cos(step)), "learning_rate was"),
        (
            *rates(
                lambda step: (lambda s: jnp.sin(s) + 1)(step),
                lambda step: (lambda s: jnp.sin(s) + 2)(step),
            ),
            "learning_rate was",
        ),
        (*rates(keyword(0.1), keyword(0.2)), "learning_rate was"),
        (*rates(of_global(0.1), of_global(0.2)), "learning_rate was"),
        (*rates(Decay(0.1), Decay(0.2)), "learning_rate was"),
        (*rates(jax.jit(schedule(0.1)), jax.jit(schedule(0.2))), "learning_rate was"),
        (*rates(jnp.sin, jnp.cos), "learning_rate was"),
        (*rates(lambda step: step / 2**60, lambda step: step / (2**60 + 1)), "learning_rate was"),
    ],
)
def test_other_settings_are_refused(x, start, path, one, other, message):
    # The first state is written before the first step, and is enough here: nothing is compiled.
    arguments = jnp.asarray(x), start, None, jax.random.key(0)
    state = FitState.begin(start, None, start.dtype)
    Journal(Checkpoint(path), one.without_limit(), *arguments).begin(state)
    with pytest.raises(gmmx.FileError, match=message):
        other.fit(x, start, checkpoint=Checkpoint(path))


def test_the_same_settings_are_known_in_another_process(tmp_path):
    """Whatever their order in memory: else a killed fit could not resume."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import conftest, json, optax, jax, jax.numpy as jnp, test_checkpoint as t\n"
        "from gmmx._fit.checkpoint import _describe\n"
        "settings = [optax.adamw(optax.cosine_decay_schedule(0.1, 40)), optax.lion, t.Decay(0.1),\n"
        "    jax.jit(t.schedule(0.1)), jnp.sin, lambda step: step in {'a', 'b', 'c'}]\n"
        "print(json.dumps([_describe(some) for some in settings]))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert told[0] == told[1] and len(told[0]) > 500


def test_more_steps_than_max_iter_are_refused(x, start, path):
    EMFitter(tol=0, max_iter=5).fit(x, start, checkpoint=Checkpoint(path))
    fitter = EMFitter(tol=0).without_limit()
    x, key = jnp.asarray(x), jax.random.key(0)
    journal = Journal(Checkpoint(path), fitter, x, start, None, key)
    _, like = _prepare(fitter, x, start, None, key, fitter.ladder(x, start))
    with pytest.raises(gmmx.FileError, match=r"has made 5 steps, more than max_iter=4\. Raise"):
        journal.resume(like, 4)
    resumed = journal.resume(like, 5)
    assert resumed is not None and resumed[0].n_iter == 5


# Files that are no checkpoint


def test_a_model_is_no_checkpoint(x, start, path):
    gmmx.save(path, start)
    with pytest.raises(gmmx.FileError, match=r"names the format 'gmmx\.GaussianMixture'"):
        EMFitter().fit(x, start, checkpoint=Checkpoint(path))
    EMFitter().fit(x, start, checkpoint=Checkpoint(path.with_name("other")))
    with pytest.raises(gmmx.FileError, match=r"names the format 'gmmx\.Checkpoint'"):
        gmmx.load(path.with_name("other"))


def test_a_damaged_checkpoint_is_refused(begun, path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    spoilt = [
        content[:-1],
        content[:20],
        b"",
        content.replace(b"state.gmm.means", b"state.gmm.meant"),
        content.replace(b'"F64","shape":[2,2]', b'"I64","shape":[2,2]'),
        content.replace(b'"F64","shape":[2,2]', b'"F64","shape":[4,1]'),
        content[: 8 + length].replace(b"identity", b"identitx") + content[8 + length :],
    ]
    for some in spoilt:
        assert some != content
        path.write_bytes(some)
        with pytest.raises(gmmx.FileError):
            EMFitter(max_iter=3).fit(**begun, checkpoint=Checkpoint(path))


def test_where_it_cannot_be_written_the_fit_does_not_begin(x, start, tmp_path):
    steps = []
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        EMFitter().fit(
            x, start, callback=steps.append, checkpoint=Checkpoint(tmp_path / "no" / "fit.ckpt")
        )
    assert not steps


def test_a_disk_that_fills_up_does_not_end_the_fit(x, start, path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    def fill(state):
        monkeypatch.setattr(os, "fsync", full_disk)

    with pytest.warns(gmmx.FitWarning, match="checkpoint was not written.*No space left"):
        result = EMFitter().fit(x, start, callback=fill, checkpoint=Checkpoint(path))
    assert same(result, EMFitter().fit(x, start))


def test_checkpoints_are_refused_inside_a_transformation(x, start, path):
    with pytest.raises(ValueError, match="no checkpoints"):
        jax.jit(lambda g: EMFitter().fit(x, g, checkpoint=Checkpoint(path)))(start)
    with pytest.raises(ValueError, match="every=-1"):
        Checkpoint(path, every=-1)
