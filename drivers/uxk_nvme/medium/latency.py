"""Latency as a percentile table: '50:80us 99:250us 99.9:2ms'."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import Final

import uxk

SLOTS: Final = 4096
"""Entries of a table: finer than a hundredth of a per cent."""
_UNITS: Final = {"": 1, "ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_POINT: Final = re.compile(r"(\d{1,3}(?:\.\d{1,6})?):(\d{1,15})(ns|us|ms|s|)")


def table(name: str, text: str) -> list[int]:
    """``SLOTS`` latencies in ns, ascending: the inverse of the distribution, linear between the points.

    Below the first point it is constant, as it is above the last.  ParamError names the parameter.
    """
    points: list[tuple[int, int]] = []
    for word in text.replace(",", " ").split():
        match = _POINT.fullmatch(word)
        if match is None:
            raise _refusal(name, text, word)
        # Exact: 99.9 is no binary fraction.
        slot = int(Fraction(match[1]) * SLOTS // 100)
        latency = int(match[2]) * _UNITS[match[3]]
        if slot > SLOTS or latency > 10**13 or (points and (slot <= points[-1][0] or latency < points[-1][1])):
            raise _refusal(name, text, word)
        points.append((slot, latency))
    if not points:
        raise _refusal(name, text, "")
    slots: list[int] = [points[0][1]] * points[0][0]
    for (low, fast), (high, slow) in pairwise(points):
        slots += [fast + (slow - fast) * step // (high - low) for step in range(high - low)]
    return (slots + [points[-1][1]] * SLOTS)[:SLOTS]


def _refusal(name: str, text: str, word: str) -> uxk.ParamError:
    return uxk.ParamError(
        f"{name}={text!r}: at {word!r}, expected ascending PERCENTILE:LATENCY, for example '50:80us 99:250us 99.9:2ms'"
    )
