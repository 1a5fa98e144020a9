"""Admin commands: identification, features, logs, format, namespaces, vendor commands."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from uxk_nvme.spec import BROADCAST, MORE, Admin, Feature, Io, Log, Status, Vendor
from uxk_nvme.subsystem import PRIMARY


def u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


# --- Identify ------------------------------------------------------------------------------------------


def test_identify_controller(rig: Any) -> None:
    page = rig.identify(1).data
    assert page[4:24] == b"SN1".ljust(20) and page[24:64].startswith(b"uxk ") and page[64:72].strip() == b"1.0"
    assert page[76] & 2 and 5 <= page[77] <= 8 and int.from_bytes(page[78:80], "little") == PRIMARY
    assert u32(page, 80) == 0x10400 and u32(page, 92) == 1 << 8 and page[111] == 1
    oacs, oncs = int.from_bytes(page[256:258], "little"), int.from_bytes(page[520:522], "little")
    assert oacs & 0b1010 == 0b1010 and oncs & 0b1101_1111 == 0b1101_1111 and not page[522]
    assert page[261] == 6 and page[262] == 63 and page[263] == 4
    assert page[512:514] == b"\x66\x44" and u32(page, 516) == 32 and page[536] & 1
    assert int.from_bytes(page[280:296], "little") == 8 << 20
    assert int.from_bytes(page[296:312], "little") == 4 << 20
    assert page[768:1024].rstrip(b"\0") == b"nqn.test"
    states = [struct.unpack_from("<HxB", page, 2048 + 32 * n) for n in range(5)]
    powers_100uw = [power * (1 if flags & 1 else 100) for power, flags in states]
    assert powers_100uw == [82_500, 45_000, 30_000, 500, 50]
    assert [flags & 2 for _, flags in states] == [0, 0, 0, 2, 2], "the idle states come last"


def test_identify_tells_of_a_write_cache(rig: Any, make_rig: Callable[..., Any]) -> None:
    assert rig.identify(1).data[525] == 6
    assert make_rig(write_cache=1 << 20).identify(1).data[525] == 7


def test_identify_namespace(rig: Any) -> None:
    page = rig.identify(0, 1).data
    assert struct.unpack_from("<QQ", page) == (8192, 8192)
    assert page[25] == 1 and page[26] == 0 and page[30] == 1 and page[33] & 1
    assert page[128:132][2] == 9 and page[132:136][2] == 12
    assert page[104:120] == rig.namespace.nguid
    listed = rig.identify(3, 1).data
    assert listed[:4] == b"\x03\x10\0\0" and listed[4:20] == rig.namespace.uuid
    assert listed[20:24] == b"\x02\x10\0\0" and listed[24:40] == rig.namespace.nguid
    assert not any(listed[40:])


def test_used_blocks(rig: Any) -> None:
    assert struct.unpack_from("<Q", rig.identify(0, 1).data, 16) == (0,)
    rig.do(Io.WRITE, 1, slba=0, cdw={12: 7}, data=bytes(4096))
    assert struct.unpack_from("<Q", rig.identify(0, 1).data, 16) == (8,)


@pytest.mark.parametrize(
    ("cns", "nsid", "code"),
    [(0, 0, Status.INVALID_NAMESPACE), (0, 33, Status.INVALID_NAMESPACE), (3, 2, Status.INVALID_FIELD),
     (3, BROADCAST, Status.INVALID_NAMESPACE), (2, BROADCAST, Status.INVALID_NAMESPACE),
     (2, BROADCAST - 1, Status.INVALID_NAMESPACE), (0x99, 0, Status.INVALID_FIELD),
     (0x14, 0, Status.INVALID_FIELD), (0x11, BROADCAST, Status.INVALID_NAMESPACE)],
)  # fmt: skip
def test_identify_refuses(rig: Any, cns: int, nsid: int, code: int) -> None:
    answer = rig.identify(cns, nsid)
    assert answer.code == code and answer.dnr and answer.status & MORE


def test_identify_lists(rig: Any) -> None:
    rig.subsystem.namespaces.create(8, 9)
    assert u32(rig.identify(2).data, 0) == 1 and u32(rig.identify(2).data, 4) == 0
    assert u32(rig.identify(2, 1).data, 0) == 0
    assert [u32(rig.identify(0x10).data, at) for at in (0, 4, 8)] == [1, 2, 0]
    assert not any(rig.identify(0, 2).data), "inactive"
    assert struct.unpack_from("<Q", rig.identify(0x11, 2).data) == (8,)
    host = rig.host()
    assert struct.unpack_from("<3H", rig.identify(0x13).data) == (2, PRIMARY, host.cntlid)
    assert struct.unpack_from("<2H", rig.identify(0x13, cntid=2).data) == (1, host.cntlid)
    assert struct.unpack_from("<3H", rig.identify(0x12, 1).data) == (2, PRIMARY, host.cntlid)
    assert struct.unpack_from("<H", rig.identify(0x12, 2).data) == (0,)


def test_identify_command_sets(rig: Any) -> None:
    assert rig.identify(5, 1).status == 0
    assert rig.identify(6).data[1] == 13
    assert rig.identify(6, cdw11=2 << 24).code == Status.INVALID_FIELD
    assert rig.identify(0x1C).data[0] == 1
    assert rig.identify(8, 1).data[14] == 1
    assert rig.identify(0, BROADCAST).data[25] == 1, "what all namespaces have in common"


def test_a_short_buffer_is_refused(rig: Any) -> None:
    assert rig.admin(Admin.IDENTIFY, cdw={10: 1}, length=4095).code == Status.SGL_LENGTH_INVALID


# --- Features -------------------------------------------------------------------------------------------


def get(rig: Any, feature: int, select: int = 0, cdw11: int = 0, **more: Any) -> Any:
    return rig.admin(Admin.GET_FEATURES, cdw={10: feature | select << 8, 11: cdw11}, **more)


def put(rig: Any, feature: int, value: int, *, save: bool = False, nsid: int = 0, **more: Any) -> Any:
    return rig.admin(Admin.SET_FEATURES, nsid, cdw={10: feature | save << 31, 11: value}, **more)


@pytest.mark.parametrize("feature", [Feature.ARBITRATION, Feature.SOFTWARE_PROGRESS])
def test_current_default_saved_capabilities(rig: Any, feature: int) -> None:
    default = get(rig, feature, 1).dw0
    value = 5
    assert put(rig, feature, value).status == 0
    assert [get(rig, feature, select).dw0 for select in (0, 1, 2)] == [value, default, default]
    assert put(rig, feature, value, save=True).status == 0
    assert get(rig, feature, 2).dw0 == value
    assert get(rig, feature, 3).dw0 == 0b101
    assert get(rig, feature, 4).code == Status.INVALID_FIELD


def test_what_cannot_be_saved(rig: Any) -> None:
    answer = put(rig, Feature.KEEP_ALIVE, 5000, save=True)
    assert answer.code == Status.FEATURE_NOT_SAVEABLE and answer.dnr
    assert put(rig, Feature.KEEP_ALIVE, 5000).status == 0 and get(rig, Feature.KEEP_ALIVE).dw0 == 5000
    assert put(rig, 0x7F, 0).code == get(rig, 0x7F).code == Status.INVALID_FIELD


def test_number_of_queues(make_rig: Callable[..., Any]) -> None:
    rig = make_rig()
    del rig.controller.queues[1]
    assert get(rig, Feature.QUEUES).dw0 == 0x30003
    assert put(rig, Feature.QUEUES, 0x0001_0007).dw0 == 0x0001_0003
    assert put(rig, Feature.QUEUES, 0xFFFF).code == Status.INVALID_FIELD
    rig.controller.queues[1] = rig.queues[1]
    assert put(rig, Feature.QUEUES, 0).code == Status.SEQUENCE_ERROR


def test_power_states(make_rig: Callable[..., Any]) -> None:
    rig = make_rig(medium="simple", read_ns=1000, bandwidth=0)
    assert put(rig, Feature.POWER, 5).code == Status.INVALID_FIELD
    assert put(rig, Feature.POWER, 2).status == 0 and get(rig, Feature.POWER).dw0 == 2
    queue, tag = rig.start(Io.READ, 1, slba=0, cdw={12: 0}, length=512)
    rig.clock.advance(2_499)
    assert tag not in queue.posted
    rig.clock.advance(1)
    assert tag in queue.posted


def test_write_cache(rig: Any, make_rig: Callable[..., Any]) -> None:
    assert get(rig, Feature.WRITE_CACHE).code == Status.INVALID_FIELD, "there is none"
    cached = make_rig(write_cache=1 << 20)
    assert get(cached, Feature.WRITE_CACHE).dw0 == 1
    cached.do(Io.WRITE, 1, slba=0, cdw={12: 0}, data=b"1" * 512)
    assert put(cached, Feature.WRITE_CACHE, 0).status == 0
    cached.subsystem.power_loss(0)
    assert cached.do(Io.READ, 1, slba=0, cdw={12: 0}, length=512).data == b"1" * 512


def test_temperature_thresholds(rig: Any) -> None:
    assert put(rig, Feature.TEMPERATURE, 290).status == 0
    assert get(rig, Feature.TEMPERATURE).dw0 == 290
    assert get(rig, Feature.TEMPERATURE, cdw11=1 << 20).dw0 == 0, "the lower one"
    assert rig.log(Log.SMART, 512).data[0] & 2, "warmer than that"
    assert put(rig, Feature.TEMPERATURE, 5 << 16).code == Status.INVALID_FIELD
    assert put(rig, Feature.TEMPERATURE, 2 << 20).code == Status.INVALID_FIELD


def test_timestamp(rig: Any) -> None:
    assert put(rig, Feature.TIMESTAMP, 0, data=(1_000_000).to_bytes(8, "little")).status == 0
    rig.clock.advance(7_000_000)
    data = get(rig, Feature.TIMESTAMP, length=8).data
    assert int.from_bytes(data[:6], "little") == 1_000_007 and data[6] == 2


def test_write_protection(rig: Any) -> None:
    assert put(rig, Feature.WRITE_PROTECT, 1, nsid=1).status == 0
    assert rig.identify(0, 1).data[99] == 1
    assert rig.do(Io.WRITE, 1, slba=0, cdw={12: 0}, data=bytes(512)).code == Status.NAMESPACE_WRITE_PROTECTED
    assert rig.do(Io.WRITE_ZEROES, 1, slba=0, cdw={12: 0}).code == Status.NAMESPACE_WRITE_PROTECTED
    assert rig.do(Io.READ, 1, slba=0, cdw={12: 0}, length=512).status == 0
    assert rig.admin(Admin.FORMAT, 1).code == Status.NAMESPACE_WRITE_PROTECTED
    assert put(rig, Feature.WRITE_PROTECT, 2, nsid=1).code == Status.INVALID_FIELD
    assert put(rig, Feature.WRITE_PROTECT, 0, nsid=1).status == 0
    assert rig.do(Io.WRITE, 1, slba=0, cdw={12: 0}, data=bytes(512)).status == 0


@pytest.mark.parametrize(
    ("feature", "bad"),
    [(Feature.ERROR_RECOVERY, 1 << 16), (Feature.THERMAL, 10), (Feature.THERMAL, 330 << 16 | 320),
     (Feature.VECTOR, 99), (Feature.POWER, 31)],
)  # fmt: skip
def test_values_that_cannot_be(rig: Any, feature: int, bad: int) -> None:
    before = get(rig, feature).dw0
    assert put(rig, feature, bad).code == Status.INVALID_FIELD
    assert get(rig, feature).dw0 == before


def test_host_identifier(rig: Any) -> None:
    assert put(rig, Feature.HOST_ID, 1, data=b"h" * 16).status == 0
    assert get(rig, Feature.HOST_ID, cdw11=1, length=16).data == b"h" * 16
    host = rig.host()
    assert get(rig, Feature.HOST_ID, cdw11=1, length=16, controller=host).data == bytes(range(16))
    assert put(rig, Feature.HOST_ID, 1, data=b"h" * 16, controller=host).code == Status.SEQUENCE_ERROR


# --- Logs -----------------------------------------------------------------------------------------------


def test_error_log(rig: Any) -> None:
    rig.do(Io.READ, 1, slba=1 << 40, cdw={12: 0}, length=512)
    rig.do(0x99, 1)
    page = rig.log(Log.ERROR, 4096).data
    first = struct.unpack_from("<QHHHHQI", page)
    second = struct.unpack_from("<QHHHHQI", page, 64)
    assert (first[0], second[0]) == (2, 1), "newest first"
    assert second[1] == 1 and second[5] == 1 << 40 and second[6] == 1
    assert second[3] >> 1 & 0x7FF == Status.LBA_OUT_OF_RANGE and second[4] == 40
    assert struct.unpack_from("<Q", rig.log(Log.SMART, 512).data, 176) == (2,)
    for _ in range(100):
        rig.do(0x99, 1)
    assert struct.unpack_from("<Q", rig.log(Log.ERROR, 64).data) == (102,)


def test_smart_counts(rig: Any) -> None:
    for _ in range(3):
        rig.do(Io.WRITE, 1, slba=0, cdw={12: 255}, data=bytes(128 << 10))
    rig.do(Io.READ, 1, slba=0, cdw={12: 0}, length=512)
    page = rig.log(Log.SMART, 512, nsid=BROADCAST).data
    assert int.from_bytes(page[1:3], "little") == 298 and page[3] == 100 and page[5] == 0
    units_read, units_written, reads, writes = struct.unpack_from("<Q8xQ8xQ8xQ8x", page, 32)
    assert (units_read, units_written, reads, writes) == (1, 1, 1, 3)
    rig.subsystem.power_loss(0)
    cycles, hours, unsafe = struct.unpack_from("<Q8xQ8xQ8x", rig.log(Log.SMART, 512).data, 112)
    assert (cycles, hours, unsafe) == (2, 0, 1)


def test_log_lengths_and_offsets(rig: Any) -> None:
    whole = rig.log(Log.EFFECTS, 4096).data
    assert rig.log(Log.EFFECTS, 1024, offset=1024).data == whole[1024:2048]
    assert rig.log(Log.FIRMWARE, 4096).data[:16] == b"\1" + bytes(7) + b"1.0".ljust(8)
    assert rig.log(Log.FIRMWARE, 8, offset=512).data == bytes(8)
    assert rig.log(Log.FIRMWARE, 8, offset=516).code == Status.INVALID_FIELD
    assert rig.log(Log.FIRMWARE, 8, offset=2).code == Status.INVALID_FIELD
    assert rig.log(0x99, 8).code == Status.INVALID_LOG_PAGE
    assert rig.log(Log.SMART, 512, nsid=1).code == Status.INVALID_FIELD
    assert rig.log(Log.SMART, 512, nsid=99).code == Status.INVALID_NAMESPACE
    assert rig.log(Log.SUPPORTED, 1024).data[4 * Log.SMART] == 1


def test_commands_supported(rig: Any) -> None:
    page = rig.log(Log.EFFECTS, 4096).data
    assert u32(page, 4 * Admin.IDENTIFY) == 1 and u32(page, 4 * 0x77) == 0
    assert u32(page, 1024 + 4 * Io.READ) == 1 and u32(page, 1024 + 4 * Io.WRITE) == 3
    assert u32(page, 1024 + 4 * 0x19) == 0


# --- Format, namespaces ------------------------------------------------------------------------------------


def test_format(rig: Any) -> None:
    rig.do(Io.WRITE, 1, slba=0, cdw={12: 7}, data=b"x" * 4096)
    assert rig.admin(Admin.FORMAT, 1, cdw={10: 1}).status == 0
    assert rig.identify(0, 1).data[26] == 1 and struct.unpack_from("<Q", rig.identify(0, 1).data) == (1024,)
    assert rig.do(Io.READ, 1, slba=0, cdw={12: 0}, length=4096).data == bytes(4096)
    assert rig.do(Io.READ, 1, slba=1024, cdw={12: 0}, length=4096).code == Status.LBA_OUT_OF_RANGE
    assert rig.admin(Admin.FORMAT, BROADCAST, cdw={10: 1 << 9}).status == 0, "with user data erase"
    assert rig.namespace.blocks == 8192


@pytest.mark.parametrize(
    ("word", "code"), [(2, Status.INVALID_FORMAT), (1 << 12, Status.INVALID_FORMAT), (1 << 4, Status.INVALID_FORMAT),
                       (1 << 5, Status.INVALID_FORMAT), (2 << 9, Status.INVALID_FIELD)],
)  # fmt: skip
def test_formats_that_there_are_not(rig: Any, word: int, code: int) -> None:
    assert rig.admin(Admin.FORMAT, 1, cdw={10: word}).code == code


def new_namespace(blocks: int, flbas: int = 0, nmic: int = 1, capacity: int | None = None) -> bytes:
    page = bytearray(4096)
    struct.pack_into("<QQ", page, 0, blocks, blocks if capacity is None else capacity)
    page[26], page[30] = flbas, nmic
    return bytes(page)


def controllers(*cntlids: int) -> bytes:
    return struct.pack(f"<{1 + len(cntlids)}H", len(cntlids), *cntlids).ljust(4096, b"\0")


def create(rig: Any, blocks: int, **more: Any) -> Any:
    return rig.admin(Admin.NAMESPACE_MANAGEMENT, data=new_namespace(blocks, **more))


def test_create_attach_detach_delete(rig: Any) -> None:
    made = create(rig, 512, flbas=1)
    assert (made.status, made.dw0) == (0, 2)
    assert rig.do(Io.READ, 2, slba=0, cdw={12: 0}, length=4096).code == Status.INVALID_FIELD
    assert rig.admin(Admin.NAMESPACE_ATTACHMENT, 2, data=controllers(PRIMARY)).status == 0
    assert rig.do(Io.WRITE, 2, slba=0, cdw={12: 0}, data=b"2" * 4096).status == 0
    assert rig.do(Io.READ, 1, slba=0, cdw={12: 7}, length=4096).data == bytes(4096), "apart from the first"
    assert rig.admin(Admin.NAMESPACE_ATTACHMENT, 2, data=controllers(PRIMARY)).code == Status.ALREADY_ATTACHED
    assert u32(rig.log(Log.CHANGED_NAMESPACES, 4096).data, 0) == 2
    assert not any(rig.log(Log.CHANGED_NAMESPACES, 4096).data)
    assert rig.admin(Admin.NAMESPACE_ATTACHMENT, 2, cdw={10: 1}, data=controllers(PRIMARY)).status == 0
    assert rig.admin(Admin.NAMESPACE_ATTACHMENT, 2, cdw={10: 1}, data=controllers(1)).code == Status.NOT_ATTACHED
    identity = rig.subsystem.namespaces.table[2].uuid
    assert rig.admin(Admin.NAMESPACE_MANAGEMENT, 2, cdw={10: 1}, data=bytes(4)).status == 0
    assert create(rig, 512, flbas=1).dw0 == 2
    again = rig.subsystem.namespaces.table[2]
    assert again.uuid != identity
    assert rig.medium.store.is_hole(again.base, again.size_bytes), "nothing is left of the old one's data"


def test_namespaces_that_cannot_be(rig: Any) -> None:
    assert create(rig, 1 << 40).code == Status.INSUFFICIENT_CAPACITY
    assert create(rig, 0).code == Status.INSUFFICIENT_CAPACITY
    assert create(rig, 8, flbas=2).code == Status.INVALID_FORMAT
    assert create(rig, 8, capacity=4).code == Status.THIN_NOT_SUPPORTED
    for _ in range(31):
        assert create(rig, 8).status == 0
    assert create(rig, 8).code == Status.NO_NAMESPACE_IDENTIFIER
    assert rig.admin(Admin.NAMESPACE_MANAGEMENT, BROADCAST, cdw={10: 1}).status == 0
    assert rig.subsystem.namespaces.unallocated_bytes == 8 << 20
    assert rig.admin(Admin.NAMESPACE_MANAGEMENT, 1, cdw={10: 1}).code == Status.INVALID_FIELD
    assert rig.admin(Admin.NAMESPACE_MANAGEMENT, 1, cdw={10: 2}, data=bytes(4096)).code == Status.INVALID_FIELD


@pytest.mark.parametrize("ids", [(), (9,), (PRIMARY, PRIMARY), (0xFFFF,)])
def test_bad_controller_lists(rig: Any, ids: tuple[int, ...]) -> None:
    create(rig, 8)
    answer = rig.admin(Admin.NAMESPACE_ATTACHMENT, 2, data=controllers(*ids))
    assert answer.code == Status.CONTROLLER_LIST_INVALID
    assert rig.admin(Admin.NAMESPACE_ATTACHMENT, 2, data=b"\xff" * 4096).code == Status.CONTROLLER_LIST_INVALID


def test_a_private_namespace_has_one_controller(rig: Any) -> None:
    host = rig.host()
    create(rig, 8, nmic=0)
    both = controllers(PRIMARY, host.cntlid)
    assert rig.admin(Admin.NAMESPACE_ATTACHMENT, 2, data=both).code == Status.NAMESPACE_PRIVATE
    assert rig.admin(Admin.NAMESPACE_ATTACHMENT, 2, data=controllers(host.cntlid)).status == 0
    assert rig.admin(Admin.NAMESPACE_ATTACHMENT, 2, data=controllers(PRIMARY)).code == Status.NAMESPACE_PRIVATE
    assert 2 in host.active and 2 not in rig.controller.active


def test_a_host_gets_its_namespaces_again(rig: Any) -> None:
    host = rig.host("nqn.a")
    create(rig, 8)
    rig.admin(Admin.NAMESPACE_ATTACHMENT, 2, data=controllers(host.cntlid))
    rig.admin(Admin.NAMESPACE_ATTACHMENT, 1, cdw={10: 1}, data=controllers(host.cntlid))
    rig.subsystem.remove_controller(host)
    again = rig.host("nqn.a")
    assert again.cntlid != host.cntlid and list(again.active) == [2]
    assert list(rig.host("nqn.b").active) == [1]


# --- vendor ------------------------------------------------------------------------------------------------


def test_faults_by_command(rig: Any) -> None:
    text = b"opcode=read action=status status=0x281 dnr=1"
    rule = text.ljust(-(-len(text) // 4) * 4, b"\0")
    added = rig.admin(Vendor.FAULT_ADD, cdw={10: len(rule) // 4}, data=rule)
    assert (added.status, added.dw0) == (0, 1)
    shown = rig.admin(Vendor.FAULT_LIST, cdw={10: 1024}, length=4096).data
    assert shown.startswith(b"add id=1 ") and shown.endswith(b"\0")
    assert rig.do(Io.READ, 1, slba=0, cdw={12: 0}, length=512).code == 0x281
    assert rig.admin(Vendor.FAULT_REMOVE, cdw={12: 7}).code == Status.INVALID_FIELD
    assert rig.admin(Vendor.FAULT_REMOVE, cdw={12: 1}).status == 0
    assert rig.do(Io.READ, 1, slba=0, cdw={12: 0}, length=512).status == 0
    assert rig.admin(Vendor.FAULT_ADD, cdw={10: 2}, data=b"nonsense").code == Status.INVALID_FIELD
    assert "nonsense" in rig.said[-1]
    assert rig.admin(Vendor.FAULT_ADD, cdw={10: 0}).code == Status.INVALID_FIELD
    assert rig.admin(Vendor.FAULT_REMOVE).status == 0


def test_latency_and_power_loss_by_command(rig: Any) -> None:
    assert rig.admin(Vendor.LATENCY, cdw={12: 5000}).status == 0
    queue, tag = rig.start(Io.FLUSH, 1)
    rig.clock.advance(4_999)
    assert tag not in queue.posted
    assert rig.admin(Vendor.POWER_LOSS).status == 0
    assert queue.posted[tag].status & 0x7FF == Status.POWER_LOSS
    assert rig.admin(Vendor.LATENCY, cdw={13: 1 << 31}).code == Status.INVALID_FIELD
    assert rig.admin(Vendor.LATENCY).status == 0 and not rig.subsystem.slow


def test_keep_alive_and_the_unknown(rig: Any) -> None:
    assert rig.admin(Admin.KEEP_ALIVE).status == 0
    for opcode in (0x00, 0x01, 0x04, 0x05, 0x10, 0x14, 0x7F, 0x81, 0x84, 0xFF):
        assert rig.admin(opcode).code == Status.INVALID_OPCODE
