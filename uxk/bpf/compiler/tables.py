"""Nets too wide for the stack: their weights become data, which a counted loop walks through.

Each value of a layer has a row of signed whole numbers of 8, 16 or 32 bits with a scale of its own; features are
scaled to use all bits of their values, so a weight's share of the row's scale is its share of the sum.  How long sums
get follows from the widths alone: the proof that none overflows holds for any weights, also for those that replace
them later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import SUM_BITS_TABLED, Column, Tabled
from uxk.bpf.compiler.nets import Net, rows_of
from uxk.bpf.compiler.quantise import MANTISSA_BITS, POINT_MAX, Range, log2_above, unit

VALUE_BITS_MAX: Final = 31
SLOTS: Final = 64
"""Numbers on the stack: values given, and sums of the layer that they lead to."""
WIDTH_MAX: Final = 1 << 12
"""Most values of a layer."""
PRODUCTS_MAX: Final = 40_000
"""Weights of a net: four instructions each, once for each area; Linux gives up beyond a million."""
GENERATION_BYTES: Final = 8
WEIGHTS_MAP: Final = 0
"""The number of the map with the weights: a 64-bit generation, then two areas, of which its lowest bit takes one."""


class Stage(NamedTuple):
    """One layer, its values on the stack; or two, the first of which (``through``) is a loop and never stored."""

    given: int
    through: int
    made: int


def tabled(net: Net, ranges: Mapping[int, Range], values: Sequence[int], *, scale: Fraction, bits: int) -> Tabled:
    """A net in the form of tables; the last layer's shapes are checked by the caller.  ``CompileError``."""
    if not 1 <= bits <= MANTISSA_BITS:
        raise CompileError(f"{bits} bits for weights; expected 1 to {MANTISSA_BITS}")
    width_bytes = 1 if bits <= 8 else 2 if bits <= 16 else 4
    most = min(1 << bits, 1 << 8 * width_bytes - 1) - 1
    widths = [len(ranges), *(np.size(biases) for _, biases in net.layers)]
    stages(widths)
    ones = [_value_bits(given, width_bytes) for given in widths[:-1]]
    columns = tuple(
        Column(each.low, each.high, ones[0] - (each.high - each.low).bit_length()) for each in ranges.values()
    )
    given = {n: Range(c.low, c.value(c.high), unit(c.shift)) for n, c in enumerate(columns)}
    layers, shifts = list[tuple[tuple[int, ...], ...]](), list[int]()
    for n, one in enumerate(ones):
        last = n == len(ones) - 1
        rows = rows_of(net, n, len(given))
        scaled = [_scaled(row, bias, given, one, scale if last and not values else Fraction(1)) for row, bias in rows]
        points = [_point(row, most) for row in scaled]
        if last:
            shifts.append(0 if values else _last_shift(points[0]))
            points = [min(points) if values else shifts[-1]] * len(points)
        else:
            room = 8 * width_bytes - 1 + one + max(0, len(given).bit_length() - 2)
            shifts.append(room - ones[n + 1])
            points = [_lowered(row, point, given, one, room) for row, point in zip(scaled, points, strict=True)]
        whole = tuple(_whole(row, point) for row, point in zip(scaled, points, strict=True))
        layers.append(whole)
        if not last:
            given = {
                k: Range(0, max(0, _reach(row, given, one)) >> shifts[-1], unit(point - shifts[-1]))
                for k, (row, point) in enumerate(zip(whole, points, strict=True))
            }
    return Tabled(columns, tuple(layers), tuple(ones), tuple(shifts), width_bytes, tuple(values))


def too_wide(net: Net, given: int) -> bool:
    """Whether values of two layers together do not fit on the stack, which weights as code need."""
    widths = [given, *(np.size(biases) for _, biases in net.layers)]
    return any(a + b > SLOTS for a, b in pairwise(widths))


def stages(widths: Sequence[int]) -> tuple[Stage, ...]:
    """How the layers are gone through: a wide one is never stored, but added at once to the sums of the next.

    ``CompileError`` if what must be stored is more than the stack holds.
    """
    products = sum((given + 1) * made for given, made in pairwise(widths))
    if max(widths) > WIDTH_MAX or products > PRODUCTS_MAX:
        raise CompileError(
            f"a net of {'x'.join(map(str, widths))}, {products} weights; at most {WIDTH_MAX} values of a layer, and "
            f"{PRODUCTS_MAX} weights"
        )
    found = _stages(tuple(widths))
    if found is None:
        raise CompileError(
            f"a net of {'x'.join(map(str, widths))}: the stack holds {SLOTS} numbers, so of two layers in a row one "
            f"may be wide, and what is given with what is made of it may be {SLOTS} together"
        )
    return found


def _stages(widths: tuple[int, ...]) -> tuple[Stage, ...] | None:
    if len(widths) == 1:
        return ()
    if widths[0] + widths[1] <= SLOTS and (rest := _stages(widths[1:])) is not None:
        return Stage(widths[0], 0, widths[1]), *rest
    if len(widths) > 2 and widths[0] + widths[2] <= SLOTS and (rest := _stages(widths[2:])) is not None:
        return Stage(*widths[:3]), *rest
    return None


def _value_bits(given: int, width_bytes: int) -> int:
    """Of a value, such that the sum of so many products, and one for the bias, keeps to ``SUM_BITS_TABLED``."""
    return min(VALUE_BITS_MAX, SUM_BITS_TABLED - 8 * width_bytes - given.bit_length())


def _scaled(
    row: Mapping[int, Fraction], bias: Fraction, given: Mapping[int, Range], one: int, scale: Fraction
) -> list[Fraction]:
    """Weights for the values as they are given, and for the constant."""
    bias += sum((weight * given[n].low for n, weight in row.items()), Fraction(0))
    return [*(weight * given[n].unit * scale for n, weight in row.items()), bias * scale / (1 << one)]


def _point(row: Sequence[Fraction], most: int) -> int:
    """By how many bits a row may be shifted left without one of it getting too large."""
    largest = max(map(abs, row))
    return -log2_above(largest / most) if largest else POINT_MAX


def _lowered(row: Sequence[Fraction], point: int, given: Mapping[int, Range], one: int, room: int) -> int:
    """The point at which also the largest sum has room, with weights that are rounded."""
    while _reach(_whole(row, point), given, one) >= 1 << room:
        point -= 1
    return point


def _reach(row: Sequence[int], given: Mapping[int, Range], one: int) -> int:
    """The largest sum."""
    return (row[-1] << one) + sum(weight * given[n].high for n, weight in enumerate(row[:-1]) if weight > 0)


def _last_shift(point: int) -> int:
    if point < 0:
        raise CompileError("the net's output may be too large; narrow the schema's ranges, or lower the scale")
    return min(point, POINT_MAX)


def _whole(row: Sequence[Fraction], point: int) -> tuple[int, ...]:
    factor = unit(-point)
    return tuple(round(each * factor) for each in row)


def packed(form: Tabled) -> bytes:
    """The weights in the order in which the program wants them, half of their range added to each, and some
    bytes behind, to a multiple of 8: one area.
    """
    numbers, layers = list[int](), iter(form.layers)
    for stage in stages(form.widths):
        first = next(layers)
        if not stage.through:
            numbers += [each for row in first for each in row]
            continue
        second = next(layers)
        numbers += [row[-1] for row in second]
        for n, row in enumerate(first):
            numbers += [*row, *(after[n] for after in second)]
    half = 1 << 8 * form.width_bytes - 1
    data = (np.array(numbers, np.int64) + half).astype(f"<u{form.width_bytes}").tobytes()
    return data + bytes(8 - len(data) % 8)  # Linux, too, wants the pointer inside when the last row is done


def areas(data: bytes) -> bytes:
    """The map's value: generation 0, and both areas alike."""
    return bytes(GENERATION_BYTES) + data + data


def evaluate_rows(form: Tabled, rows: NDArray[np.int64]) -> list[int]:
    """The verdicts of many rows of features (count, features) at once: as ``evaluate``, which fits 64 bits."""
    low, high = (np.array(ends, np.int64) for ends in zip(*((c.low, c.high) for c in form.columns), strict=True))
    shift = np.array([c.shift for c in form.columns], np.int64)
    above = np.clip(rows, low, high) - low
    given = np.where(shift >= 0, above << np.maximum(shift, 0), above >> np.maximum(-shift, 0))
    masks, sums = iter([(1 << one) - 1 for one in form.ones[1:]]), given
    for layer, one, down in zip(form.layers, form.ones, form.shifts, strict=True):
        table = np.array(layer, np.int64)
        sums = given @ table[:, :-1].T + table[:, -1] * (1 << one)
        given = np.maximum(sums, 0) >> down & next(masks, -1)
    if sums.shape[1] > 1:
        found = np.argmax(sums, axis=1)
    elif form.values:
        found = (sums[:, 0] > 0).astype(np.int64)
    else:
        return [int(each) for each in sums[:, 0] + form.rounding >> form.shifts[-1]]
    return [form.values[int(each)] for each in found]
