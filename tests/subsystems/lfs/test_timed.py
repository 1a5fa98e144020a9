"""The timed engine: agreement with the counting engine, stalls, ENOSPC, the page cache, hints, power loss."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from itertools import count, takewhile
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk.core.cost import CostModel
from uxk.errors import KernelBug, ParamError
from uxk.kernel.machine import Machine
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.recovery.medium import KEPT, LOST, PowerLoss
from uxk.subsystems.lfs.recovery.recover import format_volume, mount
from uxk.subsystems.lfs.recovery.store import Store, make_medium
from uxk.subsystems.lfs.reference import Volume
from uxk.subsystems.lfs.timed.clock import Clock
from uxk.subsystems.lfs.timed.config import Choice, TimedConfig
from uxk.subsystems.lfs.timed.device import DeviceSpec, FlashDevice
from uxk.subsystems.lfs.timed.engine import TimedVolume
from uxk.subsystems.lfs.timed.run import every, run_timed
from uxk.subsystems.lfs.timed.volume import StepVolume

GEOMETRY = Geometry(pages=512, segment_blocks=16)
FROZEN = TimedConfig(trigger="frozen", max_blocks=5)


def skewed(count: int, seed: int, pages: int = 512) -> list[int]:
    """A fill, then writes of which 80 % go to 20 % of the pages."""
    rng = np.random.default_rng(seed)
    hot = rng.random(count) < 0.8
    drawn = np.where(hot, rng.integers(0, pages // 5, count), rng.integers(0, pages, count))
    return [*range(pages), *drawn.tolist()]


def uniform(count: int, seed: int) -> list[int]:
    return [*range(512), *np.random.default_rng(seed).integers(0, 512, count).tolist()]


class Recorder:
    """A trace of every step; with a volume, its counts are checked after each cleaning."""

    def __init__(self, volume: Volume | None = None) -> None:
        self.steps: list[tuple[Any, ...]] = []
        self.volume = volume

    def opened(self, segment: int, log: int) -> None:
        self.steps.append(("opened", segment, log))

    def written(self, page: int, block: int, old: int) -> None:
        self.steps.append(("written", page, block, old))

    def moved(self, page: int, block: int, old: int) -> None:
        self.steps.append(("moved", page, block, old))

    def sealed(self, segment: int) -> None:
        self.steps.append(("sealed", segment))

    def cleaned(self, segment: int) -> None:
        self.steps.append(("cleaned", segment))
        if self.volume is not None:
            self.volume.check()


def engine(
    geometry: Geometry = GEOMETRY, policy: str = "sepbit/cb-age", config: TimedConfig | None = None, **more: Any
) -> tuple[Clock, TimedVolume, Recorder]:
    clock = Clock()
    volume = StepVolume(geometry, policies.lookup(policy))
    recorder = volume.trace = Recorder(volume)
    return clock, TimedVolume(clock, volume, config, **more), recorder


# --- the same as the counting engine ------------------------------------------------------------------

POLICIES = (
    "nosep/greedy", "sepgc/cb-age", "dac/cb-sqrt", "sepbit/cb-age", "sfs/mdc", "warcip/greedy", "eti/cb-age",
    "multilog/d-choices", "fadac/timestamp", "mida/atgc", "f2fs-atgc", "nilfs2", "fkg6/cb-age",
)  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("make", [skewed, uniform])
def test_frozen_rule_agrees_block_for_block(policy: str, make: Callable[[int, int], list[int]]) -> None:
    pages = make(2000, 5)
    future = policies.next_writes(pages)
    counted = Volume(GEOMETRY, policies.lookup(policy, future=future), counting := Recorder())
    counted.run(pages)
    clock = Clock()
    volume = StepVolume(GEOMETRY, policies.lookup(policy, future=future), timing := Recorder())
    timed = TimedVolume(clock, volume, FROZEN)
    for page, due_ns in zip(pages, every(9_000), strict=False):
        clock.call_later(due_ns, timed.submit, page)
    clock.run()
    assert timing.steps == counting.steps
    assert timed.results()["wa_ppm"] == counted.wa_ppm > 1_050_000
    assert (volume.block_of, volume.sealed_at, volume.clean) == (counted.block_of, counted.sealed_at, counted.clean)
    assert (volume.moved, volume.garbage, volume.total) == (counted.moved, counted.garbage, counted.total)
    volume.check()


@pytest.mark.parametrize("depth", [1, 8, 100])
def test_frozen_rule_does_not_depend_on_time(depth: int) -> None:
    pages = skewed(2000, 3)
    counted = Volume(GEOMETRY, policies.lookup("sepbit/cb-age"))
    counted.run(pages)
    device = DeviceSpec(slots=3, read_ns=1, program_ns=1_000_000)
    results = run_timed(
        GEOMETRY,
        policies.lookup("sepbit/cb-age"),
        pages[512:],
        depth=depth,
        fill=pages[:512],
        config=FROZEN,
        device=device,
    )
    assert results["moved_blocks"] == counted.moved and results["user_blocks"] == 2000
    assert results["answered"] == 2000 and results["enospc"] == 0


# --- time ---------------------------------------------------------------------------------------------


def test_device_speeds() -> None:
    clock, ends = Clock(), []
    device = FlashDevice(clock, DeviceSpec())

    def end(number: int) -> None:
        ends.append((number, clock.now_ns))

    device.read(end, 1)
    clock.run()
    assert ends == [(1, 58_770)] and device.is_idle
    began_ns = clock.now_ns
    device.program(end, 2)
    clock.run()
    assert ends[-1] == (2, began_ns + 16_640)
    began_ns = clock.now_ns
    device.program(end, 3, blocks=1000)
    device.flush(end, 4)
    clock.run()
    assert ends[-2:] == [(3, began_ns + 10_246_400), (4, began_ns + 10_740_000)]


def test_device_queue() -> None:
    clock, ends = Clock(), []
    device = FlashDevice(clock, DeviceSpec(slots=2, read_ns=100, read_bytes_per_s=4096 * 10**8))
    for number in range(5):
        device.read(lambda number: ends.append((number, clock.now_ns)), number)
    assert device.deepest == 3
    clock.run()
    assert ends == [(0, 110), (1, 120), (2, 220), (3, 230), (4, 330)]


@pytest.mark.parametrize("field", ["slots", "read_ns", "block_bytes"])
def test_bad_settings_are_named(field: str) -> None:
    with pytest.raises(ParamError, match=rf"{field} = -1"):
        DeviceSpec(**{field: -1})
    with pytest.raises(ParamError, match="max_blocks = 0"):
        TimedConfig(max_blocks=0)
    with pytest.raises(ParamError, match="depth = 0"):
        run_timed(GEOMETRY, policies.lookup("nosep/greedy"), [], depth=0)
    with pytest.raises(ParamError, match="fewer times"):
        run_timed(GEOMETRY, policies.lookup("nosep/greedy"), [1, 2], [5])


def test_a_write_alone_takes_one_program() -> None:
    results = run_timed(GEOMETRY, policies.lookup("nosep/greedy"), [1, 2, 3], every(1_000_000))
    assert results["p50_ns"] == results["max_ns"] == 16_640 and results["device_programs"] == 3


def test_patience_costs_no_stall_and_haste_does() -> None:
    pages = skewed(6000, 2)
    runs = [
        run_timed(GEOMETRY, policies.lookup("nosep/greedy"), pages[512:], every(gap_ns), fill=pages[:512])
        for gap_ns in (60_000, 5_000)
    ]
    slow, fast = runs
    assert slow["foreground_stalls"] == slow["foreground_victims"] == 0 and slow["background_victims"] > 100
    assert fast["foreground_stalls"] > 50 and fast["foreground_victims"] > 50
    assert slow["p99_ns"] < 1_000_000 < fast["p99_ns"]
    assert 0 < fast["stall_ns"] < fast["now_ns"] and fast["longest_stall_ns"] <= fast["stall_ns"]
    assert all(run["answered"] == 6000 and run["enospc"] == 0 and run["clean_min"] >= 1 for run in runs)


def test_same_run_same_figures() -> None:
    pages = skewed(3000, 4)

    def once() -> dict[str, Any]:
        config = TimedConfig(cache_pages=40, writeback_ns=3_000_000)
        return run_timed(GEOMETRY, policies.lookup("multilog/d-choices"), pages, every(17_000), config=config)

    assert once() == once()


def test_a_quiet_volume_is_cleaned_until_garbage_is_low() -> None:
    clock, timed, _ = engine(config=TimedConfig(high_segments=8, low_segments=2, idle_ns=1_000_000))
    for page in [*range(512), *range(0, 512, 4)]:
        timed.submit(page)
    clock.run(7_200_000)
    assert timed.answered == 640 and timed.volume.triggered
    before = timed.volume.cleaned
    clock.run()
    assert timed.volume.cleaned > before and not timed.volume.triggered and timed.stalls == 0


def test_the_preset_for_the_background_is_used_there() -> None:
    seen = {"greedy": 0, "f2fs-cb": 0}
    policy = policies.lookup("f2fs")
    assert policy.background is not None
    for part, key in ((policy.selection, "greedy"), (policy.background, "f2fs-cb")):

        def victim(volume: Volume, key: str = key, usual: Any = part.victim) -> int:
            seen[key] += 1
            return int(usual(volume))

        part.victim = victim  # type: ignore[method-assign]
    pages = skewed(4000, 9)
    results = run_timed(GEOMETRY, policy, pages[512:], every(60_000), fill=pages[:512])
    assert seen["f2fs-cb"] >= results["background_victims"] > 100
    assert seen["greedy"] >= results["foreground_victims"] and results["foreground_victims"] < 10


def test_it_runs_on_a_machine() -> None:
    machine = Machine(seed=1, clock="virtual", cost=CostModel(), arena_bytes=1 << 20)
    timed = TimedVolume(machine, StepVolume(GEOMETRY, policies.lookup("nosep/greedy")))
    timed.submit(7)
    while (event := machine.heap.pop_until(1 << 62)) is not None:
        machine.now_ns = event[0]
        event[2](event[3])
    assert timed.answered == 1 and timed.latency.max == 16_640


# --- moving -------------------------------------------------------------------------------------------


def test_operations_are_bounded_and_users_come_between() -> None:
    clock, timed, recorder = engine(policy="nosep/greedy", config=TimedConfig(max_blocks=3, checkpoint_segments=0))
    sizes = []
    program = timed.device.program

    def watched(done: Any, argument: int = 0, blocks: int = 1) -> None:
        sizes.append(blocks)
        program(done, argument, blocks)

    timed.device.program = watched  # type: ignore[method-assign]
    for page, due_ns in zip(skewed(3000, 6), every(40_000), strict=False):
        clock.call_later(due_ns, timed.submit, page)
    clock.run()
    assert max(sizes) <= 3 and timed.cleaner.operations > 2 * timed.volume.cleaned
    kinds = "".join(step[0][0] for step in recorder.steps if step[0] in ("written", "moved", "cleaned"))
    assert re.search("mw+m", kinds)


def test_a_block_overwritten_meanwhile_is_not_moved() -> None:
    """R104: between the read and the append the only valid block of the victim dies."""
    clock, timed, recorder = engine(
        Geometry(pages=64, segment_blocks=4, logs=1), "nosep/greedy", TimedConfig(checkpoint_segments=0)
    )
    for page in (0, 1, 2, 3, 0, 1, 2):
        timed.submit(page)
    clock.run(1_000_000)
    timed.cleaner.high = 1 << 20
    timed.cleaner.kick()
    assert timed.volume.victim == timed.volume.block_of[3] // 4
    timed.submit(3)
    clock.run()
    assert timed.cleaner.stale == 1 and not [step for step in recorder.steps if step[0] == "moved"]
    assert timed.volume.cleaned == 1


def test_a_dirty_page_is_written_back_instead_of_moved() -> None:
    """R105: its old copy is not read for nothing; the new content goes out at once."""
    clock, timed, recorder = engine(
        Geometry(pages=64, segment_blocks=4, logs=1),
        "nosep/greedy",
        TimedConfig(cache_pages=8, checkpoint_segments=0, writeback_ns=5_000_000),
    )
    for page in (0, 1, 2, 3, 0, 1):
        timed.submit(page)
        timed.sync()
        clock.run(clock.now_ns + 100_000)
    answers: list[int] = []
    timed.submit(3, answers.append)
    assert timed.cache.take(9) is False and 3 in timed.cache
    timed.cleaner.high = 1 << 20
    timed.cleaner.kick()
    clock.run()
    moved = [step[1] for step in recorder.steps if step[0] == "moved"]
    assert moved == [2] and timed.cleaner.skipped == 1 and answers == [0] and not len(timed.cache)
    assert timed.latency.max == 2_000


def test_cache_absorbs_and_throttles() -> None:
    pages = skewed(4000, 8)
    config = TimedConfig(cache_pages=64, writeback_ns=2_000_000)
    slow = run_timed(GEOMETRY, policies.lookup("nosep/greedy"), pages, every(30_000), config=config)
    assert slow["max_ns"] == 2_000 and slow["absorbed"] > 100 and slow["dirty"] == 0
    assert slow["user_blocks"] + slow["absorbed"] == 4512
    fast = run_timed(GEOMETRY, policies.lookup("nosep/greedy"), pages, every(1_000), config=config)
    assert fast["max_ns"] > 100_000 and fast["answered"] == 4512


def test_step_volume_refuses_what_cannot_be() -> None:
    volume = StepVolume(GEOMETRY, policies.lookup("nosep/greedy"))
    with pytest.raises(KernelBug, match="cannot be cleaned"):
        volume.begin(0)
    with pytest.raises(ParamError, match="page 512"):
        volume.trim(512)
    volume.run(range(512))
    volume.begin(3)
    for action in (volume.finish, lambda: volume.move(0), lambda: volume.begin(4)):
        with pytest.raises(KernelBug):
            action()


# --- no room ------------------------------------------------------------------------------------------


def overcommitted(segments: int) -> Geometry:
    """A volume that promises 64 pages and has room for fewer."""
    geometry = Geometry(pages=64, segment_blocks=4, logs=2)
    msgspec.structs.force_setattr(geometry, "segments", segments)
    return geometry


@pytest.mark.parametrize("cache_pages", [0, 6])
def test_enospc_loses_nothing_and_goes_away(cache_pages: int) -> None:
    clock, timed, _ = engine(overcommitted(12), "sepgc/greedy", TimedConfig(cache_pages=cache_pages))
    answers: dict[int, int] = {}

    def write(page: int) -> int:
        timed.submit(page, lambda status: answers.update({page: status}))
        clock.run()
        return answers[page]

    full = next(page for page in range(64) if write(page) == errno.ENOSPC)
    assert full > 30 and timed.enospc == 1
    assert all(timed.volume.block_of[page] >= 0 or page in timed.cache for page in range(full))
    timed.volume.check()
    # An overwrite that makes garbage where it can be cleaned goes through, again and again.
    if not cache_pages:
        for _ in range(3):
            for page in range(full):
                cleanable = timed.volume.sealed_at[timed.volume.block_of[page] // 4] >= 0
                assert write(page) == 0 or not cleanable
        assert timed.volume.cleaned > 30
    assert write(63) == errno.ENOSPC
    for page in range(12):
        assert timed.trim(page)
    assert not timed.trim(63)
    clock.run()
    assert write(63) == 0 and write(full) == 0
    assert timed.volume.block_of[0] == -1
    timed.volume.check()


def test_a_trim_comes_after_what_came_before() -> None:
    clock, timed, _ = engine(config=FROZEN)
    answers: list[int] = []
    for page in range(100):
        timed.submit(page, answers.append)
    assert timed.volume.now < 100  # the device has 32 slots
    assert timed.trim(99) and timed.trim(3)
    clock.run()
    assert answers == [0] * 100 and timed.volume.valid == 98 and timed.volume.block_of[99] == -1
    with pytest.raises(ParamError, match="page 512"):
        timed.submit(512)


# --- hints --------------------------------------------------------------------------------------------


def test_good_advice_is_followed_and_bounded() -> None:
    def choose(volume: StepVolume) -> Choice:
        best = min((live, segment) for segment, live in enumerate(volume.live))
        return Choice(best[1], 2)

    pages = skewed(3000, 1)
    results = run_timed(GEOMETRY, policies.lookup("nosep/cb-age"), pages, every(50_000), choose=choose)
    greedy = run_timed(
        GEOMETRY, policies.lookup("nosep/greedy"), pages, every(50_000), config=TimedConfig(max_blocks=2)
    )
    assert results["hinted"] == results["victims"] > 0 and results["moved_blocks"] == greedy["moved_blocks"]


@pytest.mark.parametrize("advice", [Choice(-1), Choice(1 << 40), Choice(0, -5)])
def test_nonsense_is_refused_in_the_same_step(advice: Choice) -> None:
    pages = skewed(3000, 1)
    results = run_timed(GEOMETRY, policies.lookup("nosep/greedy"), pages, every(50_000), choose=lambda _: advice)
    default = run_timed(GEOMETRY, policies.lookup("nosep/greedy"), pages, every(50_000))
    assert results.pop("rejects") == {"range": default["victims"]} and results.pop("hinted") == 0
    assert {key: default[key] for key in results} == results


def test_the_fullest_segments_are_refused() -> None:
    def choose(volume: StepVolume) -> Choice:
        full = max((live, segment) for segment, live in enumerate(volume.live) if volume.sealed_at[segment] >= 0)
        return Choice(full[1] if volume.now % 2 else volume.clean[-1])

    results = run_timed(GEOMETRY, policies.lookup("nosep/greedy"), skewed(3000, 1), every(50_000), choose=choose)
    assert set(results["rejects"]) == {"too full", "not exhausted"} and results["answered"] == 3512


# --- anything -----------------------------------------------------------------------------------------

STEPS = st.lists(st.tuples(st.integers(0, 63), st.integers(0, 60_000), st.integers(0, 9)), min_size=20, max_size=300)


@given(
    steps=STEPS,
    policy=st.sampled_from(POLICIES[:-1]),
    cache_pages=st.sampled_from([0, 5]),
    max_blocks=st.integers(1, 6),
    checkpoint_segments=st.integers(0, 3),
    segments=st.sampled_from([0, 23, 14]),
    trigger=st.sampled_from(["watermark", "frozen"]),
)
def test_any_run_ends_sound(steps: Sequence[tuple[int, int, int]], policy: str, segments: int, **settings: Any) -> None:
    geometry = Geometry(pages=64, segment_blocks=4)
    msgspec.structs.force_setattr(geometry, "segments", segments)
    config = TimedConfig(writeback_ns=300_000, idle_ns=100_000, low_segments=2, **settings)
    clock, timed, recorder = engine(geometry, policy, config)
    answers: list[int] = []
    written: set[int] = set()
    trims = 0

    def act(step: tuple[int, int, int]) -> None:
        if step[2]:
            timed.submit(step[0], answers.append)
            written.add(step[0])
        else:
            timed.trim(step[0])
            written.discard(step[0])

    due_ns = 0
    for step in steps:
        due_ns += step[1]
        clock.call_later(due_ns, act, step)
        trims += not step[2]
    clock.run()
    volume = timed.volume
    volume.check()
    assert len(answers) == timed.answered == timed.writes == len(steps) - trims
    assert volume.victim < 0 and not timed.cleaner.checkpointing
    kept = {page for page in range(64) if volume.block_of[page] >= 0 or page in timed.cache}
    assert kept <= written and (timed.enospc or kept == written)
    assert sum(step[0] == "moved" for step in recorder.steps) == volume.moved


# --- power loss in the middle of a timed run ------------------------------------------------------------


class Numbering(Store):
    """Content is the number of the write; keeps what the volume's content was after each change."""

    history: dict[int, dict[int, bytes]]

    def written(self, page: int, block: int, old: int) -> None:
        content = dict(self.history[self.state.sequence])
        content[page] = b"%d:%d" % (page, self.state.now)
        self.stage(content[page])
        super().written(page, block, old)
        self.history[self.state.sequence] = content

    def moved(self, page: int, block: int, old: int) -> None:
        content = self.history[self.state.sequence]
        super().moved(page, block, old)
        self.history[self.state.sequence] = content


def lose_power(policy: str, power: int) -> bool:
    """A timed run whose power fails after so many commands; false if it came to its end before."""
    geometry = Geometry(pages=48, segment_blocks=4, logs=4)
    pages = skewed(160, 3, 48)
    medium = make_medium(geometry)
    plain = format_volume(geometry, policies.lookup(policy), medium)
    store = Numbering(geometry, medium, plain.store.state)
    store.history = {0: {}}
    store.attach(plain.volume)
    clock = Clock()
    timed = TimedVolume(clock, plain.volume, TimedConfig(), on_checkpoint=store.checkpoint)
    for page, due_ns in zip(pages, every(20_000), strict=False):
        clock.call_later(due_ns, timed.submit, page)
    medium.commands_left = power
    state, synced = store.state, 0
    try:
        while (due := clock.heap.next_due_ns()) is not None:
            before, made = state.sequence, store.checkpoints
            clock.run(due)
            synced = before if store.checkpoints > made else synced
    except PowerLoss:
        medium.crash(lambda index, length: (KEPT, LOST, length // 2)[index * power % 3])
        found = mount(geometry, policies.lookup(policy), medium)
        assert synced <= found.store.state.sequence <= state.sequence
        content = {page: data for page in range(48) if (data := found.store.read(page)) is not None}
        assert content == store.history[found.store.state.sequence]
        found.volume.check()
        found.volume.run(pages)
        found.volume.check()
        return True
    # The engine's own checkpoints come in time: none had to be made because a segment was written again.
    assert store.forced == 0 and store.checkpoints > 5 and plain.volume.cleaned > 20
    return False


@pytest.mark.parametrize("policy", ["nosep/greedy", "sepbit/cb-age"])
def test_power_loss_in_the_middle_of_a_timed_run(policy: str) -> None:
    points = sum(1 for _ in takewhile(lambda power: lose_power(policy, power), count(0, 7)))
    assert points > 20
