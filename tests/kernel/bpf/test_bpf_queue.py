"""Programs on a device's queue: filter, account, redirect, answer; stacked, and gone when they fault."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import ClassVar

import pytest

import uxk
from uxk.bpf.asm import assemble
from uxk.bpf.errors import VerifierError
from uxk.bpf.maps import ArrayMap, InstanceArrayMap
from uxk.errors import RingFull, UsageError
from uxk.kernel.bpf.queue import SPEC, TARGETS_MAX
from uxk.subsystems.blk.layer import BlockLayer
from uxk.testing.kernels import crash

READ, WRITE = uxk.Op.READ, uxk.Op.WRITE
READ_ONLY = assemble(f"""
    r0 = 0
    r2 = *(u64 *)(r1 + 0)
    if r2 != {int(WRITE)} goto out
    *(u64 *)(r1 + 56) = {errno.EROFS}
    r0 = 1
out:
    exit
""")
COUNT = assemble("""
    r6 = *(u64 *)(r1 + 40)
    *(u32 *)(r10 - 4) = 0
    r1 = map[fd:0]
    r2 = r10
    r2 += -4
    call 1
    if r0 == 0 goto out
    lock *(u64 *)(r0 + 0) += r6
out:
    r0 = 0
    exit
""")
MIRROR = assemble("""
    r0 = 0
    r2 = *(u64 *)(r1 + 32)
    if r2 s< 4096 goto out
    r0 = 2
out:
    exit
""")
"""Requests from 4096 on go to the first target."""


class Disk(uxk.Extension):
    """Answers every request with its offset."""

    manifest = uxk.Manifest(
        name="bq_disk", version="1", budget=uxk.Budget(queue_depth=8), restart=uxk.RestartPolicy(mode="temporary"),
    )  # fmt: skip

    served: ClassVar[dict[str, list[int]]] = {}
    """Offsets, by instance."""

    def setup(self, ctx: uxk.Context) -> None:
        self.served[ctx.name] = []

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            self.served[ctx.name].append(request.offset)
            ctx.complete(request, result=request.offset)


@pytest.fixture(autouse=True)
def nothing_served() -> None:
    Disk.served.clear()


class Client:
    """A port, and what came back."""

    def __init__(self, kernel: uxk.Kernel, device: str = "bq_disk0") -> None:
        self.answers: dict[int, tuple[int, int]] = {}
        self.port = kernel.open_port(device, self._on_answers)

    def _on_answers(self, completions: list[uxk.Completion]) -> None:
        for each in completions:
            assert each.cid not in self.answers
            self.answers[each.cid] = (each.status, each.result)

    def send(self, *requests: uxk.Request) -> list[int]:
        self.port.submit_batch(requests)
        return [request.cid for request in requests]


def attached(kernel: uxk.Kernel, code: bytes, **maps: object) -> None:
    held = {int(number.removeprefix("m")): kernel.bpf.add_map(made) for number, made in maps.items()}  # type: ignore[arg-type]
    kernel.bpf.attach(kernel.bpf.load(code, "queue/bq_disk0", held))


async def test_filter_and_account_are_stacked() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Disk)
        count = InstanceArrayMap(8, 1, "bytes")
        attached(kernel, READ_ONLY)
        attached(kernel, COUNT, m0=count)
        one, two = Client(kernel), Client(kernel)
        cids = one.send(*(uxk.Request(0, op, offset=at, length=512) for at, op in enumerate((READ, WRITE, READ))))
        two.send(uxk.Request(0, READ, length=100))
        assert not one.answers
        await kernel.run()
        assert [one.answers[cid] for cid in cids] == [(0, 0), (errno.EROFS, 0), (0, 2)]
        assert sorted(int.from_bytes(v, "little") for v in count.of(0).values()) == [0, 100, 1024]
        point = kernel.queues.point("bq_disk0")
        assert (point.passed, point.answered) == (3, 1) and Disk.served == {"bq_disk": [0, 2, 0]}
        for program in list(kernel.bpf):
            kernel.bpf.detach(program)
        assert kernel.agents["bq_disk"].requests.judge is None
        (cid,) = one.send(uxk.Request(0, WRITE, offset=9))
        await kernel.run()
        assert one.answers[cid] == (0, 9)


async def test_redirect() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Disk)
        await kernel.insmod(Disk, instance="other")
        attached(kernel, MIRROR)
        client = Client(kernel)
        (lost,) = client.send(uxk.Request(0, READ, offset=5000))
        await kernel.run()
        assert client.answers[lost] == (errno.ENODEV, 0)
        target = next(name for name, each in kernel.devices.devices.items() if each.agent.name == "other")
        kernel.queues.redirect_to("bq_disk0", [target])
        cids = client.send(*(uxk.Request(0, READ, offset=at) for at in (0, 5000, 1, 6000)))
        held = uxk.Request(0, READ, offset=7000, region=5)
        cids += client.send(held)
        await kernel.run()
        assert [client.answers[cid] for cid in cids] == [(0, 0), (0, 5000), (0, 1), (0, 6000), (errno.EXDEV, 0)]
        assert Disk.served == {"bq_disk": [0, 1], "other": [5000, 6000]}
        with pytest.raises(UsageError, match="to itself"):
            kernel.queues.redirect_to("bq_disk0", ["bq_disk0"])
        with pytest.raises(UsageError, match=f"at most {TARGETS_MAX}"):
            kernel.queues.redirect_to("bq_disk0", [target] * (TARGETS_MAX + 1))


async def test_what_does_not_fit_is_refused_as_without_a_program() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Disk)
        attached(kernel, assemble("r0 = 0\nexit"))
        client = Client(kernel)
        with pytest.raises(RingFull):
            client.send(*(uxk.Request(0, READ) for _ in range(17)))
        cids = [cid for _ in range(2) for cid in client.send(*(uxk.Request(0, READ) for _ in range(8)))]
        await kernel.run()
        assert sorted(client.answers) == cids == list(range(1, 17))


async def test_a_program_that_faults_is_taken_off() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Disk)
        attached(kernel, COUNT, m0=ArrayMap(8, 1))
        (program,) = kernel.bpf
        client = Client(kernel)
        program.program.machine.helpers = {1: lambda *_: 1 // 0}
        (cid,) = client.send(uxk.Request(0, READ, offset=3))
        await kernel.run()
        assert client.answers[cid] == (0, 3) and not program.attached and program.faults == 1


async def test_the_charged_clock_pays_for_answers() -> None:
    async with uxk.Kernel(seed=1, clock="charged") as kernel:
        await kernel.insmod(Disk)
        attached(kernel, READ_ONLY)
        (program,) = kernel.bpf
        client, begun_ns = Client(kernel), kernel.now_ns
        client.send(uxk.Request(0, WRITE))
        while not client.answers:
            await kernel.sleep_ns(1)
        assert kernel.now_ns == begun_ns + program.cost_ns


async def test_points_are_devices() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Disk)
        with pytest.raises(UsageError, match=r"no such device.*bq_disk0"):
            kernel.bpf.load(READ_ONLY, "queue/bq_disk")
        with pytest.raises(VerifierError, match="insn"):
            kernel.bpf.load(assemble("r0 = 99\nexit"), "queue/bq_disk0")
        attached(kernel, READ_ONLY)
        (program,) = kernel.bpf
        assert program.spec == SPEC
        await kernel.rmmod(module.name)
        assert not program.attached and "queue/bq_disk0" not in kernel.bpf.points


async def test_no_port_goes_past_a_program_whenever_it_was_opened() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Disk)
        client, answers = Client(kernel), list[int]()
        direct = module.open_port(lambda done: answers.extend(each.status for each in done))
        attached(kernel, READ_ONLY)
        cids = client.send(uxk.Request(0, WRITE), uxk.Request(0, READ, offset=3), uxk.Request(0, WRITE))
        direct.submit(uxk.Request(0, WRITE))
        await kernel.run()
        assert [client.answers[cid] for cid in cids] == [(errno.EROFS, 0), (0, 3), (errno.EROFS, 0)]
        assert answers == [errno.EROFS] and Disk.served == {"bq_disk": [3]}


async def test_a_program_stays_where_it_is_when_layers_come_and_go_above_it() -> None:
    class Sized(Disk):
        manifest = uxk.Manifest(name="bq_disk", version="1", driver_class="block")

        def setup(self, ctx: uxk.Context) -> None:
            super().setup(ctx)
            ctx.add_device("bq_disk0", capacity_bytes=str(1 << 20))

    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Sized)
        attached(kernel, READ_ONLY)
        (program,) = kernel.bpf
        for layered in (True, False, True):
            layer = BlockLayer(kernel)
            assert layer.disks
            kernel.bpf.detach(program)
            kernel.bpf.attach(program)
            if not layered:
                layer.close()
            client = Client(kernel)
            (cid,) = client.send(uxk.Request(0, WRITE, payload=bytes(512)))
            await kernel.run()
            assert client.answers[cid][0] == errno.EROFS
            if layered:
                layer.close()


async def test_on_the_charged_clock_requests_wait_for_their_programs_and_nothing_overtakes() -> None:
    async def order(*, programs: int) -> tuple[list[int], int]:
        async with uxk.Kernel(seed=1, clock="charged", costs_ns={"bq_disk": 10}) as kernel:
            await kernel.insmod(Disk)
            for _ in range(programs):
                attached(kernel, COUNT, m0=ArrayMap(8, 1))
            one, two = Client(kernel), Client(kernel)
            one.send(*(uxk.Request(0, READ, offset=at) for at in range(5)))
            two.send(uxk.Request(0, READ, offset=9))
            begun_ns, cost_ns = kernel.now_ns, sum(each.cost_ns for each in kernel.bpf)
            assert not programs or not kernel.agents["bq_disk"].requests.inflight
            while not two.answers:
                await kernel.sleep_ns(1)
            taken_ns = kernel.now_ns - begun_ns
            assert taken_ns >= 6 * cost_ns and (kernel.agents["bq_disk"].account.inflight, len(one.answers)) == (0, 5)
            return Disk.served["bq_disk"], taken_ns

    (served, without_ns), (judged, with_ns) = await order(programs=0), await order(programs=2)
    assert served == judged == [0, 1, 2, 3, 4, 9] and with_ns > without_ns


async def test_what_is_redirected_meets_the_programs_there_and_goes_no_further() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Disk)
        await kernel.insmod(Disk, instance="other")
        bpf, client = kernel.bpf, Client(kernel)
        attached(kernel, MIRROR)
        for code in (READ_ONLY, MIRROR):
            bpf.attach(bpf.load(code, "queue/other"))
        kernel.queues.redirect_to("bq_disk0", ["other"])
        kernel.queues.redirect_to("other", ["bq_disk0"])
        cids = client.send(uxk.Request(0, READ, offset=4096), uxk.Request(0, WRITE, offset=4096))
        await kernel.run()
        assert [client.answers[cid][0] for cid in cids] == [errno.ELOOP, errno.EROFS]


@pytest.mark.parametrize("victim", ["bq_disk", "other"])
async def test_a_driver_that_goes_while_requests_are_elsewhere(victim: str) -> None:
    class Slow(Disk):
        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            ctx.call_later_ns(10_000, lambda _: super(Slow, self).on_batch(ctx, requests))

    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Disk)
        await kernel.insmod(Slow, instance="other")
        attached(kernel, MIRROR)
        kernel.queues.redirect_to("bq_disk0", ["other"])
        client = Client(kernel)
        cids = client.send(*(uxk.Request(0, READ, offset=5000) for _ in range(3)))
        await kernel.sleep_ns(5_000)
        crash(kernel, victim)
        await kernel.sleep_ns(100_000)
        assert [client.answers[cid][0] for cid in cids] == [errno.EIO] * 3 and not kernel.machine.outstanding
        if victim == "other":
            await kernel.rmmod("bq_disk")
        assert not kernel.queues.links


async def test_clients_come_and_go_and_a_filter_with_values_for_each_stays() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(Disk)
        counts = InstanceArrayMap(8, 1, "bytes", instances_max=4)
        attached(kernel, READ_ONLY)
        attached(kernel, COUNT, m0=counts)
        clients = [Client(kernel) for _ in range(10)]
        for client in clients:
            client.send(uxk.Request(0, READ, length=7))
        await kernel.run()
        assert len(list(kernel.bpf)) == 2 == len(kernel.queues.point("bq_disk0").programs)
        values = {who: int.from_bytes(value, "little") for who, value in counts.of(0).items()}
        assert sum(values.values()) == 70 and len(values) == 4 and values[0] == 49
