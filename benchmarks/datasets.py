"""Thirty-two data sets, half of them real, with the number of components that is fitted to each.

The real ones travel with scikit-learn and scikit-image, but for Old Faithful.
"""

from pathlib import Path

import numpy as np

FAITHFUL = Path(__file__).resolve().parent.parent / "tests" / "data" / "faithful.csv"
MOST = 3000
"""Rows of a data set"""


def _some(x, seed=0):
    """At most `MOST` of the rows, in random order."""
    return np.random.default_rng(seed).permutation(x)[:MOST]


def _principal(x, d):
    """The scores of the first d principal components."""
    x = x - x.mean(axis=0)
    return x @ np.linalg.svd(x, full_matrices=False)[2][:d].T


def _pixels(image):
    # Colours are whole numbers, of which dark corners have many equal ones.
    x = _some(image.reshape(-1, image.shape[-1]).astype(float))
    return x + np.random.default_rng(1).uniform(size=x.shape)


def _patches(image, d):
    grey = image.astype(float).mean(axis=-1)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (8, 8)).reshape(-1, 64)
    return _principal(_some(windows - windows.mean(axis=1, keepdims=True)), d)


def real():
    """Measurements and pictures: name, rows, number of components."""
    from skimage import data
    from sklearn import datasets

    faithful = np.loadtxt(FAITHFUL, delimiter=",", skiprows=1)
    cancer, wine = datasets.load_breast_cancer().data, datasets.load_wine().data
    digits = datasets.load_digits().data
    diabetes = datasets.load_diabetes(scaled=False).data
    standard = lambda x: (x - x.mean(axis=0)) / x.std(axis=0)  # noqa: E731
    return {
        "Old Faithful, 2": (faithful, 2),
        "Old Faithful, 3": (faithful, 3),
        "iris": (datasets.load_iris().data, 3),
        "wine": (_principal(standard(wine), 5), 3),
        "wine, five features": (wine[:, [0, 6, 9, 10, 12]], 3),
        "cancer, means": (cancer[:, :5], 3),
        "cancer, scores": (_principal(standard(cancer), 6), 4),
        "digits, 4 scores": (_principal(digits, 4), 10),
        "digits, 8 scores": (_principal(digits, 8), 10),
        "diabetes": (diabetes[:, [0, 2, 3, 8, 9]], 3),
        "colours of a portrait": (_pixels(data.astronaut()), 8),
        "colours of coffee": (_pixels(data.coffee()), 6),
        "colours of a cat": (_pixels(data.chelsea()), 5),
        "colours of a temple": (_pixels(datasets.load_sample_image("china.jpg")), 8),
        "patches of a temple": (_patches(datasets.load_sample_image("china.jpg"), 6), 6),
        "patches of a flower": (_patches(datasets.load_sample_image("flower.jpg"), 6), 5),
    }


def _mixture(rng, n, weights, means, covariances):
    labels = rng.choice(len(weights), size=n, p=weights)
    roots = np.linalg.cholesky(covariances)
    noise = rng.normal(size=(n, means.shape[1]))
    return means[labels] + np.einsum("nij,nj->ni", roots[labels], noise)


def _wishart(rng, k, d, condition):
    """Covariances of random orientation, of this condition number."""
    turns = np.linalg.qr(rng.normal(size=(k, d, d)))[0]
    scales = np.exp(rng.uniform(0, np.log(condition), size=(k, 1, d)))
    return (turns * scales) @ turns.transpose(0, 2, 1)


def _drawn(seed, n, k, d, apart, condition=4.0, equal=True):
    rng = np.random.default_rng(seed)
    weights = np.full(k, 1 / k) if equal else rng.dirichlet(np.ones(k))
    covariances = _wishart(rng, k, d, condition)
    return _mixture(rng, n, weights, apart * rng.normal(size=(k, d)), covariances), k


def _parallel():
    """Three blobs side by side, thirty times as long as wide, turned by 30 degrees."""
    rng = np.random.default_rng(20)
    turn = np.array(
        [[np.cos(np.pi / 6), -np.sin(np.pi / 6)], [np.sin(np.pi / 6), np.cos(np.pi / 6)]]
    )
    means = np.array([[0.0, -6], [0, 0], [0, 6]]) @ turn.T
    covariances = np.broadcast_to(turn @ np.diag([900.0, 1]) @ turn.T, (3, 2, 2))
    return _mixture(rng, 900, np.full(3, 1 / 3), means, covariances), 3


def _crossing():
    rng = np.random.default_rng(21)
    covariances = np.array([[[9, 8.8], [8.8, 9]], [[9, -8.8], [-8.8, 9]]])
    return _mixture(rng, 800, np.full(2, 0.5), np.zeros((2, 2)), covariances), 2


def _nested():
    rng = np.random.default_rng(22)
    covariances = np.stack([np.eye(3) * s for s in (25.0, 1.0, 0.04)])
    return _mixture(rng, 1200, np.array([0.5, 0.3, 0.2]), np.zeros((3, 3)), covariances), 3


def _heavy():
    """Four clusters of Student's t with three degrees of freedom."""
    rng = np.random.default_rng(23)
    means = 6 * rng.normal(size=(4, 2))
    noise = rng.normal(size=(1000, 2)) / np.sqrt(rng.chisquare(3, size=(1000, 1)) / 3)
    return means[rng.integers(4, size=1000)] + noise, 4


def _units():
    """Features in units that differ by a factor of a million."""
    x, k = _drawn(24, 900, 4, 3, 3.0)
    return x * np.array([1e-3, 1.0, 1e3]), k


def _rings():
    rng = np.random.default_rng(25)
    angle, radius = rng.uniform(0, 2 * np.pi, 1200), np.where(rng.random(1200) < 0.5, 1.0, 2.0)
    ring = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return ring + 0.08 * rng.normal(size=(1200, 2)), 12


def _roll():
    from sklearn.datasets import make_swiss_roll

    return make_swiss_roll(1500, noise=0.3, random_state=26)[0], 12


def _moons():
    from sklearn.datasets import make_moons

    return make_moons(800, noise=0.08, random_state=27)[0], 6


def _skewed():
    rng = np.random.default_rng(28)
    return np.exp(_mixture(rng, 900, np.full(3, 1 / 3), 2 * rng.normal(size=(3, 2)),
                           _wishart(rng, 3, 2, 4.0) / 8)), 5  # fmt: skip


def made():
    """Simulated: name, rows, number of components."""
    return {
        "apart": _drawn(1, 600, 3, 2, 6.0),
        "overlapping": _drawn(2, 1000, 3, 2, 1.5),
        "many in a plane": _drawn(3, 1600, 16, 2, 8.0),
        "unequal": _drawn(4, 1200, 6, 3, 4.0, equal=False),
        "elongated": _drawn(5, 1200, 4, 3, 5.0, condition=200.0),
        "eight dimensions": _drawn(6, 1500, 6, 8, 2.0, condition=30.0),
        "sixteen dimensions": _drawn(7, 2000, 4, 16, 1.2, condition=10.0),
        "parallel": _parallel(),
        "crossing": _crossing(),
        "nested": _nested(),
        "heavy tails": _heavy(),
        "units": _units(),
        "rings": _rings(),
        "roll": _roll(),
        "moons": _moons(),
        "skewed": _skewed(),
    }
