"""crc32c of joined byte ranges, from the checksums of the parts alone.

A CRC is a polynomial remainder over GF(2), so appending n bytes multiplies the checksum of what came before by
x^(8n) modulo the CRC's polynomial; the checksum of the appended bytes is then added (Castagnoli polynomial,
RFC 3720 appendix B.4; the method is that of zlib's ``crc32_combine``).
"""

from __future__ import annotations

from base64 import b64encode
from functools import lru_cache

# Bit 31 is the coefficient of x^0, as in the checksums themselves ("reflected").
_POLYNOMIAL = 0x82F63B78
_ONE = 1 << 31
_X_TO_THE_8 = 1 << 23


def combine(first: int, second: int, second_length: int) -> int:
    """Checksum of two adjacent ranges.

    Args:
        first, second: their crc32c values.
        second_length: bytes of the second range.
    """
    return _multiply(_shift(second_length), first) ^ second


def encode(crc: int) -> str:
    """A checksum as Google Cloud Storage writes it: base64 of the big-endian bytes."""
    return b64encode(crc.to_bytes(4, "big")).decode("ascii")


@lru_cache(maxsize=1024)  # the lengths of pieces and tensors repeat
def _shift(length: int) -> int:
    """x^(8 length) modulo the polynomial, by repeated squaring."""
    result, square = _ONE, _X_TO_THE_8
    while length:
        if length & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        length >>= 1
    return result


def _multiply(a: int, b: int) -> int:
    """Product of two polynomials modulo the CRC's."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
