"""Counter-based (stateless) random numbers, the same on every machine and under every version of numpy.

A number is a SplitMix64 hash of (seed, stream, number, count), such as a document and the count of its samples. Streams
separate uses that share counters. What is generated for one document depends neither on the other documents nor on how
many processes share the work. About 30 nanoseconds per number; not for secrets.
"""

import numpy as np

BLANK, SHUFFLE, ORDER, SEQUENCES = 2, 3, 5, 6
"""Streams: which samples are blanked, the order of a phase, the order of a group, the order of packed sequences."""
CHUNK = 2**17  # numbers generated at once: what a core's cache holds


def hash_counters(seed: int, stream: int, number: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(n,) uint64 random bits from counters (n,) integers."""
    value = np.zeros(1, dtype=np.uint64)
    for word in (np.array([seed % 2**64], dtype=np.uint64), np.array([stream]), number, count):
        value = word.astype(np.uint64) + (value + np.uint64(0x9E3779B97F4A7C15))
        value ^= value >> np.uint64(30)
        value *= np.uint64(0xBF58476D1CE4E5B9)
        value ^= value >> np.uint64(27)
        value *= np.uint64(0x94D049BB133111EB)
        value ^= value >> np.uint64(31)
    return value


def uniform(seed: int, stream: int, number: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(n,) float64 in [0, 1) from counters."""
    return (hash_counters(seed, stream, number, count) >> np.uint64(11)) * 2.0**-53


def shuffle_order(seed: int, stream: int, number: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(n,) int64 order that sorts hashes of the counters; ties of 2**(64 - bits of n) keep their order."""
    size = len(number)
    mask = np.uint64((1 << max(1, (size - 1).bit_length())) - 1)
    key = np.empty(size, dtype=np.uint64)
    for first in range(0, size, CHUNK):
        part = slice(first, min(size, first + CHUNK))
        index = np.arange(first, part.stop, dtype=np.uint64)
        key[part] = hash_counters(seed, stream, number[part], count[part]) & ~mask | index
    # one sort of whole keys is several times faster than an argsort
    key.sort()
    key &= mask
    return key.view(np.int64)
