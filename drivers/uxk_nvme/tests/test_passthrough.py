"""Commands handed over whole: several hosts' controllers, events, and what nobody may ask."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.testing import Ledger, boot, crash
from uxk.uapi.blk import NvmeOp, nvme_status
from uxk_nvme.medium import NoneMedium
from uxk_nvme.spec import Admin, Feature, Io, Log, Status, Vendor

PRIMARY = 1
NOTICE = 0x00040002


def sqe(opcode: int, nsid: int = 0, *, cid: int = 5, **cdw: int) -> bytes:
    words = [0] * 16
    words[0], words[1] = opcode | cid << 16, nsid
    for name, value in cdw.items():
        words[int(name.removeprefix("cdw"))] = value
    return struct.pack("<16I", *words)


def identify(cns: int, nsid: int = 0) -> uxk.Request:
    return uxk.Request(0, NvmeOp.ADMIN, sqe(Admin.IDENTIFY, nsid, cdw10=cns), 0, 4096)


def attach_payload(name: str = "nqn.2014-08.org.nvmexpress:host") -> bytes:
    return name.encode().ljust(256, b"\0") + bytes(range(16))


async def one(module: uxk.Module, request: uxk.Request) -> uxk.Completion:
    return (await module.submit_batch([request]))[0]


class Host:
    """A client with a port of its own: its requests carry a number."""

    def __init__(self, kernel: uxk.Kernel) -> None:
        agent = kernel.agents["nvme"]
        self._kernel = kernel
        self.answers: dict[int, uxk.Completion] = {}
        self.port = agent.open_port("host", self._on_completions, tagged=True)
        self.cntlid = 0

    def _on_completions(self, completions: list[uxk.Completion]) -> None:
        self.answers.update((completion.cid, completion) for completion in completions)

    def start(self, op: int, payload: bytes = b"", *, qid: int = 0, cntlid: int = -1, length: int = 0) -> int:
        number = self.cntlid if cntlid < 0 else cntlid
        return self.port.submit(uxk.Request(0, op, payload, number << 16 | qid, length))

    async def do(self, op: int, payload: bytes = b"", **more: Any) -> uxk.Completion:
        cid = self.start(op, payload, **more)
        for _ in range(40):
            if cid in self.answers:
                break
            await self._kernel.sleep_ns(1_000_000_000)
        return self.answers.pop(cid)

    async def attach(self, name: str = "nqn.2014-08.org.nvmexpress:host") -> int:
        answer = await self.do(NvmeOp.ATTACH, attach_payload(name), cntlid=0)
        assert answer.status == 0
        self.cntlid = answer.result
        return self.cntlid

    async def feature(self, feature: int, value: int) -> None:
        answer = await self.do(NvmeOp.ADMIN, sqe(Admin.SET_FEATURES, cdw10=feature, cdw11=value))
        assert answer.result == 0

    async def log(self, page: int, length: int) -> bytes:
        words = page | (length // 4 - 1) << 16
        return (await self.do(NvmeOp.ADMIN, sqe(Admin.GET_LOG_PAGE, cdw10=words), length=length)).payload


async def test_identify_by_anybody() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", serial="S-1")
        answer = await one(nvme, identify(1))
        assert (answer.status, answer.result, answer.payload[4:7]) == (0, 0, b"S-1")
        answer = await one(nvme, identify(0, 99))
        assert answer.status == 0 and nvme_status(answer.result) & 0x7FF == Status.INVALID_NAMESPACE
        assert answer.payload == b""


async def test_io_by_hand() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        written = sqe(Io.WRITE, 1, cdw10=8, cdw12=7) + b"p" * 4096
        assert (await one(nvme, uxk.Request(0, NvmeOp.IO, written, 1))).result == 0
        answer = await one(nvme, uxk.Request(0, NvmeOp.IO, sqe(Io.READ, 1, cdw10=8, cdw12=7), 1, 4096))
        assert answer.payload == b"p" * 4096
        assert (await nvme.submit(opcode=uxk.Op.READ, offset=4096, length=4096)).payload == b"p" * 4096


async def test_what_is_wrong_with_a_request() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        long = sqe(Io.WRITE, 1, cdw12=255) + bytes((128 << 10) + 1)
        requests = [
            uxk.Request(0, NvmeOp.ADMIN, b"x" * 63), uxk.Request(0, NvmeOp.ADMIN, sqe(6), 1),
            uxk.Request(0, NvmeOp.IO, sqe(2), 5000), uxk.Request(0, NvmeOp.ADMIN, sqe(6), 1 << 40),
            uxk.Request(0, NvmeOp.ADMIN, sqe(6), 77 << 16), uxk.Request(0, NvmeOp.IO, long, 1),
            uxk.Request(0, NvmeOp.IO, sqe(2, 1), 1, (128 << 10) + 1), uxk.Request(0, NvmeOp.IO, sqe(2, 1), 1, 512, 99),
            uxk.Request(0, NvmeOp.ATTACH, b""), uxk.Request(0, NvmeOp.ATTACH, bytes(300)),
            uxk.Request(0, NvmeOp.DETACH, b"", PRIMARY << 16), uxk.Request(0, NvmeOp.DETACH, b"", 9 << 16),
            uxk.Request(0, NvmeOp.WAIT_EVENT, b"", 9 << 16), uxk.Request(0, NvmeOp.ADMIN, sqe(6), device=1),
        ]  # fmt: skip
        assert [(await one(nvme, each)).status for each in requests] == [
            errno.EINVAL, errno.EINVAL, errno.EINVAL, errno.EINVAL, errno.ENODEV, errno.EINVAL, errno.EINVAL,
            errno.EBADF, errno.EINVAL, errno.EINVAL, errno.EPERM, errno.ENODEV, errno.ENODEV, errno.ENOTTY,
        ]  # fmt: skip


async def test_what_is_the_drivers_stays_the_drivers() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        for opcode in (Admin.DELETE_SQ, Admin.DELETE_CQ, Admin.CREATE_SQ, Admin.CREATE_CQ):
            answer = await one(nvme, uxk.Request(0, NvmeOp.ADMIN, sqe(opcode, cdw10=1, cdw11=3)))
            assert nvme_status(answer.result) & 0x7FF == Status.INVALID_OPCODE
        assert (await one(nvme, uxk.Request(0, NvmeOp.ADMIN, sqe(Admin.ASYNC_EVENT)))).status == errno.EPERM
        assert (await one(nvme, uxk.Request(0, NvmeOp.WAIT_EVENT, b"", 0, 1000))).status == errno.EPERM
        assert (await nvme.submit(opcode=uxk.Op.READ, length=512)).status == 0


async def test_commands_behind_requests_that_wait() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", queues=1, queue_entries=2)
        batch = [uxk.Request(0, uxk.Op.WRITE, bytes(512), n * 512, 512) for n in range(50)]
        answers = await nvme.submit_batch([*batch, identify(1), *batch, identify(1)])
        assert {answer.status for answer in answers} == {0} and kernel.now_ns == 0


async def test_a_namespace_deleted_while_it_is_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoneMedium, "format", lambda self, offset, length, now_ns: now_ns + 1_000_000)
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="4MiB", namespaces=2)
        host = Host(kernel)
        await host.attach()
        format_ = host.start(NvmeOp.ADMIN, sqe(Admin.FORMAT, 2, cdw10=1))
        await kernel.sleep_ns(1_000)
        assert (await one(nvme, uxk.Request(0, NvmeOp.ADMIN, sqe(0x0D, 2, cdw10=1)))).result == 0
        assert (await host.do(NvmeOp.DETACH)).status == 0
        await kernel.sleep_ns(10_000_000)
        assert nvme_status(host.answers[format_].result) & 0x7FF == Status.ABORTED_SQ_DELETED
        assert not nvme.account.faults


async def test_names_of_hosts() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB")
        host = Host(kernel)
        for name in ("", "two\nlines", "\x7f", "x" * 300):
            answer = await host.do(NvmeOp.ATTACH, name.encode().ljust(256, b"\0") + bytes(16), cntlid=0)
            assert answer.status == errno.EINVAL
        for _ in range(30):
            await host.attach("\u20ac" * 74)
        kernel.sysfs.write("/sys/module/nvme/attributes/refresh", "1")
        await kernel.sleep_ns(1)
        assert len(kernel.sysfs.read("/sys/module/nvme/attributes/controllers").encode()) <= 4096
        assert not kernel.module("nvme").account.rejects


async def test_lengths_that_do_not_match_are_the_commands_fault() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        for request in (
            uxk.Request(0, NvmeOp.IO, sqe(Io.READ, 1, cdw12=7), 1, 512),
            uxk.Request(0, NvmeOp.IO, sqe(Io.WRITE, 1, cdw12=7) + bytes(512), 1),
            uxk.Request(0, NvmeOp.IO, sqe(Io.READ, 1), 1, 0),
            uxk.Request(0, NvmeOp.ADMIN, sqe(Admin.IDENTIFY, cdw10=1), 0, 100),
        ):
            answer = await one(nvme, request)
            assert answer.status == 0 and nvme_status(answer.result) & 0x7FF == Status.SGL_LENGTH_INVALID


async def test_a_host_of_its_own() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB")
        host, other = Host(kernel), Host(kernel)
        first, second = await host.attach("nqn.a"), await other.attach("nqn.b")
        assert PRIMARY < first < second
        page = (await host.do(NvmeOp.ADMIN, sqe(Admin.IDENTIFY, cdw10=1), length=4096)).payload
        assert int.from_bytes(page[78:80], "little") == first
        await host.feature(Feature.KEEP_ALIVE, 777)
        answer = await other.do(NvmeOp.ADMIN, sqe(Admin.GET_FEATURES, cdw10=Feature.KEEP_ALIVE))
        assert answer.result == 0, "features are each controller's own"
        assert (await other.do(NvmeOp.IO, sqe(Io.WRITE, 1) + b"b" * 512, qid=3)).result == 0
        assert (await host.do(NvmeOp.IO, sqe(Io.READ, 1), qid=9, length=512)).payload == b"b" * 512
        for op in (NvmeOp.ADMIN, NvmeOp.IO, NvmeOp.DETACH, NvmeOp.WAIT_EVENT):
            answer = await other.do(op, sqe(Admin.IDENTIFY), cntlid=first, qid=op == NvmeOp.IO)
            assert answer.status == errno.EACCES, "that one belongs to somebody else"
        assert (await host.do(NvmeOp.DETACH)).status == 0
        assert (await host.do(NvmeOp.ADMIN, sqe(Admin.KEEP_ALIVE))).status == errno.ENODEV
        assert await host.attach("nqn.a") > second, "not the same number at once"


async def test_events_reach_every_host_once() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        hosts = [Host(kernel) for _ in range(3)]
        waits = []
        for number, host in enumerate(hosts):
            await host.attach(f"nqn.{number}")
            await host.feature(Feature.EVENTS, 0x100)
            waits.append(host.start(NvmeOp.WAIT_EVENT, length=10_000))
        await kernel.sleep_ns(1_000)
        await one(nvme, uxk.Request(0, NvmeOp.ADMIN, sqe(Admin.FORMAT, 1, cdw10=1)))
        await kernel.sleep_ns(1_000)
        for host, wait in zip(hosts, waits, strict=True):
            assert host.answers.pop(wait).result == NOTICE
            assert (await host.log(Log.CHANGED_NAMESPACES, 4096))[0] == 1
            answer = await host.do(NvmeOp.WAIT_EVENT, length=5)
            assert answer.status == errno.ETIMEDOUT
        await kernel.sleep_ns(1_000)
        assert kernel.devices.devices["nvme0n1"].properties["logical_block_bytes"] == "4096"


async def test_event_requests_are_bounded_and_end_with_their_host() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB")
        host = Host(kernel)
        await host.attach()
        held = [host.start(NvmeOp.WAIT_EVENT, length=10_000) for _ in range(4)]
        assert (await host.do(NvmeOp.WAIT_EVENT, length=10_000)).status == errno.EBUSY
        command = await host.do(NvmeOp.ADMIN, sqe(Admin.ASYNC_EVENT))
        assert nvme_status(command.result) & 0x7FF == Status.ASYNC_LIMIT
        assert (await host.do(NvmeOp.DETACH)).status == 0
        assert [host.answers[cid].status for cid in held] == [errno.ECANCELED] * 4


async def test_an_event_command_may_be_aborted_or_times_out() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        host = Host(kernel)
        await host.attach()
        held = host.start(NvmeOp.ADMIN, sqe(Admin.ASYNC_EVENT, cid=31))
        other = host.start(NvmeOp.ADMIN, sqe(Admin.ASYNC_EVENT, cid=32))
        assert (await host.do(NvmeOp.ADMIN, sqe(Admin.ABORT, cdw10=31 << 16))).result == 0
        assert nvme_status(host.answers[held].result) == Status.ABORTED
        await kernel.sleep_ns(25_000_000_000)
        assert host.answers[other].status == errno.ETIMEDOUT
        assert nvme.account.timeouts == 0


async def test_detach_ends_what_is_under_way() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB", medium="simple")
        host = Host(kernel)
        await host.attach()
        reads = [host.start(NvmeOp.IO, sqe(Io.READ, 1), qid=1, length=512) for _ in range(5)]
        assert (await host.do(NvmeOp.DETACH)).status == 0
        codes = {nvme_status(host.answers[cid].result) & 0x7FF for cid in reads}
        assert codes == {Status.ABORTED_SQ_DELETED}
        await kernel.sleep_ns(1_000_000_000)


async def test_namespaces_become_disks_and_go() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="16MiB", namespaces=2)
        ids = struct.pack("<2H", 1, PRIMARY).ljust(4096, b"\0")
        gone = sqe(Admin.NAMESPACE_MANAGEMENT, 2, cdw10=1)
        assert (await one(nvme, uxk.Request(0, NvmeOp.ADMIN, gone))).result == 0
        assert kernel.sysfs.listdir("/sys/class/block") == ["nvme0", "nvme0n1"]
        page = struct.pack("<QQ10xB", 1024, 1024, 1).ljust(4096, b"\0")
        made = await one(nvme, uxk.Request(0, NvmeOp.ADMIN, sqe(Admin.NAMESPACE_MANAGEMENT) + page))
        assert made.result == 2
        attached = await one(nvme, uxk.Request(0, NvmeOp.ADMIN, sqe(Admin.NAMESPACE_ATTACHMENT, 2) + ids))
        assert attached.result == 0
        await kernel.sleep_ns(1_000)
        device = kernel.devices.devices["nvme0n2"]
        assert device.properties["capacity_bytes"] == str(4 << 20)
        request = uxk.Request(0, uxk.Op.WRITE, bytes(4096), 0, 4096, device=device.number)
        assert (await one(nvme, request)).status == 0


async def test_hosts_survive_a_crash_of_the_driver() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB", medium="simple")
        host = Host(kernel)
        cntlid = await host.attach()
        await host.feature(Feature.KEEP_ALIVE, 5000)
        await host.feature(Feature.EVENTS, 0x100)
        written = host.start(NvmeOp.IO, sqe(Io.WRITE, 1) + b"k" * 512, qid=1)
        crash(kernel, "nvme")
        await kernel.sleep_ns(1_000_000_000)
        assert host.answers[written].result == 0
        answer = await host.do(NvmeOp.ADMIN, sqe(Admin.GET_FEATURES, cdw10=Feature.KEEP_ALIVE))
        assert answer.result == 5000
        assert (await host.do(NvmeOp.IO, sqe(Io.READ, 1), qid=1, length=512)).payload == b"k" * 512
        other = Host(kernel)
        assert await other.attach("nqn.other") > cntlid


async def test_controllers_are_bounded() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB")
        host = Host(kernel)
        answers = [await host.do(NvmeOp.ATTACH, attach_payload(f"nqn.{n}"), cntlid=0) for n in range(33)]
        assert [answer.status for answer in answers] == [0] * 32 + [errno.EMFILE]
        host.cntlid = answers[0].result
        assert (await host.do(NvmeOp.DETACH)).status == 0
        last = await host.attach()
        await kernel.sleep_ns(100_000_000_000)
        assert (await host.do(NvmeOp.ADMIN, sqe(Admin.KEEP_ALIVE))).result == 0
        await kernel.sleep_ns(30_000_000_000)
        again = await host.do(NvmeOp.ATTACH, attach_payload("nqn.new"), cntlid=0)
        assert again.result > last, "one that was silent for two minutes gives way"
        assert (await host.do(NvmeOp.ADMIN, sqe(Admin.KEEP_ALIVE))).result == 0


async def test_vendor_commands_as_a_remote_control() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        rule = b"opcode=read action=status status=0x281 dnr=1".ljust(48, b"\0")
        added = sqe(Vendor.FAULT_ADD, cdw10=12) + rule
        assert (await one(nvme, uxk.Request(0, NvmeOp.ADMIN, added))).result == 1
        assert "status=media-error" in kernel.sysfs.read("/sys/module/nvme/attributes/faults")
        assert (await nvme.submit(opcode=uxk.Op.READ, length=512, check=False)).status == errno.ENODATA


payloads = st.one_of(
    st.binary(max_size=100), st.binary(min_size=64, max_size=64),
    st.builds(lambda op, nsid, rest: struct.pack("<II", op, nsid) + rest, st.integers(0, 255), st.integers(0, 3),
              st.binary(min_size=56, max_size=80)),
)  # fmt: skip
requests = st.builds(
    lambda op, payload, offset, length, region: (op, payload, offset, length, region),
    st.integers(NvmeOp.ADMIN, NvmeOp.WAIT_EVENT + 1), payloads,
    st.one_of(st.sampled_from([0, 1, 2, 1 << 16, 2 << 16, 2 << 16 | 1]), st.integers(0, 1 << 40)),
    st.sampled_from([0, 1, 512, 4096, 131072, 1 << 20, (1 << 32) - 1]), st.sampled_from([0, 0, 0, 1, 12345]),
)  # fmt: skip


@given(st.lists(requests, min_size=1, max_size=20))
async def test_hostile_requests(many: list[tuple[int, bytes, int, int, int]]) -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        ledger = Ledger(kernel, "nvme")
        ledger.submit([uxk.Request(0, *each) for each in many])
        await ledger.settle()
        assert not ledger.problems()
        assert not nvme.account.faults and not nvme.account.timeouts
        for text in ("clear",):
            kernel.sysfs.write("/sys/module/nvme/attributes/faults", text)
        assert (await one(nvme, identify(1))).result == 0


@pytest.mark.parametrize("count", [1, 7])
async def test_a_batch_of_several_queues(count: int) -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        batch = [
            uxk.Request(0, NvmeOp.IO, sqe(Io.WRITE, 1, cdw10=n) + bytes((n,)) * 512, 1 + n % 3) for n in range(count)
        ]
        batch += [identify(1), uxk.Request(0, uxk.Op.READ, b"", 0, count * 512)]
        answers = await nvme.submit_batch(batch)
        assert {answer.status for answer in answers} == {0}
        again = await nvme.submit(opcode=uxk.Op.READ, length=count * 512)
        assert again.payload == b"".join(bytes((n,)) * 512 for n in range(count))
