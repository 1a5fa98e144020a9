"""Helpers that programs may call, under Linux's numbers (include/uapi/linux/bpf.h: __BPF_FUNC_MAPPER).

What depends on a kernel (time, random numbers, the log) is injected by it: ``with_kernel``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from uxk.bpf.insn import M32, M64
from uxk.bpf.interp import Helper, Machine
from uxk.bpf.maps import ArrayMap, HashMap, RingBuffer
from uxk.bpf.proto import Arg, Proto, Ret

LOOKUP, UPDATE, DELETE, KTIME, PRANDOM, RINGBUF_OUTPUT = 1, 2, 3, 5, 7, 130
_TABLES: Final = frozenset({"array", "hash", "instance array"})


class Function(NamedTuple):
    """A helper: what the verifier must know, and what it does."""

    proto: Proto
    run: Helper


def protos(functions: Mapping[int, Function]) -> dict[int, Proto]:
    """What the verifier must know, by number."""
    return {number: function.proto for number, function in functions.items()}


def _table(machine: Machine, handle: int) -> ArrayMap | HashMap:
    found = machine.maps[handle]
    assert isinstance(found, (ArrayMap, HashMap))  # the verifier saw to it
    return found


def _lookup(machine: Machine, handle: int, key: int, _3: int, _4: int, _5: int) -> int:
    table = _table(machine, handle)
    offset = table.offset(machine.memory.take(key, table.key_bytes))
    return 0 if offset is None else machine.bases[handle] + offset


def _update(machine: Machine, handle: int, key: int, value: int, flags: int, _5: int) -> int:
    table = _table(machine, handle)
    taken = machine.memory.take(value, table.value_bytes)
    return table.update(machine.memory.take(key, table.key_bytes), taken, flags) & M64


def _delete(machine: Machine, handle: int, key: int, _3: int, _4: int, _5: int) -> int:
    table = _table(machine, handle)
    return table.delete(machine.memory.take(key, table.key_bytes)) & M64


def _ringbuf_output(machine: Machine, handle: int, data: int, size_bytes: int, flags: int, _5: int) -> int:
    ring = machine.maps[handle]
    assert isinstance(ring, RingBuffer)
    return ring.output(machine.memory.take(data, size_bytes), flags) & M64


HELPERS: Final[Mapping[int, Function]] = {
    LOOKUP: Function(Proto("map_lookup_elem", (Arg.MAP, Arg.MAP_KEY), Ret.MAP_VALUE_OR_NULL, _TABLES), _lookup),
    UPDATE: Function(
        Proto("map_update_elem", (Arg.MAP, Arg.MAP_KEY, Arg.MAP_VALUE, Arg.NUMBER), maps=_TABLES), _update
    ),
    DELETE: Function(Proto("map_delete_elem", (Arg.MAP, Arg.MAP_KEY), maps=_TABLES), _delete),
    RINGBUF_OUTPUT: Function(
        Proto("ringbuf_output", (Arg.MAP, Arg.READ, Arg.LENGTH, Arg.NUMBER), maps=frozenset({"ringbuf"})),
        _ringbuf_output,
    ),
}
"""Helpers that need nothing but maps."""


NUMBERS: Final[Mapping[str, int]] = {
    **{function.proto.name: number for number, function in HELPERS.items()}, "ktime_get_ns": KTIME,
    "get_prandom_u32": PRANDOM,
}  # fmt: skip
"""Numbers of all helpers here by their names: text may call them so."""


def with_kernel(now_ns: Callable[[], int], random_u32: Callable[[], int]) -> dict[int, Function]:
    """``HELPERS`` and those that ask a kernel: its clock, and a named stream of its seed."""
    return {
        **HELPERS,
        KTIME: Function(Proto("ktime_get_ns"), lambda *_: now_ns()),
        PRANDOM: Function(Proto("get_prandom_u32"), lambda *_: random_u32() & M32),
    }
