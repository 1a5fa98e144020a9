"""Exponential and logarithm in integers, for evidence: fixed point with 48 bits after the point.

Range reduction by powers of two, then a series: Taylor for the exponential, 2 artanh((m-1)/(m+1)) for the
logarithm (Muller, Elementary Functions, 2016, chapter 11).  Errors are below 2**-40.
"""

from __future__ import annotations

from typing import Final

from uxk.errors import KernelBug

BITS: Final = 48
ONE: Final = 1 << BITS
"""The number 1."""


def _ln_mantissa(m: int) -> int:
    """ln of ``m`` in 1..2, fixed point."""
    t = (m - ONE << BITS) // (m + ONE)
    square = t * t >> BITS
    total, power, k = 0, t, 1
    while power:
        total += power // k
        power = power * square >> BITS
        k += 2
    return 2 * total


LN2: Final = _ln_mantissa(2 * ONE)
"""ln 2."""


def ln(value: int) -> int:
    """Natural logarithm of a fixed-point number above 0; :class:`KernelBug` for others."""
    if value <= 0:
        raise KernelBug(f"ln of {value}: expected above 0")
    shift = value.bit_length() - 1 - BITS
    mantissa = value >> shift if shift >= 0 else value << -shift
    return shift * LN2 + _ln_mantissa(mantissa)


def exp(value: int) -> int:
    """e to the power of a fixed-point number; what is too small becomes 0."""
    halvings, rest = divmod(value, LN2)
    total = term = ONE
    k = 1
    while term:
        term = (term * rest >> BITS) // k
        total += term
        k += 1
    return total << halvings if halvings >= 0 else total >> -halvings


def log_cosh(value: int) -> int:
    """ln cosh of a fixed-point number, without overflow for large ones."""
    size = abs(value)
    return size - LN2 + ln(ONE + exp(-2 * size))


def ratio(numerator: int, denominator: int) -> int:
    """A fraction as fixed point, rounded towards zero so that opposite numbers stay opposite."""
    size = (abs(numerator) << BITS) // denominator
    return size if numerator >= 0 else -size


def milli(value: int) -> int:
    """Thousandths, for people to read."""
    return value * 1000 >> BITS
