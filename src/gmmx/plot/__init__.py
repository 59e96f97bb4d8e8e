"""Plots of mixtures, fits and selections, with matplotlib.

Each function draws into the given Axes, or into a new figure of pyplot, and returns the Axes. It
does not show or save anything, and does not change matplotlib's settings.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("gmmx.plot needs matplotlib: pip install 'gmmx[plot]'") from error

from ._density import density as density
from ._ellipses import ellipses as ellipses
from ._entropy import entropy as entropy
from ._histogram import histogram as histogram
from ._pairs import pairs as pairs
from ._responsibilities import responsibilities as responsibilities
from ._selection import selection as selection
from ._trace import trace as trace
from ._uncertainty import uncertainty as uncertainty
