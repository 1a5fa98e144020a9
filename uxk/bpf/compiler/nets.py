"""Small nets of numpy arrays as layers of integer sums.

Each weight has its own mantissa and shift, as in linear models; values between layers are whole numbers of 29 bits and
up to 32, whose unit each neuron chooses from the largest value that it can reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

import numpy as np

from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import Dense, Linear
from uxk.bpf.compiler.quantise import Range, linear, number, unit

VALUE_BITS: Final = 32
"""Of a value between layers."""
_RELU: Final = ("relu", "ReLU")


class Net(NamedTuple):
    """A net with ReLU between its layers: for each layer an array (outputs, inputs) and one of biases (outputs).

    ``labels``: of the classes; with one output, of those for up to 0 and above.  None: the output itself is wanted.
    ``means`` and ``deviations``: what was taken off the features, and what they were divided by, before the first.
    """

    layers: Sequence[tuple[Any, Any]]
    labels: Sequence[Any] | None = None
    means: Sequence[float] = ()
    deviations: Sequence[float] = ()

    def outputs(self, x: Sequence[float]) -> Any:
        """The last layer's sums, in floating point."""
        value = np.asarray(x, np.float64)
        if len(self.means):
            value = value - np.asarray(self.means)
        if len(self.deviations):
            value = value / np.asarray(self.deviations)
        for number_, (weights, biases) in enumerate(self.layers):
            if number_:
                value = np.maximum(value, 0)
            value = np.asarray(weights) @ value + np.asarray(biases)
        return value

    def predict_one(self, x: Mapping[str, float]) -> Any:
        """A label, or the output; features in the order in which they come."""
        sums = self.outputs(list(x.values()))
        if self.labels is None:
            return float(sums[0])
        return self.labels[int(sums[0] > 0) if len(sums) == 1 else int(np.argmax(sums))]


def net_of(model: Any) -> Net | None:
    """A net as it is, or one that keeps its arrays like scikit-learn's MLP models; None if it is neither."""
    if isinstance(model, Net):
        return model
    if not (hasattr(model, "coefs_") and hasattr(model, "intercepts_")):
        return None
    if getattr(model, "activation", "relu") not in _RELU:
        raise CompileError(f"a net with the activation {model.activation!r}; only relu has an exact form in integers")
    layers = [(np.asarray(w).T, np.asarray(b)) for w, b in zip(model.coefs_, model.intercepts_, strict=True)]
    classes = getattr(model, "classes_", None)
    return Net(layers, None if classes is None else [each.item() for each in np.asarray(classes)])


def dense(net: Net, ranges: Mapping[int, Range], values: Sequence[int], *, scale: Fraction, bits: int) -> Dense:
    """The layers in integers; ``ranges`` are those of the features.  ``CompileError`` for shapes that do not fit."""
    given, layers = dict(ranges), list[tuple[Linear, ...]]()
    for n in range(len(net.layers)):
        rows = rows_of(net, n, len(given))
        if n == len(net.layers) - 1:
            layers.append(outputs(rows, given, values, scale, bits))
        else:
            made = [linear(row, bias, given, bits=bits) for row, bias in rows]
            shift = 64 - VALUE_BITS
            layers.append(tuple(each._replace(shift=shift) for each, _ in made))
            given = {k: Range(0, (1 << VALUE_BITS) - 1, unit(point - shift)) for k, (_, point) in enumerate(made)}
    return Dense(tuple(layers), tuple(values))


def check_outputs(net: Net, values: Sequence[int]) -> None:
    """One output without labels; one or two with two; else as many as labels.  ``CompileError``."""
    count = np.size(net.layers[-1][1]) if net.layers else 0
    expected = {1} if not values else {1, 2} if len(values) == 2 else {len(values)}
    if count not in expected or len(values) == 1:
        raise CompileError(f"a net of {count} outputs for {len(values)} labels")


def rows_of(net: Net, layer: int, given: int) -> list[tuple[dict[int, Fraction], Fraction]]:
    """Weights by what they are for, and the bias, of each value of a layer.  ``CompileError`` for other shapes."""
    weights, biases = net.layers[layer]
    try:
        w, b = np.asarray(weights, np.float64), np.asarray(biases, np.float64)
    except (TypeError, ValueError) as exc:
        raise CompileError(f"layer {layer + 1} of the net: {exc}; expected arrays of numbers") from None
    for what, figures in (("means", net.means), ("deviations", net.deviations)) if layer == 0 else ():
        if len(figures) not in (0, given):
            raise CompileError(f"{len(figures)} {what} for a net of {given} features; expected one each, or none")
    if w.ndim != 2 or w.shape[1] != given or b.shape != (w.shape[0],):
        raise CompileError(
            f"layer {layer + 1} of the net: weights of shape {w.shape}, biases of shape {b.shape}; expected "
            f"(outputs, {given}) and (outputs,)"
        )
    return [_row(net, w[k], b[k], f"layer {layer + 1}, value {k + 1}", first=layer == 0) for k in range(len(b))]


def _row(net: Net, weights: Any, bias: float, what: str, *, first: bool) -> tuple[dict[int, Fraction], Fraction]:
    """Weights by source, and the bias; what was done to the features is worked into those of the first layer."""
    total, row = number(float(bias), f"{what}: the bias"), dict[int, Fraction]()
    for source, given in enumerate(weights):
        weight = number(float(given), f"{what}: weight {source + 1}")
        if first and len(net.deviations):
            deviation = number(float(net.deviations[source]), f"deviation {source + 1}")
            if not deviation:
                raise CompileError(f"deviation {source + 1} of the net is 0")
            weight /= deviation
        if first and len(net.means):
            total -= weight * number(float(net.means[source]), f"mean {source + 1}")
        row[source] = weight
    return row, total


def outputs(
    rows: Sequence[tuple[dict[int, Fraction], Fraction]], given: Mapping[int, Range], values: Sequence[int],
    scale: Fraction, bits: int,
) -> tuple[Linear, ...]:  # fmt: skip
    """The last layer: rounded at one point for all, so that sums can be compared; one output has its sign only."""
    if not values:
        return tuple(
            linear({k: w * scale for k, w in row.items()}, bias * scale, given, bits=bits, rounded=True)[0]
            for row, bias in rows
        )
    if len(rows) == 1:
        return (linear(*rows[0], given, bits=bits)[0],)
    points = [linear(row, bias, given, bits=bits)[1] for row, bias in rows]
    point = min(points)  # the coarsest: the others are made again, at this one
    factor = unit(-point)
    return tuple(
        linear({k: w * factor for k, w in row.items()}, bias * factor, given, bits=bits, rounded=True)[0]
        for row, bias in rows
    )
