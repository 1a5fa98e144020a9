"""Every kind of model as an object: built, loaded by bpftool, and asked in Linux beside its program in uxk."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import model_cases
import numpy as np
import pytest
from linux_objects import by_bpftool
from model_cases import SCHEMA, model_of
from river import base
from test_wide_nets import linnos

from uxk.bpf import elf
from uxk.bpf.compiler.compile import Compiled, compile_model
from uxk.bpf.compiler.forms import Form, Tabled
from uxk.bpf.compiler.models import KINDS, Options
from uxk.bpf.compiler.report import draw
from uxk.bpf.compiler.tables import evaluate_rows
from uxk.bpf.export import export
from uxk.bpf.insn import s32
from uxk.bpf.program import Program
from uxk.cli import main

INPUTS = 10_000
"""For all hooks in the soak run; else for XDP."""
FEW = INPUTS if os.environ.get("UXK_SOAK") else 500
NAMES = (*model_cases.CLASSIFIERS, *model_cases.REGRESSORS, "net as data", "one as data", "wide", "wide, 8 bits")


@cache
def compiled(name: str) -> Compiled:
    """One of NAMES."""
    if name.startswith("wide"):
        return linnos(bits=8 if "8" in name else 30)[1]
    if name.endswith("as data"):
        return compile_model(model_of("net" if "net" in name else "a net"), SCHEMA, Options(scale=100, tables=True))
    return compile_model(model_of(name), SCHEMA, Options(scale=100 if name in model_cases.REGRESSORS else 1))


def test_no_kind_is_forgotten() -> None:
    """Whatever the compiler takes, and every form that it makes of it, is among the cases."""
    kinds: set[str] = set()
    for name in (*model_cases.CLASSIFIERS, *model_cases.REGRESSORS):
        model: Any = model_of(name)
        last = list(model.steps.values())[-1] if isinstance(model, base.Base) and hasattr(model, "steps") else model
        kinds |= {each.__name__ for each in type(last).__mro__}
    assert kinds >= {*KINDS, "Net"}
    assert {type(compiled(name).form) for name in NAMES} >= set(get_args(Form))


@cache
def program_of(name: str) -> Program:
    """Of a wide net, seconds to verify."""
    return compiled(name).program()


@pytest.mark.parametrize("hook", ["xdp", "tc", "socket", "syscall"])
@pytest.mark.parametrize("name", NAMES)
def test_bpftool_loads_it_and_all_verdicts_are_equal(linux: ModuleType, folder: Path, name: str, hook: str) -> None:
    made = compiled(name)
    assert made.form is not None
    program = program_of(name)
    descriptor = by_bpftool(linux, folder, export(program, hook))
    rows = draw(made.schema, made.form, INPUTS if hook == "xdp" else FEW, seed=11)
    expected = [program.decide(*row, 0) for row in rows[: 20 if isinstance(made.form, Tabled) else None].tolist()]
    if isinstance(made.form, Tabled):  # of which uxk takes milliseconds
        given = evaluate_rows(made.form, np.asarray(rows))
        assert given[: len(expected)] == expected
        expected = given
    prefix = bytes(14) if hook == "socket" else b""
    found = [linux.run(descriptor, hook, prefix + made.schema.pack(row)) for row in rows.tolist()]
    os.close(descriptor)
    assert found == [s32(verdict) for verdict in expected]


def test_what_stands_beside_a_program_says_what_it_decides_on(linux: ModuleType, tmp_path: Path) -> None:
    """`uxk export bpf` of what `uxk compile` wrote: its memory, its weights, and the zero at its end."""
    for name in ("forest", "net as data"):
        made = compiled(name)
        code, _ = made.save(tmp_path / "model.bpf")
        assert main(["export", "bpf", str(code), "-o", str(tmp_path / "a.o")]) == 0
        descriptor = linux.load_object(elf.load((tmp_path / "a.o").read_bytes()))
        assert made.form is not None
        program, junk = made.program(), b"\xff" * 8
        for row in draw(made.schema, made.form, 50, seed=3).tolist():
            packet = made.schema.pack(row)[:-8] + junk
            assert linux.run_packet(descriptor, packet) == s32(program.decide(*row, 0))
        os.close(descriptor)
