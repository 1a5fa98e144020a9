"""Registers and the admin queue; formats that take time; what outlives the driver."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk_nvme.adminqueue import ADMIN_ENTRIES, AdminQueue
from uxk_nvme.iommu import OFFSET_BITS
from uxk_nvme.kept import KEPT_BYTES, ControllerRecord, Kept, KeptTable
from uxk_nvme.namespaces import NamespaceRecord
from uxk_nvme.pcie import Registers
from uxk_nvme.queues import DOORBELL, HostQueue, Rings, ring_bytes
from uxk_nvme.spec import CRD_SHIFT, SQE_BYTES, Admin, Feature, Io, Log, Status


class Machine:
    """A controller behind registers, and the driver's admin queue."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        del rig.subsystem.controllers[1]
        self.memory = memoryview(bytearray(1 << 16))
        self.base = rig.iommu.pin(self.memory) << OFFSET_BITS
        self.doorbells = memoryview(bytearray(4096))
        self.interrupts: list[int] = []
        self.registers = Registers(rig.subsystem, self.doorbells, self.interrupts.append)
        rings = self.rings(0, ADMIN_ENTRIES, 0)
        self.registers.enable(rings)
        self.admin = AdminQueue(self.registers, HostQueue(rings), self.memory[61440:], self.base + 61440, rig.clock)

    def rings(self, qid: int, entries: int, at: int) -> Rings:
        middle = at + entries * SQE_BYTES
        return Rings(
            qid, entries, self.memory[at:middle], self.memory[middle : at + ring_bytes(entries)], self.doorbells
        )

    def create(self, opcode: int, qid: int, entries: int, dword11: int, address: int = 4096) -> int:
        """Status of a Create or Delete command."""
        found: list[int] = []
        self.admin._issue(
            (opcode, 0, qid | (entries - 1) << 16, dword11),
            self.base + address,
            lambda status, dw0: found.append(status),
        )
        return found[0] & 0x7FF


@pytest.fixture
def machine(rig: Any) -> Machine:
    return Machine(rig)


def test_queues_come_and_go(machine: Machine) -> None:
    assert machine.create(Admin.CREATE_SQ, 1, 8, 1 | 1 << 16) == Status.INVALID_CQ
    assert machine.create(Admin.CREATE_CQ, 0, 8, 3) == Status.INVALID_QID
    assert machine.create(Admin.CREATE_CQ, 5, 8, 3) == Status.INVALID_QID
    assert machine.create(Admin.CREATE_CQ, 1, 1, 3) == Status.INVALID_QUEUE_SIZE
    assert machine.create(Admin.CREATE_CQ, 1, 8192, 3) == Status.INVALID_QUEUE_SIZE
    assert machine.create(Admin.CREATE_CQ, 1, 8, 2) == Status.INVALID_FIELD
    assert machine.create(Admin.CREATE_CQ, 1, 8, 3 | 9 << 16) == Status.INVALID_VECTOR
    assert machine.create(Admin.CREATE_CQ, 1, 4096, 3) == Status.DATA_TRANSFER_ERROR
    assert machine.create(Admin.CREATE_CQ, 1, 8, 3, 8192) == 0
    assert machine.create(Admin.CREATE_CQ, 1, 8, 3) == Status.INVALID_QID
    assert machine.create(Admin.CREATE_SQ, 1, 4, 1 | 1 << 16) == Status.INVALID_QUEUE_SIZE
    assert machine.create(Admin.CREATE_SQ, 2, 8, 1 | 1 << 16) == Status.INVALID_CQ
    assert machine.create(Admin.CREATE_SQ, 1, 8, 1 | 1 << 16) == 0
    assert machine.create(Admin.CREATE_SQ, 1, 8, 1 | 1 << 16) == Status.INVALID_QID
    assert machine.create(Admin.DELETE_CQ, 1, 1, 0) == Status.INVALID_QUEUE_DELETION
    assert machine.create(Admin.DELETE_SQ, 0, 1, 0) == Status.INVALID_QID
    assert machine.create(Admin.DELETE_SQ, 1, 1, 0) == 0
    assert machine.create(Admin.DELETE_CQ, 1, 1, 0) == 0
    assert machine.create(Admin.DELETE_CQ, 1, 1, 0) == Status.INVALID_QID
    assert not machine.registers.controller.has_io_queues


def test_deleting_a_queue_ends_its_commands(machine: Machine) -> None:
    machine.rig.subsystem.set_latency(1_000)
    machine.admin.create_queue(1, 8, machine.base + 8192, machine.base + 4096, lambda page: None)
    host = HostQueue(
        Rings(1, 8, machine.memory[4096:4608], machine.memory[8192 : 8192 + 128], machine.doorbells)
    )  # fmt: skip
    host.put((Io.FLUSH | 0x4000 | 3 << 16 | 1 << 32, 0, 0, 0, 0))
    host.ring()
    machine.registers.doorbell(1, machine.rig.clock.now_ns)
    assert not host.reap()
    assert machine.create(Admin.DELETE_SQ, 1, 1, 0) == 0
    ((_, words),) = host.reap()
    assert words >> 32 & 0xFFFF == 3 and words >> 49 & 0x7FF == Status.ABORTED_SQ_DELETED
    machine.rig.clock.advance(10_000)
    assert not host.reap()


def test_a_wrong_doorbell_is_an_event(machine: Machine) -> None:
    seen: list[int] = []
    machine.admin._issue((Admin.ASYNC_EVENT, 0, 0), 0, lambda status, dw0: seen.append(dw0))
    saved = machine.admin._ring._tail
    DOORBELL.pack_into(machine.doorbells, 0, 99)
    machine.registers.doorbell(0, 0)
    DOORBELL.pack_into(machine.doorbells, 0, saved)
    machine.admin.poll()
    assert seen == [0x00010100]
    assert machine.registers.controller.errors.count == 1


def test_the_driver_hears_of_namespaces(machine: Machine) -> None:
    changes: list[int] = []
    machine.admin.watch_events(lambda: changes.append(1))
    rig = machine.rig
    rig.subsystem.attach(rig.namespace, [], attach=True)
    for expected in (1, 2, 3):
        rig.subsystem.namespace_changed(rig.namespace)
        machine.admin.poll()
        assert len(changes) == expected, "and is told again each time"


def test_format_takes_its_time(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.medium, "format", lambda offset, length, now_ns: now_ns + 5_000_000)
    rig.admin(Admin.SET_FEATURES, cdw={10: Feature.EVENTS, 11: 0x100})
    events, event = rig.start(Admin.ASYNC_EVENT, admin=True)
    queue, tag = rig.start(Admin.FORMAT, 1, cdw={10: 1}, admin=True)
    for _ in range(2):
        assert tag not in queue.posted and event not in events.posted
        read = rig.start(Io.READ, 1, slba=0, cdw={12: 0}, length=512)
        done = read[0].posted.pop(read[1])
        assert done.status & 0x7FF == Status.FORMAT_IN_PROGRESS and not done.status >> 14
        again = rig.start(Admin.FORMAT, 1, admin=True)
        assert again[0].posted.pop(again[1]).status & 0x7FF == Status.FORMAT_IN_PROGRESS
        rig.clock.advance(2_000_000)
    rig.clock.advance(1_000_000)
    assert queue.posted[tag].status == 0 and events.posted[event].dw0 == 0x00040002
    assert rig.do(Io.READ, 1, slba=0, cdw={12: 0}, length=4096).status == 0
    assert rig.log(Log.CHANGED_NAMESPACES, 4).data == b"\1\0\0\0"


# --- what outlives the driver -------------------------------------------------------------------------------

names = st.text(max_size=20)
records = st.builds(
    NamespaceRecord, st.integers(1, 32), st.integers(0, 1 << 60), st.integers(0, 1 << 60), st.sampled_from([9, 12]),
    st.binary(min_size=32, max_size=32), st.booleans(), st.integers(0, 1), st.lists(st.integers(1, 99), max_size=3),
    st.lists(names, max_size=3), st.lists(names, max_size=3),
)  # fmt: skip
tables = st.builds(
    Kept, names, st.integers(0, 1 << 40), st.integers(0, 1 << 15), st.integers(0, 99), st.lists(records, max_size=5),
    st.lists(st.builds(ControllerRecord, st.integers(1, 99), st.integers(0, 99), names, st.binary(max_size=16))),
)  # fmt: skip


@given(st.lists(tables, min_size=1, max_size=5), st.integers(0, KEPT_BYTES - 1), st.binary(max_size=64))
def test_a_torn_write_leaves_the_one_before(versions: list[Kept], at: int, garbage: bytes) -> None:
    memory = memoryview(bytearray(KEPT_BYTES))
    assert KeptTable(memory).load() is None
    for number, kept in enumerate(versions):
        table = KeptTable(memory)
        before = table.load()
        assert before == (versions[number - 1] if number else None)
        table.save(kept)
    whole = bytes(memory)
    memory[at : at + len(garbage)] = garbage[: KEPT_BYTES - at]
    found = KeptTable(memory).load()
    assert found in (versions[-1], versions[-2] if len(versions) > 1 else None)
    memory[:] = whole
    assert KeptTable(memory).load() == versions[-1]


def test_the_layout_of_commands(make_rig: Callable[..., Any]) -> None:
    rig = make_rig()
    queue, tag = rig.start(Io.FLUSH, 0xFFFFFFFF)
    assert queue.posted[tag] == (tag, 0, 0)
    assert struct.unpack_from("<I", rig.identify(2).data) == (1,)


def test_hosts_that_know_of_delays_are_told_to_wait(rig: Any) -> None:
    assert int.from_bytes(rig.identify(1).data[128:130], "little") == 1
    rig.namespace.busy_until_ns = 1 << 60
    rig.namespace.refresh()
    for acre in (0, 1):
        data = bytes((acre,)).ljust(512, b"\0")
        assert rig.admin(Admin.SET_FEATURES, cdw={10: Feature.HOST_BEHAVIOUR}, data=data).status == 0
        answer = rig.do(Io.READ, 1, slba=0, cdw={12: 0}, length=512)
        assert answer.code == Status.FORMAT_IN_PROGRESS and answer.status >> CRD_SHIFT & 3 == acre
        assert rig.admin(Admin.GET_FEATURES, cdw={10: Feature.HOST_BEHAVIOUR}, length=512).data[0] == acre
    bad = rig.admin(Admin.SET_FEATURES, cdw={10: Feature.HOST_BEHAVIOUR}, data=b"\2".ljust(512))
    assert bad.code == Status.INVALID_FIELD
