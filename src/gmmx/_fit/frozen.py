"""Parameters that a fit keeps fixed: any of weights, means and covariances."""

from collections.abc import Iterable

import equinox as eqx
import jax

from .._abstract_mixture import AbstractMixture

_NAMES = frozenset({"weights", "means", "covariances"})


def check_frozen(names: str | Iterable[str]) -> frozenset[str]:
    """The names as a set. Refused where one is unknown, or where all parameters are frozen."""
    names = frozenset([names] if isinstance(names, str) else names)
    if names - _NAMES:
        raise ValueError(
            f"frozen={sorted(names)!r}; expected any of {sorted(_NAMES)}, the parameters of the "
            "mixture."
        )
    if names == _NAMES:
        raise ValueError("weights, means and covariances are all frozen: nothing is left to fit.")
    return names


def keep(moved: AbstractMixture, gmm: AbstractMixture, frozen: frozenset[str]) -> AbstractMixture:
    """The moved model, what is frozen to the last digit as it was."""
    return eqx.combine(split(moved, frozen)[0], split(gmm, frozen)[1])


def split(gmm: AbstractMixture, frozen: frozenset[str]) -> tuple[AbstractMixture, AbstractMixture]:
    """The model in two parts, fitted and frozen; `eqx.combine` joins them."""
    free = sorted(_NAMES - frozen)
    spec = eqx.tree_at(
        lambda gmm: [leaf for name in free for leaf in gmm.parts()[name]],
        jax.tree.map(lambda _: False, gmm),
        replace_fn=lambda part: jax.tree.map(lambda _: True, part),
    )
    return eqx.partition(gmm, spec)
