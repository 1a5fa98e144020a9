"""What a run of a program costs in virtual time: the longest way through it, at a price for each instruction.

A bound and not a count: it is the same for every input, so that runs can be repeated, and known before the first one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.errors import VerifierError
from uxk.bpf.graph import Graph, successors
from uxk.bpf.verifier import Proof

INSN_PS: Final = 6_000
"""Picoseconds for an instruction: a processor that has not seen the input before (guide: 84 ns for 13.7 of a tree)."""
PS_PER_NS: Final = 1_000


def cost_ns(insns: int) -> int:
    """Virtual time of so many instructions, at least one nanosecond."""
    return max(1, insns * INSN_PS // PS_PER_NS)


def longest(proof: Proof) -> int:
    """Instructions that a run executes at most.

    Of a program with counted loops it is what the verifier followed, every turn of them.  ``VerifierError`` for
    ``may_goto``: such a loop ends, but nobody can say when.
    """
    graph = Graph(proof.insns, proof.second)
    loops = False
    for pc in proof.before:
        insn = proof.insns[pc]
        if insn.opcode == i.MAY_GOTO:
            raise VerifierError(pc, "a loop through may_goto has no bound that a decision could wait for")
        loops = loops or any(graph.order[to] <= graph.order[pc] for to in _followed(proof, pc))
    if loops:
        return proof.looked_at
    return _Longest(proof, graph).of(0)


def _followed(proof: Proof, pc: int) -> list[int]:
    return [to for to in successors(proof.insns, pc) if to in proof.before]


class _Longest:
    """The longest path of each function, its callees' included; the verifier has seen to it that none calls itself."""

    def __init__(self, proof: Proof, graph: Graph) -> None:
        self._proof, self._order = proof, graph.order
        self._known: dict[int, int] = {}
        starts = [*graph.starts, len(proof.insns)]
        self._ends = dict(pairwise(starts))

    def of(self, start: int) -> int:
        """Instructions from a function's first to an exit."""
        if start not in self._known:
            proof, best = self._proof, dict[int, int]()
            pcs = [pc for pc in range(start, self._ends[start]) if pc in proof.before]
            for pc in sorted(pcs, key=lambda pc: self._order[pc], reverse=True):
                insn = proof.insns[pc]
                here = 1 + (self.of(pc + 1 + insn.imm) if insn.is_local_call else 0)
                best[pc] = here + max((best[to] for to in _followed(proof, pc)), default=0)
            self._known[start] = best[start]
        return self._known[start]
