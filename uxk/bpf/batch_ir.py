"""LLVM's text for a verified program: one function for each of the program's; those around them are in ``batch_rows``.

Pointers are addresses of the host: the verifier has shown that no program can tell, compare or keep one.  Registers
live in variables between blocks, which LLVM turns into values again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.batch_ops import INTRINSICS, Text, alu, atomic, condition, literal
from uxk.bpf.batch_rows import rows_text
from uxk.bpf.blocks import Block, blocks_of
from uxk.bpf.disasm import ADDR_SPACE_CAST, line
from uxk.bpf.errors import BpfError
from uxk.bpf.helpers import HELPERS, LOOKUP
from uxk.bpf.insn import FRAME, Insn, imm64, s64
from uxk.bpf.interp import MAY_GOTO_MAX, Helper
from uxk.bpf.maps import ArrayMap, InstanceArrayMap, Map
from uxk.bpf.values import Handle, Pointer
from uxk.bpf.verifier import Proof

_HEAD: Final = "ptr noundef %ctx, i64 %a1, i64 %a2, i64 %a3, i64 %a4, i64 %a5"


class Unsupported(BpfError):
    """What the batch backend has not: ``pc`` is the slot.  The translation to Python runs it."""

    def __init__(self, proof: Proof, pc: int, why: str) -> None:
        super().__init__(f"insn {pc}: {line(proof.insns, pc)}: {why}, which the batch backend has not")
        self.pc = pc


class Source:
    """``text`` of the module.

    ``addresses``: of the values of array maps, by the map's number; ``helpers``: what calls run.  ``budget``:
    instructions a run may execute; None if the proof shows that it stays within them.  Raises :class:`Unsupported`.
    """

    def __init__(
        self, proof: Proof, maps: Mapping[int, Map], addresses: Mapping[int, int], helpers: Mapping[int, Helper],
        budget: int | None,
    ) -> None:  # fmt: skip
        self.proof, self.maps, self.addresses, self.helpers, self.budget = proof, maps, addresses, helpers, budget
        pcs = sorted(proof.before)
        self.stops: list[int] = []
        """Slots that a run may be stopped at, by the number that the machine code gives for it, less 1."""
        starts = {0} | {pc + 1 + proof.insns[pc].imm for pc in pcs if proof.insns[pc].is_local_call}
        functions = [_Function(self, start).text() for start in sorted(starts)]
        self.text = "\n".join([INTRINSICS, *functions, rows_text(proof.spec)])


class _Function:
    """The text of one function of the program."""

    def __init__(self, source: Source, start: int) -> None:
        self._source, self._proof, self._start = source, source.proof, start
        self._text = Text()
        self._known: dict[int, str] = {}
        self._changed: set[int] = set()
        frame = self._proof.before[start][FRAME]
        self._frame = frame.space if isinstance(frame, Pointer) else None

    def text(self) -> str:
        """The whole function."""
        blocks = blocks_of(self._proof, self._start)
        for leader in sorted(blocks, key=lambda pc: (pc != self._start, pc)):
            self._block(blocks[leader])
        head = [f"define internal i64 @f{self._start}({_HEAD}) {{", "entry:"]
        head += [f"%r{n} = alloca i64, align 8" for n in range(FRAME)]
        head += [f"store i64 {f'%a{n}' if 0 < n < 6 else 0}, ptr %r{n}" for n in range(FRAME)]
        head += [
            f"%stack = alloca [{i.STACK_BYTES} x i8], align 8", "%loops = alloca i64, align 8",
            "store i64 0, ptr %loops", f"%end = getelementptr i8, ptr %stack, i64 {i.STACK_BYTES}",
            "%frame = ptrtoint ptr %end to i64", f"br label %b{self._start}",
        ]  # fmt: skip
        return "\n".join([*head, *self._text.lines, "stop: ret i64 0", "}"])

    # --- registers ---

    def _read(self, register: int) -> str:
        if register == FRAME:
            return "%frame"
        known = self._known.get(register)
        if known is None:
            known = self._known[register] = self._text.value(f"load i64, ptr %r{register}")
        return known

    def _write(self, register: int, operand: str) -> None:
        self._known[register] = operand
        self._changed.add(register)

    def _keep(self) -> None:
        """Puts what the block changed where the next one finds it."""
        for register in sorted(self._changed):
            self._text.line(f"store i64 {self._known[register]}, ptr %r{register}")

    # --- control ---

    def _block(self, block: Block) -> None:
        text, insns = self._text, self._proof.insns
        text.line(f"b{block.start}:")
        self._known, self._changed = {}, set()
        for chunk in self._chunks(block):
            if self._source.budget is not None:
                self._count(chunk, self._source.budget)
            for pc in chunk:
                self._step(pc, insns[pc])
        if not block.targets:
            text.line(f"ret i64 {self._read(0)}")
            return
        test = self._test(block.pcs[-1]) if len(block.targets) > 1 else ""
        self._keep()
        if not test:
            text.line(f"br label %b{block.targets[0]}")
            return
        target = block.pcs[-1] + 1 + insns[block.pcs[-1]].distance
        following = next(way for way in block.targets if way != target)
        text.line(f"br i1 {test}, label %b{target}, label %b{following}")

    def _chunks(self, block: Block) -> Iterator[list[int]]:
        """Instructions that count together: nothing but the last of them changes memory, or calls."""
        chunk: list[int] = []
        for pc in block.pcs:
            chunk.append(pc)
            insn = self._proof.insns[pc]
            if insn.cls in (i.ST, i.STX) or insn.opcode == i.CALL_INSN:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _count(self, chunk: list[int], budget: int) -> None:
        """Stops where the interpreter would: at the instruction that is one too many."""
        text = self._text
        before = text.value("load i64, ptr %ctx")
        after = text.value(f"add i64 {before}, {len(chunk)}")
        over, stop, run = text.value(f"icmp ugt i64 {after}, {budget}"), text.name(), text.name()
        text.line(f"br i1 {over}, label %{stop}, label %{run}")
        text.line(f"{stop}:")
        left = text.value(f"sub i64 {budget}, {before}")
        code = text.value(f"add i64 {left}, {len(self._source.stops) + 1}")
        self._source.stops += chunk
        text.line(f"store i64 {code}, ptr {text.value('getelementptr i64, ptr %ctx, i64 1')}")
        text.line("br label %stop")
        text.line(f"{run}:")
        text.line(f"store i64 {after}, ptr %ctx")

    def _test(self, pc: int) -> str:
        """Whether the jump at the end of a block is taken."""
        text, insn = self._text, self._proof.insns[pc]
        if insn.opcode == i.MAY_GOTO:
            return text.value(f"icmp ugt i64 {text.value('load i64, ptr %loops')}, {MAY_GOTO_MAX}")
        right = self._read(insn.src) if insn.by_register else literal(insn)
        return condition(text, insn, self._read(insn.dst), right)

    # --- instructions ---

    def _step(self, pc: int, insn: Insn) -> None:
        cls = insn.cls
        if cls in (i.ALU, i.ALU64):
            if insn.op == i.MOV and insn.by_register and insn.off == ADDR_SPACE_CAST and cls == i.ALU64:
                raise Unsupported(self._proof, pc, "an address of the arena")
            right = self._read(insn.src) if insn.by_register and insn.op != i.END else literal(insn)
            left = self._read(insn.dst) if insn.op != i.MOV else "0"
            self._write(insn.dst, alu(self._text, insn, left, right))
        elif cls == i.LD:
            self._write(insn.dst, str(self._immediate(pc, insn)))
        elif cls in (i.LDX, i.ST, i.STX):
            self._access(pc, insn)
        elif insn.is_local_call:
            self._local_call(pc + 1 + insn.imm)
        elif insn.op == i.CALL:
            self._helper(pc, insn)
        elif insn.opcode == i.MAY_GOTO:
            turns = self._text.value(f"add i64 {self._text.value('load i64, ptr %loops')}, 1")
            self._text.line(f"store i64 {turns}, ptr %loops")

    def _immediate(self, pc: int, insn: Insn) -> int:
        value = imm64(self._proof.insns, pc)
        if insn.src == i.IMM64_VALUE:
            return s64(value)
        if insn.src == i.IMM64_MAP_FD:
            return insn.imm
        if insn.imm not in self._source.addresses:
            raise Unsupported(self._proof, pc, "the value of a map other than an array")
        return self._source.addresses[insn.imm] + (value >> 32)

    def _place(self, pc: int, register: int, off: int) -> str:
        """The address of a load or a store, as a pointer of LLVM."""
        base = self._proof.before[pc][register]
        if pc in self._proof.arena_pcs or (not isinstance(base, Pointer) and self._proof.spec.arena):
            raise Unsupported(self._proof, pc, "an access to the arena")
        if isinstance(base, Pointer) and base.low == base.high and base.space == self._frame:
            return self._text.value(f"getelementptr i8, ptr %end, i64 {base.low + off}")
        address = self._read(register)
        if off:
            address = self._text.value(f"add i64 {address}, {off}")
        return self._text.value(f"inttoptr i64 {address} to ptr")

    def _access(self, pc: int, insn: Insn) -> None:
        text, bits = self._text, 8 * insn.width_bytes
        load = insn.cls == i.LDX or (insn.mode == i.ATOMIC and insn.imm == i.LOAD_ACQ)
        place = self._place(pc, insn.src if load else insn.dst, insn.off)
        if load:
            found = text.value(f"load i{bits}, ptr {place}, align 1")
            self._write(insn.dst, text.wide(found, bits, signed=insn.mode == i.MEMSX))
        elif insn.mode != i.ATOMIC or insn.imm == i.STORE_REL:
            value = text.narrow(literal(insn) if insn.cls == i.ST else self._read(insn.src), bits)
            text.line(f"store i{bits} {value}, ptr {place}, align 1")
        else:
            expected = self._read(0) if insn.imm == i.CMPXCHG else "0"
            old = atomic(text, insn, place, self._read(insn.src), expected)
            if insn.imm in (i.XCHG, i.CMPXCHG) or insn.imm & i.FETCH:
                self._write(0 if insn.imm == i.CMPXCHG else insn.src, old)

    def _local_call(self, callee: int) -> None:
        text = self._text
        arguments = ", ".join(f"i64 {self._read(n)}" for n in range(1, 6))
        self._write(0, text.value(f"call i64 @f{callee}(ptr %ctx, {arguments})"))
        if self._source.budget is not None:
            place = text.value("getelementptr i64, ptr %ctx, i64 1")
            stopped = text.value(f"icmp ne i64 {text.value(f'load i64, ptr {place}')}, 0")
            run = text.name()
            text.line(f"br i1 {stopped}, label %stop, label %{run}")
            text.line(f"{run}:")

    def _helper(self, pc: int, insn: Insn) -> None:
        """``map_lookup_elem`` of an array; nothing else."""
        if insn.src != i.CALL_HELPER or insn.imm != LOOKUP or self._source.helpers[LOOKUP] is not HELPERS[LOOKUP].run:
            raise Unsupported(self._proof, pc, f"a call of {'kfunc' if insn.src else 'helper'} {insn.imm}")
        handle = self._proof.before[pc][1]
        table = self._source.maps.get(handle.number) if isinstance(handle, Handle) else None
        if not isinstance(handle, Handle) or not isinstance(table, ArrayMap) or isinstance(table, InstanceArrayMap):
            what = "one that is not always the same" if table is None else f"one of kind {table.kind}"
            raise Unsupported(self._proof, pc, f"a lookup in a map other than an array: {what}")
        text = self._text
        key = text.value(f"load i32, ptr {self._place(pc, 2, 0)}, align 1")
        index = text.wide(key, 32)
        inside = text.value(f"icmp ult i64 {index}, {table.max_entries}")
        distance = text.value(f"mul i64 {index}, {table.stride_bytes}")
        address = text.value(f"add i64 {distance}, {self._source.addresses[handle.number]}")
        self._write(0, text.value(f"select i1 {inside}, i64 {address}, i64 0"))
