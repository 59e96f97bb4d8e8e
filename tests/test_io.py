"""Saving and loading: exact, whole or not at all, and never fooled by a bad file."""

import json
import os
import stat
from pathlib import Path
from typing import ClassVar

import equinox as eqx
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from jaxtyping import Array, Float
from safetensors.numpy import save as to_bytes

import gmmx
from gmmx import _files, _io
from gmmx._covariance import base
from gmmx._covariance.full import FullCovariance

K, D = 3, 2
DATA = Path(__file__).parent / "data"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def same(a, b):
    """Equal to the last bit, −0 and all."""
    leaves = jax.tree.leaves(a), jax.tree.leaves(b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(*leaves, strict=True)
    )


def parts(content):
    """Header and data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header, data):
    """A file of a header that was changed on purpose, as by a program that knows no checksum."""
    header.get("__metadata__", {}).pop("sha256", None)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


# Round trips


def test_what_is_read_is_what_was_written(structure, dtype, path):
    gmm = structure.mixture(K, D, dtype)
    gmmx.save(path, gmm)
    assert same(gmmx.load(path), gmm)
    header, _ = parts(path.read_bytes())
    told = header["__metadata__"]
    assert told["covariance_type"] == structure.name and told["dtype"] == dtype.name
    assert told["format_version"] == "1" and told["gmmx_version"] == gmmx.__version__


def test_files_of_gmmx_1_0_are_read(structure, dtype):
    """With the log-densities that gmmx 1.0.0 computed."""
    name = f"{structure.name}-{dtype.name}"
    gmm = gmmx.load(DATA / f"{name}.safetensors")
    assert (gmm.covariance_type, gmm.dtype) == (structure.name, dtype)
    with np.load(DATA / "log_densities.npz") as known:
        x, log_prob = known["x"], known[name]
    wide = gmmx.load(DATA / f"{name}.safetensors", dtype="float64")
    np.testing.assert_allclose(wide.log_prob(x), log_prob, rtol=1e-12)


def test_a_component_of_weight_zero_is_kept(path):
    gmm = gmmx.GaussianMixture.from_parameters([0.0, 1.0], [[0.0], [1.0]], [[[1.0]], [[2.0]]])
    gmmx.save(str(path), gmm)
    assert same(gmmx.load(str(path)), gmm)


def test_feature_names_are_kept_in_the_header(structures, path):
    gmm = structures["diag"].mixture(K, D)
    gmmx.save(path, gmm, feature_names=["länge", "Breite, oben"])
    assert _io.read(path)[1]["feature_names"] == ["länge", "Breite, oben"]
    with pytest.raises(ValueError, match="feature_names has 3 names; expected 2"):
        gmmx.save(path, gmm, feature_names=["a", "b", "c"])


def test_a_new_structure_is_saved_by_its_fields(structures, path):
    """Nothing in the module that saves knows the fields, or the static settings, of a structure."""

    class Scaled(FullCovariance):
        scale: Float[Array, "k r"]
        rank: int = eqx.field(static=True)
        covariance_type: ClassVar[str] = "scaled for a test"

    try:
        full = structures["full"].mixture(K, D)
        scale = np.arange(12.0).reshape(K, 4)
        own = Scaled(full.structure.log_cholesky, jax.numpy.asarray(scale), 4)
        gmm = gmmx.GaussianMixture(full.logits, full.means, own)
        gmmx.save(path, gmm)
        assert same(gmmx.load(path), gmm) and gmmx.load(path).structure.rank == 4
        header, data = parts(path.read_bytes())
        header["structure.scale"]["shape"] = [4, K]
        path.write_bytes(joined(header, data))
        with pytest.raises(gmmx.FileError, match=r"structure\.scale has shape \(4, 3\).*k r"):
            gmmx.load(path)
    finally:
        del base._registry["scaled for a test"]
    with pytest.raises(gmmx.FileError, match="'scaled for a test' is unknown"):
        gmmx.load(path)


# Dtypes


def test_a_dtype_may_be_asked_for(structures, path):
    gmm = structures["full"].mixture(K, D)
    gmmx.save(path, gmm)
    rounded = gmmx.load(path, dtype="float32")
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded.means, np.asarray(gmm.means, np.float32))
    with pytest.raises(gmmx.FileError, match="expected float32 or float64"):
        gmmx.load(path, dtype="float16")


def test_float64_is_not_rounded_unasked(structures, path):
    gmmx.save(path, structures["full"].mixture(K, D))
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(gmmx.FileError, match="jax_enable_x64"):
            gmmx.load(path)
        assert gmmx.load(path, dtype="float32").dtype == np.float32
    finally:
        jax.config.update("jax_enable_x64", True)


def test_values_too_large_for_the_dtype_are_refused(structures, path):
    gmm = structures["spherical"].mixture(K, D)
    gmmx.save(path, eqx.tree_at(lambda g: g.means, gmm, gmm.means * 1e300))
    with pytest.raises(gmmx.FileError, match="means holds 6 values"):
        gmmx.load(path, dtype="float32")


# What is not saved


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda g: jax.tree.map(lambda leaf: leaf * np.nan, g), "NaN"),
        (lambda g: jax.tree.map(lambda leaf: jax.numpy.stack([leaf, leaf]), g), "stack"),
        (lambda g: jax.tree.map(lambda leaf: leaf.astype("bfloat16"), g), "bfloat16"),
        (lambda g: eqx.tree_at(lambda g: g.logits, g, g.logits - np.inf), "logits"),
    ],
    ids=["NaN", "a stack", "bfloat16", "no weight at all"],
)
def test_what_could_not_be_loaded_is_not_saved(structures, path, spoil, message):
    with pytest.raises(ValueError, match=message):
        gmmx.save(path, spoil(structures["full"].mixture(K, D)))
    assert not path.exists()


def test_not_inside_a_transformation(structures, path):
    with pytest.raises(ValueError, match="jit"):
        jax.jit(lambda g: gmmx.save(path, g))(structures["full"].mixture(K, D))


# Whole or not at all


def test_a_failed_write_leaves_the_old_file(structures, path, monkeypatch):
    old, new = structures["full"].mixture(K, D), structures["full"].mixture(K, D, seed=1)
    gmmx.save(path, old)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"cannot write .*model\.safetensors: No space left"):
        gmmx.save(path, new)
    assert same(gmmx.load(path), old)
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_synchronised_is_no_failure(structures, path, monkeypatch):
    """As on some network file systems; and a long name is no reason either."""
    synchronise = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    gmm = structures["full"].mixture(K, D)
    path = path.with_name("模" * 80)
    gmmx.save(path, gmm)
    assert same(gmmx.load(path), gmm) and list(path.parent.iterdir()) == [path]


def test_where_it_cannot_be_written_it_says_so(structures, tmp_path):
    gmm = structures["full"].mixture(K, D)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing\. Make"):
        gmmx.save(tmp_path / "missing" / "model.safetensors", gmm)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        gmmx.save(tmp_path, gmm)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX files")
def test_a_pipe_or_device_is_not_replaced(structures, path):
    os.mkfifo(path)
    with pytest.raises(OSError, match="it is a pipe or a device"):
        gmmx.save(path, structures["full"].mixture(K, D))
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="POSIX files")
def test_links_and_permissions_are_those_of_any_new_file(structures, tmp_path, path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    gmm = structures["full"].mixture(K, D)
    gmmx.save(link, gmm)
    assert link.is_symlink() and same(gmmx.load(path), gmm)
    other = tmp_path / "other"
    other.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_that_is_replaced_keeps_its_mode(structures, path, mode):
    path.touch()
    path.chmod(mode)
    gmmx.save(path, structures["diag"].mixture(K, D))
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_private_file_is_private_while_it_is_written(structures, path, monkeypatch):
    path.touch()
    path.chmod(0o600)
    seen = []

    def look(descriptor):
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(os, "fsync", look)
    gmmx.save(path, structures["diag"].mixture(K, D))
    assert seen[0] == 0o600


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_new_file_follows_the_umask(structures, path, umask):
    before = os.umask(umask)
    try:
        gmmx.save(path, structures["diag"].mixture(K, D))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_read_only_file_is_not_replaced(structures, path):
    gmm = structures["diag"].mixture(K, D)
    gmmx.save(path, gmm)
    path.chmod(0o444)
    with pytest.raises(PermissionError, match=r"model\.safetensors: the file is read-only"):
        gmmx.save(path, structures["full"].mixture(K, D))
    assert same(gmmx.load(path), gmm) and list(path.parent.iterdir()) == [path]


# Bad files


def test_a_missing_file_is_an_error_of_the_system(path):
    with pytest.raises(FileNotFoundError):
        gmmx.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX files")
def test_a_pipe_is_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(gmmx.FileError, match="not a regular file"):
        gmmx.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x05.",
        b"PK\x03\x04" + bytes(100),
        b"\x93NUMPY\x01\x00" + bytes(100),
        b"\xff" * 8 + b"{" + bytes(100),
        (2**62).to_bytes(8, "little") + b"{}" + bytes(100),
        (100).to_bytes(8, "little") + b"{" * 100,
        (100).to_bytes(8, "little") + b'{"a":' * 20,
        b"height,width\n1,2\n3,4\n",
    ],
    ids=["empty", "pickle", "zip", "npy", "ones", "vast header", "braces", "deep", "csv"],
)
def test_other_formats_are_named_as_such(path, content):
    path.write_bytes(content)
    with pytest.raises(gmmx.FileError, match=r"model\.safetensors: it is not a safetensors file"):
        gmmx.load(path)


def test_a_large_header_is_not_parsed(path):
    length = 2 * _files._LARGEST_HEADER
    path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * length)
    with pytest.raises(gmmx.FileError, match="its header has"):
        gmmx.load(path)


def test_every_cut_is_noticed(structures, path):
    gmmx.save(path, structures["diag"].mixture(K, D))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(gmmx.FileError):
            gmmx.load(path)


def test_every_flipped_bit_is_noticed(structures, path):
    gmm = structures["diag"].mixture(K, D)
    gmmx.save(path, gmm, feature_names=["height", "width"])
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    for at in range(length, len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(gmmx.FileError, match="does not match its checksum"):
            gmmx.load(path)
    # In the header the name of the checksum itself may be hit: then the rest is as it was.
    for at in range(length):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            loaded, header = _io.read(path)
        except gmmx.FileError:
            continue
        assert same(loaded, gmm) and header["feature_names"] == ["height", "width"]


def edit(**changes):
    return lambda header: header["__metadata__"].update(changes)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda header: header.pop("__metadata__"), "names no format"),
        (edit(format="pt"), "names the format 'pt'"),
        (edit(format_version="2", gmmx_version="9.1"), r"gmmx 9\.1.*reads version 1\. .*--upgrade"),
        (edit(format_version="-1"), "is not a number"),
        (edit(format_version="²"), "is not a number"),
        (edit(format_version="9" * 5000), "is not a number"),
        (edit(covariance_type="banded"), "'banded' is unknown.*import its module"),
        (edit(covariance_type="full" * 1000), "too long for a name"),
        (edit(covariance_type="diag"), r"structure\.log_cholesky has shape \(3, 2, 2\)"),
        (edit(dtype="float64"), "has dtype float32; expected float64"),
        (edit(dtype="object"), "'object' is unknown"),
        (edit(settings="[" * 100_000), "'settings' in its header is damaged"),
        (edit(settings="[1]"), "damaged"),
        (edit(settings='{"rank": 3}'), "cannot be made"),
        (edit(feature_names='["a"]'), "feature_names"),
        (edit(feature_names="7"), "feature_names"),
        (lambda header: header["means"].update(shape=[2, 3]), "logits has shape"),
        (lambda header: header["means"].update(shape=[6]), r"means has shape \(6,\)"),
        (lambda header: header["means"].update(dtype="I32"), "dtype int32"),
        (lambda h: h.update({"m" * 2000: h.pop("means") | {"dtype": "I32"}}), "dtype int32"),
        (lambda header: header["means"].update(dtype="BF16", shape=[12]), "model.safetensors"),
        (lambda header: header["means"].update(dtype="F8_E4M3", shape=[24]), "cannot be read|F8"),
        (lambda header: header.update(mean=header.pop("means")), "mean, .*expected .*means"),
        (lambda header: header["means"].update(shape=[2**62, 2**62]), "damaged"),
        (lambda header: header["means"].update(shape=[-3, -2]), "damaged"),
        (lambda header: header["means"].update(data_offsets=[0, 10**15]), "damaged"),
        (lambda header: header["means"].update(data_offsets=[0, 24]), "damaged"),
    ],
)  # fmt: skip
def test_a_header_that_lies(structures, path, change, message):
    gmmx.save(path, structures["full"].mixture(K, D, np.float32))
    header, data = parts(path.read_bytes())
    change(header)
    path.write_bytes(joined(header, data))
    with pytest.raises(gmmx.FileError, match=message) as caught:
        gmmx.load(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["logits", "means", "structure.log_cholesky"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_mixture(structures, path, name, value):
    gmmx.save(path, structures["tied"].mixture(K, D))
    header, data = parts(path.read_bytes())
    begin = header[name]["data_offsets"][0]
    data = data[:begin] + np.float64(value).tobytes() + data[begin + 8 :]
    path.write_bytes(joined(header, data))
    with pytest.raises(gmmx.FileError, match=f"{name} holds 1 values that are NaN or infinite"):
        gmmx.load(path)


@pytest.mark.parametrize(
    "leaf, index, value, message",
    [
        (
            "structure.log_cholesky",
            (1, 0, 0),
            1000.0,
            "structure gives a covariance of component 1",
        ),
        ("structure.log_cholesky", (0, 1, 1), -1000.0, "component 0 that is zero or infinite"),
        ("structure.log_cholesky", (2, 1, 0), 1e308, "means and structure give distances"),
        ("means", (0, 0), 1e308, "means and structure give distances"),
    ],
)
def test_finite_leaves_without_a_density_are_no_mixture(
    structures, path, leaf, index, value, message
):
    """Their log-density would be NaN, or −∞ everywhere."""
    gmmx.save(path, structures["full"].mixture(K, D))
    header, data = parts(path.read_bytes())
    begin, end = header[leaf]["data_offsets"]
    array = np.frombuffer(data[begin:end]).reshape(header[leaf]["shape"]).copy()
    array[index] = value
    if leaf == "means":
        array[1, 0] = -value
    path.write_bytes(joined(header, data[:begin] + array.tobytes() + data[end:]))
    with pytest.raises(gmmx.FileError, match=message):
        gmmx.load(path)


def test_a_covariance_too_narrow_for_the_dtype_is_refused(structures, path):
    gmm = structures["spherical"].mixture(K, D)
    gmmx.save(
        path, eqx.tree_at(lambda g: g.structure.log_cholesky, gmm, replace_fn=lambda v: v + 100)
    )
    assert gmmx.load(path).dtype == np.float64
    with pytest.raises(gmmx.FileError, match="zero or infinite in float32"):
        gmmx.load(path, dtype="float32")


def test_a_format_that_is_too_old(structures, path):
    gmmx.save(path, structures["diag"].mixture(K, D))
    with pytest.raises(
        gmmx.FileError, match=r"has format version 1, .* reads version 2\. Use that"
    ):
        _files.read_tensors(path, "gmmx.GaussianMixture", 2, oldest=2)


def test_a_foreign_safetensors_file(path):
    path.write_bytes(to_bytes({"weight": np.zeros((4, 4), np.float32)}))
    with pytest.raises(gmmx.FileError, match="its header names no format"):
        gmmx.load(path)


def test_empty_tensors_are_no_mixture(path):
    metadata = {
        "format": "gmmx.GaussianMixture", "format_version": "1", "covariance_type": "spherical",
        "dtype": "float32",
    }  # fmt: skip
    shapes = {"logits": (0,), "means": (0, 2), "structure.log_cholesky": (0,)}
    path.write_bytes(to_bytes({n: np.zeros(s, np.float32) for n, s in shapes.items()}, metadata))
    with pytest.raises(gmmx.FileError, match="shape"):
        gmmx.load(path)


# Fuzzing

bytes_edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "copy", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)
wild = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["F32", "F64", "I64", "BOOL", "full", "tied", "diag", "spherical", "1", "2"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def mutated(content, edits):
    content = bytearray(content)
    for how, where, value in edits:
        at = int(where * len(content))
        match how:
            case "set":
                content[at : at + len(value)] = value
            case "insert":
                content[at:at] = value
            case "delete":
                del content[at : at + len(value)]
            case "copy":
                content[at:at] = content[: at // 2]
            case "cut":
                del content[at:]
    return bytes(content)


@pytest.fixture(scope="module", params=["full", "spherical"])
def saved(request, structures, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    gmmx.save(path, structures[request.param].mixture(K, D))
    return path, path.read_bytes()


def is_valid(path):
    """Loads as a valid mixture that can be saved again; or says clearly that it does not."""
    try:
        gmm = gmmx.load(path)
    except gmmx.FileError:
        return
    assert gmm.means.shape == (gmm.n_components, gmm.n_features)
    assert np.isfinite(gmm.log_prob(gmm.means[:1])).all() or np.isneginf(gmm.logits[0])
    gmmx.save(path, gmm)


@settings(max_examples=300)
@given(edits=bytes_edits)
def test_mutated_bytes(saved, edits):
    path, content = saved
    path.write_bytes(mutated(content, edits))
    is_valid(path)


@settings(max_examples=300)
@given(data=st.data())
def test_mutated_headers(saved, data):
    """Headers that are sound JSON and false: they reach the checks behind the parser."""
    path, content = saved
    header, rest = parts(content)
    for _ in range(data.draw(st.integers(1, 3))):
        part = header[data.draw(st.sampled_from(sorted(header)))]
        if not isinstance(part, dict) or not part:
            continue
        key = data.draw(st.sampled_from(sorted(part)))
        part[key] = data.draw(wild)
        if data.draw(st.booleans()) and isinstance(part[key], int):
            part[key] = str(part[key])
    path.write_bytes(joined(header, rest))
    is_valid(path)
