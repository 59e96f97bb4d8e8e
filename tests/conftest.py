"""How every test runs, and the registry of covariance structures that the contract runs over."""

import contextlib
import functools
import os

# Before JAX starts: two devices on the host, so that nothing quietly relies on there being one.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
).strip()

import dataclasses
from collections.abc import Callable, Iterator

import hypothesis
import jax
import numpy as np
import pytest
import scipy.linalg
from jax._src import compiler
from jaxtyping import install_import_hook

# Both precisions in one process: what is asked for in float32 has to stay in float32.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Annotated shapes and dtypes are checked at every call. Before anything imports the package.
with install_import_hook("gmmx", "typechecking.check"):
    import gmmx
    from gmmx._covariance import structure_named

# A second run loads the programs of the first; GMMX_CACHE=0 compiles all of them anew.
gmmx.enable_compilation_cache()

# The same examples on every run, and no limit that a busy machine would break.
hypothesis.settings.register_profile(
    "gmmx",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("gmmx")


@dataclasses.dataclass(frozen=True)
class Structure:
    """What the contract has to know of a structure: a new one is a row of `STRUCTURES`."""

    name: str
    natural: Callable[[np.ndarray], np.ndarray]
    """The structure's covariances, in its natural shape, from dense ones (k d d)"""
    dense: Callable[[np.ndarray, int, int], np.ndarray]
    """Dense covariances (k d d) from natural ones, k and d"""
    n_parameters: Callable[[int, int], int]
    """Free covariance parameters of k components in d dimensions"""
    leaf: Callable[[np.ndarray], np.ndarray] | None = None
    """The structure's one leaf, from natural covariances; by the library itself if there is none"""

    def parameters(self, k: int, d: int, seed: int = 0) -> tuple[np.ndarray, ...]:
        """Random weights, means and covariances in float64."""
        rng = np.random.default_rng(seed)
        weights = rng.dirichlet(np.full(k, 5.0))
        means = 2 * rng.normal(size=(k, d))
        root = rng.normal(size=(k, d, d)) / np.sqrt(d)
        return weights, means, self.natural(root @ root.transpose(0, 2, 1) + 0.3 * np.eye(d))

    def of(self, weights, means, covariances, dtype=np.float64) -> gmmx.GaussianMixture:
        """The mixture of these parameters, made in NumPy: nothing is compiled."""
        if self.leaf is None:
            parameters = (np.asarray(v, dtype) for v in (weights, means, covariances))
            return gmmx.GaussianMixture.from_parameters(*parameters, self.name)
        with np.errstate(divide="ignore"):
            leaves = np.log(weights), means, self.leaf(np.asarray(covariances, float))
        logits, means, leaf = (jax.device_put(np.asarray(v, dtype)) for v in leaves)
        return gmmx.GaussianMixture(logits, means, structure_named(self.name)(leaf))

    def mixture(self, k: int, d: int, dtype=np.float64, seed: int = 0) -> gmmx.GaussianMixture:
        """A random mixture."""
        return self.of(*self.parameters(k, d, seed), dtype)


def log_cholesky(covariances: np.ndarray) -> np.ndarray:
    """The Cholesky factors of precisions, with their diagonals in logarithms."""
    if covariances.ndim == 3:
        return np.stack([log_cholesky(covariance) for covariance in covariances])
    root = np.linalg.cholesky(covariances)
    factor = scipy.linalg.solve_triangular(root, np.eye(len(root)), lower=True)
    return np.tril(factor, -1) + np.diag(np.log(np.diagonal(factor)))


STRUCTURES = {
    "full": Structure(
        "full",
        natural=lambda dense: dense,
        dense=lambda natural, k, d: natural,
        n_parameters=lambda k, d: k * d * (d + 1) // 2,
        leaf=log_cholesky,
    ),
    "tied": Structure(
        "tied",
        natural=lambda dense: dense[0],
        dense=lambda natural, k, d: np.broadcast_to(natural, (k, d, d)),
        n_parameters=lambda k, d: d * (d + 1) // 2,
        leaf=log_cholesky,
    ),
    "diag": Structure(
        "diag",
        natural=lambda dense: np.diagonal(dense, axis1=1, axis2=2),
        dense=lambda natural, k, d: natural[:, :, None] * np.eye(d),
        n_parameters=lambda k, d: k * d,
        leaf=lambda variances: -np.log(variances) / 2,
    ),
    "spherical": Structure(
        "spherical",
        natural=lambda dense: np.trace(dense, axis1=1, axis2=2) / dense.shape[-1],
        dense=lambda natural, k, d: natural[:, None, None] * np.eye(d),
        n_parameters=lambda k, d: k,
        leaf=lambda variances: -np.log(variances) / 2,
    ),
}


def pytest_collection_modifyitems(config, items):
    """Leave out what the contract of the operations would only repeat."""
    from operations import is_repeated

    repeated = []
    for item in items:
        if item.path.stem in ("test_operations", "test_extending") and hasattr(item, "callspec"):
            given = item.callspec.params
            if "operation" in given:
                test = item.originalname.replace("test_operations_", "test_", 1)
                structure = given.get("structure", "another")
                if is_repeated(test, structure, str(given["operation"])):
                    repeated.append(item)
    config.hook.pytest_deselected(items=repeated)
    items[:] = [item for item in items if item not in set(repeated)]


# Files whose subject is how the engine rounds, or which compare two programs to the last digit.
# Compiling is most of the time of all others.
COMPILED_WELL = {
    "test_bad_input", "test_checkpoint", "test_em", "test_fit", "test_float32", "test_gradient",
    "test_hang", "test_raw", "test_sharding", "test_squarem",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quick_files(request):
    with contextlib.nullcontext() if request.module.__name__ in COMPILED_WELL else quick_programs():
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Each compiled program keeps memory maps, of which a process may have 65,530 on Linux."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session", params=STRUCTURES)
def structure(request) -> Structure:
    return STRUCTURES[request.param]


@pytest.fixture(scope="session")
def structures() -> dict[str, Structure]:
    return STRUCTURES


@pytest.fixture(scope="session", params=["float32", "float64"])
def dtype(request) -> np.dtype:
    return np.dtype(request.param)


@contextlib.contextmanager
def count_programs() -> Iterator[list[str]]:
    """Counts the programs that XLA compiles, or that are fetched from the cache on disk."""
    counted = []

    def listen(name: str, seconds: float, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            counted.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def compilations() -> Callable[[], contextlib.AbstractContextManager[list[str]]]:
    return count_programs


@pytest.fixture
def optax_promotion():
    """Optax raises Python floats to integer powers, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


# What makes compiling three times as quick for a program that is run once.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@functools.cache
def quick_options() -> dict[str, object]:
    """These options; none for an older XLA, which lacks one of them."""
    try:
        jax.jit(lambda: 0, compiler_options=QUICK)()
    except jax.errors.JaxRuntimeError:
        return {}
    return QUICK


@contextlib.contextmanager
def quick_programs() -> Iterator[None]:
    """For what is compiled to be run once. JAX has no public setting for all programs of a test."""
    options, soon = compiler.get_compile_options, quick_options()

    def quick(*args, env_options_overrides=None, **kwargs):
        overrides = soon | dict(env_options_overrides or {})
        return options(*args, env_options_overrides=overrides, **kwargs)

    compiler.get_compile_options = quick
    try:
        yield
    finally:
        compiler.get_compile_options = options


@pytest.fixture(scope="session")
def blobs() -> np.ndarray:
    """Three well separated clusters of different shapes, 300 points in 3 dimensions."""
    rng = np.random.default_rng(1)
    centres = np.array([[0.0, 0, 0], [12, 0, 4], [0, 14, -6]])
    roots = np.array([np.eye(3), [[1.5, 0, 0], [0.8, 0.7, 0], [0, 0, 1]], np.diag([0.6, 1, 2])])
    noise = rng.normal(size=(3, 100, 3))
    return (centres[:, None] + noise @ roots.transpose(0, 2, 1)).reshape(300, 3)
