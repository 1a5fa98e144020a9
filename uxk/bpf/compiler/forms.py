"""The decision form: what is left of a model, in integers, and what exactly it means.

``evaluate`` is that meaning; the bytecode must agree with it on every input, and tests hold it to that.  Numbers
outside the schema's ranges count as the nearest number inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import mul
from typing import Final, NamedTuple, TypeAlias

from uxk.bpf.compiler.errors import CompileError

TREE_DEPTH_MAX: Final = 200
"""Deepest tree: its Python is written by recursion."""
FOREST_DEPTH_MAX: Final = 80
"""Deepest tree whose leaves meet: its Python is nested as deep, and Python takes 100 levels."""

SUM_BITS_TABLED: Final = 62
"""Sums of nets with weights as data stay within so many bits, whatever the weights."""


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


class Bell(NamedTuple):
    """The square of a distance, shifted right."""

    distance: Linear
    shift: int

    def value(self, x: Sequence[int]) -> int:
        """What is taken off."""
        return self.distance.value(x) ** 2 >> self.shift


class Evidence(NamedTuple):
    """For a class, whose verdict is ``value``."""

    value: int
    base: int
    bells: tuple[Bell, ...]


class Bayes(NamedTuple):
    """The verdict is the value of the first class with the most: its base less its bells."""

    classes: tuple[Evidence, ...]

    def value(self, x: Sequence[int]) -> int:
        """The verdict."""
        sums = [each.base - sum(bell.value(x) for bell in each.bells) for each in self.classes]
        return self.classes[_first_most(sums)].value

    @property
    def bounds(self) -> tuple[int, int]:
        """Lowest and highest verdict."""
        return min(each.value for each in self.classes), max(each.value for each in self.classes)

    @property
    def terms(self) -> tuple[Bell, ...]:
        """All bells."""
        return tuple(bell for each in self.classes for bell in each.bells)


class Leaf(NamedTuple):
    """``value``: the verdict, or what it is worked out by; in forests ``votes`` instead, one for each class."""

    value: int | Linear | Bayes = 0
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
    """Votes of all trees are summed; the verdict is the value of the first class with the most.

    Without ``values``, the values of leaves are summed, and shifted right by ``shift``, rounded; with ``median`` only
    the middle one is taken, or the two in the middle.
    """

    trees: tuple[Node, ...]
    values: tuple[int, ...]
    shift: int = 0
    median: bool = False

    @property
    def rounding(self) -> int:
        """What is added before the shift."""
        return 1 << self.shift - 1 if self.shift else 0

    @property
    def middle(self) -> range:
        """Places of the values that are summed, by size."""
        count = len(self.trees)
        return range((count - 1) // 2, count // 2 + 1) if self.median else range(count)

    def total(self, answers: Sequence[int]) -> int:
        """The verdict for the answers of all trees."""
        ordered = sorted(answers)
        return sum(ordered[place] for place in self.middle) + self.rounding >> self.shift

    @property
    def bounds(self) -> tuple[int, int]:
        """Lowest and highest sum of values."""
        ends = [leaf_bounds(tree) for tree in self.trees]
        if self.median:
            ends = [(min(low for low, _ in ends), max(high for _, high in ends))] * len(ends)
        lows, highs = zip(*ends, strict=True)
        return self.total(lows), self.total(highs)


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


class Column(NamedTuple):
    """A feature of a ``Tabled`` net: ``clamp(x) - low``, shifted left by ``shift`` (right, if negative)."""

    low: int
    high: int
    shift: int

    def value(self, x: int) -> int:
        """Not negative."""
        above = min(max(x, self.low), self.high) - self.low
        return above << self.shift if self.shift >= 0 else above >> -self.shift


class Tabled(NamedTuple):
    """A net whose weights are data: for each layer and value a row of whole numbers of ``width_bytes``.

    A row has a weight for each value given and one for the constant ``1 << ones[layer]``.  Sums of all layers but the
    last are cut at 0, shifted right by ``shifts[layer]``, and cut to as many bits as the next constant has; the last
    one's are only shifted, rounded, if there are no ``values``.  The verdict is as in ``Dense``.
    """

    columns: tuple[Column, ...]
    layers: tuple[tuple[tuple[int, ...], ...], ...]
    ones: tuple[int, ...]
    shifts: tuple[int, ...]
    width_bytes: int
    values: tuple[int, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """How many values there are: the features, then those of each layer."""
        return len(self.columns), *(len(layer) for layer in self.layers)

    @property
    def rounding(self) -> int:
        """What is added before the last shift."""
        return 1 << self.shifts[-1] - 1 if self.shifts[-1] else 0

    def value(self, x: Sequence[int]) -> int:
        """The verdict."""
        given = [column.value(each) for column, each in zip(self.columns, x, strict=True)]
        masks, sums = iter([(1 << one) - 1 for one in self.ones[1:]]), list[int]()
        for layer, one, shift in zip(self.layers, self.ones, self.shifts, strict=True):
            sums = [sum(map(mul, row, (*given, 1 << one))) for row in layer]
            given = [max(each, 0) >> shift & next(masks, -1) for each in sums]
        if len(sums) > 1:
            return self.values[_first_most(sums)]
        return self.values[sums[0] > 0] if self.values else sums[0] + self.rounding >> self.shifts[-1]


Form: TypeAlias = Tree | Forest | Score | Dense | Tabled


def evaluate(form: Form, x: Sequence[int]) -> int:
    """The verdict for features, in the order of their slots."""
    if isinstance(form, Tree):
        return _answer(leaf_of(form.root, x), x)
    if isinstance(form, Forest):
        if not form.values:
            return form.total([_answer(leaf_of(tree, x), x) for tree in form.trees])
        votes = [leaf_of(tree, x).votes for tree in form.trees]
        return form.values[_first_most([sum(column) for column in zip(*votes, strict=True)])]
    if isinstance(form, Score):
        total = form.linear.value(x)
        return total if form.values is None else form.values[total > 0]
    if isinstance(form, Tabled):
        return form.value(x)
    given: Sequence[int] = x
    for layer in form.layers[:-1]:
        given = [max(neuron.total(given), 0) >> neuron.shift for neuron in layer]
    sums = [neuron.value(given) for neuron in form.layers[-1]]
    if len(sums) > 1:
        return form.values[_first_most(sums)]
    return form.values[sums[0] > 0] if form.values else sums[0]


def _answer(leaf: Leaf, x: Sequence[int]) -> int:
    return leaf.value if isinstance(leaf.value, int) else leaf.value.value(x)


def leaf_bounds(root: Node) -> tuple[int, int]:
    """Lowest and highest value of a tree's leaves."""
    values = [node.value for node, _ in nodes(root) if isinstance(node, Leaf)]
    ends = [(value, value) if isinstance(value, int) else value.bounds for value in values]
    return min(low for low, _ in ends), max(high for _, high in ends)


def check_sum(forest: Forest) -> None:
    """Raises ``CompileError`` if the values of a forest's leaves may add up to more than 61 bits."""
    low, high = forest._replace(shift=0).bounds
    if max(-low, high) > 1 << SUM_BITS_TABLED - 1:
        raise CompileError(f"the sum of the trees may be {low} to {high}, beyond 2**{SUM_BITS_TABLED - 1}")


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
        ends += leaf_bounds(form.root)
    elif isinstance(form, Forest):
        ends += form.values or form.bounds
    elif isinstance(form, Score):
        ends += form.linear.bounds if form.values is None else form.values
    elif isinstance(form, Tabled):
        # Whatever the weights: they are data, and may change.
        most = (1 << SUM_BITS_TABLED - form.shifts[-1]) + 1
        ends += form.values or (-most, most)
    else:
        ends += form.values or (form.layers[-1][0].bounds if isinstance(form, Dense) else ())
    return min(ends), max(ends)
