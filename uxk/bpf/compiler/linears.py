"""Linear models of river's beside logistic and linear regression: what decides is a sum, or the largest of some."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import Dense, Form, Leaf, Score, Tree
from uxk.bpf.compiler.nets import outputs
from uxk.bpf.compiler.quantise import linear
from uxk.bpf.compiler.trees import Reader, kinds

Made = tuple[Form, tuple[Any, ...]]


def logistic(model: Any, reader: Reader, threshold: float, bits: int) -> Made:
    """Yes or no: any model of which the probability is a sigmoid of the sum, such as those for a hinge loss."""
    if not 0 < threshold < 1:
        raise CompileError(f"threshold {threshold}: expected more than 0, less than 1")
    loss = getattr(model, "loss", None)
    if loss is not None and "BinaryLoss" not in kinds(loss):
        raise CompileError(
            f"a {type(model).__name__} with the loss {type(loss).__name__}; expected one for two classes"
        )
    if "ALMAClassifier" in kinds(model):
        weights, bias = reader.summands(model.w, 0.0, "the model")
    else:
        weights, bias = reader.weights(model, "the model")
    bias -= Fraction(math.log(threshold / (1 - threshold)))
    made, _ = linear(weights, bias, reader.ranges(), bits=bits)
    return Score(made, (0, 1)), (False, True)


def regression(model: Any, reader: Reader) -> Made:
    """The sum itself."""
    loss = getattr(model, "loss", None)
    if loss is not None and "Poisson" in kinds(loss):
        raise CompileError("a linear model with the loss Poisson: its answer is an exponential")
    return Score(reader.regression(model, "the model")), ()


def softmax(model: Any, reader: Reader, bits: int) -> Made:
    """The label with the largest sum."""
    labels = tuple(model.weights)
    if not labels:
        raise CompileError(f"a {type(model).__name__} that has learnt nothing")
    if len(labels) == 1:
        return Tree(Leaf(reader.values_of(labels)[0])), labels
    rows = [reader.summands(model.weights[label], 0.0, f"label {label!r}") for label in labels]
    values = reader.values_of(labels)
    return Dense((outputs(rows, reader.ranges(), values, Fraction(1), bits),), values), labels
