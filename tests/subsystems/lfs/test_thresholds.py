"""Thresholds of a running volume: an administrator's word, and what agents recommend on trial (R29)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest

import uxk
from uxk.errors import ConfigError, ParamError, TreeError
from uxk.scenario.pages.load import PageRun, load_pages
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.hint import GcHint, encode_hint
from uxk.subsystems.lfs.params import LfsParams
from uxk.subsystems.lfs.subsystem import Lfs
from uxk.subsystems.lfs.thresholds import set_threshold
from uxk.testing import boot
from uxk.uapi.action import ActionChange, Step

pytest.importorskip("numba")  # without it, the same in minutes

PAGES, SEGMENT_BLOCKS, EPOCH = 16_384, 64, 1_024
MOST = 400_000
NAME = "lfs/lfs0/gp_ppm"
WRITE_NS = 20_000
LIFETIMES_NS = {"recommend": 0, "briefly": 20 * EPOCH * WRITE_NS, "forever": 16 * PAGES * WRITE_NS + 1}
FILE, CLEAN_FILE = f"/proc/sys/{NAME}", "/proc/sys/lfs/lfs0/clean_min"


class Tuner(uxk.MLAgent[uxk.Params]):
    """Says at the end of each epoch what the test has put in its script: the epoch, and what to do then."""

    manifest = uxk.Manifest(
        name="tuner", version="1", author="test", license="Apache-2.0", description="tunes", kind="ml-agent"
    )
    model, sites, sysctls = "lfs0", ("lfs0.gc",), (NAME,)
    hints: ClassVar[list[str]] = []
    script: ClassVar[dict[int, tuple[str, int]]] = {}
    steps: ClassVar[list[ActionChange]] = []
    statuses: ClassVar[list[int]] = []

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        if dataset.name != "state" or (do := self.script.get(int(dataset.rows["epoch"][0]))) is None:
            return
        word, value = do
        if word == "die":
            raise RuntimeError("dies")
        if word == "clean_min":
            reply = ctx.recommend_sysctl("lfs/lfs0/clean_min", value)
        elif word in LIFETIMES_NS:
            reply = ctx.recommend_sysctl(NAME, value, lifetime_ns=LIFETIMES_NS[word], why="a test")
        else:
            reply = ctx.settle_action(self.steps[-1].action, keep=word == "keep")
        reply.then(lambda done: self.statuses.append(done.status))

    def recommend(self, ctx: uxk.Context, site: str) -> bytes | None:
        return encode_hint(GcHint(self.hints[0])) if self.hints else None

    def on_action(self, ctx: uxk.Context, change: ActionChange) -> None:
        self.steps.append(change)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    for kept in (Tuner.script, Tuner.steps, Tuner.statuses, Tuner.hints):
        kept.clear()


@cache
def writes() -> PageRun:
    return load_pages("zipf1.0", pages=PAGES, writes=10 * PAGES, seed=5)


def attach(kernel: uxk.Kernel, **settings: Any) -> Lfs:
    params = LfsParams(
        **(
            {"segment_blocks": SEGMENT_BLOCKS, "gp_max_ppm": MOST, "epochs_per_volume": 16, "write_ns": WRITE_NS}
            | settings
        )
    )
    return Lfs(kernel, params, writes().pages, fill=PAGES, pages=PAGES)


async def epochs(kernel: uxk.Kernel, lfs: Lfs, last: int) -> None:
    """Goes on until just after the end of an epoch."""
    await kernel.run_until_ns(last * EPOCH * lfs.params.write_ns + 1)
    assert len(lfs.epochs) == last


async def epochs_from_now(kernel: uxk.Kernel, lfs: Lfs, count: int) -> None:
    await kernel.run_until_ns(kernel.now_ns + count * EPOCH * lfs.params.write_ns + 1)
    assert len(lfs.epochs) == count


async def scripted(script: dict[int, tuple[str, int]], last: int, **settings: Any) -> tuple[Lfs, list[str]]:
    Tuner.script.update(script)
    async with boot(seed=3) as kernel:
        await kernel.insmod(Tuner)
        lfs = attach(kernel, **settings)
        await epochs(kernel, lfs, last)
        healthy(lfs)
        lines = [record.text for record in kernel.kmsg.records(source="actions")]
    return lfs, lines


def healthy(lfs: Lfs) -> None:
    """Nothing written is lost, and there are clean segments."""
    reg, owner = lfs.volume.reg, lfs.volume.owner
    block = lfs.volume.page[: lfs.pages, c.BLOCK]
    mapped = np.flatnonzero(block >= 0)
    assert len(mapped) == len(np.unique(lfs.ops[: lfs.done]))
    assert (owner[block[mapped]] == mapped).all()
    assert (int(reg[c.NOW]), int(reg[c.FULL])) == (lfs.done, 0)
    assert int(reg[c.LOW]) >= lfs.params.logs + 2


def share_ppm(lfs: Lfs) -> int:
    return int(lfs.volume.reg[c.GARBAGE]) * 1_000_000 // int(lfs.volume.reg[c.TOTAL])


# --- the administrator ---


async def test_an_administrator_moves_the_threshold_of_a_running_volume() -> None:
    async with boot(seed=3) as kernel:
        lfs = attach(kernel)
        await epochs(kernel, lfs, 40)
        assert 130_000 < share_ppm(lfs) <= 150_000
        for value, last in ((MOST, 60), (10_000, 61), (300_000, 80)):
            kernel.sysfs.write(FILE, str(value))
            await epochs(kernel, lfs, last)
            assert value * 9 // 10 < share_ppm(lfs) <= value
            for volume in (lfs.volume, lfs._shadow.volume, lfs._follower.volume):
                parts = volume.reg.reshape(-1, c.REGISTERS)
                assert (parts[:, c.GP_PPM] == value).all()
                assert (parts[:, c.MOST] == parts[:, c.SIZE] - np.maximum(parts[:, c.SIZE] * value // 10**6, 1)).all()
            healthy(lfs)


async def test_the_range_is_what_the_segments_were_made_for() -> None:
    async with boot(seed=3) as kernel:
        lfs = attach(kernel)
        for value in (MOST + 1, 9_999, 0, -1):
            with pytest.raises(TreeError, match=r"expected an integer in 10000\.\.400000") as refused:
                kernel.sysfs.write(FILE, str(value))
            assert refused.value.errno == errno.EINVAL
        assert lfs.thresholds.gp_ppm == 150_000


async def test_without_head_room_the_share_can_only_fall() -> None:
    async with boot(seed=3) as kernel:
        attach(kernel, gp_max_ppm=0)
        with pytest.raises(TreeError, match=r"10000\.\.150000"):
            kernel.sysfs.write(FILE, "150001")
        kernel.sysfs.write(FILE, "120000")


async def test_head_room_below_the_share_is_refused() -> None:
    async with boot(seed=3) as kernel:
        with pytest.raises(ConfigError, match="gp_max_ppm = 100000: expected 0, or gp_ppm = 150000 or more"):
            attach(kernel, gp_max_ppm=100_000)


async def test_no_share_is_taken_that_the_segments_cannot_hold() -> None:
    async with boot(seed=3) as kernel:
        lfs = attach(kernel, gp_max_ppm=0)
        with pytest.raises(ParamError, match="gp_ppm = 400000: 345 segments are too few"):
            set_threshold(lfs.volume, 400_000)


async def test_too_few_clean_segments_for_the_administrator_are_an_emergency() -> None:
    async with boot(seed=3) as kernel:
        lfs = attach(kernel, gp_max_ppm=0)
        assert kernel.sysfs.read(CLEAN_FILE) == "8"
        await epochs(kernel, lfs, 40)
        assert lfs.site.mode is uxk.Mode.LEARNING
        kernel.sysfs.write(CLEAN_FILE, "44")
        await epochs(kernel, lfs, 41)
        assert lfs.site.mode is uxk.Mode.EMERGENCY
        kernel.sysfs.write(CLEAN_FILE, "8")
        await epochs(kernel, lfs, 60)
        assert lfs.site.mode is uxk.Mode.LEARNING


# --- on trial ---


async def test_what_makes_it_better_is_confirmed() -> None:
    lfs, lines = await scripted({60: ("recommend", 300_000), 100: ("keep", 0)}, 110)
    assert lfs.thresholds.gp_ppm == 300_000
    assert Tuner.statuses == [0, 0]
    assert [change.step for change in Tuner.steps] == [Step.APPLIED, Step.CONFIRMED]
    assert len(lines) == 2
    assert lines[0].startswith(f"{NAME}: action 1 of tuner applied: 150000 -> 300000 until ")
    assert lines[0].endswith(": a test")
    assert lines[1].startswith(f"{NAME}: action 1 of tuner confirmed: 300000 stays: KPI 2")


async def test_what_makes_it_worse_is_reverted() -> None:
    lfs, lines = await scripted({60: ("recommend", 80_000)}, 100)
    assert lfs.thresholds.gp_ppm == 150_000
    assert [change.step for change in Tuner.steps] == [Step.APPLIED, Step.REVERTED]
    assert f"{NAME}: action 1 of tuner reverted: 80000 -> 150000: worse by more than 20000 ppm: KPI" in lines[1]
    assert 130_000 < share_ppm(lfs) <= 150_000


async def test_what_an_administrator_writes_stays() -> None:
    Tuner.script.update({60: ("recommend", 250_000), 70: ("keep", 0), 80: ("recommend", 300_000)})
    async with boot(seed=3) as kernel:
        await kernel.insmod(Tuner)
        lfs = attach(kernel)
        await epochs(kernel, lfs, 65)
        kernel.sysfs.write(FILE, "200000")
        await epochs(kernel, lfs, 85)
        assert lfs.thresholds.gp_ppm == 200_000
        assert [change.step for change in Tuner.steps] == [Step.APPLIED, Step.SUPERSEDED]
        # Nothing of it is left to be kept, and what the new value does must be known before the next trial.
        assert Tuner.statuses == [0, errno.ENOENT, errno.EAGAIN]
        healthy(lfs)


async def test_a_trial_that_nobody_confirms_is_over_with_its_lifetime() -> None:
    lfs, lines = await scripted({59: ("forever", 300_000), 60: ("briefly", 300_000)}, 90)
    assert Tuner.statuses == [errno.EINVAL, 0]
    assert lfs.thresholds.gp_ppm == 150_000
    assert f"{NAME}: action 1 of tuner reverted: 300000 -> 150000: its lifetime is over: KPI" in lines[-1]


async def test_what_is_out_of_range_or_not_offered_is_refused() -> None:
    lfs, lines = await scripted(
        {60: ("recommend", MOST + 1), 61: ("recommend", 9_999), 62: ("recommend", 150_000), 63: ("clean_min", 12)}, 65
    )
    assert Tuner.statuses == [errno.EINVAL, errno.EINVAL, errno.EALREADY, errno.EACCES]
    assert (lfs.thresholds.gp_ppm, lfs.thresholds.clean_min) == (150_000, 8)
    assert lines == Tuner.steps == []


@pytest.mark.parametrize(("value", "last"), [(250_000, Step.CONFIRMED), (80_000, Step.REVERTED)])
async def test_a_trial_beside_hints(value: int, last: Step) -> None:
    """Both pools and both miniatures keep the value on trial; hints stay in force meanwhile."""
    Tuner.hints.append("dac/cb-age")
    lfs, _ = await scripted({60: ("recommend", value), 100: ("keep", 0)}, 110, modes="collaboration")
    assert [change.step for change in Tuner.steps] == [Step.APPLIED, last]
    assert {epoch.policy for epoch in lfs.epochs[60:]} == {"dac/cb-age"}
    assert min(epoch.share_ppm for epoch in lfs.epochs[60:]) > 0
    now = lfs.thresholds.gp_ppm
    assert now == (value if last is Step.CONFIRMED else 150_000)
    for volume in (lfs.volume, lfs._shadow.volume, lfs._follower.volume):
        assert (volume.reg.reshape(-1, c.REGISTERS)[:, c.GP_PPM] == now).all()
    assert now * 4 // 5 < share_ppm(lfs) <= now


async def test_equal_seeds_equal_hashes() -> None:
    hashes = []
    for _ in range(2):
        Tuner.script.update({60: ("recommend", 80_000)})
        async with boot(seed=3) as kernel:
            await kernel.insmod(Tuner)
            lfs = attach(kernel)
            await epochs(kernel, lfs, 100)
            hashes.append((kernel.event_hash(), [epoch.written for epoch in lfs.epochs]))
    assert hashes[0] == hashes[1]
    assert [change.step for change in Tuner.steps] == [Step.APPLIED, Step.REVERTED] * 2


async def test_a_volume_that_is_being_filled_says_nothing() -> None:
    _, lines = await scripted({16: ("recommend", 200_000), 30: ("recommend", 200_000)}, 40)
    assert Tuner.statuses == [errno.EAGAIN, errno.EAGAIN]
    assert lines == []


async def test_what_is_on_trial_goes_with_its_agent() -> None:
    lfs, lines = await scripted({60: ("recommend", 250_000), 70: ("die", 0)}, 80)
    assert lfs.thresholds.gp_ppm == 150_000
    assert lines[-1] == f"{NAME}: action 1 of tuner reverted: 250000 -> 150000: tuner is gone"


async def test_four_changes_in_the_time_of_eight_volumes() -> None:
    script: dict[int, tuple[str, int]] = {}
    for number in range(5):
        script[50 + 25 * number] = ("recommend", 160_000)
        script[51 + 25 * number] = ("withdraw", 0)
    lfs, _ = await scripted(script, 155)
    assert Tuner.statuses == [0, 0, 0, 0, 0, 0, 0, 0, errno.EDQUOT, errno.ENOENT]
    assert lfs.thresholds.gp_ppm == 150_000


async def test_settling_is_not_held_against_a_trial() -> None:
    """A raised share saves all moves at first, a lowered one costs a lot of them: neither says what it is worth."""
    async with boot(seed=3) as kernel:
        lfs = attach(kernel)
        seen: list[int | None] = []
        inner = lfs.thresholds._measure
        lfs.thresholds._measure = lambda written: seen.append(inner(written)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
        await epochs(kernel, lfs, 60)
        kernel.sysfs.write(FILE, "300000")
        await epochs(kernel, lfs, 100)
        first = next(number for number, kpi in enumerate(seen) if kpi is not None)
        assert first >= 16 + 16
        after = seen[60:]
        assert after[:16] == [None] * 16
        assert None not in after[24:]
        assert max(kpi or 0 for kpi in after) < max(kpi or 0 for kpi in seen[:60])


async def test_a_volume_that_is_closed_leaves_nothing() -> None:
    Tuner.script.update({60: ("recommend", 250_000)})
    async with boot(seed=3) as kernel:
        await kernel.insmod(Tuner)
        lfs = attach(kernel)
        await epochs(kernel, lfs, 65)
        lfs.close()
        assert NAME not in kernel.sysctl
        assert not kernel.sysfs.exists("/proc/sys/lfs")
        await kernel.run()
        assert Tuner.steps[-1].why == "250000 -> 150000: its subsystem is going"
        assert lfs.done == 65 * EPOCH
        again = attach(kernel)
        await epochs_from_now(kernel, again, 3)
        assert again.thresholds.gp_ppm == 150_000
