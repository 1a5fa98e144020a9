"""The verifier: shows that a program cannot hang, leave its memory, or read what nobody wrote; or says why not.

Abstract interpretation with intervals, all paths joined where they meet (after PREVAIL, PLDI 2019); refuses what the
strict mode of Linux refuses (kernel/bpf/verifier.c without CAP_PERFMON).  Loops are followed turn by turn, and must end
by what is known; those through ``may_goto`` are widened instead, and followed once more as if its turns were used up.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from functools import cached_property

from uxk.bpf import insn as i
from uxk.bpf.alu_rules import arithmetic
from uxk.bpf.branches import outcomes
from uxk.bpf.calls import helper_call
from uxk.bpf.disasm import line
from uxk.bpf.errors import VerifierError
from uxk.bpf.graph import Graph
from uxk.bpf.insn import FRAME, Insn, decode, imm64
from uxk.bpf.loads import access, immediate
from uxk.bpf.proto import Spec
from uxk.bpf.state import MIXED, Depth, Frame, State, unset
from uxk.bpf.structure import check
from uxk.bpf.values import Pointer, Scalar, Space, Value, const, join

CALL_STACK_BYTES = 512
"""Stack of a chain of calls together; each frame counts in steps of 32 bytes (check_max_stack_depth)."""
APART_MAX = 4
"""States that are followed side by side from one place, because an address in one is something else in another."""
HELD = "an object is held on one of the paths that meet here, and not on another"


class Proof:
    """A verified program, and what was learnt of it.

    ``before[pc]``: what the registers are before an instruction, whatever the path; absent if nothing leads there.
    ``MIXED`` is what differs from visit to visit, as a pointer that a function gets from those who call it.
    """

    def __init__(self, insns: tuple[Insn, ...], spec: Spec, second: frozenset[int]) -> None:
        self.insns, self.spec, self.second = insns, spec, second
        self.before: dict[int, list[Value]] = {}
        self.looked_at = 0
        """Instructions that the verifier followed."""
        self.stack_bytes = 0
        """Stack of the deepest chain of calls."""

    @cached_property
    def arena_pcs(self) -> frozenset[int]:
        """Loads and stores that go to the arena."""
        return frozenset(pc for pc in self.before if _base_kind(self, pc) == "arena")


def _base_kind(proof: Proof, pc: int) -> str:
    insn = proof.insns[pc]
    if insn.cls not in (i.LDX, i.ST, i.STX):
        return ""
    base = proof.before[pc][_base_register(insn)]
    return base.space.kind if isinstance(base, Pointer) else ""


def _base_register(insn: Insn) -> int:
    """The register with the address of a load, a store or an atomic operation."""
    return insn.src if insn.cls == i.LDX or (insn.imm == i.LOAD_ACQ and insn.mode == i.ATOMIC) else insn.dst


def verify(program: bytes, spec: Spec) -> Proof:
    """Returns what was proven.  Raises ``VerifierError``, which names the instruction and what was known there."""
    insns = decode(program)
    second = check(insns)
    proof = Proof(insns, spec, second)
    walk = _Walk(proof, Graph(insns, second))
    walk.run()
    return proof


class _Walk:
    """One verification."""

    def __init__(self, proof: Proof, graph: Graph) -> None:
        self.proof, self.insns, self.spec, self.graph = proof, proof.insns, proof.spec, graph
        self._depths: dict[int, Depth] = {}
        self._calls: dict[int, set[int]] = {}
        self._ids = 0
        self._arena: dict[int, bool] = {}

    def run(self) -> None:
        regs: list[Value] = [None] * i.REGISTERS
        memory = self.spec.memory
        if memory is not None:
            regs[1] = Pointer(memory, 0, 0)
        if self.spec.length_known:
            regs[2] = const(memory.size_bytes if memory else 0)
        if memory is None and self.spec.length_known:
            regs[1] = const(0)
        regs[FRAME] = Pointer(Space("stack", i.STACK_BYTES, number=0), 0, 0)
        self._function(0, State(regs, [self._frame(0)]))
        self.proof.stack_bytes = self._chain(0, ())

    def _frame(self, start: int) -> Frame:
        return Frame(self._depths.setdefault(start, Depth()))

    def fresh(self) -> int:
        """A number for a pointer that may be null, a reference, or the copies of a number."""
        self._ids += 1
        return self._ids

    def refuse(self, pc: int, why: str, state: State) -> VerifierError:
        """The error for an instruction."""
        return VerifierError(pc, why, line(self.insns, pc), str(state))

    # --- one function ---

    def _function(self, start: int, state: State) -> State:
        """Follows a function from its entry; what holds at its exits, joined."""
        rounds = _Rounds(self.graph)
        rounds.add(start, 0, state)
        exits: State | None = None
        invariants: dict[int, State] = {}
        has_may_goto = any(insn.opcode == i.MAY_GOTO for insn in self.insns)
        while rounds:
            number, pc, state = rounds.take()
            self._note(pc, state)
            insn = self.insns[pc]
            if insn.opcode == i.EXIT_INSN:
                self._check_exit(pc, state)
                exits = self._merged(pc, exits, state)
                continue
            if insn.opcode == i.MAY_GOTO and not state.spent:
                state.frames[-1].depth.reach(-8)
                known = invariants.get(pc)
                if known is not None:
                    if state.within(known):
                        continue
                    if known.references != state.references:
                        raise self.refuse(pc, HELD, state)
                    state = known.merge(state, widening=True)
                invariants[pc] = state.copy()
            for target, following in self._step(start, pc, insn, state):
                back = rounds.back(pc, target)
                if back and (state.spent or not has_may_goto) and rounds.repeats(target, following):
                    once = ", once may_goto goes on no more," if state.spent else ""
                    raise self.refuse(
                        pc, f"a loop to {target} that{once} changes nothing, and so never ends", following
                    )
                rounds.add(target, number + back, following)
        if exits is None:
            raise VerifierError(start, "the function never comes to an exit", line(self.insns, start))
        return exits

    def _note(self, pc: int, state: State) -> None:
        proof = self.proof
        proof.looked_at += 1
        if proof.looked_at > self.spec.insns_max:
            why = f"too long to verify: {self.spec.insns_max} instructions followed, and each turn of a loop counts"
            raise self.refuse(pc, why, state)
        known = proof.before.get(pc)
        if known is None:
            proof.before[pc] = state.regs.copy()
        else:
            proof.before[pc] = [a if a is b else join(a, b) or MIXED for a, b in zip(known, state.regs, strict=True)]

    def _merged(self, pc: int, a: State | None, b: State) -> State:
        if a is None:
            return b
        if a.references != b.references:
            raise self.refuse(pc, HELD, b)
        return a.merge(b)

    def _check_exit(self, pc: int, state: State) -> None:
        r0 = state.regs[0]
        if len(state.frames) > 1:
            if isinstance(r0, Pointer) and r0.space.kind == "stack":
                raise self.refuse(pc, f"returns {r0}, an address on the stack", state)
            return
        if not isinstance(r0, Scalar):
            what = "nothing was written to r0, or not on every path" if r0 is None else f"r0 is {r0}"
            raise self.refuse(pc, f"{what}; expected a number to return", state)
        if state.references:
            raise self.refuse(pc, f"{len(state.references)} object(s) looked up and not released", state)
        low, high = self.spec.verdict or (r0.smin, r0.smax)
        if r0.smin < low or r0.smax > high:
            raise self.refuse(pc, f"the verdict is {r0}; expected {low} to {high}", state)

    # --- one instruction ---

    def _step(self, start: int, pc: int, insn: Insn, state: State) -> list[tuple[int, State]]:
        """The states after an instruction, by where they are."""
        cls = insn.cls
        if cls in (i.ALU, i.ALU64):
            if why := arithmetic(insn, state, self.fresh, arena=self.spec.arena):
                raise self.refuse(pc, why, state)
        elif cls == i.LD:
            if why := immediate(insn, imm64(self.insns, pc), state, self.spec):
                raise self.refuse(pc, why, state)
            return [(pc + 2, state)]
        elif cls in (i.LDX, i.ST, i.STX):
            self._check_arena(pc, insn, state)
            if why := access(insn, state, self.spec, self.fresh):
                raise self.refuse(pc, why, state)
        elif insn.op == i.CALL:
            return [(pc + 1, self._call(start, pc, insn, state))]
        else:
            return self._jump(pc, insn, state)
        return [(pc + 1, state)]

    def _check_arena(self, pc: int, insn: Insn, state: State) -> None:
        """Refuses an instruction that is for the arena on one path only, as Linux does (save_aux_ptr_type)."""
        base = state.regs[_base_register(insn)]
        if isinstance(base, Pointer):
            arena = base.space.kind == "arena"
            if self._arena.setdefault(pc, arena) != arena:
                raise self.refuse(pc, "reaches the arena on one path and other memory on another", state)

    def _jump(self, pc: int, insn: Insn, state: State) -> list[tuple[int, State]]:
        target = pc + 1 + insn.distance
        if insn.always_jumps:
            return [(target, state)]
        if insn.opcode == i.MAY_GOTO:
            after = state.copy()
            after.spent = True
            return [(target, after)] if state.spent else [(target, after), (pc + 1, state)]
        left = state.regs[insn.dst]
        right = state.regs[insn.src] if insn.by_register else const(insn.imm)
        for register, value in ((insn.dst, left), (insn.src, right)):
            if value is None:
                raise self.refuse(pc, unset(register), state)
        with_null = insn.cls == i.JMP and insn.op in (i.JEQ, i.JNE) and isinstance(right, Scalar) and right.umax == 0
        if isinstance(left, Pointer) and left.null and with_null:
            return self._null_check(pc, insn, target, left.null, state)
        if isinstance(left, Pointer) and left.space.kind in ("memory", "map value") and with_null:
            return [(target if insn.op == i.JNE else pc + 1, state)]
        if not isinstance(left, Scalar) or not isinstance(right, Scalar):
            raise self.refuse(
                pc,
                f"compares a pointer: {left} with {right}; expected numbers, or 0 and a pointer not to the stack",
                state,
            )
        taken, passed = outcomes(insn.op, 64 if insn.cls == i.JMP else 32, left, right)
        ways: list[tuple[int, State]] = []
        for side, place in ((taken, target), (passed, pc + 1)):
            if side is None:
                continue
            way = state.copy() if place == target and passed is not None else state
            way.learn(insn.dst, side[0])
            if insn.by_register:
                way.learn(insn.src, side[1])
            ways.append((place, way))
        return ways

    def _null_check(self, pc: int, insn: Insn, target: int, number: int, state: State) -> list[tuple[int, State]]:
        there = state.copy()
        there.resolve_null(number, null=insn.op == i.JEQ)
        state.resolve_null(number, null=insn.op == i.JNE)
        return [(target, there), (pc + 1, state)]

    # --- calls ---

    def _call(self, start: int, pc: int, insn: Insn, state: State) -> State:
        if insn.src != i.CALL_LOCAL:
            if why := helper_call(insn, state, self.spec, self.fresh):
                raise self.refuse(pc, why, state)
            return state
        callee = pc + 1 + insn.imm
        self._calls.setdefault(start, set()).add(callee)
        if len(state.frames) >= i.FRAMES_MAX:
            raise self.refuse(pc, f"more than {i.FRAMES_MAX} frames deep", state)
        frame = Pointer(Space("stack", i.STACK_BYTES, number=len(state.frames)), 0, 0)
        regs: list[Value] = [None, *state.regs[1:6], None, None, None, None, frame]
        returned = self._function(callee, State(regs, [*state.frames, self._frame(callee)], state.references))
        kept = [returned.regs[0], None, None, None, None, None, *state.regs[6:]]
        return State(kept, returned.frames[:-1], returned.references, spent=state.spent)

    def _chain(self, start: int, above: tuple[int, ...]) -> int:
        if start in above:
            raise VerifierError(start, "a function that calls itself", line(self.insns, start))
        own = max(32, -(-self._depths[start].size_bytes // 32) * 32)
        deepest = own + max((self._chain(callee, (*above, start)) for callee in self._calls.get(start, ())), default=0)
        if deepest > CALL_STACK_BYTES:
            why = f"this function and what it calls use {deepest} bytes of stack; at most {CALL_STACK_BYTES}"
            raise VerifierError(start, why, line(self.insns, start))
        return deepest


class _Rounds:
    """States that wait to be followed, by (round, place, spent): a round is one more turn of a loop."""

    def __init__(self, graph: Graph) -> None:
        self._order: Mapping[int, int] = graph.order
        self._heap: list[tuple[int, int, int, bool]] = []
        self._waiting: dict[tuple[int, int, bool], list[State]] = {}
        self._heads: dict[int, object] = {}

    def __bool__(self) -> bool:
        return bool(self._heap)

    def back(self, pc: int, target: int) -> int:
        """1 if the edge closes a loop, else 0."""
        return int(self._order[target] <= self._order[pc])

    def repeats(self, head: int, state: State) -> bool:
        """Whether a loop begins its next turn with what the one before began with."""
        last, now = self._heads.get(head), state.untied()
        self._heads[head] = now
        return last == now

    def add(self, pc: int, number: int, state: State) -> None:
        """Adds what comes to a place."""
        waiting = self._waiting.setdefault((number, pc, state.spent), [])
        for index, other in enumerate(waiting):
            if other.references != state.references:
                raise VerifierError(pc, HELD, registers=str(state))
            if len(waiting) == APART_MAX or other.agrees(state):
                waiting[index] = other.merge(state)
                return
        waiting.append(state)
        heapq.heappush(self._heap, (number, self._order[pc], pc, state.spent))

    def take(self) -> tuple[int, int, State]:
        """The next state: its round, its place."""
        number, _, pc, spent = heapq.heappop(self._heap)
        waiting = self._waiting[number, pc, spent]
        state = waiting.pop()
        if not waiting:
            del self._waiting[number, pc, spent]
        return number, pc, state
