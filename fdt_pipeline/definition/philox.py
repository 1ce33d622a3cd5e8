"""Philox4x32-10, the counter-based random number generator behind every decision.

Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; constants of the Random123 library.
A number is a function of (seed, stream, epoch, index, block) alone, so plans need no state, and any rank, thread or
device that asks for the same one gets the same one.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10


class Stream(IntEnum):
    """The fourth counter word: what the numbers are for. Two uses never share a stream, so they never collide."""

    PLAN = 0
    EPOCH_ORDER = 1
    SHARD_ORDER = 2
    SHARDING = 3
    READER = 4
    SUBSET = 5
    CROP = 6
    PREPROCESS = 7


def philox4x32(counter: npt.ArrayLike, key: npt.ArrayLike) -> U32:
    """Philox4x32-10: counter u32[... 4], key u32[... 2] (they broadcast) -> u32[... 4]."""
    counter = np.asarray(counter, np.uint32)
    key = np.asarray(key, np.uint32)
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    # Key and round number are widened to 64 bits and cut again: NumPy warns when 32-bit scalars wrap around.
    schedule = key[..., None, :].astype(np.uint64) + np.arange(_ROUNDS, dtype=np.uint64)[:, None] * _WEYL
    schedule = (schedule & _LOW).astype(np.uint32)
    for round_ in range(_ROUNDS):
        k0, k1 = schedule[..., round_, 0], schedule[..., round_, 1]
        p0 = c0.astype(np.uint64) * _MULTIPLIERS[0]
        p1 = c2.astype(np.uint64) * _MULTIPLIERS[1]
        high0, low0 = (p0 >> _HALF).astype(np.uint32), (p0 & _LOW).astype(np.uint32)
        high1, low1 = (p1 >> _HALF).astype(np.uint32), (p1 & _LOW).astype(np.uint32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1)


def random_words(seed: int, stream: Stream, epoch: int, index: npt.ArrayLike, block: npt.ArrayLike) -> U32:
    """Four random words for each (index, block): integers [...] and [...] (they broadcast) -> u32[... 4].

    The counter is (block, index, epoch, stream) and the key the 64 bits of the seed.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    if not 0 <= epoch < 2**32:
        raise ValueError(f"epoch must be in [0, 2**32), got {epoch}")
    index, block = np.broadcast_arrays(np.asarray(index, np.int64), np.asarray(block, np.int64))
    for name, value in (("index", index), ("block", block)):
        if value.size and not (value.min() >= 0 and value.max() < 2**32):
            raise ValueError(f"{name} must be in [0, 2**32), got values in [{value.min()}, {value.max()}]")
    counter = np.empty((*index.shape, 4), np.uint32)
    counter[..., 0], counter[..., 1], counter[..., 2], counter[..., 3] = block, index, epoch, int(stream)
    return philox4x32(counter, np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))


def bounded64(high: npt.ArrayLike, low: npt.ArrayLike, bound: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """floor((high * 2**32 + low) * bound / 2**64), 0 < bound < 2**32: uniform on [0, bound), off by < bound / 2**64."""
    bound = np.asarray(bound, np.uint64)
    carry = (np.asarray(low, np.uint64) * bound) >> _HALF
    return ((np.asarray(high, np.uint64) * bound + carry) >> _HALF).astype(np.int64)


def bounded32(word: npt.ArrayLike, bound: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """floor(word * bound / 2**32): uniform on [0, bound), off by < bound / 2**32; for small bounds such as shifts."""
    return ((np.asarray(word, np.uint64) * np.asarray(bound, np.uint64)) >> _HALF).astype(np.int64)


def permutation(seed: int, stream: Stream, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """i64[n], a uniform permutation of 0..n-1: the order of n random 64-bit keys (ties by index)."""
    words = random_words(seed, stream, epoch, np.arange(n), 0).astype(np.uint64)
    return np.argsort((words[:, 0] << _HALF) | words[:, 1], kind="stable")
