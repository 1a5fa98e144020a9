"""Commands that the controller swallows: who gives up, when, and what the others notice of it."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

import uxk
from uxk.testing import boot
from uxk.uapi.blk import NvmeOp, nvme_status
from uxk_nvme.passthru import Passthrough
from uxk_nvme.spec import Admin, Feature, Io, Status

ATTRIBUTES = "/sys/module/nvme/attributes"
LARGE = 128 << 10
SECOND = 1_000_000_000


def sqe(opcode: int, nsid: int = 0, *, cid: int = 5, **cdw: int) -> bytes:
    words = [0] * 16
    words[0], words[1] = opcode | cid << 16, nsid
    for name, value in cdw.items():
        words[int(name.removeprefix("cdw"))] = value
    return struct.pack("<16I", *words)


def by_hand(opcode: int, length: int = 0, **more: int) -> uxk.Request:
    """An I/O command of the first namespace."""
    return uxk.Request(0, NvmeOp.IO, sqe(opcode, 1, cdw12=max(length // 512 - 1, 0), **more), 1, length)


def admin(opcode: int, cntlid: int = 0, **more: int) -> uxk.Request:
    return uxk.Request(0, NvmeOp.ADMIN, sqe(opcode, **more), cntlid << 16)


def fault(kernel: uxk.Kernel, text: str) -> None:
    kernel.sysfs.write(f"{ATTRIBUTES}/faults", text)


async def statuses(module: uxk.Module, *requests: uxk.Request) -> list[int]:
    return [answer.status for answer in await module.submit_batch(list(requests))]


def disks(kernel: uxk.Kernel) -> list[str]:
    return kernel.sysfs.listdir("/sys/class/block")


@pytest.fixture
def passthroughs(monkeypatch: pytest.MonkeyPatch) -> list[Passthrough]:
    """Those that a test's modules make."""
    made: list[Passthrough] = []
    real = Passthrough.__init__

    def init(self: Passthrough, *given: Any) -> None:
        made.append(self)
        real(self, *given)

    monkeypatch.setattr(Passthrough, "__init__", init)
    return made


def held(passthrough: Passthrough) -> int:
    """Commands that somebody still waits for."""
    queues = [queue for queues in passthrough._queues.values() for queue in queues.values()]
    return sum(len(queue.requests) + len(queue.bounces) + len(queue.controller.lost) for queue in queues)


# --- passthrough ---------------------------------------------------------------------------------------


async def test_swallowed_passthrough_is_given_up_before_the_kernel_does(passthroughs: list[Passthrough]) -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="4MiB")
        fault(kernel, "add opcode=read,flush action=drop")
        await kernel.sleep_ns(1)
        before_ns = kernel.now_ns
        many = [by_hand(Io.READ, LARGE)] * 8 + [by_hand(Io.FLUSH)] * 200
        assert set(await statuses(nvme, *many)) == {errno.ETIMEDOUT}
        assert 20 * SECOND <= kernel.now_ns - before_ns < 25 * SECOND
        assert held(passthroughs[0]) == 0 and nvme.account.timeouts == 0
        fault(kernel, "clear")
        await kernel.sleep_ns(1)
        assert await statuses(nvme, *[by_hand(Io.READ, LARGE)] * 8) == [0] * 8


async def test_passthrough_cannot_take_the_buffers_of_disks() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="4MiB", medium="simple")
        fault(kernel, "add opcode=read lba=0 action=drop")
        await kernel.sleep_ns(1)
        found = await statuses(nvme, *[by_hand(Io.READ, LARGE)] * 40, uxk.Request(0, uxk.Op.READ, b"", LARGE, LARGE))
        assert found == [errno.ETIMEDOUT] * 8 + [errno.EAGAIN] * 32 + [0]


async def test_who_waits_for_a_buffer_holds_up_nobody() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="4MiB")
        fault(kernel, "add opcode=read lba=0-255 action=drop")
        await kernel.sleep_ns(1)
        answers: list[uxk.Completion] = []
        port = kernel.open_port("nvme0n1", answers.extend)
        port.submit_batch([uxk.Request(0, uxk.Op.READ, b"", 0, LARGE) for _ in range(30)])
        before_ns = kernel.now_ns
        others = uxk.Request(0, uxk.Op.FLUSH), uxk.Request(0, uxk.Op.READ, b"", LARGE, 4096)
        assert await statuses(nvme, *others) == [0, 0]
        assert kernel.now_ns == before_ns and not answers
        await kernel.sleep_ns(28 * SECOND)
        assert [answer.status for answer in answers] == [errno.ETIMEDOUT] * 30
        port.close()


async def test_deadlines_do_not_pile_up_while_time_stands_still(passthroughs: list[Passthrough]) -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="4MiB")
        cntlid = (await nvme.submit(b"nqn.host", opcode=NvmeOp.ATTACH)).result
        wait = uxk.Request(0, NvmeOp.WAIT_EVENT, b"", cntlid << 16, 1000)
        for _ in range(50):
            armed = admin(Admin.ASYNC_EVENT, cntlid, cid=1)
            assert await statuses(nvme, armed, admin(Admin.ABORT, cntlid, cid=2, cdw10=1 << 16)) == [0, 0]
            again = uxk.Request(0, NvmeOp.ATTACH, b"nqn.other")
            other = (await nvme.submit_batch([again]))[0].result
            leave = uxk.Request(0, NvmeOp.DETACH, b"", other << 16)
            wait = uxk.Request(0, NvmeOp.WAIT_EVENT, b"", other << 16, 1000)
            assert await statuses(nvme, wait, leave) == [errno.ECANCELED, 0]
        assert kernel.now_ns == 0 and not passthroughs[0]._waits and held(passthroughs[0]) == 0
        wait = uxk.Request(0, NvmeOp.WAIT_EVENT, b"", cntlid << 16, 1000)
        assert await statuses(nvme, wait) == [errno.ETIMEDOUT] and kernel.now_ns == SECOND


async def test_waiting_for_events_is_a_sign_of_life() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        cntlid = (await nvme.submit(b"nqn.host", opcode=NvmeOp.ATTACH)).result
        for n in range(200):
            answer = await nvme.submit(b"nqn.%d" % n, opcode=NvmeOp.ATTACH, check=False)
            if answer.status:
                break
        for _ in range(8):
            wait = uxk.Request(0, NvmeOp.WAIT_EVENT, b"", cntlid << 16, 20_000)
            assert await statuses(nvme, wait) == [errno.ETIMEDOUT]
        assert (await nvme.submit(b"nqn.new", opcode=NvmeOp.ATTACH)).status == 0, "others were silent for longer"
        wait = uxk.Request(0, NvmeOp.WAIT_EVENT, b"", cntlid << 16, 0)
        assert await statuses(nvme, wait) == [errno.ETIMEDOUT]


# --- what is the driver's ------------------------------------------------------------------------------


async def test_nobody_takes_the_drivers_events_away() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="4MiB", namespace_bytes="1MiB")
        aborts = [admin(Admin.ABORT, cdw10=cid << 16) for cid in range(64)]
        assert {answer.result for answer in await nvme.submit_batch(aborts)} == {1}, "none was aborted"
        off = admin(Admin.SET_FEATURES, cdw10=Feature.EVENTS)
        assert await statuses(nvme, off) == [errno.EPERM]
        kernel.sysfs.write(f"{ATTRIBUTES}/namespaces", "add 1MiB")
        await kernel.sleep_ns(1)
        assert disks(kernel) == ["nvme0", "nvme0n1", "nvme0n2"]


async def test_abort_reaches_ones_own_commands_only() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="4MiB", medium="simple", read_ns="10ms")
        aborts = [admin(Admin.ABORT, cdw10=1 | cid << 16) for cid in (*range(8), *range(1015, 1024))]
        own = by_hand(Io.READ, 512, cid=7)
        block = [uxk.Request(0, uxk.Op.READ, b"", n * 512, 512) for n in range(4)]
        answers = await nvme.submit_batch([*block, own, *aborts])
        assert [answer.status for answer in answers[:4]] == [0] * 4 and kernel.now_ns >= 10_000_000
        assert nvme_status(answers[4].result) & 0x7FF == Status.ABORTED
        assert [answer.result for answer in answers[5:]].count(0) == 1


@pytest.mark.parametrize(
    "rule", ["opcode=async-event", "opcode=get-log-page", "opcode=identify", "opcode=identify after=1"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["action=status status=internal-error", "action=drop"])
async def test_one_failed_command_does_not_end_hotplug(rule: str, how: str) -> None:
    if rule == "opcode=async-event" and how == "action=drop":
        return  # nobody can tell a request for events that was swallowed from one that waits
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="8MiB", namespace_bytes="1MiB", namespaces=2, timeout_ns="1s")
        for number in (3, 4):
            fault(kernel, f"add {rule} count=1 {how}")
            await kernel.sleep_ns(1)
            kernel.sysfs.write(f"{ATTRIBUTES}/namespaces", "add 1MiB")
            await kernel.sleep_ns(1)
            assert {"nvme0n1", "nvme0n2"} <= set(disks(kernel)), "what there was stays"
            await kernel.sleep_ns(4 * SECOND)
            assert disks(kernel) == ["nvme0", *(f"nvme0n{n + 1}" for n in range(number))]


async def test_aborts_that_are_swallowed_do_not_stop_aborts() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", timeout_ns="1s", queues=1, queue_entries=8)
        fault(kernel, "add opcode=read action=drop\nadd opcode=abort action=drop count=20")
        await kernel.sleep_ns(1)
        before_ns = kernel.now_ns
        reads = [uxk.Request(0, uxk.Op.READ, b"", 0, 512) for _ in range(7)]
        assert await statuses(nvme, *reads) == [errno.ETIMEDOUT] * 7
        assert kernel.now_ns - before_ns < 20 * SECOND and nvme.account.timeouts == 0
        kernel.sysfs.write(f"{ATTRIBUTES}/faults", "clear")
        await kernel.sleep_ns(1)
        assert await statuses(nvme, *reads) == [0] * 7


# --- disks ---------------------------------------------------------------------------------------------


async def test_a_command_has_its_time_and_a_quarter() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", timeout_ns="4s")
        fault(kernel, "add opcode=read action=drop")
        for delay_ns in (1, 700_000_000, 1_900_000_000):
            await kernel.sleep_ns(delay_ns)
            before_ns = kernel.now_ns
            assert await statuses(nvme, uxk.Request(0, uxk.Op.READ, b"", 0, 512)) == [errno.ETIMEDOUT]
            assert 4 * SECOND <= kernel.now_ns - before_ns <= 5 * SECOND


async def test_a_slow_command_is_aborted_too() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", timeout_ns="2s")
        fault(kernel, "add opcode=write action=delay delay_ns=9s count=1")
        await kernel.sleep_ns(1)
        assert await statuses(nvme, uxk.Request(0, uxk.Op.WRITE, b"x" * 512)) == [errno.ETIMEDOUT]
        assert kernel.now_ns < 3 * SECOND


async def test_a_read_that_is_cut_short_shows_no_others_data() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="4MiB")
        for flags in (0, 1):
            await nvme.submit(b"SECRET".ljust(4096, b"!"), opcode=uxk.Op.WRITE)
            fault(kernel, "add opcode=read action=truncate keep_bytes=10")
            await kernel.sleep_ns(1)
            read = uxk.Request(0, uxk.Op.READ, b"", 0, 4096, flags=flags)
            assert (await nvme.submit_batch([read]))[0].payload == b"SECRET!!!!" + bytes(4086)
            fault(kernel, "clear")
            await kernel.sleep_ns(1)


async def test_a_repeated_read_that_is_cut_short_shows_no_others_data() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="4MiB")
        await nvme.submit(b"SECRET".ljust(4096, b"!"), opcode=uxk.Op.WRITE, offset=LARGE)
        fault(kernel, "add opcode=read action=status status=internal-error count=1\nadd opcode=read action=truncate")
        await kernel.sleep_ns(1)
        assert (await nvme.submit(opcode=uxk.Op.READ, length=4096)).payload == bytes(4096)
