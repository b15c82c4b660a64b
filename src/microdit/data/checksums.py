"""The checksum by which a read finds bytes that are not those the index was made from."""

import numpy as np
from jaxtyping import UInt8

WORD = 8
MODULUS = (1 << 64) - 1


def word_sum(buffer: bytes | memoryview | UInt8[np.ndarray, " n"]) -> int:
    """Sum of the little-endian 64-bit words (mod 2^64), the last one padded with zeros.

    It runs at the speed of memory. Any one changed byte changes it, as does a block of zeros or a shifted file unless
    by a chance of 2^-64; words that change places do not, and it is no defence against a forger.
    """
    data = buffer if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, np.uint8)
    tail = data.size % WORD
    if not tail:
        return int(np.add.reduce(data.view("<u8"))) if data.size else 0
    return (word_sum(data[:-tail]) + int.from_bytes(data[-tail:].tobytes(), "little")) & MODULUS
