"""The command line: what it prints, writes and says, and the status it ends with."""

import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import gmmx

pl = pytest.importorskip("polars")
pytest.importorskip("typer")

from gmmx_cli import main  # noqa: E402

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (40, 2)), rng.normal((9, 5), (0.5, 2), (60, 2))])
    return pl.DataFrame(
        {"height": x[:, 0], "width": x[:, 1], "count": rng.integers(1, 4, 100), "kind": ["a"] * 100}
    )


@pytest.fixture
def folder(tmp_path, monkeypatch, frame):
    frame.write_csv(tmp_path / "data.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def gmmx_(capfd, monkeypatch):
    """The command: its exit status, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gmmx", *map(str, arguments)])
        x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
        status = 0
        with warnings.catch_warnings():
            warnings.simplefilter("default", gmmx.FitWarning)
            try:
                main()
            except SystemExit as end:
                status = end.code or 0
            finally:
                jax.config.update("jax_enable_x64", x64)
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def model(folder, frame):
    """A model of two columns, and the mixture in it."""
    x = frame.select("height", "width").to_numpy()
    result = gmmx.EMFitter().fit(x, gmmx.initialize(x, 2))
    gmmx.save("m.safetensors", result.gmm, feature_names=["height", "width"])
    return result.gmm


def ok(outcome):
    status, out, err = outcome
    assert status == 0, err
    return out


def refused(outcome, status=2):
    assert outcome[0] == status and outcome[1] == ""
    assert "Traceback" not in outcome[2]
    return " ".join(outcome[2].split())


# fit


@pytest.mark.parametrize("trainer", ["em", "gradient"])
def test_a_fit_is_that_of_the_library(gmmx_, folder, frame, trainer):
    columns = ["width", "height"]
    report = json.loads(
        ok(gmmx_(
            "fit", "data.csv", "-k", 2, "--columns", ",".join(columns), "--trainer", trainer,
            "--max-iter", 50, "--dtype", "float64", "--seed", 3, "--covariance", "diag",
            "--weights", "count", "--out", "m.safetensors", "--json",
        ))
    )  # fmt: skip
    x, weights = frame.select(columns).to_numpy(), frame["count"].to_numpy().astype(float)
    fit_key, start_key = jax.random.split(jax.random.key(3))
    start = gmmx.initialize(x, 2, "diag", key=start_key, weights=weights)
    fitter = {"em": gmmx.EMFitter, "gradient": gmmx.GradientFitter}[trainer](max_iter=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmmx.FitWarning)
        result = fitter.fit(x, start, weights=weights, key=fit_key)
    assert report["converged"] == bool(result.converged) and report["feature_names"] == columns
    np.testing.assert_allclose(report["log_likelihood"], result.log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(report["means"], result.gmm.means, rtol=1e-10)
    np.testing.assert_allclose(report["covariances"], result.gmm.covariances, rtol=1e-10)
    np.testing.assert_allclose(gmmx.load("m.safetensors").means, result.gmm.means, rtol=1e-10)


def test_results_and_messages_keep_apart(gmmx_, folder):
    columns = ("--columns", "height,width")
    _, out, err = gmmx_("fit", "data.csv", "-k", 2, *columns, "--max-iter", 1, "--n-init", 2)
    assert out.startswith("mixture") and "not converged after 1 steps" in out
    assert "mean height" in out and "BIC" in out
    assert "100 rows of height, width" in err and "Raise max_iter" in err


def test_a_failed_fit_has_status_one(gmmx_, folder):
    np.save("equal.npy", np.ones((20, 2)))
    said = refused(gmmx_("fit", "equal.npy", "-k", 2, "--reg-covar", 0), status=1)
    assert "raise reg_covar" in said


def test_a_fit_with_a_checkpoint_resumes(gmmx_, folder):
    fit = ("fit", "data.csv", "-k", 2, "--columns", "height,width", "--checkpoint", "fit.ckpt")
    first = ok(gmmx_(*fit, "--json"))
    assert json.loads(ok(gmmx_(*fit, "--json"))) == json.loads(first)
    assert "the checkpoint of another fit" in refused_late(gmmx_(*fit, "--seed", 1))


def refused_late(outcome):
    assert outcome[0] == 2 and "Traceback" not in outcome[2]
    return outcome[2]


# The formats


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".npy", ".npz"])
def test_every_format_is_read(gmmx_, model, frame, suffix):
    two = frame.select("height", "width")
    name = f"rows{suffix}"
    match suffix:
        case ".csv":
            two.write_csv(name)
        case ".tsv":
            two.write_csv(name, separator="\t")
        case ".parquet":
            two.write_parquet(name)
        case ".npy":
            np.save(name, two.to_numpy())
        case ".npz":
            np.savez(name, x=two.to_numpy(), y=np.ones(3))
    array = ("--array", "x") if suffix == ".npz" else ()
    report = json.loads(ok(gmmx_("score", "m.safetensors", name, *array, "--json")))
    np.testing.assert_allclose(report["log_likelihood"], model.score(two.to_numpy()), rtol=1e-12)
    np.testing.assert_allclose(report["bic"], model.bic(two.to_numpy()), rtol=1e-12)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".npy"])
def test_every_format_is_written(gmmx_, model, frame, suffix):
    name = f"labels{suffix}"
    assert ok(gmmx_("predict", "m.safetensors", "data.csv", "--out", name)) == ""
    labels = {
        ".csv": lambda: pl.read_csv(name)["component"].to_numpy(),
        ".tsv": lambda: pl.read_csv(name, separator="\t")["component"].to_numpy(),
        ".parquet": lambda: pl.read_parquet(name)["component"].to_numpy(),
        ".npy": lambda: np.load(name),
    }[suffix]()
    x = frame.select("height", "width").to_numpy()
    np.testing.assert_array_equal(labels, model.predict(x))


def test_rows_are_printed_as_csv(gmmx_, model, frame):
    x = frame.select("height", "width").to_numpy()
    text = ok(gmmx_("predict", "m.safetensors", "data.csv", "--proba"))
    np.testing.assert_allclose(
        pl.read_csv(io.StringIO(text)).to_numpy(), model.predict_proba(x), rtol=1e-12
    )
    text = ok(gmmx_("score", "m.safetensors", "data.csv", "--per-row"))
    np.testing.assert_allclose(
        pl.read_csv(io.StringIO(text))["log_density"], model.log_prob(x), rtol=1e-12
    )


def test_rows_are_printed_as_json(gmmx_, model, frame):
    x = frame.select("height", "width").to_numpy()
    for arguments, values in (
        (("predict", "m.safetensors", "data.csv"), {"component": model.predict(x)}),
        (("score", "m.safetensors", "data.csv", "--per-row"), {"log_density": model.log_prob(x)}),
    ):
        rows = json.loads(ok(gmmx_(*arguments, "--json")))
        assert rows.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_allclose(rows[name], value, rtol=1e-12)
    drawn = json.loads(ok(gmmx_("sample", "m.safetensors", "-n", 5, "--labels", "--json")))
    assert {name: len(column) for name, column in drawn.items()} == {
        "height": 5, "width": 5, "component": 5
    }  # fmt: skip


def test_samples_are_drawn_by_the_seed(gmmx_, model):
    text = ok(gmmx_("sample", "m.safetensors", "-n", 5, "--seed", 4, "--labels"))
    drawn = pl.read_csv(io.StringIO(text))
    x, labels = model.sample_with_labels(5, key=jax.random.key(4))
    assert drawn.columns == ["height", "width", "component"]
    np.testing.assert_allclose(drawn.select("height", "width").to_numpy(), x, rtol=1e-12)
    np.testing.assert_array_equal(drawn["component"], labels)


def test_info(gmmx_, model):
    report = json.loads(ok(gmmx_("info", "m.safetensors", "--json")))
    assert report["dtype"] == "float64" and report["gmmx_version"] == gmmx.__version__
    assert report["feature_names"] == ["height", "width"] and report["n_parameters"] == 11
    np.testing.assert_allclose(report["means"], model.means)
    assert "2 components, full, of 2 features" in ok(gmmx_("info", "m.safetensors"))


# Columns


def test_the_model_knows_its_columns(gmmx_, model, frame):
    """Whatever their order in the file, and whatever stands beside them."""
    frame.select("kind", "width", "height").write_csv("turned.csv")
    one, other = (
        json.loads(ok(gmmx_("score", "m.safetensors", name, "--json")))
        for name in ("data.csv", "turned.csv")
    )
    assert one == other
    frame.select(h=frame["height"], w=frame["width"]).write_csv("renamed.csv")
    said = refused(gmmx_("score", "m.safetensors", "renamed.csv"))
    assert "fitted to the columns height, width" in said and "--columns" in said
    named = ok(gmmx_("score", "m.safetensors", "renamed.csv", "--columns", "h,w", "--json"))
    assert json.loads(named) == one


# Mistakes

MISTAKES = {
    "text": ("a,b,c\n1,x,2\n3,y,4\n", "column 'b' holds 'x' in row 1.*--columns a,c"),
    "late text": ("a,b\n1,2\n3,?\n", r"column 'b' holds '\?' in row 2"),
    "ragged": ("a,b\n1,2\n3,4,5\n", "a row has more fields"),
    "a gap": ("a,b\n1,2\n3,\n5,6\n", "column 'b' is empty.* in 1 of 3 rows, first in row 2"),
    "NA": ("a,b\n1,2\nNA,4\n5,6\n", "column 'a' is empty"),
    "nan": ("a,b\n1,2\nnan,4\n5,6\n", "column 'a' is empty, NaN or infinite"),
    "infinity": ("a,b\n1,2\n5,inf\n", "column 'b' is empty, NaN or infinite"),
    "no header": ("1,2\n3,4\n5,6\n", "expected names of columns"),
    "semicolons": ("a;b\n1;2\n3;4\n", "semicolons"),
    "empty": ("", "is empty"),
    "no rows": ("a,b\n", "has no rows"),
    "too few": ("a,b\n1,2\n", "1 samples, fewer than the 2 components"),
    "not text": ("a,b\n\udcff\udcfe,1\n", "cannot be read as CSV"),
}


@pytest.mark.parametrize("which", MISTAKES)
def test_mistakes_in_a_csv(gmmx_, tmp_path, which):
    content, message = MISTAKES[which]
    path = tmp_path / "data.csv"
    path.write_text(content, errors="surrogateescape")
    said = refused(gmmx_("fit", path, "-k", 2))
    assert re.search(message, said), said


def test_spaces_and_missing_marks_in_a_csv(gmmx_, model, tmp_path):
    path = tmp_path / "spaced.csv"
    path.write_text("height, width\n 1.5, 2\n3, 4e0 \n")
    report = json.loads(ok(gmmx_("score", "m.safetensors", path, "--json")))
    np.testing.assert_allclose(report["log_likelihood"], model.score([[1.5, 2], [3, 4]]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["fit", "data.csv"], "Missing option '--components'"),
        (["fit", "data.csv", "-k", "0"], "--components"),
        (["fit", "missing.csv", "-k", "2"], r"there is no file missing\.csv"),
        (["fit", ".", "-k", "2"], "is a folder"),
        (["fit", "junk.parquet", "-k", "2"], "cannot be read as Parquet"),
        (["fit", "junk.npy", "-k", "2"], "is damaged"),
        (["fit", "junk.npz", "-k", "2"], "is damaged"),
        (["fit", "header.npy", "-k", "2"], "is damaged"),
        (["fit", "junk.xlsx", "-k", "2"], r"ends in '\.xlsx'; expected \.csv"),
        (["fit", "cube.npy", "-k", "2"], r"of shape \(2, 2, 2\)"),
        (["fit", "two.npz", "-k", "2"], "holds the arrays 'a', 'b'. Choose one: --array NAME"),
        (["fit", "data.csv", "-k", "2", "--columns", "heigth"], "has no column 'heigth'. It has"),
        (["fit", "data.csv", "-k", "2", "--weights", "kind"], "'kind' holds 'a'"),
        (["fit", "flat.npy", "-k", "2", "--covariance", "banded"], "'banded' is unknown"),
        (["fit", "flat.npy", "-k", "2", "--trainer", "sgd"], "'sgd' is not one of"),
        (["fit", "flat.npy", "-k", "2", "--tol", "-1"], "zero or positive one"),
        (["fit", "flat.npy", "-k", "2", "--out", "m.pkl"], r"ends in \.safetensors"),
        (["fit", "flat.npy", "-k", "2", "--out", "no/m.safetensors"], "there is no folder"),
        (["fit", "flat.npy", "-k", "2", "--plot", "no/fit.png"], "there is no folder"),
        (["fit", "flat.npy", "-k", "2", "--plot", "fit.xyz"], r"fit\.xyz: .* ends in \.png"),
        (["fit", "flat.npy", "-k", "2", "--checkpoint", "."], "is a folder"),
        (["fit", "data.csv", "-k", "2", "--columns", "width,width"], "'width' is named more than"),
        (["fit", "data.csv", "-k", "2", "--weights", "count"], "--columns height,width$"),
        (["select", "flat.npy", "-k", "2", "--plot", "."], "ends in"),
        (["select", "flat.npy", "-k", "1-x"], "expected for example 1-10 or 2,4,8"),
        (["info", "data.csv"], "it is not a safetensors file"),
        (["info", "missing.safetensors"], "gmmx: missing.safetensors: No such file"),
        (["score", "m.safetensors", "flat.npy"], "has 1 columns, and the model has 2"),
        (["score", "m.safetensors", "data.csv", "--out", "a.csv"], "--per-row"),
        (["predict", "m.safetensors", "data.csv", "--out", "a.xlsx"], r"ends in \.csv"),
        (["predict", "m.safetensors", "data.csv", "--out", "a.csv", "--json"], "choose one"),
    ],
)  # fmt: skip
def test_mistakes(gmmx_, model, arguments, message):
    for name in ("junk.parquet", "junk.npy", "junk.npz", "junk.xlsx"):
        Path(name).write_bytes(b"junk")
    Path("header.npy").write_bytes(b"\x93NUMPY\x01\x00\x04\x00{(((")
    np.save("cube.npy", np.zeros((2, 2, 2)))
    np.save("flat.npy", np.arange(10.0))
    np.savez("two.npz", a=np.zeros(3), b=np.zeros(3))
    status, _, err = gmmx_(*arguments)
    assert status == 2 and "Traceback" not in err
    said = " ".join(err.replace("│", " ").split())
    assert re.search(message, said), said


# Selections and pictures


def test_select(gmmx_, folder, frame):
    pytest.importorskip("matplotlib")
    report = json.loads(
        ok(gmmx_(
            "select", "data.csv", "-k", "1-3", "--covariance", "full, diag", "--columns",
            "height,width", "--out", "best.safetensors", "--plot", "curves.png", "--json",
        ))
    )  # fmt: skip
    assert len(report["candidates"]) == 6 and report["best"]["n_components"] == 2
    best = gmmx.load("best.safetensors")
    assert best.covariance_type == report["best"]["covariance_type"]
    assert (folder / "curves.png").stat().st_size > 1000


def test_a_selection_of_failed_fits_has_status_one(gmmx_, folder):
    np.save("equal.npy", np.ones((20, 1)))
    failed = gmmx_("select", "equal.npy", "-k", 1, "--covariance", "diag", "--reg-covar", 0)
    assert "every fit failed" in refused(failed, status=1)


@pytest.mark.parametrize("columns", ["height", "height,width", "height,width,count"])
def test_plot(gmmx_, folder, columns):
    pytest.importorskip("matplotlib")
    ok(gmmx_("fit", "data.csv", "-k", 2, "--columns", columns, "--plot", "fit.png"))
    assert (folder / "fit.png").stat().st_size > 1000


# As a program


def test_it_tells_its_version(gmmx_):
    assert ok(gmmx_("--version")) == f"gmmx {gmmx.__version__}\n"


def test_help_does_not_import_jax():
    program = (
        "import sys; sys.argv = ['gmmx', 'fit', '--help']\n"
        "import gmmx_cli\n"
        "try:\n    gmmx_cli.main()\n"
        "finally:\n    assert not {'jax', 'gmmx', 'numpy', 'polars'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--covariance" in done.stdout and "--checkpoint" in done.stdout


@pytest.mark.parametrize("missing", ["typer", "polars"])
def test_without_the_optional_part_it_says_what_to_install(missing):
    program = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['gmmx', 'fit', 'a.csv', '-k2']\n"
        "import gmmx_cli; gmmx_cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f'gmmx: the command line needs {missing}: pip install "gmmx[cli]"\n'


def test_commands_make_a_pipe(model, folder, tmp_path):
    command = [sys.executable, "-m", "gmmx"]
    drawn = subprocess.run([*command, "sample", "m.safetensors", "-n", "50"], capture_output=True)
    assert drawn.returncode == 0, drawn.stderr
    scored = subprocess.run(
        [*command, "score", "m.safetensors", "-", "--json"],
        input=drawn.stdout, capture_output=True, env=os.environ,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    x = pl.read_csv(drawn.stdout).to_numpy()
    np.testing.assert_allclose(
        json.loads(scored.stdout)["log_likelihood"], model.score(x), rtol=1e-12
    )
