"""The decision form: what is left of a model, in integers, and what exactly it means.

``evaluate`` is that meaning; the bytecode must agree with it on every input, and tests hold it to that.  Numbers
outside the schema's ranges count as the nearest number inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

TREE_DEPTH_MAX: Final = 200
"""Deepest tree: its Python is written by recursion."""
FOREST_DEPTH_MAX: Final = 80
"""Deepest tree whose leaves meet: its Python is nested as deep, and Python takes 100 levels."""


class Term(NamedTuple):
    """One weight: ``(clamp(x) - low >> coarse) * mantissa``, shifted left by ``exponent`` (right, if negative).

    ``negative``: it is subtracted.  ``source``: a slot, or in later layers of a net the number of a value.
    """

    source: int
    low: int
    high: int
    coarse: int
    mantissa: int
    exponent: int
    negative: bool

    def value(self, x: int) -> int:
        """Without the sign."""
        product = (min(max(x, self.low), self.high) - self.low >> self.coarse) * self.mantissa
        return product << self.exponent if self.exponent >= 0 else product >> -self.exponent

    @property
    def bound(self) -> int:
        """Its largest value."""
        return self.value(self.high)


class Linear(NamedTuple):
    """``bias`` and terms, summed without overflow and shifted right by ``shift`` (floor)."""

    terms: tuple[Term, ...]
    bias: int
    shift: int = 0

    def value(self, x: Sequence[int]) -> int:
        """The sum for features, or values of the layer before."""
        return self.total(x) >> self.shift

    def total(self, x: Sequence[int]) -> int:
        """Before the shift."""
        return self.bias + sum(
            -term.value(x[term.source]) if term.negative else term.value(x[term.source]) for term in self.terms
        )

    @property
    def bounds(self) -> tuple[int, int]:
        """Lowest and highest value."""
        low = self.bias - sum(term.bound for term in self.terms if term.negative)
        high = self.bias + sum(term.bound for term in self.terms if not term.negative)
        return low >> self.shift, high >> self.shift


class Leaf(NamedTuple):
    """``value``: the verdict, a number or a linear model; in forests ``votes`` instead, one for each class."""

    value: int | Linear = 0
    votes: tuple[int, ...] = ()


class Split(NamedTuple):
    """``left`` if x[slot] <= threshold (``equal``: if it is the threshold), else ``right``."""

    slot: int
    threshold: int
    left: Node
    right: Node
    equal: bool = False


Node: TypeAlias = "Leaf | Split"


class Tree(NamedTuple):
    """One tree."""

    root: Node


class Forest(NamedTuple):
    """Votes of all trees are summed; the verdict is the value of the first class with the most."""

    trees: tuple[Node, ...]
    values: tuple[int, ...]


class Score(NamedTuple):
    """A linear model; ``values``: the verdict for a sum up to 0, and for one above; without them it is the sum."""

    linear: Linear
    values: tuple[int, int] | None = None


class Dense(NamedTuple):
    """Layers of a net: the first takes the features, each next one the values before it.

    Values of all layers but the last are cut at 0 (ReLU) before the shift.  The verdict is the value of the first
    class with the largest sum; with two ``values`` and one sum, as in ``Score``; without any, the only sum.
    """

    layers: tuple[tuple[Linear, ...], ...]
    values: tuple[int, ...] = ()


Form: TypeAlias = Tree | Forest | Score | Dense


def evaluate(form: Form, x: Sequence[int]) -> int:
    """The verdict for features, in the order of their slots."""
    if isinstance(form, Tree):
        value = leaf_of(form.root, x).value
        return value.value(x) if isinstance(value, Linear) else value
    if isinstance(form, Forest):
        votes = [leaf_of(tree, x).votes for tree in form.trees]
        return form.values[_first_most([sum(column) for column in zip(*votes, strict=True)])]
    if isinstance(form, Score):
        total = form.linear.value(x)
        return total if form.values is None else form.values[total > 0]
    given: Sequence[int] = x
    for layer in form.layers[:-1]:
        given = [max(neuron.total(given), 0) >> neuron.shift for neuron in layer]
    sums = [neuron.value(given) for neuron in form.layers[-1]]
    if len(sums) > 1:
        return form.values[_first_most(sums)]
    return form.values[sums[0] > 0] if form.values else sums[0]


def _first_most(sums: Sequence[int]) -> int:
    return sums.index(max(sums))


def leaf_of(node: Node, x: Sequence[int]) -> Leaf:
    """Where a tree leads."""
    while isinstance(node, Split):
        value = x[node.slot]
        node = node.left if (value == node.threshold if node.equal else value <= node.threshold) else node.right
    return node


def nodes(root: Node) -> Iterator[tuple[Node, int]]:
    """All nodes of a tree with their depth, the left ones first."""
    pending = [(root, 0)]
    while pending:
        node, depth = pending.pop()
        yield node, depth
        if isinstance(node, Split):
            pending += [(node.right, depth + 1), (node.left, depth + 1)]


def trees_of(form: Form) -> tuple[Node, ...]:
    """The trees of a form, if it has any."""
    return (form.root,) if isinstance(form, Tree) else form.trees if isinstance(form, Forest) else ()


def verdicts(form: Form) -> tuple[int, int]:
    """Lowest and highest verdict."""
    ends: list[int] = []
    if isinstance(form, Tree):
        for node, _ in nodes(form.root):
            if isinstance(node, Leaf):
                ends += node.value.bounds if isinstance(node.value, Linear) else (node.value,)
    elif isinstance(form, Score):
        ends += form.linear.bounds if form.values is None else form.values
    else:
        ends += form.values or (form.layers[-1][0].bounds if isinstance(form, Dense) else ())
    return min(ends), max(ends)
