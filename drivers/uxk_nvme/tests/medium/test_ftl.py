"""The translation layer: collection keeps up whatever is written, hints are checked, wear is spread, flash runs out."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import uxk
from uxk_nvme.medium import MediumParams, open_medium
from uxk_nvme.medium.cells import PRESETS
from uxk_nvme.medium.ftl import flash as flash_module
from uxk_nvme.medium.ftl.collector import selector_of
from uxk_nvme.medium.ftl.device import FtlMedium
from uxk_nvme.medium.ftl.fast import FastFtlMedium
from uxk_nvme.medium.ftl.geometry import geometry_of
from uxk_nvme.medium.ftl.timing import Timing
from uxk_nvme.medium.ftl.victims import SELECTORS, Candidates, Hints
from uxk_nvme.store import open_store

MIB = 1 << 20
PAGE = b"x" * 4096


def ftl(**more: Any) -> FtlMedium:
    given: dict[str, Any] = {"size": MIB, "medium": "ftl", "cell": "slc", **more}
    medium = open_medium(MediumParams(**given), np.random.default_rng(1))
    assert isinstance(medium, FtlMedium)
    return medium


def overwrite(medium: FtlMedium, writes: int, *, seed: int = 1, share: int = 1, now_ns: int = 0) -> int:
    """Random 4 KiB writes over one part in ``share`` of the device, one after the other; the end."""
    draw = random.Random(seed)
    units = medium.geometry.units // share
    for _ in range(writes):
        now_ns = medium.write(draw.randrange(units) * 4096, PAGE, now_ns)
        assert now_ns >= 0
    return now_ns


def check_books(medium: FtlMedium) -> None:
    """Every valid unit is where the map says, and counted; lines are in one state each; something can be moved into."""
    flash, geometry = medium.flash, medium.geometry
    counted = [0] * geometry.lines
    for unit in range(geometry.units):
        at = flash.l2p[unit]
        if at >= 0:
            assert flash.p2l[at] == unit
            counted[at // geometry.line_units] += 1
    assert counted == flash.valid
    waiting = [*(line for _, line in medium.collector.erasable), *medium.collector.held]
    free = [line for _, line in flash.free]
    open_ = [stream.line for stream in (flash.host, flash.gc) if stream.line >= 0]
    victim = [medium.collector.victim] if medium.collector.victim >= 0 else []
    everything = [*waiting, *free, *open_, *victim, *flash.closed]
    assert len(set(everything)) == len(everything) == flash.usable_lines
    assert not any(counted[line] for line in [*waiting, *free])
    assert free or waiting or medium.read_only


class Collected(RuleBasedStateMachine):
    """Bursts of writes, deallocations, idle time, hints good and bad, on flash of every kind of policy."""

    medium: FtlMedium

    @initialize(
        victim=st.sampled_from(sorted(SELECTORS)),
        over_provisioning_ppm=st.sampled_from([20_000, 70_000, 500_000]),
        start=st.sampled_from(["none", "sequential", "random"]),
        cell=st.sampled_from(["slc", "tlc-2tb-scaled", "qlc"]),
        write_cache=st.sampled_from([0, 65536]),
        endurance=st.sampled_from([0, 30]),
        wear_gap=st.sampled_from([0, 2]),
    )
    def begin(
        self, victim: str, over_provisioning_ppm: int, start: str, cell: str, write_cache: int, endurance: int,
        wear_gap: int,
    ) -> None:  # fmt: skip
        self.medium = ftl(
            gc_victim=victim, over_provisioning_ppm=over_provisioning_ppm, precondition=start, cell=cell,
            write_cache=write_cache, endurance_cycles=endurance, wear_gap_cycles=wear_gap,
        )  # fmt: skip
        self.now_ns = 0
        self.draw = random.Random(1)
        self.offered = 0

    @rule(count=st.integers(1, 400), span=st.sampled_from([4, 64, 256]), at_once=st.booleans())
    def write(self, count: int, span: int, at_once: bool) -> None:
        medium = self.medium
        for _ in range(count):
            done_ns = medium.write(self.draw.randrange(span) * 4096, PAGE, self.now_ns)
            if done_ns < 0:
                assert done_ns == -0x020
                assert medium.read_only
                return
            if not at_once:
                self.now_ns = done_ns

    @rule(first=st.integers(0, 255), count=st.integers(1, 64))
    def free(self, first: int, count: int) -> None:
        count = min(count, 256 - first)
        self.medium.deallocate(first * 4096, count * 4096, self.now_ns)

    @rule()
    def flush(self) -> None:
        self.now_ns = self.medium.flush(self.now_ns)

    @rule(lines=st.lists(st.integers(-2, 200), max_size=20), fresh=st.booleans(), most=st.integers(0, 20))
    def hint(self, lines: list[int], fresh: bool, most: int) -> None:
        medium = self.medium
        generations = None
        if fresh:
            known = medium.flash.generation
            generations = [known[line] if 0 <= line < len(known) else 0 for line in lines]
        medium.offer_victims(lines, generations, max_valid=most, expires_ns=self.now_ns + 1_000_000)
        self.offered += len(lines)

    @rule(steps=st.integers(1, 50))
    def rest(self, steps: int) -> None:
        for _ in range(steps):
            event_ns = self.medium.next_event_ns
            if event_ns is None:
                break
            self.now_ns = max(self.now_ns, event_ns)
            self.medium.run_background(self.now_ns)
            assert self.medium.next_event_ns is None or self.medium.next_event_ns > self.now_ns

    @invariant()
    def books_are_right(self) -> None:
        medium = getattr(self, "medium", None)
        if medium is None:
            return
        check_books(medium)
        figures = medium.figures()
        assert figures["write_amplification_ppm"] >= 1_000_000
        assert sum(medium.collector.hints.refused.values()) + figures["gc_hints_applied"] <= self.offered


TestCollected = Collected.TestCase
TestCollected.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_random_overwriting_amplifies_as_theory_says() -> None:
    """Greedy on uniform writes: about (1 + op) / (2 op), Desnoyers (SYSTOR 2012) for few lines somewhat less."""
    amplification = {}
    for op_ppm in (70_000, 280_000, 1_000_000):
        medium = ftl(size=8 * MIB, over_provisioning_ppm=op_ppm, precondition="random")
        overwrite(medium, 8000)
        amplification[op_ppm] = medium.figures()["write_amplification_ppm"]
        check_books(medium)
    assert 4_000_000 < amplification[70_000] < 9_000_000
    assert 1_600_000 < amplification[280_000] < 3_000_000
    assert 1_000_000 <= amplification[1_000_000] < 1_600_000


def test_sequential_overwriting_amplifies_nothing() -> None:
    medium = ftl(size=8 * MIB, precondition="sequential")
    now_ns = 0
    for _ in range(3):
        for offset in range(0, 8 * MIB, 1 << 17):
            now_ns = medium.write(offset, bytes(1 << 17), now_ns)
    # The host's own order is that of the flash: every victim is empty.
    assert medium.figures()["write_amplification_ppm"] <= 1_050_000


def test_rewriting_what_the_cache_holds_costs_no_flash() -> None:
    medium = ftl(write_cache=1 << 18)
    now_ns = 0
    for _ in range(500):
        now_ns = medium.write(0, PAGE, now_ns)
    assert medium.figures()["page_programs"] == 0
    medium.flush(now_ns)
    assert medium.figures()["host_units"] == 1


def test_flushing_small_writes_pads_pages() -> None:
    medium = ftl(cell="tlc-2tb-scaled", size=64 * MIB, write_cache=1 << 20)
    now_ns = 0
    for unit in range(64):
        now_ns = medium.write(unit * 4096, PAGE, now_ns, fua=True)
    figures = medium.figures()
    assert figures["host_units"] == 64
    assert figures["padded_units"] == 64 * (medium.geometry.page_units - 1)


def test_deallocated_data_need_not_move() -> None:
    def moves(*, free: bool) -> int:
        medium = ftl(size=4 * MIB, precondition="random")
        if free:
            medium.deallocate(2 * MIB, 2 * MIB, 0)
        overwrite(medium, 4000, share=2)
        return medium.figures()["moved_units"]

    assert moves(free=True) * 3 < moves(free=False)


def test_idle_time_is_used() -> None:
    medium = ftl(size=8 * MIB, precondition="random", over_provisioning_ppm=280_000, gc_background_lines=20)
    now_ns = overwrite(medium, 100)
    before = medium.figures()["free_lines"]
    steps = 0
    while medium.next_event_ns is not None:
        now_ns = medium.next_event_ns
        medium.run_background(now_ns)
        steps += 1
        assert steps < 10_000
    assert medium.figures()["free_lines"] > before
    assert medium.collector.foreground_waits == 0
    check_books(medium)


def test_part_of_a_unit_is_read_first() -> None:
    medium = ftl(map_bytes=16384, write_cache=1 << 18)
    now_ns = medium.write(0, bytes(16384), 0, fua=True)
    reads = medium.figures()["page_reads"]
    medium.write(512, b"x" * 512, now_ns)
    assert medium.figures()["page_reads"] == reads + 1
    medium.write(16384, b"x" * 16384, now_ns)
    assert medium.figures()["page_reads"] == reads + 1


# --- victims ---


def seen(**columns: Any) -> Candidates:
    count = len(next(iter(columns.values())))
    blank = [0] * count
    given: dict[str, Any] = dict.fromkeys(("generation", "valid", "erases", "age", "reads"), blank)
    return Candidates(**{"line": list(range(count)), "line_units": 64, "free_lines": 3, **given, **columns})


def choice(name: str, candidates: Candidates) -> int:
    numbers = iter(range(7, 10**6, 13))
    return selector_of(name)(candidates, lambda: next(numbers))


def test_policies_choose_as_published() -> None:
    assert choice("greedy", seen(valid=[5, 3, 9])) == 1
    # Half garbage for a long time beats three quarters that have just been closed.
    assert choice("cost-benefit", seen(valid=[16, 32], age=[1, 1000])) == 1
    assert choice("cost-benefit", seen(valid=[0, 1], age=[1, 1])) == 0
    assert choice("fifo", seen(valid=[64, 60, 1])) == 1
    assert choice("wear-aware", seen(valid=[5, 6], erases=[9, 1])) == 1
    assert choice("random", seen(valid=[1, 1, 1])) == 7 % 3
    assert choice("d-choices", seen(valid=list(range(100, 0, -1)))) in range(100)
    with pytest.raises(uxk.ParamError, match="greedy"):
        ftl(gc_victim="gready")


def test_a_rule_of_ones_own() -> None:
    medium = ftl(precondition="random")
    asked: list[Candidates] = []

    def mine(candidates: Candidates, draw: Any) -> int:
        asked.append(candidates)
        return min(range(len(candidates.line)), key=lambda i: (candidates.valid[i], candidates.erases[i]))

    medium.set_selector(mine)
    overwrite(medium, 300)
    assert asked
    assert all(len(set(map(len, c[:6]))) == 1 for c in asked)
    assert all(min(c.age) >= 0 for c in asked)
    check_books(medium)


def test_good_hints_are_followed_and_bad_ones_counted() -> None:
    medium = ftl(precondition="random")
    now_ns = overwrite(medium, 60)
    now = medium.victim_candidates()
    best = min(range(len(now.line)), key=now.valid.__getitem__)
    worst = max(range(len(now.line)), key=now.valid.__getitem__)
    taken = medium.offer_victims(
        [-1, now.line[worst], now.line[best]], [0, now.generation[worst] - 1, now.generation[best]], expires_ns=1 << 60
    )
    assert taken == 2
    overwrite(medium, 400, now_ns=now_ns)
    hints = medium.collector.hints
    assert hints.applied == 1
    assert hints.refused["unknown"] == 1
    assert hints.refused["stale"] == 1
    figures = medium.figures()
    assert (figures["gc_hints_applied"], figures["gc_hints_refused"]) == (1, 2)


def test_hints_are_held_to_their_terms() -> None:
    hints = Hints()
    closed, valid, generation = {3: None, 4: None}, [0, 0, 0, 9, 64], [1] * 5

    def offer_and_take(line: int, max_valid: int, expires_ns: int) -> int:
        hints.offer([line], None, max_valid, expires_ns, 5)
        return hints.take(closed, valid, generation, 64, 100)

    assert offer_and_take(3, 0, 100) == 3
    assert offer_and_take(3, 0, 99) == -1
    assert offer_and_take(3, 8, 100) == -1
    assert offer_and_take(4, 0, 100) == -1
    assert offer_and_take(2, 0, 100) == -1
    assert hints.refused == {"unknown": 0, "stale": 0, "expired": 1, "full": 0, "not_worth": 2, "state": 1}
    assert hints.offer([3] * 1000, None, 0, 100, 5) == 256
    assert hints.refused["full"] == 744


# --- wear ---


def test_erasures_are_spread() -> None:
    """A hot quarter of the device must not wear out a quarter of the blocks."""

    def gap(wear_gap: int) -> int:
        medium = ftl(size=2 * MIB, precondition="sequential", wear_gap_cycles=wear_gap, over_provisioning_ppm=280_000)
        overwrite(medium, 30_000, share=16)
        check_books(medium)
        figures = medium.figures()
        return figures["erase_count_max"] - figures["erase_count_min"]

    assert gap(10) < 40 < gap(0)


def test_worn_out_flash_becomes_read_only() -> None:
    medium = ftl(endurance_cycles=20, spare_ppm=10_000, over_provisioning_ppm=100_000)
    draw = random.Random(1)
    written, done_ns, now_ns = 0, 0, 0
    while done_ns >= 0 and written < 300_000:
        now_ns = max(now_ns, done_ns)
        done_ns = medium.write(draw.randrange(256) * 4096, PAGE, now_ns)
        written += 1
    assert done_ns == -0x020
    smart = medium.smart(now_ns)
    assert smart.available_spare < 100
    assert smart.percentage_used > 100
    assert smart.critical_warning & 0b1001 == 0b1001
    assert medium.figures()["retired_lines"] > 0
    assert medium.deallocate(0, 4096, now_ns) == -0x020
    assert medium.read(0, memoryview(bytearray(4096)), now_ns) >= 0
    check_books(medium)


# --- geometry ---


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("size", [MIB, 64 * MIB, 1 << 30, 2 << 40])
def test_every_preset_fits_every_size(preset: str, size: int) -> None:
    params = MediumParams(cell=preset, map_bytes=65536 if size > 1 << 36 else 4096)
    geometry = geometry_of(params, size)
    raw = geometry.lines * geometry.line_units * geometry.map_bytes
    assert raw >= size + size * 7 // 100
    assert geometry.lines >= 16
    assert geometry.lines_needed < geometry.lines
    pages = range(geometry.line_pages)
    assert {geometry.die_of(page) for page in pages} == set(range(geometry.dies))
    assert {geometry.channel_of(page) for page in pages} == set(range(geometry.channels))
    # Neighbours lie on different channels.
    if geometry.channels > 1:
        assert all(geometry.channel_of(page) != geometry.channel_of(page + 1) for page in pages[:-1])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"cell": "plc"}, "cell='plc'"),
        ({"channels": 64, "dies_per_channel": 64}, "too small"),
        ({"size": 1 << 40}, "map entries"),
        ({"slow_die": 999}, "slow_die=999"),
        ({"slow_channel": 63}, "slow_channel=63"),
        ({"planes": 1, "map_bytes": 8192}, "map_bytes=8192"),
        ({"planes": 3, "size": 64 * MIB, "map_bytes": 8192}, "map_bytes=8192"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], named: str) -> None:
    params = MediumParams(**{"size": MIB, "cell": "slc", "medium": "ftl", "backing": "ram", **given})
    with pytest.raises(uxk.ParamError, match=named):
        Timing(geometry_of(params, params.size), params)


def test_big_maps_are_arrays_and_work_alike() -> None:
    def run() -> dict[str, int]:
        medium = ftl(precondition="random")
        overwrite(medium, 1000)
        medium.deallocate(0, MIB // 2, 10**12)
        check_books(medium)
        return medium.figures()

    small = run()
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(flash_module, "_LIST_MAX", 1)
        assert run() == small


@pytest.mark.parametrize("cell", ["tlc-2tb-scaled", "qlc"])
def test_the_hot_path_means_the_same(cell: str) -> None:
    params = MediumParams(size=MIB, medium="ftl", cell=cell, precondition="random", initial_cycles=290,
                          error_scale_ppm=10_000_000)  # fmt: skip
    made = [kind(params, open_store("ram", MIB, 512), np.random.default_rng(1)) for kind in (FtlMedium, FastFtlMedium)]
    draw = random.Random(5)
    now_ns = 0
    for number in range(6000):
        offset, choice = draw.randrange(255) * 4096, draw.random()
        ends = set()
        data = number.to_bytes(8, "little") * 512
        for medium in made:
            buffer = memoryview(bytearray(8192))
            if choice < 0.45:
                end_ns = medium.write(offset, data, now_ns, choice < 0.05)
            elif choice < 0.9:
                end_ns = medium.read(offset, buffer[:4096], now_ns)
            elif choice < 0.94:
                end_ns = medium.read(offset, buffer, now_ns)
            elif choice < 0.97:
                end_ns = medium.write(offset + 512, data[:1024], now_ns)
            else:
                end_ns = medium.deallocate(offset, 8192 if offset < 254 * 4096 else 4096, now_ns)
            ends.add((end_ns, bytes(buffer)))
        assert len(ends) == 1
        now_ns = max(now_ns, next(iter(ends))[0]) if choice < 0.7 else now_ns + draw.randrange(10**7)
        for medium in made:
            if medium.next_event_ns is not None and medium.next_event_ns <= now_ns:
                medium.run_background(now_ns)
    assert made[0].figures() == made[1].figures()
    assert made[0].smart(now_ns) == made[1].smart(now_ns)
    assert made[0].figures()["read_retries"] > 0
