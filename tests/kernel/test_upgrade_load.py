"""Upgrades at full load, good ones and such as are rolled back, in both placements: no request is lost, no byte wrong.

What comes next, and when, is drawn from the run's seed.  ``UXK_SOAK=1`` makes it a hundred upgrades for several seeds;
without it a slice of one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import uxk
from uxk.errors import UpgradeError
from uxk.scenario import ClosedLoop, Load
from uxk.uapi.manifest import Placement

SWING = Path(__file__).resolve().parent / "hosted/swing.py"
SIZE_BYTES = 64 << 10
SOAK = bool(os.environ.get("UXK_SOAK"))
UPGRADES = 100 if SOAK else 14
FAILS = {
    "": "good",
    "setup": "rolled back: V: ValueError in setup: as asked",
    "restore": "rolled back: V: ValueError in restore: as asked, at once",
    "never": "rolled back: V: Hung in watchdog: not ready within 1000000 ns after its restart",
    "probation": "rolled back: V: ValueError in turn: as asked, later",
}
KILL = {"kill": "rolled back: V: Killed in process: signal 9 (SIGKILL)"}


def swinging(kinds: dict[str, str], builds: list[Path], outcomes: list[str]) -> Any:
    """Goes to one build or the other, or restarts the one that runs, with what is drawn going wrong."""

    async def drive(kernel: uxk.Kernel) -> dict[str, int]:
        random = kernel.machine.streams.stream("test/swing")
        words = list(kinds)
        for _ in range(UPGRADES):
            await kernel.sleep_ns(100_000 + int(random.integers(500_000)))
            fails = words[int(random.integers(len(words)))]
            to = [None, *builds][int(random.integers(1 + len(builds)))]
            try:
                await kernel.upgrade("swing", to, probation_ns=300_000, fails=fails)
                outcome = "good"
            except UpgradeError as exc:
                outcome = str(exc).partition(": ")[2].partition(": ")[2]
            version = "1" if to is None and "1" in outcome[:20] else outcome.partition(": ")[2].partition(":")[0]
            assert outcome.replace(f": {version}:", ": V:", 1) == kinds[fails], (fails, outcome)
            outcomes.append(outcome)
        return {"upgrades": len(outcomes)}

    return drive


def trial(seed: int, placement: Placement, kinds: dict[str, str], folder: Path) -> tuple[list[str], str]:
    outcomes: list[str] = []
    builds = []
    for version in ("2", "3"):
        builds.append(folder / f"swing{version}.py")
        builds[-1].write_text(SWING.read_text().replace('version="1"', f'version="{version}"'))
    result = uxk.run(uxk.Scenario(
        name="swing", seed=seed, until=UPGRADES * 2_500_000, drive=swinging(kinds, builds, outcomes),
        modules=(Load(file=str(SWING), placement=placement),),
        workloads=(ClosedLoop(
            device="swing0", depth=32, count=1_000_000, duration_ns=UPGRADES * 2_000_000, span_bytes=SIZE_BYTES,
            size_bytes=512, verify=True,
        ),),
    ))  # fmt: skip
    assert result.exit_code == 0, result.report()
    assert result["workloads.load.failed"] == result["workloads.load.mismatches"] == 0
    assert result["modules.swing.requests"] == result["modules.swing.completed"] > 100 * UPGRADES
    assert result["modules.swing.failed"] == result["modules.swing.timeouts"] == 0
    assert len(outcomes) == UPGRADES
    return outcomes, result.event_hash


@pytest.mark.parametrize("seed", range(5) if SOAK else (1,))
def test_placements_agree(seed: int, tmp_path: Path) -> None:
    outcomes, hashed = trial(seed, "task", FAILS, tmp_path)
    assert len(set(outcomes)) > 3
    assert trial(seed, "process", FAILS, tmp_path) == (outcomes, hashed)


@pytest.mark.parametrize("seed", range(3) if SOAK else (2,))
def test_processes_killed_on_their_way(seed: int, tmp_path: Path) -> None:
    outcomes, _ = trial(seed, "process", {**KILL, "": "good"}, tmp_path)
    assert len(set(outcomes)) > 1
