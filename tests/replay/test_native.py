"""The extension's random numbers, against published and exact answers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from serl_fast.replay import Field, Schema, _native, reference_random
from serl_fast.replay.layout import columns_of

ONES = 0xFFFFFFFF
# Counter, key, result: from Random123's known-answer tests.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_known_answers(counter, key, result):
    assert _native.philox4x32(counter, key) == result
    words = reference_random.philox4x32(tuple(np.array([word], np.uint64) for word in counter), tuple(key))
    assert [int(word[0]) for word in words] == result


@pytest.mark.parametrize("bound", [1, 2, 7, 2**31, 2**32 - 1, 2**32 + 5, 2**63 + 1, 2**64 - 1])
def test_indices_equal_exact_arithmetic(bound):
    seed, draw = 0x123456789ABCDEF0, 0xFEDCBA987654321
    expected = []
    for row in range(200):
        attempt = 0
        while True:
            counter = [row, attempt, draw % 2**32, draw >> 32]
            words = _native.philox4x32(counter, [seed % 2**32, seed >> 32])
            product = (words[1] << 32 | words[0]) * bound
            if product % 2**64 >= 2**64 % bound:
                break
            attempt += 1
        expected.append(product >> 64)
    assert _native.uniform_indices(seed, draw, bound, 200).tolist() == expected
    if bound < 2**32:
        assert reference_random.uniform_indices(seed, draw, bound, 200).tolist() == expected


def test_a_bound_of_zero_is_refused():
    with pytest.raises(ValueError, match="bound is 0"):
        _native.uniform_indices(0, 0, 0, 1)


@pytest.mark.parametrize("bound", [1, 2, 3, 63, 64, 65, 1000])
def test_the_order_of_an_epoch_is_a_permutation(bound):
    orders = [reference_random.permuted(seed, 5, bound, np.arange(bound)).tolist() for seed in range(4)]
    assert all(sorted(order) == list(range(bound)) for order in orders)
    assert bound < 63 or len(set(map(tuple, orders))) == 4
    for wrong in (0, 2**32 + 1):
        with pytest.raises(ValueError, match="cannot permute"):
            reference_random.permuted(0, 0, wrong, [])
    with pytest.raises(ValueError, match="is not permuted"):
        reference_random.permuted(0, 0, bound, [bound])


def test_the_sum_tree_of_the_twin_by_hand():
    tree = reference_random.SumTree(300)  # three levels
    tree.set([0, 17, 299], [1.0, 2.0, 4.0])
    assert (tree.total(), tree.value(17), tree.value(18)) == (7.0, 2.0, 0.0)
    found = [tree.find(mass) for mass in (-1.0, 0.0, 0.99, 1.0, 2.99, 3.0, 6.99, 7.0, 99.0, float("nan"))]
    assert found == [0, 0, 0, 17, 17, 299, 299, 299, 299, 0]
    tree.set([17, 17], [9.0, 0.0])
    assert [tree.find(mass) for mass in (0.5, 1.0)] == [0, 299]


@pytest.mark.parametrize("length", [None, 1, 5])
def test_both_sides_agree_on_the_arrays_of_a_batch(length):
    ends = [Field("rewards", "float32", ()), Field("terminated", "bool", ()), Field("truncated", "bool", ())]
    looks = [Field("observations/a/front", "uint8", (4, 5, 3), 3), Field("observations/state", "float32", (7,))]
    schema = Schema(looks, [Field("actions", "float32", (2,)), *ends, Field("label", "int64", (2, 2))])
    tuples = [[(f.name, f.dtype, f.shape, f.stack) for f in table] for table in (schema.observations, schema.steps)]
    native = [(name, dtype, tuple(shape)) for name, dtype, shape in _native.outputs(*tuples, length or 0)]
    assert native == [(column.name, column.dtype, column.shape) for column in columns_of(schema, length)]


def test_the_threads_of_a_gather_can_be_set():
    before = _native.threads()
    try:
        _native.set_threads(2)
        assert _native.threads() == 2
        with pytest.raises(ValueError):
            _native.set_threads(0)
    finally:
        _native.set_threads(before)


def in_new_interpreter(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_missing_extension_is_one_helpful_line():
    code = "import sys; sys.modules['serl_fast.replay._native'] = None; import serl_fast.replay"
    last = in_new_interpreter(code).stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: the extension of serl_fast cannot be loaded")
    assert last.endswith("pip install -e .")


def test_the_store_needs_numpy_only():
    code = "import sys, serl_fast.replay, serl_fast.replay.reference; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in in_new_interpreter(code).stdout.split()}
    assert "numpy" in loaded
    assert not loaded & {"torch", "gymnasium", "scipy", "pandas"}
