"""The export over real sockets, in front of a small controller, with hosts that are good and hosts that are not."""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

import uxk
from uxk.testing import boot, crash, residue, usage
from uxk_nvmet_tcp import pdu
from uxk_nvmet_tcp.params import address_of
from uxk_nvmet_tcp.tests import fake as fake_module
from uxk_nvmet_tcp.tests.host import (
    DISCOVERY,
    DNR,
    HOST,
    Controller,
    HostProtocol,
    Queue,
    connect_data,
    connect_entry,
    controller,
    entry,
)

NQN = "nqn.2026-11.example.uxk:test"
ATTRIBUTES = "/sys/module/nvmet_tcp/attributes/"
DRIVER = fake_module.FakeNvme.manifest.name


class Rig:
    """A kernel with the export, and where it listens."""

    def __init__(self, kernel: uxk.Kernel) -> None:
        self.kernel = kernel
        host, _, port = kernel.sysfs.read(ATTRIBUTES + "address").rpartition(":")
        self.address = (host, int(port))

    def attribute(self, name: str) -> str:
        """One figure."""
        return self.kernel.sysfs.read(ATTRIBUTES + name)

    def store(self, name: str, value: str) -> None:
        """Writes an attribute of the export."""
        self.kernel.sysfs.write(ATTRIBUTES + name, value)

    async def until(self, name: str, value: str) -> None:
        """Waits for a figure: it is published several times a second."""
        with trio.fail_after(10):
            while self.attribute(name) != value:  # noqa: ASYNC110
                await trio.sleep(0.01)


@asynccontextmanager
async def serving(module: str = DRIVER, device: str = "fake_nvme0", **params: Any) -> AsyncIterator[Rig]:
    """A kernel on the real clock with a controller and the export."""
    async with boot(clock="real") as kernel:
        await kernel.modprobe(module)
        values = {"device": device, "port": 0, "nqn": NQN, "memory": 4 << 20, "connections": 16, **params}
        await kernel.modprobe("nvmet_tcp", **values)
        with trio.fail_after(60):
            yield Rig(kernel)


async def test_write_and_read_back() -> None:
    async with serving() as rig, controller(rig.address, NQN, queues=2) as ctrl:
        small, large = bytes(range(256)) * 16, bytes(range(251)) * 256 + bytes(1280)
        assert (await ctrl.io(1, 8, 8, small)).status == 0
        assert (await ctrl.io(1, 100, 128, large[:65536], qid=2)).status == 0
        assert (await ctrl.io(2, 8, 8, qid=2)).data == small
        assert (await ctrl.io(2, 100, 64)).data == large[:32768]
        assert ctrl.queues[2].protocol.r2ts == 1
        reply = await ctrl.io(2, fake_module.BLOCKS, 1)
        assert (reply.status, reply.data) == (0x80 | DNR, b"")
        await rig.until("connections", "3")
        assert rig.attribute("hosts").endswith("cntlid=1 queues=2")


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("data", [False, True])
async def test_digests(header: bool, data: bool) -> None:
    async with serving() as rig, controller(rig.address, NQN, header=header, data=data, hpda=7) as ctrl:
        block = random.Random(1).randbytes(20480)
        assert (await ctrl.io(1, 0, 40, block)).status == 0
        assert (await ctrl.io(1, 40, 1, block[:512])).status == 0
        assert (await ctrl.io(2, 0, 40)).data == block


async def test_digests_can_be_refused() -> None:
    async with serving(digests=False) as rig, trio.open_nursery() as nursery:
        queue = Queue(await trio.open_tcp_stream(*rig.address), nursery, header=True)
        await queue.hello()
        term = await queue.gone()
        assert term is not None and term[:2] == (6, 11)


async def test_digests_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crc32c", None)
    async with serving() as rig, trio.open_nursery() as nursery:
        lines = [record.text for record in rig.kernel.kmsg.records(source="nvmet_tcp")]
        assert "no digests for hosts: they need the package crc32c, pip install uxk[serve]" in lines, "at once"
        assert rig.attribute("digests") == "N"
        queue = Queue(await trio.open_tcp_stream(*rig.address), nursery, data=True)
        await queue.hello()
        term = await queue.gone()
        assert term is not None and term[:2] == (6, 11)


async def test_discover_and_connect_where_it_says() -> None:
    async with serving(advertise="localhost") as rig, controller(rig.address, DISCOVERY, queues=0) as discovery:
        log = (await discovery.log(0x70, 2048)).data
        assert log[8] == 1
        address = log[1536:1792].decode().strip(), int(log[1056:1088])
        async with controller(address, log[1280:1536].rstrip(b"\0").decode()) as ctrl:
            assert (await ctrl.identify(1))[4:8] == b"FAKE"
        assert (await discovery.admin.run(entry(9, dw10=0x0B, dw11=1 << 31))).status == 0
        event = discovery.admin.protocol.command(entry(0x0C))
        await discovery.admin.push()
        assert await discovery.get(0x1C) == 1
        rig.kernel.sysfs.write("/sys/module/nvmet_tcp/parameters/advertise", "192.0.2.9:77")
        assert (await discovery.admin.wait(event))[0].result == 0x70F002
        assert (await discovery.log(0x70, 2048)).data[1536:].startswith(b"192.0.2.9 ")
        rig.kernel.sysfs.write("/sys/module/nvmet_tcp/parameters/advertise", "x:y")
        await rig.kernel.sleep_ns(1_000_000)
        assert (await discovery.log(0x70, 2048)).data[1536:].startswith(b"192.0.2.9 ")


async def test_events_of_the_device() -> None:
    async with serving() as rig, controller(rig.address, NQN, queues=0) as ctrl:
        events = [ctrl.admin.protocol.command(entry(0x0C)) for _ in range(2)]
        assert (await ctrl.admin.run(entry(0x18))).status == 0
        rig.kernel.sysfs.write("/sys/module/fake_nvme/attributes/event", "0x40002")
        assert (await ctrl.admin.wait(events[0]))[0].result == 0x40002
        rig.kernel.sysfs.write("/sys/module/fake_nvme/attributes/event", "0x10001")
        assert (await ctrl.admin.wait(events[1]))[0].result == 0x10001


async def test_many_commands_at_once() -> None:
    async with serving() as rig, controller(rig.address, NQN, queues=3) as ctrl:
        for qid in (1, 2, 3):
            queue = ctrl.queues[qid]
            cids = [
                queue.protocol.command(entry(1, nsid=1, dw10=qid * 1000 + 8 * n, dw12=7), bytes([n]) * 4096)
                for n in range(127)
            ]
            assert {reply.status for reply in await queue.wait(*cids)} == {0}
        cids = [queue.protocol.command(entry(2, nsid=1, dw10=3000 + 8 * n, dw12=7), read=4096) for n in range(127)]
        assert [reply.data[0] for reply in await queue.wait(*cids)] == list(range(127))


async def test_figures_and_accounts() -> None:
    async with serving() as rig:
        before = usage(rig.kernel)["capabilities"]
        async with controller(rig.address, NQN) as ctrl:
            for number in range(5):
                await ctrl.io(1, number, 1, bytes(512))
            await ctrl.io(2, 0, 8)
            await rig.until("hosts", f"{HOST} cntlid=1 queues=1")
            assert {"io 01 5", "io 02 1", "admin 7f 5"} <= set(rig.attribute("commands").split("\n"))
        await rig.until("connections", "0")
        await rig.until("hosts", "")
        client, driver = (rig.kernel.module(name).statistics() for name in ("nvmet_tcp", "fake_nvme"))
        assert (client["io_read_bytes"], client["io_written_bytes"]) == (4096, 5 * 512)
        assert (driver["read_bytes"], driver["written_bytes"]) == (4096, 5 * 512)
        assert driver["requests"] == driver["completed"] == client["submitted"] and not client["rejects"]
        assert usage(rig.kernel)["capabilities"] <= before + 2, "the device, and the memory that it was handed"
        await rig.kernel.rmmod("nvmet_tcp")
        await rig.kernel.rmmod("fake_nvme")
        assert not residue(rig.kernel)
        with pytest.raises(OSError, match=r"."):
            await trio.open_tcp_stream(*rig.address)


async def test_link_down_and_up() -> None:
    async with serving() as rig, controller(rig.address, NQN) as ctrl:
        rig.store("link", "sideways")
        rig.store("link", "down")
        assert await ctrl.admin.gone() is None and await ctrl.queues[1].gone() is None
        queue = Queue(await trio.open_tcp_stream(*rig.address), ctrl._nursery)
        await queue.hello()
        assert await queue.gone() is None and not queue.protocol.ready
        rig.store("link", "up")
        async with controller(rig.address, NQN) as again:
            assert (await again.io(2, 0, 1)).status == 0
        assert rig.attribute("link") == "up"
        lines = [record.text for record in rig.kernel.kmsg.records(source="nvmet_tcp")]
        assert "link: 'sideways', expected up or down" in lines


async def test_the_host_list_can_be_changed() -> None:
    async with serving(allow=f"{HOST}, nqn.other") as rig, controller(rig.address, NQN) as ctrl:
        rig.kernel.sysfs.write("/sys/module/nvmet_tcp/parameters/allow", "nqn.other")
        await ctrl.admin.gone()
        async with trio.open_nursery() as nursery:
            stranger = Controller(rig.address, NQN, nursery, HOST, {})
            assert (await stranger.connect()).status == 0x184 | DNR
            nursery.cancel_scope.cancel()


async def test_two_hosts_of_which_one_may_come() -> None:
    stranger, friend = "nqn.2026-11.example.uxk:stranger", "nqn.2026-11.example.uxk:friend"
    async with serving(allow=friend) as rig, trio.open_nursery() as nursery:
        refused = Controller(rig.address, NQN, nursery, stranger, {})
        async with controller(rig.address, NQN, host=friend, queues=2) as served:
            assert (await refused.connect())[:2] == (0x184 | DNR, 0)
            assert (await served.io(1, 0, 8, b"\1" * 4096, qid=2)).status == 0
            assert (await refused.connect(1, 127)).status == 0x184 | DNR, "not by way of an I/O queue, either"
            refused.cntlid = served.cntlid
            assert (await refused.connect(1, 127)).status == 0x184 | DNR
            assert (await served.io(2, 0, 8)).data == b"\1" * 4096
            await rig.until("hosts", f"{friend} cntlid={served.cntlid} queues=2")
            await rig.until("refused", "3")
            for host, entries in ((stranger, 0), (friend, 1)):
                async with controller(rig.address, DISCOVERY, host=host, queues=0) as discovery:
                    assert (await discovery.log(0x70, 1024)).data[8] == entries
            rig.kernel.sysfs.write("/sys/module/nvmet_tcp/parameters/allow", f"{friend},{stranger}")
            async with controller(rig.address, NQN, host=stranger) as other:
                assert (await other.io(2, 0, 8)).data == b"\1" * 4096
                assert (await served.io(2, 0, 8)).data == b"\1" * 4096
            rig.kernel.sysfs.write("/sys/module/nvmet_tcp/parameters/allow", "192.0.2.1")
            await rig.kernel.sleep_ns(1_000_000)
            assert (await served.io(2, 0, 8)).status == 0, "a list that is none changes nothing"
        nursery.cancel_scope.cancel()


async def test_a_silent_host_is_given_up() -> None:
    async with serving() as rig, controller(rig.address, NQN, kato_ms=100) as ctrl:
        assert await ctrl.queues[1].gone() is None
        await rig.until("connections", "0")


async def test_the_device_dies_and_comes_back() -> None:
    async with serving() as rig:
        for _ in range(2):
            async with controller(rig.address, NQN) as ctrl:
                event = ctrl.admin.protocol.command(entry(0x0C))
                await ctrl.admin.run(entry(0x18))
                rig.kernel.sysfs.write("/sys/module/fake_nvme/attributes/die", "now")
                await ctrl.admin.gone()
                assert event not in ctrl.admin.protocol.replies
            await rig.until("hosts", "")
            await rig.kernel.sleep_ns(20_000_000)  # its restart is due after less
        async with controller(rig.address, NQN) as ctrl:
            assert (await ctrl.io(1, 0, 1, b"x" * 512)).status == 0


async def test_hosts_do_not_notice_that_the_driver_dies() -> None:
    async with serving("nvme", "nvme0") as rig, controller(rig.address, NQN) as ctrl:
        queue = ctrl.queues[1]
        for fill in (1, 2):
            writes = [queue.protocol.command(entry(1, nsid=1, dw10=n, dw12=0), bytes([fill]) * 512) for n in range(60)]
            await queue.push()
            crash(rig.kernel, "nvme")
            assert {reply.status for reply in await queue.wait(*writes)} == {0}
            assert (await ctrl.io(2, 0, 60)).data == bytes([fill]) * 512 * 60
        page = await ctrl.identify(1)
        assert page[78:80] == ctrl.cntlid.to_bytes(2, "little") and page[77] > 0


async def test_the_export_dies_and_comes_back() -> None:
    with trio.socket.socket() as probe:
        await probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with serving(port=port) as rig, controller(rig.address, NQN) as ctrl:
        crash(rig.kernel, "nvmet_tcp")
        await ctrl.admin.gone()
        await rig.kernel.sleep_ns(100_000_000)
        async with controller(rig.address, NQN) as again:
            assert (await again.io(2, 0, 1)).status == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", 0)),
        ("192.0.2.1", ("192.0.2.1", 0)),
        ("192.0.2.1:4420", ("192.0.2.1", 4420)),
        (":4420", ("", 4420)),
        ("2001:db8::1", ("2001:db8::1", 0)),
        ("[2001:db8::1]", ("2001:db8::1", 0)),
        ("[2001:db8::1]:1", ("2001:db8::1", 1)),
        ("name.example:65536", None),
        ("name.example:x", None),
        ("[::1", None),
        ("a:b:c:d:99999", None),
        ("192.0.2.256", None),
        ("10.0.2", None),
        ("-a.example", None),
        ("a" * 64, None),
        ("fe80::1%eth0", ("fe80::1%eth0", 0)),
        ("disk-1.example:1", ("disk-1.example", 1)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int] | None) -> None:
    if expected is None:
        with pytest.raises(uxk.ParamError, match="expected ADDRESS"):
            address_of(text)
    else:
        assert address_of(text) == expected


async def test_unloading_gives_the_controllers_back() -> None:
    async with serving() as rig, controller(rig.address, NQN) as ctrl:
        await rig.kernel.rmmod("nvmet_tcp")
        assert await ctrl.admin.gone() is None
        await rig.kernel.modprobe("nvmet_tcp", device="fake_nvme0", port=0, nqn=NQN)
        async with controller(Rig(rig.kernel).address, NQN) as again:
            assert again.cntlid == 1


async def test_without_a_device_there_is_nothing_to_do() -> None:
    async with boot() as kernel:
        await kernel.modprobe("nvmet_tcp")
        assert "no device is named, nothing is exported" in [line.text for line in kernel.kmsg.records()]


async def test_what_cannot_be_served_is_said_when_it_is_loaded() -> None:
    async with boot(clock="real") as kernel:
        for params, text in (
            ({"device": "nowhere0"}, "no device 'nowhere0'"),
            ({"device": "null0"}, "no NVMe controller"),
            ({"device": "null0", "memory": 1 << 20}, "16384 for each of 64 connections, expected at least 65536"),
            ({"device": "null0", "host": "203.0.113.77"}, "203.0.113.77:4420: cannot listen there"),
            ({"device": "null0", "host": "a" * 70}, "host='aaaa"),
            ({"device": "null0", "nqn": DISCOVERY}, "every discovery controller"),
            ({"device": "null0", "allow": "nqn.a,127.0.0.1"}, "allow='127.0.0.1': expected the NQNs of hosts"),
            ({"device": "null0", "advertise": "a:b:c:d:99999"}, "advertise='a:b:c:d:99999': expected ADDRESS"),
        ):
            if "null" not in kernel.agents and params["device"] == "null0":
                await kernel.modprobe("null")
            with pytest.raises(uxk.ProbeError, match=text):
                await kernel.modprobe("nvmet_tcp", **params)


# --- hosts that are not good ---


async def test_garbage_ends_only_its_own_connection() -> None:
    chance = random.Random(7)
    async with serving() as rig, controller(rig.address, NQN) as ctrl:
        for number in range(60):
            stream = await trio.open_tcp_stream(*rig.address)
            data = pdu.ic_req() * (number % 2) + chance.randbytes(chance.randrange(400))
            await stream.send_all(data)
            if number % 3:
                await stream.aclose()
            else:
                with trio.move_on_after(0.05):
                    await stream.receive_some(1000)
                await stream.aclose()
            assert (await ctrl.io(2, 0, 1)).status == 0
        assert not [line for line in rig.kernel.kmsg.records(source="nvmet_tcp") if "oops" in line.text]


async def test_who_breaks_the_protocol_is_told_why_however_much_it_goes_on_sending() -> None:
    wrong = pdu.COMMON.pack(pdu.PduType.CAPSULE_CMD, 0, 73, 0, 72)
    async with serving() as rig, trio.open_nursery() as nursery:
        for trailer in (b"", bytes(200_000)):
            queue = Queue(await trio.open_tcp_stream(*rig.address), nursery)
            queue.protocol.out += wrong + trailer
            await queue.hello()
            term = await queue.gone()
            assert term is not None and term == (1, 2, wrong)
        await rig.until("protocol_errors", "2")


async def test_replies_that_nobody_takes_for_a_while() -> None:
    async with serving(connections=4) as rig, controller(rig.address, NQN) as ctrl:
        await ctrl.io(1, 0, 256, b"\5" * (128 << 10))
        slow = Controller(rig.address, NQN, ctrl._nursery, HOST, {})
        assert (await slow.connect()).status == 0
        await slow.enable()
        stream = await trio.open_tcp_stream(*rig.address)
        protocol = HostProtocol()
        cids = [protocol.command(connect_entry(1, 127), connect_data(NQN, cntlid=slow.cntlid))]
        cids += [protocol.command(entry(2, nsid=1, dw12=255), read=128 << 10) for _ in range(120)]
        await stream.send_all(bytes(protocol.out))
        for _ in range(20):
            assert (await ctrl.io(2, 0, 1)).status == 0
        while len(protocol.replies) < len(cids):
            protocol.receive(await stream.receive_some(64 << 10))
        assert all(protocol.replies[cid].data == b"\5" * (128 << 10) for cid in cids[1:])
        await stream.aclose()


async def test_a_flood_of_commands_whose_replies_nobody_takes() -> None:
    async with serving(connections=4) as rig, controller(rig.address, NQN) as ctrl:
        protocol = HostProtocol()
        keep_alive = entry(0x18)
        stream = await trio.open_tcp_stream(*rig.address)
        protocol.command(connect_entry(0, 31), connect_data(NQN))
        await stream.send_all(bytes(protocol.out))
        protocol.out.clear()
        for _ in range(30):
            protocol.command(keep_alive)
        flood, sent = bytes(protocol.out), 0
        with trio.move_on_after(1) as limit:
            while True:
                await stream.send_all(flood)
                sent += len(flood)
        assert limit.cancelled_caught and sent < 64 << 20, "it is not listened to any more"
        assert (await ctrl.io(2, 0, 1)).status == 0
        await stream.aclose()
        await rig.until("connections", "2")


async def test_leaving_with_commands_under_way() -> None:
    async with serving() as rig, controller(rig.address, NQN) as ctrl:
        for number in range(30):
            async with trio.open_nursery() as nursery:
                rude = Controller(rig.address, NQN, nursery, HOST, {})
                assert (await rude.connect()).status == 0
                await rude.enable()
                assert (await rude.connect(1, 127)).status == 0
                protocol = rude.queues[1].protocol
                for _ in range(32):
                    protocol.command(entry(2, nsid=1, dw12=63), read=32 << 10)
                    protocol.command(entry(1, nsid=1, dw12=63), bytes(32 << 10))
                await rude.queues[1].stream.send_all(bytes(protocol.out)[: 4000 + 50 * number])
                if number % 2:
                    rude.queues[1].stream.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: a reset
                await rude.close()
                nursery.cancel_scope.cancel()
        assert (await ctrl.io(2, 0, 1)).status == 0
        await rig.until("connections", "2")


async def test_silent_connections_make_room() -> None:
    async with serving(connections=4) as rig, controller(rig.address, NQN) as ctrl:
        silent = [await trio.open_tcp_stream(*rig.address) for _ in range(40)]
        async with controller(rig.address, NQN, host="nqn.2026-11.example.uxk:second") as other:
            assert (await other.io(2, 0, 1)).status == 0
            full = Queue(await trio.open_tcp_stream(*rig.address), ctrl._nursery)
            assert await full.gone() is None
        assert (await ctrl.io(2, 0, 1)).status == 0
        for stream in silent:
            await stream.aclose()
        assert int(rig.attribute("refused")) >= 0
