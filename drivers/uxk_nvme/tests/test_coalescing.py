"""Completions that wait for others: feature 08h, feature 09h, parameter coalesce_ns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.testing import boot
from uxk.uapi.blk import NvmeOp
from uxk_nvme.later import ENDLESS, Later
from uxk_nvme.queues import Done, Item
from uxk_nvme.spec import Admin, Feature, Io

UNIT_NS = 100_000


def coalesce(rig: Any, time: int, threshold: int) -> None:
    """Feature 08h; ``threshold`` is a number of completions."""
    answer = rig.admin(Admin.SET_FEATURES, cdw={10: Feature.COALESCING, 11: time << 8 | threshold - 1})
    assert answer.status == 0


def arrivals(rig: Any, delays_ns: Sequence[int]) -> list[int]:
    """When the completions of reads come that are sent so long one after the other; from the first one on."""
    queue, begun_ns = rig.queues[1], rig.clock.now_ns
    found: dict[int, int] = {}

    def post(items: Sequence[Item]) -> None:
        found.update((item.tag if isinstance(item, Done) else item, rig.clock.now_ns - begun_ns) for item in items)

    queue.post = post
    tags = []
    for delay_ns in delays_ns:
        rig.clock.advance(delay_ns)
        tags.append(rig.start(Io.READ, 1, cdw={12: 0}, slba=0, length=512)[1])
    rig.clock.advance(100 * UNIT_NS)
    return [found[tag] for tag in tags]


@pytest.fixture
def rig(make_rig: Callable[..., Any]) -> Any:
    made = make_rig(medium="simple", read_ns=20_000, lanes=8)
    made.clock.now_ns = 10 * UNIT_NS
    return made


def test_without_it_each_comes_when_it_is_done(rig: Any) -> None:
    times = arrivals(rig, [0, 1_000, 1_000, 1_000])
    assert len(set(times)) == 4 and max(times) < UNIT_NS // 2
    coalesce(rig, 0, 8)
    assert len(set(arrivals(rig, [0, 1_000, 1_000, 1_000]))) == 4, "no time"


def test_they_come_together(rig: Any) -> None:
    coalesce(rig, 1, 256)
    rig.clock.now_ns = 20 * UNIT_NS
    times = arrivals(rig, [0, 1_000, 1_000, UNIT_NS])
    assert times[:3] == [UNIT_NS] * 3 and times[3] == 2 * UNIT_NS
    coalesce(rig, 3, 256)
    rig.clock.now_ns = 30 * UNIT_NS
    assert arrivals(rig, [0, 1_000, UNIT_NS]) == [3 * UNIT_NS] * 3


def test_enough_of_them_wait_no_longer(rig: Any) -> None:
    coalesce(rig, 1, 2)
    rig.clock.now_ns = 20 * UNIT_NS
    first, second, third, fourth, fifth = arrivals(rig, [0, 1_000, 1_000, 1_000, 1_000])
    assert first == second < third == fourth < fifth == UNIT_NS
    coalesce(rig, 1, 1)
    rig.clock.now_ns = 30 * UNIT_NS
    assert max(arrivals(rig, [0, 1_000])) < UNIT_NS // 2, "one is enough"


def test_a_vector_may_be_left_out(rig: Any) -> None:
    coalesce(rig, 1, 256)
    assert rig.admin(Admin.SET_FEATURES, cdw={10: Feature.VECTOR, 11: 1 | 1 << 16}).status == 0
    assert max(arrivals(rig, [0, 1_000])) < UNIT_NS // 2
    assert rig.admin(Admin.SET_FEATURES, cdw={10: Feature.VECTOR, 11: 1}).status == 0
    rig.clock.now_ns = 30 * UNIT_NS
    assert arrivals(rig, [0, 1_000]) == [UNIT_NS] * 2


def test_each_controller_has_its_own(rig: Any) -> None:
    other = rig.host()
    rig.admin(Admin.SET_FEATURES, cdw={10: Feature.COALESCING, 11: 1 << 8 | 255}, controller=other)
    assert max(arrivals(rig, [0, 1_000])) < UNIT_NS // 2


class Sink:
    """A queue that notes what comes when."""

    qid = 1
    peers = None

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.batches: list[tuple[int, list[int]]] = []

    def post(self, items: Sequence[Item]) -> None:
        if items:
            self.batches.append((self._clock.now_ns, [item.tag if isinstance(item, Done) else item for item in items]))


@given(
    sent=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 30), st.integers(0, 1), st.integers(0, 4)), max_size=60),
    window_ns=st.integers(1, 16), most=st.sampled_from([1, 2, 3, 7, ENDLESS]),
)  # fmt: skip
def test_nothing_comes_early_late_or_twice(
    rig_clock: Callable[[], Any], sent: list[tuple[int, int, int, int]], window_ns: int, most: int
) -> None:
    clock = rig_clock()
    turns: list[int] = []
    later = Later(clock, lambda: turns.append(clock.now_ns))
    sinks = [Sink(clock), Sink(clock)]
    dues: dict[int, tuple[int, int]] = {}
    for tag, (pause_ns, delay_ns, which, kind) in enumerate(sent):
        clock.advance(pause_ns)
        due_ns = clock.now_ns + delay_ns
        dues[tag] = due_ns, 0 if kind == 0 else window_ns
        sink: Any = sinks[which]
        if kind == 0:
            bucket = later.bucket(due_ns, sink)
        else:
            bucket = later.together(due_ns, sink, window_ns, ENDLESS if kind == 1 else most)
        bucket.append(tag)
        if tag % 11 == 10 and later.take(sink, tag):
            del dues[tag]
    clock.advance(10_000)
    came = {tag: at_ns for sink in sinks for at_ns, tags in sink.batches for tag in tags}
    assert len(came) == sum(len(tags) for sink in sinks for _, tags in sink.batches)
    assert came.keys() == dues.keys()
    for tag, (due_ns, patience_ns) in dues.items():
        assert due_ns <= came[tag] <= due_ns + patience_ns
    assert not later._last and later.busy_ns(clock.now_ns) <= clock.now_ns


@pytest.fixture(scope="session")
def rig_clock(make_rig: Callable[..., Any]) -> Callable[[], Any]:
    kind = type(make_rig().clock)
    return lambda: kind()


@pytest.mark.parametrize("how", ["parameter", "feature"])
async def test_fewer_turns(how: str) -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", medium="simple")
        writes = [uxk.Request(0, uxk.Op.WRITE, bytes(4096), n * 4096, 4096) for n in range(64)]
        await nvme.submit_batch(writes)
        alone = nvme.account.turns
        if how == "parameter":
            kernel.sysfs.write("/sys/module/nvme/parameters/coalesce_ns", "100us")
        else:
            words = [Admin.SET_FEATURES, *[0] * 9, Feature.COALESCING, 1 << 8 | 255, *[0] * 4]
            command = b"".join(word.to_bytes(4, "little") for word in words)
            assert (await nvme.submit(command, opcode=NvmeOp.ADMIN)).result == 0
        before = nvme.account.turns
        await nvme.submit_batch(writes)
        assert nvme.account.turns - before < 8 < alone and kernel.now_ns % UNIT_NS == 0
