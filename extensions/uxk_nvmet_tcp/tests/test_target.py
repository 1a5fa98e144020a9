"""Connect, properties, the life of controllers, events and memory: everything above the protocol, without sockets."""

from __future__ import annotations

import errno

import pytest

from uxk_nvmet_tcp.places import owner_of
from uxk_nvmet_tcp.tests.fake import BLOCKS
from uxk_nvmet_tcp.tests.host import DISCOVERY, DNR, HOST, Reply, connect_data, connect_entry, entry
from uxk_nvmet_tcp.tests.lab import MS, NQN, OTHER, Lab, both, fabrics

# --- Connect ---


def test_the_way_of_linux() -> None:
    lab = Lab()
    admin = lab.wire()
    assert admin.connect(kato_ms=5000) == Reply(0, 1, b"", 1)
    cap = admin.get(0, 1)
    assert (cap & 0xFFFF, cap >> 16 & 1, cap >> 24 & 0xFF > 0, cap >> 37 & 1) == (127, 1, True, 1)
    assert admin.get(8) == 0x20000
    assert admin.set_cc(0x460000) == 0 and admin.get(0x1C) == 0
    assert admin.set_cc(0x460001) == 0 and (admin.get(0x1C), admin.get(0x14)) == (1, 0x460001)
    page = admin.run(entry(6, dw10=1), read=4096).data
    assert page[78:80] == b"\1\0" and page[768:1024].rstrip(b"\0").decode() == NQN
    assert (page[111], page[320], page[76] & 2, page[77]) == (1, 1, 2, 3)
    assert int.from_bytes(page[536:540], "little") == 0x00100001
    assert [int.from_bytes(page[at : at + 4], "little") for at in (1792, 1796)] == [4 + 256, 1]
    assert int.from_bytes(page[514:516], "little") == 128 and page[1800:1803] == b"\0\0\0"
    assert admin.run(entry(9, dw10=7, dw11=0x00040002)).result == 0x00040002
    assert admin.run(entry(9, dw10=7, dw11=0x00400040)).result == 0x00070007
    assert admin.run(entry(0x0A, dw10=7)).result == 0x00070007
    assert admin.run(entry(0x0A, dw10=15)).result == 5000
    io = lab.wire()
    assert io.connect(1, cntlid=1, sqsize=127).result == 1
    assert admin.set_cc(0x464001) == 0 and admin.get(0x1C) & 0xC == 8
    assert lab.device.flushes == 1, "a normal shutdown writes the cache back"


@pytest.mark.parametrize(
    ("sqe", "data", "status", "result"),
    [
        (connect_entry(0, 31, recfmt=1), connect_data(NQN), 0x180, 0),
        (connect_entry(0, 31), connect_data(OTHER), 0x182, 0x10100),
        (connect_entry(0, 31), connect_data(NQN, cntlid=1), 0x182, 0x10010),
        (connect_entry(0, 31), connect_data(NQN, host=""), 0x182, 0x10200),
        (connect_entry(0, 0), connect_data(NQN), 0x182, 44),
        (connect_entry(0, 128), connect_data(NQN), 0x182, 44),
        (connect_entry(0, 31), connect_data(NQN)[:1000], 0x0F, 0),
        (connect_entry(0, 31), b"", 0x0F, 0),
        (connect_entry(1, 127), connect_data(NQN, cntlid=7), 0x182, 0x10010),
        (connect_entry(1, 127), connect_data(NQN, cntlid=1, host=OTHER), 0x182, 0x10200),
        (connect_entry(1, 127), connect_data(NQN, cntlid=1, host_id=bytes(15) + b"x"), 0x182, 0x10000),
        (connect_entry(9, 127), connect_data(NQN, cntlid=1), 0x182, 42),
        (connect_entry(1, 127), connect_data(NQN, cntlid=1), 0x0C, 0),
        (connect_entry(1, 31), connect_data(DISCOVERY), 0x182, 42),
        (entry(0x18), b"", 0x0C, 0),
        (fabrics(4, dw11=0x1C), b"", 0x0C, 0),
    ],
)
def test_connect_is_refused(sqe: bytearray, data: bytes, status: int, result: int) -> None:
    lab = Lab()
    both(lab)
    assert lab.wire().run(sqe, data)[:2] == (status | DNR, result)


def test_hosts_that_are_not_allowed() -> None:
    lab = Lab(allow=frozenset({HOST}))
    assert lab.wire().connect(host=OTHER).status == 0x184 | DNR
    admin = lab.wire().enable()
    lab.target.reconfigure(allow=frozenset({OTHER}))
    assert admin.session.closed and not lab.device.hosts


def test_too_many_controllers() -> None:
    lab = Lab(connections=12)
    for _ in range(8):
        lab.wire().enable()
    assert lab.wire().connect().status == 0x181 | DNR


def test_a_host_whose_name_the_device_does_not_take() -> None:
    lab = Lab()
    lab.device.act = lambda op, offset, length, payload, data, then: then(errno.EINVAL, 0, b"")
    wire = lab.wire()
    assert wire.connect(host="a\nforged line")[:2] == (0x182 | DNR, 0x10200)
    assert not wire.session.closed and lab.pool.taken.total() == 1


def test_a_connect_waits_for_the_device() -> None:
    lab = Lab()
    lab.backend.at_once = False
    admin = lab.wire()
    cid = admin.host.command(connect_entry(0, 31), connect_data(NQN))
    early = admin.host.command(entry(0x18))
    lab.pump()
    assert list(admin.host.replies) == [early] and admin.host.replies[early].status == 0x0C | DNR
    while lab.backend.held:
        lab.backend.answer(1)
        lab.pump()
    assert admin.host.replies[cid].result == 1


def test_a_host_that_leaves_before_the_device_answers() -> None:
    lab = Lab()
    lab.backend.at_once = False
    admin = lab.wire()
    admin.host.command(connect_entry(0, 31), connect_data(NQN))
    lab.pump()
    lab.backend.answer(1)
    admin.session.close("gone")
    lab.backend.at_once = True
    lab.backend.answer()
    assert not lab.device.hosts and not lab.target.controllers and lab.pool.free == 8


def test_a_device_that_is_not_there_ends_the_connection_rather_than_refusing() -> None:
    lab = Lab()
    lab.device.act = lambda op, offset, length, payload, data, then: then(errno.ENODEV, 0, b"")
    wire = lab.wire()
    wire.host.command(connect_entry(0, 31), connect_data(NQN))
    lab.pump()
    assert wire.session.closed and not wire.host.replies and "ENODEV" in lab.lines[-1]


# --- the life of a controller ---


def test_reset_ends_the_io_queues_and_keeps_the_cntlid() -> None:
    lab = Lab()
    admin, io = both(lab)
    event = admin.host.command(entry(0x0C))
    lab.pump()
    assert admin.set_cc(0x460000) == 0 and admin.get(0x1C) == 0
    assert io.session.closed and event not in admin.host.replies
    assert admin.run(entry(6, dw10=1), read=4096).status == 0x0C | DNR
    assert admin.set_cc(0x460001) == 0
    again = lab.wire()
    assert again.connect(1, cntlid=1, sqsize=127).status == 0
    assert again.run(entry(2, nsid=1), read=512).status == 0
    lab.device.happen(0x40002)
    waiting = admin.host.command(entry(0x0C))
    lab.pump()
    assert admin.host.replies[waiting].result == 0x40002


def test_reset_is_not_done_before_the_device_is() -> None:
    lab = Lab()
    admin = lab.wire().enable()
    lab.backend.at_once = False
    admin.set_cc(0x460000)
    assert admin.get(0x1C) == 1
    assert admin.set_cc(0x460001) == 0 and admin.get(0x1C) == 0, "it is not enabled before"
    lab.backend.answer()
    assert admin.get(0x1C) == 1
    lab.backend.at_once = True
    assert admin.run(entry(6, dw10=1), read=4096).status == 0


def test_resets_without_end_are_one_to_the_device() -> None:
    lab = Lab()
    admin = lab.wire().enable()
    lab.backend.at_once = False
    for _ in range(50):
        admin.set_cc(0x460000)
        admin.set_cc(0x460001)
        admin.set_cc(0x464001)
    assert len(lab.backend.held) == 3, "detach, attach, flush"
    lab.backend.answer()
    assert admin.get(0x1C) & 1 and len(lab.device.hosts) == 1
    assert admin.set_cc(0x464001) == 0
    lab.backend.answer()
    assert admin.get(0x1C) & 0xC == 8


def test_who_leaves_during_a_reset_takes_nobody_else_along() -> None:
    lab = Lab()
    admin = lab.wire().enable()
    lab.backend.at_once = False
    admin.set_cc(0x460000)
    lab.backend.answer(2)  # its controller has a new number now: 1, again
    admin.set_cc(0x460001)
    admin.set_cc(0x460000)
    admin.session.close("gone")
    lab.backend.answer(1)
    lab.backend.at_once = True
    other = lab.wire().enable()
    cntlid = next(iter(lab.target.controllers.values())).device_cntlid
    lab.backend.answer()
    assert list(lab.device.hosts) == [cntlid] and other.run(entry(6, dw10=1), read=4096).status == 0


def test_a_place_is_taken_until_the_device_has_answered() -> None:
    lab = Lab(connections=2)
    _, io = both(lab)
    lab.backend.at_once = False
    for _ in range(20):
        io.host.command(entry(0, nsid=1))
    lab.pump()
    assert len(lab.backend.held) == 20
    io.session.close("gone")
    assert lab.pool.free == 0 and lab.target.open("198.51.100.9:1", ("", 1)) is None
    lab.backend.answer(19)
    assert lab.pool.free == 0
    lab.backend.answer(1)
    assert lab.pool.free == 1 and lab.target.open("198.51.100.9:1", ("", 1)) is not None


def test_the_device_may_give_another_cntlid_after_a_reset() -> None:
    lab = Lab()
    admin = lab.wire().enable()
    lab.backend.at_once = False
    admin.set_cc(0x460000)
    lab.backend.answer(1)
    lab.device.hosts[1] = b"somebody else"
    lab.backend.at_once = True
    lab.backend.answer()
    assert admin.set_cc(0x460001) == 0
    assert admin.run(entry(6, dw10=1), read=4096).data[78:80] == b"\1\0"
    assert lab.target.controllers[1].device_cntlid == 2
    io = lab.wire()
    assert io.connect(1, cntlid=1, sqsize=127).status == 0 and io.run(entry(2, nsid=1), read=512).status == 0
    del lab.device.hosts[1]
    assert lab.wire().connect().result == 3, "1 is what the other one goes by"
    assert sorted(lab.device.hosts) == [2, 3]


@pytest.mark.parametrize("value", [0x460011, 0x460081, 0x470001, 0x060001])
def test_a_configuration_that_cannot_be_is_a_fatal_status(value: int) -> None:
    lab = Lab()
    admin = lab.wire()
    admin.connect()
    assert admin.set_cc(value) == 0 and admin.get(0x1C) == 2


def test_the_admin_connection_takes_the_others_with_it() -> None:
    lab = Lab()
    admin, io = both(lab)
    admin.session.close("reset by peer")
    assert io.session.closed and not lab.device.hosts and lab.pool.free == 8
    admin, io = both(lab)
    io.session.close("reset by peer")
    assert not admin.session.closed
    assert lab.wire().connect(1, cntlid=1, sqsize=127).status == 0


def test_keep_alive() -> None:
    lab = Lab()
    admin, quiet = lab.wire(), lab.wire()
    admin.connect(kato_ms=1000)
    assert admin.set_cc(0x460001) == 0
    assert quiet.connect().status == 0
    io = lab.wire()
    io.connect(1, cntlid=1, sqsize=31)
    for sign_of_life in (admin, io, io, admin):
        lab.now_ns += 1400 * MS
        lab.target.sweep()
        assert not admin.session.closed
        assert sign_of_life.run(entry(0x18 if sign_of_life is admin else 0)).status == 0
    lab.now_ns += 1600 * MS
    lab.target.sweep()
    assert admin.session.closed and io.session.closed and not quiet.session.closed
    assert "nothing was heard for 1600 ms" in lab.lines[-1]
    fresh = lab.wire().enable()
    assert fresh.run(entry(9, dw10=15, dw11=500)).status == 0
    lab.now_ns += 1100 * MS
    lab.target.sweep()
    assert fresh.session.closed


def test_silence_before_connect() -> None:
    lab = Lab(connections=2)
    first, second = lab.wire(), lab.wire().enable()
    third = lab.wire()
    assert first.session.closed, "who is no queue yet makes room"
    lab.now_ns += 10_001 * MS
    lab.target.sweep()
    assert third.session.closed and not second.session.closed
    second.run(entry(0x18))
    third = lab.wire().enable()
    assert lab.target.open("198.51.100.9:1", ("192.0.2.1", 1)) is None
    assert lab.target.refused == 1


def test_whose_connection_it_is() -> None:
    assert owner_of("198.51.100.7:1000") == "198.51.100.7"
    assert owner_of("2001:db8::1:2:3:1000") == owner_of("2001:db8::ffff:0:0:1:9") == "2001:db8::/64"
    assert owner_of("2001:db8:0:1::1:1000") == "2001:db8:0:1::/64"


def test_the_link() -> None:
    lab = Lab()
    admin, io = both(lab)
    lab.target.set_link(False)
    assert admin.session.closed and io.session.closed and lab.target.open("x", ("", 1)) is None
    lab.target.set_link(True)
    both(lab)


def test_a_device_that_fails_ends_its_controllers() -> None:
    lab = Lab()
    admin, io = both(lab)
    lab.device.hosts.clear()
    io.host.command(entry(2, nsid=1), read=512)
    lab.pump()
    assert admin.session.closed and io.session.closed and not io.host.replies
    assert lab.pool.free == 8


# --- commands ---


def test_admin_commands_of_other_transports() -> None:
    lab = Lab()
    admin, io = both(lab)
    for opcode in (0x00, 0x01, 0x04, 0x05, 0x1C, 0x7C):
        assert admin.run(entry(opcode)).status == 0x01 | DNR
    assert io.run(fabrics(4, dw11=0x1C)).status == 0x185 | DNR
    assert admin.run(fabrics(8)).status == 0x185 | DNR
    assert admin.run(fabrics(4, dw11=0x99)).status == 0x02 | DNR
    assert admin.run(fabrics(0, dw11=0x20, dw12=1)).status == 0x02 | DNR
    assert admin.run(connect_entry(0, 31), connect_data(NQN)).status == 0x0C | DNR
    assert io.run(fabrics(8)).status == 0 and io.session.closed


def test_features() -> None:
    admin = Lab(queues=3).wire().enable()
    assert admin.run(entry(9, dw10=7, dw11=0xFFFF)).status == 0x02 | DNR
    assert admin.run(entry(9, dw10=7 | 1 << 31, dw11=1)).status == 0x10D | DNR
    assert admin.run(entry(0x0A, dw10=7 | 3 << 8)).result == 4
    assert admin.run(entry(0x0A, dw10=15 | 1 << 8)).result == 0
    assert admin.run(entry(9, dw10=7, dw11=0x00010001)).result == 0x00010001


def test_events() -> None:
    lab = Lab()
    admin = lab.wire().enable()
    lab.device.happen(0x40002)
    first = admin.host.command(entry(0x0C))
    lab.pump()
    assert admin.host.replies[first].result == 0x40002
    waiting = [admin.host.command(entry(0x0C)) for _ in range(3)]
    lab.pump()
    assert admin.host.replies.pop(waiting[2]).status == 0x105 | DNR, "AERL is 1: two may wait"
    assert admin.run(entry(8, dw10=waiting[0] << 16)).result == 0
    assert admin.host.replies[waiting[0]].status == 0x07
    assert admin.run(entry(8, dw10=99 << 16)).result == 1
    lab.device.happen(0x10001)
    lab.pump()
    assert admin.host.replies[waiting[1]].result == 0x10001
    assert lab.device.waiting == {1: []}, "nobody waits for the next one"


def test_discovery() -> None:
    lab = Lab(allow=frozenset({HOST}), advertise=("", 9999))
    wire = lab.wire()
    assert wire.connect(nqn=DISCOVERY).result == 1 and wire.set_cc(0x460001) == 0
    page = wire.run(entry(6, dw10=1), read=4096).data
    assert page[111] == 2 and page[768:].startswith(DISCOVERY.encode() + b"\0")
    assert wire.run(entry(6, dw10=0), read=4096).status == 0x02 | DNR
    log = wire.run(entry(2, dw10=0x70 | 511 << 16), read=2048).data
    assert log[:8] + log[8:16] == (1).to_bytes(8, "little") * 2
    assert log[1024:1028] == bytes([3, 1, 2, 4]) and log[1024 + 256 :].startswith(NQN.encode() + b"\0")
    assert log[1056:1088].rstrip() == b"9999" and log[1536:1792].rstrip() == b"192.0.2.1"
    assert wire.run(entry(2, dw10=0x70 | 7 << 16, dw12=1024), read=32).data == log[1024:1056]
    assert (page[77], page[261]) == (1, 1 << 2), "MDTS 8 KiB"
    assert wire.run(entry(2, dw10=0x70 | 2047 << 16), read=8192).data == log.ljust(8192, b"\0")
    assert wire.run(entry(2, dw10=0x70 | 2048 << 16), read=8196).status == 0x02 | DNR
    assert wire.run(entry(2, dw10=0x70)).status == 0
    for dw12 in (2, 4096):
        assert wire.run(entry(2, dw10=0x70 | 7 << 16, dw12=dw12), read=32).status == 0x02 | DNR
    assert wire.run(entry(2, dw10=2 | 7 << 16), read=32).status == 0x109 | DNR
    assert wire.run(entry(9, dw10=0x0B, dw11=1 << 31)).status == 0
    event, late = wire.host.command(entry(0x0C)), wire.host.command(entry(0x0C))
    lab.pump()
    lab.target.reconfigure(advertise=("2001:db8::1", 1))
    lab.target.reconfigure(allow=frozenset())
    lab.pump()
    assert wire.host.replies[event].result == 0x70F002 and late not in wire.host.replies
    log = wire.run(entry(2, dw10=0x70 | 511 << 16), read=2048).data
    assert log[0] == 3 and log[1025] == 2 and log[1536:1792].rstrip() == b"2001:db8::1"
    assert not lab.backend.requests, "the device knows nothing of it"
    stranger = Lab(allow=frozenset({OTHER})).wire()
    stranger.connect(nqn=DISCOVERY)
    stranger.set_cc(0x460001)
    assert stranger.run(entry(2, dw10=0x70 | 255 << 16), read=1024).data[8:16] == bytes(8)


def test_discovery_ends_with_silence() -> None:
    lab = Lab()
    wire = lab.wire()
    wire.connect(nqn=DISCOVERY)
    lab.now_ns = 120_600 * MS
    lab.target.sweep()
    assert wire.session.closed


# --- data and memory ---


def test_commands_wait_for_memory() -> None:
    lab = Lab(slice_bytes=64 << 10)
    _, io = both(lab)
    assert lab.target.max_transfer_bytes == 32 << 10
    assert io.run(entry(2, nsid=1, dw12=127), read=64 << 10).status == 0x02 | DNR
    lab.backend.at_once = False
    data = [bytes([number]) * 16384 for number in range(10)]
    cids = [io.host.command(entry(1, nsid=1, dw10=32 * n, dw12=31), piece) for n, piece in enumerate(data)]
    lab.pump()
    assert (io.host.r2ts, len(lab.backend.held)) == (4, 4)
    while lab.backend.held:
        lab.backend.answer(1)
        lab.pump()
    assert [io.host.replies.pop(cid).status for cid in cids] == [0] * 10
    lab.backend.at_once = True
    assert io.run(entry(2, nsid=1, dw10=32 * 9, dw12=31), read=16384).data == data[9]
    assert io.session.part.busy == 0


def test_a_slice_comes_back_when_the_device_is_done_with_it() -> None:
    lab = Lab()
    _, io = both(lab)
    lab.backend.at_once = False
    io.host.command(entry(1, nsid=1, dw12=7), b"\xff" * 4096)
    io.host.command(entry(1, nsid=1, dw12=15), b"\xff" * 8192, inline=False)
    lab.pump()
    io.host.command(entry(1, nsid=1, dw12=15), b"\xff" * 8192, inline=False)
    data, io.host.out = bytes(io.host.out), bytearray()
    io.session.receive(data)
    io.session.take_output()
    io.session.close("gone")
    assert lab.pool.free == 6, "the device may still write there"
    lab.backend.answer()
    assert lab.pool.free == 7 and bytes(lab.region).count(0xFF) == 0


def test_reads_are_whole_or_fail() -> None:
    lab = Lab()
    _, io = both(lab)
    assert io.run(entry(2, nsid=1, dw10=BLOCKS - 1, dw12=1), read=1024)[::2] == (0x80 | DNR, b"")
    assert io.run(entry(2, nsid=1, dw12=0), read=1024).status == 0x0F | DNR
    assert io.run(entry(2, nsid=1), bytes(512), inline=True).status == 0x11 | DNR, "a read into the capsule"
    assert io.run(entry(1, nsid=1, dw12=15), bytes(8192), inline=True).status == 0x0F | DNR, "beyond IOCCSZ"
    assert io.run(entry(0, nsid=1)).status == 0
    assert io.run(entry(0x83, nsid=1), read=512).status == 0x02 | DNR, "both ways at once"
