"""From a model to its decision form: which kinds there are, and what their verdicts are called."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import Forest, Form, Leaf, Score, Tree
from uxk.bpf.compiler.nets import dense, net_of
from uxk.bpf.compiler.quantise import linear, number
from uxk.bpf.compiler.schema import Schema
from uxk.bpf.compiler.trees import VOTE_BITS, Axis, LeafOf, Reader, distribution, kinds, votes
from uxk.bpf.insn import s64

KINDS: Final = (
    "HoeffdingTreeClassifier", "HoeffdingTreeRegressor", "ARFClassifier", "LogisticRegression", "LinearRegression",
)  # fmt: skip
"""River's, with what inherits from them: adaptive and extremely fast trees, too."""
DEPTH_OF_SEARCH: Final = 3


class Read(NamedTuple):
    """A form, the model's kind, its labels with their verdicts (none for regressions), and remarks."""

    form: Form
    kind: str
    labels: tuple[Any, ...]
    values: tuple[int, ...]
    notes: tuple[str, ...]


class Options(NamedTuple):
    """``scale``: what 1 of a regression becomes.  ``threshold``: probability from which a logistic model says yes.

    ``bits``: of each weight's mantissa.
    """

    scale: int = 1
    threshold: float = 0.5
    bits: int = 30


def read_model(model: Any, schema: Schema, options: Options) -> Read:
    """The decision form.  Raises ``CompileError`` for models of other kinds, and for what they contain."""
    if options.scale < 1:
        raise CompileError(f"scale {options.scale}: expected 1 or more")
    steps = list(_steps(model))
    axes: dict[str, Axis] = {}
    for step in steps[:-1]:
        if "StandardScaler" not in kinds(step):
            raise CompileError(f"a {type(step).__name__} before the model; only a StandardScaler can be worked in")
        if axes:
            raise CompileError("two scalers before the model; one can be worked in")
        axes = _axes(step, schema)
    notes: list[str] = []
    last = steps[-1]
    reader = Reader(schema, axes, Fraction(options.scale), options.bits, notes)
    net = net_of(last)
    if net is not None:
        if axes:
            raise CompileError("a scaler before a net; give its means and deviations to the net")
        values = values_of(net.labels or ())
        form: Form = dense(net, reader.ranges(), values, scale=reader.scale, bits=options.bits)
        return Read(form, type(last).__name__, tuple(net.labels or ()), values, ())
    kind = next((each for each in KINDS if each in kinds(last)), "")
    if not kind:
        raise CompileError(f"a {type(last).__name__}; what can be compiled is {', '.join(KINDS)}, what inherits from "
                           "them, and nets")  # fmt: skip
    form, labels = _READERS[kind](last, reader, options)
    told = tuple(
        f"{note} ({count} times)" if (count := notes.count(note)) > 1 else note for note in dict.fromkeys(notes)
    )
    return Read(form, type(last).__name__, labels, values_of(labels), told)


def values_of(labels: Sequence[Any]) -> tuple[int, ...]:
    """The verdicts for labels: whole numbers are their own, others are numbered in their order."""
    if all(isinstance(label, int) and label == s64(label) for label in labels):
        return tuple(int(label) for label in labels)
    return tuple(range(len(labels)))


def can_compile(model: object) -> bool:
    """Whether a model is of a kind that can be compiled; what is in it may still be refused."""
    steps = list(_steps(model)) or [model]
    names, model = kinds(steps[-1]), steps[-1]
    return not names.isdisjoint(KINDS) or "Net" in names or hasattr(model, "coefs_")


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


def _axes(scaler: Any, schema: Schema) -> dict[str, Axis]:
    axes = {}
    for name in schema.names:
        if scaler.window_size is None:
            mean, variance = scaler.means.get(name, 0.0), scaler.vars.get(name, 0.0)
        else:
            mean = scaler.means[name].get() if name in scaler.means else 0.0
            variance = scaler.vars[name].get() if name in scaler.vars else 0.0
        if not (math.isfinite(mean) and math.isfinite(variance)):
            raise CompileError(f"the scaler's figures of {name!r} are {mean} and {variance}; expected finite numbers")
        deviation = (variance**0.5 if variance > 0 else 0.0) if scaler.with_std else 1.0
        axes[name] = Axis(float(mean), float(deviation), plain=False)
    return axes


# --- the kinds ---

Made = tuple[Form, tuple[Any, ...]]


def _one_tree(model: Any, reader: Reader, options: Options) -> Made:
    order = _classes(model)
    values = values_of(order)

    def leaf(node: Any, beside: tuple[Any, ...]) -> Leaf:
        if beside:
            shares = dict.fromkeys(order, 0.0)
            for each in (*beside, node):
                for label, vote in votes(each, model, order, reader.notes).items():
                    shares[label] += vote
        else:
            shares = distribution(node, model, order, reader.notes)
        return Leaf(values[order.index(max(shares, key=shares.__getitem__))])

    return Tree(reader.tree(_root(model), leaf)), order


def _regression_tree(model: Any, reader: Reader, options: Options) -> Made:
    def leaf(node: Any, beside: tuple[Any, ...]) -> Leaf:
        together = (*beside, node)
        if not any(map(_asks_model, together)):
            means = [number(each.stats.mean.get(), "the mean of a leaf") for each in together]
            return Leaf(math.floor(sum(means, Fraction(0)) / len(means) * reader.scale + Fraction(1, 2)))
        if beside:
            reader.notes.append("alternate leaves beside one with a model are left out")
        inner = list(_steps(node._leaf_model))
        if len(inner) != 1 or "LinearRegression" not in kinds(inner[0]):
            raise CompileError(f"a leaf with a {type(node._leaf_model).__name__}; expected a LinearRegression")
        return Leaf(reader.regression(inner[0], "the model of a leaf"))

    return Tree(reader.tree(_root(model), leaf)), ()


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
        def leaf(node: Any, beside: tuple[Any, ...]) -> Leaf:
            shares = distribution(node, tree, order, reader.notes)
            total = max(1.0, sum(shares.values()))
            each = (Fraction(shares[label]) * Fraction(weight) / Fraction(total * most) for label in order)
            return Leaf(votes=tuple(round(vote * (1 << VOTE_BITS)) for vote in each))

        return leaf

    made = tuple(reader.tree(_root(tree), leaf_of(tree, weight)) for tree, weight in zip(trees, weights, strict=True))
    return Forest(made, values_of(order)), order


def _logistic(model: Any, reader: Reader, options: Options) -> Made:
    if not 0 < options.threshold < 1:
        raise CompileError(f"threshold {options.threshold}: expected more than 0, less than 1")
    if "Log" not in kinds(model.loss):
        raise CompileError(f"a logistic model with the loss {type(model.loss).__name__}; expected Log")
    weights, bias = reader.weights(model, "the model")
    bias -= Fraction(math.log(options.threshold / (1 - options.threshold)))
    made, _ = linear(weights, bias, reader.ranges(), bits=options.bits)
    return Score(made, (0, 1)), (False, True)


def _linear(model: Any, reader: Reader, options: Options) -> Made:
    if "Poisson" in kinds(model.loss):
        raise CompileError("a linear model with the loss Poisson: its answer is an exponential")
    return Score(reader.regression(model, "the model")), ()


_READERS: Final[Mapping[str, Callable[[Any, Reader, Options], Made]]] = {
    "HoeffdingTreeClassifier": _one_tree, "HoeffdingTreeRegressor": _regression_tree, "ARFClassifier": _forest,
    "LogisticRegression": _logistic, "LinearRegression": _linear,
}  # fmt: skip


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
