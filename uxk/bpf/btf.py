"""BTF, as far as maps need it: the definitions in an object's ``.maps`` section, as clang writes them.

Layout: Documentation/bpf/btf.rst.  A definition is a struct whose members carry numbers as lengths of arrays
(``int (*max_entries)[4]``) and the key and the value as what a pointer points to.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Final, NamedTuple

from uxk.bpf.errors import BpfError

MAGIC: Final = 0xEB9F
TYPES_MAX: Final = 65536
NAME_MAX_BYTES: Final = 128
MAPS_MAX: Final = 4096
ATTRIBUTES_MAX: Final = 64
"""Of a map's definition."""
GROUPS_MAX: Final = 4096
"""Sections with relocations for a kernel's types."""
DEPTH_MAX: Final = 32
"""Longest chain of typedefs, qualifiers and arrays that is followed."""
SIZE_MAX_BYTES: Final = 1 << 30
INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
VAR, DATASEC, FLOAT, TYPE_TAG, ENUM64 = 14, 15, 16, 18, 19
_HEADER: Final = Struct("<HBBIIIII")
_TYPE: Final = Struct("<III")
_TRIPLE: Final = Struct("<III")
_PAIR: Final = Struct("<II")
_WORD: Final = Struct("<I")
_TAIL_BYTES: Final = {INT: 4, ARRAY: 12, VAR: 4, 17: 4}
"""What follows a type, once; 17 is a declaration's tag."""
_MEMBER_BYTES: Final = {STRUCT: 12, UNION: 12, ENUM: 8, 13: 8, DATASEC: 12, ENUM64: 12}
"""What follows a type, for each of its members; 13 is a function's prototype."""
_TRANSPARENT: Final = frozenset({TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG})
_KINDS_MAX: Final = ENUM64


class Definition(NamedTuple):
    """What a map is declared to be; sizes in bytes, ``kind`` is Linux's number (enum bpf_map_type)."""

    kind: int
    key_bytes: int
    value_bytes: int
    max_entries: int


class _Type(NamedTuple):
    name: int
    kind: int
    members: int
    size_or_type: int
    tail: int
    """Where its members begin."""


def definitions(data: bytes) -> dict[str, Definition]:
    """The maps of a ``.BTF`` section by name.  Raises ``BpfError`` for bytes that are no BTF."""
    try:
        return _Btf(data).maps()
    except error:
        raise BpfError(f".BTF: {len(data)} bytes, cut short") from None


def core_relocations(data: bytes, types: bytes) -> dict[str, list[int]]:
    """Offsets in order, by section, of the instructions that ``.BTF.ext`` wants changed for a kernel's types (CO-RE).

    ``types``: the ``.BTF`` section, which has the names.  Raises ``BpfError`` for bytes that are none.
    """
    try:
        magic, version, _, header_bytes, *_ = _HEADER.unpack_from(data)
        if magic != MAGIC or version != 1:
            raise BpfError(f".BTF.ext: begins with {magic:#x}, version {version}; expected {MAGIC:#x}, version 1")
        if header_bytes < _HEADER.size + 8:
            return {}
        at, size_bytes = _PAIR.unpack_from(data, _HEADER.size)
        return _relocated(data, header_bytes + at, header_bytes + at + size_bytes, types)
    except error:
        raise BpfError(f".BTF.ext: {len(data)} bytes, cut short") from None


def _relocated(data: bytes, at: int, end: int, types: bytes) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    if at == end:
        return found
    btf, groups = _Btf(types), 0
    (record_bytes,) = _WORD.unpack_from(data, at)
    at += _WORD.size
    if record_bytes < 16:
        raise BpfError(f".BTF.ext: relocations of {record_bytes} bytes; expected at least 16")
    while at < end:
        name, count = _PAIR.unpack_from(data, at)
        at += _PAIR.size
        groups += 1
        if groups > GROUPS_MAX or at + count * record_bytes > min(end, len(data)):
            raise BpfError(
                f".BTF.ext: {count} relocations of {record_bytes} bytes at {at}, in section {groups}; expected at most "
                f"{GROUPS_MAX} sections within {len(data)} bytes"
            )
        places = [_WORD.unpack_from(data, at + index * record_bytes)[0] for index in range(count)]
        found.setdefault(btf.name(name), []).extend(places)
        at += count * record_bytes
    return {name: sorted(places) for name, places in found.items()}


class _Btf:
    """The types of one section; type 0 is void."""

    def __init__(self, data: bytes) -> None:
        magic, version, _, header_bytes, type_at, type_bytes, name_at, name_bytes = _HEADER.unpack_from(data)
        if magic != MAGIC or version != 1:
            raise BpfError(f".BTF: begins with {magic:#x}, version {version}; expected {MAGIC:#x}, version 1")
        start = header_bytes + type_at
        if start + type_bytes > len(data) or header_bytes + name_at + name_bytes > len(data):
            raise BpfError(f".BTF: types and names beyond its {len(data)} bytes")
        self._data = data
        self._names = data[header_bytes + name_at : header_bytes + name_at + name_bytes]
        self._types = [_Type(0, 0, 0, 0, 0)]
        at, end = start, start + type_bytes
        while at < end:
            if len(self._types) > TYPES_MAX:
                raise BpfError(f".BTF: more than {TYPES_MAX} types")
            name, info, size_or_type = _TYPE.unpack_from(data, at)
            kind, members = info >> 24 & 31, info & 0xFFFF
            if not 0 < kind <= _KINDS_MAX:
                raise BpfError(f".BTF: type {len(self._types)} is of kind {kind}; expected 1 to {_KINDS_MAX}")
            self._types.append(_Type(name, kind, members, size_or_type, at + _TYPE.size))
            at += _TYPE.size + _TAIL_BYTES.get(kind, 0) + members * _MEMBER_BYTES.get(kind, 0)
        if at != end:
            raise BpfError(f".BTF: type {len(self._types) - 1} goes beyond the types")

    def name(self, offset: int) -> str:
        """A name; raises ``BpfError`` for one that is none."""
        end = self._names.find(b"\0", offset, offset + NAME_MAX_BYTES + 1)
        if not 0 <= offset < len(self._names) or end < 0:
            raise BpfError(
                f".BTF: a name at {offset}, which does not end within {NAME_MAX_BYTES} bytes; there are "
                f"{len(self._names)} bytes of names"
            )
        return self._names[offset:end].decode("utf-8", "replace")

    def _type(self, number: int) -> _Type:
        """A type without its typedefs and qualifiers."""
        for _ in range(DEPTH_MAX):
            if number >= len(self._types):
                raise BpfError(f".BTF: no type {number}; there are {len(self._types)}")
            found = self._types[number]
            if found.kind not in _TRANSPARENT:
                return found
            number = found.size_or_type
        raise BpfError(f".BTF: type {number} is one of itself, or more than {DEPTH_MAX} deep")

    def _size_bytes(self, number: int, depth: int = DEPTH_MAX) -> int:
        found = self._type(number)
        if found.kind in (INT, STRUCT, UNION, ENUM, FLOAT, ENUM64):
            return self._bounded(found.size_or_type)
        if found.kind == PTR:
            return 8
        if found.kind == ARRAY and depth:
            element, _, count = _TRIPLE.unpack_from(self._data, found.tail)
            return self._bounded(count * self._size_bytes(element, depth - 1))
        raise BpfError(f".BTF: type {number}, of kind {found.kind}, has no size")

    @staticmethod
    def _bounded(size_bytes: int) -> int:
        if size_bytes > SIZE_MAX_BYTES:
            raise BpfError(f".BTF: a type of {size_bytes} bytes; at most {SIZE_MAX_BYTES}")
        return size_bytes

    def maps(self) -> dict[str, Definition]:
        """The variables of the section ``.maps``."""
        found: dict[str, Definition] = {}
        for section in self._types:
            if section.kind != DATASEC or self.name(section.name) != ".maps":
                continue
            for index in range(section.members):
                number, _, _ = _TRIPLE.unpack_from(self._data, section.tail + 12 * index)
                variable = self._type(number)
                if variable.kind != VAR:
                    raise BpfError(f".BTF: type {number} in .maps is of kind {variable.kind}; expected a variable")
                name = self.name(variable.name)
                if len(found) >= MAPS_MAX or name in found:
                    raise BpfError(f".BTF: map {name!r} is there twice, or there are more than {MAPS_MAX}")
                found[name] = self._definition(name, self._type(variable.size_or_type))
        return found

    def _definition(self, map_name: str, struct: _Type) -> Definition:
        if struct.members > ATTRIBUTES_MAX:
            raise BpfError(f"map {map_name!r}: {struct.members} attributes; at most {ATTRIBUTES_MAX}")
        if struct.kind != STRUCT:
            raise BpfError(f"map {map_name!r}: of kind {struct.kind} in .BTF; expected a struct of its attributes")
        numbers = {"type": 0, "key_size": 0, "value_size": 0, "max_entries": 0, "map_flags": 0}
        for index in range(struct.members):
            name_at, number, _ = _TRIPLE.unpack_from(self._data, struct.tail + 12 * index)
            name = self.name(name_at)
            if name in ("key", "value"):
                numbers[f"{name}_size"] = self._size_bytes(self._pointed(map_name, name, number))
            elif name in numbers:
                numbers[name] = self._number(map_name, name, number)
            elif name not in ("map_extra", "pinning"):
                raise BpfError(f"map {map_name!r}: attribute {name!r} is not supported")
        return Definition(numbers["type"], numbers["key_size"], numbers["value_size"], numbers["max_entries"])

    def _pointed(self, map_name: str, name: str, number: int) -> int:
        pointer = self._type(number)
        if pointer.kind != PTR:
            raise BpfError(f"map {map_name!r}: {name} is of kind {pointer.kind} in .BTF; expected a pointer")
        return pointer.size_or_type

    def _number(self, map_name: str, name: str, number: int) -> int:
        array = self._type(self._pointed(map_name, name, number))
        if array.kind != ARRAY:
            raise BpfError(f"map {map_name!r}: {name} is of kind {array.kind} in .BTF; expected an array's length")
        return int(_TRIPLE.unpack_from(self._data, array.tail)[2])
