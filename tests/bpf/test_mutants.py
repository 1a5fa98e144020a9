"""Every planted mistake of the verifier is noticed, and the verifier without one is not complained of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from mutants import BATTERIES, MUTANTS, Mutant, followed, noticed, planted
from richer import maps, picked_program, reset, richer_program

from uxk.bpf import values
from uxk.bpf.errors import Fault, VerifierError
from uxk.bpf.program import Program
from uxk.bpf.proto import body


@pytest.mark.parametrize("battery", BATTERIES)
def test_nothing_is_wrong_without_a_mistake(battery: str) -> None:
    with planted(None) as copy:
        assert not BATTERIES[battery](copy)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.says)
def test_mistake_is_noticed(mutant: Mutant) -> None:
    with planted(mutant) as copy:
        assert noticed(copy, mutant.caught), "nobody notices"


@pytest.mark.parametrize("draw", [richer_program, picked_program])
def test_programs_stay_within_their_proof(draw: Callable[[Random], bytes]) -> None:
    """Whatever is accepted neither faults nor leaves the bounds that were proven, instruction by instruction."""
    rng, followed_count = Random(f"proof {draw.__name__}"), 0
    copy, spec = SimpleNamespace(values=values, Fault=Fault), body(64)._replace(insns_max=20_000)
    for number in range(500):
        made = maps()
        try:
            program = Program(draw(rng), spec, maps=made)
        except VerifierError:
            continue
        followed_count += 1
        reset(made)
        assert not followed(copy, program, rng.randbytes(64), lambda made=made: reset(made)), number
    assert followed_count > 80


def test_there_are_enough_mistakes_everywhere() -> None:
    assert len(MUTANTS) >= 20
    files = {mutant.file for mutant in MUTANTS}
    assert files >= {"verifier", "values", "branches", "loads", "alu_rules", "state", "graph", "structure", "calls"}


def test_the_document_tells_of_all_of_them() -> None:
    text = (Path(__file__).parents[2] / "docs" / "bpf.md").read_text()
    table = text[text.index("| mistake | in | noticed by |") :].split("\n\n")[0]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [mutant.says for mutant in MUTANTS]
    assert f"{len(MUTANTS)} mistakes are planted" in text


def test_the_package_is_as_it_was() -> None:
    """A copy leaves nothing behind."""
    import uxk.bpf.program as before

    with planted(MUTANTS[0]) as copy:
        assert copy.Program is not before.Program
    import uxk.bpf.program as after

    assert after is before
