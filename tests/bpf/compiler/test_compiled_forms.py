"""Decision forms drawn at random: bytecode, both machines and the exact meaning agree on every input."""

from __future__ import annotations

import os
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linux_judge import Judge

from uxk.bpf.compiler.codegen import generate
from uxk.bpf.compiler.compile import check_exact, compile_form
from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import Dense, Forest, Form, Leaf, Linear, Node, Score, Split, Term, Tree, evaluate
from uxk.bpf.compiler.nets import Net, dense
from uxk.bpf.compiler.quantise import Range, linear
from uxk.bpf.compiler.schema import VALUE_MAX, Feature, Schema
from uxk.bpf.insn import GOTOL, decode, s64
from uxk.bpf.program import Program
from uxk.bpf.verifier import verify

FEATURES = 4
SIZES = (8, 31, 32, 33, 61)


def a_schema(rng: Random) -> Schema:
    features = []
    for n in range(FEATURES):
        most = 1 << rng.choice(SIZES)
        low, high = sorted((rng.randint(-most, most), rng.randint(-most, most)))
        features.append(Feature(f"f{n}", rng.choice((low, 0)) if high >= 0 else low, high))
    return Schema(features)


def a_sum(rng: Random, schema: Schema, *, rounded: bool) -> Linear:
    ranges = {n: Range(f.low, f.high) for n, f in enumerate(schema.features)}
    least = -70 if rounded else -1000
    weights = {
        n: Fraction(rng.randint(-999, 999), rng.randint(1, 99)) * Fraction(2) ** rng.randint(least, -20)
        for n in rng.sample(range(FEATURES), rng.randint(0, FEATURES))
    }
    return linear(weights, Fraction(rng.randint(-99, 99), 7), ranges, bits=rng.choice((4, 12, 30)), rounded=rounded)[0]


def a_tree(rng: Random, schema: Schema, leaves: int, classes: int = 0) -> Node:
    if leaves == 1:
        if classes:
            most = rng.choice((1, 1, 1 << 30))  # small ones meet
            return Leaf(votes=tuple(rng.randint(0, most) for _ in range(classes)))
        chance = rng.random()
        if chance < 0.2:
            return Leaf(a_sum(rng, schema, rounded=True))
        return Leaf(rng.randint(-(1 << 62), 1 << 62) if chance < 0.4 else rng.randint(0, 3))
    left, slot = rng.randint(1, leaves - 1), rng.randrange(FEATURES)
    feature = schema.features[slot]
    at = rng.choice((feature.low, feature.high, 0, rng.randint(feature.low, feature.high)))
    ways = a_tree(rng, schema, left, classes), a_tree(rng, schema, leaves - left, classes)
    return Split(slot, at, *ways, equal=rng.random() < 0.2)


def a_net(rng: Random, schema: Schema) -> Dense:
    sizes = [FEATURES, *(rng.randint(1, 6) for _ in range(rng.randint(0, 2))), rng.choice((1, 1, 2, 4))]
    layers = [
        ([[rng.uniform(-2, 2) for _ in range(n)] for _ in range(m)], [rng.uniform(-2, 2) for _ in range(m)])
        for n, m in pairwise(sizes)
    ]
    if rng.random() < 0.2:
        layers[-1] = ([[0.0] * sizes[-2]] * sizes[-1], [0.0] * sizes[-1])  # all outputs alike
    wide = [max(1.0, (f.high - f.low) / 4) for f in schema.features]
    made = Net(layers, None, [(f.low + f.high) / 2 for f in schema.features], wide)
    values = tuple(range(sizes[-1])) if sizes[-1] > 1 else rng.choice(((), (0, 1)))
    ranges = {n: Range(f.low, f.high) for n, f in enumerate(schema.features)}
    return dense(made, ranges, values, scale=Fraction(100), bits=rng.choice((4, 8, 30)))


def a_form(rng: Random, schema: Schema) -> Form:
    kind = rng.randrange(4)
    if kind == 0:
        return Tree(a_tree(rng, schema, rng.randint(1, 30)))
    if kind == 1:
        classes = rng.randint(2, 7)
        values = tuple(rng.choice((n, n, (1 << 40) + n)) for n in range(classes))
        trees = tuple(a_tree(rng, schema, rng.randint(1, 12), classes) for _ in range(rng.randint(1, 6)))
        return Forest(trees, values)
    if kind == 2:
        values = rng.choice((None, (0, 1), (-(1 << 40), 1 << 40)))
        return Score(a_sum(rng, schema, rounded=values is None), values)
    return a_net(rng, schema)


def inputs(rng: Random, schema: Schema) -> tuple[int, ...]:
    """Within the ranges, at their ends, or anything."""
    return tuple(
        rng.choice((rng.randint(f.low, f.high), f.low, f.high, s64(rng.getrandbits(64)), -1 << 63, (1 << 63) - 1))
        for f in schema.features
    )


@given(st.integers(0, 1 << 32).map(Random))
@settings(max_examples=80, deadline=None)
def test_code_means_what_the_form_means(rng: Random) -> None:
    schema = a_schema(rng)
    made = compile_form(a_form(rng, schema), schema)
    assert made.form is not None
    program, trusted = made.program(), made.program(trusted=True)
    for _ in range(8):
        x = inputs(rng, schema)
        verdict = evaluate(made.form, x)
        assert made.model.verdict[0] <= verdict <= made.model.verdict[1]
        assert program.decide(*x, 0) == verdict
        assert program.interpret(schema.pack(x)) == verdict
        inside = schema.clamped(x)
        assert trusted.decide(*inside, 0) == evaluate(made.form, inside)


@given(st.integers(0, 1 << 32).map(Random), st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_a_rounded_sum_is_near_the_real_one(rng: Random, bits: int) -> None:
    ranges = {n: Range(*sorted((rng.randint(-1000, 10**9), rng.randint(-1000, 10**9)))) for n in range(3)}
    weights = {n: Fraction(rng.randint(-(10**6), 10**6), 10 ** rng.randint(3, 9)) for n in ranges}
    bias = Fraction(rng.randint(-99, 99), 7)
    made, _ = linear(weights, bias, ranges, bits=bits, rounded=True)
    x = [rng.randint(r.low, r.high) for r in ranges.values()]
    real = bias + sum(w * x[n] for n, w in weights.items())
    lost = sum(abs(w) * (x[n] - ranges[n].low) for n, w in weights.items()) / (1 << bits)
    assert abs(made.value(x) - real) <= lost + Fraction(501, 1000)


def test_a_sum_that_may_be_too_large_is_refused() -> None:
    with pytest.raises(CompileError, match=r"the sum may be as large as 2\*\*63, beyond 2\*\*60; narrow the schema"):
        linear({0: Fraction(1 << 31)}, Fraction(0), {0: Range(0, 1 << 32)}, rounded=True)


def test_the_verifiers_own_bounds_catch_a_compiler_that_errs() -> None:
    schema = Schema([Feature("x", 0, (1 << 32) - 1)])
    term = Term(0, 0, (1 << 32) - 1, 0, (1 << 30) - 1, 2, negative=False)
    wrong = Score(Linear((term, term), 0), (0, 1))
    with pytest.raises(CompileError, match="may overflow"):
        check_exact(verify(generate(wrong, schema.spare), schema.spec()))
    with pytest.raises(CompileError, match="may overflow"):
        compile_form(wrong, schema)


def chain(length: int, *, votes: bool = False) -> Node:
    """A tree as deep as it has splits."""
    node: Node = Leaf(votes=(1, 0)) if votes else Leaf(length)
    for n in range(length):
        node = Split(0, n, Leaf(votes=(0, n)) if votes else Leaf(n), node)
    return node


def test_deep_trees_have_a_limit() -> None:
    schema = Schema([Feature("x", 0, 1000)])
    deepest = compile_form(Tree(chain(200)), schema)
    assert [deepest.program().decide(x, 0) for x in (0, 150, 999)] == [
        evaluate(deepest.form, [x]) for x in (0, 150, 999)
    ]
    compile_form(Forest((chain(80, votes=True),), (0, 1)), schema).program().decide(3, 0)
    with pytest.raises(CompileError, match="a tree of 201 levels; at most 200"):
        compile_form(Tree(chain(201)), schema)
    with pytest.raises(CompileError, match="a tree of 81 levels; at most 80 here"):
        compile_form(Forest((chain(81, votes=True),), (0, 1)), schema)


def balanced(depth: int, at: int = 0, low: int = 0) -> Node:
    """A full tree over one feature."""
    if depth == 0:
        return Leaf(low)
    half = 1 << depth - 1
    return Split(0, low + half - 1, balanced(depth - 1, at, low), balanced(depth - 1, at, low + half))


def test_trees_too_long_for_short_jumps() -> None:
    schema = Schema([Feature("x", 0, (1 << 13) - 1)])
    made = compile_form(Tree(balanced(13)), schema)
    assert any(insn.opcode == GOTOL for insn in decode(made.code))
    program = Program(made.code, schema.spec())
    assert [program.interpret(schema.pack([x])) for x in (0, 1, 4095, 4096, 8191)] == [0, 1, 4095, 4096, 8191]


def test_a_net_of_many_values_is_refused() -> None:
    schema = Schema([Feature("x", 0, 9)])
    wide = Net([([[1.0]] * 64, [0.0] * 64), ([[1.0] * 64], [0.0])], None)
    form = dense(wide, {0: Range(0, 9)}, (), scale=Fraction(1), bits=30)
    with pytest.raises(CompileError, match="1 inputs and 64 values; the stack holds 64 together"):
        compile_form(form, schema)


def test_ranges_must_be_ranges() -> None:
    with pytest.raises(CompileError, match=r"'x' is 5\.\.4; expected a low, then a high"):
        Schema([Feature("x", 5, 4)])
    with pytest.raises(CompileError, match="within"):
        Schema([Feature("x", 0, VALUE_MAX + 1)])
    with pytest.raises(CompileError, match="'x' is there twice"):
        Schema([Feature("x", 0, 1), Feature("x", 0, 1)])
    with pytest.raises(CompileError, match="0 features"):
        Schema([])


# --- the running kernel ---


def test_linux_takes_forms_of_chance_and_gives_the_same_verdicts(strict: Judge) -> None:
    for seed in range(1_000 if os.environ.get("UXK_SOAK") == "1" else 60):
        rng = Random(f"forms {seed}")
        schema = a_schema(rng)
        form = a_form(rng, schema)
        made = compile_form(form, schema)
        drawn = [inputs(rng, schema) for _ in range(50)]
        verdicts = strict.ask(made.code, [schema.pack(x) for x in drawn])
        assert not isinstance(verdicts, str), (seed, verdicts)
        assert [s64(r0) for r0 in verdicts] == [evaluate(form, x) for x in drawn], seed


def test_linux_takes_far_jumps(strict: Judge) -> None:
    schema = Schema([Feature("x", 0, (1 << 13) - 1)])
    made = compile_form(Tree(balanced(13)), schema)
    wanted = list(range(0, 1 << 13, 7))
    assert strict.ask(made.code, [schema.pack([x]) for x in wanted]) == wanted
