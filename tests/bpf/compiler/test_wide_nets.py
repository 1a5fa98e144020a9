"""Nets whose weights are data: the exact meaning, both machines, the running kernel, and weights that are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linux_judge import Judge

from uxk.bpf.compiler.compile import Compiled, compile_model, load
from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import Dense, Tabled, evaluate
from uxk.bpf.compiler.models import Options
from uxk.bpf.compiler.nets import Net
from uxk.bpf.compiler.report import draw
from uxk.bpf.compiler.schema import Feature, Schema
from uxk.bpf.compiler.tables import areas, evaluate_rows, packed, stages
from uxk.bpf.elf import load as load_object
from uxk.bpf.export import export
from uxk.bpf.insn import s64
from uxk.bpf.maps import ArrayMap
from uxk.bpf.program import Program

INPUTS = 10_000
DIGITS = Schema(
    [Feature(f"digit{n}", 0, 9) for n in range(27)] + [Feature(f"ns{n}", 0, 20_000_000_000) for n in range(4)]
)
"""As wide as the inputs of LinnOS (OSDI 2020): digits of queue lengths and latencies."""


def a_net(schema: Schema, shape: Sequence[int], labels: Any = None, seed: int = 1) -> Net:
    """Weights of chance."""
    rng = np.random.default_rng(seed)
    layers = [
        (rng.normal(size=(b, a)) / a**0.5, rng.normal(size=b) / a**0.5) for a, b in pairwise((len(schema), *shape))
    ]
    means = [(f.low + f.high) / 2 for f in schema.features]
    return Net(layers, labels, means, [max(1.0, (f.high - f.low) / 3.5) for f in schema.features])


@cache
def linnos(outputs: int = 2, bits: int = 30, seed: int = 1) -> tuple[Net, Compiled]:
    """31 x 256 x outputs."""
    net = a_net(DIGITS, (256, outputs), (False, True), seed)
    return net, compile_model(net, DIGITS, Options(bits=bits))


@pytest.mark.parametrize(("outputs", "bits", "least_ppm"), [(2, 30, 998_000), (1, 16, 998_000), (2, 8, 950_000)])
def test_a_net_of_256_values_agrees(outputs: int, bits: int, least_ppm: int) -> None:
    net, made = linnos(outputs, bits)
    assert isinstance(made.form, Tabled)
    assert made.form.width_bytes == {30: 4, 16: 2, 8: 1}[bits]
    assert made.model.instructions < 500
    found = made.compared(net).agreement  # runs the program, too, on the first rows
    assert found is not None
    assert found.inputs == INPUTS
    assert found.ppm >= least_ppm


def test_all_ways_to_evaluate_give_the_same() -> None:
    for made in (linnos()[1], linnos(1, 16)[1]):
        assert isinstance(made.form, Tabled)
        drawn = draw(DIGITS, made.form, 6, 3)
        drawn[:2] = [[-(1 << 62)] * 31, [1 << 62] * 31]
        expected = evaluate_rows(made.form, drawn)
        program, trusted = made.program(), made.program(trusted=True)
        for row, verdict in zip(drawn.tolist(), expected, strict=True):
            assert evaluate(made.form, row) == program.decide(*row, 0) == verdict
            assert trusted.decide(*DIGITS.clamped(row), 0) == verdict
        assert program.interpret(DIGITS.pack(drawn[3].tolist())) == expected[3]


@given(st.integers(0, 1 << 32).map(Random))
@settings(max_examples=25, deadline=None)
def test_code_means_what_the_form_means(rng: Random) -> None:
    schema, form, made = chance(rng)
    program = made.program()
    for row in draw(schema, form, 4, rng.getrandbits(32)).tolist():
        verdict = evaluate(form, row)
        assert made.model.verdict[0] <= verdict <= made.model.verdict[1]
        assert program.decide(*row, 0) == program.interpret(schema.pack(row)) == verdict
        assert evaluate_rows(form, np.array([row])) == [verdict]


def chance(rng: Random) -> tuple[Schema, Tabled, Compiled]:
    """A net of any allowed shape."""
    features = []
    for n in range(rng.randint(1, 6)):
        low = rng.choice((0, -5, -(1 << 40)))
        features.append(Feature(f"f{n}", low, low + rng.choice((0, 1, 9, 1000, 1 << 33, 1 << 50))))
    schema = Schema(features)
    middle = [rng.choice((1, 3, 12, 70)) if n % 2 else rng.randint(1, 8) for n in range(rng.randint(0, 3))]
    outputs = rng.choice((1, 1, 2, 5))
    labels = None if outputs == 1 and rng.random() < 0.5 else "ab" if outputs == 1 else "abcde"[:outputs]
    net = a_net(schema, [*middle, outputs], labels, rng.getrandbits(32))
    made = compile_model(net, schema, Options(scale=100, bits=rng.choice((3, 8, 12, 16, 24, 30)), tables=True))
    assert isinstance(made.form, Tabled)
    return schema, made.form, made


def test_a_net_that_fits_as_code_says_the_same_as_tables() -> None:
    schema = Schema([Feature(f"f{n}", -100, 1000) for n in range(6)])
    net = a_net(schema, (12, 3), "abc")
    code, tables = (compile_model(net, schema, Options(tables=each)) for each in (False, True))
    assert isinstance(code.form, Dense)
    assert not code.weights
    assert isinstance(tables.form, Tabled)
    rows = draw(schema, tables.form, 2_000, 1).tolist()
    same = sum(
        a == evaluate(code.form, row) for a, row in zip(evaluate_rows(tables.form, np.array(rows)), rows, strict=True)
    )
    assert same >= 1_998


def test_other_weights_need_no_other_program() -> None:
    """As a kernel does it that takes weights for an injected program: the other area, then the generation."""
    (_, old), (_, new) = linnos(), linnos(seed=2)
    assert old.code == new.code
    assert old.weights != new.weights
    values = ArrayMap(8 + 2 * len(old.weights), 1)
    values[0] = areas(old.weights)
    program = Program(old.code, DIGITS.spec((0, 1)), maps={0: values})
    assert isinstance(old.form, Tabled)
    assert isinstance(new.form, Tabled)
    rows = draw(DIGITS, old.form, 16, 5)
    before, after = evaluate_rows(old.form, rows), evaluate_rows(new.form, rows)
    assert before != after
    assert [program.decide(*row, 0) for row in rows.tolist()] == before
    values.data[8 + len(old.weights) :] = new.weights
    assert [program.decide(*row, 0) for row in rows[:5].tolist()] == before[:5]
    values.data[0] = 1
    assert [program.decide(*row, 0) for row in rows.tolist()] == after


def test_saved_exported_and_loaded(tmp_path: Path) -> None:
    net, made = linnos(2, 8)
    path, beside = made.save(tmp_path / "net.bpf")
    found = load(path)
    assert found == made._replace(form=None)
    row = [5] * 31
    assert found.program().decide(*row, 0) == evaluate(made.form, row) if made.form else False
    taken = load_object(export(found.program()), "xdp")
    (values,) = (each for each in taken.maps.values() if isinstance(each, ArrayMap) and each.read_only)
    assert bytes(values.data) == areas(made.weights)
    path.with_suffix(".weights").write_bytes(bytes(len(made.weights)))
    with pytest.raises(CompileError, match="are not the weights that"):
        load(path)
    for name in ("net.json", "net.weights"):
        with pytest.raises(CompileError, match="the program cannot be called"):
            made.save(tmp_path / name)
    assert beside.exists()
    assert net.labels == (False, True)


def test_shapes_that_the_stack_cannot_hold() -> None:
    assert [stage.through for stage in stages((31, 256, 2))] == [256]
    assert [stage.through for stage in stages((31, 16, 300, 3))] == [0, 300]
    assert [stage.through for stage in stages((5, 100, 20, 100, 4))] == [100, 100]
    for shape, why in (
        ((31, 100, 100, 2), "a net of 31x100x100x2: the stack holds 64 numbers"), ((31, 100), "the stack holds"),
        ((70, 2), "the stack holds"), ((31, 5000, 2), "at most 4096 values of a layer"),
        ((31, 4000, 2), "136002 weights; at most"),
    ):  # fmt: skip
        with pytest.raises(CompileError, match=why):
            stages(shape)
    huge = a_net(DIGITS, (256, 1))
    huge.layers[1][0][:] *= 1e30
    with pytest.raises(CompileError, match="the net's output may be too large"):
        compile_model(huge, DIGITS)


# --- the running kernel ---


@pytest.mark.parametrize(("outputs", "bits"), [(2, 30), (1, 16), (2, 8)])
def test_linux_gives_the_same_verdicts(strict: Judge, outputs: int, bits: int) -> None:
    made = linnos(outputs, bits)[1]
    assert isinstance(made.form, Tabled)
    drawn = draw(DIGITS, made.form, INPUTS, seed=7)
    verdicts = strict.ask(made.code, [DIGITS.pack(row) for row in drawn.tolist()], areas(made.weights))
    assert verdicts == evaluate_rows(made.form, drawn), verdicts if isinstance(verdicts, str) else ""


def test_linux_takes_the_second_area_and_any_weights(strict: Judge) -> None:
    (_, old), (_, new) = linnos(), linnos(seed=2)
    assert isinstance(new.form, Tabled)
    drawn = draw(DIGITS, new.form, 500, seed=8)
    memories = [DIGITS.pack(row) for row in drawn.tolist()]
    verdicts = strict.ask(old.code, memories, bytes([1] * 8) + old.weights + new.weights)
    assert verdicts == evaluate_rows(new.form, drawn)
    wild = Random("wild").randbytes(2 * len(old.weights))
    values = ArrayMap(8 + len(wild), 1)
    values[0] = bytes(8) + wild
    program = Program(old.code, DIGITS.spec((0, 1)), maps={0: values})
    assert strict.ask(old.code, memories[:20], bytes(values.data)) == [program.run(each) for each in memories[:20]]


def test_linux_takes_nets_of_chance(strict: Judge) -> None:
    for seed in range(12):
        schema, form, made = chance(Random(f"nets {seed}"))
        drawn = draw(schema, form, 50, seed)
        verdicts = strict.ask(made.code, [schema.pack(row) for row in drawn.tolist()], areas(packed(form)))
        assert not isinstance(verdicts, str), (seed, verdicts)
        assert [s64(r0) for r0 in verdicts] == evaluate_rows(form, drawn), seed
