"""The kernel under random faults and schedules holds what it promises; and mistakes planted into it are found.

``UXK_SOAK=1`` runs many more seeds; without it a slice of them, from a beginning that never changes.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from uxk.scenario.find import open_scenario
from uxk.scenario.read import parse_toml, with_options
from uxk.testing.exploring import explore
from uxk.testing.exploring.explorer import Explorer
from uxk.testing.exploring.files import fault_lines
from uxk.testing.invariants import INVARIANTS

HERE = Path(__file__).resolve().parent
SOAK = bool(os.environ.get("UXK_SOAK"))
SEEDS = range(400 if SOAK else 5)
PLANTED_SEEDS_MAX = 80
MISTAKES = (
    "unanswered", "answered-twice", "lost-region", "off-by-one", "held-back", "lost-wake-up", "stale-generation",
    "not-released", "flush-reordered", "hash-order",
)  # fmt: skip


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def planted() -> Iterator[Any]:
    """The planted mistakes, with the cast; what they declare is forgotten afterwards."""
    before = dict(INVARIANTS)
    imported("cast")
    yield imported("planted")
    INVARIANTS.clear()
    INVARIANTS.update(before)


@pytest.mark.parametrize("name", ["queue", "journal", "clients", "charged", "renewed", "family"])
def test_what_must_hold_holds(planted: Any, name: str) -> None:
    report = explore(planted.cast_of.scenario(name), SEEDS)
    told = [
        (finding.seed, finding.shrunk_outcome.broken, [fault_lines(fault) for fault in finding.shrunk.faults])
        for finding in report.findings
    ]
    assert not told
    assert report.trials == len(SEEDS)
    assert report.struck > 0


def test_all_mistakes_are_tried(planted: Any) -> None:
    assert tuple(bug.name for bug in planted.BUGS) == MISTAKES


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(planted: Any, name: str) -> None:
    bug = next(bug for bug in planted.BUGS if bug.name == name)
    if name == "hash-order":
        assert planted.look_for(bug, range(2)).found
        return
    explorer = planted.Explorer(planted.cast_of.scenario(bug.scenario), 0)
    assert explorer.plain_outcome.good
    with planted.planted(bug):
        found = next((seed for seed in range(PLANTED_SEEDS_MAX) if not explorer.run(explorer.trial(seed)).good), None)
    assert found is not None
    assert explorer.run(explorer.trial(found)).good, "without the mistake"


def test_both_placements_are_one_run_whatever_befalls_it() -> None:
    """The driver in a process of its own: same seeds, same faults, same event hashes."""
    scenario = with_options(open_scenario("crash-under-load")[0], {"workloads.load.count": "300"})
    explorer = Explorer(scenario, 0)
    for seed in range(20 if SOAK else 3):
        here = explorer.trial(seed)
        there = here._replace(options={"modules.null.placement": "process"})
        assert explorer.run(here)[:2] == explorer.run(there)[:2]


def test_a_scenario_says_what_may_befall_it() -> None:
    text = """
        modules = [{ name = "null", params = { latency_ns = "10us" } }]
        workloads = [{ device = "null0", count = 40 }]
        [explore]
        kinds = ["crash"]
        faults_max = 1
        """
    report = explore(parse_toml(text, "t.toml"), range(3))
    assert (report.drawn, report.findings) == ({"crash": 3}, ())
