"""Random numbers from counters: no generator, no state, the same on every machine and under every version of numpy.

A number is a hash (SplitMix64) of (seed, stream, number, count): of a document and its visit, say. Streams keep uses
apart that share counters. So what is drawn for one document does not depend on which others there are, on their order,
or on how many processes share the work. About 30 nanoseconds a number; not for secrets.
"""

import numpy as np

BLANK, SHUFFLE, ORDER, ROWS = 2, 3, 5, 6
"""Streams: which visits are blanked, the order of a phase, the order of a group, the order of rows."""
CHUNK = 2**17
"""Numbers drawn at once: what a core's cache holds."""
_GOLDEN = 0x9E3779B97F4A7C15


def hashed(seed: int, stream: int, number: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(n,) uint64 random bits from counters alone (SplitMix64 steps), equal on every machine."""
    whole = 2**64 - 1
    first = 0
    for word in (seed, stream):
        first = (first + word + _GOLDEN) & whole
        first = ((first ^ (first >> 30)) * 0xBF58476D1CE4E5B9) & whole
        first = ((first ^ (first >> 27)) * 0x94D049BB133111EB) & whole
        first ^= first >> 31
    value = number.astype(np.uint64) + np.uint64((first + _GOLDEN) & whole)
    value = _stirred(value)
    value += count.astype(np.uint64)
    value += np.uint64(_GOLDEN)
    return _stirred(value)


def _stirred(value: np.ndarray) -> np.ndarray:
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return value


def unit(seed: int, stream: int, number: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(n,) float64 in [0, 1) from counters."""
    return (hashed(seed, stream, number, count) >> np.uint64(11)) * 2.0**-53


def shuffled(seed: int, stream: int, number: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(n,) int64 order that sorts hashes of the counters; ties of 2**(64 - bits of n) keep their order."""
    size = len(number)
    mask = np.uint64((1 << max(1, (size - 1).bit_length())) - 1)
    key = np.empty(size, dtype=np.uint64)
    for first in range(0, size, CHUNK):
        part = slice(first, min(size, first + CHUNK))
        index = np.arange(first, part.stop, dtype=np.uint64)
        key[part] = hashed(seed, stream, number[part], count[part]) & ~mask | index
    # one sort of whole keys is several times faster than an argsort
    key.sort()
    key &= mask
    return key.view(np.int64)
