"""A scikit-learn estimator that fits with gmmx, and conversions to and from scikit-learn."""

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("gmmx.sklearn needs scikit-learn: pip install 'gmmx[sklearn]'") from error

from ._classifier import GaussianMixtureClassifier as GaussianMixtureClassifier
from ._convert import from_sklearn as from_sklearn
from ._convert import to_sklearn as to_sklearn
from ._estimator import GaussianMixture as GaussianMixture
