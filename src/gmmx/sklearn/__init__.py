"""scikit-learn's estimator on this library's engine, and conversions to and from scikit-learn."""

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("gmmx.sklearn needs scikit-learn: pip install scikit-learn") from error

from ._convert import from_sklearn as from_sklearn
from ._convert import to_sklearn as to_sklearn
from ._estimator import GaussianMixture as GaussianMixture
