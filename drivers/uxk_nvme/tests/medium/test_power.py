"""Power states, the host's thermal thresholds, and what a loss of power or worn flash leaves of a volatile cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import uxk
from uxk_nvme.medium import POWER_STATES, Medium, MediumParams, open_medium
from uxk_nvme.medium.ftl.device import FtlMedium
from uxk_nvme.medium.ftl.flash import ERASING

S = 10**9
PAGE = b"x" * 4096
WRITE_FAULT = 0x280
WRITE_PROTECTED = 0x020


def made(**more: Any) -> Medium:
    return open_medium(MediumParams(**{"size": 4 << 20, **more}), np.random.default_rng(1))


def ftl(**more: Any) -> FtlMedium:
    medium = made(medium="ftl", **more)
    assert isinstance(medium, FtlMedium)
    return medium


def read(medium: Medium, unit: int, now_ns: int) -> int:
    """How long it takes."""
    return medium.read(unit * 4096, memoryview(bytearray(4096)), now_ns) - now_ns


def contents(medium: Medium, unit: int, now_ns: int = 100 * S) -> bytes:
    buffer = bytearray(4096)
    assert medium.read(unit * 4096, memoryview(buffer), now_ns) >= 0
    return bytes(buffer)


def check_books(medium: FtlMedium) -> None:
    """Each unit lies at one place, each line knows how many it holds, and lines are where their state says."""
    flash, counted = medium.flash, [0] * medium.geometry.lines
    for unit, at in enumerate(flash.l2p[: medium.geometry.units]):
        if at >= 0:
            assert flash.p2l[at] == unit
            counted[at // medium.geometry.line_units] += 1
    assert counted == flash.valid
    waiting = [*(line for _, line in medium.collector.erasable), *medium.collector.held]
    assert sorted(waiting) == [line for line, state in enumerate(flash.state) if state == ERASING]
    assert not any(counted[line] for line in waiting)
    assert len(medium.buffer.dirty) + medium.buffer.flying_units <= medium.buffer.capacity_units


# --- power states ---


@pytest.mark.parametrize("kind", ["none", "simple", "ftl"])
def test_any_command_wakes_the_device_to_the_last_operational_state(kind: str) -> None:
    commands: tuple[Callable[[Medium], int], ...] = (
        lambda m: m.read(0, memoryview(bytearray(4096)), S), lambda m: m.write(0, PAGE, S), lambda m: m.flush(S),
        lambda m: m.deallocate(0, 4096, S), lambda m: m.write_uncorrectable(0, 512, S), lambda m: m.verify(0, 512, S),
    )  # fmt: skip
    for command in commands:
        medium = made(medium=kind)
        medium.set_power_state(1, 0)
        medium.set_power_state(4, 0)
        assert medium.power_state == 4
        done_ns = command(medium)
        assert medium.power_state == 1
        if kind != "none":
            assert done_ns - S >= POWER_STATES[4].exit_ns


@pytest.mark.parametrize("kind", ["simple", "ftl"])
def test_entering_takes_its_time_and_all_wait_for_the_waking(kind: str) -> None:
    medium = made(medium=kind, precondition="sequential")
    base_ns = read(medium, 0, S)
    medium.set_power_state(4, 2 * S)
    state = POWER_STATES[4]
    awake_ns = state.entry_ns + state.exit_ns  # the command came before the state was entered
    assert read(medium, 0, 2 * S) == pytest.approx(awake_ns + base_ns, rel=0.01)
    assert read(medium, 300, 2 * S + 1000) == pytest.approx(awake_ns + base_ns, rel=0.02), "it was not awake yet"
    assert read(medium, 0, 3 * S) == pytest.approx(base_ns, rel=0.01)
    medium.set_power_state(3, 4 * S)
    medium.set_power_state(0, 5 * S)
    assert read(medium, 0, 5 * S) == pytest.approx(POWER_STATES[3].exit_ns + base_ns, rel=0.01)


def test_background_work_wakes_nobody() -> None:
    medium = ftl()
    medium.write(0, PAGE, S)
    medium.set_power_state(4, S + 1000)
    while medium.next_event_ns is not None:
        medium.run_background(medium.next_event_ns)
    assert medium.power_state == 4
    assert medium.smart(3 * S).temperature_k > 0
    assert read(medium, 0, 4 * S) >= POWER_STATES[4].exit_ns


# --- heat ---


def test_the_hosts_thresholds_throttle_earlier() -> None:
    medium = ftl(precondition="sequential")
    assert medium.has_heat
    assert not made().has_heat
    now_k = medium.smart(S).temperature_k
    cool_ns = read(medium, 0, S)
    medium.set_thermal(now_k - 5, 0, S)
    assert medium.smart(S).throttle == 1
    medium.set_thermal(now_k - 5, now_k - 1, S)
    assert medium.smart(S).throttle == 2
    assert medium.smart(S).thermal_transitions_2 == 1
    assert read(medium, 0, 2 * S) > 3 * cool_ns
    medium.set_thermal(0, 0, 3 * S)
    assert medium.smart(3 * S).throttle == 0
    assert (medium.warning_k, medium.critical_k) == (343, 353)


def test_what_was_changed_can_be_seen() -> None:
    medium = ftl()
    assert medium.controls() == made().controls() == []
    for text in ("slow_die 1 20000000", "slow_channel 0 2000000", "throttle 0"):
        medium.control(text)
    assert medium.controls() == ["slow_die 1 20000000", "slow_channel 0 2000000", "throttle 0"]
    medium.control("slow_die 1 1000000")
    medium.control("throttle off")
    assert medium.controls() == ["slow_channel 0 2000000"]


# --- caches ---


@pytest.mark.parametrize("kind", ["none", "simple", "ftl"])
def test_a_cache_too_small_for_a_unit_is_refused(kind: str) -> None:
    with pytest.raises(uxk.ParamError, match="write_cache=512: expected 0, or at least"):
        made(medium=kind, write_cache=512)


def test_switching_the_cache_off_takes_as_long_as_a_flush() -> None:
    medium = ftl(write_cache=1 << 20)
    done_ns = medium.write(0, PAGE, S)
    off_ns = medium.set_write_cache(False, done_ns)
    assert off_ns > done_ns + 100_000
    medium.power_loss(off_ns)
    assert contents(medium, 0) == PAGE
    assert made(medium="simple", write_cache=65536).set_write_cache(False, 5) == 5 + MediumParams().flush_ns


@pytest.mark.parametrize("kind", ["none", "simple", "ftl"])
def test_what_the_file_system_refuses_stays_cached(kind: str) -> None:
    medium = made(medium=kind, write_cache=65536)
    medium.store.sync = lambda: WRITE_FAULT  # type: ignore[method-assign]
    medium.write(0, PAGE, 0)
    assert medium.flush(10) == -WRITE_FAULT
    assert medium.write(4096, PAGE, 20, fua=True) == -WRITE_FAULT
    assert medium.set_write_cache(False, 30) == -WRITE_FAULT
    medium.power_loss(40)
    assert contents(medium, 0) == contents(medium, 1) == bytes(4096)


def test_with_the_cache_off_every_write_reaches_the_file_system() -> None:
    for kind in ("none", "simple", "ftl"):
        medium = made(medium=kind, write_cache=65536)
        medium.set_write_cache(False, 0)
        medium.store.sync = lambda: WRITE_FAULT  # type: ignore[method-assign]
        assert medium.write(0, PAGE, S) == -WRITE_FAULT


def test_what_worn_flash_cannot_take_is_not_durable() -> None:
    medium = ftl(write_cache=1 << 20)
    medium.write(0, b"A" * 4096, 1000)
    assert medium.flush(2000) > 0
    medium.collector.make_room = lambda now_ns: False  # type: ignore[method-assign]
    medium.flash.host.at = medium.flash.host.end
    assert medium.write(0, b"B" * 4096, S) > 0
    assert medium.flush(S + 1) == -WRITE_FAULT
    assert medium.flush(S + 2) == -WRITE_FAULT
    assert medium.set_write_cache(False, S + 3) == -WRITE_FAULT
    assert medium.write(4096, PAGE, S + 4) == -WRITE_PROTECTED
    assert medium.read_only
    medium.power_loss(2 * S)
    assert contents(medium, 0) == b"A" * 4096
    fua = ftl(write_cache=1 << 20)
    fua.collector.make_room = lambda now_ns: False  # type: ignore[method-assign]
    assert fua.write(0, PAGE, S, fua=True) == -WRITE_FAULT


# --- the flash's books after a loss of power ---


def test_pages_that_were_not_programmed_hold_nothing() -> None:
    medium = ftl(write_cache=1 << 20)
    page_units = medium.geometry.page_units
    first_ns = medium.write(0, PAGE * page_units, S)
    done_ns = medium.flush(first_ns)
    before = medium.flash.l2p[0]
    medium.write(0, PAGE * 2 * page_units, done_ns)
    medium.flush(done_ns)  # programs are under way
    assert medium.flash.l2p[0] != before
    medium.power_loss(done_ns + 1)
    assert medium.flash.l2p[0] == before
    assert medium.flash.l2p[page_units] == -1, "it was nowhere"
    check_books(medium)


def test_books_are_right_after_losses_of_power_amid_collection() -> None:
    medium = ftl(write_cache=1 << 18, precondition="random", size=8 << 20)
    draw, now_ns = random.Random(3), 0
    for step in range(6000):
        now_ns += draw.choice((1000, 50_000, 3_000_000))
        unit = draw.randrange(2048)
        medium.write(unit * 4096, PAGE, now_ns, draw.random() < 0.05)
        if step % 97 == 0:
            medium.power_loss(now_ns)
            collector = medium.collector
            assert all(when_ns <= now_ns for when_ns, _ in collector.erasable)
            assert not medium.buffer.flights
            check_books(medium)
        elif draw.random() < 0.3:
            medium.run_background(now_ns)


def test_no_line_is_erased_before_what_it_held_is_programmed() -> None:
    medium = ftl(size=16 << 20, precondition="random")
    flash, collector = medium.flash, medium.collector
    came_from: dict[int, int] = {}
    place, erase = collector._place, flash.erase
    erasures = 0

    def placing(units: list[int], now_ns: int) -> None:
        came_from.update(dict.fromkeys(units, collector.victim))
        place(units, now_ns)

    def erasing(line: int, now_ns: int) -> None:
        nonlocal erasures
        erasures += 1
        gc, page_units = flash.gc, flash.geometry.page_units
        for slot in range(gc.at // page_units * page_units, gc.at) if gc.line >= 0 else ():
            unit = flash.p2l[slot]
            assert flash.l2p[unit] != slot or came_from[unit] != line
        erase(line, now_ns)

    collector._place, flash.erase = placing, erasing  # type: ignore[method-assign]
    draw, now_ns = random.Random(1), 0
    for number in range(8000):
        now_ns += 20_000
        medium.write(draw.randrange(4096) * 4096, PAGE, now_ns)
        if number % 200 == 0:
            now_ns += 3_000_000
            while medium.next_event_ns is not None:
                now_ns = max(now_ns, medium.next_event_ns)
                medium.run_background(now_ns)
            assert not collector.held
    assert erasures > 100
    check_books(medium)
