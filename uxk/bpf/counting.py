"""The instruction budget in translated programs: exact, and only where the proof does not bound a run already.

A run passes each turn of each place that the verifier followed at most once, so without ``may_goto`` it executes no
more instructions than were followed.  Otherwise what runs in a row is counted at once, in ``n``; where the budget ends
inside, the reference interpreter does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from uxk.bpf import insn as i
from uxk.bpf.insn import M64
from uxk.bpf.interp import Machine, spent
from uxk.bpf.verifier import Proof

Lines = list[str]


class Count:
    """``needed``: whether instructions are counted at all.  ``by_fields``: whether nothing outlives the run but r0."""

    def __init__(self, proof: Proof, budget: int, *, by_fields: bool) -> None:
        self._insns, self._budget, self._by_fields = proof.insns, budget, by_fields
        self.needed = proof.looked_at > budget or any(proof.insns[pc].opcode == i.MAY_GOTO for pc in proof.before)

    def prologue(self, *, main: bool) -> Lines:
        """What a function begins with."""
        if not self.needed:
            return []
        return ["n = 0" if main else "n = machine.executed"]

    def segments(self, pcs: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Slots in a row, cut after the calls of functions, which count for themselves."""
        start = 0
        for index, pc in enumerate(pcs, 1):
            if index == len(pcs) or (self.needed and self._insns[pc].is_local_call):
                yield tuple(pcs[start:index])
                start = index

    def before(self, pcs: tuple[int, ...]) -> Lines:
        """What is done before a segment runs."""
        if not self.needed:
            return []
        state = "" if self._by_fields else ", machine, locals()"
        left = f"{self._budget + len(pcs)} - n"
        return [f"n += {len(pcs)}", f"if n > {self._budget}: finish({self._budget}, {pcs}, {left}{state})"]

    def call(self, text: str) -> Lines:
        """A call of a function of the program."""
        return ["machine.executed = n", text, "n = machine.executed"] if self.needed else [text]

    def leave(self, *, main: bool) -> Lines:
        """What is done before a function returns."""
        return ["machine.executed = n"] if self.needed and not main else []


def finish(
    budget: int, pcs: tuple[int, ...], left: int, machine: Machine | None = None, names: Mapping[str, Any] | None = None
) -> None:
    """Interprets the first ``left`` instructions, with the registers in ``names``; raises the fault after them."""
    if machine is not None and names is not None:
        machine.finish(pcs[:left], [names.get(f"r{number}", 0) & M64 for number in range(i.REGISTERS)])
    raise spent(pcs[left], budget)
