"""From a model to its decision form: which kinds there are, and what their verdicts are called."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, Final, NamedTuple

from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import Forest, Form, Leaf, Tree, check_sum
from uxk.bpf.compiler.linears import Made, logistic, regression, softmax
from uxk.bpf.compiler.nets import check_outputs, dense, net_of
from uxk.bpf.compiler.quantise import number
from uxk.bpf.compiler.scalers import axes_of
from uxk.bpf.compiler.schema import Schema
from uxk.bpf.compiler.tables import tabled, too_wide
from uxk.bpf.compiler.trees import (
    VOTE_BITS,
    LeafOf,
    Reader,
    Within,
    asks_bayes,
    bayes_leaf,
    distribution,
    kinds,
    votes,
)

DEPTH_OF_SEARCH: Final = 3
FOREST_POINTS: Final = (20, 10, 4, 0)
"""Bits behind the point, of sums of trees."""
SUM_BITS: Final = 56
"""Of a leaf's mean, with its scale: the sum of as many trees as there may be fits."""
TREES_MAX: Final = 60


class Read(NamedTuple):
    """A form, the model's kind, its labels with their verdicts (none for regressions), and remarks."""

    form: Form
    kind: str
    labels: tuple[Any, ...]
    values: tuple[int, ...]
    notes: tuple[str, ...]


class Options(NamedTuple):
    """``scale``: what 1 of a regression becomes.  ``threshold``: probability from which a logistic model says yes.

    ``bits``: of each weight's mantissa.  ``tables``: a net's weights become data, also where they would fit as code.
    ``majority_leaves``: leaves that ask naive Bayes become majority leaves, and agree less.
    """

    scale: int = 1
    threshold: float = 0.5
    bits: int = 30
    tables: bool = False
    majority_leaves: bool = False


def read_model(model: Any, schema: Schema, options: Options) -> Read:
    """The decision form.  Raises ``CompileError`` for models of other kinds, and for what they contain."""
    if options.scale < 1:
        raise CompileError(f"scale {options.scale}: expected 1 or more")
    steps = list(_steps(model))
    axes = axes_of(steps[:-1], schema)
    notes: list[str] = []
    last = steps[-1]
    reader = Reader(schema, axes, Fraction(options.scale), options.bits, notes, options.majority_leaves)
    net = net_of(last)
    if net is not None:
        if axes:
            raise CompileError("a scaler before a net; give its means and deviations to the net")
        values = Reader.values_of(net.labels or ())
        check_outputs(net, values)
        make = tabled if options.tables or too_wide(net, len(schema)) else dense
        form: Form = make(net, reader.ranges(), values, scale=reader.scale, bits=options.bits)
        return Read(form, type(last).__name__, tuple(net.labels or ()), values, ())
    kind = next((each for each in KINDS if each in kinds(last)), "")
    if not kind:
        raise CompileError(f"a {type(last).__name__}; what can be compiled is {', '.join(KINDS)}, what inherits from "
                           "them, and nets")  # fmt: skip
    form, labels = _READERS[kind](last, reader, options)
    told = tuple(
        f"{note} ({count} times)" if (count := notes.count(note)) > 1 else note for note in dict.fromkeys(notes)
    )
    return Read(form, type(last).__name__, labels, Reader.values_of(labels), told)


def can_compile(model: object) -> bool:
    """Whether a model is of a kind that can be compiled; what is in it may still be refused."""
    steps = list(_steps(model)) or [model]
    names, model = kinds(steps[-1]), steps[-1]
    return not names.isdisjoint(_READERS) or "Net" in names or hasattr(model, "coefs_")


def find_models(state: object, depth: int = DEPTH_OF_SEARCH) -> Iterator[tuple[str, object]]:
    """Models in an agent's state, with where they are: ``chooser.model``, ``0``."""
    if can_compile(state):
        yield "", state
        return
    if depth == 0 or isinstance(state, (str, bytes, int, float)):
        return
    for name, part in _parts(state):
        for below, model in find_models(part, depth - 1):
            yield f"{name}.{below}" if below else name, model


def _parts(state: object) -> Iterator[tuple[str, object]]:
    if isinstance(state, Mapping):
        yield from ((str(key), value) for key, value in state.items())
    elif isinstance(state, tuple) and hasattr(state, "_fields"):
        yield from zip(getattr(state, "_fields", ()), state, strict=False)
    elif isinstance(state, (list, tuple)):
        yield from ((str(n), value) for n, value in enumerate(state[:64]))
    else:
        yield from getattr(state, "__dict__", {}).items()


def _steps(model: Any) -> Iterator[Any]:
    """The steps of pipelines, and of the guard that :func:`uxk.ml.online` puts around a model."""
    names = kinds(model)
    if "Pipeline" in names:
        for step in model.steps.values():
            yield from _steps(step)
    elif "Online" in names:
        yield from _steps(model.model)
    else:
        yield model


# --- the kinds ---


def _one_tree(model: Any, reader: Reader, options: Options) -> Made:
    order = _classes(model)
    values = Reader.values_of(order)

    def leaf(node: Any, beside: tuple[Any, ...], within: Within) -> Leaf:
        if beside:
            shares = dict.fromkeys(order, 0.0)
            for each in (*beside, node):
                for label, vote in votes(each, model, order, reader).items():
                    shares[label] += vote
        elif asks_bayes(node, model) and not reader.majority:
            return bayes_leaf(node, order, values, reader, within)
        else:
            shares = distribution(node, model, order, reader)
        return Leaf(values[order.index(max(shares, key=shares.__getitem__))])

    return Tree(reader.tree(_root(model), leaf)), order


def _regression_tree(model: Any, reader: Reader, options: Options) -> Made:
    return Tree(reader.tree(_root(model), _regression_leaf(reader, Fraction(1)))), ()


def _regression_leaf(reader: Reader, share: Fraction) -> LeafOf:
    """Leaves whose answers are multiplied by the scale and by ``share``."""

    def leaf(node: Any, beside: tuple[Any, ...], _: Within) -> Leaf:
        together = (*beside, node)
        if not any(map(_asks_model, together)):
            means = [number(each.stats.mean.get(), "the mean of a leaf") for each in together]
            mean = sum(means, Fraction(0)) / len(means) * reader.scale * share
            if abs(mean) > 1 << SUM_BITS:
                raise CompileError(f"a leaf's mean is {float(mean)}, scaled, beyond 2**{SUM_BITS}; lower the scale")
            return Leaf(math.floor(mean + Fraction(1, 2)))
        if beside:
            raise CompileError(
                "alternate leaves beside one with a model: learn on until they are taken or pruned, or train with "
                'leaf_prediction="mean"'
            )
        inner = list(_steps(node._leaf_model))
        if len(inner) != 1 or kinds(inner[0]).isdisjoint(("LinearRegression", "PARegressor")):
            raise CompileError(f"a leaf with a {type(node._leaf_model).__name__}; expected a LinearRegression")
        return Leaf(reader.regression(inner[0], "the model of a leaf", share))

    return leaf


def _asks_model(leaf: Any) -> bool:
    names = kinds(leaf)
    return "LeafModel" in names and not ("LeafAdaptive" in names and leaf._fmse_mean < leaf._fmse_model)


def _forest(model: Any, reader: Reader, options: Options) -> Made:
    trees = list(model)
    order = tuple(dict.fromkeys(label for tree in trees for label in _classes(tree)))
    if len(order) < 2:
        return _one_tree(trees[0], reader, options) if trees else _root(model)
    weights = []
    for metric in model._metrics:
        value = 0.0 if model.disable_weighted_vote else float(metric.get())
        weights.append(value if value > 0.0 else 1.0)
    most = max(weights)

    def leaf_of(tree: Any, weight: float) -> LeafOf:
        def leaf(node: Any, beside: tuple[Any, ...], _: Within) -> Leaf:
            shares = distribution(node, tree, order, reader)
            total = max(1.0, sum(shares.values()))
            each = (Fraction(shares[label]) * Fraction(weight) / Fraction(total * most) for label in order)
            return Leaf(votes=tuple(round(vote * (1 << VOTE_BITS)) for vote in each))

        return leaf

    made = tuple(reader.tree(_root(tree), leaf_of(tree, weight)) for tree, weight in zip(trees, weights, strict=True))
    return Forest(made, Reader.values_of(order)), order


def _averaged(model: Any, reader: Reader, options: Options) -> Made:
    """A forest that regresses: each leaf has its share of the answer, with as many bits behind the point as fit."""
    trees = list(model)
    if not trees:
        raise CompileError(f"a {type(model).__name__} that has learnt nothing")
    if len(trees) > TREES_MAX:
        raise CompileError(f"a forest of {len(trees)} trees that regress; at most {TREES_MAX}")
    median = model.aggregation_method == "median"
    errors = [number(metric.get(), "the error of a tree") for metric in model._metrics]
    total, shares = sum(errors, Fraction(0)), [Fraction(1)] * len(trees)
    if total and not model.disable_weighted_vote and not median:
        if len(trees) == 1:
            raise CompileError("a forest of one tree that weighs by errors: river's weight for it is no number")
        shares = [(total - error) / (total * (len(trees) - 1)) for error in errors]
    for point in FOREST_POINTS:
        # River takes the mean even of what it has weighed already.
        factor = Fraction(1 << point, (2 - len(trees) % 2) if median else len(trees))
        try:
            leaves = [_regression_leaf(reader, share * factor) for share in shares]
            made = tuple(reader.tree(_root(tree), leaf) for tree, leaf in zip(trees, leaves, strict=True))
            form = Forest(made, (), point, median)
            check_sum(form)
            return form, ()
        except CompileError:
            if not point:
                raise
    raise AssertionError("the last point is 0")


_READERS: Final[Mapping[str, Callable[[Any, Reader, Options], Made]]] = {
    "HoeffdingTreeClassifier": _one_tree, "HoeffdingTreeRegressor": _regression_tree, "ARFClassifier": _forest,
    "ARFRegressor": _averaged,
    **dict.fromkeys(("LogisticRegression", "PAClassifier", "ALMAClassifier"),
                    lambda model, reader, options: logistic(model, reader, options.threshold, options.bits)),
    **dict.fromkeys(("LinearRegression", "PARegressor"), lambda model, reader, options: regression(model, reader)),
    "SoftmaxRegression": lambda model, reader, options: softmax(model, reader, options.bits),
}  # fmt: skip
KINDS: Final = tuple(_READERS)
"""River's, with what inherits from them: adaptive and extremely fast trees, and the perceptron, too."""


def _root(model: Any) -> Any:
    root = getattr(model, "_root", None)
    if root is None:
        raise CompileError(f"a {type(model).__name__} that has learnt nothing")
    return root


def _classes(model: Any) -> tuple[Any, ...]:
    """In the order in which river prefers them when they are alike."""
    order = tuple(model.classes if "HoeffdingAdaptiveTreeClassifier" in kinds(model) else sorted(model.classes))
    if not order:
        raise CompileError(f"a {type(model).__name__} that has learnt nothing")
    return order
