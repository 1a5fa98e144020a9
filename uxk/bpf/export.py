"""A verified program as an object that a stock Linux loads: ``bpftool prog load``, libbpf, or uxk's own reader.

The body (r1 = address of some bytes, r2 = how many, r0 = the verdict) goes to ``.text`` unchanged; before it comes what
fetches those bytes (``hooks``).  The verdict is cut to the 32 bits that a hook returns.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from uxk.bpf import hooks, objects
from uxk.bpf import insn as i
from uxk.bpf.elf import R_64_32, R_64_64
from uxk.bpf.errors import BpfError, VerifierError
from uxk.bpf.graph import Graph
from uxk.bpf.helpers import protos, with_kernel
from uxk.bpf.hooks import CLAIM_BYTES, COPIES, HOOKS
from uxk.bpf.insn import INSN_BYTES, Insn, encode, imm64, lddw, s32
from uxk.bpf.maps import ArenaMap, ArrayMap, HashMap, Map
from uxk.bpf.objects import Section, Symbol
from uxk.bpf.program import Program
from uxk.bpf.values import UNKNOWN, Pointer, Scalar, Value
from uxk.bpf.verifier import verify
from uxk.core.suggest import did_you_mean

KINDS: Final = {"hash": 1, "array": 2, "instance array": 6, "ringbuf": 27, "arena": 33}
"""enum bpf_map_type."""
FETCHED: Final = "uxk_memory"
"""The map with copies of the bytes, for bodies that cannot have them in place."""
ARENA_ADDRESS: Final = 1 << 44
"""Where processes map an exported arena: the lower 32 bits are 0, so that offsets are addresses for the program."""
LICENSE: Final = "GPL"
FUNCTIONS_MAX, MAPS_MAX = 256, 64
"""Linux's bounds (BPF_MAX_SUBPROGS, MAX_USED_MAPS)."""
_HELPERS: Final = {number: proto.name for number, proto in protos(with_kernel(lambda: 0, lambda: 0)).items()}
_ARENA_FLAGS: Final = 1 << 10
"""BPF_F_MMAPABLE, without which there is no arena."""
_DEFINITION_BYTES: Final = 64
_KEYS: Final = ".rodata.uxk_keys"
_DATA: Final = (".rodata", ".data", ".bss")
_PREFIXES: Final = (".rodata.", ".data.", ".bss.")
_ARGUMENTS: Final = range(1, 6)


def export(program: Program, hook: str = "xdp", *, name: str = "decide", license: str = LICENSE) -> bytes:
    """The object.  Raises ``BpfError`` for what Linux has not: helpers and kfuncs of uxk, or a map used in two ways.

    A memory that is only read at fixed places is read where it is (``xdp``, ``syscall``); else it is copied first.
    Numbers at its end whose bounds are 0 and 0 are not fetched: they are 0.
    """
    if hook not in HOOKS:
        raise BpfError(f"hook {hook!r}{did_you_mean(hook, HOOKS)}; expected one of: {', '.join(HOOKS)}")
    if not re.fullmatch(r"[A-Za-z_]\w{0,14}", name, re.ASCII):
        raise BpfError(f"program name {name!r}; expected at most 15 letters, digits and _")
    return _Export(program, hook, name, license).write()


class _Export:
    """One object in the making."""

    def __init__(self, program: Program, hook: str, name: str, license: str) -> None:
        self._program, self._hook, self._name, self._license = program, hook, name, license
        self._insns = list(program.proof.insns)
        self._starts = Graph(self._insns, program.proof.second).starts
        self._names = self._map_names(program.maps)
        memory = program.spec.memory
        self._size_bytes = memory.size_bytes if memory else 0
        self._zeros_bytes = _zeros_bytes(program.spec.fields, self._size_bytes)
        self._copied = bool(self._size_bytes) and not self._in_place()
        self._check()

    def _map_names(self, maps: Mapping[int, Map]) -> dict[int, str]:
        """Identifiers of C, all different, and none of a function's."""
        taken = {FETCHED, self._name, "license", *(f"body_{index}" for index in range(len(self._starts)))}
        found: dict[int, str] = {}
        for number, each in maps.items():
            plain = re.sub(r"\W", "_", each.name, flags=re.ASCII)[:15].lstrip("0123456789")
            found[number] = plain if plain and plain not in taken else f"map_{number}"
            taken.add(found[number])
        return found

    # --- what Linux would refuse ---

    def _check(self) -> None:
        program, spec = self._program, self._program.spec
        most = hooks.COPY_MAX_BYTES if self._copied else hooks.PLACE_MAX_BYTES
        if self._size_bytes > most:
            raise BpfError(f"{self._size_bytes} bytes of memory; for {self._hook}, this program may have {most}")
        if len(self._starts) >= FUNCTIONS_MAX:
            raise BpfError(f"{len(self._starts)} functions; at most {FUNCTIONS_MAX - 1}")
        if (depth := self._depth(0, {})) >= i.FRAMES_MAX:
            raise BpfError(f"calls {depth} deep; at most {i.FRAMES_MAX - 1} below what fetches the memory")
        if len(program.maps) + 2 * self._copied > MAPS_MAX:
            raise BpfError(f"{len(program.maps)} maps; at most {MAPS_MAX - 2 * self._copied}")
        if self._knows_more():
            try:
                verify(program.code, spec._replace(fields={}, verdict=None))
            except VerifierError as exc:
                raise BpfError(f"safe only with the bounds of its fields, which Linux does not know: {exc}") from None
        for pc, insn in self._each():
            if insn.opcode == i.CALL_INSN and insn.src == i.CALL_KFUNC:
                raise BpfError(f"insn {pc}: calls kfunc {insn.imm}, which Linux does not have")
            if insn.opcode == i.CALL_INSN and insn.src == i.CALL_HELPER:
                called = spec.helpers[insn.imm].name
                if _HELPERS.get(insn.imm) != called:
                    raise BpfError(f"insn {pc}: calls helper {insn.imm}, {called}, which Linux does not have")

    def _knows_more(self) -> bool:
        """Whether a number is loaded of which uxk knows bounds; Linux knows none of any."""
        narrow = {at for at, field in self._program.spec.fields.items() if field != UNKNOWN}
        for pc, regs in self._program.proof.before.items():
            insn, base = self._insns[pc], regs[self._insns[pc].src]
            if insn.cls == i.LDX and isinstance(base, Pointer) and base.space.kind == "memory":
                first, last = base.low + insn.off, base.high + insn.off
                if any(first <= at <= last for at in narrow):
                    return True
        return False

    def _each(self) -> Iterator[tuple[int, Insn]]:
        """Instructions with their slots."""
        second = self._program.proof.second
        return ((pc, insn) for pc, insn in enumerate(self._insns) if pc not in second)

    def _depth(self, start: int, known: dict[int, int]) -> int:
        """Frames of the deepest chain of calls."""
        if start not in known:
            end = next((each for each in self._starts if each > start), len(self._insns))
            insns = self._insns[start:end]
            callees = {start + pc + 1 + insn.imm for pc, insn in enumerate(insns) if insn.is_local_call}
            known[start] = 1 + max((self._depth(callee, known) for callee in callees), default=0)
        return known[start]

    # --- the memory ---

    def _in_place(self) -> bool:
        """Whether the body can have its memory where Linux has it: at fixed places, unchanged, by nobody else."""
        if self._hook not in ("xdp", "syscall"):
            return False  # what a socket buffer has in one piece may be less than all
        for pc, regs in self._program.proof.before.items():
            places = [value for value in regs if _to_memory(value)]
            if any(place.low != place.high for place in places if isinstance(place, Pointer)):
                return False
            insn = self._insns[pc]
            helper = insn.opcode == i.CALL_INSN and insn.src == i.CALL_HELPER
            if helper and any(_to_memory(regs[register]) for register in _ARGUMENTS):
                return False
            if insn.cls in (i.LDX, i.ST, i.STX) and not self._plain(insn, regs):
                return False
        return True

    def _plain(self, insn: Insn, regs: Sequence[Value]) -> bool:
        """Whether an instruction may be what it is on a packet (which stays as it is), or on a context."""
        base = regs[insn.src if insn.cls == i.LDX else insn.dst]
        if insn.cls == i.STX and insn.mode == i.ATOMIC:
            return not _to_memory(regs[insn.dst]) and not _to_memory(regs[insn.src])
        if not _to_memory(base):
            return True
        assert isinstance(base, Pointer)
        if base.low + insn.off + insn.width_bytes > self._size_bytes - self._zeros_bytes:
            return False
        if self._hook == "xdp":
            return insn.cls == i.LDX
        # a context's address stays, and accesses are aligned (syscall_prog_is_valid_access)
        return insn.cls != i.ST and base.low == 0 and insn.off % insn.width_bytes == 0

    # --- the object ---

    def write(self) -> bytes:
        """The bytes."""
        relocations, data = self._addresses()
        arena = next((number for number, each in self._program.maps.items() if each.kind == "arena"), None)
        unnamed = arena is not None and all(self._names[arena] != symbol for _, symbol, _ in relocations)
        before = hooks.before(
            HOOKS[self._hook], self._size_bytes, self._zeros_bytes, copied=self._copied, arena=unnamed
        )  # fmt: skip
        calls = [(before.call * INSN_BYTES, "body_0", R_64_32)]
        if before.copies is not None:
            calls.append((before.copies * INSN_BYTES, FETCHED, R_64_64))
        keys = [Section(_KEYS, hooks.KEYS, objects.ALLOC)] if before.keys is not None else []
        if before.keys is not None:
            calls.append((before.keys * INSN_BYTES, _KEYS, R_64_64))
        if before.arena is not None and arena is not None:  # Linux knows a program's arena by its handle
            calls.append((before.arena * INSN_BYTES, self._names[arena], R_64_64))
        run = objects.ALLOC | objects.EXECINSTR
        text, head = encode(self._insns), encode(before.insns)
        sections = [
            Section(".text", text, run, relocations=tuple(relocations)),
            Section(self._hook, head, run, relocations=tuple(calls)),
            Section("license", self._license.encode() + b"\0", objects.WRITE | objects.ALLOC),
            *data.values(),
            *keys,
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
        ends = [*self._starts[1:], len(self._insns)]
        return [
            Symbol(f"body_{index}", ".text", objects.FUNC, start * INSN_BYTES, (end - start) * INSN_BYTES)
            for index, (start, end) in enumerate(zip(self._starts, ends, strict=True))
        ]

    def _addresses(self) -> tuple[list[tuple[int, str, int]], dict[int, Section]]:
        """Relocations in place of the numbers of maps; and sections for maps whose value the body addresses."""
        found: list[tuple[int, str, int]] = []
        data: dict[int, Section] = {}
        by_handle: set[int] = set()
        for pc, insn in self._each():
            if insn.opcode != i.LDDW or insn.src == i.IMM64_VALUE:
                continue
            number, offset = insn.imm, imm64(self._insns, pc) >> 32
            self._insns[pc], self._insns[pc + 1] = lddw(insn.dst, 0)
            if insn.src == i.IMM64_MAP_FD or self._program.maps[number].kind == "arena":
                by_handle.add(number)
                found.append((pc * INSN_BYTES, self._names[number], R_64_64))
                continue
            data[number] = data.get(number) or self._data(number, {each.name for each in data.values()})
            self._insns[pc] = self._insns[pc]._replace(imm=s32(offset))
            found.append((pc * INSN_BYTES, data[number].name, R_64_64))
        if both := by_handle & data.keys():
            names = ", ".join(self._names[number] for number in sorted(both))
            raise BpfError(f"maps used both by helpers and by address: {names}; an object can have only one of them")
        return found, data

    def _check_empty(self, number: int) -> None:
        """Raises ``BpfError`` for content that an object cannot hold: only global variables have any."""
        each = self._program.maps[number]
        if isinstance(each, ArrayMap):
            filled = any(each.data)
        elif isinstance(each, ArenaMap):
            filled = each.holds_any()
        else:
            filled = isinstance(each, HashMap) and bool(len(each))
        if filled:
            raise BpfError(f"map {self._names[number]}: has content, which does not go along; fill it in Linux")

    def _data(self, number: int, taken: Collection[str]) -> Section:
        """A map whose value is addressed is a section of global variables."""
        each = self._program.maps[number]
        if not isinstance(each, ArrayMap) or each.max_entries != 1:
            raise BpfError(
                f"map {self._names[number]}: its value is addressed, and it has {each.max_entries}; expected 1"
            )
        kind = ".rodata" if each.read_only else ".data"
        name = each.name if each.name.startswith(_PREFIXES) or each.name in _DATA else ""
        if not name or name in (*taken, _KEYS):
            name = f"{kind}.{self._names[number]}"
        flags = objects.ALLOC if name.startswith(".rodata") else objects.ALLOC | objects.WRITE
        content = bytes(each.data[: each.value_bytes])
        if name == ".bss" and not any(content):
            return Section(name, b"", flags, objects.NOBITS, len(content))
        return Section(f".data{name}" if name.startswith(".bss") else name, content, flags)

    def _declared(self, data: Mapping[int, Section]) -> list[tuple[str, dict[str, int]]]:
        """Names and attributes of the maps in ``.maps``."""
        found: list[tuple[str, dict[str, int]]] = []
        for number, each in self._program.maps.items():
            if number in data:
                continue
            self._check_empty(number)
            sizes = {"type": KINDS[each.kind], "max_entries": each.max_entries}
            if each.kind == "arena":
                sizes |= {"map_flags": _ARENA_FLAGS, "map_extra": ARENA_ADDRESS}
            elif each.kind != "ringbuf":
                sizes |= {"key_size": each.key_bytes, "value_size": each.value_bytes}
            found.append((self._names[number], sizes))
        if self._copied:
            each_bytes = CLAIM_BYTES + -(-self._size_bytes // 8) * 8
            found.append((FETCHED, {"type": 6, "max_entries": COPIES, "key_size": 4, "value_size": each_bytes}))
        return found


def _to_memory(value: Value) -> bool:
    return isinstance(value, Pointer) and value.space.kind == "memory"


def _zeros_bytes(fields: Mapping[int, Scalar], size_bytes: int) -> int:
    """How many bytes at the end are numbers that are always 0."""
    at = size_bytes
    while (field := fields.get(at - 8)) is not None and field.known and not field.umin:
        at -= 8
    return size_bytes - at
