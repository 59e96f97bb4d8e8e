"""pomegranate, which runs on PyTorch."""

import torch
from pomegranate.distributions import Normal
from pomegranate.gmm import GeneralMixtureModel
from protocol import serve, versions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class RegularisedNormal(Normal):
    """A normal distribution that adds ε to its variances, as the other libraries do."""

    reg_covar = 0.0

    def from_summaries(self):
        super().from_summaries()
        self.covs += self.reg_covar * torch.eye(self.d, device=self.covs.device)
        self._reset_cache()


def model(arrays, options):
    normals = [
        RegularisedNormal(mean, covariance)
        for mean, covariance in zip(arrays["means"], arrays["covariances"], strict=True)
    ]
    for normal in normals:
        normal.reg_covar = options["reg_covar"]
    steps = options["iterations"]
    mixture = GeneralMixtureModel(
        normals, arrays["weights"], max_iter=steps, tol=-float("inf"), check_data=False
    )
    return mixture.to(DEVICE)


def finish():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def train(arrays, options):
    if options["covariance_type"] != "full":
        raise NotImplementedError("only full covariances are compared")
    x = torch.from_numpy(arrays["x"]).to(DEVICE)

    def call():
        fitted = model(arrays, options).fit(x)
        finish()
        return fitted

    def outcome(fitted):
        found = {
            "weights": fitted.priors.cpu().numpy(),
            "means": torch.stack([normal.means for normal in fitted.distributions]).cpu().numpy(),
            "covariances": torch.stack([n.covs for n in fitted.distributions]).cpu().numpy(),
        }
        return found, {"n_iter": options["iterations"]}

    return call, outcome


def predict(arrays, options):
    x, mixture = torch.from_numpy(arrays["x"]).to(DEVICE), model(arrays, options)

    def call():
        labels = mixture.predict(x)
        finish()
        return labels

    return call, lambda labels: ({"labels": labels.cpu().numpy()}, {})


if __name__ == "__main__":
    name = "CPU" if DEVICE == "cpu" else torch.cuda.get_device_name()
    about = {"versions": versions("torch", "pomegranate"), "device": name}
    serve({task.__name__: task for task in (train, predict)}, about)
