"""The deadlock laboratory: the cycles are there if the kernel asks and waits, and are not if it looks at hints."""

from __future__ import annotations

import json
import os

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from uxk.cli import main
from uxk.errors import ConfigError
from uxk.faults.model import Fault
from uxk.kernel.machine import Machine
from uxk.limits import NS_PER_S
from uxk.scenario.mm.bench import complaints, exit_code, run_case, run_lab
from uxk.scenario.mm.study import Case, LabStudy, Way, open_lab, parse_lab, with_lab_options
from uxk.scenario.mm.text import report
from uxk.scenario.run import Runner, run_one

SOAK = bool(os.environ.get("UXK_SOAK"))
SEEDS = range(10) if SOAK else (0, 1, 2)
EDGES = {
    "memory": (
        "instance advisor waits for free memory, in direct reclaim", "kernel flusher of lfs0 waits for a decision",
    ),
    "collector": (
        "instance advisor waits for free memory, in direct reclaim",
        "kernel flusher of lfs0 waits for a clean segment of lfs0",
        "kernel cleaner of lfs0 waits for a decision for lfs0.gc, to decide",
    ),
    "throttle": (
        "instance advisor waits for dirty pages below the limit, in balance_dirty_pages",
        "kernel flusher of lfs0 waits for a clean segment of lfs0",
        "kernel cleaner of lfs0 waits for a decision for lfs0.gc, to decide",
    ),
}  # fmt: skip


def lab(until_ns=300_000_000):
    found = open_lab("reclaim-deadlock")
    assert found is not None
    return replace(found[0], until=until_ns)


def run(case, way, seed=0, **changes):
    study = lab(**changes)
    cases, ways = {each.name: each for each in study.cases}, {each.name: each for each in study.ways}
    return run_case(study, cases[case], ways[way], seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", list(EDGES))
def test_asking_and_waiting_closes_the_cycle(case, seed):
    found = run(case, "sync-upcall", seed)
    assert [finding.kind for finding in found.findings] == ["blocking-decision", "cycle"]
    law, cycle = found.findings
    assert law.now_ns < cycle.now_ns
    lines = [line for line in cycle.text.splitlines() if line.startswith("#")]
    assert len(lines) == cycle.edges == len(EDGES[case])
    rotated = {tuple(lines[turn:] + lines[:turn]) for turn in range(len(lines))}
    assert any(all(wanted in line for wanted, line in zip(EDGES[case], each, strict=True)) for each in rotated), (
        cycle.text
    )
    assert "(waiting for 0.000 us)" in lines[0]  # found at the moment when this wait began
    assert found.last_ns <= cycle.now_ns + 10_000_000  # a cycle that is found stays: only what was under way arrives
    assert found.exit_code == 0  # nothing else is wrong with the run


@pytest.mark.parametrize(
    ("way", "seed"), [("hints", 0), ("hints", 1), ("hints", 2), ("no trigger", 0), ("no trigger", 3)]
)
@pytest.mark.parametrize("case", list(EDGES))
def test_looking_at_hints_closes_none(case, way, seed, monkeypatch):
    holders = []
    wait = Machine.wait

    def noted(self, waiter, holder, resource, **words):
        holders.append(holder.kind)
        wait(self, waiter, holder, resource, **words)

    monkeypatch.setattr(Machine, "wait", noted)
    found = run(case, way, seed)
    assert found.findings == []
    assert set(holders) == {"kernel", "resource"}  # nobody, at whatever distance, waits for an instance
    assert found.progressed
    assert found.exit_code == 0
    assert found.followed > 0
    assert found.figures["agent"]["blocked"] > 0  # the agent does wait, and nobody waits for it
    if way == "no trigger":
        assert found.emergencies == 0


@pytest.mark.parametrize("way", ["hints, killed", "hints, hung", "hints, slow", "hints, lying"])
@pytest.mark.parametrize("seed", range(10) if SOAK else [0])
@pytest.mark.parametrize("case", list(EDGES))
def test_whatever_becomes_of_the_agent(case, way, seed):
    found = run(case, way, seed)
    assert found.findings == []
    assert found.progressed
    assert found.clean_min > 0
    assert sum(found.figures["windows"][3:]) > 0  # after the fault


def test_without_a_cycle_the_kernel_still_waits_for_an_agent_that_hangs():
    found = run("pressure", "sync-upcall, hung")
    assert found.cycle is None
    assert found.blocking_decisions > 0
    assert found.last_ns < 110_000_000
    assert not found.progressed


def test_a_cleaner_without_a_pool_deadlocks_with_no_agent_in_it():
    found = run("reserve", "no mempools")
    assert found.cycle is not None
    assert "instance" not in found.cycle.text
    assert run("reserve", "default").findings == []


def test_the_trigger_switches_in_the_step_that_passes_the_watermark():
    found = run("pressure", "hints")
    first = found.figures["gc"]["first"][0]
    assert first["switched_ns"] == first["crossed_ns"] < first["decided_ns"]
    assert first["decided_ns"] - first["crossed_ns"] < 20_000_000  # the victim under way is finished first
    change = next(each for each in found.figures["gc"]["model"]["timeline"] if each["now_ns"] == first["crossed_ns"])
    assert change["to"] == "emergency"
    assert "clean_segments" in change["why"]


def test_same_seed_same_hash_and_another_with_another():
    hashes = [run("collector", way, seed).event_hash for way in ("hints", "hints, lying") for seed in (3, 3, 4)]
    assert hashes[0] == hashes[1]
    assert hashes[3] == hashes[4]
    assert len(set(hashes)) == 4


def test_the_law_is_an_invariant_of_every_other_scenario():
    study = lab()
    case = next(each for each in study.cases if each.name == "memory")
    scenario = study.scenario(case, study.ways[0])
    lawful = replace(scenario, invariants=("non-blocking",))
    assert run_one(lawful).exit_code == 3


def test_when_the_run_is_over_nobody_waits_any_more():
    study = lab(until_ns=150_000_000)
    runner = Runner(study.scenario(study.cases[0], study.ways[0]))
    assert trio.run(runner.execute)["kernel.cycles"] == 1
    assert runner.kernel.machine.waits.edges() == []


# --- the study as a whole ---


def small(cases, ways, **changes):
    study = lab(**changes)
    chosen = tuple(replace(each, ways=ways) for each in study.cases if each.name in cases)
    return replace(study, cases=chosen).validate()


def test_a_table_and_no_complaints(tmp_path):
    study = small(("memory", "throttle"), ("sync-upcall", "hints"), until_ns=300_000_000)
    runs = run_lab(study, out=tmp_path / "out")
    text = report(study, runs)
    assert complaints(study, runs) == []
    assert exit_code(study, runs) == 0
    assert text.count("deadlock: a cycle of") == 2
    assert "2 of 4 runs ended in a cycle" in text
    assert max(map(len, text.splitlines()[:20])) < 150
    assert (tmp_path / "out" / "memory" / "hints" / "seed-0" / "summary.json").is_file()


def test_what_is_not_as_it_should_be_is_said():
    study = small(("memory",), ("sync-upcall",), until_ns=50_000_000)
    runs = run_lab(study)
    assert complaints(study, runs) == ["memory, sync-upcall, seed 0: no cycle was found"]
    assert exit_code(study, runs) == 1
    assert "✘ memory" in report(study, runs)
    stuck = replace(runs[0], way="hints", findings=[], gap_ns=NS_PER_S)
    assert complaints(small(("memory",), ("hints",)), [stuck])[0].endswith("15 clean segments")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"cases": []}, "cases: 0, expected 1"),
        ({"ways": [{"name": "a"}, {"name": "a"}]}, "ways: 'a' is there 2 times"),
        ({"cases": [{"name": "x", "ways": ["hint"]}]}, "did you mean 'hints'"),
        ({"cases": [{"name": "x", "params": {"agent_stores": -1}}]}, "agent_stores"),
        ({"mm": {"page": 1}}, "page"),
        ({"until": "ten"}, "until"),
    ],
)
def test_bad_files_are_answered(change, complaint):
    table = {"study": "reclaim-deadlock", "cases": [{"name": "x"}], "ways": [{"name": "hints"}], **change}
    with pytest.raises(ConfigError, match=complaint):
        parse_lab(table, "x.toml")


def test_options_replace_values():
    study = with_lab_options(lab(), {"mm.pages": "8192", "until": "2s"})
    assert (study.mm.pages, study.until) == (8192, 2 * NS_PER_S)


def test_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "small.toml"
    path.write_text(
        'study = "reclaim-deadlock"\nuntil = "150ms"\n[mm]\nspare_segments = 40\n'
        '[[cases]]\nname = "quiet"\ncycle = false\n[[ways]]\nname = "hints"\n'
    )
    assert main(["run", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["complaints"] == []
    assert [each["way"] for each in printed["runs"]] == ["hints"]
    assert main(["run", str(path), "--seeds", "2"]) == 0
    assert "seeds 0 to 1, the worst of each" in capsys.readouterr().out
    assert main(["run", str(path), "-o", "mm.pages=7"]) == 2
    assert main(["run", "reclaim-deadlock", "--policy", "default"]) == 2


# --- whatever the agent needs ---


@settings(max_examples=15)
@given(
    ask=st.sampled_from(["writeback", "gc"]), anon=st.integers(0, 700), stores=st.integers(0, 64),
    file_pages=st.integers(1, 512), hog=st.integers(0, 3_000), spare=st.integers(20, 60), trigger=st.booleans(),
    rest_ms=st.integers(0, 40), kind=st.sampled_from(["", "crash", "hang", "lie"]), seed=st.integers(0, 1 << 30),
)  # fmt: skip
def test_no_need_of_the_agents_and_no_fate_of_its_holds_the_kernel_up(
    ask, anon, stores, file_pages, hog, spare, trigger, rest_ms, kind, seed
):
    params = {
        "ask": ask, "agent_anon_pages": anon, "agent_stores": stores, "agent_file_pages": file_pages, "hog_pages": hog,
        "hog_at_ns": 30_000_000, "spare_segments": spare, "trigger": trigger, "burst_ns": 20_000_000,
        "rest_ns": rest_ms * 1_000_000,
    }  # fmt: skip
    where = {"where": "commands", "message": "hint", "probability_ppm": 1_000_000} if kind == "lie" else {}
    faults = (Fault(kind=kind, module="advisor", at_ns=40_000_000, **where),) if kind else ()
    study = LabStudy(until=120_000_000, cases=(Case(name="any", params=params),), ways=(Way(name="w", faults=faults),))
    found = run_case(study.validate(), study.cases[0], study.ways[0], seed)
    assert found.findings == []
    assert found.progressed
    assert found.exit_code == 0
    memory = found.figures["memory"]
    assert sum(memory[use] for use in ("free", "anon", "clean", "dirty", "writeback", "pool")) == memory["pages"]


@pytest.mark.parametrize("way", ["sync-upcall", "hints"])
def test_in_a_process_of_its_own_the_same_hash(way):
    study = lab(until_ns=150_000_000)
    case = next(each for each in study.cases if each.name == "memory")
    scenario = study.scenario(case, next(each for each in study.ways if each.name == way))
    load = scenario.modules[0]
    placed = (replace(scenario, modules=(replace(load, placement=each),)) for each in ("task", "process"))
    here, there = (run_one(each).event_hash for each in placed)
    assert here == there
