"""A verified program as an object that a stock Linux loads: ``bpftool prog load``, libbpf, or uxk's own reader.

The body (r1 = address of some bytes, r2 = how many, r0 = the verdict) goes to ``.text`` unchanged; before it comes a
few instructions that fetch those bytes from a packet.  The verdict is cut to the 32 bits that a hook returns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf import objects
from uxk.bpf.elf import R_64_32, R_64_64
from uxk.bpf.errors import BpfError
from uxk.bpf.graph import Graph
from uxk.bpf.insn import FRAME, INSN_BYTES, Insn, encode, imm64, lddw, s32
from uxk.bpf.maps import ArrayMap, Map
from uxk.bpf.objects import Section, Symbol
from uxk.bpf.program import Program
from uxk.bpf.proto import Spec
from uxk.bpf.values import Pointer
from uxk.core.suggest import did_you_mean

HOOKS: Final = ("xdp", "socket")
"""Sections whose names tell libbpf what a program is: a decision for each packet of a device, or of a socket."""
OTHERWISE: Final = {"xdp": 2, "socket": 0}
"""What is returned for a packet that is too short: XDP_PASS; drop."""
KINDS: Final = {"hash": 1, "array": 2, "instance array": 6, "ringbuf": 27, "arena": 33}
"""enum bpf_map_type."""
FETCHED: Final = "uxk_memory"
"""The map that holds the bytes of a packet for bodies that need them at an address of their own."""
LICENSE: Final = "GPL"
_LOOKUP, _SKB_LOAD, _XDP_LOAD = 1, 26, 189
_ARENA_FLAGS: Final = 1 << 10
"""BPF_F_MMAPABLE, without which there is no arena."""
_DEFINITION_BYTES: Final = 64
_DATA: Final = (".rodata", ".data", ".bss")


def export(program: Program, hook: str = "xdp", *, name: str = "decide", license: str = LICENSE) -> bytes:
    """The object.  Raises ``BpfError`` for what Linux has not: kfuncs of uxk, or a map's value used in two ways.

    A short memory that is only read at fixed places is read in the packet itself (``xdp``); else it is copied first.
    """
    if hook not in HOOKS:
        raise BpfError(f"hook {hook!r}{did_you_mean(hook, HOOKS)}; expected one of: {', '.join(HOOKS)}")
    if not re.fullmatch(r"[A-Za-z_]\w{0,14}", name, re.ASCII):
        raise BpfError(f"program name {name!r}; expected at most 15 letters, digits and _")
    return _Export(program, hook, name, license).write()


def wrapper(spec: Spec, hook: str, *, direct: bool) -> tuple[list[Insn], int | None, int]:
    """What comes before a body: instructions, the slot that loads the map with the fetched bytes, that of the call."""
    size_bytes = spec.memory.size_bytes if spec.memory else 0
    move, call = i.ALU64 | i.MOV, Insn(i.CALL_INSN, src=i.CALL_LOCAL, imm=-1)
    end = [Insn(i.EXIT_INSN), Insn(move, 0, imm=OTHERWISE[hook]), Insn(i.EXIT_INSN)]
    length = Insn(move, 2, imm=size_bytes)
    if not size_bytes:
        return [Insn(move, 1), length, call, Insn(i.EXIT_INSN)], None, 2
    if direct:
        before = [
            Insn(i.LDX | i.W | i.MEM, 2, 1, 4), Insn(i.LDX | i.W | i.MEM, 1, 1, 0),  # data_end, data of xdp_md
            Insn(move | i.X, 3, 1), Insn(i.ALU64 | i.ADD, 3, imm=size_bytes),
            Insn(i.JMP | i.JGT | i.X, 3, 2, 3), length,
        ]  # fmt: skip
        return [*before, call, *end], None, len(before)
    fetch = _XDP_LOAD if hook == "xdp" else _SKB_LOAD
    before = [
        Insn(move | i.X, 6, 1), Insn(i.ST | i.W | i.MEM, FRAME, 0, -4), *lddw(1, 0), Insn(move | i.X, 2, FRAME),
        Insn(i.ALU64 | i.ADD, 2, imm=-4), Insn(i.CALL_INSN, imm=_LOOKUP), Insn(i.JMP | i.JEQ, 0, 0, 11),
        Insn(move | i.X, 7, 0), Insn(move | i.X, 1, 6), Insn(move, 2), Insn(move | i.X, 3, 7),
        Insn(move, 4, imm=size_bytes), Insn(i.CALL_INSN, imm=fetch), Insn(i.JMP | i.JNE, 0, 0, 4),
        Insn(move | i.X, 1, 7), length,
    ]  # fmt: skip
    return [*before, call, *end], 2, len(before)


class _Export:
    """One object in the making."""

    def __init__(self, program: Program, hook: str, name: str, license: str) -> None:
        self._program, self._hook, self._name, self._license = program, hook, name, license
        self._insns = list(program.proof.insns)
        self._names = self._map_names(program.maps)
        self._direct = hook == "xdp" and self._at_fixed_places()

    @staticmethod
    def _map_names(maps: Mapping[int, Map]) -> dict[int, str]:
        """Identifiers of C, all different."""
        found: dict[int, str] = {}
        for number, each in maps.items():
            plain = re.sub(r"\W", "_", each.name, flags=re.ASCII)[:15].lstrip("0123456789")
            found[number] = plain if plain and plain not in (*found.values(), FETCHED) else f"map_{number}"
        return found

    def _at_fixed_places(self) -> bool:
        """Whether the body never moves a pointer to its memory by a number that varies, which packets do not allow."""
        for pc, regs in self._program.proof.before.items():
            for value in regs:
                if isinstance(value, Pointer) and value.space.kind == "memory" and value.low != value.high:
                    return False
            if self._insns[pc].mode == i.ATOMIC and self._insns[pc].cls == i.STX:
                return False  # not on packets either
        return True

    def write(self) -> bytes:
        """The bytes."""
        relocations, data = self._addresses()
        before, map_slot, call_slot = wrapper(self._program.spec, self._hook, direct=self._direct)
        calls = [(call_slot * INSN_BYTES, "body_0", R_64_32)]
        if map_slot is not None:
            calls.append((map_slot * INSN_BYTES, FETCHED, R_64_64))
        run = objects.ALLOC | objects.EXECINSTR
        text, head = encode(self._insns), encode(before)
        sections = [
            Section(".text", text, run, relocations=tuple(relocations)),
            Section(self._hook, head, run, relocations=tuple(calls)),
            Section("license", self._license.encode() + b"\0", objects.WRITE | objects.ALLOC),
            *data.values(),
        ]
        symbols = [*self._functions(), Symbol(self._name, self._hook, objects.FUNC, 0, len(head), True)]
        if maps := self._declared(data):
            each = _DEFINITION_BYTES
            flags = objects.WRITE | objects.ALLOC
            sections += [
                Section(".maps", bytes(each * len(maps)), flags),
                Section(".BTF", objects.map_types(maps, each)),
            ]
            symbols += [
                Symbol(name, ".maps", objects.OBJECT, each * index, each, True) for index, (name, _) in enumerate(maps)
            ]
        return objects.write(sections, symbols)

    def _functions(self) -> list[Symbol]:
        starts = Graph(self._insns, self._program.proof.second).starts
        ends = [*starts[1:], len(self._insns)]
        return [
            Symbol(f"body_{index}", ".text", objects.FUNC, start * INSN_BYTES, (end - start) * INSN_BYTES)
            for index, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    def _addresses(self) -> tuple[list[tuple[int, str, int]], dict[int, Section]]:
        """Relocations in place of the numbers of maps; and sections for maps whose value the body addresses."""
        found: list[tuple[int, str, int]] = []
        data: dict[int, Section] = {}
        by_handle: set[int] = set()
        for pc, insn in enumerate(self._insns):
            if pc in self._program.proof.second:
                continue
            if insn.opcode == i.CALL_INSN and insn.src == i.CALL_KFUNC:
                raise BpfError(f"insn {pc}: calls kfunc {insn.imm}, which Linux does not have")
            if insn.opcode != i.LDDW or insn.src == i.IMM64_VALUE:
                continue
            number, offset = insn.imm, imm64(self._insns, pc) >> 32
            self._insns[pc], self._insns[pc + 1] = lddw(insn.dst, 0)
            if insn.src == i.IMM64_MAP_FD or self._program.maps[number].kind == "arena":
                by_handle.add(number)
                found.append((pc * INSN_BYTES, self._names[number], R_64_64))
                continue
            data[number] = self._data(number)
            self._insns[pc] = self._insns[pc]._replace(imm=s32(offset))
            found.append((pc * INSN_BYTES, data[number].name, R_64_64))
        if both := by_handle & data.keys():
            names = ", ".join(self._names[number] for number in sorted(both))
            raise BpfError(f"maps used both by helpers and by address: {names}; an object can have only one of them")
        return found, data

    def _data(self, number: int) -> Section:
        """A map whose value is addressed is a section of global variables."""
        each = self._program.maps[number]
        if not isinstance(each, ArrayMap) or each.max_entries != 1:
            raise BpfError(
                f"map {self._names[number]}: its value is addressed, and it has {each.max_entries}; expected 1"
            )
        kind = ".rodata" if each.read_only else ".data"
        name = each.name if each.name.startswith(_DATA) else f"{kind}.{self._names[number]}"
        flags = objects.ALLOC if name.startswith(".rodata") else objects.ALLOC | objects.WRITE
        content = bytes(each.data[: each.value_bytes])
        if name.startswith(".bss"):
            if any(content):
                name = f".data{name}"
            else:
                return Section(name, b"", flags, objects.NOBITS, len(content))
        return Section(name, content, flags)

    def _declared(self, data: Mapping[int, Section]) -> list[tuple[str, dict[str, int]]]:
        """Names and attributes of the maps in ``.maps``."""
        found: list[tuple[str, dict[str, int]]] = []
        for number, each in self._program.maps.items():
            if number in data:
                continue
            sizes = {"type": KINDS[each.kind], "max_entries": each.max_entries}
            if each.kind == "arena":
                sizes["map_flags"] = _ARENA_FLAGS
            elif each.kind != "ringbuf":
                sizes |= {"key_size": each.key_bytes, "value_size": each.value_bytes}
            found.append((self._names[number], sizes))
        if not self._direct and self._program.spec.memory is not None:
            size_bytes = self._program.spec.memory.size_bytes
            found.append((FETCHED, {"type": 6, "max_entries": 1, "key_size": 4, "value_size": size_bytes}))
        return found
