"""Frozen random numbers: the same seed gives the same clip, today and in ten years.

numpy may change how it draws normals between versions; the raw output of its Philox4x64-10 counter generator is
fixed. So only that raw output is used, and the normals are made from it here. A number depends on (seed, domain,
index) alone, never on what was drawn before, which is why any frame of a rollout can be computed first.
"""

import numbers

import numpy as np
import numpy.typing as npt

Z_DOMAIN = 0  # the z of a clip, index 0
MOTION_DOMAIN = 1  # the noise of an anchor, index k

_LARGEST = 2**64 - 1  # key and counter are made of 64-bit words
_UNIT = 2.0**-53  # a float64 holds 53 random bits


def standard_normal(seed: int, domain: int, index: int, count: int) -> npt.NDArray[np.float64]:
    """Draws N(0, 1) numbers that are a pure function of (seed, domain, index).

    Philox runs with key (seed, domain) and counter (0, 0, index, 0); the float64 Box-Muller transform turns every
    pair of its outputs into two normals.

    Returns: float64 [count]; the first numbers do not depend on `count`.
    Raises: ValueError where seed, domain or index is outside 0 .. 2^64 - 1.
    """
    raw = raw_numbers(seed, domain, index, count + count % 2)
    radius = np.sqrt(-2.0 * np.log(((raw[0::2] >> np.uint64(11)) + np.uint64(1)) * _UNIT))  # of u1 in (0, 1]
    angle = 2.0 * np.pi * ((raw[1::2] >> np.uint64(11)) * _UNIT)  # of u2 in [0, 1)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]


def raw_numbers(seed: int, domain: int, index: int, count: int) -> npt.NDArray[np.uint64]:
    """Philox4x64-10 output for one (seed, domain, index): uint64 [count]. Raises ValueError as `standard_normal`."""
    key = [check_word("seed", seed), check_word("domain", domain)]
    counter = [0, 0, check_word("index", index), 0]
    generator = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    return np.asarray(generator.random_raw(count), np.uint64)


def check_word(name: str, value: int) -> int:
    """Returns `value` as an int; raises ValueError, naming `name`, where it does not fit an unsigned 64-bit word."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= value <= _LARGEST:
        raise ValueError(f"{name}: found {value!r}, expected a whole number from 0 to 2^64 - 1")
    return int(value)
