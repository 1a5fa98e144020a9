"""A disk whose device goes, or says something else of itself: nothing is lost, nothing is left, nobody else is hit."""

from __future__ import annotations

import errno
import gc
from typing import Any

import pytest

import uxk
from uxk.subsystems.blk.disk import Disk
from uxk.uapi.blk import IoFlag
from uxk.uapi.entries import Completion, Op, Request

FUA = int(IoFlag.FUA)
GONE = errno.ENODEV


def remove(it: Any) -> dict[str, str]:
    """Takes the device away; returns what it said of itself."""
    device = it.kernel.devices.get("blkram0")
    it.kernel.devices.remove(device)
    return {name: text for name, text in device.properties.items() if name not in ("class", "module", "name")}


def add(it: Any, properties: dict[str, str]) -> Any:
    it.kernel.devices.add(it.kernel.agents["blkram"], "blkram0", properties)
    it.disk = it.layer.disks.get("blkram0")
    return it.disk


async def test_devices_that_come_and_go_leave_nothing_behind(lab: Any) -> None:
    async with lab() as it:
        agent = it.kernel.agents["blkram"]
        ports = len(agent._ports)
        for _ in range(20):
            client = it.client()
            cids = client.submit(Request(0, Op.READ, b"", 0, 512))
            properties = remove(it)
            await it.run()
            assert client.status(cids) == [0]
            client.port.close()
            add(it, properties)
        del client
        gc.collect()
        assert len(agent._ports) == ports
        machine = it.kernel.machine  # others may not have been collected yet
        assert sum(isinstance(each, Disk) and each.machine is machine for each in gc.get_objects()) == 1
        it.layer.close()
        assert len(agent._ports) == ports - 1


async def test_what_the_driver_still_has_keeps_the_way_back_open(lab: Any) -> None:
    async with lab() as it:
        it.set("scheduler", "mq-deadline")
        it.medium.latency_ns = 1000
        client = it.client()
        cids = client.submit(*[Request(0, Op.WRITE, b"x" * 512, n * 8192, 512) for n in range(12)])
        await it.kernel.sleep_ns(10)
        old, agent = it.disk, it.kernel.agents["blkram"]
        ports = len(agent._ports)
        remove(it)
        assert sorted(client.status(client.order)) == [GONE] * 4
        assert len(agent._ports) == ports
        await it.run()
        assert sorted(client.status(cids)) == [0] * 8 + [GONE] * 4
        assert len(agent._ports) == ports - 1
        it.disk = old
        it.check_empty()


@pytest.mark.parametrize("fua", [0, 1])
async def test_a_sequence_of_flushes_ends_with_its_disk(lab: Any, fua: int) -> None:
    async with lab(fua=fua) as it:
        it.medium.latency_ns = 1000
        client = it.client()
        wanted = [Request(0, Op.WRITE, b"x" * 512, n * 8192, 512, flags=FUA | n % 2 * 2) for n in range(4)]
        cids = client.submit(*wanted)
        await it.kernel.sleep_ns(10)
        seen, old = len(it.medium.seen), it.disk
        properties = remove(it)
        new = add(it, properties)
        await it.run()
        assert len(it.medium.seen) == seen, "nothing more, and nothing to another device of that number"
        assert client.status(cids) == [0 if fua and not request.flags & 2 else GONE for request in wanted]
        assert new.device.number == old.device.number
        it.disk = old
        it.check_empty()


@pytest.mark.parametrize("flags", [0, FUA])
async def test_zeroes_are_not_written_to_the_next_device_of_that_number(lab: Any, flags: int) -> None:
    async with lab() as it:
        it.medium.latency_ns = 1000
        it.medium.judge = lambda request: errno.EOPNOTSUPP if request.opcode == Op.WRITE_ZEROES else 0
        client = it.client()
        cids = client.submit(Request(0, Op.WRITE_ZEROES, b"", 0, 64 * 1024, flags=flags))
        await it.kernel.sleep_ns(10)
        seen, old = len(it.medium.seen), it.disk
        add(it, remove(it))
        await it.run()
        assert it.medium.seen[seen:] == []
        assert client.status(cids) == [GONE]
        it.disk = old
        it.check_empty()


async def test_a_disk_that_is_gone_asks_the_driver_for_nothing(lab: Any) -> None:
    async with lab() as it:
        client = it.client()
        old = it.disk
        remove(it)
        with pytest.raises(uxk.UxkError, match="gone"):
            client.submit(Request(0, Op.READ, b"", 0, 512))
        old._start_flush()
        old.advance()
        assert it.medium.seen == []
        assert not old.hardware.held


async def test_a_change_that_is_nonsense_is_told_and_changes_nothing(lab: Any) -> None:
    async with lab() as it:
        answers: list[Completion] = []
        port = it.kernel.open_port("blkram0", answers.extend)
        device, disk, limits = it.disk.device, it.disk, it.disk.limits.hardware
        good = dict(device.properties)
        for bad in ({"capacity_bytes": "-1"}, {"logical_block_bytes": "3000"}, {"capacity_bytes": "many"}):
            it.kernel.devices.add(device.agent, "blkram0", {**good, **bad})
            assert it.layer.disk("blkram0") is disk
            assert disk.limits.hardware == limits
            assert "keeps what it had" in it.kernel.kmsg.records()[-1].text
        port.submit(Request(0, Op.READ, b"", 0, 512))
        await it.run()
        assert [done.status for done in answers] == [0]
        it.kernel.devices.add(device.agent, "blkram0", {**good, "capacity_bytes": "8192"})
        assert disk.limits.capacity_bytes == 8192


async def test_nonsense_from_the_start_makes_no_disk(lab: Any) -> None:
    async with lab() as it:
        properties = remove(it)
        assert add(it, {**properties, "capacity_bytes": "-1"}) is None
        assert "no disk" in it.kernel.kmsg.records()[-1].text
        assert add(it, properties) is it.layer.disk("blkram0")
