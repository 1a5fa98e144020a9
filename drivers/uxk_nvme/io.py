"""I/O commands that are not plain reads and writes (nvm, section 3.2)."""

from __future__ import annotations

from typing import Final

from uxk_nvme.command import Command
from uxk_nvme.controller import Handler
from uxk_nvme.namespaces import Namespace
from uxk_nvme.spec import (
    DEAC,
    FUA,
    RANGE,
    TRANSFER_MAX_BYTES,
    ZEROES_MAX_BYTES,
    Io,
    Refused,
    Status,
    final,
    invalid_field,
)


def _done(due_ns: int) -> int:
    """A medium's answer: its time, or its refusal."""
    if due_ns < 0:
        raise Refused(final(-due_ns), retry=True)
    return due_ns


def _range(cmd: Command, *, write: bool) -> tuple[Namespace, int, int]:
    """Namespace, byte address and bytes of a command with SLBA and NLB.  Refused: LBA Out of Range, ..."""
    namespace = cmd.namespace()
    blocks = (cmd.dw[12] & 0xFFFF) + 1
    if cmd.slba + blocks > namespace.blocks:
        raise Refused(Status.LBA_OUT_OF_RANGE, byte=40)
    if write and namespace.protect:
        raise Refused(Status.NAMESPACE_WRITE_PROTECTED)
    return namespace, namespace.base + (cmd.slba << namespace.shift), blocks << namespace.shift


def _transfer(cmd: Command, *, write: bool) -> tuple[int, int]:
    """Byte address and bytes of a command that moves data."""
    _, offset, length = _range(cmd, write=write)
    if length > TRANSFER_MAX_BYTES:
        raise invalid_field(12)
    return offset, length


def _read(cmd: Command) -> int:
    offset, length = _transfer(cmd, write=False)
    data = cmd.data(length, to_host=True, exact=True)
    medium = cmd.controller.subsystem.medium
    # With FUA also what the cache holds of the range must be durable before the command is complete.
    durable_ns = _done(medium.flush(cmd.now_ns)) if cmd.dw[12] & FUA else cmd.now_ns
    if 0 <= cmd.keep_bytes < length:  # a fault: the rest keeps what it held
        whole = memoryview(bytearray(length))
        due_ns = _done(medium.read(offset, whole, cmd.now_ns))
        data[: cmd.keep_bytes] = whole[: cmd.keep_bytes]
        return max(due_ns, durable_ns)
    due_ns = _done(medium.read(offset, data, cmd.now_ns))
    if cmd.corrupt is not None:
        cmd.corrupt(data)
    return max(due_ns, durable_ns)


def _write(cmd: Command) -> int:
    offset, length = _transfer(cmd, write=True)
    data = cmd.data(length, to_host=False, exact=True)
    if cmd.corrupt is not None:
        data = memoryview(bytearray(data))
        cmd.corrupt(data)
    if 0 <= cmd.keep_bytes < length:
        namespace = cmd.namespace()
        data = data[: cmd.keep_bytes >> namespace.shift << namespace.shift]
        if not len(data):
            return cmd.now_ns
    return _done(cmd.controller.subsystem.medium.write(offset, data, cmd.now_ns, bool(cmd.dw[12] & FUA)))


def _flush(cmd: Command) -> int:
    if not cmd.broadcast:
        cmd.namespace()
    return _done(cmd.controller.subsystem.medium.flush(cmd.now_ns))


def _compare(cmd: Command) -> int:
    offset, length = _transfer(cmd, write=False)
    data = cmd.data(length, to_host=False, exact=True)
    held = memoryview(bytearray(length))
    due_ns = _done(cmd.controller.subsystem.medium.read(offset, held, cmd.now_ns))
    if held != data:
        raise Refused(Status.COMPARE_FAILURE)
    return due_ns


def _write_zeroes(cmd: Command) -> int:
    _, offset, length = _range(cmd, write=True)
    if length > ZEROES_MAX_BYTES:
        raise invalid_field(12)
    medium = cmd.controller.subsystem.medium
    due_ns = _done(medium.write_zeroes(offset, length, cmd.now_ns, bool(cmd.dw[12] & DEAC)))
    return max(due_ns, _done(medium.flush(cmd.now_ns))) if cmd.dw[12] & FUA else due_ns


def _write_uncorrectable(cmd: Command) -> int:
    _, offset, length = _range(cmd, write=True)
    return _done(cmd.controller.subsystem.medium.write_uncorrectable(offset, length, cmd.now_ns))


def _verify(cmd: Command) -> int:
    _, offset, length = _range(cmd, write=False)
    return _done(cmd.controller.subsystem.medium.verify(offset, length, cmd.now_ns))


def _manage(cmd: Command) -> int:
    """Dataset Management: all ranges are checked before the first is deallocated."""
    namespace = cmd.namespace()
    count = (cmd.dw[10] & 0xFF) + 1
    ranges = [
        (slba, blocks) for _, blocks, slba in RANGE.iter_unpack(cmd.data(count * RANGE.size, to_host=False)) if blocks
    ]
    if any(slba + blocks > namespace.blocks for slba, blocks in ranges):
        raise Refused(Status.LBA_OUT_OF_RANGE)
    due_ns = cmd.now_ns
    if not cmd.dw[11] >> 2 & 1:  # AD; the other attributes are hints
        return due_ns
    if namespace.protect:
        raise Refused(Status.NAMESPACE_WRITE_PROTECTED)
    medium, shift = cmd.controller.subsystem.medium, namespace.shift
    for slba, blocks in ranges:
        due_ns = max(due_ns, _done(medium.deallocate(namespace.base + (slba << shift), blocks << shift, cmd.now_ns)))
    return due_ns


IO_TABLE: Final[dict[int, Handler]] = {
    Io.FLUSH: _flush,
    Io.WRITE: _write,
    Io.READ: _read,
    Io.WRITE_UNCORRECTABLE: _write_uncorrectable,
    Io.COMPARE: _compare,
    Io.WRITE_ZEROES: _write_zeroes,
    Io.DSM: _manage,
    Io.VERIFY: _verify,
}
