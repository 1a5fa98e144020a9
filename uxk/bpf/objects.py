"""Writes relocatable ELF files for eBPF: sections, symbols, relocations, and BTF for maps, as libbpf reads them.

Layout: elf(5), the BPF ABI of LLVM (machine 247) and Documentation/bpf/btf.rst.  No library in use writes ELF.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple

from uxk.bpf import btf

PROGBITS, SYMTAB, STRTAB, NOBITS, REL = 1, 2, 3, 8, 9
WRITE, ALLOC, EXECINSTR = 1, 2, 4
NOTYPE, OBJECT, FUNC, SECTION = range(4)
_RELOCATABLE, _MACHINE, _HEADER_BYTES, _SECTION_BYTES = 1, 247, 64, 64
_HEADER: Final = Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = Struct("<IIQQQQIIQQ")
_SYMBOL: Final = Struct("<IBBHQQ")
_REL: Final = Struct("<QQ")


class Symbol(NamedTuple):
    """``section``: its name; ``kind``: OBJECT, FUNC or SECTION."""

    name: str
    section: str
    kind: int
    value: int = 0
    size_bytes: int = 0
    exported: bool = False


class Section(NamedTuple):
    """``relocations``: offset, name of the symbol (of a section: the section's), kind."""

    name: str
    data: bytes
    flags: int = 0
    kind: int = PROGBITS
    size_bytes: int = 0
    """Of NOBITS, which have no data."""
    relocations: tuple[tuple[int, str, int], ...] = ()


class _Strings:
    """A string table."""

    def __init__(self) -> None:
        self.data = bytearray(1)

    def add(self, text: str) -> int:
        """Where a text is from now on."""
        if not text:
            return 0
        found = self.data.find(text.encode() + b"\0")
        if found > 0 and self.data[found - 1] == 0:
            return found
        self.data += text.encode() + b"\0"
        return len(self.data) - len(text.encode()) - 1


def write(sections: Sequence[Section], symbols: Sequence[Symbol]) -> bytes:
    """The bytes of an object.  Symbols of sections are added."""
    strings = _Strings()
    numbers = {section.name: number for number, section in enumerate(sections, 1)}
    everyone = [Symbol(name, name, SECTION) for name in numbers] + list(symbols)
    everyone.sort(key=lambda symbol: symbol.exported)  # local ones come first
    entries = bytearray(_SYMBOL.size)
    places: dict[str, int] = {}
    for number, symbol in enumerate(everyone, 1):
        places[symbol.name] = number
        name = 0 if symbol.kind == SECTION else strings.add(symbol.name)
        info = int(symbol.exported) << 4 | symbol.kind
        entries += _SYMBOL.pack(name, info, 0, numbers[symbol.section], symbol.value, symbol.size_bytes)
    table = len(sections) + 1
    all_sections: list[tuple[Section, tuple[int, int, int]]] = [(section, (0, 0, 0)) for section in sections]
    local = 1 + sum(not symbol.exported for symbol in everyone)
    all_sections.append((Section(".symtab", bytes(entries), kind=SYMTAB), (table + 1, local, _SYMBOL.size)))
    all_sections.append((Section(".strtab", b"", kind=STRTAB), (0, 0, 0)))
    for section in sections:
        if section.relocations:
            data = b"".join(_REL.pack(at, places[name] << 32 | kind) for at, name, kind in section.relocations)
            link = table, numbers[section.name], _REL.size
            all_sections.append((Section(f".rel{section.name}", data, kind=REL), link))
    for section, _ in all_sections:
        strings.add(section.name)
    return _laid_out(all_sections, strings, table + 1)


def _laid_out(sections: list[tuple[Section, tuple[int, int, int]]], strings: _Strings, strtab: int) -> bytes:
    out, headers = bytearray(_HEADER_BYTES), bytearray(_SECTION_BYTES)
    for section, (link, info, entry_bytes) in sections:
        data = bytes(strings.data) if section.kind == STRTAB else section.data
        out += bytes(-len(out) % 8)
        size_bytes = section.size_bytes if section.kind == NOBITS else len(data)
        name = strings.add(section.name)
        headers += _SECTION.pack(
            name, section.kind, section.flags, 0, len(out), size_bytes, link, info, 8, entry_bytes
        )  # fmt: skip
        out += data
    out += bytes(-len(out) % 8)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    out[:_HEADER_BYTES] = _HEADER.pack(
        ident,
        _RELOCATABLE,
        _MACHINE,
        1,
        0,
        0,
        len(out),
        0,
        _HEADER_BYTES,
        0,
        0,
        _SECTION_BYTES,
        len(sections) + 1,
        strtab,
    )
    return bytes(out + headers)


# --- BTF ---------------------------------------------------------------------------------------------------


def map_types(maps: Sequence[tuple[str, Mapping[str, int]]], each_bytes: int) -> bytes:
    """The ``.BTF`` section that declares maps: names, which are identifiers of C, and attributes; in ``.maps`` each
    takes ``each_bytes``, in order."""
    strings, types = _Strings(), list[bytes]()

    def add(name: str, kind: int, members: int, size_or_type: int, tail: bytes = b"") -> int:
        types.append(Struct("<III").pack(strings.add(name), kind << 24 | members, size_or_type) + tail)
        return len(types)

    triple = Struct("<III").pack
    integer = add("int", btf.INT, 0, 4, (1 << 24 | 32).to_bytes(4, "little"))
    variables = b""
    for index, (name, attributes) in enumerate(maps):
        members = b""
        for at, (attribute, number) in enumerate(attributes.items()):
            if number >> 32:  # as libbpf's __ulong has it
                low, high = number & 0xFFFFFFFF, number >> 32
                wide = add("", btf.ENUM64, 1, 8, triple(strings.add(f"{name}_{attribute}"), low, high))
                members += triple(strings.add(attribute), wide, 64 * at)
                continue
            array = add("", btf.ARRAY, 0, 0, triple(integer, integer, number))
            members += triple(strings.add(attribute), add("", btf.PTR, 0, array), 64 * at)
        struct = add("", btf.STRUCT, len(attributes), 8 * len(attributes), members)
        variable = add(name, btf.VAR, 0, struct, (1).to_bytes(4, "little"))
        variables += triple(variable, each_bytes * index, each_bytes)
    add(".maps", btf.DATASEC, len(maps), each_bytes * len(maps), variables)
    body = b"".join(types)
    header = Struct("<HBBIIIII").pack(btf.MAGIC, 1, 0, 24, 0, len(body), len(body), len(strings.data))
    return header + body + bytes(strings.data)
