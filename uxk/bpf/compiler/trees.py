"""Trees, forests and linear models of river 0.26, read without importing it: by the names of their classes.

Thresholds become whole numbers: ``x <= t`` is ``x <= floor(t)`` for a whole x.  Behind a scaler the last whole number
that still goes left is searched for with the scaler's own floating-point arithmetic, so that nothing is lost there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple, TypeAlias

from uxk.bpf.compiler.bayes import Class, Gauss, bayes, gauss_of, height, priors
from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import TREE_DEPTH_MAX, Leaf, Linear, Node, Split
from uxk.bpf.compiler.quantise import Range, linear, number
from uxk.bpf.compiler.schema import Schema
from uxk.bpf.insn import s64

VOTE_BITS: Final = 30
"""A vote of a tree is a share of so many bits: an immediate."""
NODES_MAX: Final = 200_000
ONE: Final = Fraction(1)
Within: TypeAlias = Mapping[int, tuple[int, int]]
"""What the splits above leave of the ranges of slots."""
LeafOf: TypeAlias = Callable[[Any, tuple[Any, ...], Within], Leaf]
"""A leaf of river's, and the leaves that vote with it, to a leaf of the decision form."""


def kinds(model: object) -> frozenset[str]:
    """Names of a model's class and of those it inherits from."""
    return frozenset(cls.__name__ for cls in type(model).__mro__)


class Axis(NamedTuple):
    """What a scaler makes of a feature: ``(x - mean) / deviation``, in floating point; 0 without a deviation."""

    mean: float = 0.0
    deviation: float = 1.0
    plain: bool = True

    def __call__(self, x: int) -> float:
        """As river computes it."""
        if self.plain:
            return x
        return (x - self.mean) / self.deviation if self.deviation else 0.0


class Reader(NamedTuple):
    """How to read one model: the schema, what scalers make of its features, ``scale`` of regressions, and remarks."""

    schema: Schema
    axes: Mapping[str, Axis]
    scale: Fraction
    bits: int
    notes: list[str]
    majority: bool = False
    """Whether leaves that ask naive Bayes become majority leaves."""

    def axis(self, name: object) -> Axis:
        """What stands before the model."""
        return self.axes.get(str(name), Axis())

    # --- linear models ---

    def weights(self, model: Any, what: str) -> tuple[dict[int, Fraction], Fraction]:
        """Weights by slot, and the intercept, of a linear model; the scaler is worked into them."""
        return self.summands(model.weights, model.intercept, what)

    def summands(self, given_: Mapping[Any, Any], intercept: Any, what: str) -> tuple[dict[int, Fraction], Fraction]:
        """The same for weights by name."""
        bias = number(intercept, f"{what}: the intercept")
        weights: dict[int, Fraction] = {}
        for name, given in given_.items():
            weight, axis = number(given, f"{what}: the weight of {name!r}"), self.axis(name)
            slot = self.schema.slot(name)
            if not axis.plain:
                weight = weight / Fraction(axis.deviation) if axis.deviation else Fraction(0)
                bias -= weight * Fraction(axis.mean)
            weights[slot] = weight
        return weights, bias

    @staticmethod
    def values_of(labels: Sequence[Any]) -> tuple[int, ...]:
        """The verdicts for labels: whole numbers are their own, others are numbered in their order."""
        if all(isinstance(label, int) and label == s64(label) for label in labels):
            return tuple(int(label) for label in labels)
        return tuple(range(len(labels)))

    def ranges(self) -> dict[int, Range]:
        """The schema's, by slot."""
        return {slot: Range(each.low, each.high) for slot, each in enumerate(self.schema.features)}

    def regression(self, model: Any, what: str, share: Fraction = ONE) -> Linear:
        """A linear regression, times the scale and its share, to the nearest whole number."""
        weights, bias = self.weights(model, what)
        scale = self.scale * share
        scaled = {slot: weight * scale for slot, weight in weights.items()}
        return linear(scaled, bias * scale, self.ranges(), bits=self.bits, rounded=True, what=what)[0]

    # --- trees ---

    def tree(self, root: Any, leaf: LeafOf) -> Node:
        """A tree of river's, without the parts that no whole number within the schema's ranges reaches.

        What is left does with numbers outside the ranges what river does with the nearest inside.
        """
        return _Walk(self, leaf).node(root, {}, 0)

    def last_left(self, name: object, threshold: float, low: int, high: int) -> int:
        """The last whole x from ``low`` to ``high`` with ``axis(x) <= threshold``; ``low - 1`` if there is none."""
        axis = self.axis(name)
        low -= 1
        while low < high:
            middle = low + high + 1 >> 1
            if axis(middle) <= threshold:
                low = middle
            else:
                high = middle - 1
        return low


class _Walk:
    """One tree, depth first; ``within`` narrows each slot's range on the way down.

    An adaptive tree's alternates that are single leaves so far vote with each leaf below their place, as in river.
    """

    def __init__(self, reader: Reader, leaf: LeafOf) -> None:
        self._reader, self._leaf, self._nodes = reader, leaf, 0
        self._beside: list[Any] = []

    def node(self, node: Any, within: dict[int, tuple[int, int]], depth: int) -> Node:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise CompileError(f"a tree of more than {NODES_MAX} nodes")
        if depth > TREE_DEPTH_MAX:
            raise CompileError(f"a tree of more than {TREE_DEPTH_MAX} levels; set its max_depth")
        if not hasattr(node, "children"):
            return self._leaf(node, tuple(self._beside), within)
        alternate = getattr(node, "_alternate_tree", None)
        if alternate is None:
            return self._branch(node, within, depth)
        if hasattr(alternate, "children"):
            raise CompileError(
                "an alternate tree with branches: river itself has no answer there; learn on until it is taken, or "
                "pruned"
            )
        self._beside.append(alternate)
        made = self._branch(node, within, depth)
        self._beside.pop()
        return made

    def _branch(self, node: Any, within: dict[int, tuple[int, int]], depth: int) -> Node:
        names = kinds(node)
        slot = self._reader.schema.slot(node.feature)
        feature = self._reader.schema.features[slot]
        low, high = within.get(slot, (feature.low, feature.high))
        if "NumericBinaryBranch" in names:
            at = self._reader.last_left(node.feature, node.threshold, low, high)
            left, right = node.children
            if at >= high:
                return self.node(left, within, depth + 1)
            if at < low:
                return self.node(right, within, depth + 1)
            return _split(slot, at, self.node(left, {**within, slot: (low, at)}, depth + 1),
                          self.node(right, {**within, slot: (at + 1, high)}, depth + 1))  # fmt: skip
        if "NominalBinaryBranch" in names:
            return self._nominal(slot, [(node.value, node.children[0])], node.children[1], within, depth)
        if "NominalMultiwayBranch" in names:
            cases = [(value, node.children[n]) for value, n in node._mapping.items()]
            return self._nominal(slot, cases, node.most_common_path()[1], within, depth)
        raise CompileError(
            f"a split of the kind {type(node).__name__}; trees of whole numbers want binary_split=True, or a splitter "
            "that makes two ways"
        )

    def _nominal(
        self, slot: int, cases: Sequence[tuple[Any, Any]], otherwise: Any, within: dict[int, tuple[int, int]],
        depth: int,
    ) -> Node:  # fmt: skip
        feature = self._reader.schema.features[slot]
        name = feature.name
        if not self._reader.axis(name).plain:
            raise CompileError(f"{name!r} is nominal, and behind a scaler")
        low, high = within.get(slot, (feature.low, feature.high))
        made = self.node(otherwise, within, depth + 1)
        for value, child in reversed(cases):
            if not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
                raise CompileError(f"{name!r} has the nominal value {value!r}; expected whole numbers")
            if low <= value <= high:
                here = self.node(child, {**within, slot: (int(value), int(value))}, depth + 1)
                made = _equal(slot, int(value), here, made, low, high)
        return made


def _equal(slot: int, value: int, here: Node, otherwise: Node, low: int, high: int) -> Node:
    """A test for one value; at an end of the range for what is beyond it, too, which counts as the end."""
    if low == high:
        return here
    if value == low:
        return _split(slot, value, here, otherwise)
    if value == high:
        return _split(slot, value - 1, otherwise, here)
    return _split(slot, value, here, otherwise, equal=True)


def _split(slot: int, at: int, left: Node, right: Node, *, equal: bool = False) -> Node:
    """A split, unless both ways end alike."""
    if isinstance(left, Leaf) and left == right:
        return left
    return Split(slot, at, left, right, equal)


# --- leaves ---

MAJORITY: Final = 'train with leaf_prediction="mc", or take majority leaves instead (--majority-leaves)'


def bayes_leaf(leaf: Any, order: Sequence[Any], values: Sequence[int], reader: Reader, within: Within) -> Leaf:
    """A leaf that asks naive Bayes, for numbers that its path lets through."""
    known, classes = priors(leaf.stats), list[Class]()
    for label, value in zip(order, values, strict=True):
        if label not in known:
            continue
        base, parts = known[label], list[Gauss]()
        for name, splitter in leaf.splitters.items() if base is not None else ():
            found = gauss_of(splitter, label, f"feature {name!r}")
            slot, axis = reader.schema.slot(name), reader.axis(name)
            if found is None:
                continue
            mean, variance = number(found[0], f"a mean of {name!r}"), number(found[1], f"a variance of {name!r}")
            weight = 1 / Fraction(math.sqrt(variance))
            scaled = Fraction(axis.deviation) if axis.deviation else Fraction(0)
            slope = (weight / scaled if scaled else Fraction(0)) if not axis.plain else weight
            shift = -mean * weight - (slope * Fraction(axis.mean) if not axis.plain else 0)
            feature = reader.schema.features[slot]
            parts.append(Gauss(slot, slope, shift, Range(*within.get(slot, (feature.low, feature.high)))))
            base = (base or Fraction(0)) + height(found[1])
        classes.append(Class(value, base or Fraction(0), tuple(parts)))
    return Leaf(bayes(classes, reader.bits)) if classes else Leaf(values[0])


def distribution(leaf: Any, model: Any, order: Sequence[Any], reader: Reader) -> dict[Any, float]:
    """Shares of the classes in a leaf by what it has seen.

    Where it would ask naive Bayes, that is so only if majority leaves are wanted; else ``CompileError``.
    """
    if not isinstance(leaf.stats, Mapping):
        raise CompileError(f"a leaf of the kind {type(leaf).__name__} in a classifier")
    if asks_bayes(leaf, model):
        if not reader.majority:
            raise CompileError(f"naive Bayes leaves that vote with others, which takes exponentials: {MAJORITY}")
        reader.notes.append("a naive Bayes leaf became a majority leaf")
    total = sum(leaf.stats.values())
    number(total, "the weight of a leaf")
    shares = dict.fromkeys(order, 0.0)
    # As river normalises them, so that what is equal there is equal here.
    shares.update({label: seen * (1 / total) if total else seen for label, seen in leaf.stats.items()})
    return shares


def votes(leaf: Any, model: Any, order: Sequence[Any], reader: Reader) -> dict[Any, float]:
    """The same as an adaptive tree weighs it: by the square of the leaf's error, if it has made any."""
    shares = distribution(leaf, model, order, reader)
    error = leaf._mean_error.get()
    factor = sum(shares.values()) * error * error
    return {label: share * (1 / factor) for label, share in shares.items()} if factor else shares


def asks_bayes(leaf: Any, model: Any) -> bool:
    """Whether a leaf would ask naive Bayes."""
    option = getattr(model, "leaf_prediction", "mc")
    if option == "mc" or not leaf.is_active():
        return False
    if option == "nb":
        return bool(leaf.total_weight >= model.nb_threshold)
    return bool(leaf._nb_correct_weight >= leaf._mc_correct_weight)
