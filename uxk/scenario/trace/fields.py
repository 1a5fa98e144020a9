"""Fields of many lines at once: where they begin and end, and what numbers and words stand there.

A row that these functions cannot take, for whatever reason, is marked as not good, and its line is parsed on its own
by code that can say why.  They never take a row that the other code would refuse.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from uxk.scenario.trace.model import I64_MAX, Bools, Ints, Small

DIGITS_MAX: Final = 18
"""Of a number that surely fits into 63 bits."""
WORD_MAX_BYTES: Final = 64
_LOWER: Final = np.frombuffer(bytes(range(256)).lower(), np.uint8)


class Fields(NamedTuple):
    """The lines of a block, and the fields of those lines that have as many as wanted."""

    data: Small
    line_start: Ints
    line_end: Ints
    rows: Ints
    """Numbers of the lines that have as many fields as wanted; the columns below are theirs."""
    start: list[Ints]
    end: list[Ints]


def _lines(data: Small) -> tuple[Ints, Ints]:
    newline = np.flatnonzero(data == 10)
    start = np.concatenate((np.zeros(1, np.int64), newline[:-1] + 1))
    ends_cr = (newline > start) & (data[newline - 1] == 13)
    return start, newline - ends_cr


def split_commas(block: bytes, fields: int) -> Fields:
    """Lines of exactly ``fields`` fields with a comma between them."""
    data = np.frombuffer(block, np.uint8)
    line_start, line_end = _lines(data)
    commas = np.flatnonzero(data == 44)
    first = np.searchsorted(commas, line_start)
    count = np.append(first[1:], len(commas)) - first
    rows = np.flatnonzero(count == fields - 1)
    cuts = [commas[first[rows] + i] for i in range(fields - 1)]
    start = [line_start[rows], *(cut + 1 for cut in cuts)]
    return Fields(data, line_start, line_end, rows, start, [*cuts, line_end[rows]])


def split_blanks(block: bytes, fields: int, *, more: bool) -> Fields:
    """Lines of exactly ``fields`` fields, or of at least as many, with blanks between and perhaps around them."""
    data = np.frombuffer(block, np.uint8)
    line_start, line_end = _lines(data)
    blank = (data == 32) | (data == 9) | (data == 10) | (data == 13)
    edge = np.empty(len(data), np.bool_)
    edge[0] = not blank[0]
    np.not_equal(blank[1:], blank[:-1], out=edge[1:])
    edges = np.flatnonzero(edge)
    starts, ends = edges[0::2], edges[1::2]
    first = np.searchsorted(starts, line_start)
    count = np.append(first[1:], len(starts)) - first
    rows = np.flatnonzero(count >= fields if more else count == fields)
    at = first[rows]
    return Fields(
        data, line_start, line_end, rows, [starts[at + i] for i in range(fields)], [ends[at + i] for i in range(fields)]
    )


def whole_numbers(data: Small, start: Ints, end: Ints) -> tuple[Ints, Bools]:
    """Decimal digits to values, and which are good: 1 to 18 digits and nothing else."""
    width = end - start
    good = (width > 0) & (width <= DIGITS_MAX)
    value: Ints = np.zeros(len(start), np.int64)
    if not good.any():
        return value, good
    least, most = int(width[good].min()), int(width[good].max())
    at = np.where(good, start, 0)
    last = len(data) - 1
    for i in range(most):
        digit = data[np.minimum(at + i, last)] - np.uint8(48)
        if i < least:
            good &= digit <= 9
            value *= 10
            value += digit
        else:
            live = i < width
            good &= (digit <= 9) | ~live
            value = np.where(live, value * 10 + digit.astype(np.int64), value)
    return value, good


def decimals(data: Small, start: Ints, end: Ints, places: int) -> tuple[Ints, Bools]:
    """Decimal fractions times ``10**places``, cut off there, and which are good: digits with at most one point."""
    width = end - start
    good = (width > 0) & (width <= 2 * DIGITS_MAX)
    at, last = np.where(good, start, 0), len(data) - 1
    point = width.copy()
    for i in range(int(width[good].max(initial=0))):
        found = (data[np.minimum(at + i, last)] == 46) & (i < width) & (point == width)
        point[found] = i
    whole, fine = whole_numbers(data, start, start + point)
    has_point = point < width
    digits = np.where(has_point, width - point - 1, 0)
    fraction, clean = whole_numbers(data, start + point + 1, start + point + 1 + digits)
    for i in range(places, int(digits[clean].max(initial=0))):
        fraction = np.where(digits > i, fraction // 10, fraction)
    for i in range(int(digits[clean].min(initial=places)), places):
        fraction = np.where(digits <= i, fraction * 10, fraction)
    unit = 10**places
    good &= fine & (whole < I64_MAX // unit) & (~has_point | clean)
    return np.where(good, whole, 0) * unit + np.where(has_point & good, fraction, 0), good


def words(data: Small, start: Ints, end: Ints, *, lower: bool) -> tuple[list[bytes], Ints, Bools]:
    """Different words, which of them each row has, and which are good: 1 to 64 bytes."""
    width = end - start
    good = (width > 0) & (width <= WORD_MAX_BYTES)
    most = int(width[good].max(initial=1))
    size = 8 if most <= 8 else WORD_MAX_BYTES
    column = np.arange(size)
    at = np.where(good, start, 0)[:, None] + column
    packed = data[np.minimum(at, len(data) - 1)]
    if lower:
        packed = _LOWER[packed]
    packed[column >= width[:, None]] = 0
    keys: npt.NDArray[np.generic] = packed.view(np.uint64 if size == 8 else f"S{size}").ravel()
    if len(keys) and bool((keys == keys[0]).all()):
        different, which = keys[:1], np.zeros(len(keys), np.int64)
    else:
        different, which = np.unique(keys, return_inverse=True)
    return [key.tobytes().rstrip(b"\0") for key in different], which.astype(np.int64), good
