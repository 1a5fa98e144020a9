"""The driver within a kernel: block requests, devices, attributes, faults, crashes."""

from __future__ import annotations

import errno
import itertools
import struct
from pathlib import Path
from typing import Any

import pytest

import uxk
from uxk.testing import Ledger, boot, crash, residue, unload_all
from uxk.uapi.blk import IoFlag, NvmeOp, limits_of, unpack_extents
from uxk_nvme.medium import NoneMedium
from uxk_nvme.spec import Admin

ATTRIBUTES = "/sys/module/nvme/attributes"


async def write(module: uxk.Module, data: bytes, offset: int = 0, **more: Any) -> uxk.Completion:
    return await module.submit(data, opcode=uxk.Op.WRITE, offset=offset, **more)


async def read(module: uxk.Module, length: int, offset: int = 0) -> uxk.Completion:
    return await module.submit(opcode=uxk.Op.READ, offset=offset, length=length, check=False)


async def statuses(module: uxk.Module, *requests: dict[str, Any]) -> list[int]:
    """Status of each request."""
    return [reply.status for reply in await module.submit_batch([uxk.Request(0, **each) for each in requests])]


async def test_reads_and_writes() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="16MiB")
        assert kernel.sysfs.listdir("/sys/class/block") == ["nvme0", "nvme0n1"]
        data = bytes(range(256)) * 16
        assert (await write(nvme, data, 4096)).result == 4096
        answer = await read(nvme, 8192, 4096)
        assert (answer.result, answer.payload) == (8192, data + bytes(4096))
        assert (await nvme.submit(opcode=uxk.Op.FLUSH)).status == 0
        assert kernel.now_ns == 0


@pytest.mark.parametrize("flags", [IoFlag.FUA, IoFlag.PREFLUSH, IoFlag.FUA | IoFlag.PREFLUSH])
async def test_flags(flags: IoFlag) -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", write_cache="64KiB")
        requests = [
            uxk.Request(0, uxk.Op.WRITE, b"w" * 512, 0, 512, flags=int(flags)),
            uxk.Request(0, uxk.Op.READ, b"", 0, 512, flags=int(flags)),
        ]
        written, found = await nvme.submit_batch(requests)
        assert (written.status, written.result, found.payload) == (0, 512, b"w" * 512)


async def test_erasing() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="64MiB")
        for offset in (0, 8192, 16384):
            await write(nvme, b"x" * 8192, offset)
        assert await statuses(
            nvme,
            {"opcode": uxk.Op.DISCARD, "offset": 0, "length": 4096},
            {"opcode": uxk.Op.WRITE_ZEROES, "offset": 8192, "length": 4096, "flags": IoFlag.NOUNMAP},
            {"opcode": uxk.Op.WRITE_ZEROES, "offset": 16384, "length": 48 << 20},
        ) == [0, 0, 0]
        answer = await nvme.submit(opcode=uxk.Op.EXTENTS, length=64 << 20)
        extents = [tuple(each) for each in unpack_extents(answer.payload)]
        assert extents == [
            (4096, True, True), (4096, False, False), (4096, False, True), (4096, False, False),
            ((64 << 20) - 16384, True, True),
        ]  # fmt: skip
        assert answer.result == 64 << 20
        assert (await read(nvme, 8192, 4096)).payload == b"x" * 4096 + bytes(4096)


@pytest.mark.parametrize("opcode", [uxk.Op.READ, uxk.Op.WRITE, uxk.Op.DISCARD, uxk.Op.WRITE_ZEROES, uxk.Op.EXTENTS])
async def test_refuses_what_does_not_fit(opcode: int) -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        whole = {"opcode": opcode, "payload": bytes(512) if opcode == uxk.Op.WRITE else b""}
        bad = [
            {**whole, "offset": 1 << 20, "length": 512}, {**whole, "offset": (1 << 20) - 512, "length": 1024},
            {**whole, "offset": (1 << 63) - 1, "length": 512}, {**whole, "offset": 0, "length": (1 << 32) - 1},
        ]  # fmt: skip
        if opcode != uxk.Op.EXTENTS:
            bad += [{**whole, "offset": 1, "length": 512}, {**whole, "offset": 0, "length": 513}]
        assert await statuses(nvme, *bad) == [errno.EINVAL] * len(bad)
        assert await statuses(nvme, {**whole, "offset": (1 << 20) - 512, "length": 512}) == [0]


async def test_other_requests() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        assert await statuses(
            nvme,
            {"opcode": uxk.Op.NOP}, {"opcode": uxk.Op.CALL}, {"opcode": 200}, {"opcode": uxk.Op.READ, "length": 0},
            {"opcode": uxk.Op.READ, "length": 512, "device": 9},
            {"opcode": uxk.Op.READ, "length": 512, "region": 77},
            {"opcode": uxk.Op.WRITE, "length": 1024, "payload": bytes(512)},
        ) == [0, errno.EOPNOTSUPP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.EBADF, errno.EINVAL]  # fmt: skip


async def test_limits_and_several_namespaces() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="16MiB", namespaces=3, lba_bytes=4096, write_cache="1MiB")
        assert kernel.sysfs.listdir("/sys/class/block") == ["nvme0", "nvme0n1", "nvme0n2", "nvme0n3"]
        device = kernel.devices.devices["nvme0n2"]
        limits = limits_of(device.properties)
        assert limits is not None
        assert limits.capacity_bytes == (16 << 20) // 3 // 4096 * 4096
        assert (limits.logical_block_bytes, limits.write_cache, limits.fua, limits.queues) == (4096, 1, 1, 2)
        assert device.properties["wwid"].startswith("uuid.") and device.properties["nsid"] == "2"
        assert limits_of(kernel.devices.devices["nvme0"].properties) is None
        nvme = kernel.module("nvme")
        numbers = [kernel.devices.devices[f"nvme0n{n}"].number for n in (1, 2, 3)]
        for number in numbers:
            request = uxk.Request(0, uxk.Op.WRITE, bytes((number,)) * 4096, 0, 4096, device=number)
            assert (await nvme.submit_batch([request]))[0].status == 0
        answers = await nvme.submit_batch([uxk.Request(0, uxk.Op.READ, b"", 0, 4096, device=n) for n in numbers])
        assert [answer.payload[0] for answer in answers] == numbers


class Borrower(uxk.Extension):
    """A client whose data lie in memory that it lends, or has registered."""

    manifest = uxk.Manifest(
        name="borrower", version="1", license="Apache-2.0", kind="ml-agent", capabilities=("device:*:submit",)
    )
    registered = False
    outcome: list[int]

    async def run(self, ctx: uxk.Context) -> None:
        opened = await ctx.open_device("nvme0n1")
        region = (await ctx.allocate(1 << 16)).result
        if self.registered:
            await ctx.derive(region, opened.payload.decode() or "nvme", uxk.Rights.READ | uxk.Rights.WRITE)
        view = ctx.map(region, writable=True)
        view[:8192] = b"lent" * 2048
        cap, done = opened.result, []
        arguments: dict[str, Any] = {"length": 8192, "region": region}
        done.append(await ctx.submit(cap, uxk.Op.WRITE, offset=4096, buffer=0, **arguments))
        done.append(await ctx.submit(cap, uxk.Op.READ, offset=4096, buffer=16384, **arguments))
        assert bytes(view[16384:24576]) == b"lent" * 2048
        for buffer in ((1 << 16) - 8191, 1 << 40):
            reply = ctx.submit(cap, uxk.Op.READ, offset=0, buffer=buffer, **arguments)
            with pytest.raises(uxk.RequestError):
                await reply
        type(self).outcome = [each.result for each in done]


@pytest.mark.parametrize("registered", [False, True])
async def test_data_in_a_clients_memory(registered: bool) -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB")
        Borrower.registered, Borrower.outcome = registered, []
        await kernel.insmod(Borrower)
        await kernel.sleep_ns(1_000_000)
        assert Borrower.outcome == [8192, 8192]
        await unload_all(kernel)
        assert not residue(kernel)


# --- queues --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entries", "medium"), list(itertools.product((2, 3, 64), ("none", "simple"))))
async def test_more_requests_than_entries(entries: int, medium: str) -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", queue_entries=entries, queues=1, medium=medium)
        requests = [uxk.Request(0, uxk.Op.WRITE, bytes((n,)) * 512, n * 512, 512) for n in range(200)]
        assert {answer.status for answer in await nvme.submit_batch(requests)} == {0}
        found = await nvme.submit_batch([uxk.Request(0, uxk.Op.READ, b"", n * 512, 512) for n in range(200)])
        assert [answer.payload[:1] for answer in found] == [bytes((n,)) for n in range(200)]


async def test_more_data_than_bounce_buffers() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="64MiB", medium="simple")
        requests = [uxk.Request(0, uxk.Op.READ, b"", n << 17, 1 << 17) for n in range(200)]
        answers = await nvme.submit_batch(requests)
        assert {(answer.status, len(answer.payload)) for answer in answers} == {(0, 1 << 17)}


# --- errors --------------------------------------------------------------------------------------------


def fault(kernel: uxk.Kernel, text: str) -> None:
    kernel.sysfs.write(f"{ATTRIBUTES}/faults", text)


async def test_statuses_become_errnos() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        for status, expected in (
            (0x281, errno.ENODATA), (0x280, errno.ENODATA), (0x081, errno.ENOSPC), (0x080, errno.EREMOTEIO),
            (0x001, errno.EOPNOTSUPP), (0x282, errno.EILSEQ), (0x006, errno.EIO), (0x370, errno.ENOLINK),
        ):  # fmt: skip
            fault(kernel, f"clear\nadd opcode=read action=status status={status:#x} dnr=1")
            assert (await read(nvme, 512)).status == expected


async def test_transient_errors_are_tried_again() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        await write(nvme, b"v" * 512)
        fault(kernel, "add opcode=read action=status status=0x281 count=5")
        assert (await read(nvme, 512)).payload == b"v" * 512
        fault(kernel, "clear\nadd opcode=read action=status status=0x281 count=6")
        assert (await read(nvme, 512)).status == errno.ENODATA
        kernel.sysfs.write("/sys/module/nvme/parameters/retries", "0")
        fault(kernel, "clear\nadd opcode=read action=status status=0x281 count=1")
        assert (await read(nvme, 512)).status == errno.ENODATA


async def test_the_driver_waits_while_a_namespace_is_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoneMedium, "format", lambda self, offset, length, now_ns: now_ns + 250_000_000)
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        command = struct.pack("<16I", Admin.FORMAT, 1, *[0] * 14)
        answers = await nvme.submit_batch([
            uxk.Request(0, NvmeOp.ADMIN, command), uxk.Request(0, uxk.Op.FLUSH),
        ])  # fmt: skip
        assert {answer.status for answer in answers} == {0} and kernel.now_ns == 250_000_000
        answers = await nvme.submit_batch([uxk.Request(0, NvmeOp.ADMIN, command)] + [
            uxk.Request(0, uxk.Op.WRITE, b"f" * 512, n * 512, 512) for n in range(3)
        ])  # fmt: skip
        assert {answer.status for answer in answers} == {0}
        (await nvme.submit_batch([uxk.Request(0, NvmeOp.ADMIN, command)]))
        assert (await read(nvme, 512)).payload == b"f" * 512, "this format erases nothing"


async def test_reads_wait_for_the_end_of_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoneMedium, "format", lambda self, offset, length, now_ns: now_ns + 250_000_000)
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        ledger = Ledger(kernel, "nvme")
        ledger.submit([uxk.Request(0, NvmeOp.ADMIN, struct.pack("<16I", Admin.FORMAT, 1, *[0] * 14))])
        await kernel.sleep_ns(1_000)
        ledger.submit([uxk.Request(0, uxk.Op.READ, b"", 0, 512)])
        await ledger.settle()
        assert {replies[0].status for replies in ledger.answers.values()} == {0}
        assert kernel.now_ns == 300_001_000, "two delays of 100 ms were not enough"
        assert nvme.account.faults == 0


async def test_a_command_that_is_swallowed_is_aborted() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", timeout_ns="5s", queues=1, queue_entries=3)
        fault(kernel, "add opcode=read lba=8 action=drop count=2")
        answers = await nvme.submit_batch([uxk.Request(0, uxk.Op.READ, b"", n * 4096, 4096) for n in (1, 1, 2, 3)])
        assert [answer.status for answer in answers] == [errno.ETIMEDOUT, errno.ETIMEDOUT, 0, 0]
        assert 5_000_000_000 <= kernel.now_ns <= 10_000_000_000
        assert (await read(nvme, 4096, 4096)).status == 0
        assert nvme.account.timeouts == 0 and nvme.account.faults == 0


async def test_admin_commands_that_are_swallowed_do_not_stop_the_driver() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", timeout_ns="1s")
        fault(kernel, "add opcode=identify action=drop count=1")
        await nvme.submit(opcode=uxk.Op.FLUSH)
        await kernel.sleep_ns(5_000_000_000)
        assert (await read(nvme, 512)).status == 0


async def test_power_loss_takes_what_was_not_flushed() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", write_cache="64KiB")
        await write(nvme, b"1" * 4096)
        await nvme.submit(opcode=uxk.Op.FLUSH)
        await write(nvme, b"2" * 4096)
        await write(nvme, b"3" * 4096, 4096)
        kernel.sysfs.write(f"{ATTRIBUTES}/power_loss", "1")
        assert (await read(nvme, 8192)).payload == b"1" * 4096 + bytes(4096)
        assert "unsafe_shutdowns 1" in kernel.sysfs.read(f"{ATTRIBUTES}/smart")


async def test_attributes() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", medium="simple")
        await write(nvme, bytes(4096))
        await nvme.submit(opcode=uxk.Op.FLUSH)
        kernel.sysfs.write(f"{ATTRIBUTES}/refresh", "1")
        await kernel.sleep_ns(1)
        shown = {name: kernel.sysfs.read(f"{ATTRIBUTES}/{name}") for name in ("smart", "commands", "latency")}
        assert "host_written_bytes 4096" in shown["smart"] and "io_flush 1" in shown["commands"]
        assert "below_32768_ns 1" in shown["latency"]
        kernel.sysfs.write(f"{ATTRIBUTES}/extra_latency_ns", "7000")
        kernel.sysfs.write(f"{ATTRIBUTES}/smart_set", "percentage_used=99")
        kernel.sysfs.write(f"{ATTRIBUTES}/smart_set", "nonsense=99")
        await kernel.sleep_ns(1)
        assert "percentage_used 99" in kernel.sysfs.read(f"{ATTRIBUTES}/smart")
        assert any("nonsense" in record.text for record in kernel.kmsg.records())
        before_ns = kernel.now_ns
        await read(nvme, 512)
        assert kernel.now_ns - before_ns == 87_000


# --- death and rebirth ---------------------------------------------------------------------------------


@pytest.mark.parametrize("medium", ["none", "simple", "ftl"])
async def test_what_was_acknowledged_survives_a_crash(medium: str) -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="4MiB", medium=medium, write_cache="64KiB")
        ledger = Ledger(kernel, "nvme")
        for n in range(64):
            ledger.submit([uxk.Request(0, uxk.Op.WRITE, bytes((n + 1,)) * 4096, n * 4096, 4096)])
        await kernel.sleep_ns(30_000)
        crash(kernel, "nvme")
        await ledger.settle()
        assert {replies[0].status for replies in ledger.answers.values()} == {0}
        assert not ledger.problems()
        found = await nvme.submit_batch([uxk.Request(0, uxk.Op.READ, b"", n * 4096, 4096) for n in range(64)])
        assert [answer.payload[0] for answer in found] == list(range(1, 65))
        assert kernel.sysfs.listdir("/sys/class/block") == ["nvme0", "nvme0n1"]


async def test_identity_survives_a_crash() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="4MiB", namespaces=2)
        before = [kernel.devices.devices[f"nvme0n{n}"].properties["wwid"] for n in (1, 2)]
        crash(kernel, "nvme")
        await kernel.sleep_ns(1_000_000_000)
        assert [kernel.devices.devices[f"nvme0n{n}"].properties["wwid"] for n in (1, 2)] == before


async def test_a_file_as_medium(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    for turn in (0, 1):
        async with boot() as kernel:
            nvme = await kernel.modprobe("nvme", size="1MiB", backing=f"sparse:{image}")
            if not turn:
                await write(nvme, b"kept" * 1024)
                await nvme.submit(opcode=uxk.Op.FLUSH)
                crash(kernel, "nvme")
                await kernel.sleep_ns(1_000_000_000)
            assert (await read(nvme, 4096)).payload == b"kept" * 1024
            await unload_all(kernel)
            assert not residue(kernel)
    async with boot() as kernel:
        with pytest.raises(uxk.ProbeError, match=r"nvme: .*nowhere"):
            await kernel.modprobe("nvme", backing="nowhere")


async def test_features_survive_a_crash() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")

        async def feature(opcode: int, cdw10: int, cdw11: int = 0) -> int:
            command = struct.pack("<16I", opcode, *[0] * 9, cdw10, cdw11, *[0] * 4)
            return (await nvme.submit_batch([uxk.Request(0, NvmeOp.ADMIN, command)]))[0].result

        assert await feature(Admin.SET_FEATURES, 2 | 1 << 31, 2) == 0
        assert await feature(Admin.SET_FEATURES, 1, 5) == 0
        crash(kernel, "nvme")
        await kernel.sleep_ns(1_000_000_000)
        assert await feature(Admin.GET_FEATURES, 2) == 2
        assert await feature(Admin.GET_FEATURES, 1) == 5, "to hosts nothing was reset"
        assert [await feature(Admin.GET_FEATURES, each | 2 << 8) for each in (1, 2)] == [7, 2], "saved"


async def test_completions_may_be_bundled() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", medium="simple")
        writes = [uxk.Request(0, uxk.Op.WRITE, bytes(4096), n * 4096, 4096) for n in range(64)]
        await nvme.submit_batch(writes)
        alone = nvme.account.turns
        kernel.sysfs.write("/sys/module/nvme/parameters/coalesce_ns", "50us")
        await nvme.submit_batch(writes)
        assert nvme.account.turns - alone < 5 < alone and kernel.now_ns % 50_000 == 0


async def test_same_seed_same_hash() -> None:
    hashes = []
    for _ in range(2):
        async with boot(seed=3) as kernel:
            nvme = await kernel.modprobe("nvme", size="1MiB", medium="simple")
            await nvme.submit_batch([uxk.Request(0, uxk.Op.WRITE, bytes(512), n * 512, 512) for n in range(99)])
            hashes.append(kernel.event_hash())
    assert hashes[0] == hashes[1]


async def test_namespaces_by_hand() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="16MiB", namespace_bytes="4MiB")
        path = f"{ATTRIBUTES}/namespaces"
        assert f"unallocated_bytes={12 << 20}" in kernel.sysfs.read(path)

        async def say(text: str) -> str:
            kernel.sysfs.write(path, text)
            await kernel.sleep_ns(1)
            return kernel.sysfs.read(f"{path}_status")

        assert await say("add 8MiB") == "1 ok"
        assert kernel.devices.devices["nvme0n2"].properties["capacity_bytes"] == str(8 << 20)
        assert "4194304 bytes are left" in await say("add 8MiB")
        assert await say("rm 1") == "3 ok"
        assert kernel.sysfs.listdir("/sys/class/block") == ["nvme0", "nvme0n2"]
        for text, words in (
            ("rm 9", "there are: 2"), ("add 1000", "multiple of 512"), ("add lots", "'lots'"), ("", "add SIZE"),
            ("add 0", "multiple"), ("grow 1 2", "'grow 1 2'"),
        ):  # fmt: skip
            answer = await say(text)
            assert " error: " in answer and words in answer
        crash(kernel, "nvme")
        await kernel.sleep_ns(1_000_000_000)
        assert kernel.sysfs.listdir("/sys/class/block") == ["nvme0", "nvme0n2"]


async def test_namespaces_that_do_not_fit() -> None:
    async with boot() as kernel:
        with pytest.raises(uxk.ProbeError, match="namespaces=3 of 524288 bytes"):
            await kernel.modprobe("nvme", size="1MiB", namespaces=3, namespace_bytes="512KiB")
