"""Random numbers, the order of an epoch and the sum tree in plain NumPy, equal to the C++ core's to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: tuple[Array, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, ...]:
    """Philox4x32-10 for many counters at once.

    Args:
        counter: four arrays of uint64 that hold 32-bit words.
        key: two 32-bit words.

    Returns:
        Four such arrays.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _MASK
        c2, c3 = (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def _words(seed: int, draw: int, rows: Array, attempt: int) -> tuple[Array, ...]:
    words = [np.full_like(rows, word) for word in (attempt, draw % 2**32, draw >> 32)]
    return philox4x32((rows, words[0], words[1], words[2]), (seed % 2**32, seed >> 32))


def uniform_indices(seed: int, draw: int, bound: int, count: int) -> npt.NDArray[np.int64]:
    """Unbiased numbers below ``bound`` (< 2^32), by Lemire's method, as the C++ core draws them.

    The key is the seed and the counter (row, attempt, draw); the first two words make the 64-bit number x.
    The result is the high word of x · bound; x is drawn again where the low word is below 2^64 mod bound.

    Source: Lemire, "Fast random integer generation in an interval", 2019.
    """
    result = np.zeros(count, np.int64)
    pending = np.arange(count, dtype=np.uint64)
    attempt = 0
    while pending.size:
        low, high, *_ = _words(seed, draw, pending, attempt)
        lower = low * np.uint64(bound)
        upper = high * np.uint64(bound) + (lower >> _SHIFT)  # the product's upper 96 bits
        accepted = ((upper << _SHIFT) | (lower & _MASK)) >= np.uint64(2**64 % bound)
        result[pending[accepted].astype(np.int64)] = (upper >> _SHIFT)[accepted].astype(np.int64)
        pending = pending[~accepted]
        attempt += 1
    return result


def uniform_doubles(seed: int, draw: int, count: int) -> npt.NDArray[np.float64]:
    """Uniform numbers of [0, 1): the upper 53 bits of the words that ``uniform_indices`` tries first."""
    low, high, *_ = _words(seed, draw, np.arange(count, dtype=np.uint64), 0)
    return (((high << _SHIFT) | low) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: Array) -> Array:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permuted(seed: int, epoch: int, bound: int, indices: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Images of ``indices`` under the permutation of [0, bound) that (seed, epoch) choose.

    A Feistel network with cycle walking; see ``csrc/include/serl_fast/permutation.h``.

    Args:
        seed: of the store.
        epoch: the draw number at which the epoch began.
        bound: 1 … 2^32.
        indices: [N], each below ``bound``.

    Returns:
        [N], each below ``bound``.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
    """
    if not 1 <= bound <= 2**32:
        raise ValueError(f"cannot permute {bound} indices; 1 to 4294967296 are accepted")
    images = np.array(indices, np.uint64)
    if images.size and int(images.max()) >= bound:
        raise ValueError(f"index {images.max()} is not permuted; indices below {bound} are")
    bits = max(6, (bound - 1).bit_length())
    right_bits = bits // 2
    shift = np.uint64(right_bits)
    to_left, to_right = np.uint64(64 - (bits - right_bits)), np.uint64(64 - right_bits)
    keys = _round_keys(seed, epoch)
    walking = np.arange(images.size)
    while walking.size:
        left, right = images[walking] >> shift, images[walking] & np.uint64(2**right_bits - 1)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            left ^= _mix(right + even) >> to_left
            right ^= _mix(left + odd) >> to_right
        images[walking] = left << shift | right
        walking = walking[images[walking] >= np.uint64(bound)]
    return images


def _round_keys(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    # No draw of uniform_indices makes attempt number 2^32 - 1.
    words = _words(seed, epoch, np.arange(4, dtype=np.uint64), 2**32 - 1)
    pairs = [words[1] << _SHIFT | words[0], words[3] << _SHIFT | words[2]]
    return np.stack(pairs, 1).reshape(-1)


class SumTree:
    """16 float32 children to a node, summed in order; see ``csrc/include/serl_fast/sum_tree.h``.

    Args:
        leaves: 1 … 2^32; all are 0 at first.
    """

    def __init__(self, leaves: int) -> None:
        if not 1 <= leaves <= 2**32:
            raise ValueError(f"a sum tree cannot have {leaves} leaves; 1 to 4294967296 are accepted")
        self._levels: list[npt.NDArray[np.float32]] = []  # the leaves first, the root last, each [nodes, 16]
        nodes = leaves
        while not self._levels or nodes > 1:
            nodes = -(-nodes // 16)
            self._levels.append(np.zeros((nodes, 16), np.float32))

    def value(self, leaf: int) -> float:
        """The value of a leaf."""
        return float(self._levels[0].reshape(-1)[leaf])

    def total(self) -> float:
        """The root's children, added in order in double precision."""
        total = 0.0
        for child in self._levels[-1][0].tolist():
            total += child
        return total

    def set(self, leaves: Sequence[int], values: Iterable[float]) -> None:
        """Change leaves; one given twice takes the last of its values."""
        bottom = self._levels[0].reshape(-1)
        for leaf, value in zip(leaves, values, strict=True):
            bottom[leaf] = value
        nodes = np.unique(np.asarray(leaves, np.int64) // 16)
        for below, level in zip(self._levels, self._levels[1:], strict=False):
            sums = np.zeros(len(nodes), np.float32)
            for child in range(16):  # np.sum would add in another order
                sums += below[nodes, child]
            level.reshape(-1)[nodes] = sums
            nodes = np.unique(nodes // 16)

    def find(self, mass: float) -> int:
        """The leaf under a mass in [0, total); one of value 0 only if all are."""
        mass = mass if mass > 0 else 0.0
        at = 0
        for level in reversed(self._levels):
            node = level[at].tolist()  # float32 to double is exact
            last = max((child for child in range(16) if node[child] != 0), default=0)
            child = 0
            while child < last and mass >= node[child]:
                mass -= node[child]
                child += 1
            at = at * 16 + child
        return at
