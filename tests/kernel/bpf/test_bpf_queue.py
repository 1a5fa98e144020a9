"""Programs on a device's queue: filter, account, redirect, answer; stacked, and gone when they fault."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

import uxk
from uxk.bpf.asm import assemble
from uxk.bpf.errors import VerifierError
from uxk.bpf.maps import ArrayMap, InstanceArrayMap
from uxk.errors import RingFull, UsageError
from uxk.kernel.bpf.queue import SPEC, TARGETS_MAX

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

    manifest = uxk.Manifest(name="bq_disk", version="1", budget=uxk.Budget(queue_depth=8))

    def setup(self, ctx: uxk.Context) -> None:
        self.served = 0

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, result=request.offset)


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
        disk = await kernel.insmod(Disk)
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
        assert (point.passed, point.answered) == (3, 1) and disk.account.requests == 3
        for program in list(kernel.bpf):
            kernel.bpf.detach(program)
        assert kernel.devices.get("bq_disk0").gate is point.below
        (cid,) = one.send(uxk.Request(0, WRITE, offset=9))
        await kernel.run()
        assert one.answers[cid] == (0, 9)


async def test_redirect() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        disk, other = await kernel.insmod(Disk), await kernel.insmod(Disk, instance="other")
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
        assert (disk.account.requests, other.account.requests) == (2, 2)
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
