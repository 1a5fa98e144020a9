"""Translator: a verified program becomes the source of Python functions, one for each function of the program.

Branches become nested ``if``; where paths meet, the code goes on below, or ``while`` and a number say where.  A program
that only reads whole fields of read-only memory, and calls nobody, becomes a function of the tuple of its fields, with
its stack in variables: ``Translation.by_fields``.  Instructions are counted where the proof does not bound them: a run
that uses its budget up ends at the same instruction as in the interpreter, with the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, Final

from uxk.bpf import expressions as x
from uxk.bpf import insn as i
from uxk.bpf.accesses import Access, Bytes, Fields, suits_fields
from uxk.bpf.blocks import Block, blocks_of, heads
from uxk.bpf.counting import Count, finish
from uxk.bpf.disasm import ADDR_SPACE_CAST
from uxk.bpf.errors import Fault
from uxk.bpf.insn import FRAME, M32, M64, Insn, imm64
from uxk.bpf.interp import BUDGET_DEFAULT, MAY_GOTO_MAX, callee
from uxk.bpf.memory import Absent
from uxk.bpf.values import Pointer, Value, const
from uxk.bpf.verifier import Proof

Lines = list[str]
_INDENT: Final = "  "


class Translation:
    """``source`` and the function made of it.

    ``by_fields``: it takes a tuple of signed numbers; else (machine, memory, stack, r1, r2).  It returns r0, signed.
    """

    def __init__(
        self, proof: Proof, immediates: Mapping[int, int] | None = None, *, plain: bool = False,
        budget: int = BUDGET_DEFAULT,
    ) -> None:  # fmt: skip
        self.by_fields = suits_fields(proof) and not plain
        access: Access = Fields(proof) if self.by_fields else Bytes(proof)
        count = Count(proof, budget, by_fields=self.by_fields)
        functions = [_Function(proof, access, start, immediates or {}, count) for start in _starts(proof)]
        self.source = "\n".join(function.text() for function in functions)
        names: dict[str, Any] = dict(_NAMES)
        exec(compile(self.source, "<bpf>", "exec"), names)
        self.function: Callable[..., int] = names["f0"]


def _absent(pc: int, what: str, exc: Absent) -> None:
    raise Fault(pc, f"{what}: {exc}") from None


_NAMES: Final[dict[str, Any]] = {
    "sdiv": x.sdiv, "smod": x.smod, "from_bytes": int.from_bytes, "finish": finish, "Absent": Absent, "absent": _absent,
    **{f"{name}{bits}": method for bits, code in ((8, "b"), (16, "h"), (32, "i"), (64, "q"))
       for name, method in (("ld_s", Struct(f"<{code}").unpack_from), ("ld_u", Struct(f"<{code.upper()}").unpack_from),
                            ("st_", Struct(f"<{code.upper()}").pack_into))},
}  # fmt: skip


def _starts(proof: Proof) -> list[int]:
    called = {pc + 1 + proof.insns[pc].imm for pc in proof.before if proof.insns[pc].is_local_call}
    return sorted({0} | called)


class _Function:
    """The source of one function."""

    def __init__(self, proof: Proof, access: Access, start: int, immediates: Mapping[int, int], count: Count) -> None:
        self._proof, self._access, self._start, self._immediates = proof, access, start, immediates
        self._count = count
        self._blocks = blocks_of(proof, start)
        self._heads = heads(proof, self._blocks, start)
        self._rank = {leader: number for number, leader in enumerate(self._heads)}
        self._loops = False
        self._guards: set[int] = set()
        self._may_goto = any(proof.insns[pc].opcode == i.MAY_GOTO for b in self._blocks.values() for pc in b.pcs)

    def text(self) -> str:
        """The whole function."""
        # Which heads need a guard is known once all that leads to them is written: the first pass finds out.
        self._sections()
        sections = self._sections()
        name, parameters = f"f{self._start}", self._access.parameters(main=self._start == 0)
        lines = [f"def {name}({parameters}):", *_in(self._access.prologue(main=self._start == 0))]
        lines += _in(self._count.prologue(main=self._start == 0))
        if self._may_goto:
            lines += _in(["turns = 0"])
        body: Lines = []
        for head, section in zip(self._heads, sections, strict=True):
            body += [f"if at == {self._rank[head]}:", *_in(section)] if head in self._guards else section
        if self._guards:
            lines += _in(["at = 0"])
        if self._loops:
            lines += _in(["while True:", *_in(body)])
        else:
            lines += _in(body)
        return "\n".join(lines) + "\n"

    def _sections(self) -> list[Lines]:
        return [self._tree(head, self._rank[head]) for head in self._heads]

    # --- control ---

    def _tree(self, leader: int, section: int) -> Lines:
        block = self._blocks[leader]
        last = block.pcs[-1]
        insn = self._proof.insns[last]
        ends = insn.opcode == i.EXIT_INSN or (insn.jumps and len(block.targets) > 1)
        lines: Lines = []
        for segment in self._count.segments(block.pcs):
            lines += self._count.before(segment)
            for pc in segment:
                if pc != last or not ends:
                    lines += self._statements(pc)
        if insn.opcode == i.EXIT_INSN:
            result = self._operand(0, self._proof.before[last][0])
            while result != "r0" and lines and lines[-1].startswith("r0 = ") and "(" not in lines[-1]:
                lines.pop()
            return [*lines, *self._count.leave(main=self._start == 0), f"return {result}"]
        if ends:
            return lines + self._branch(block, last, insn, section)
        return lines + self._go(block.targets[0], section)

    def _branch(self, block: Block, pc: int, insn: Insn, section: int) -> Lines:
        target = pc + 1 + insn.distance
        following = next(way for way in block.targets if way != target)
        taken, passed = self._go(target, section), self._go(following, section)
        if insn.opcode == i.MAY_GOTO:
            test = f"turns > {MAY_GOTO_MAX}"
            return ["turns += 1", f"if {test}:", *_in(taken or ["pass"]), *_else(taken, passed)]
        before = self._proof.before[pc]
        a = before[insn.dst]
        b: Value = before[insn.src] if insn.by_register else const(insn.imm)
        right = f"r{insn.src}" if insn.by_register else str(insn.imm)
        if isinstance(a, Pointer):
            sign = "==" if insn.op == i.JEQ else "!="
            test = f"r{insn.dst} {sign} 0"
        else:
            test = x.condition(insn, f"r{insn.dst}", right, a, b)
        return [f"if {test}:", *_in(taken or ["pass"]), *_else(taken, passed)]

    def _go(self, target: int, section: int) -> Lines:
        """What leads to a block: itself, if it is nested here; nothing, if it comes next anyway."""
        rank = self._rank.get(target)
        if rank is None:
            return self._tree(target, section)
        if rank == section + 1 and target not in self._guards:
            return []
        if rank <= section:
            self._loops = True
            self._guards.update(self._heads[: section + 1])
        if rank > section + 1:
            self._guards.update(self._heads[section + 1 : rank + 1])
        self._guards.add(target)
        self._guard_all_if_loops()
        return [f"at = {rank}", *(["continue"] if rank <= section else [])]

    def _guard_all_if_loops(self) -> None:
        if self._loops:
            self._guards.update(self._heads)

    # --- statements ---

    def _operand(self, register: int, value: Value) -> str:
        known = x.number(value)
        return f"r{register}" if known is None else str(known)

    def _statements(self, pc: int) -> Lines:
        insn, before = self._proof.insns[pc], self._proof.before[pc]
        cls = insn.cls
        if cls in (i.ALU, i.ALU64):
            return self._alu(insn, before)
        if cls == i.LD:
            value = self._immediates[pc] if insn.src else imm64(self._proof.insns, pc)
            return [f"r{insn.dst} = {i.s64(value)}"]
        if cls in (i.LDX, i.ST, i.STX):
            return self._access.statements(pc, insn, before)
        if insn.op == i.CALL:
            return self._call(pc, insn)
        return ["turns += 1"] if insn.opcode == i.MAY_GOTO else []

    def _alu(self, insn: Insn, before: list[Value]) -> Lines:
        dst, src = f"r{insn.dst}", f"r{insn.src}" if insn.by_register else str(insn.imm)
        a = before[insn.dst]
        b: Value = before[insn.src] if insn.by_register else const(insn.imm)
        if insn.op == i.MOV and insn.by_register and insn.cls == i.ALU64 and insn.off == ADDR_SPACE_CAST:
            return [f"{dst} = {src} & {M32}"]
        lines = x.arithmetic(insn, dst, src, a, b)
        if insn.op != i.MOV and any(isinstance(v, Pointer) and v.space.kind == "arena" for v in (a, b)):
            lines.append(f"{dst} &= {M32}")
        return lines

    def _call(self, pc: int, insn: Insn) -> Lines:
        if insn.is_local_call:
            arguments = ", ".join(f"r{n}" if self._proof.before[pc][n] is not None else "0" for n in range(1, 6))
            text = f"r0 = f{pc + 1 + insn.imm}(machine, memory, stack, {arguments}, r{FRAME} - {i.STACK_BYTES})"
            return self._count.call(text)
        table = "kfuncs" if insn.src == i.CALL_KFUNC else "helpers"
        arguments = ", ".join(f"r{n} & {M64}" if self._proof.before[pc][n] is not None else "0" for n in range(1, 6))
        text = x.WRAP.format(f"machine.{table}[{insn.imm}](machine, {arguments})")
        return ["try:", *_in([f"r0 = {text}"]), f"except Absent as exc: absent({pc}, {callee(insn)!r}, exc)"]


def _else(taken: Lines, passed: Lines) -> Lines:
    if not passed:
        return []
    leaves = bool(taken) and taken[-1].startswith(("return", "continue"))
    return passed if leaves else ["else:", *_in(passed)]


def _in(lines: Lines) -> Lines:
    return [_INDENT + line for line in lines]
