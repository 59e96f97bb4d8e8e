"""scikit-learn's own checks of an estimator: all of them, with no exceptions."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from gmmx.sklearn import GaussianMixture, GaussianMixtureClassifier


# As scikit-learn makes its own class for them, but diagonal, which compiles in half the time.
@parametrize_with_checks(
    [
        GaussianMixture(n_init=2, max_iter=5, covariance_type="diag"),
        GaussianMixture(n_init=2, max_iter=5, covariance_type="diag", allow_nan=True),
        GaussianMixtureClassifier(),
        GaussianMixtureClassifier(allow_nan=True),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
