"""The control flow of a program: functions, what can be reached, and an order that puts joins after their parts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.disasm import line
from uxk.bpf.errors import VerifierError
from uxk.bpf.insn import Insn

FUNCTIONS_MAX: Final = 256
"""Functions of a program, the main one included, as in Linux (BPF_MAX_SUBPROGS)."""


def successors(insns: Sequence[Insn], pc: int) -> tuple[int, ...]:
    """Where an instruction may lead within its function; a call leads to the next one."""
    insn = insns[pc]
    if insn.opcode == i.EXIT_INSN:
        return ()
    following = pc + (2 if insn.opcode == i.LDDW else 1)
    if insn.always_jumps:
        return (pc + 1 + insn.distance,)
    if insn.jumps:
        return (following, pc + 1 + insn.distance)
    return (following,)


class Graph:
    """Raises ``VerifierError`` if control can leave a function other than by ``exit``, or never comes somewhere.

    ``order[pc]``: a rank that grows along every edge but those back to the head of a loop.
    """

    def __init__(self, insns: Sequence[Insn], second: frozenset[int]) -> None:
        self.insns = insns
        starts = {0} | {pc + 1 + insn.imm for pc, insn in enumerate(insns) if pc not in second and insn.is_local_call}
        self.starts = sorted(starts)
        if len(starts) > FUNCTIONS_MAX:
            raise VerifierError(self.starts[FUNCTIONS_MAX], f"{len(starts)} functions; at most {FUNCTIONS_MAX}")
        self._second = second
        self.order: dict[int, int] = {}
        for index, start in enumerate(self.starts):
            end = self.starts[index + 1] if index + 1 < len(self.starts) else len(insns)
            self._check_function(start, end)
        self._check_reached()

    def _check_function(self, start: int, end: int) -> None:
        last = end - 1
        insn = self.insns[last]
        if last in self._second or (insn.opcode != i.EXIT_INSN and not insn.always_jumps):
            raise VerifierError(
                last, "the last instruction of a function is neither exit nor a jump", line(self.insns, last)
            )
        for pc in range(start, end):
            if pc in self._second:
                continue
            for target in successors(self.insns, pc):
                if not start <= target < end:
                    raise VerifierError(
                        pc, f"goes to {target}, out of its function {start}..{last}", line(self.insns, pc)
                    )
        self._rank(start)

    def _rank(self, start: int) -> None:
        """Reverse postorder of what can be reached from ``start``."""
        seen, finished = {start}, list[int]()
        stack = [(start, iter(successors(self.insns, start)))]
        while stack:
            pc, targets = stack[-1]
            for target in targets:
                if target not in seen:
                    seen.add(target)
                    stack.append((target, iter(successors(self.insns, target))))
                    break
            else:
                finished.append(pc)
                stack.pop()
        for rank, pc in enumerate(reversed(finished)):
            self.order[pc] = rank

    def _check_reached(self) -> None:
        called, todo = {0}, [0]
        inside: dict[int, list[int]] = {start: [] for start in self.starts}
        for pc in range(len(self.insns)):
            if pc in self._second:
                continue
            if pc not in self.order:
                raise VerifierError(pc, "cannot be reached", line(self.insns, pc))
            if self.insns[pc].is_local_call:
                home = self.starts[bisect_right(self.starts, pc) - 1]
                inside[home].append(pc + 1 + self.insns[pc].imm)
        while todo:
            for callee in inside[todo.pop()]:
                if callee not in called:
                    called.add(callee)
                    todo.append(callee)
        for start in self.starts:
            if start not in called:
                raise VerifierError(start, "is a function that nothing calls", line(self.insns, start))
