"""Calls of helpers and kfuncs in the verifier (check_helper_call, check_func_arg of kernel/bpf/verifier.c)."""

from __future__ import annotations

from collections.abc import Callable

from uxk.bpf import insn as i
from uxk.bpf.insn import Insn
from uxk.bpf.proto import Arg, MapShape, Proto, Ret, Spec
from uxk.bpf.state import State, unset
from uxk.bpf.values import UNKNOWN, Handle, Pointer, Scalar, Space, Value


def helper_call(insn: Insn, state: State, spec: Spec, fresh: Callable[[], int]) -> str:
    """Applies a call; why it is refused, or empty."""
    kfunc = insn.src == i.CALL_KFUNC
    what = f"{'kfunc' if kfunc else 'helper'} {insn.imm}"
    table = spec.kfuncs if kfunc else spec.helpers
    proto = table.get(insn.imm)
    if proto is None or insn.off:
        there = ", ".join(f"{number} ({each.name})" for number, each in sorted(table.items()))
        return f"{what} may not be called here; expected {there or 'none'}"
    call = _Call(state, spec, proto)
    for number, arg in enumerate(proto.args, 1):
        if why := call.argument(number, arg):
            return f"{proto.name}: {why}"
    state.regs[1:6] = [None] * 5
    state.regs[0] = _result(proto, call.shape, call.map_number, state, fresh)
    if call.released:
        state.forget(call.released)
    return ""


def _result(proto: Proto, shape: MapShape | None, number: int, state: State, fresh: Callable[[], int]) -> Value:
    if proto.ret is Ret.MAP_VALUE_OR_NULL and shape is not None:
        return Pointer(Space("map value", shape.value_bytes, shape.writable, number), 0, 0, fresh())
    if proto.ret is Ret.OBJECT_OR_NULL:
        reference = fresh()
        state.references |= {reference}
        return Pointer(Space("object", 0, False, reference), 0, 0, reference)
    return UNKNOWN


class _Call:
    """The arguments of one call, looked at in order."""

    def __init__(self, state: State, spec: Spec, proto: Proto) -> None:
        self._state, self._spec, self._proto = state, spec, proto
        self.shape: MapShape | None = None
        self.map_number = self.released = 0

    def argument(self, number: int, arg: Arg) -> str:
        """Why an argument is refused, or empty."""
        value = self._state.regs[number]
        if value is None:
            return unset(number)
        match arg:
            case Arg.NUMBER | Arg.LENGTH:
                return "" if isinstance(value, Scalar) else f"r{number} is {value}; expected {arg.value}"
            case Arg.MAP:
                return self._map(number, value)
            case Arg.OBJECT:
                return self._object(number, value)
            case Arg.MAP_KEY | Arg.MAP_VALUE:
                shape = self.shape or MapShape("", 0, 0)
                size_bytes = shape.key_bytes if arg is Arg.MAP_KEY else shape.value_bytes
                return self._bytes(number, value, size_bytes, size_bytes, write=False)
            case _:
                return self._counted(number, value, write=arg is Arg.WRITE)

    def _map(self, number: int, value: Value) -> str:
        if not isinstance(value, Handle):
            return f"r{number} is {value}; expected a map"
        shape = self._spec.maps[value.number]
        if self._proto.maps and shape.kind not in self._proto.maps:
            return f"r{number} is a map of kind {shape.kind}; expected {' or '.join(sorted(self._proto.maps))}"
        if not shape.writable and Arg.MAP_VALUE in self._proto.args:
            return f"r{number} is a map whose values are read-only"
        self.shape, self.map_number = shape, value.number
        return ""

    def _object(self, number: int, value: Value) -> str:
        if not isinstance(value, Pointer) or value.space.kind != "object" or value.null:
            return f"r{number} is {value}; expected an object that was looked up and compared with 0"
        if value.space.number not in self._state.references:
            return f"r{number} is {value}, which was released"
        if self._proto.releases:
            self.released = value.space.number
        return ""

    def _counted(self, number: int, value: Value, *, write: bool) -> str:
        length = self._state.regs[number + 1]
        if not isinstance(length, Scalar):
            return f"r{number + 1} is {length}; expected the length of the bytes in r{number}"
        if length.umin < 1 or length.umax >= 1 << 29:
            return f"r{number + 1} is {length}; expected a length of at least 1 with a bound"
        return self._bytes(number, value, length.umin, length.umax, write=write)

    def _bytes(self, number: int, value: Value, least: int, most: int, *, write: bool) -> str:
        if not isinstance(value, Pointer) or value.null or value.space.kind in ("arena", "object"):
            return f"r{number} is {value}; expected {most} bytes of memory"
        space = value.space
        if write and not space.writable:
            return f"r{number} is {value}, which is read-only"
        if space.kind != "stack":
            inside = value.low >= 0 and value.high + most <= space.size_bytes
            return "" if inside else f"{most} bytes at {value}; it has {space.size_bytes}"
        if not -i.STACK_BYTES <= value.low <= -most:
            return f"{most} bytes of the stack at {value.low}; expected -{i.STACK_BYTES} to -{most}"
        frame = self._state.frames[space.number]
        for off in range(value.low, value.low + most):
            if frame.holds_pointer(off):
                return f"r{number} points to a pointer on the stack at {off}"
            if not write and frame.read(off, 1) is None:
                return f"byte {off} of the stack was not written on every path"
        if write:
            frame.fill(value.low, least, most)
        frame.depth.reach(value.low)
        return ""
