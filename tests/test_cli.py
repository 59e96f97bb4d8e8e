"""The command line: what it prints, writes and says, and the status it ends with."""

import io
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import gmmx

pl = pytest.importorskip("polars")
pytest.importorskip("typer")

from gmmx_cli import main, words  # noqa: E402
from gmmx_cli.interrupts import ctrl_c  # noqa: E402

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


def test_a_fit_of_a_rank(gmmx_, folder):
    """The report has loadings in place of covariances, which may be too large."""
    options = ("--covariance", "low_rank", "--rank", 1, "--max-iter", 2)
    columns = ("--columns", "height,width")
    out = ok(
        gmmx_("fit", "data.csv", "-k", 2, *columns, *options, "--out", "m.safetensors", "--json")
    )
    report = json.loads(out)
    assert report["rank"] == 1 and np.shape(report["loadings"]) == (2, 2, 1)
    assert np.shape(report["noise_variances"]) == (2, 2) and "covariances" not in report
    assert gmmx.load("m.safetensors").structure.n_latent == 1
    assert "needs a rank" in refused(gmmx_("fit", "data.csv", "-k", 2, *columns, *options[:2]))


def test_results_and_messages_keep_apart(gmmx_, folder):
    columns = ("--columns", "height,width")
    _, out, err = gmmx_("fit", "data.csv", "-k", 2, *columns, "--max-iter", 1, "--n-init", 2)
    assert out.startswith("mixture") and "not converged after 1 steps" in out
    assert "mean ± deviation" in out and "height" in out and "BIC" in out
    assert "100 rows of height, width" in err and "Raise --max-iter" in err


def test_a_failed_fit_has_status_one(gmmx_, folder):
    # Their squares are infinite.
    np.save("huge.npy", 1e307 * np.random.default_rng(0).normal(size=(20, 2)))
    said = refused(gmmx_("fit", "huge.npy", "-k", 2), status=1)
    assert "The fit failed at step" in said and "`result`" not in said


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
    assert "fitted to the columns 'height', 'width'" in said and "--columns" in said
    named = ok(gmmx_("score", "m.safetensors", "renamed.csv", "--columns", "h,w", "--json"))
    assert json.loads(named) == one


def test_the_index_of_pandas_is_left_out(gmmx_, folder, frame):
    pd = pytest.importorskip("pandas")
    two = pd.DataFrame({name: frame[name] for name in ("height", "width")})
    two.to_csv("indexed.csv")
    two.to_csv("plain.csv", index=False)
    pd.read_csv("indexed.csv").to_csv("twice.csv")
    plain = ok(gmmx_("fit", "plain.csv", "-k", 2, "--json"))
    for name, count in (("indexed.csv", "1 column"), ("twice.csv", "2 columns")):
        status, out, err = gmmx_("fit", name, "-k", 2, "--json")
        assert status == 0 and json.loads(out) == json.loads(plain)
        assert f"left out {count} without a name" in err


def test_columns_are_left_out(gmmx_, folder):
    fit = ("fit", "data.csv", "-k", 2, "--json", "--columns", "height,width")
    report = json.loads(ok(gmmx_("fit", "data.csv", "-k", 2, "--exclude", "kind,count", "--json")))
    assert report == json.loads(ok(gmmx_(*fit)))
    assert "no column 'knd'" in refused(gmmx_("fit", "data.csv", "-k", 2, "--exclude", "knd"))


def test_a_column_that_counts_the_rows_is_pointed_out(gmmx_, folder, frame):
    frame.select("height", "width").with_row_index("no, of").write_csv("numbered.csv")
    _, _, err = gmmx_("fit", "numbered.csv", "-k", 2)
    advice = re.search("only counts the rows. To leave it out: (.*)", err)
    assert advice is not None
    report = json.loads(
        ok(gmmx_("fit", "numbered.csv", "-k", 2, "--json", *shlex.split(advice[1])))
    )
    assert report["feature_names"] == ["height", "width"]


def test_a_suggested_command_can_be_pasted(gmmx_, folder, frame):
    odd = {"a b": frame["height"], "it's, so": frame["width"], "kind": frame["kind"]}
    pl.DataFrame(odd).write_csv("odd.csv")
    said = gmmx_("fit", "odd.csv", "-k", 2)[2]
    options = shlex.split(said.partition("Use the other columns: ")[2])
    report = json.loads(ok(gmmx_("fit", "odd.csv", "-k", 2, "--json", *options)))
    assert report["feature_names"] == ["a b", "it's, so"]


def test_rows_with_missing_values_are_dropped(gmmx_, model, frame):
    two = frame.select("height", "width")
    two.write_csv("whole.csv")
    gaps = pl.DataFrame({"height": [None, 1.0], "width": [2.0, float("nan")]})
    pl.concat([gaps, two]).write_csv("gaps.csv")
    for command in (("fit", "-k", 2), ("score",)):
        name, *rest = command
        start = [name, *(["m.safetensors"] if name == "score" else [])]
        assert "--drop-missing" in refused(gmmx_(*start, "gaps.csv", *rest))
        status, out, err = gmmx_(*start, "gaps.csv", *rest, "--drop-missing", "--json")
        assert status == 0 and "dropped 2 of 102 rows" in err
        assert json.loads(out) == json.loads(ok(gmmx_(*start, "whole.csv", *rest, "--json")))


def test_predictions_are_appended(gmmx_, model, frame):
    text = ok(gmmx_("predict", "m.safetensors", "data.csv", "--append"))
    rows = pl.read_csv(io.StringIO(text))
    assert rows.drop("component").equals(frame)
    x = frame.select("height", "width").to_numpy()
    np.testing.assert_array_equal(rows["component"], model.predict(x))
    ok(gmmx_("predict", "m.safetensors", "data.csv", "--append", "--proba", "--out", "p.parquet"))
    rows = pl.read_parquet("p.parquet")
    assert rows.columns == [*frame.columns, "component_0", "component_1"]
    assert rows["height"].dtype == pl.Float64 and rows["kind"].dtype == pl.String
    frame.rename({"count": "component"}).write_csv("taken.csv")
    said = refused(gmmx_("predict", "m.safetensors", "taken.csv", "--append"))
    assert "already has a column 'component'" in said


# Precision


@pytest.fixture
def times(folder):
    """Unix times of two bursts: in float32 nearly all are one number."""
    rng = np.random.default_rng(0)
    t = 1_600_000_000 + rng.integers(0, 50, 120) + np.repeat([0, 1_000], 60)
    pl.DataFrame({"time": t}).write_csv("times.csv")
    return t


def test_what_float32_does_not_hold_is_fitted_in_float64(gmmx_, times):
    status, out, err = gmmx_("fit", "times.csv", "-k", 2, "--json", "--out", "m.safetensors")
    assert status == 0 and "in float64, since float32 would change column 'time'" in err
    report = json.loads(out)
    means = np.array([times[:60].mean(), times[60:].mean()])
    np.testing.assert_allclose(np.sort(np.ravel(report["means"])), means, rtol=0, atol=0.01)
    assert gmmx.load("m.safetensors").dtype == np.float64


def test_lost_precision_is_said_in_words_of_the_command(gmmx_, times):
    _, _, err = gmmx_("fit", "times.csv", "-k", 2, "--dtype", "float32")
    assert "float32 changes column 'time'" in err and "--dtype float64" in err
    assert "jax" not in err
    big = pl.DataFrame({"id": 2**60 + np.random.default_rng(0).integers(0, 1000, 50)})
    for name, write in (("ids.csv", big.write_csv), ("ids.parquet", big.write_parquet)):
        write(name)
        assert "float64 changes column 'id'" in gmmx_("fit", name, "-k", 1)[2]


def test_float32_is_kept_where_it_is_enough(gmmx_, folder):
    status, _, err = gmmx_(
        "fit", "data.csv", "-k", 2, "--columns", "height,width", "--out", "m.safetensors"
    )
    assert status == 0 and "float64" not in err
    assert gmmx.load("m.safetensors").dtype == np.float32


@pytest.mark.parametrize("status", gmmx.Status._index_to_message)
def test_messages_name_options(status):
    said = words.of_options(status)
    assert not re.search(r"jax\.|gmmx\.|[a-z]_[a-z]|`", said), said


# The table


def test_the_table_tells_components_apart(gmmx_, times):
    out = ok(gmmx_("fit", "times.csv", "-k", 2))
    rows = re.findall(r"(\d+\.\d+)  (\d+\.\d) ± (\d+\.\d)$", out, re.M)
    assert [float(size) for size, _, _ in rows] == [60, 60]
    found = sorted((float(mean), float(deviation)) for _, mean, deviation in rows)
    for (mean, deviation), t in zip(found, (times[:60], times[60:]), strict=True):
        assert abs(mean - t.mean()) <= 0.06 and abs(deviation - t.std()) <= 0.06


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_deviations_are_those_of_the_covariances(gmmx_, folder, covariance):
    fit = ("fit", "data.csv", "-k", 2, "--columns", "height,width", "--covariance", covariance)
    report = json.loads(ok(gmmx_(*fit, "--json")))
    c = np.array(report["covariances"])
    variances = {
        "full": lambda: np.diagonal(c, axis1=1, axis2=2),
        "tied": lambda: np.tile(np.diagonal(c), (2, 1)),
        "diag": lambda: c,
        "spherical": lambda: np.tile(c[:, None], (1, 2)),
    }[covariance]()
    np.testing.assert_allclose(report["deviations"], np.sqrt(variances), rtol=1e-5)
    np.testing.assert_allclose(np.sum(report["sizes"]), 100, rtol=1e-5)


# Mistakes

MISTAKES = {
    "text": ("a,b,c\n1,x,2\n3,y,4\n", "column 'b' holds 'x' in row 1.*--columns a,c"),
    "late text": ("a,b\n1,2\n3,?\n", r"column 'b' holds '\?' in row 2"),
    "ragged": ("a,b\n1,2\n3,4,5\n", "a row has more fields"),
    "a gap": ("a,b\n1,2\n3,\n5,6\n", "column 'b' is empty.* in 1 of 3 rows, first in row 2"),
    "NA": ("a,b\n1,2\nNA,4\n5,6\n", "column 'a' is empty"),
    "nan": ("a,b\n1,2\nnan,4\n5,6\n", "column 'a' is empty or NaN.*--drop-missing"),
    "infinity": ("a,b\n1,2\n5,inf\n", "column 'b' is infinite in 1 of 2 rows"),
    "no header": ("1,2\n3,4\n5,6\n", "expected names of columns"),
    "no header, a gap": ("1,,3\n3,4,5\n5,6,7\n", "expected names of columns"),
    "no header, NA": ("1,NA,3\n3,4,5\n5,6,7\n", "holds values, '1', 'NA', '3'"),
    "no header, percent": ("1,3.5%\n3,4%\n", "expected names of columns"),
    "no header, decimal commas": ("1,5;2,5\n3,5;4,5\n", "expected names of columns"),
    "thousands": ('a,b\n1,"1,234"\n2,"5,678"\n', "column 'b' holds '1,234'"),
    "mixed signs": ("a;b\n1;1,5\n2;2.5\n", "column 'b' holds '1,5'"),
    "all gaps": ("a,b\n1,\n,2\n", "is empty"),
    "empty": ("", "is empty"),
    "no rows": ("a,b\n", "has no rows"),
    "too few": ("a,b\n1,2\n", "1 samples, fewer than the 2 components"),
    "not text": ("a,b\n\udcff\udcfe,1\n", "cannot be read as CSV: it is not in UTF-8"),
}


@pytest.mark.parametrize("which", MISTAKES)
def test_mistakes_in_a_csv(gmmx_, tmp_path, which):
    content, message = MISTAKES[which]
    path = tmp_path / "data.csv"
    path.write_text(content, errors="surrogateescape")
    said = refused(gmmx_("fit", path, "-k", 2))
    assert re.search(message, said), said


COPIES = {
    "semicolons": ("height;width\n1.5;2\n3;4\n", "--separator ';'"),
    "decimal commas": ("height;width\n1,5;2\n3;4\n", "--separator ';' --decimal ,"),
    "quoted decimal commas": ('height,width\n"1,5",2\n3,4\n', "--decimal ,"),
    "tabs": ("height\twidth\n1.5\t2\n3\t4\n", "--separator tab"),
    "pipes": ("height|width\n1.5|2\n3|4\n", "--separator '|'"),
    "spaces": ("height   width\n1.5 2\n 3    4\n", "--separator space"),
    "an index": (",height,width\n0,1.5,2\n1,3,4\n", ""),
    "a byte order mark": ("\ufeffheight,width\n1.5,2\n3,4\n", ""),
    "semicolons in a text": ("height,width,note\n1.5,2,a;b\n3,4,c;d\n", ""),
}


@pytest.mark.parametrize("which", COPIES)
def test_the_format_of_a_text_file_is_found_out(gmmx_, model, tmp_path, which):
    content, said = COPIES[which]
    path = tmp_path / "copy.csv"
    path.write_text(content, encoding="utf-8")
    status, out, err = gmmx_("score", "m.safetensors", path, "--json")
    assert status == 0, err
    assert err == (f"gmmx: {path} is read with {said}.\n" if said else "")
    report = json.loads(out)
    np.testing.assert_allclose(report["log_likelihood"], model.score([[1.5, 2], [3, 4]]))
    # What was said can be given.
    again = gmmx_("score", "m.safetensors", path, "--json", *shlex.split(said))
    assert json.loads(ok(again)) == report


def test_utf_16_is_read(gmmx_, model, tmp_path):
    path = tmp_path / "excel.txt"
    path.write_text("height\twidth\tgröße\n1,5\t2\tx\n3\t4\ty\n", encoding="utf-16")
    report = json.loads(ok(gmmx_("score", "m.safetensors", path, "--json")))
    np.testing.assert_allclose(report["log_likelihood"], model.score([[1.5, 2], [3, 4]]))


def test_the_format_of_a_text_file_may_be_given(gmmx_, model, tmp_path):
    path = tmp_path / "copy.csv"
    path.write_text("height!width\n1,500!2\n3,000!4\n")
    options = ("--separator", "!", "--decimal", ",")
    report = json.loads(ok(gmmx_("score", "m.safetensors", path, "--json", *options)))
    np.testing.assert_allclose(report["log_likelihood"], model.score([[1.5, 2], [3, 4]]))
    np.save("flat.npy", np.arange(10.0))
    assert "are for text files" in refused(gmmx_("fit", "flat.npy", "-k", 1, "--decimal", ","))


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
    np.save("huge.npy", 1e307 * np.random.default_rng(0).normal(size=(20, 1)))
    failed = gmmx_("select", "huge.npy", "-k", 1, "--covariance", "diag")
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


def test_a_clone_runs_the_command_in_the_folder_of_the_caller(model, folder, capfd):
    """And imports nothing from that folder."""
    Path("polars.py").write_text("raise RuntimeError")
    script = runpy.run_path(str(Path(__file__).parents[1] / "run.py"))
    before = signal.getsignal(signal.SIGINT)
    # Installed already, for this interpreter.
    script["main"].__globals__.update(install=lambda extra: None, PYTHON=sys.executable)
    try:
        assert script["main"](["gmmx", "score", "m.safetensors", "data.csv"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert "log-likelihood" in capfd.readouterr().out


# Ctrl-C

LONG = (
    "fit",
    "long.npy",
    "-k",
    "5",
    "--tol",
    "0",
    "--max-iter",
    "10000000",
    "--out",
    "m.safetensors",
)


@pytest.fixture
def long(folder):
    np.save("long.npy", np.random.default_rng(0).normal(size=(2000, 3)))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_before_the_first_step_writes_nothing(long):
    process = subprocess.Popen(
        [sys.executable, "-m", "gmmx_cli", *LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"GMMX_CACHE": "0"},
    )  # fmt: skip
    assert process.stderr is not None
    # Then the steps are compiled.
    assert "2000 rows" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and out == ""
    assert "before the first step; no model was written" in err and "Traceback" not in err
    assert not Path("m.safetensors").exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_model_of_the_last_step(gmmx_, long, number):
    def press():
        while not ctrl_c.steps:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    ctrl_c.steps = False
    thread = threading.Thread(target=press)
    thread.start()
    status, out, err = gmmx_(*LONG)
    thread.join()
    assert status == 128 + number and "not converged after" in out
    assert "ends after this step" in err and "wrote the model to m.safetensors" in err
    assert gmmx.load("m.safetensors").n_components == 5


# What is known of rows


@pytest.fixture
def measured(folder, frame):
    """The columns with noise, gaps and labels beside them."""
    rng = np.random.default_rng(2)
    x = frame.select("height", "width").to_numpy()
    noise = rng.uniform(0.05, 0.3, size=x.shape)
    gaps = rng.uniform(size=x.shape) < 0.1
    labels = [int(row > 40) if i % 3 == 0 else None for i, row in enumerate(range(100))]
    values = np.where(gaps, np.nan, x + noise * rng.normal(size=x.shape))
    columns = {
        "height": [None if np.isnan(v) else v for v in values[:, 0]],
        "width": [None if np.isnan(v) else v for v in values[:, 1]],
        "dh": noise[:, 0],
        "dw": noise[:, 1],
        "which": labels,
    }
    pl.DataFrame(columns).write_csv("measured.csv")
    return gmmx.Data(values, noise=noise**2, missing=True), gaps


def test_noise_and_gaps_are_used(gmmx_, measured):
    data, _ = measured
    options = ("--columns", "height,width", "--noise-columns", "dh,dw", "--missing")
    fit = ("fit", "measured.csv", "-k", 2, *options, "--tol", 1e-8, "--max-iter", 1000, "--json")
    report = json.loads(ok(gmmx_(*fit, "--dtype", "float64", "--out", "m.safetensors")))
    gmm = gmmx.load("m.safetensors")
    expected = gmmx.EMFitter(tol=1e-8, max_iter=1000).fit(data, 2)
    np.testing.assert_allclose(report["log_likelihood"], expected.log_likelihood, atol=1e-6)
    np.testing.assert_allclose(report["bic"], gmm.bic(data), rtol=1e-8)
    labels = ok(gmmx_("predict", "m.safetensors", "measured.csv", *options))
    np.testing.assert_array_equal(labels.split()[1:], np.asarray(gmm.predict(data)).astype(str))
    score = json.loads(ok(gmmx_("score", "m.safetensors", "measured.csv", *options, "--json")))
    np.testing.assert_allclose(score["log_likelihood"], gmm.score(data), rtol=1e-8)
    best = json.loads(ok(gmmx_("select", "measured.csv", "-k", "1-2", *options, "--json")))["best"]
    assert best["n_components"] == 2


def test_a_picture_of_rows_with_gaps(gmmx_, measured):
    pytest.importorskip("matplotlib").use("Agg")
    ok(gmmx_("fit", "measured.csv", "-k", 2, "--columns", "height,width", "--missing",
             "--plot", "fit.png"))  # fmt: skip
    assert Path("fit.png").stat().st_size > 0


def test_labels_name_components(gmmx_, measured):
    out = ok(gmmx_("fit", "measured.csv", "-k", 2, "--exclude", "dh,dw", "--label-column", "which",
                   "--missing", "--json"))  # fmt: skip
    report = json.loads(out)
    assert report["feature_names"] == ["height", "width"]
    # Those after the fortieth row are the tall ones.
    assert report["means"][1][0] > 8 > report["means"][0][0]


def test_scaled_features(gmmx_, folder):
    x = np.random.default_rng(0).normal(size=(200, 2)) * [1, 1000]
    np.save("wide.npy", x)
    fit = ("fit", "wide.npy", "-k", 1, "--dtype", "float64", "--json", "--covariance")
    plain, scaled = (json.loads(ok(gmmx_(*fit, "full", *more))) for more in ((), ("--scale",)))
    for name in ("log_likelihood", "bic", "means", "covariances"):
        np.testing.assert_allclose(plain[name], scaled[name], rtol=1e-6, atol=1e-6)
    plain, scaled = (json.loads(ok(gmmx_(*fit, "spherical", *more))) for more in ((), ("--scale",)))
    assert (plain["covariance_type"], scaled["covariance_type"]) == ("spherical", "diag")
    np.testing.assert_allclose(scaled["deviations"][0], x.std(axis=0), rtol=0.2)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--noise-columns", "dh"), "2 features: expected one for each"),
        (("--missing", "--drop-missing"), "one of --missing and --drop-missing"),
        (("--label-column", "dh"), "expected a component"),
        (("--noise-columns", "dh,nothing"), "no column 'nothing'"),
    ],
)
def test_what_rows_cannot_be(gmmx_, measured, options, message):
    found = gmmx_("fit", "measured.csv", "-k", 2, "--columns", "height,width", "--drop-missing",
                  *options)  # fmt: skip
    assert message in refused(found)


def test_negative_noise_is_refused(gmmx_, folder):
    pl.DataFrame({"a": [1.0, 2.0, 3.0], "da": [0.1, -0.1, 0.1]}).write_csv("noise.csv")
    found = gmmx_("fit", "noise.csv", "-k", 1, "--columns", "a", "--noise-columns", "da")
    assert "negative deviation -0.1 in row 2" in refused(found)


# Data in blocks


@pytest.fixture
def in_parts(folder, frame):
    """The table in three files each, of two kinds."""
    for i in range(3):
        part = frame.select("height", "width", "count")[i::3]
        part.write_csv(folder / f"part-{i}.csv")
        np.save(folder / f"part-{i}.npy", part.select("height", "width").to_numpy())
    return frame


def test_several_files_are_read_in_blocks(gmmx_, in_parts):
    report = json.loads(ok(gmmx_(
        "fit", "part-*.csv", "-k", 2, "--columns", "width,height", "--weights", "count",
        "--dtype", "float64", "--out", "m.safetensors", "--json",
    )))  # fmt: skip
    source = gmmx.rows_from("part-*.csv", columns=["width", "height"], weights="count")
    fit_key, start_key = jax.random.split(jax.random.key(0))
    start = gmmx.initialize(source, 2, method="em", key=start_key)
    wanted = gmmx.EMFitter().fit(source, start, key=fit_key)
    np.testing.assert_allclose(report["means"], wanted.gmm.means, rtol=1e-10)
    np.testing.assert_allclose(report["bic"], wanted.gmm.bic(source), rtol=1e-10)
    printed = ok(gmmx_("predict", "m.safetensors", "part-*.csv", "--proba"))
    proba = pl.read_csv(io.StringIO(printed)).to_numpy()
    np.testing.assert_allclose(proba, wanted.gmm.predict_proba(source), rtol=1e-10, atol=1e-12)
    ok(gmmx_("score", "m.safetensors", "part-*.csv", "--per-row", "--out", "s.tsv"))
    found = pl.read_csv("s.tsv", separator="\t")["log_density"]
    np.testing.assert_allclose(found, wanted.gmm.log_prob(source), rtol=1e-10)


def test_arrays_are_read_in_blocks(gmmx_, in_parts):
    ok(gmmx_("fit", "part-*.npy", "-k", 2, "--columns", "1", "--out", "m.safetensors"))
    labels = pl.read_csv(io.StringIO(ok(gmmx_("predict", "m.safetensors", "part-*.npy"))))
    gmm = gmmx.load("m.safetensors", dtype="float64")
    source = gmmx.rows_from("part-*.npy", columns=[1])
    np.testing.assert_array_equal(labels["component"], gmm.predict(source))


def test_a_large_file_is_read_in_blocks(gmmx_, in_parts, monkeypatch):
    monkeypatch.setattr("gmmx_cli.large._memory", lambda: 1)
    assert "read in blocks" in gmmx_("fit", "part-0.csv", "-k", 2)[2]
    assert "--missing is for data that fit into memory" in refused(
        gmmx_("fit", "part-0.csv", "-k", 2, "--missing")
    )
