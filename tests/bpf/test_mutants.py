"""Every planted mistake of the verifier is noticed, and the verifier without one is not complained of."""

from __future__ import annotations

import pytest
from mutants import BATTERIES, MUTANTS, Mutant, noticed, planted


@pytest.mark.parametrize("battery", BATTERIES)
def test_nothing_is_wrong_without_a_mistake(battery: str) -> None:
    with planted(None) as copy:
        assert not BATTERIES[battery](copy)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.says)
def test_mistake_is_noticed(mutant: Mutant) -> None:
    with planted(mutant) as copy:
        assert noticed(copy, mutant.caught), "nobody notices"


def test_there_are_enough_mistakes_everywhere() -> None:
    assert len(MUTANTS) >= 20
    files = {mutant.file for mutant in MUTANTS}
    assert files >= {"verifier", "values", "branches", "loads", "alu_rules", "state", "graph", "structure", "calls"}


def test_the_package_is_as_it_was() -> None:
    """A copy leaves nothing behind."""
    import uxk.bpf.program as before

    with planted(MUTANTS[0]) as copy:
        assert copy.Program is not before.Program
    import uxk.bpf.program as after

    assert after is before
