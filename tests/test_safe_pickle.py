"""The safe unpickler: what it reads back, and the files it refuses without running or allocating anything."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import pickletools
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serl_fast import safe_pickle

PROTOCOLS = [2, 3, 4, 5]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


VALUES: dict[str, Any] = {
    "containers": {"a": [1, 2.5, (True, None)], "b": {"c": "text", 3: b"bytes", "d": b""}, "e": {1, 2}},
    "frozen": frozenset({1, 2}),
    "numbers": [0, -1, 255, 65536, 2**40, -(2**80), 1.5, 1 + 2j, False],
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "images": np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": np.arange(20)[::3],
    "big endian": np.arange(5, dtype=">f8"),
    "bool": np.array([True, False]),
    "half": np.arange(3, dtype=np.float16),
    "complex": np.array([1 + 2j]),
    "strings": np.array(["ab", "c"]),
    "bytes": np.array([b"ab", b"c"]),
    "scalar": np.float32(1.5),
    "bool scalar": np.bool_(True),
    "zero-dim": np.array(3.0),
    "empty": np.zeros((0, 4), np.float32),
    "dtype": np.dtype("float32"),
    "bytearray": bytearray(b"abc"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", VALUES)
def test_reads_back_what_pickle_wrote(name: str, protocol: int) -> None:
    assert same(VALUES[name], safe_pickle.loads(pickle.dumps(VALUES[name], protocol)))


def test_ordered_dict_becomes_dict() -> None:
    value = safe_pickle.loads(pickle.dumps(collections.OrderedDict(b=1, a=2)))
    assert type(value) is dict
    assert list(value) == ["b", "a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_module_paths_of_numpy(protocol: int) -> None:
    data = pickle.dumps([np.arange(3.0), np.float32(2)], protocol)
    other = swap_numpy_core(data)
    assert other != data
    assert same(safe_pickle.loads(data), safe_pickle.loads(other))


def swap_numpy_core(data: bytes) -> bytes:
    """The same pickle as the other generation of NumPy writes it: numpy._core <-> numpy.core."""
    old, new = (b"numpy._core", b"numpy.core") if b"numpy._core" in data else (b"numpy.core", b"numpy._core")
    for suffix in (b".multiarray", b".numeric"):
        before, after = old + suffix, new + suffix
        # STACK_GLOBAL takes a counted string, GLOBAL a line; frames are dropped as their length would change.
        data = data.replace(bytes([len(before)]) + before, bytes([len(after)]) + after).replace(before, after)
    if data[1] >= 4 and data[2:3] == pickle.FRAME:
        data = data[:2] + data[11:]
    return data


def test_arrays_are_writable_and_shared_parts_stay_shared() -> None:
    array = np.zeros(3)
    first, second = safe_pickle.loads(pickle.dumps([array, array]))
    first[0] = 1.0
    assert second[0] == 1.0


class Reduced:
    """Pickles as a call of its choice."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


MARKER = "executed-by-the-unpickler"


def put(index: int) -> bytes:
    return pickle.LONG_BINPUT + struct.pack("<I", index)


def proto(body: bytes, stop: bytes = b".") -> bytes:
    return b"\x80\x04" + body + stop


def short(text: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


def array_with(raw: bytes, shape: tuple[int, ...], dtype: str = "f4") -> bytes:
    """An array whose claims can be chosen freely."""
    state = (1, shape, np.dtype(dtype), False, raw)
    reconstruct = np.zeros(1).__reduce__()[0]
    return pickle.dumps(Reduced(reconstruct, (np.ndarray, (0,), b"b"), state), 4)


def self_reference() -> bytes:
    loop: list[Any] = []
    loop.append(loop)
    return pickle.dumps(loop)


def deep(levels: int) -> bytes:
    return proto(b"]" * levels + b"a" * (levels - 1))


def torch_tensor() -> bytes:
    torch = pytest.importorskip("torch")
    return pickle.dumps(torch.zeros(2))


def torch_file() -> bytes:
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream)
    return stream.getvalue()


def state_for_a_global() -> bytes:
    """BUILD on the global itself: would overwrite attributes of a shared function."""
    return proto(short("numpy") + short("dtype") + pickle.STACK_GLOBAL + b"N}" + short("x") + b"K\x01s\x86b")


DEMO = pickle.dumps([{"actions": np.zeros(7, np.float32)}])

HOSTILE: dict[str, tuple[Any, str]] = {
    "os.system": (
        lambda: pickle.dumps(Reduced(os.system, (f"touch {MARKER}",))),
        r"refused the global '\w+\.system'",
    ),
    "os.system, protocol 2": (lambda: pickle.dumps(Reduced(os.system, ("true",)), 2), r"\.system"),
    "eval": (lambda: pickle.dumps(Reduced(eval, ("1",))), r"builtins\.eval"),
    "exec": (lambda: pickle.dumps(Reduced(exec, ("1",))), r"builtins\.exec"),
    "getattr": (lambda: pickle.dumps(Reduced(getattr, (1, "real"))), r"builtins\.getattr"),
    "subprocess": (lambda: pickle.dumps(Reduced(subprocess.Popen, (["true"],))), r"subprocess\.Popen"),
    "nested name": (lambda: pickle.dumps(Path), r"pathlib"),
    "numpy.load": (lambda: proto(short("numpy") + short("load") + pickle.STACK_GLOBAL), r"numpy\.load"),
    "dotted name": (
        lambda: proto(short("numpy") + short("ndarray.tofile") + pickle.STACK_GLOBAL),
        r"numpy\.ndarray\.tofile",
    ),
    "torch tensor": (torch_tensor, r"torch"),
    "torch file": (torch_file, r"no pickle"),
    "object array": (lambda: pickle.dumps(np.array([{}, []], dtype=object)), r"dtype 'O8'"),
    "structured array": (lambda: pickle.dumps(np.zeros(2, [("a", "f4")])), r"dtype 'V4'"),
    "dates": (lambda: pickle.dumps(np.zeros(2, "datetime64[s]")), r"dtype 'M8'"),
    "subclass": (lambda: pickle.dumps(np.ma.array([1.0])), r"numpy\.ma"),
    "own class": (lambda: pickle.dumps(Reduced(Reduced, ())), r"Reduced"),
    "bytes(n)": (lambda: pickle.dumps(Reduced(bytes, (2**60,))), r"bytes with arguments"),
    "bytearray(n)": (lambda: pickle.dumps(Reduced(bytearray, (2**60,))), r"bytearray of anything"),
    "state for a global": (state_for_a_global, r"state for a global"),
    "truncated": (lambda: DEMO[:-20], r"truncated"),
    "without stop": (lambda: DEMO[:-1], r"truncated"),
    "header only": (lambda: b"\x80\x04", r"truncated"),
    "trailing bytes": (lambda: DEMO + b"more", r"4 bytes follow"),
    "text": (lambda: b"actions,rewards\n1,2\n", r"no pickle"),
    "protocol 0": (lambda: pickle.dumps([1, 2], 0), r"no pickle"),
    "zip": (lambda: b"PK\x03\x04" + bytes(100), r"no pickle"),
    "noise": (lambda: b"\x80\x04" + bytes(range(255, 128, -1)), r"no opcode"),
    "protocol 9": (lambda: b"\x80\x09N.", r"unsupported pickle protocol"),
    "huge bytes": (lambda: proto(pickle.BINBYTES8 + struct.pack("<Q", 2**62)), r"truncated"),
    "huger bytes": (lambda: proto(pickle.BINBYTES8 + struct.pack("<Q", 2**64 - 1)), r"truncated"),
    "huge text": (lambda: proto(pickle.BINUNICODE + struct.pack("<I", 2**32 - 1)), r"truncated"),
    "huge number": (lambda: proto(pickle.LONG4 + struct.pack("<i", 2**31 - 1)), r"truncated"),
    "negative length": (lambda: proto(pickle.LONG4 + struct.pack("<i", -1)), r"truncated"),
    "huge frame": (
        lambda: proto(pickle.FRAME + struct.pack("<Q", 2**60)),
        r"not a readable pickle|truncated",
    ),
    "huge memo": (lambda: proto(b"]" + put(2**32 - 1)), r"memo index"),
    "huge shape": (lambda: array_with(b"1234", (2**40, 2**20)), r"needs \d+ bytes but has 4"),
    "negative shape": (lambda: array_with(b"1234", (-1, -1)), r"array shape"),
    "short array": (lambda: array_with(b"1234", (2,)), r"needs 8 bytes but has 4"),
    "many axes": (lambda: array_with(b"", (0,) * 100), r"array shape"),
    "holds itself": (self_reference, r"holds itself"),
    "deep nesting": (lambda: deep(100_000), r"nested"),
    "stack underflow": (lambda: proto(b"a"), r"not a readable pickle"),
    "missing memo": (lambda: proto(b"h\x07"), r"not a readable pickle"),
    "persistent id": (lambda: proto(b"NQ"), r"no opcode"),
    "extension": (lambda: proto(b"\x82\x01"), r"no opcode"),
    "array as key": (
        lambda: b"\x80\x02}" + pickle.dumps(np.zeros(1), 2)[2:-1] + b"Ns.",
        r"key or set element",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_broken_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = HOSTILE[name]
    path = tmp_path / "demo.pkl"
    path.write_bytes(make())
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message) as caught:
        safe_pickle.load(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / MARKER).exists()
    assert time.perf_counter() - start < 60.0


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.pkl"
    path.touch()
    with pytest.raises(ValueError, match=r"empty\.pkl is empty"):
        safe_pickle.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        safe_pickle.load(tmp_path / "absent.pkl")


def test_shared_containers_do_not_expand() -> None:
    """Forty doublings: 2**40 items if every reference were followed anew."""
    value: list[Any] = []
    for _ in range(40):
        value = [value, value]
    assert safe_pickle.loads(pickle.dumps(value)) is not None


def test_many_tuples_keep_their_own_values() -> None:
    value = [(i, (i, np.float32(i))) for i in range(1000)]
    assert same(value, safe_pickle.loads(pickle.dumps(value)))


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_never_raise_anything_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    good = pickle.dumps([{"a": np.arange(4.0), "b": (1, "x", b"y"), "c": np.float32(1)}] * 3, int(rng.integers(2, 6)))
    for _ in range(200):
        data = bytearray(good)
        for position in rng.integers(2, len(data), size=int(rng.integers(1, 4))):
            data[position] = rng.integers(256)
        with contextlib.suppress(ValueError):
            safe_pickle.loads(bytes(data))


def test_the_scanner_knows_every_opcode_it_admits() -> None:
    names = {opcode.name for opcode in pickletools.opcodes}
    assert names >= safe_pickle._OPCODES
