"""Power may fail at any command of the device, and leave any part of what was not synced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from uxk.errors import UxkError
from uxk.subsystems.lfs import policies
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.recovery.medium import KEPT, LOST, Medium, PowerLoss
from uxk.subsystems.lfs.recovery.recover import format_volume, mount
from uxk.subsystems.lfs.recovery.state import CorruptVolume, Entry, State, pack_block, unpack_block
from uxk.subsystems.lfs.recovery.store import Store, area_cells, make_medium
from uxk.subsystems.lfs.reference import VolumeFull

SOAK = bool(os.environ.get("UXK_SOAK")) or os.environ.get("HYPOTHESIS_PROFILE") == "soak"
CELL = 96
"""Small, so that a checkpoint is many writes."""
GEOMETRY = Geometry(pages=24, segment_blocks=4, gp_ppm=200_000, logs=4, segments=14)


class Violation(AssertionError):
    """A promise was broken."""


class Lab:
    """A volume, its medium, and what its user remembers of every moment."""

    def __init__(self, policy: str = "sepbit/cb-age") -> None:
        self.policy = policy
        self.medium = make_medium(GEOMETRY, CELL)
        self.mounted = format_volume(GEOMETRY, policies.lookup(policy), self.medium, CELL)
        self.history: dict[int, dict[int, bytes]] = {0: {}}
        self.synced = self.token = self.mounts = 0

    @property
    def content(self) -> dict[int, bytes]:
        return self.history[self.mounted.store.state.sequence]

    def change(self, after: dict[int, bytes], action: Callable[[], object]) -> bool:
        """Does something whose first change of the log makes ``after`` the content; false if power failed."""
        state = self.mounted.store.state
        before = state.sequence
        try:
            action()
        except PowerLoss:
            return False
        finally:
            self.history.update(dict.fromkeys(range(before + 1, state.sequence + 1), after))
        return True

    def write(self, page: int) -> bool:
        self.token += 1
        payload = b"%d:%d" % (page, self.token)
        self.mounted.store.stage(payload)

        def action() -> None:
            try:
                self.mounted.volume.write(page)
            except VolumeFull:
                self.clean()

        return self.change({**self.content, page: payload}, action)

    def trim(self, page: int) -> bool:
        after = {key: value for key, value in self.content.items() if key != page}
        return self.change(after, lambda: self.mounted.volume.trim(page))

    def clean(self) -> bool:
        """One victim in steps, if there is one."""
        volume = self.mounted.volume

        def action() -> None:
            victim = volume.candidate(urgent=True)
            if victim >= 0:
                volume.begin(victim)
                for block in range(victim * volume.size, (victim + 1) * volume.size):
                    volume.move(block)
                    volume.check()
                volume.finish()

        return self.change(self.content, action)

    def sync(self) -> bool:
        sequence = self.mounted.store.state.sequence
        done = self.change(self.content, self.mounted.store.sync)
        if done:
            self.synced = sequence
        return done

    def checkpoint(self) -> bool:
        sequence = self.mounted.store.state.sequence
        done = self.change(self.content, self.mounted.store.checkpoint)
        if done:
            self.synced = sequence
        return done

    def crash(self, fate: Callable[[int, int], int], power: int | None = None) -> bool:
        """Power comes back and the volume is mounted; false if it fails again meanwhile."""
        self.medium.crash(fate)
        self.medium.commands_left = power
        last = max(self.history)
        try:
            self.mounted = mount(GEOMETRY, policies.lookup(self.policy), self.medium, CELL)
        except PowerLoss:
            return False
        except UxkError as exc:
            raise Violation(f"not mountable: {exc}") from exc
        self.mounts += 1
        found = self.mounted.store.state.sequence
        if not self.synced <= found <= last:
            raise Violation(f"recovered change {found}, synced {self.synced}, last {last}")
        self.verify()
        # What came after the recovered moment never happened.
        self.history = {found: self.history[found]}
        self.synced = found
        return True

    def verify(self) -> None:
        volume, store = self.mounted.volume, self.mounted.store
        try:
            volume.check()
            content = {page: data for page in range(volume.pages) if (data := store.read(page)) is not None}
        except UxkError as exc:
            raise Violation(str(exc)) from exc
        if content != self.content:
            raise Violation(f"change {store.state.sequence}: {content} is not {self.content}")
        assert volume.block_of == store.state.block_of
        assert volume.used == list(store.state.used)
        assert volume.sealed_at == list(store.state.sealed_at)
        assert volume.log_of == [
            -1 if not used else log for used, log in zip(volume.used, store.state.log_of, strict=True)
        ]


FATES: tuple[Callable[[int, int], int], ...] = (
    lambda index, length: LOST,
    lambda index, length: KEPT,
    lambda index, length: length // 2,
    lambda index, length: LOST if index % 2 else KEPT,
    lambda index, length: KEPT if index % 2 else LOST,
    lambda index, length: KEPT if index % 3 else length // 3,
    lambda index, length: KEPT if index else LOST,
)


def scenario(lab: Lab, seed: int, steps: int) -> Iterator[bool]:
    """Seeded operations; each yields whether power lasted."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        choice, page = int(rng.integers(100)), int(min(rng.integers(24), rng.integers(24)))
        if choice < 80:
            yield lab.write(page)
        elif choice < 86:
            yield lab.trim(page)
        elif choice < 92:
            yield lab.clean()
        elif choice < 99:
            yield lab.sync()
        else:
            yield lab.checkpoint()


def run_until(power: int | None, seed: int, steps: int) -> Lab:
    lab = Lab()
    lab.medium.commands_left = power
    for lasted in scenario(lab, seed, steps):
        if not lasted:
            break
    return lab


def crash_points(seed: int, steps: int, stride: int) -> Iterator[tuple[int, Callable[[int, int], int]]]:
    # The first commands format the volume; the run's own come after them.
    commands = run_until(None, seed, steps).medium.commands - Lab().medium.commands
    for power in range(0, commands, stride):
        for fate in FATES:
            yield power, fate


def break_down(power: int, fate: Callable[[int, int], int], seed: int, steps: int) -> None:
    """Fails after ``power`` commands, recovers, goes on, and fails once more."""
    lab = run_until(power, seed, steps)
    assert lab.crash(fate)
    lab.medium.commands_left = power % 37
    for lasted in scenario(lab, seed + 1, 8):
        if not lasted:
            break
        lab.verify()
    assert lab.crash(fate)


def test_nothing_is_lost_without_a_crash() -> None:
    lab = run_until(None, 1, 300)
    lab.verify()
    store = lab.mounted.store
    assert lab.mounted.volume.cleaned > 10 and store.forced > 5 and store.syncs > 5 and store.checkpoints > 10


def test_power_loss_at_every_command() -> None:
    """Each point is one command and one fate of the cache: hundreds here, thousands under UXK_SOAK."""
    points = 0
    for seed in range(7, 17 if SOAK else 8):
        for power, fate in crash_points(seed, 60, 1 if SOAK else 4):
            break_down(power, fate, seed, 60)
            points += 1
    assert points > (10_000 if SOAK else 250)


@pytest.mark.parametrize("policy", ["nosep/greedy", "dac/cb-sqrt", "sfs/mdc", "multilog/d-choices", "f2fs-atgc"])
def test_any_policy_goes_on_after_recovery(policy: str) -> None:
    lab = Lab(policy)
    for seed in range(6):
        lab.medium.commands_left = 150 + seed
        for lasted in scenario(lab, seed, 80):
            if not lasted:
                break
            lab.mounted.volume.check()
        assert lab.crash(FATES[seed])
    assert lab.mounts == 6


MUTANTS: dict[str, tuple[str, Any]] = {
    "reuses a victim before the checkpoint": ("_before_reuse", lambda self: None),
    "writes the checkpoint before the log": ("_barrier", lambda self: None),
    "forgets trims on sync": ("sync", lambda self: self.medium.flush()),
    "says synced before it is": ("sync", lambda self: None),
    "overwrites the newer checkpoint": (
        "_write_area",
        lambda self, data: [
            self.medium.write(index, data[index * CELL : (index + 1) * CELL]) for index in range(self._area_cells)
        ],
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, *MUTANTS[mutant])

    def torture() -> None:
        for seed in range(7, 10):
            for power, fate in crash_points(seed, 60, 1):
                break_down(power, fate, seed, 60)

    with pytest.raises(Violation):
        torture()


def test_leftovers_of_an_older_crash_are_no_news() -> None:
    """An unsynced block that survived a gap must not follow what is written after recovery."""
    lab = Lab()
    assert lab.write(0) and lab.sync()
    assert lab.write(1) and lab.write(2) and lab.write(3)
    assert lab.crash(lambda index, length: LOST if index == 0 else KEPT)
    assert lab.mounted.dropped_blocks == 2 and set(lab.content) == {0}
    assert lab.write(4) and lab.sync()
    assert lab.crash(FATES[0])
    assert set(lab.content) == {0, 4}


def test_recovery_itself_may_lose_power() -> None:
    for power in range(40):
        lab = run_until(None, 3, 50)
        before = lab.synced
        for fate in FATES:
            lab.crash(fate, power)
        assert lab.crash(FATES[0]) and lab.mounted.store.state.sequence >= before


def test_an_unsynced_tail_is_recovered_if_it_arrived() -> None:
    lab = Lab()
    for page in range(6):
        lab.write(page)
    assert lab.crash(FATES[1])
    assert lab.mounted.rolled_blocks == 6 and lab.mounted.dropped_blocks == 0 and set(lab.content) == set(range(6))


def test_both_checkpoints_gone() -> None:
    lab = run_until(None, 1, 30)
    for cell in range(2 * area_cells(GEOMETRY, CELL)):
        lab.medium.write(cell, b"")
    with pytest.raises(CorruptVolume, match="neither"):
        mount(GEOMETRY, policies.lookup("nosep/greedy"), lab.medium, CELL)


def test_another_shape_is_named() -> None:
    lab = Lab()
    other = Geometry(pages=24, segment_blocks=8, gp_ppm=200_000, logs=4, segments=14)
    with pytest.raises(CorruptVolume, match=r"\[4, 24, 14\], expected \[8, 24, 14\]"):
        mount(other, policies.lookup("nosep/greedy"), lab.medium, CELL)


def test_cells() -> None:
    entry = Entry(5, 9, 2, 1, 7, 6, 0)
    cell = pack_block(entry, b"data")
    assert unpack_block(cell) == (entry, b"data")
    assert all(unpack_block(cell[:cut] + bytes(len(cell) - cut)) is None for cut in range(len(cell)))
    assert State.unpack(State(GEOMETRY).pack()[:-1], GEOMETRY) is None


def test_medium() -> None:
    medium = Medium(2)
    medium.write(0, b"old!")
    medium.flush()
    medium.write(0, b"new?")
    medium.write(1, b"abcd")
    assert medium.read(0) == b"new?" and medium.unsynced == 2
    medium.commands_left = 0
    with pytest.raises(PowerLoss, match="after 4 commands"):
        medium.flush()
    medium.crash(lambda index, length: (2, LOST)[index])
    assert (medium.read(0), medium.read(1), medium.unsynced) == (b"ned!", b"", 0)
    with pytest.raises(UxkError, match="cell 2"):
        medium.write(2, b"")


class PowerMachine(RuleBasedStateMachine):
    """Writes, trims, syncs, cleaning and checkpoints in any order, with the power failing anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.lab = Lab()
        self.down = False

    def _do(self, lasted: bool) -> None:
        self.down = not lasted

    up = precondition(lambda self: not self.down)

    @up
    @rule(pages=st.lists(st.integers(0, 23), min_size=1, max_size=12))
    def write(self, pages: list[int]) -> None:
        self._do(all(self.lab.write(page) for page in pages))

    @up
    @rule(page=st.integers(0, 23))
    def trim(self, page: int) -> None:
        self._do(self.lab.trim(page))

    @up
    @rule()
    def clean(self) -> None:
        self._do(self.lab.clean())

    @up
    @rule()
    def sync(self) -> None:
        self._do(self.lab.sync())

    @up
    @rule()
    def checkpoint(self) -> None:
        self._do(self.lab.checkpoint())

    @up
    @rule(commands=st.integers(0, 40))
    def arm(self, commands: int) -> None:
        self.lab.medium.commands_left = commands

    @rule(fates=st.lists(st.sampled_from((LOST, KEPT, 1, 20, 60)), min_size=1, max_size=12), power=st.none() | st.integers(0, 20))  # noqa: E501  # fmt: skip
    def crash(self, fates: list[int], power: int | None) -> None:
        self.down = not self.lab.crash(lambda index, length: min(fates[index % len(fates)], length), power)

    @invariant()
    def sound(self) -> None:
        if not self.down:
            self.lab.verify()


TestPower = PowerMachine.TestCase
TestPower.settings = settings(settings.default, max_examples=2000 if SOAK else 25, stateful_step_count=40)
