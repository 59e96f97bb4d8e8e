"""Which kind of rows a fit has, and by which ways its steps may take them."""

from jaxtyping import Array, Float

from .._components import AbstractComponents
from .._data import Data, Samples
from .alike import AlikeRows
from .eliminated import MOST, Eliminated
from .ladder import Ladder
from .observed import ObservedRows, Sequential, check_dense
from .rows import AbstractRows, Rows


def ladder_of(gmm: AbstractComponents, x: Samples, n: int, products: int) -> Ladder:
    """The ways over n rows at a time, in passes of so many products; see `Ladder.of`."""
    if not isinstance(x, Data) or x.patterns is not None:
        return Ladder.of(gmm, n, products)
    structure, d = type(gmm.structure), gmm.n_features
    if products == 1 or structure.axis_aligned or x.projection is not None or d > MOST:
        return Ladder((Sequential,), 0, (0,))
    return Ladder((Eliminated, Sequential), 0, (0, 0))


def rows_of(
    x: Samples,
    gmm: AbstractComponents,
    weights: Float[Array, " n"] | None,
    ladder: Ladder,
    keep: bool = True,
) -> AbstractRows:
    """The rows of a fit of mixtures like this one."""
    if isinstance(x, Data):
        check_dense(gmm)
        return (ObservedRows if x.patterns is None else AlikeRows).of(x, weights, gmm)
    return Rows.of(x, weights, ladder, gmm, keep)
