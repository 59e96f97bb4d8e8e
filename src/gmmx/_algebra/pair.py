"""Two mixtures of the same space."""

from .. import _checks
from .._components import AbstractComponents, check_gaussian


def matched(
    p: AbstractComponents, q: AbstractComponents
) -> tuple[AbstractComponents, AbstractComponents]:
    """The two mixtures in the wider of their dtypes.

    **Raises:** `ValueError` where they have different numbers of features, or a background.
    """
    for gmm in (p, q):
        check_gaussian(gmm)
    if p.n_features != q.n_features:
        raise ValueError(
            f"p has {p.n_features} features and q has {q.n_features}; expected two mixtures of "
            "the same features. Take the marginal of one of them first."
        )
    p, q = _checks.same_dtype(p, q)
    return p, q
