"""Whose a feature is, what a log page leaves behind, temperatures; what formats and deletions refuse."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

import uxk
from uxk.testing import boot
from uxk_nvme.medium import MediumSmart
from uxk_nvme.spec import BROADCAST, Admin, Feature, Io, Log, Status
from uxk_nvme.subsystem import LATENCY_MAX_NS, PRIMARY

ATTRIBUTES = "/sys/module/nvme/attributes"


def get(rig: Any, feature: int, nsid: int = 0, *, select: int = 0, cdw11: int = 0, **more: Any) -> Any:
    return rig.admin(Admin.GET_FEATURES, nsid, cdw={10: feature | select << 8, 11: cdw11}, **more)


def put(rig: Any, feature: int, value: int, nsid: int = 0, *, save: bool = False, **more: Any) -> Any:
    return rig.admin(Admin.SET_FEATURES, nsid, cdw={10: feature | save << 31, 11: value}, **more)


def second(rig: Any) -> Any:
    made = rig.subsystem.namespaces.create(8, 9)
    rig.subsystem.attach(made, [PRIMARY], attach=True)
    return made


# --- scope ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", [Feature.ARBITRATION, Feature.KEEP_ALIVE, Feature.EVENTS, Feature.TEMPERATURE])
def test_a_controllers_features_are_no_namespaces(rig: Any, feature: int) -> None:
    before = get(rig, feature).dw0
    assert put(rig, feature, 1, 1).code == Status.FEATURE_NOT_NAMESPACE
    assert put(rig, feature, 1, 33).code == Status.INVALID_NAMESPACE
    assert get(rig, feature).dw0 == before
    assert put(rig, feature, 1, BROADCAST).status == 0 and get(rig, feature).dw0 == 1


def test_a_namespaces_features_are_its_own(rig: Any) -> None:
    other = second(rig)
    for nsid in (0, 33):
        assert put(rig, Feature.ERROR_RECOVERY, 5, nsid).code == Status.INVALID_NAMESPACE
        assert get(rig, Feature.ERROR_RECOVERY, nsid).code == Status.INVALID_NAMESPACE
    assert put(rig, Feature.ERROR_RECOVERY, 5, 3).code == Status.INVALID_FIELD, "it is not attached"
    assert get(rig, Feature.ERROR_RECOVERY, BROADCAST).code == Status.INVALID_NAMESPACE
    assert put(rig, Feature.ERROR_RECOVERY, 5, 1).status == 0
    assert [get(rig, Feature.ERROR_RECOVERY, nsid).dw0 for nsid in (1, 2)] == [5, 0]
    host = rig.host()
    assert get(rig, Feature.ERROR_RECOVERY, 1, controller=host).dw0 == 5, "whoever asks"
    assert put(rig, Feature.ERROR_RECOVERY, 9, BROADCAST).status == 0
    assert [get(rig, Feature.ERROR_RECOVERY, nsid).dw0 for nsid in (1, 2)] == [9, 9]
    assert get(rig, Feature.ERROR_RECOVERY, 1, select=1).dw0 == 0
    assert get(rig, Feature.ERROR_RECOVERY, 1, select=3).dw0 == 0b110
    rig.subsystem.delete(other, 0)
    assert get(rig, Feature.ERROR_RECOVERY, second(rig).nsid).dw0 == 0, "another namespace by the same number"


def test_thresholds_of_all_sensors(rig: Any) -> None:
    assert put(rig, Feature.TEMPERATURE, 330 | 0xF << 16, save=True).status == 0
    for sensor in (0, 1):
        for select in (0, 2):
            assert get(rig, Feature.TEMPERATURE, select=select, cdw11=sensor << 16).dw0 == 330
    assert get(rig, Feature.TEMPERATURE, cdw11=1 << 20).dw0 == 0, "the other direction"
    assert get(rig, Feature.TEMPERATURE, cdw11=0xF << 16).code == Status.INVALID_FIELD
    assert put(rig, Feature.TEMPERATURE, 330 | 2 << 16).code == Status.INVALID_FIELD


def test_temperatures_are_the_mediums(make_rig: Callable[..., Any]) -> None:
    rig = make_rig(warning_k=320, critical_k=330)
    assert struct.unpack_from("<HH", rig.identify(1).data, 266) == (320, 330)
    assert [get(rig, Feature.TEMPERATURE, select=select).dw0 for select in (0, 1, 2)] == [320, 320, 320]
    rig.medium.override_smart("temperature_k", 320)
    assert rig.log(Log.SMART, 512).data[0] & 2
    assert struct.unpack_from("<HH", make_rig().identify(1).data, 266) == (343, 353)


def test_a_host_may_cool_what_gets_hot(rig: Any, make_rig: Callable[..., Any]) -> None:
    assert not rig.identify(1).data[322]
    assert get(rig, Feature.THERMAL).code == put(rig, Feature.THERMAL, 0).code == Status.INVALID_FIELD
    flash = make_rig(medium="ftl", size=16 << 20)
    assert struct.unpack_from("<HHH", flash.identify(1).data, 322) == (1, 273, 358)
    assert put(flash, Feature.THERMAL, 310 << 16 | 320, save=True).status == 0
    host = flash.host()
    assert get(flash, Feature.THERMAL, controller=host).dw0 == 310 << 16 | 320, "it is the device's"
    for light_k, heavy_k in ((320, 310), (310, 310), (200, 310), (310, 400)):
        assert put(flash, Feature.THERMAL, light_k << 16 | heavy_k).code == Status.INVALID_FIELD
    assert put(flash, Feature.THERMAL, 0, controller=host).status == 0 and get(flash, Feature.THERMAL).dw0 == 0
    assert get(flash, Feature.THERMAL, select=2).dw0 == 310 << 16 | 320


def test_the_cache_is_off_when_it_is_empty(make_rig: Callable[..., Any]) -> None:
    rig = make_rig(medium="ftl", size=16 << 20, write_cache=1 << 20)
    rig.do(Io.WRITE, 1, slba=0, cdw={12: 7}, data=b"w" * 4096)
    queue, tag = rig.start(Admin.SET_FEATURES, cdw={10: Feature.WRITE_CACHE}, admin=True)
    assert tag not in queue.posted, "flash takes its time"
    while tag not in queue.posted:
        rig.clock.advance(10_000)
    assert queue.posted[tag].status == 0
    rig.subsystem.power_loss(rig.clock.now_ns)
    assert rig.do(Io.READ, 1, slba=0, cdw={12: 7}, length=4096).data == b"w" * 4096


def test_a_cache_that_cannot_be_written_stays_on(make_rig: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(write_cache=1 << 20)
    monkeypatch.setattr(rig.medium, "set_write_cache", lambda on, now_ns: -Status.WRITE_FAULT)
    answer = put(rig, Feature.WRITE_CACHE, 0)
    assert answer.code == Status.WRITE_FAULT and answer.dnr and get(rig, Feature.WRITE_CACHE).dw0 == 1


# --- logs -----------------------------------------------------------------------------------------------------


def test_a_refused_log_page_clears_nothing(rig: Any) -> None:
    rig.subsystem.namespace_changed(rig.namespace)
    assert rig.log(Log.CHANGED_NAMESPACES, 4, offset=4100).code == Status.INVALID_FIELD
    assert rig.log(Log.CHANGED_NAMESPACES, 4, rae=True).data == b"\1\0\0\0"
    assert rig.log(Log.CHANGED_NAMESPACES, 4, offset=4096).data == bytes(4)
    rig.subsystem.namespace_changed(rig.namespace)
    assert rig.log(Log.CHANGED_NAMESPACES, 4).data == b"\1\0\0\0"
    assert rig.log(Log.CHANGED_NAMESPACES, 4).data == bytes(4)


def test_errors_have_a_block_where_there_is_one(rig: Any) -> None:
    rig.do(Io.READ, 1, slba=1 << 33, cdw={12: 0}, length=512)
    rig.do(Io.DSM, 1, cdw={10: 255, 11: 4}, data=bytes(16))
    rig.admin(Admin.GET_FEATURES, cdw={10: 0x7F, 11: 9})
    page = rig.log(Log.ERROR, 4096).data
    assert [struct.unpack_from("<Q", page, 64 * n + 16)[0] for n in range(3)] == [0, 0, 1 << 33]


@pytest.mark.parametrize("field", MediumSmart._fields)
def test_health_that_cannot_be_pretended(rig: Any, field: str) -> None:
    for value in (1 << 63, -1, 1 << 64):
        with pytest.raises(uxk.UsageError, match=rf"{field}={value}: expected 0 to \d+"):
            rig.medium.override_smart(field, value)
    low, high = 0, (1 << 63) - 1
    while low < high:  # the most that is taken
        middle = (low + high + 1) // 2
        try:
            rig.medium.override_smart(field, middle)
            low = middle
        except uxk.UsageError:
            high = middle - 1
    assert low >= 2 and rig.log(Log.SMART, 512).status == 0


async def test_pretending_never_hurts_the_driver() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        for field in MediumSmart._fields:
            kernel.sysfs.write(f"{ATTRIBUTES}/smart_set", f"{field}=999999999999")
        kernel.sysfs.write(f"{ATTRIBUTES}/extra_latency_ns", str(LATENCY_MAX_NS + 1))
        await kernel.sleep_ns(1_000)
        words = [Admin.GET_LOG_PAGE | 1 << 16, *[0] * 9, Log.SMART | 127 << 16, *[0] * 5]
        answer = await nvme.submit(struct.pack("<16I", *words), opcode=uxk.Op.PRIVATE, length=512)
        assert answer.result == 0 and not nvme.account.faults
        log = [record.text for record in kernel.kmsg.records()]
        assert any("temperature_k=999999999999: expected 0 to 65535" in text for text in log)
        assert any(f"extra_latency_ns={LATENCY_MAX_NS + 1}: expected 0 to {LATENCY_MAX_NS}" in text for text in log)
        assert kernel.sysfs.read(f"{ATTRIBUTES}/extra_latency_ns").strip() == "0"


# --- formats and namespaces -----------------------------------------------------------------------------------


def test_a_format_that_leaves_nothing(rig: Any) -> None:
    tiny = rig.subsystem.namespaces.create(1, 9)
    rig.subsystem.attach(tiny, [PRIMARY], attach=True)
    for nsid in (tiny.nsid, BROADCAST):
        assert rig.admin(Admin.FORMAT, nsid, cdw={10: 1}).code == Status.INVALID_FORMAT
    assert (tiny.blocks, rig.namespace.blocks) == (1, 8192)
    assert rig.admin(Admin.FORMAT, tiny.nsid, cdw={10: 0}).status == 0


def test_a_protected_namespace_is_not_deleted(rig: Any) -> None:
    second(rig)
    assert put(rig, Feature.WRITE_PROTECT, 1, 1).status == 0
    for nsid in (1, BROADCAST):
        answer = rig.admin(Admin.NAMESPACE_MANAGEMENT, nsid, cdw={10: 1})
        assert answer.code == Status.NAMESPACE_WRITE_PROTECTED and len(rig.subsystem.namespaces.table) == 2
    assert put(rig, Feature.WRITE_PROTECT, 0, 1).status == 0
    assert rig.admin(Admin.NAMESPACE_MANAGEMENT, BROADCAST, cdw={10: 1}).status == 0


def test_a_private_namespace_comes_back(rig: Any) -> None:
    private = rig.subsystem.namespaces.create(8, 9, shared=False)
    host = rig.host("nqn.a")
    rig.subsystem.attach(private, [host.cntlid], attach=True)
    assert list(rig.host("nqn.b").active) == [1]
    both = rig.host("nqn.a")
    assert list(both.active) == [1], "another has it"
    rig.subsystem.remove_controller(host)
    rig.subsystem.remove_controller(both)
    assert list(rig.host("nqn.a").active) == [1, 2]


async def test_by_hand_protected_namespaces_go_as_well() -> None:
    async with boot() as kernel:
        nvme = await kernel.modprobe("nvme", size="1MiB")
        words = [Admin.SET_FEATURES | 1 << 16, 1, *[0] * 8, Feature.WRITE_PROTECT, 1, *[0] * 4]
        assert (await nvme.submit(struct.pack("<16I", *words), opcode=uxk.Op.PRIVATE)).result == 0
        kernel.sysfs.write(f"{ATTRIBUTES}/namespaces", "rm 1")
        await kernel.sleep_ns(1_000)
        assert kernel.sysfs.read(f"{ATTRIBUTES}/namespaces_status").strip() == "1 ok"
        assert kernel.sysfs.listdir("/sys/class/block") == ["nvme0"]
