"""Parameters that a fit keeps fixed: any of weights, means and covariances."""

from collections.abc import Iterable

import equinox as eqx
import jax

from .._mixture import GaussianMixture

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


def keep(moved: GaussianMixture, gmm: GaussianMixture, frozen: frozenset[str]) -> GaussianMixture:
    """The moved model, what is frozen to the last digit as it was."""
    return eqx.combine(split(moved, frozen)[0], split(gmm, frozen)[1])


def split(gmm: GaussianMixture, frozen: frozenset[str]) -> tuple[GaussianMixture, GaussianMixture]:
    """The model in two parts, fitted and frozen; `eqx.combine` joins them."""
    parts = {"weights": gmm.logits, "means": gmm.means, "covariances": gmm.structure}
    spec = eqx.tree_at(
        lambda g: (g.logits, g.means, g.structure),
        gmm,
        tuple(
            jax.tree.map(lambda _, free=name not in frozen: free, part)
            for name, part in parts.items()
        ),
    )
    return eqx.partition(gmm, spec)
