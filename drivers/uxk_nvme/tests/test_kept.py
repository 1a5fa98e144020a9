"""What outlives the driver: controllers, features, health; and what ends with a client."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

import pytest

import uxk
from uxk.testing import boot, crash
from uxk.uapi.blk import NvmeOp, nvme_status
from uxk_nvme.admin import ADMIN_TABLE
from uxk_nvme.features import TRAITS
from uxk_nvme.io import IO_TABLE
from uxk_nvme.kept import KEPT_BYTES, KeptTable
from uxk_nvme.namespaces import NAMESPACES_MAX
from uxk_nvme.passthru import NQN_MAX, QUEUES_MAX
from uxk_nvme.spec import Admin, Feature, Io, Log
from uxk_nvme.subsystem import CONTROLLERS_MAX, HOSTS_MAX, PRIMARY, resume

ATTRIBUTES = "/sys/module/nvme/attributes"


def sqe(opcode: int, nsid: int = 0, **cdw: int) -> bytes:
    words = [0] * 16
    words[0], words[1] = opcode | 5 << 16, nsid
    for name, value in cdw.items():
        words[int(name.removeprefix("cdw"))] = value
    return struct.pack("<16I", *words)


class Client:
    """A client with a port of its own."""

    def __init__(self, kernel: uxk.Kernel) -> None:
        self._kernel = kernel
        self._answers: dict[int, uxk.Completion] = {}
        self.port = kernel.agents["nvme"].open_port("host", self._on_completions, tagged=True)

    def _on_completions(self, completions: list[uxk.Completion]) -> None:
        self._answers.update((completion.cid, completion) for completion in completions)

    async def do(self, op: int, payload: bytes = b"", *, cntlid: int = 0, qid: int = 0, length: int = 0) -> Any:
        cid = self.port.submit(uxk.Request(0, op, payload, cntlid << 16 | qid, length))
        for _ in range(40):
            if cid in self._answers:
                break
            await self._kernel.sleep_ns(100_000_000)
        return self._answers.pop(cid)

    async def attach(self, name: str = "nqn.host") -> uxk.Completion:
        answer: uxk.Completion = await self.do(NvmeOp.ATTACH, name.encode().ljust(256, b"\0") + bytes(16))
        return answer

    async def admin(
        self, cntlid: int, opcode: int, nsid: int = 0, data: bytes = b"", length: int = 0, **cdw: int
    ) -> Any:
        answer = await self.do(NvmeOp.ADMIN, sqe(opcode, nsid, **cdw) + data, cntlid=cntlid, length=length)
        assert answer.status == 0 and nvme_status(answer.result) == 0
        return answer


# --- the table ------------------------------------------------------------------------------------------------


def crowded(rig: Any) -> Any:
    """A subsystem with as much of everything as there can be, all names as long as they may be."""
    subsystem = rig.subsystem
    for _ in range(NAMESPACES_MAX - 1):
        subsystem.namespaces.create(8, 9)
    names = iter(f"{n:0{NQN_MAX}}" for n in range(1 << 20))
    for nsid in range(1, NAMESPACES_MAX + 1):
        subsystem.namespaces.table[nsid].hosts = {next(names): None for _ in range(HOSTS_MAX)}
        subsystem.namespaces.table[nsid].refused = {next(names): None for _ in range(HOSTS_MAX)}
    for _ in range(CONTROLLERS_MAX - 1):
        made = subsystem.add_controller(next(names), bytes(16), 1 << 62, (ADMIN_TABLE, IO_TABLE))
        made.queue_limit = QUEUES_MAX
        keys = [*TRAITS, *(threshold << 8 | Feature.TEMPERATURE for threshold in (0, 1, 0x10, 0x11))]
        made.features.saved = dict.fromkeys(keys, 0xFFFFFFFF)
        keys += [vector << 8 | Feature.VECTOR for vector in range(17)]
        made.features.values = dict.fromkeys(keys, 0xFFFFFFFF)
    for namespace in subsystem.namespaces.table.values():
        namespace.attached = dict.fromkeys(subsystem.controllers)
    return subsystem


def test_the_longest_table_fits(rig: Any) -> None:
    subsystem, memory = crowded(rig), memoryview(bytearray(KEPT_BYTES))
    for _ in range(2):
        KeptTable(memory).save(subsystem.record())
        assert KeptTable(memory).load() == subsystem.record()


def test_a_table_brings_everything_back(rig: Any, make_rig: Callable[..., Any]) -> None:
    kept = crowded(rig).record()
    other = make_rig()
    other.subsystem.restore(kept)
    for record in kept.controllers:
        made = other.subsystem.controllers.get(record.cntlid) or other.subsystem.add_controller(
            record.host, record.host_id, record.port, (ADMIN_TABLE, IO_TABLE), cntlid=record.cntlid
        )
        resume(made, record)
    assert other.subsystem.record() == kept
    assert other.admin(Admin.NAMESPACE_MANAGEMENT, 1, cdw={10: 1}).status == 0, "all that it is attached to are there"


def test_what_was_not_attached_is_not_after_a_crash(rig: Any, make_rig: Callable[..., Any]) -> None:
    host = rig.host()
    late = rig.subsystem.namespaces.create(8, 9)
    rig.subsystem.attach(late, [PRIMARY], attach=True)
    assert list(host.active) == [1]
    kept, other = rig.subsystem.record(), make_rig()
    other.subsystem.restore(kept)
    again = other.subsystem.add_controller(host.host, bytes(16), 7, (ADMIN_TABLE, IO_TABLE), cntlid=host.cntlid)
    assert list(again.active) == [1]


# --- crashes --------------------------------------------------------------------------------------------------


async def test_features_outlive_a_crash() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB", medium="simple", write_cache="64KiB")
        client = Client(kernel)
        host = (await client.attach()).result
        for cntlid in (PRIMARY, host):
            acre = b"\1".ljust(512, b"\0")
            await client.admin(cntlid, Admin.SET_FEATURES, data=acre, cdw10=Feature.HOST_BEHAVIOUR)
            stamp = (10**12).to_bytes(8, "little")
            await client.admin(cntlid, Admin.SET_FEATURES, data=stamp, cdw10=Feature.TIMESTAMP)
            await client.admin(cntlid, Admin.SET_FEATURES, cdw10=Feature.TEMPERATURE, cdw11=300)
        await client.admin(host, Admin.SET_FEATURES, cdw10=Feature.WRITE_CACHE, cdw11=0)
        await client.admin(host, Admin.SET_FEATURES, cdw10=Feature.POWER, cdw11=1)
        await client.admin(host, Admin.SET_FEATURES, 1, cdw10=Feature.ERROR_RECOVERY, cdw11=7)
        crash(kernel, "nvme")
        await kernel.sleep_ns(1_000_000_000)

        async def get(cntlid: int, feature: int, nsid: int = 0, length: int = 0) -> Any:
            return await client.admin(cntlid, Admin.GET_FEATURES, nsid, cdw10=feature, length=length)

        for cntlid in (PRIMARY, host):
            assert (await get(cntlid, Feature.HOST_BEHAVIOUR, length=512)).payload[0] == 1
            stamp = (await get(cntlid, Feature.TIMESTAMP, length=8)).payload
            assert 10**12 <= int.from_bytes(stamp[:6], "little") < 10**12 + 60_000
            assert (await get(cntlid, Feature.TEMPERATURE)).result == 300
            assert (await get(cntlid, Feature.WRITE_CACHE)).result == 0
            assert (await get(cntlid, Feature.POWER)).result == 1
            assert (await get(cntlid, Feature.ERROR_RECOVERY, nsid=1)).result == 7
        await nvme.submit(b"d" * 4096, opcode=uxk.Op.WRITE)
        kernel.sysfs.write(f"{ATTRIBUTES}/power_loss", "1")
        answer = await nvme.submit(opcode=uxk.Op.READ, length=512)
        assert answer.payload == b"d" * 512, "nothing is cached while the cache is off"


@pytest.mark.parametrize("medium", ["none", "simple", "ftl"])
async def test_health_outlives_a_crash(medium: str) -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="16MiB", medium=medium)

        async def counters() -> tuple[int, ...]:
            page = sqe(Admin.GET_LOG_PAGE, cdw10=Log.SMART | 127 << 16)
            answer = await nvme.submit(page, opcode=NvmeOp.ADMIN, length=512)
            return struct.unpack_from("<Q8xQ8xQ8xQ8x16x16x16xQ8x16xQ", answer.payload, 32)

        for number in range(10):
            await nvme.submit(bytes(128 << 10), opcode=uxk.Op.WRITE, offset=number << 17)
        await nvme.submit(opcode=uxk.Op.READ, length=128 << 10)
        kernel.sysfs.write(f"{ATTRIBUTES}/power_loss", "1")
        await nvme.submit(sqe(0x99), opcode=NvmeOp.ADMIN)
        before = await counters()
        assert before[1] == 3 and before[3] == 10
        for expected in (10, 20):
            await kernel.sleep_ns(1_000_000_000)
            crash(kernel, "nvme")
            await kernel.sleep_ns(2_000_000_000)
            assert (await counters())[3] == expected
            for number in range(10):
                await nvme.submit(bytes(128 << 10), opcode=uxk.Op.WRITE, offset=number << 17)
        after = await counters()
        assert after[0] >= before[0] and after[1] == 8 and after[3] == 30 and after[4:] == before[4:]
        kernel.sysfs.write(f"{ATTRIBUTES}/refresh", "1")
        await kernel.sleep_ns(1_000)
        assert "host_writes 30" in kernel.sysfs.read(f"{ATTRIBUTES}/smart")


# --- clients --------------------------------------------------------------------------------------------------


async def test_a_crash_makes_nobody_silent() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB")
        await kernel.sleep_ns(600_000_000_000)
        clients = [Client(kernel) for _ in range(7)]
        held: dict[Client, list[int]] = {client: [] for client in clients}
        for client in clients:
            while (answer := await client.attach()).status == 0:
                held[client].append(answer.result)
            assert answer.status == errno.EMFILE
        assert sum(map(len, held.values())) == CONTROLLERS_MAX - 1
        crash(kernel, "nvme")
        await kernel.sleep_ns(1_000_000_000)
        assert [(await client.attach()).status for client in clients] == [errno.EMFILE] * 7
        await clients[0].admin(held[clients[0]][0], Admin.KEEP_ALIVE)


async def test_no_client_takes_everything() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB")
        greedy, modest = Client(kernel), Client(kernel)
        statuses = [(await greedy.attach()).status for _ in range(64)]
        assert statuses == [0] * 32 + [errno.EMFILE] * 32
        assert (await modest.attach()).status == 0
        await kernel.sleep_ns(121_000_000_000)
        assert (await greedy.attach()).status == 0, "its own, silent for two minutes, gives way"


async def test_names_are_bounded() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB")
        client = Client(kernel)
        assert (await client.attach("n" * NQN_MAX)).status == 0
        assert (await client.attach("n" * (NQN_MAX + 1))).status == errno.EINVAL


class Exporter(uxk.Extension):
    """Has controllers for hosts of its own, a command and an event request under way; and dies, or lets go."""

    manifest = uxk.Manifest(
        name="exporter", version="1", license="Apache-2.0", kind="ml-agent", capabilities=("device:*:submit",)
    )
    cntlids: list[int]

    async def run(self, ctx: uxk.Context) -> None:
        cap = (await ctx.open_device("nvme0")).result
        cls = type(self)
        cls.cntlids = []
        for number in range(3):
            payload = f"nqn.{number}".encode().ljust(256, b"\0") + bytes(16)
            cls.cntlids.append((await ctx.submit(cap, NvmeOp.ATTACH, payload)).result)
        where = cls.cntlids[0] << 16
        ctx.submit(cap, NvmeOp.WAIT_EVENT, offset=where, length=10_000)
        ctx.submit(cap, NvmeOp.IO, sqe(Io.READ, 1), offset=where | 1, length=512)
        await ctx.sleep_ns(1_000_000)
        if self.revokes:
            ctx.revoke(cap)
        await ctx.sleep_ns(1 << 60)

    revokes = False


class Revoker(Exporter):
    """Gives its capability back."""

    manifest = uxk.Manifest(
        name="revoker", version="1", license="Apache-2.0", kind="ml-agent", capabilities=("device:*:submit",)
    )
    revokes = True


async def hosts(kernel: uxk.Kernel) -> list[str]:
    await kernel.sleep_ns(1_000_000_000)
    kernel.sysfs.write(f"{ATTRIBUTES}/refresh", "1")
    await kernel.sleep_ns(1_000)
    return [line.split()[1] for line in kernel.sysfs.read(f"{ATTRIBUTES}/controllers").splitlines()]


async def test_a_client_that_dies_takes_its_hosts_along() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB", medium="simple")
        await kernel.insmod(Exporter)
        assert len(await hosts(kernel)) == 4
        other = Client(kernel)
        assert (await other.attach("nqn.other")).status == 0
        assert await hosts(kernel) == ["kernel", "nqn.0", "nqn.1", "nqn.2", "nqn.other"]
        first = Exporter.cntlids
        for _ in range(2):
            crash(kernel, "exporter")
            assert await hosts(kernel) == ["kernel", "nqn.other", "nqn.0", "nqn.1", "nqn.2"], "those of its new life"
        assert set(first).isdisjoint(Exporter.cntlids)
        await kernel.rmmod("exporter")
        assert await hosts(kernel) == ["kernel", "nqn.other"]


async def test_a_client_that_gives_its_capability_back() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB")
        await kernel.insmod(Revoker)
        assert await hosts(kernel) == ["kernel"]


async def test_a_client_that_dies_while_the_driver_is_down() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvme", size="1MiB", medium="simple")
        await kernel.insmod(Exporter)
        assert len(await hosts(kernel)) == 4
        crash(kernel, "nvme")
        await kernel.rmmod("exporter")
        await kernel.sleep_ns(5_000_000_000)
        assert await hosts(kernel) == ["kernel"]
