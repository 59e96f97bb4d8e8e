"""What a fit leaves as it is: any of a mixture's weights, means and covariances."""

from collections.abc import Iterable

import equinox as eqx
import jax

from .._mixture import GaussianMixture

_NAMES = frozenset({"weights", "means", "covariances"})


def check_frozen(names: str | Iterable[str]) -> frozenset[str]:
    """The names as a set, refused where they are none or all of the parameters."""
    names = frozenset([names] if isinstance(names, str) else names)
    if names - _NAMES:
        raise ValueError(
            f"frozen={sorted(names)!r}; any of {sorted(_NAMES)} was wanted, the names of the "
            "mixture's parameters."
        )
    if names == _NAMES:
        raise ValueError("weights, means and covariances are all frozen: nothing is left to fit.")
    return names


def split(gmm: GaussianMixture, frozen: frozenset[str]) -> tuple[GaussianMixture, GaussianMixture]:
    """The model parted into what is fitted and what is frozen; `eqx.combine` joins them."""
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
