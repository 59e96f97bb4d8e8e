"""A mixture as a field of a larger module: trained, frozen and stored with the rest of it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gmmx

pytestmark = pytest.mark.usefixtures("optax_promotion")


class Flow(eqx.Module):
    """A linear map to a latent space, where the mixture is the density."""

    encode: eqx.nn.Linear
    prior: gmmx.GaussianMixture

    def __call__(self, x):
        return self.prior.log_prob(self.encode(x)) + log_determinant(self.encode)


class FrozenPrior(Flow):
    """The same with a prior that is not trained: one call more."""

    def __call__(self, x):
        prior = jax.lax.stop_gradient(self.prior)
        return prior.log_prob(self.encode(x)) + log_determinant(self.encode)


def log_determinant(encode):
    (a, b), (c, d) = encode.weight
    return jnp.log(jnp.abs(a * d - b * c))


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(80, 2)) + 3.0 * rng.integers(0, 2, size=(80, 1)))


def made(structure, cls=Flow):
    encode = eqx.nn.Linear(2, 2, key=jax.random.key(0), dtype=jnp.float64)
    return cls(encode, structure.mixture(3, 2))


def trained(model, x, spec=eqx.is_inexact_array, steps=30, optimiser=None):
    """What the owner of a module writes anyway."""
    optimiser = optax.adam(0.02) if optimiser is None else optimiser
    moving, still = eqx.partition(model, spec)
    state = optimiser.init(moving)

    @eqx.filter_jit
    def step(moving, state):
        def loss(moving):
            return -jnp.mean(jax.vmap(eqx.combine(moving, still))(x))

        value, gradient = eqx.filter_value_and_grad(loss)(moving)
        updates, state = optimiser.update(gradient, state, moving)
        return eqx.apply_updates(moving, updates), state, value

    values = []
    for _ in range(steps):
        moving, state, value = step(moving, state)
        values.append(float(value))
    return eqx.combine(moving, still), values


def same(a, b):
    return [
        np.array_equal(p, q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]


def test_it_trains_with_the_rest(structure, x):
    model = made(structure)
    after, values = trained(model, x)
    assert values[-1] < values[0] - 0.1
    assert not any(same(model, after))
    # Whatever the optimiser wrote into the leaves is a mixture.
    assert (np.linalg.eigvalsh(after.prior.covariance()) > 0).all()
    np.testing.assert_allclose(after.prior.weights.sum(), 1, rtol=1e-12)


def test_it_is_frozen_by_stop_gradient_or_by_partition(structure, x):
    model = made(structure, FrozenPrior)
    after, values = trained(model, x)
    assert all(same(model.prior, after.prior)) and not any(same(model.encode, after.encode))
    model = made(structure)
    spec = eqx.tree_at(lambda m: m.prior, jax.tree.map(eqx.is_inexact_array, model), False)
    parted, others = trained(model, x, spec)
    assert all(same(model.prior, parted.prior))
    np.testing.assert_allclose(values, others, rtol=1e-12)


def test_one_leaf_is_frozen(structure, x):
    model = made(structure)
    spec = jax.tree.map(eqx.is_inexact_array, model)
    after, _ = trained(model, x, eqx.tree_at(lambda m: m.prior.logits, spec, False))
    assert same(model.prior, after.prior).count(True) == 1
    assert np.array_equal(model.prior.logits, after.prior.logits)


def test_the_whole_is_stored(structure, x, tmp_path):
    model, _ = trained(made(structure), x, steps=2)
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    # Read into a skeleton of shapes and dtypes, which has no numbers.
    skeleton = eqx.filter_eval_shape(made, structure)
    back = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", skeleton)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    assert all(same(model, back))
    np.testing.assert_array_equal(jax.vmap(back)(x), jax.vmap(model)(x))


def test_a_fit_inside_an_owners_step(x):
    """EM on detached codes in the midst of a jitted step: the mixture follows its encoder."""
    encode = eqx.nn.Linear(2, 2, key=jax.random.key(0), dtype=jnp.float64)
    model = Flow(encode, gmmx.initialize(jax.vmap(encode)(x), 2))

    @eqx.filter_jit
    def refit(model):
        codes = jax.lax.stop_gradient(jax.vmap(model.encode)(x))
        prior = gmmx.EMFitter(max_iter=20).fit(codes, model.prior).gmm
        return eqx.tree_at(lambda m: m.prior, model, prior)

    after = refit(model)
    codes = jax.vmap(encode)(x)
    assert after.prior.score(codes) > model.prior.score(codes)
    assert all(same(model.encode, after.encode))


@pytest.mark.parametrize("name", ["adam", "adamw", "lion"])
def test_a_weight_of_zero_is_left_alone(x, name):
    """Its logit is −∞, which weight decay would make NaN of: the mixture is masked from it."""
    prior = gmmx.GaussianMixture.from_parameters(
        [0.4, 0.6, 0.0], [[0.0, 0], [3, 3], [9, 9]], [np.eye(2)] * 3
    )
    model = Flow(eqx.nn.Linear(2, 2, key=jax.random.key(0), dtype=jnp.float64), prior)
    decayed = jax.tree.map(lambda _: True, eqx.filter(model, eqx.is_inexact_array))
    decayed = eqx.tree_at(lambda m: m.prior, decayed, False)
    settings = {} if name == "adam" else {"mask": decayed}
    after, values = trained(model, x, steps=3, optimiser=getattr(optax, name)(0.02, **settings))
    assert values[-1] < values[0] and after.prior.weights[2] == 0
    assert not np.isnan(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(after)])).any()
