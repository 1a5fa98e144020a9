"""Asynchronous events: held requests, limits, masks, re-arming; of each controller for itself."""

from __future__ import annotations

from typing import Any

from uxk_nvme.events import TEMPERATURE
from uxk_nvme.spec import Admin, Feature, Log, Status
from uxk_nvme.subsystem import PRIMARY

NOTICE = 0x00040002


def arm(rig: Any, **more: Any) -> tuple[Any, int]:
    queue, tag = rig.start(Admin.ASYNC_EVENT, admin=True, **more)
    return queue, tag


def enable(rig: Any, bits: int = 0x11F, **more: Any) -> None:
    rig.admin(Admin.SET_FEATURES, cdw={10: Feature.EVENTS, 11: bits}, **more)


def change(rig: Any) -> None:
    rig.subsystem.namespace_changed(rig.namespace)


def test_nothing_is_said_until_something_happens(rig: Any) -> None:
    enable(rig)
    queue, tag = arm(rig)
    rig.clock.advance(10**12)
    assert tag not in queue.posted
    change(rig)
    assert queue.posted[tag] == (tag, 0, NOTICE)


def test_what_is_not_enabled_is_not_reported(rig: Any) -> None:
    queue, tag = arm(rig)
    change(rig)
    enable(rig, 0x1F)
    change(rig)
    assert tag not in queue.posted


def test_what_happened_before_is_told_to_the_next_request(rig: Any) -> None:
    enable(rig)
    change(rig)
    queue, tag = arm(rig)
    assert queue.posted[tag].dw0 == NOTICE


def test_masked_until_the_log_is_read_without_rae(rig: Any) -> None:
    enable(rig)
    arm(rig)
    change(rig)
    queue, second = arm(rig)
    change(rig)
    assert second not in queue.posted, "masked"
    rig.log(Log.CHANGED_NAMESPACES, 4096, rae=True)
    assert second not in queue.posted, "still"
    change(rig)
    rig.log(Log.CHANGED_NAMESPACES, 4096)
    assert second not in queue.posted, "reading the log has dealt with what happened meanwhile"
    change(rig)
    assert queue.posted[second].dw0 == NOTICE


def test_types_are_masked_apart(rig: Any) -> None:
    enable(rig)
    queue, first = arm(rig)
    _, second = arm(rig)
    change(rig)
    rig.controller.events.happen(TEMPERATURE)
    assert [queue.posted[tag].dw0 for tag in (first, second)] == [NOTICE, TEMPERATURE.dw0]


def test_limit_and_abort(rig: Any) -> None:
    held = [arm(rig) for _ in range(4)]
    queue, fifth = arm(rig)
    assert queue.posted[fifth].status & 0x7FF == Status.ASYNC_LIMIT
    tag = held[0][1]
    assert rig.admin(Admin.ABORT, cdw={10: tag << 16}).dw0 == 0
    assert queue.posted[tag].status & 0x7FF == Status.ABORTED
    assert rig.controller.events.waiting == 3


def test_critical_warnings(rig: Any) -> None:
    enable(rig)
    queue, tag = arm(rig)
    rig.subsystem.check_health(0)
    assert tag not in queue.posted
    rig.medium.override_smart("temperature_k", 400)
    rig.subsystem.check_health(0)
    assert queue.posted[tag].dw0 == 0x00020101
    _, second = arm(rig)
    rig.log(Log.SMART, 512)
    rig.subsystem.check_health(0)
    assert second not in queue.posted, "it was told already"
    rig.medium.override_smart("critical_warning", 1)
    rig.subsystem.check_health(0)
    assert queue.posted[second].dw0 == 0x00020201


def test_every_controller_has_its_own(rig: Any) -> None:
    host = rig.host()
    enable(rig)
    enable(rig, controller=host)
    mine, theirs = arm(rig), arm(rig, controller=host)
    rig.subsystem.attach(rig.namespace, [host.cntlid], attach=False)
    assert theirs[0].posted[theirs[1]].dw0 == NOTICE and mine[1] not in mine[0].posted
    assert not host.active and PRIMARY in rig.namespace.attached
    data = rig.log(Log.CHANGED_NAMESPACES, 4096, controller=host).data
    assert data[0] == 1 and not any(rig.log(Log.CHANGED_NAMESPACES, 4096).data)
