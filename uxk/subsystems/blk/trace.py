"""Events of a disk in the format of blktrace (Linux: include/uapi/linux/blktrace_api.h, kernel/trace/blktrace.c).

One stream for each CPU, as ``blktrace`` writes them to ``NAME.blktrace.N`` for ``blkparse`` and ``btt``.  What nobody
fetches in time is dropped and counted.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final

from uxk.limits import NS_PER_S, U32_MAX
from uxk.subsystems.blk.limits import SECTOR_SHIFT
from uxk.subsystems.blk.request import DISCARD, FLUSH, READ, Bio, Rq
from uxk.uapi.blk import IoFlag

MAGIC: Final = 0x65617400 | 7
"""BLK_IO_TRACE_MAGIC and version."""
BUFFER_BYTES: Final = 2 << 20
"""For each CPU (blktrace: four buffers of 512 KiB)."""
RECORD: Final = struct.Struct("<IIQQIIIIIHH")
"""struct blk_io_trace: magic, sequence, time, sector, bytes, action, pid, device, cpu, error, pdu_len."""
MAJOR: Final = 259
"""Linux: BLOCK_EXT_MAJOR."""

(QUEUE, BACKMERGE, FRONTMERGE, GETRQ, SLEEPRQ, REQUEUE, ISSUE, COMPLETE, PLUG, UNPLUG_IO, UNPLUG_TIMER, INSERT,
 SPLIT) = range(1, 14)  # fmt: skip
"""Linux: enum blktrace_act."""
ABORT: Final = 16

_TC_SHIFT: Final = 16
(
    _READ, _WRITE, _FLUSH, _SYNC, _QUEUE, _REQUEUE, _ISSUE, _COMPLETE, _FS, _PC, _NOTIFY, _AHEAD, _META, _DISCARD,
    _DRV_DATA, _FUA,
) = (1 << (bit + _TC_SHIFT) for bit in range(16))  # fmt: skip
"""Linux: enum blktrace_cat, as bits of an action."""
_CATEGORY: Final = {
    QUEUE: _QUEUE, BACKMERGE: _QUEUE | _FS, FRONTMERGE: _QUEUE | _FS, GETRQ: _QUEUE, SLEEPRQ: _QUEUE,
    REQUEUE: _REQUEUE | _FS, ISSUE: _ISSUE | _FS, COMPLETE: _COMPLETE | _FS, PLUG: _QUEUE, UNPLUG_IO: _QUEUE,
    UNPLUG_TIMER: _QUEUE, INSERT: _QUEUE | _FS, SPLIT: 0, ABORT: _QUEUE,
}  # fmt: skip
_FLAGS: Final = (
    (int(IoFlag.SYNC), _SYNC), (int(IoFlag.RAHEAD), _AHEAD), (int(IoFlag.META), _META),
    (int(IoFlag.PREFLUSH), _FLUSH), (int(IoFlag.FUA), _FUA),
)  # fmt: skip
_PROCESS, _TIMESTAMP = 0, 1
_COMM_BYTES: Final = 16
_KNOWN_MAX: Final = 4096
"""Clients whose names are remembered as told."""
_U64: Final = struct.Struct(">Q")


def action_word(action: int, op: int, flags: int) -> int:
    """The ``action`` field: what happened, to what sort of request."""
    word = action | _CATEGORY[action] | (_READ if op == READ else _WRITE)
    for flag, bit in _FLAGS:
        if flags & flag:
            word |= bit
    if op == DISCARD:
        word |= _DISCARD
    elif op == FLUSH:
        word |= _FLUSH
    return word


class Tracer:
    """The streams of one disk; :attr:`on` says whether anybody wants them."""

    __slots__ = ("_buffers", "_chunk", "_device", "_known", "_sequences", "_sizes", "dropped", "name", "on")

    def __init__(self, name: str, minor: int, cpus: int) -> None:
        self.name = name
        self.on = False
        self.dropped = 0
        self._device = MAJOR << 20 | minor
        self._buffers: list[deque[bytes]] = [deque() for _ in range(cpus)]
        self._sizes = [0] * cpus
        self._sequences = [0] * cpus
        self._known: set[int] = set()
        self._chunk: tuple[int, int, bytes] = (0, 0, b"")

    def start(self, now_ns: int) -> None:
        """Begins anew: what was not fetched before is gone."""
        for cpu, buffer in enumerate(self._buffers):
            buffer.clear()
            self._sizes[cpu] = self._sequences[cpu] = 0
        self._known.clear()
        self._chunk = (self._chunk[0], 0, b"")
        self.dropped = 0
        self.on = True
        stamp = struct.pack("<II", now_ns // NS_PER_S, now_ns % NS_PER_S)
        self._put(now_ns, 0, 0, _TIMESTAMP | _NOTIFY, 0, 0, 0, stamp)

    def stop(self) -> None:
        """Nothing more is recorded; what is there can still be fetched."""
        self.on = False

    def of_rq(self, now_ns: int, action: int, rq: Rq, *, error: int = 0, number: int | None = None) -> None:
        """An event of a request; those that are passed through are not traced."""
        if rq.opaque:
            return
        pid, client = 0, "kernel"
        if rq.segments:
            port = rq.segments[0][0].port
            pid, client = port.id, port.client
        offset, length = (0, 0) if action in (PLUG, UNPLUG_IO) else (rq.offset, rq.length)
        self.note(now_ns, action, rq.op, rq.flags, offset, length, rq.cpu, pid, client, error, number)

    def of_bio(self, now_ns: int, action: int, bio: Bio, at: int, count: int, *, number: int | None = None) -> None:
        """An event of a part of a client's request."""
        port = bio.port
        self.note(
            now_ns, action, bio.op, bio.flags, bio.offset + at, count, port.cpu, port.id, port.client, 0, number
        )  # fmt: skip

    def note(
        self, now_ns: int, action: int, op: int, flags: int, offset: int, length: int, cpu: int, pid: int,
        client: str = "", error: int = 0, number: int | None = None,
    ) -> None:  # fmt: skip
        """One event.  ``number`` is what plugs and splits say besides; a client is named once."""
        if pid not in self._known:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known.add(pid)
            comm = (client or "kernel").encode()[: _COMM_BYTES - 1].ljust(_COMM_BYTES, b"\0")
            self._put(now_ns, 0, 0, _PROCESS | _NOTIFY, cpu, pid, 0, comm)
        pdu = b"" if number is None else _U64.pack(number)
        self._put(now_ns, offset >> SECTOR_SHIFT, length, action_word(action, op, flags), cpu, pid, error, pdu)

    def _put(
        self, now_ns: int, sector: int, length: int, word: int, cpu: int, pid: int, error: int, pdu: bytes
    ) -> None:
        size_bytes = RECORD.size + len(pdu)
        if self._sizes[cpu] + size_bytes > BUFFER_BYTES:
            self.dropped += 1
            return
        self._sizes[cpu] += size_bytes
        self._sequences[cpu] += 1
        head = RECORD.pack(
            MAGIC, self._sequences[cpu], now_ns, sector, min(length, U32_MAX), word, pid, self._device, cpu, error,
            len(pdu),
        )  # fmt: skip
        self._buffers[cpu].append(head + pdu)

    @property
    def cpus(self) -> int:
        """Streams."""
        return len(self._buffers)

    def drain(self, cpu: int, most_bytes: int = BUFFER_BYTES) -> bytes:
        """Takes whole events out of one stream, the oldest first."""
        buffer, taken, size_bytes = self._buffers[cpu], [], 0
        while buffer and size_bytes + len(buffer[0]) <= most_bytes:
            size_bytes += len(buffer[0])
            taken.append(buffer.popleft())
        self._sizes[cpu] -= size_bytes
        return b"".join(taken)

    def peek(self, most_bytes: int) -> tuple[int, int, bytes]:
        """A number, a CPU and its oldest events, the same ones until :meth:`taken` is called with the number."""
        if not self._chunk[2]:
            for cpu in range(self.cpus):
                events = self.drain(cpu, most_bytes)
                if events:
                    self._chunk = (self._chunk[0] + 1, cpu, events)
                    break
        return self._chunk

    def taken(self, number: int) -> None:
        """Somebody has what :meth:`peek` gave under that number."""
        if number == self._chunk[0]:
            self._chunk = (number, 0, b"")

    def files(self) -> dict[str, bytes]:
        """All that was recorded and not fetched yet, as the files that ``blktrace`` would write."""
        return {f"{self.name}.blktrace.{cpu}": self.drain(cpu) for cpu in range(self.cpus)}
