"""A flash device as seen through its queue: parallel commands, one shared data path.

A command of one or more blocks takes one of ``slots``, waits its turn on the data path for its transfer, and then takes
its latency once.
Commands are served first come, first served: the device knows nothing of users and cleaners.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

from uxk.errors import ParamError
from uxk.limits import NS_PER_S
from uxk.subsystems.lfs.timed.clock import Timeline

Done: TypeAlias = Callable[[int], object]
"""Called with the argument of its command."""


class DeviceSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Speeds.  The defaults are those of a TLC NVMe device once its fast write buffer is full.

    From the data sheet of Samsung's 970 EVO Plus 250 GB: 17,000 reads/s and 60,000 writes/s of 4 KiB one at a time,
    3,500 MB/s sequential reads, 400 MB/s sustained writes; so a read takes 58.8 us and a write 16.6 us altogether.
    The time of a flush is an assumption.  Raises :class:`ParamError` for a value out of range.
    """

    block_bytes: int = 4096
    slots: int = 32
    """Commands under way at once."""
    read_ns: int = 57_600
    """Latency of a read beside its transfer."""
    program_ns: int = 6_400
    """Latency of a write beside its transfer."""
    read_bytes_per_s: int = 3_500_000_000
    program_bytes_per_s: int = 400_000_000
    flush_ns: int = 500_000

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value, least = getattr(self, name), 0 if name.endswith("_ns") else 1
            if not least <= value <= 1 << 50:
                raise ParamError(f"device.{name} = {value}: expected an integer from {least} to {1 << 50}")

    @property
    def read_transfer_ns(self) -> int:
        """Time of one block on the data path, read."""
        return self.block_bytes * NS_PER_S // self.read_bytes_per_s

    @property
    def program_transfer_ns(self) -> int:
        """Time of one block on the data path, written."""
        return self.block_bytes * NS_PER_S // self.program_bytes_per_s


READ: Final = 0
PROGRAM: Final = 1


class FlashDevice:
    """Serves block reads and programs, and flushes."""

    def __init__(self, timeline: Timeline, spec: DeviceSpec) -> None:
        self._timeline = timeline
        self.spec = spec
        self._transfer_ns = (spec.read_transfer_ns, spec.program_transfer_ns)
        self._latency_ns = (spec.read_ns, spec.program_ns)
        self._queue: deque[tuple[int, int, Done, int]] = deque()
        self._under_way = 0
        self._path_free_ns = 0
        self.reads = self.programs = self.flushes = 0
        self.deepest = 0
        """Most commands waiting for a slot."""

    @property
    def is_idle(self) -> bool:
        """Whether no command is under way."""
        return not self._under_way

    def read(self, done: Done, argument: int = 0, blocks: int = 1) -> None:
        """Reads some blocks in one command."""
        self.reads += blocks
        self._submit(READ, blocks, done, argument)

    def program(self, done: Done, argument: int = 0, blocks: int = 1) -> None:
        """Writes some blocks in one command into the device's buffer, at the speed at which that drains."""
        self.programs += blocks
        self._submit(PROGRAM, blocks, done, argument)

    def flush(self, done: Done, argument: int = 0) -> None:
        """Ends when everything that is on the data path now is durable; takes no slot."""
        self.flushes += 1
        now_ns = self._timeline.now_ns
        wait_ns = max(self._path_free_ns - now_ns, 0) + self.spec.flush_ns
        self._timeline.call_later(wait_ns, lambda _: done(argument))

    def _submit(self, kind: int, blocks: int, done: Done, argument: int) -> None:
        if self._under_way < self.spec.slots:
            self._start(kind, blocks, done, argument)
        else:
            self._queue.append((kind, blocks, done, argument))
            self.deepest = max(self.deepest, len(self._queue))

    def _start(self, kind: int, blocks: int, done: Done, argument: int) -> None:
        self._under_way += 1
        now_ns = self._timeline.now_ns
        self._path_free_ns = max(self._path_free_ns, now_ns) + blocks * self._transfer_ns[kind]
        due_ns = self._path_free_ns + self._latency_ns[kind]
        self._timeline.call_later(due_ns - now_ns, self._end, (done, argument))

    def _end(self, command: tuple[Done, int]) -> None:
        self._under_way -= 1
        if self._queue:
            self._start(*self._queue.popleft())
        command[0](command[1])
