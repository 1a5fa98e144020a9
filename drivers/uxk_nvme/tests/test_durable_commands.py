"""Commands that promise durability, and marks that outlive a killed driver: through the controller, and in a kernel."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import uxk
from uxk.testing import boot, crash
from uxk.uapi.blk import NvmeOp, nvme_status
from uxk_nvme.spec import Admin, Feature, Io, Status
from uxk_nvme.translate import Disk, Job, job_of

ATTRIBUTES = "/sys/module/nvme/attributes"
FUA = 1 << 30


def written(rig: Any, data: bytes) -> None:
    """8 blocks at 0, acknowledged, in the cache."""
    assert rig.do(Io.WRITE, 1, slba=0, cdw={12: 7}, data=data).code == 0


def after_power_loss(rig: Any) -> bytes:
    rig.subsystem.power_loss(rig.clock.now_ns)
    return bytes(rig.do(Io.READ, 1, slba=0, cdw={12: 7}, length=4096).data)


def wait(rig: Any, queue: Any, tag: int) -> None:
    for _ in range(10_000):
        if tag in queue.posted:
            return
        rig.clock.advance(1000)
    pytest.fail("no answer")


@pytest.fixture
def rig(make_rig: Callable[..., Any]) -> Any:
    """Flash with a cache, which holds B over an A that is durable."""
    made = make_rig(medium="ftl", write_cache=1 << 20)
    written(made, b"A" * 4096)
    made.do(Io.FLUSH, 1)
    queue, tag = made.start(Io.WRITE, 1, slba=0, cdw={12: 7}, data=b"B" * 4096)
    wait(made, queue, tag)
    return made


def test_switching_the_cache_off_is_complete_when_it_is_empty(rig: Any) -> None:
    queue, tag = rig.start(Admin.SET_FEATURES, cdw={10: Feature.WRITE_CACHE, 11: 0}, admin=True)
    assert tag not in queue.posted
    wait(rig, queue, tag)
    assert after_power_loss(rig) == b"B" * 4096


def test_a_read_with_fua_is_complete_when_the_data_are_durable(rig: Any) -> None:
    queue, tag = rig.start(Io.READ, 1, slba=0, cdw={12: 7 | FUA}, length=4096)
    wait(rig, queue, tag)
    assert bytes(rig.memory[:4096]) == b"B" * 4096
    assert after_power_loss(rig) == b"B" * 4096


def test_a_flush_that_worn_flash_cannot_do_fails(rig: Any) -> None:
    rig.medium.collector.make_room = lambda now_ns: False
    rig.medium.flash.host.at = rig.medium.flash.host.end
    assert rig.do(Io.FLUSH, 1).code == Status.WRITE_FAULT
    answer = rig.admin(Admin.SET_FEATURES, cdw={10: Feature.WRITE_CACHE, 11: 0})
    assert answer.code == Status.WRITE_FAULT
    assert rig.admin(Admin.GET_FEATURES, cdw={10: Feature.WRITE_CACHE}).dw0 == 1, "it is still on"


def test_write_zeroes_keeps_to_what_identify_says(make_rig: Callable[..., Any]) -> None:
    rig = make_rig(size=64 << 20, lba_bytes=4096)
    namespace = rig.subsystem.namespaces.table[1]
    namespace.size_bytes = 60 << 20
    namespace.refresh()
    most = 4096 << rig.identify(6).data[1] >> 12
    assert rig.do(Io.WRITE_ZEROES, 1, slba=0, cdw={12: most - 1}).code == 0
    assert rig.do(Io.WRITE_ZEROES, 1, slba=0, cdw={12: most}).code == Status.INVALID_FIELD
    request = uxk.Request(0, uxk.Op.WRITE_ZEROES, b"", 0, 60 << 20)
    job = job_of(request, Disk(1, 12, 60 << 20, "n"))
    assert isinstance(job, Job)
    assert [words[4] & 0xFFFF for words in job.commands] == [most - 1, (60 << 8) - most - 1]


def test_busy_time_is_that_of_commands(make_rig: Callable[..., Any]) -> None:
    rig = make_rig(medium="simple", read_ns=100_000, bandwidth=0)
    for _ in range(2):  # together
        rig.start(Io.READ, 1, slba=0, cdw={12: 7}, length=4096)
    rig.clock.advance(50_000)
    assert rig.medium.smart(rig.clock.now_ns).busy_ns == 50_000
    rig.clock.advance(10**9)
    assert rig.medium.smart(rig.clock.now_ns).busy_ns == 100_000
    rig.start(Io.READ, 1, slba=0, cdw={12: 7}, length=4096)
    rig.clock.advance(30_000)
    rig.subsystem.power_loss(rig.clock.now_ns)
    rig.clock.advance(10**9)
    assert rig.medium.smart(rig.clock.now_ns).busy_ns == 130_000


def test_identify_tells_of_heat_and_of_small_powers(make_rig: Callable[..., Any]) -> None:
    hot, cold = make_rig(medium="ftl", warning_k=320, critical_k=330).identify(1).data, make_rig().identify(1).data
    assert struct.unpack_from("<HH", hot, 266) == (320, 330)
    assert (hot[322], cold[322]) == (1, 0)
    powers = [struct.unpack_from("<HBB", hot, 2048 + 32 * index) for index in range(5)]
    assert powers == [(825, 0, 0), (450, 0, 0), (300, 0, 0), (500, 0, 3), (50, 0, 3)]


# --- in a kernel ---


def command(opcode: int, nsid: int, slba: int) -> bytes:
    return struct.pack("<16I", opcode, nsid, *[0] * 8, slba, *[0] * 5)


@pytest.mark.parametrize("backing", ["ram", "sparse"])
async def test_a_killed_driver_still_knows_what_cannot_be_read(tmp_path: Path, backing: str) -> None:
    async with boot() as kernel:
        where = backing if backing == "ram" else f"sparse:{tmp_path / 'image'}"
        nvme = await kernel.modprobe("nvme", size="1MiB", backing=where)
        await nvme.submit(b"S" * 1024, opcode=uxk.Op.WRITE, offset=0)
        answer = await nvme.submit(command(Io.WRITE_UNCORRECTABLE, 1, 0), opcode=NvmeOp.IO, offset=1)
        assert nvme_status(answer.result) == 0
        crash(kernel, "nvme")
        answer = await nvme.submit(opcode=uxk.Op.READ, offset=0, length=512, check=False)
        assert answer.status == errno.ENODATA
        assert (await nvme.submit(opcode=uxk.Op.READ, offset=512, length=512)).payload == b"S" * 512
        if backing == "ram":
            return
        await kernel.rmmod("nvme")
        nvme = await kernel.modprobe("nvme", size="1MiB", backing=where)
        answer = await nvme.submit(opcode=uxk.Op.READ, offset=0, length=512, check=False)
        assert answer.status == errno.ENODATA
        await nvme.submit(b"T" * 512, opcode=uxk.Op.WRITE, offset=0)
        assert (await nvme.submit(opcode=uxk.Op.READ, offset=0, length=512)).payload == b"T" * 512


async def test_all_of_an_odd_image_is_there(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20) + b"E" * 512)
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", backing=f"file:{image}")
        assert (await nvme.submit(opcode=uxk.Op.READ, offset=1 << 20, length=512)).payload == b"E" * 512
        identified = await nvme.submit(
            struct.pack("<16I", Admin.IDENTIFY, *[0] * 9, 1, *[0] * 5), opcode=NvmeOp.ADMIN, length=4096
        )
        assert int.from_bytes(identified.payload[296:312], "little") == 0, "nothing is unallocated"


async def test_flash_is_made_slow_by_an_attribute() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="4MiB", medium="ftl", precondition="sequential")

        async def shown(text: str) -> str:
            kernel.sysfs.write(f"{ATTRIBUTES}/control", text)
            await nvme.submit(opcode=uxk.Op.READ, offset=0, length=4096)
            await kernel.sleep_ns(1_000_000_000)
            return kernel.sysfs.read(f"{ATTRIBUTES}/control").strip()

        assert await shown("slow_die 0 20000000") == "slow_die 0 20000000"
        assert await shown("throttle 2") == "slow_die 0 20000000\nthrottle 2"
        assert await shown("slow_die 99 20000000") == "slow_die 0 20000000\nthrottle 2"
        assert await shown("slow_die 0 1000000") == "throttle 2"
        assert await shown("throttle off") == ""
