"""The extension's random numbers, against published and exact answers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from serl_fast.replay import _native, reference

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
    words = reference.philox4x32(tuple(np.array([word], np.uint64) for word in counter), tuple(key))
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
        assert reference.uniform_indices(seed, draw, bound, 200).tolist() == expected


def test_a_bound_of_zero_is_refused():
    with pytest.raises(ValueError, match="bound is 0"):
        _native.uniform_indices(0, 0, 0, 1)


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
