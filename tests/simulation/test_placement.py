"""The same run with everything in the kernel's process, and with every extension in its own: one event hash.

``UXK_SOAK=1`` compares every example and every bundled scenario, without it one of each: a process takes 0.3 s to
start, one with numba and river several times that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import uxk
from uxk.scenario.find import open_scenario
from uxk.uapi.manifest import Placement

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SOAK = bool(os.environ.get("UXK_SOAK"))
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
SCENARIOS = ("crash-under-load", "media-errors")


def hashes(placement: str, file: Path, *arguments: str) -> str:
    """One line for every kernel that a script boots."""
    command = [sys.executable, str(HERE / "placed.py"), placement, str(file), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES if SOAK else ["ramdisk"])
def test_an_example_gives_one_hash(example: str) -> None:
    file = ROOT / "examples" / f"{example}.py"
    assert hashes("task", file) == hashes("process", file) != ""


@pytest.mark.parametrize("name", SCENARIOS if SOAK else SCENARIOS[:1])
def test_a_scenario_gives_one_hash(name: str) -> None:
    scenario, _ = open_scenario(name)
    assert isinstance(scenario, uxk.scenario.Scenario)

    def run(placement: Placement) -> tuple[str, int, int]:
        modules = tuple(msgspec.structs.replace(load, placement=placement) for load in scenario.modules)
        result = uxk.run(msgspec.structs.replace(scenario, modules=modules))
        return result.event_hash, result.events, result.exit_code

    assert run("task") == run("process")
