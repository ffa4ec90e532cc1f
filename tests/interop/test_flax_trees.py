"""Files of flax parameters: real ones, our own, and those that are damaged or hostile."""

from __future__ import annotations

import contextlib
import io
import lzma
import pickle
import random
import resource
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from serl_fast.interop import flax_trees
from serl_fast.interop.flax_trees import ParameterTrees, nested, read_trees, trees_of, write_trees

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed (extra interop)")

DATA = Path(__file__).parent / "data"  # written by flax 0.10.1, see make_flax_files.py
TREE = {
    "a/b/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a/bias": np.array([1.5, -2.0], np.float32),
    "scalar": np.array(0.25, np.float32),
}


def same(a, b):
    return list(a) == list(b) and all(
        np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype and a[k].shape == b[k].shape for k in a
    )


def packed(shape, dtype, raw, code=1):
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, raw), use_bin_type=True))


def file_of(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content if isinstance(content, bytes) else msgpack.packb(content, use_bin_type=True))
    return path


def test_a_checkpoint_of_flax_is_read():
    trees = read_trees(DATA / "agent.msgpack")
    assert trees.left == ("step", "opt_states", "rng")
    assert len(trees.params) == len(trees.target_params) == 19
    for i, (path, value) in enumerate(trees.params.items()):
        expected = (i + np.arange(value.size)).reshape(value.shape) / 8
        assert value.dtype == np.float32
        assert np.array_equal(value, expected)
        assert np.array_equal(trees.target_params[path], expected + 1)


def test_every_kind_of_value_of_flax_is_read():
    params = read_trees(DATA / "kinds.msgpack").params
    assert sorted(params) == ["chunked", "complex", "half", "integers", "scalar"]
    assert np.array_equal(params["half"], np.array([[1.5, -2.0, 0.10009765625]], np.float32))  # bfloat16 of 0.1
    assert np.array_equal(params["chunked"], np.arange(6.0).reshape(2, 3))
    assert params["complex"] == 1 + 2j
    assert params["scalar"] == 3
    assert np.array_equal(params["integers"], [0, 1])


@pytest.mark.parametrize("name", ["tree.msgpack", "tree.npz"])
def test_what_is_written_is_read_back(tmp_path, name):
    trees = ParameterTrees(TREE, {path: value + 1 for path, value in TREE.items()})
    read = read_trees(write_trees(tmp_path / "folder" / name, trees))
    assert same(read.params, trees.params)
    assert same(read.target_params, trees.target_params)
    assert read.left == ()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [name]


@pytest.mark.parametrize("compress", [bytes, lzma.compress])
def test_pickles_of_arrays_are_read_and_nothing_else(tmp_path, compress):
    path = file_of(tmp_path, compress(pickle.dumps({"conv_init": {"kernel": TREE["a/b/kernel"]}})))
    assert same(read_trees(path).params, {"conv_init/kernel": TREE["a/b/kernel"]})
    path = file_of(tmp_path, compress(pickle.dumps({"a": Path("x")})))
    with pytest.raises(ValueError, match="refused the global"):
        read_trees(path)


def test_sections_are_told_apart():
    arrays = {"params": nested(TREE), "target_params": {}, "step": 3}
    trees = trees_of(arrays)
    assert same(trees.params, TREE)
    assert (trees.target_params, trees.left) == ({}, ("step",))
    assert same(trees_of(nested(TREE)).params, TREE)
    assert same(trees_of({f"params/{path}": value for path, value in TREE.items()}).params, TREE)


def test_of_an_npz_only_parameters_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", **{"params/x": np.ones(2, np.float16), "batch/image": np.zeros(5, np.uint8)})
    trees = read_trees(tmp_path / "a.npz")
    assert list(trees.params) == ["x"]
    assert trees.left == ("batch",)


def test_a_camera_with_a_slash_stays_one_key(tmp_path):
    tree = {"encoder/encoder_left/wrist/Dense_0/bias": np.zeros(1, np.float32)}
    path = write_trees(tmp_path / "a.msgpack", ParameterTrees(tree), ["encoder_left/wrist"])
    content = msgpack.unpackb(path.read_bytes(), ext_hook=lambda code, data: data)
    assert list(content["params"]["encoder"]) == ["encoder_left/wrist"]
    assert same(read_trees(path).params, tree)


def test_an_orbax_folder_is_explained(tmp_path):
    folder = tmp_path / "run" / "checkpoint_200"
    (folder / "d").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint_30").mkdir()
    with pytest.raises(ValueError, match="is a folder") as error:
        read_trees(tmp_path / "run")
    assert f"restore_checkpoint({str(folder)!r}, target=None)" in str(error.value)
    assert "open('checkpoint_200.msgpack', 'wb').write(serialization.to_bytes(state))" in str(error.value)


def test_a_folder_of_checkpoint_files_names_the_newest(tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint_{step}").write_bytes(b"")
    with pytest.raises(ValueError, match=r"give a file in it, for example .*checkpoint_10"):
        read_trees(tmp_path)


CHUNKED = flax_trees._CHUNKED
HOSTILE = {
    "empty": (b"", "not readable"),
    "text": (b"hello world, this is no checkpoint", "not readable"),
    "a list": (msgpack.packb([1, 2]), "it holds a list"),
    "no arrays": ({"a": "text"}, "no arrays in it"),
    "trailing bytes": (msgpack.packb({"a": 1}) + b"\x00", "not readable"),
    "integer keys": ({1: 2}, "not readable"),
    "too few bytes": (
        {"a": packed((1000, 1000), "float32", b"1234")},
        r"float32 and shape \[1000, 1000\] with 4 bytes",
    ),
    "a size beyond 64 bits": ({"a": packed((2**60, 2**60), "float32", b"")}, "with 0 bytes"),
    "a negative size": ({"a": packed((-1, -1), "uint8", b"1")}, "without a shape"),
    "no list of sizes": ({"a": packed("ab", "uint8", b"12")}, "without a shape"),
    "objects": ({"a": packed((1,), "object", b"12345678")}, "dtype 'object'"),
    "an unknown dtype": ({"a": packed((1,), "float8_e4m3", b"1")}, "dtype 'float8_e4m3'"),
    "an unknown extension": ({"a": msgpack.ExtType(42, b"")}, "extension of type 42"),
    "an extension of junk": ({"a": msgpack.ExtType(1, b"\xc1\xff")}, "not readable"),
    "chunks that are no arrays": ({"a": {CHUNKED: True, "shape": {"0": 1}, "chunks": {"0": 1}}}, "without chunks"),
    "chunks of another size": (
        {"a": {CHUNKED: True, "shape": {"0": 2**40}, "chunks": {"0": packed((1,), "float32", b"1234")}}},
        "with 1 entries",
    ),
    "chunks without numbers": ({"a": {CHUNKED: True, "shape": {"x": 1}, "chunks": {}}}, "not numbered"),
    "deeply nested": (b"\x81\xa1a" * 100_000 + b"\x01", "not readable|nested"),
    "nested beyond what is read": (b"\x81\xa1a" * 100 + b"\x01", "nested more than 64"),
    "a long list": (msgpack.packb({"a": 1})[:-1] + b"\xdd\xff\xff\xff\xff", "not readable"),
    "lists in lists": (b"\x81\xa1a" + b"\xdc\x03\xff" * 300, "not readable"),
    "truncated xz": (lzma.compress(b"\x81\xa1a\x01" * 1000)[:-20], "truncated"),
    "damaged xz": (b"\xfd7zXZ" + b"\x00" * 40, "not readable as xz"),
    "a damaged zip": (b"PK\x03\x04 and no more", "not readable as npz"),
    "a truncated pickle": (pickle.dumps({"a": np.ones(3)})[:-9], "truncated"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_and_hostile_files_are_refused(tmp_path, name):
    content, message = HOSTILE[name]
    path = file_of(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        read_trees(path)
    assert str(path) in str(error.value)


def npz_of(header: bytes, data: bytes) -> bytes:
    """An npz with one array, whose header and data need not agree."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        padded = header + b" " * (-(10 + len(header) + 1) % 64) + b"\n"
        archive.writestr("params/a.npy", b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", b"1234", "with 4 bytes"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(1), "dtype object"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': 7, }", b"1234", "not readable as npz"),
        (b"__import__('os').abort()", b"", "not readable as npz"),
    ],
)
def test_an_array_of_an_npz_must_have_the_bytes_that_it_claims(tmp_path, header, data, message):
    with pytest.raises(ValueError, match=message):
        read_trees(file_of(tmp_path, npz_of(header, data)))


def test_files_that_unpack_to_more_than_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(flax_trees, "MAX_BYTES", 10_000)
    path = file_of(tmp_path, lzma.compress(bytes(1_000_000)))
    with pytest.raises(ValueError, match="more than 10000 bytes"):
        read_trees(path)
    array = io.BytesIO()
    np.savez_compressed(array, **{"params/a": np.zeros(100_000)})
    with pytest.raises(ValueError, match="more than 10000 bytes"):
        read_trees(file_of(tmp_path, array.getvalue()))
    with pytest.raises(ValueError, match="at most 10000 are read"):
        read_trees(file_of(tmp_path, bytes(20_000)))


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_damage_anywhere_is_refused_or_read_without_large_allocations(tmp_path):
    """Every prefix and 1000 damaged copies: a ValueError or a tree, never another error, a crash or much memory."""
    chance = random.Random(0)
    originals = [(DATA / name).read_bytes() for name in ("kinds.msgpack", "agent.msgpack")]
    path = tmp_path / "file"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    damaged = [originals[0][:end] for end in range(len(originals[0]))]
    damaged += [originals[1][:end] for end in range(0, len(originals[1]), 37)]
    for original in originals:
        for _ in range(500):
            content = bytearray(original)
            for _ in range(chance.choice((1, 1, 4))):
                content[chance.randrange(len(content))] = chance.randrange(256)
            damaged.append(bytes(content))
    read = 0
    for content in damaged:
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            read += bool(read_trees(path).params)
    assert 0 < read < len(damaged)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
