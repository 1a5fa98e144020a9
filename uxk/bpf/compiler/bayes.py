"""Leaves of trees that ask naive Bayes: logarithms of Gaussian densities are squares of distances, in integers.

For each class and feature the distance from the mean, in deviations, is a linear model of one term; its square is taken
off what stays the same: the logarithms of the prior and of the heights.  The class with the most wins, so no
exponential is needed.  River 0.26: ``do_naive_bayes_prediction``, ``Gaussian.log_pdf``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import Bayes, Bell, Evidence
from uxk.bpf.compiler.quantise import Range, linear, log2_above, number, unit

DISTANCE_BITS: Final = 30
"""Of a distance in its own unit: the square then has bounds that the verifiers see."""
SUM_BITS: Final = 57
"""Of a sum; so few that squares, whose unit comes from their own largest, are never to be shifted left."""
POINT_MAX: Final = 24
"""Bits of logarithms behind the point, at most."""
_HALF_LOG_TAU: Final = 0.5 * math.log(2 * math.pi)


class Gauss(NamedTuple):
    """``(weight * x + bias) ** 2 / 2`` is to be taken off, for the x of a range."""

    slot: int
    weight: Fraction
    bias: Fraction
    span: Range

    @property
    def farthest(self) -> Fraction:
        """The largest distance."""
        return max(abs(self.weight * self.span.low + self.bias), abs(self.weight * self.span.high + self.bias))


class Class(NamedTuple):
    """What a leaf knows of a class; ``base`` is the logarithm that no feature changes."""

    value: int
    base: Fraction
    parts: tuple[Gauss, ...]


def gauss_of(splitter: Any, label: Any, what: str) -> tuple[float, float] | None:
    """Mean and variance of a feature in a class; None if river leaves the feature out for it."""
    name = type(splitter).__name__
    if name == "ExhaustiveSplitter":
        return None  # knows no densities: river leaves it out
    if name != "GaussianSplitter":
        raise CompileError(
            f"{what}: a naive Bayes leaf with a {name}; only a GaussianSplitter has densities that become squares. "
            'Train with leaf_prediction="mc", or take majority leaves for it (--majority-leaves)'
        )
    found = splitter._att_dist_per_class.get(label)
    if found is None or found._var.mean.n <= found._var.ddof:
        return None
    variance = float(found._var.get())
    return (float(found.mu), variance) if variance > 0 else None


def height(variance: float) -> Fraction:
    """The logarithm of a density's height."""
    return number(-_HALF_LOG_TAU - 0.5 * math.log(variance), "a density")


def bayes(classes: Sequence[Class], bits: int) -> Bayes:
    """Sums with one point for all; the first of equals wins."""
    most = max(abs(each.base) + sum(part.farthest**2 / 2 for part in each.parts) for each in classes)
    point = min(POINT_MAX, SUM_BITS - log2_above(most)) if most else POINT_MAX
    made = [
        Evidence(each.value, _whole(each.base, point), tuple(_bell(part, point, bits) for part in each.parts))
        for each in classes
    ]
    return Bayes(tuple(made))


def _bell(part: Gauss, point: int, bits: int) -> Bell:
    own = min(DISTANCE_BITS, DISTANCE_BITS - log2_above(part.farthest)) if part.farthest else DISTANCE_BITS
    factor, ranges = unit(-own), {part.slot: part.span}
    made, _ = linear({part.slot: part.weight * factor}, part.bias * factor, ranges, bits=bits, rounded=True)
    return Bell(made, min(2 * own + 1 - point, 63))


def _whole(value: Fraction, point: int) -> int:
    return round(value * unit(-point))


def priors(stats: Mapping[Any, float]) -> dict[Any, Fraction | None]:
    """Logarithms of the shares of classes; None for those without weight, of which river then asks no more."""
    total = sum(number(seen, f"the weight of {label!r} in a leaf") for label, seen in stats.items())
    if total < 0:
        raise CompileError(f"the weights of a leaf sum up to {float(total)}; expected none below 0")
    return {
        label: number(math.log(seen / total), "a prior") if seen > 0 else None for label, seen in stats.items() if total
    }
