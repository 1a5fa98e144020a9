"""What a disk shows under /sys/block, what can be set there, and how devices come, change and go."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import pytest

import uxk
from uxk.errors import TreeError, UsageError
from uxk.kernel.kernel import Kernel
from uxk.subsystems.blk.attributes import DISK, HCTX, QUEUE, TRACE
from uxk.subsystems.blk.layer import BlockLayer
from uxk.uapi.entries import Op, Request

KB = 1 << 10
MS = 1_000_000


async def test_what_a_disk_shows(lab: Any) -> None:
    async with lab(
        logical_block_bytes=4096, physical_block_bytes=8192, io_opt_bytes=65536, fua=1, rotational=1, queues=2
    ) as it:
        shown = {name: it.get(name) for name in it.kernel.sysfs.listdir(f"{it.path}/queue")}
        assert shown == {
            "scheduler": "[none] mq-deadline", "nr_requests": "8", "max_sectors_kb": "64", "max_hw_sectors_kb": "64",
            "max_segments": "128", "logical_block_size": "4096", "hw_sector_size": "4096",
            "physical_block_size": "8192", "minimum_io_size": "8192", "optimal_io_size": "65536", "nomerges": "0",
            "write_cache": "write back", "fua": "1", "discard_granularity": "4096", "discard_max_bytes": "262144",
            "discard_max_hw_bytes": "262144", "write_zeroes_max_bytes": "262144", "io_timeout": "30000",
            "iostats": "1", "rotational": "1",
        }  # fmt: skip
        tree = it.kernel.sysfs
        assert tree.readlink("/sys/block/blkram0") == "../devices/virtual/block/blkram0"
        assert tree.read(f"{it.path}/size") == "2048"
        assert tree.read(f"{it.path}/inflight").split() == ["0", "0"]
        assert tree.read(f"{it.path}/mq/1/cpu_list") == "1"
        assert tree.read(f"{it.path}/mq/1/nr_tags") == "8"


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("nr_requests", "2", "4"), ("nr_requests", "6", "6"), ("max_sectors_kb", "16", "16"),
        ("max_sectors_kb", "0", "64"), ("nomerges", "2", "2"), ("write_cache", "write through", "write through"),
        ("discard_max_bytes", "4096", "4096"), ("discard_max_bytes", str(1 << 40), "262144"),
        ("io_timeout", "50", "50"), ("iostats", "0", "0"), ("rotational", "1", "1"),
    ],
)  # fmt: skip
async def test_what_can_be_set(lab: Any, name: str, text: str, kept: str) -> None:
    async with lab() as it:
        it.set(name, text)
        assert it.get(name) == kept


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("nr_requests", "9", r"1\.\.8"), ("nr_requests", "0", r"1\.\.8"), ("nr_requests", "many", "'many'"),
        ("max_sectors_kb", "65", r"0\.\.64"), ("max_sectors_kb", "3", "page"), ("nomerges", "3", r"0\.\.2"),
        ("write_cache", "writeback", "'write back' or 'write through'"),
        ("discard_max_bytes", "100", "multiple of 512"),
        ("discard_max_bytes", "-512", "integer"), ("io_timeout", "0", r"1\.\."), ("iostats", "yes", "integer"),
        ("scheduler", "", "unknown"), ("rotational", "9" * 5000, "longer than 4096"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_with_the_reason(lab: Any, name: str, text: str, expected: str) -> None:
    async with lab() as it:
        before = it.get(name)
        with pytest.raises(TreeError, match=expected):
            it.set(name, text)
        assert it.get(name) == before
        with pytest.raises(TreeError):
            it.set("fua", "1")


async def test_write_back_needs_a_cache(lab: Any) -> None:
    async with lab(write_cache=0) as it:
        with pytest.raises(TreeError, match="no cache"):
            it.set("write_cache", "write back")


async def test_nr_requests_holds_back(lab: Any) -> None:
    async with lab() as it:
        it.medium.latency_ns = MS
        it.set("nr_requests", 4)
        client = it.client()
        cids = client.submit(*[Request(0, Op.READ, b"", n * 8192, 512) for n in range(10)])
        assert (it.disk.issued, it.disk.tags_used) == (4, 4)
        it.set("nr_requests", 8)
        assert it.disk.issued == 8
        assert it.kernel.sysfs.read(f"{it.path}/inflight").split() == ["8", "0"]
        await it.run()
        assert client.status(cids) == [0] * 10
        it.check_empty()


async def test_iostats_off_counts_nothing_and_turning_it_on_again_does_no_harm(lab: Any) -> None:
    async with lab() as it:
        it.medium.latency_ns = MS
        client = it.client()
        client.submit(Request(0, Op.READ, b"", 0, 512))
        it.set("iostats", 0)
        client.submit(Request(0, Op.READ, b"", 8192, 512), Request(0, Op.FLUSH))
        it.set("iostats", 1)
        client.submit(Request(0, Op.READ, b"", 16384, 512))
        await it.run()
        assert it.stat()[:3] == [2, 0, 2]
        it.check_empty()


async def test_stat_counts_time_as_linux_does(lab: Any) -> None:
    async with lab() as it:
        it.medium.latency_ns = 10 * MS
        client = it.client()
        client.submit(*[Request(0, Op.READ, b"", n * 8192, 4096) for n in range(2)])
        await it.kernel.sleep_ns(4 * MS)
        client.submit(Request(0, Op.WRITE, b"x" * 512, 0, 512))
        await it.run()
        await it.kernel.sleep_ns(100 * MS)
        reads, writes, rest = it.stat()[:4], it.stat()[4:8], it.stat()[8:]
        assert reads == [2, 0, 16, 20]
        assert writes == [1, 0, 1, 10]
        assert rest == [0, 14, 30, 0, 0, 0, 0, 0, 0], "busy for 14 ms, 30 ms of waiting altogether"


# --- devices ---


async def test_a_device_that_does_not_say_how_large_it_is_is_no_disk(lab: Any) -> None:
    async with lab(None) as it:
        assert it.layer.disks == {}
        assert not it.kernel.sysfs.exists("/sys/block")
        device = it.kernel.devices.get("blkram0")
        assert device.gate is device.agent
        assert it.kernel.sysfs.read(f"{device.path}/inflight") == "0"


async def test_the_layer_may_come_later_and_go_again(lab: Any) -> None:
    async with lab() as it:
        client = it.client()
        it.medium.latency_ns = MS
        cids = client.submit(*[Request(0, Op.READ, b"", n * 8192, 512) for n in range(12)])
        it.layer.close()
        device = it.kernel.devices.get("blkram0")
        assert device.gate is device.agent
        assert client.status(cids[8:]) == [errno.ENODEV] * 4, "what the driver has not got"
        await it.run()
        assert client.status(cids[:8]) == [0] * 8
        assert not it.kernel.sysfs.exists("/sys/block/blkram0")
        assert it.kernel.sysfs.read(f"{device.path}/inflight") == "0"
        again = BlockLayer(it.kernel)
        assert device.gate is again.disk("blkram0")
        assert it.kernel.machine.outstanding == 0


async def test_whoever_waits_behind_a_higher_class_is_answered_when_the_layer_goes(lab: Any) -> None:
    async with lab(depth=2) as it:
        it.set("scheduler", "mq-deadline")
        it.set("nr_requests", 8)
        it.medium.latency_ns = MS
        high, low, lowest = it.client(), it.client(), it.client()
        high.port.prio, lowest.port.prio = 0, 2
        cids = [high.submit(Request(0, Op.READ, b"", n * 8192, 512))[0] for n in range(3)]
        waiting = low.submit(Request(0, Op.READ, b"", 1 << 16, 512))
        last = lowest.submit(Request(0, Op.READ, b"", 1 << 17, 512))
        it.layer.close()
        assert low.status(waiting) == lowest.status(last) == high.status(cids[2:]) == [errno.ENODEV]
        await it.run()
        assert high.status(cids[:2]) == [0, 0]
        assert it.kernel.machine.outstanding == 0


async def test_a_resize_takes_effect_and_is_told(lab: Any) -> None:
    async with lab() as it:
        device = it.kernel.devices.get("blkram0")
        properties = {k: v for k, v in device.properties.items() if k not in ("class", "module", "name")}
        it.kernel.devices.add(device.agent, "blkram0", {**properties, "capacity_bytes": str(512 * KB)})
        assert it.kernel.sysfs.read(f"{it.path}/size") == "1024"
        client = it.client()
        cids = client.submit(Request(0, Op.READ, b"", 512 * KB, 512))
        await it.run()
        assert client.status(cids) == [errno.EIO]
        assert any("capacity change" in record.text for record in it.kernel.kmsg.records(source="blkram0"))
        it.kernel.devices.add(device.agent, "blkram0", {"colour": "red"})
        assert it.layer.disks == {}, "it does not say any more how large it is"


@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity_bytes": "-1"}, {"capacity_bytes": "much"}, {"logical_block_bytes": "600"},
        {"logical_block_bytes": "4096", "physical_block_bytes": "512"}, {"queues": "0"}, {"max_transfer_bytes": "1"},
        {"capacity_bytes": str(1 << 64)}, {"write_cache": "2"},
    ],
)  # fmt: skip
async def test_a_driver_that_talks_nonsense_gets_a_line_in_the_log_and_no_disk(lab: Any, wrong: dict[str, str]) -> None:
    async with lab() as it:
        device = it.kernel.devices.get("blkram0")
        properties = {k: v for k, v in device.properties.items() if k not in ("class", "module", "name")}
        it.kernel.devices.remove(device)
        it.kernel.devices.add(device.agent, "blkram0", {**properties, **wrong})
        assert it.layer.disks == {}
        assert any(record.text.startswith("no disk: ") for record in it.kernel.kmsg.records(source="blkram"))
        it.kernel.devices.add(device.agent, "blkram0", properties)
        assert list(it.layer.disks) == ["blkram0"]
        it.kernel.devices.add(device.agent, "blkram0", {**properties, **wrong})
        assert list(it.layer.disks) == ["blkram0"], "a disk is not taken from its clients for that"
        assert it.kernel.kmsg.records(source="blkram")[-1].text.startswith("blkram0 keeps what it had: ")


async def test_numbers_of_cpus() -> None:
    async with Kernel() as kernel:
        for cpus in (0, 1025):
            with pytest.raises(UsageError, match=r"cpus=.*1\.\.1024"):
                BlockLayer(kernel, cpus=cpus)
        with pytest.raises(UsageError, match="no disk 'x'; there are: none"):
            BlockLayer(kernel).disk("x")


async def test_a_driver_that_dies_comes_back_to_the_same_disk(lab: Any) -> None:
    for fate, expected in (("fail", errno.EIO), ("reissue", 0)):
        manifest = {"fate": fate, "restart": uxk.RestartPolicy(backoff_ns=MS)}
        async with lab(manifest=manifest) as it:
            disk, client = it.disk, it.client()
            died = []

            def judge(request: Request, died: list[int] = died) -> int:
                if not died:
                    died.append(1)
                    raise RuntimeError("died")
                return 0

            it.medium.judge = judge
            cids = client.submit(*[Request(0, Op.READ, b"", n * 8192, 512) for n in range(4)])
            await it.run()
            assert client.status(cids) == [expected] * 4
            assert it.layer.disk("blkram0") is disk
            cids = client.submit(*[Request(0, Op.READ, b"", n * 512, 512) for n in range(4)])
            await it.run()
            assert client.status(cids) == [0] * 4
            it.check_empty()


def test_the_document_names_every_attribute() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/block-layer.md").read_text()
    table = text.split("## Attributes")[1].split("## iostat")[0]
    named = set(re.findall(r"`((?:queue/|trace/|mq/N/)?[a-z_]+)`", table))
    there = {f"queue/{n}" for n in QUEUE} | {f"trace/{n}" for n in TRACE} | {f"mq/N/{n}" for n in HCTX}
    there |= {name for name, _, _ in DISK} | {"inflight"}
    assert there <= named
    assert {name for name in named if "/" in name} <= there
