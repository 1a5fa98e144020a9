"""Compiled models for whole arrays: machine code, translation and form say the same."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import CLASSIFIERS, REGRESSORS, SCHEMA, model_of
from test_compiled_forms import a_form, a_schema, inputs

from uxk.bpf.batch import Batch
from uxk.bpf.compiler.compile import compile_form, compile_model
from uxk.bpf.compiler.forms import evaluate
from uxk.bpf.compiler.report import draw
from uxk.bpf.errors import BpfError

pytest.importorskip("llvmlite")


@pytest.mark.parametrize("name", [*CLASSIFIERS, *REGRESSORS])
def test_models(name: str) -> None:
    made = compile_model(model_of(name), SCHEMA)
    assert made.form is not None
    drawn = draw(SCHEMA, made.form, 1_000, seed=3)
    rows = np.concatenate([drawn, np.zeros((len(drawn), 1), np.int64)], axis=1)
    for program in (made.program(), made.program(trusted=True)):
        expected = [program.decide(*row) for row in rows.tolist()]
        for quick in (True, False):
            runs = Batch(program, native=True, quick=quick)
            assert runs.bounded
            assert runs.many(rows).tolist() == expected


@given(st.integers(0, 1 << 32).map(Random))
@settings(max_examples=40, deadline=None)
def test_forms(rng: Random) -> None:
    schema = a_schema(rng)
    made = compile_form(a_form(rng, schema), schema)
    assert made.form is not None
    drawn = [inputs(rng, schema) for _ in range(50)]
    rows = np.array([(*x, 0) for x in drawn], np.int64)
    runs = Batch(made.program(), native=True, quick=True)
    assert runs.many(rows).tolist() == [evaluate(made.form, x) for x in drawn]
    inside = [schema.clamped(x) for x in drawn]
    trusted = Batch(made.program(trusted=True), native=True, quick=True)
    assert trusted.many(np.array([(*x, 0) for x in inside])).tolist() == [evaluate(made.form, x) for x in inside]
    if inside != drawn:
        with pytest.raises(BpfError, match="it was verified for"):
            trusted.many(rows)
