"""A controller without a kernel: a clock to turn, memory, and one queue whose completions are kept."""

from __future__ import annotations

import heapq
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from uxk_nvme.admin import ADMIN_TABLE
from uxk_nvme.controller import Controller
from uxk_nvme.faults import FaultTable
from uxk_nvme.io import IO_TABLE
from uxk_nvme.iommu import OFFSET_BITS, Iommu
from uxk_nvme.medium import MediumParams, open_medium
from uxk_nvme.queues import Done, Item, ReplyQueue
from uxk_nvme.spec import PSDT_SGL, SQE_FAST, Admin
from uxk_nvme.subsystem import PRIMARY, Settings, Subsystem

# As in tests/conftest.py, which is not read when only these tests are run.
_SLOW = [HealthCheck.too_slow]
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, suppress_health_check=_SLOW)
settings.register_profile(
    "soak", deadline=None, max_examples=2000, print_blob=True, suppress_health_check=_SLOW
)  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


class Clock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.now_ns = 1_000
        self._heap: list[tuple[int, int, Callable[[Any], object], Any]] = []

    def call_at_ns(
        self, due_ns: int, callback: Callable[[Any], object], argument: Any = None, *, daemon: bool = False
    ) -> object:
        heapq.heappush(self._heap, (max(due_ns, self.now_ns), len(self._heap), callback, argument))
        return None

    def advance(self, delay_ns: int) -> None:
        until_ns = self.now_ns + delay_ns
        while self._heap and self._heap[0][0] <= until_ns:
            self.now_ns, _, callback, argument = heapq.heappop(self._heap)
            callback(argument)
        self.now_ns = until_ns


class Answer(NamedTuple):
    """What a command was answered with."""

    status: int
    """15 bits."""
    dw0: int
    data: bytes

    @property
    def code(self) -> int:
        """Status code and type."""
        return self.status & 0x7FF

    @property
    def dnr(self) -> bool:
        return bool(self.status >> 14)


class Capsules:
    """A queue that keeps what is posted."""

    def __init__(self, qid: int) -> None:
        self.qid = qid
        self.peers: Mapping[int, ReplyQueue] | None = None
        self.raw: list[tuple[int, ...]] = []
        self.posted: dict[int, Done] = {}

    def dwords(self, index: int) -> tuple[int, ...]:
        return self.raw[index]

    def post(self, items: Sequence[Item]) -> None:
        for item in items:
            done = Done(item, 0) if isinstance(item, int) else item
            assert done.tag not in self.posted, "a command was answered twice"
            self.posted[done.tag] = done

    def command_id(self, tag: int) -> int:
        return tag

    def tag_of(self, command_id: int) -> int | None:
        return command_id


class Rig:
    """One subsystem of 8 MiB with one namespace, one controller, an admin and an I/O queue."""

    MEMORY_BYTES = 1 << 20

    def __init__(self, **params: Any) -> None:
        self.clock = Clock()
        self.memory = bytearray(self.MEMORY_BYTES)
        self.iommu = Iommu(_refuse)
        self.base = self.iommu.pin(memoryview(self.memory)) << OFFSET_BITS
        self.said: list[str] = []
        values = MediumParams(**{"size": 8 << 20, **params})
        self.medium = open_medium(values, np.random.default_rng(1))
        self.faults = FaultTable(np.random.default_rng(2))
        settings = Settings("SN1", "nqn.test", 4, 64, values.write_cache > 0)
        self.subsystem = Subsystem(
            settings, self.medium, self.faults, self.iommu, self.clock, lambda: None, self.said.append
        )
        shift = values.lba_bytes.bit_length() - 1
        self.namespace = self.subsystem.namespaces.create((4 << 20) >> shift, shift)
        self.namespace.attached[PRIMARY] = None
        self.controller = self.subsystem.add_controller("", bytes(16), 0, (ADMIN_TABLE, IO_TABLE), cntlid=PRIMARY)
        self.queues = {qid: Capsules(qid) for qid in (0, 1)}
        self.controller.queues |= self.queues
        self._tag = 0

    def host(self, name: str = "nqn.host") -> Controller:
        """A further controller."""
        made = self.subsystem.add_controller(name, bytes(range(16)), 7, (ADMIN_TABLE, IO_TABLE))
        made.queues[0] = Capsules(0)
        return made

    def start(
        self, opcode: int, nsid: int = 0, *, cdw: dict[int, int] | None = None, data: bytes = b"", length: int = 0,
        slba: int | None = None, admin: bool = False, controller: Controller | None = None, flags: int = 0,
    ) -> tuple[Capsules, int]:  # fmt: skip
        """Sends one command; its data lie at the beginning of memory."""
        words = [0] * 16
        for index, value in (cdw or {}).items():
            words[index] = value
        if slba is not None:
            words[10], words[11] = slba & 0xFFFFFFFF, slba >> 32
        self._tag = (self._tag + 1) % 60_000
        words[0], words[1] = opcode | (PSDT_SGL | flags) << 8 | self._tag << 16, nsid
        if data:
            self.memory[: len(data)] = data
        words[6], words[7], words[8] = self.base & 0xFFFFFFFF, self.base >> 32, length or len(data)
        return self.send(struct.pack("<16I", *words), admin=admin, controller=controller)

    def send(self, raw: bytes, *, admin: bool, controller: Controller | None = None) -> tuple[Capsules, int]:
        """Sends 64 bytes."""
        controller = controller or self.controller
        queue = controller.queues[0] if admin else self.queues[1]
        assert isinstance(queue, Capsules)
        entry = SQE_FAST.unpack(raw)
        tag = entry[0] >> 16 & 0xFFFF
        queue.raw = [struct.unpack("<16I", raw)]
        queue.posted.pop(tag, None)
        (controller.run_admin if admin else controller.run_io)(queue, [entry], self.clock.now_ns)
        return queue, tag

    def do(self, opcode: int, nsid: int = 0, **more: Any) -> Answer:
        """Sends one command and takes its answer, which must have come by the end of a minute."""
        queue, tag = self.start(opcode, nsid, **more)
        if tag not in queue.posted:
            self.clock.advance(60_000_000_000)
        done = queue.posted.pop(tag)
        length = more.get("length", 0)
        return Answer(done.status, done.dw0, bytes(self.memory[:length]))

    def admin(self, opcode: int, nsid: int = 0, **more: Any) -> Answer:
        """An admin command."""
        return self.do(opcode, nsid, admin=True, **more)

    def identify(self, cns: int, nsid: int = 0, *, cntid: int = 0, cdw11: int = 0, **more: Any) -> Answer:
        """Identify."""
        return self.admin(Admin.IDENTIFY, nsid, cdw={10: cns | cntid << 16, 11: cdw11}, length=4096, **more)

    def log(self, page: int, length: int, *, offset: int = 0, rae: bool = False, nsid: int = 0, **more: Any) -> Answer:
        """Get Log Page."""
        numd = (length >> 2) - 1
        words = {10: page | rae << 15 | (numd & 0xFFFF) << 16, 11: numd >> 16, 12: offset & 0xFFFFFFFF}
        return self.admin(Admin.GET_LOG_PAGE, nsid, cdw=words, length=length, **more)


def _refuse(cap: int, writable: bool) -> memoryview:
    raise AssertionError(f"nobody maps {cap} here")


@pytest.fixture
def rig() -> Rig:
    """A controller whose medium answers at once."""
    return Rig()


@pytest.fixture(scope="session")
def make_rig() -> Callable[..., Rig]:
    """Makes controllers with other parameters of the medium."""
    return Rig
