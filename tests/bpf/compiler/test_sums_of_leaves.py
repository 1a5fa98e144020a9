"""Forests that regress, and leaves with naive Bayes: drawn at random, bytecode and exact meaning agree."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uxk.bpf.compiler.bayes import Class, Gauss, bayes
from uxk.bpf.compiler.codegen import comparisons
from uxk.bpf.compiler.compile import compile_form
from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import Forest, Form, Leaf, Node, Split, Tree, evaluate
from uxk.bpf.compiler.quantise import Range, linear
from uxk.bpf.compiler.schema import Feature, Schema

SCHEMA = Schema([Feature("a", -100, 100), Feature("b", 0, 20_000_000_000), Feature("c", -(1 << 61), 1 << 61)])
RANGES = {n: Range(f.low, f.high) for n, f in enumerate(SCHEMA.features)}


def a_tree(rng: Random, leaves: int) -> Node:
    if leaves > 1:
        slot, left = rng.randrange(len(RANGES)), rng.randint(1, leaves - 1)
        at = rng.randint(RANGES[slot].low, RANGES[slot].high)
        return Split(slot, at, a_tree(rng, left), a_tree(rng, leaves - left))
    if rng.random() < 0.3:
        weights = {n: Fraction(rng.randint(-999, 999), each.high) for n, each in RANGES.items()}
        return Leaf(linear(weights, Fraction(rng.randint(-99, 99)), RANGES, rounded=True)[0])
    return Leaf(rng.randint(-(1 << 40), 1 << 40))


def check(form: Form, rng: Random) -> None:
    made = compile_form(form, SCHEMA)
    program = made.program()
    for _ in range(12):
        x = SCHEMA.clamped([rng.choice((f.low, f.high, rng.randint(f.low, f.high), 0)) for f in SCHEMA.features])
        verdict = evaluate(form, x)
        assert program.decide(*x, 0) == program.interpret(SCHEMA.pack(x)) == verdict
        assert made.model.verdict[0] <= verdict <= made.model.verdict[1]


@given(st.integers(0, 1 << 32).map(Random), st.booleans())
@settings(max_examples=40, deadline=None)
def test_forests_that_regress(rng: Random, median: bool) -> None:
    trees = tuple(a_tree(rng, rng.randint(1, 6)) for _ in range(rng.randint(1, 9)))
    check(Forest(trees, (), rng.choice((0, 1, 20)), median), rng)


@given(st.integers(0, 1 << 32).map(Random))
@settings(max_examples=40, deadline=None)
def test_naive_bayes_is_near_the_real_sums(rng: Random) -> None:
    classes = []
    for value in range(rng.randint(1, 4)):
        parts = []
        for slot, each in RANGES.items():
            deviation = Fraction(rng.randint(1, 1000), rng.choice((1, 10**4))) * (
                each.high >> rng.choice((0, 3, 30)) or 1
            )
            mean = Fraction(rng.randint(each.low, each.high)) + Fraction(1, 3)
            parts.append(Gauss(slot, 1 / deviation, -mean / deviation, each))
        classes.append(Class(value, Fraction(rng.randint(-9, 0)), tuple(parts)))
    form = Tree(Leaf(bayes(classes, 30)))
    check(form, rng)
    for _ in range(10):
        x = [rng.randint(f.low, f.high) for f in SCHEMA.features]
        sums = [c.base - sum((p.weight * x[p.slot] + p.bias) ** 2 / 2 for p in c.parts) for c in classes]
        found = evaluate(form, x)
        largest = max(abs(each) for each in sums)
        assert max(sums) - sums[found] <= Fraction(1, 1000) + largest / (1 << 24)


def test_comparisons_sort() -> None:
    for count in range(1, 9):
        for bits in product((0, 1), repeat=count):
            values = list(bits)
            for a, b in comparisons(count):
                if values[a] > values[b]:
                    values[a], values[b] = values[b], values[a]
            assert values == sorted(bits)


def test_sums_that_may_overflow_are_refused() -> None:
    with pytest.raises(CompileError, match=r"the sum of the trees may be \d+ to \d+, beyond 2\*\*61"):
        compile_form(Forest((Leaf(1 << 62), Leaf(1 << 62), Leaf(1)), ()), SCHEMA)
