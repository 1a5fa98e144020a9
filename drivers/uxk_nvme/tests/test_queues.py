"""Rings: wrap, phase, back-pressure, doorbells; the IOMMU."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from uxk_nvme.counters import Counters
from uxk_nvme.iommu import OFFSET_BITS, REMEMBERED_MAX, Iommu
from uxk_nvme.queues import DOORBELL, DeviceQueue, Done, HostQueue, Rings, ring_bytes
from uxk_nvme.spec import SQE_BYTES, Refused, Status


def rings(entries: int, qid: int = 1) -> Rings:
    memory = memoryview(bytearray(ring_bytes(entries)))
    return Rings(qid, entries, memory[: entries * SQE_BYTES], memory[entries * SQE_BYTES :], memoryview(bytearray(64)))


class Ring(RuleBasedStateMachine):
    """Both ends of one queue pair, against two deques."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 5
        shared = rings(self.entries)
        self.interrupts: list[int] = []
        self.host, self.device = HostQueue(shared), DeviceQueue(shared, self.interrupts.append)
        self.sent: deque[int] = deque()
        self.working: deque[int] = deque()
        self.posted: deque[tuple[int, int, int]] = deque()
        self.in_ring = 0
        self.next = 0

    def free(self) -> int:
        return self.entries - 1 - len(self.sent)

    @rule(count=st.integers(1, 4), ring=st.booleans())
    def put(self, count: int, ring: bool) -> None:
        count = min(count, self.free())
        flat: list[int] = []
        for _ in range(count):
            self.next = self.next + 1 & 0xFFFF
            flat += (self.next << 16 | 2 | 0x4000, self.next * 3, 512, self.next * 7, 9)
            self.sent.append(self.next)
        if count:
            self.host.put(flat)
        if ring:
            self.host.ring()
            self.fetch()

    def fetch(self) -> None:
        entries = self.device.fetch()
        for index, entry in enumerate(entries):
            number = self.sent.popleft()
            assert entry == (number << 16 | 2 | 0x4000, number * 3, 512, number * 7, 9)
            words = self.device.dwords(index)
            assert words[0] == entry[0] and words[10] == number * 7 and words[12] == 9
            self.working.append(number)

    @precondition(lambda self: self.working)
    @rule(count=st.integers(1, 7), failed=st.booleans(), dw0=st.integers(0, 2**32 - 1))
    def post(self, count: int, failed: bool, dw0: int) -> None:
        items: list[Any] = []
        for _ in range(min(count, len(self.working))):
            tag = self.working.popleft()
            items.append(Done(tag, 0x4281, dw0) if failed else tag)
            self.posted.append((tag, 0x4281 if failed else 0, dw0 if failed else 0))
        self.device.post(items)

    @rule()
    def reap(self) -> None:
        while taken := self.host.reap():
            for dw0, words in taken:
                tag, status, expected = self.posted.popleft()
                assert (words >> 32 & 0xFFFF, words >> 49, dw0) == (tag, status, expected)
                assert words >> 16 & 0xFFFF == 1
            self.device.head_moved()
        assert not self.posted, "all that was posted arrives once there is room"

    @precondition(lambda self: self.sent or self.working or self.posted)
    @rule()
    def reap_plain(self) -> None:
        under_way = len(self.sent) + len(self.working) + len(self.posted)
        plain, more = self.host.reap_plain(under_way)
        assert [(tag, 0, 0) for tag in plain] == [self.posted.popleft() for _ in plain]
        assert more or not self.posted, "what is left is told of"
        self.device.head_moved()

    @invariant()
    def interrupts_name_the_queue(self) -> None:
        assert set(self.interrupts) <= {1}


TestRing = Ring.TestCase


def test_a_doorbell_beyond_the_queue_is_refused() -> None:
    shared = rings(4)
    device = DeviceQueue(shared, lambda qid: None)
    DOORBELL.pack_into(shared.doorbells, 8, 4)
    with pytest.raises(Refused):
        device.fetch()
    DOORBELL.pack_into(shared.doorbells, 8, 3)
    assert len(device.fetch()) == 3


def test_one_interrupt_for_each_batch() -> None:
    shared = rings(64)
    seen: list[int] = []
    device = DeviceQueue(shared, seen.append)
    device.post(list(range(32)))
    device.post([40])
    device.post([])
    assert seen == [1, 1]


# --- IOMMU --------------------------------------------------------------------------------------------


def test_addresses_resolve_only_where_they_may() -> None:
    memory = bytearray(4096)
    table = Iommu(lambda cap, writable: memoryview(memory) if writable else memoryview(memory).toreadonly())
    handle = table.handle(7, False)
    assert table.handle(7, False) == handle != table.handle(7, True) == table.handle(7, False)
    address = handle << OFFSET_BITS
    assert len(table.resolve(address, 4096, writable=False)) == 4096
    for bad, length, writable in (
        (address, 4096, True),
        (address + 1, 4096, False),
        (0, 1, False),
        (99 << 40, 1, False),
    ):
        with pytest.raises(Refused) as caught:
            table.resolve(bad, length, writable=writable)
        assert caught.value.status & 0x7FF == Status.DATA_TRANSFER_ERROR


def test_a_mapping_that_was_ended_is_made_anew() -> None:
    views = [memoryview(bytearray(8)) for _ in range(2)]
    calls = iter(views)
    table = Iommu(lambda cap, writable: next(calls))
    first = table.handle(1, True)
    views[0].release()
    with pytest.raises(Refused):
        table.resolve(first << OFFSET_BITS, 1, writable=True)
    second = table.handle(1, True)
    assert table.resolve(second << OFFSET_BITS, 8, writable=True) == bytes(8)


@given(st.lists(st.integers(1, 2 * REMEMBERED_MAX), min_size=1, max_size=200))
def test_a_handle_is_not_given_to_another_within_a_batch(caps: list[int]) -> None:
    table = Iommu(lambda cap, writable: memoryview(cap.to_bytes(4, "little")))
    for batch in range(3):
        handles = {cap: table.handle(cap + batch, False) for cap in caps}
        for cap, handle in handles.items():
            assert table.resolve(handle << OFFSET_BITS, 4, writable=False) == (cap + batch).to_bytes(4, "little")
        table.settle()
    assert len(table.views) <= REMEMBERED_MAX + len(set(caps)) + 1


def test_many_more_mappings_than_are_remembered() -> None:
    table = Iommu(lambda cap, writable: memoryview(cap.to_bytes(4, "little")))
    for cap in range(10 * REMEMBERED_MAX):
        handle = table.handle(cap, False)
        assert table.resolve(handle << OFFSET_BITS, 4, writable=False) == cap.to_bytes(4, "little")
        table.settle()
    assert len(table.views) <= REMEMBERED_MAX + 3


# --- counters -------------------------------------------------------------------------------------------


def test_latency_histogram() -> None:
    counters = Counters()
    counters.latencies += [(1, 1), (2, 1), (3, 1), (1000, 1), (1 << 60, 1), (-9, 0)] * 1000
    counters.fold()
    assert not counters.latencies
    assert counters.histogram() == {2: 1000, 4: 2000, 1024: 1000, 1 << 47: 1000}
