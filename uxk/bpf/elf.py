"""Objects that ``clang -target bpf`` builds: a program with what it calls, and its maps, out of an ELF file.

A program is a function outside ``.text``, or a global one in it; functions that it calls are put behind it, and its
calls and addresses resolved (R_BPF_64_32, R_BPF_64_64: Documentation/bpf/llvm_reloc.rst).  Global variables are maps
of one value, as libbpf makes them of ``.rodata``, ``.data`` and ``.bss``.  pyelftools reads the file (extra ``bpf``).
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from uxk.bpf import insn as i
from uxk.bpf.btf import Definition, core_relocations, definitions
from uxk.bpf.errors import BpfError
from uxk.bpf.insn import INSN_BYTES, M32, Insn, decode, encode, s32
from uxk.bpf.maps import ArenaMap, ArrayMap, HashMap, InstanceArrayMap, Map, RingBuffer
from uxk.core.suggest import did_you_mean

MAGIC: Final = b"\x7fELF"
OBJECT_MAX_BYTES: Final = 16 << 20
SECTIONS_MAX: Final = 4096
SYMBOLS_MAX: Final = 65536
NAMES_MAX_BYTES: Final = 4 << 20
"""All names of an object together; one has at most ``NAME_MAX_BYTES``."""
NAME_MAX_BYTES: Final = 1024
RELOCATIONS_MAX: Final = 1 << 18
"""All relocations of an object together."""
DATA_MAX_BYTES: Final = 1 << 24
"""Largest section of global variables."""
MAPS_MAX: Final = 64
MAPS_MAX_BYTES: Final = 64 << 20
"""All maps of a program together."""
BPF_MACHINE: Final = "EM_BPF"
R_64_64, R_64_32 = 1, 10
_HASH, _ARRAY, _PERCPU_ARRAY, _RINGBUF, _ARENA = 1, 2, 6, 27, 33
_KINDS: Final = {_HASH: "hash", _ARRAY: "array", _PERCPU_ARRAY: "percpu array", _RINGBUF: "ringbuf", _ARENA: "arena"}
_SYMTAB: Final = 2
_READ: Final = frozenset({1, _SYMTAB, 4, 8, 9})
"""SHT_PROGBITS, SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_REL."""
_HEADER_BYTES: Final = 64
_DATA: Final = (".rodata", ".data", ".bss")
_LEGACY_BYTES: Final = 20
"""struct bpf_map_def: type, key_size, value_size, max_entries, map_flags."""


class Loaded(NamedTuple):
    """A program out of an object.  ``maps`` by the number that ``code`` knows them by."""

    code: bytes
    maps: dict[int, Map]
    section: str
    function: str
    license: str


class _Section(NamedTuple):
    name: str
    data: bytes
    size_bytes: int
    executable: bool
    relocations: dict[int, tuple[int, int]]
    """By offset: the kind of relocation, and the number of the symbol."""


class _Symbol(NamedTuple):
    name: str
    kind: str
    section: int
    value: int
    size_bytes: int
    exported: bool


class _Function(NamedTuple):
    section: int
    start: int
    end: int
    name: str


def is_object(data: bytes) -> bool:
    """Whether some bytes are an ELF file."""
    return data[:4] == MAGIC


def load(data: bytes, section: str = "", *, kfuncs: Mapping[str, int] | None = None, name: str = "object") -> Loaded:
    """The program in a section, or the function, of that name; empty: the only one there is.

    ``kfuncs``: numbers of functions outside of the object.  Raises ``BpfError`` for a file that is no such object, is
    damaged, or asks for what is not supported.
    """
    if len(data) > OBJECT_MAX_BYTES:
        raise BpfError(f"{name}: an object of {len(data)} bytes; at most {OBJECT_MAX_BYTES}")
    try:
        sections, symbols = _read(data)
        return _Linker(sections, symbols, kfuncs or {}).link(section)
    except BpfError as exc:
        raise BpfError(f"{name}: {exc.args[0]}") from None


def _read(data: bytes) -> tuple[dict[int, _Section], list[_Symbol]]:
    try:
        from elftools.elf.elffile import ELFFile
    except ImportError as exc:
        raise BpfError(f"{exc}: to read objects, install uxk[bpf], or pyelftools itself") from None
    try:
        return _parts(ELFFile(io.BytesIO(data + b"\0")), data)  # whatever name is looked for has an end
    except BpfError:
        raise
    except (Exception, RecursionError) as exc:  # what pyelftools raises for damaged files is listed nowhere
        raise BpfError(f"not an ELF file that can be read: {type(exc).__name__}: {exc}") from None


class _Names:
    """Adds the lengths of names up: a string table may be referred to as often as there are symbols."""

    def __init__(self) -> None:
        self._left_bytes = NAMES_MAX_BYTES

    def take(self, name: str) -> str:
        if len(name) > NAME_MAX_BYTES:
            raise BpfError(f"a name of {len(name)} bytes; at most {NAME_MAX_BYTES}")
        self._left_bytes -= len(name)
        if self._left_bytes < 0:
            raise BpfError(f"names of more than {NAMES_MAX_BYTES} bytes")
        return name


def _kinds(elf: Any, data: bytes) -> list[int]:
    """The kinds of all sections, by their number: of others than _READ, pyelftools would read all at once."""
    count, start = elf.num_sections(), elf["e_shoff"]
    if count > SECTIONS_MAX:
        raise BpfError(f"{count} sections; at most {SECTIONS_MAX}")
    end = start + count * _HEADER_BYTES
    if elf["e_shentsize"] != _HEADER_BYTES or end > len(data):
        each = elf["e_shentsize"]
        raise BpfError(f"sections at {start}..{end}, {each} bytes each; expected {_HEADER_BYTES}, within {len(data)}")
    return [int.from_bytes(data[at + 4 : at + 8], "little") for at in range(start, end, _HEADER_BYTES)]


def _parts(elf: Any, data: bytes) -> tuple[dict[int, _Section], list[_Symbol]]:
    if elf["e_machine"] != BPF_MACHINE or not elf.little_endian or elf.elfclass != 64 or elf["e_type"] != "ET_REL":
        order = "little" if elf.little_endian else "big"
        what = f"{elf['e_type']} for {elf['e_machine']}, {elf.elfclass} bits, {order}-endian"
        raise BpfError(f"{what}; expected what `clang -target bpf -c` builds, little-endian")
    kinds = _kinds(elf, data)
    if kinds.count(_SYMTAB) > 1:
        raise BpfError("two symbol tables")
    names, sections, symbols = _Names(), dict[int, _Section](), list[_Symbol]()
    tables: dict[int, list[Any]] = {}
    left_bytes = 2 * OBJECT_MAX_BYTES
    for number in (n for n, kind in enumerate(kinds) if kind in _READ):
        section = elf.get_section(number)
        name, kind = names.take(section.name), section["sh_type"]
        if kind == "SHT_SYMTAB":
            symbols = _symbols(section, names)
        elif kind == "SHT_REL":
            tables.setdefault(section["sh_info"], []).append(section)
        elif kind == "SHT_RELA" and not name.startswith((".rela.debug", ".rela.BTF", ".rela.eh_frame")):
            raise BpfError(f"section {name!r} has relocations with addends; expected SHT_REL")
        elif kind in ("SHT_PROGBITS", "SHT_NOBITS") and not name.startswith(".debug"):
            sections[number] = _section(section, name)
            left_bytes -= len(sections[number].data)
            if left_bytes < 0:  # sections may lie on top of each other
                raise BpfError(f"sections of more than {2 * OBJECT_MAX_BYTES} bytes together")
    left = RELOCATIONS_MAX
    for target, found in tables.items():
        if target in sections and sections[target].name not in (".BTF", ".BTF.ext", ".eh_frame"):
            left -= sum(_entries(table, 16) for table in found)
            if left < 0:
                raise BpfError(f"more than {RELOCATIONS_MAX} relocations")
            sections[target] = sections[target]._replace(relocations=_relocations(found))
    return sections, symbols


def _section(section: Any, name: str) -> _Section:
    if section["sh_flags"] & 0x800:
        raise BpfError(f"section {name!r} is compressed")
    size_bytes = section["sh_size"]
    content = section["sh_type"] == "SHT_PROGBITS"
    if size_bytes > DATA_MAX_BYTES:
        raise BpfError(f"section {name!r} of {size_bytes} bytes; at most {DATA_MAX_BYTES}")
    data = bytes(section.data()) if content else b""
    if content and len(data) != size_bytes:
        raise BpfError(f"section {name!r} has {len(data)} of its {size_bytes} bytes")
    return _Section(name, data, size_bytes, content and bool(section["sh_flags"] & 4), {})


def _entries(section: Any, entry_bytes: int) -> int:
    size_bytes, own_bytes = section["sh_size"], section["sh_entsize"]
    if own_bytes != entry_bytes or size_bytes // entry_bytes > SYMBOLS_MAX:
        raise BpfError(f"{size_bytes} bytes of entries of {own_bytes}; expected at most {SYMBOLS_MAX} of {entry_bytes}")
    return int(size_bytes // entry_bytes)


def _symbols(section: Any, names: _Names) -> list[_Symbol]:
    found: list[_Symbol] = []
    for number in range(_entries(section, 24)):
        symbol = section.get_symbol(number)
        home, info = symbol["st_shndx"], symbol["st_info"]
        found.append(
            _Symbol(
                names.take(symbol.name), str(info["type"]), home if isinstance(home, int) else -1,
                symbol["st_value"], symbol["st_size"], info["bind"] != "STB_LOCAL",
            )
        )  # fmt: skip
    return found


def _relocations(tables: list[Any]) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for table in tables:
        for number in range(_entries(table, 16)):
            entry = table.get_relocation(number)
            if entry["r_offset"] in found:
                raise BpfError(f"two relocations of the bytes at {entry['r_offset']}")
            found[entry["r_offset"]] = entry["r_info_type"], entry["r_info_sym"]
    return found


# --- linking ----------------------------------------------------------------------------------------------


class _Linker:
    """Puts one program together."""

    def __init__(self, sections: dict[int, _Section], symbols: list[_Symbol], kfuncs: Mapping[str, int]) -> None:
        self._sections, self._symbols, self._kfuncs = sections, symbols, kfuncs
        self._functions = self._find_functions()
        self._btf: dict[str, Definition] | None = None
        types, more = self._named(".BTF"), self._named(".BTF.ext")
        self._core = core_relocations(more, types or b"") if more else {}
        self._maps: dict[int, Map] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._placed: dict[tuple[int, int], int] = {}
        self._waiting: list[_Function] = []
        self._out: list[Insn] = []
        self._slots = 0
        self._map_bytes = 0

    def _named(self, name: str) -> bytes | None:
        """The bytes of the first section of a name."""
        return next((each.data for each in self._sections.values() if each.name == name), None)

    def _find_functions(self) -> dict[tuple[int, int], _Function]:
        """By section and offset."""
        found: dict[tuple[int, int], _Function] = {}
        for symbol in self._symbols:
            section = self._sections.get(symbol.section)
            if symbol.kind != "STT_FUNC" or section is None or not section.executable:
                continue
            start, end = symbol.value, symbol.value + symbol.size_bytes
            if start % INSN_BYTES or end % INSN_BYTES or start >= end or end > len(section.data):
                raise BpfError(
                    f"function {symbol.name!r} at {start}..{end} of {section.name!r}, {len(section.data)} bytes"
                )
            found[symbol.section, start] = _Function(symbol.section, start, end, symbol.name)
        homes = {home for home, _ in found}
        for number, section in self._sections.items():  # an assembler need not say where functions are
            if section.executable and section.data and number not in homes:
                found[number, 0] = _Function(number, 0, len(section.data), section.name)
        return found

    def link(self, wanted: str) -> Loaded:
        """The program and all that it calls."""
        main = self._choose(wanted)
        self._place(main)
        done = 0
        calls: list[tuple[int, tuple[int, int]]] = []
        while done < len(self._waiting):
            self._copy(self._waiting[done], calls)
            done += 1
        for pc, callee in calls:
            self._out[pc] = self._out[pc]._replace(imm=self._placed[callee] - pc - 1)
        return Loaded(encode(self._out), self._maps, self._sections[main.section].name, main.name, self._license())

    def _license(self) -> str:
        texts = [section.data for section in self._sections.values() if section.name == "license"]
        return texts[0].split(b"\0")[0][:128].decode("ascii", "replace") if texts else ""

    def _choose(self, wanted: str) -> _Function:
        named = [f for f in self._functions.values() if wanted in (f.name, self._sections[f.section].name)]
        exported = {s.name for s in self._symbols if s.exported and s.kind == "STT_FUNC"}
        outside = [f for f in self._functions.values() if self._sections[f.section].name != ".text"]
        inside = [f for f in self._functions.values() if f.name in exported or f.name == ".text"]
        candidates = named if wanted else outside or inside
        if wanted and len(candidates) > 1:
            candidates = [f for f in candidates if f.name in exported] or candidates
        if len(candidates) == 1:
            return candidates[0]
        names = sorted({f.name for f in self._functions.values()})
        there = ", ".join(name[:64] for name in names[:20]) or "none"
        if not wanted:
            raise BpfError(
                f"{len(candidates)} programs; expected a section or a function to be named; there are: {there}"
            )
        if candidates:
            raise BpfError(f"{len(candidates)} functions in section {wanted!r}; expected one of: {there}")
        raise BpfError(f"no section or function {wanted!r}{did_you_mean(wanted, names[:1000])}; there are: {there}")

    def _place(self, function: _Function) -> None:
        key = function.section, function.start
        if key not in self._placed:
            self._placed[key] = self._slots
            self._slots += (function.end - function.start) // INSN_BYTES
            if self._slots > i.INSNS_MAX:
                raise BpfError(f"{self._slots} instructions with all that is called; at most {i.INSNS_MAX}")
            self._waiting.append(function)

    def _copy(self, function: _Function, calls: list[tuple[int, tuple[int, int]]]) -> None:
        section = self._sections[function.section]
        insns = list(decode(section.data[function.start : function.end]))
        base, second = len(self._out), -1
        places = self._core.get(section.name, [])
        if (index := bisect_left(places, function.start)) < len(places) and places[index] < function.end:
            where = f"{function.name}+{(places[index] - function.start) // INSN_BYTES}"
            raise BpfError(f"{where}: wants a kernel's types (CO-RE, preserve_access_index), which are not supported")
        for pc, insn in enumerate(insns):
            if pc == second:
                continue
            at = function.start + pc * INSN_BYTES
            relocation = section.relocations.get(at)
            if insn.opcode == i.LDDW and pc + 1 < len(insns):
                second = pc + 1
                insns[pc], insns[second] = self._address(insn, insns[second], relocation, f"{function.name}+{pc}")
            elif insn.opcode == i.CALL_INSN:
                insns[pc], callee = self._call(function, at, insn, relocation)
                if callee is not None:
                    self._place(callee)
                    calls.append((base + pc, (callee.section, callee.start)))
            elif relocation is not None:
                raise BpfError(
                    f"{function.name}+{pc}: a relocation of kind {relocation[0]} of what is no call or address"
                )
        self._out += insns

    def _symbol(self, number: int, where: str) -> _Symbol:
        if not 0 < number < len(self._symbols):
            raise BpfError(f"{where}: refers to symbol {number}; there are {len(self._symbols)}")
        return self._symbols[number]

    def _call(
        self, function: _Function, at: int, insn: Insn, relocation: tuple[int, int] | None
    ) -> tuple[Insn, _Function | None]:
        where = f"{function.name}+{(at - function.start) // INSN_BYTES}"
        if relocation is None:
            if insn.src == i.CALL_KFUNC:
                raise BpfError(f"{where}: calls kfunc {insn.imm} by number; expected a name")
            if insn.src != i.CALL_LOCAL:
                return insn, None
            home, target = function.section, at + (1 + insn.imm) * INSN_BYTES
        else:
            kind, number = relocation
            symbol = self._symbol(number, where)
            if kind != R_64_32:
                raise BpfError(f"{where}: a call with a relocation of kind {kind}; expected {R_64_32} (R_BPF_64_32)")
            if symbol.section == 0 or symbol.section == -1:
                if symbol.name not in self._kfuncs:
                    hint = did_you_mean(symbol.name, list(self._kfuncs))
                    raise BpfError(f"{where}: calls {symbol.name!r}, which is not in the object{hint}")
                return insn._replace(src=i.CALL_KFUNC, off=0, imm=self._kfuncs[symbol.name]), None
            home, target = symbol.section, symbol.value + (1 + insn.imm) * INSN_BYTES
        callee = self._functions.get((home, target))
        if callee is None:
            raise BpfError(f"{where}: calls what lies at {target} of section {home}, where no function begins")
        return insn._replace(src=i.CALL_LOCAL), callee

    def _address(self, insn: Insn, upper: Insn, relocation: tuple[int, int] | None, where: str) -> tuple[Insn, Insn]:
        if relocation is None:
            if insn.src:
                raise BpfError(f"{where}: refers to a map, variable or function by number; expected a relocation")
            return insn, upper
        kind, number = relocation
        symbol = self._symbol(number, where)
        section = self._sections.get(symbol.section)
        if kind != R_64_64:
            raise BpfError(f"{where}: an address with a relocation of kind {kind}; expected {R_64_64} (R_BPF_64_64)")
        if section is None:
            raise BpfError(f"{where}: refers to {symbol.name!r}, which is not in the object")
        offset = symbol.value + (insn.imm & M32 | (upper.imm & M32) << 32)
        if section.executable:
            raise BpfError(f"{where}: takes the address of a function, {symbol.name!r}; only calls are supported")
        if section.name in (".maps", "maps"):
            return insn._replace(src=i.IMM64_MAP_FD, imm=self._map(symbol.section, offset)), upper._replace(imm=0)
        if not section.name.startswith(_DATA):
            raise BpfError(f"{where}: refers to section {section.name!r}; expected maps, {', '.join(_DATA)}")
        if offset >= section.size_bytes:
            raise BpfError(f"{where}: refers to byte {offset} of {section.name!r}, which has {section.size_bytes}")
        number = self._data(symbol.section, section)
        return insn._replace(src=i.IMM64_MAP_VALUE, imm=number), upper._replace(imm=s32(offset))

    # --- maps ---

    def _data(self, home: int, section: _Section) -> int:
        """The number of the map that holds a section of global variables."""
        if (home, -1) not in self._numbers:
            if section.relocations:
                raise BpfError(f"section {section.name!r} holds addresses, which are not supported")
            self._count(section.name, section.size_bytes)
            made = ArrayMap(section.size_bytes, 1, section.name)
            made.data[: len(section.data)] = section.data
            made.read_only = section.name.startswith(".rodata")
            self._add((home, -1), made)
        return self._numbers[home, -1]

    def _count(self, name: str, size_bytes: int) -> None:
        """Before a map is made: an object may ask for any."""
        self._map_bytes += size_bytes
        if self._map_bytes > MAPS_MAX_BYTES or len(self._maps) >= MAPS_MAX:
            raise BpfError(
                f"map {name!r}: the {len(self._maps) + 1} maps so far have {self._map_bytes} bytes; "
                f"at most {MAPS_MAX} maps and {MAPS_MAX_BYTES} bytes"
            )

    def _add(self, key: tuple[int, int], made: Map) -> None:
        self._numbers[key] = len(self._maps) + 1
        self._maps[len(self._maps) + 1] = made

    def _map(self, home: int, offset: int) -> int:
        """The number of the map that is declared at an offset of a section of maps."""
        if (home, offset) not in self._numbers:
            declared = [s for s in self._symbols if s.section == home and s.value == offset and s.kind == "STT_OBJECT"]
            if not declared:
                raise BpfError(f"no map is declared at {offset} of section {self._sections[home].name!r}")
            given = self._definition(home, declared[0])
            entry_bytes = 0 if given.kind == _ARENA else max(given.key_bytes, 8) + given.value_bytes
            self._count(declared[0].name, entry_bytes * given.max_entries)
            self._add((home, offset), _made(declared[0].name, given))
        return self._numbers[home, offset]

    def _definition(self, home: int, symbol: _Symbol) -> Definition:
        section = self._sections[home]
        if section.name == "maps":
            words = section.data[symbol.value : symbol.value + _LEGACY_BYTES]
            if len(words) != _LEGACY_BYTES:
                raise BpfError(f"map {symbol.name!r}: {len(words)} bytes of its definition; expected {_LEGACY_BYTES}")
            kind, *sizes = (int.from_bytes(words[at : at + 4], "little") for at in range(0, 16, 4))
            return Definition(kind, *sizes)
        if self._btf is None:
            data = self._named(".BTF")
            if data is None:
                raise BpfError(f"map {symbol.name!r}: its definition is in .BTF, which is missing; compile with -g")
            self._btf = definitions(data)
        if symbol.name not in self._btf:
            raise BpfError(f"map {symbol.name!r} is not in .BTF")
        return self._btf[symbol.name]


def _made(name: str, given: Definition) -> Map:
    kind, key_bytes, value_bytes, max_entries = given
    if kind not in _KINDS:
        known = ", ".join(f"{number} ({text})" for number, text in _KINDS.items())
        raise BpfError(f"map {name!r}: of kind {kind}; expected one of {known}")
    if kind in (_ARRAY, _PERCPU_ARRAY) and key_bytes != 4:
        raise BpfError(f"map {name!r}: keys of {key_bytes} bytes; an array's have 4")
    if kind in (_RINGBUF, _ARENA) and (key_bytes or value_bytes):
        raise BpfError(f"map {name!r}: keys of {key_bytes} and values of {value_bytes} bytes; expected none")
    if kind == _HASH:
        return HashMap(key_bytes, value_bytes, max_entries, name)
    if kind == _RINGBUF:
        return RingBuffer(max_entries, name)
    if kind == _ARENA:
        return ArenaMap(max_entries, name)
    return (ArrayMap if kind == _ARRAY else InstanceArrayMap)(value_bytes, max_entries, name)
