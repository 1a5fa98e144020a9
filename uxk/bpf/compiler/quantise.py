"""Real weights become integers with an exponent each, such that no sum can leave 62 bits.

All terms of a sum share one fixed point, as fine as the ranges of the inputs allow; each weight is a mantissa of so
many bits and a shift to that point.  Arithmetic here is exact (fractions), so the bounds are, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Final, NamedTuple

from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import Linear, Term

SUM_BITS: Final = 61
"""Sums stay below 2**61: rounding may add to them, and a comparison may subtract."""
INPUT_BITS: Final = 32
"""Inputs count from their low end, cut to so many bits: the product with a mantissa then has bounds that Linux sees."""
MANTISSA_BITS: Final = 30
"""Of a weight, at most: it is an immediate."""
POINT_MAX: Final = 61
"""Largest shift of a result."""


class Range(NamedTuple):
    """What an input may be; ``unit`` is what 1 of it stands for."""

    low: int
    high: int
    unit: Fraction = Fraction(1)


def number(value: object, what: str) -> Fraction:
    """A weight as it is, exactly.  Raises ``CompileError`` for what is no finite number."""
    try:
        real = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise CompileError(f"{what} is {str(value)[:40]!r}; expected a number that is not too large") from None
    if not math.isfinite(real):
        raise CompileError(f"{what} is {real}; expected a finite number")
    return Fraction(value) if isinstance(value, int) else Fraction(real)


def linear(
    weights: Mapping[int, Fraction], bias: Fraction, ranges: Mapping[int, Range], *, bits: int = MANTISSA_BITS,
    rounded: bool = False, what: str = "the sum",
) -> tuple[Linear, int]:  # fmt: skip
    """The sum of ``bias`` and ``weights[source] * x``, and where its point is: 1 is ``1 << point``.

    ``rounded``: the linear form gives the nearest whole number; else the sum at its point, of which the sign is
    right.  Raises ``CompileError`` if the sum may be too large.
    """
    if not 1 <= bits <= MANTISSA_BITS:
        raise CompileError(f"{bits} bits for weights; expected 1 to {MANTISSA_BITS}")
    terms = [(source, weight * ranges[source].unit) for source, weight in weights.items() if weight]
    for source, weight in terms:
        bias += weight * ranges[source].low
    terms = [(source, weight) for source, weight in terms if ranges[source].high > ranges[source].low]
    reach = abs(bias) + sum(abs(weight) * (ranges[s].high - ranges[s].low) for s, weight in terms)
    point = SUM_BITS - 1 - log2_above(reach) if reach else POINT_MAX
    if rounded:
        point = min(point, POINT_MAX)
        if point < 0:
            raise CompileError(
                f"{what} may be as large as 2**{log2_above(reach)}, beyond 2**{SUM_BITS - 1}; "
                "narrow the schema's ranges, or lower the scale"
            )
    made = [_term(source, weight, ranges[source], point, bits) for source, weight in terms]
    offset = _shifted(bias, point) + (1 << point - 1 if rounded and point else 0)
    result = Linear(tuple(term for term in made if term is not None), offset, point if rounded else 0)
    low, high = result._replace(shift=0).bounds
    if low < -(1 << SUM_BITS) or high > 1 << SUM_BITS:  # not by the choice of the point above; kept as the proof of it
        raise CompileError(f"{what} may leave {SUM_BITS} bits: {low}..{high}")
    return result, point


def _term(source: int, weight: Fraction, span: Range, point: int, bits: int) -> Term | None:
    """None if the weight is too small to be seen at this point."""
    width = span.high - span.low
    coarse = max(0, width.bit_length() - INPUT_BITS)
    size = abs(weight) * (1 << coarse)
    exponent = log2_above(size) + point - bits  # size * 2**point / 2**exponent is at most 2**bits
    if exponent < -SUM_BITS:
        exponent = -SUM_BITS
    mantissa = _shifted(size, point - exponent)
    if mantissa == 0:
        return None
    term = Term(source, span.low, span.high, coarse, mantissa, exponent, weight < 0)
    return term if term.bound else None


def _shifted(value: Fraction, bits: int) -> int:
    """``value * 2**bits``, rounded to the nearest."""
    return round(value * (1 << bits) if bits >= 0 else value / (1 << -bits))


def unit(bits: int) -> Fraction:
    """``2 ** -bits``."""
    return Fraction(1, 1 << bits) if bits >= 0 else Fraction(1 << -bits)


def log2_above(value: Fraction) -> int:
    """The smallest n with ``value <= 2**n``, for a positive value."""
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    power = Fraction(1 << guess) if guess >= 0 else Fraction(1, 1 << -guess)
    return guess if value <= power else guess + 1
