"""Exploring: plans, schedules, verdicts, shrinking, files and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import uxk
from uxk.cli import main
from uxk.errors import ConfigError, UsageError
from uxk.faults import Fault
from uxk.faults.model import problem
from uxk.scenario import ClosedLoop, Load, Scenario
from uxk.scenario.exploring import Exploration
from uxk.scenario.run import run_one
from uxk.testing.exploring import Outcome, Trial, explore, read_trial, run_trial, shrink, write_trial
from uxk.testing.exploring.explorer import Explorer
from uxk.testing.exploring.plans import Target, random_plan
from uxk.testing.invariants import INVARIANTS, register_invariant

MS = 1_000_000
LOAD = ClosedLoop(device="xp_disk0", depth=6, count=80, size_bytes=512, span_bytes=32 << 10, verify=True)


class Disk(uxk.Extension):
    """Keeps its blocks; forgets one request in a life if it is a careless one."""

    manifest = uxk.Manifest(
        name="xp-disk", license="MIT", driver_class="xp", fate="reissue", budget=uxk.Budget(queue_depth=4),
        watchdog=uxk.Watchdog(request_timeout_ns=2 * MS, heartbeat_ns=MS),
        restart=uxk.RestartPolicy(max_restarts=50, backoff_ns=10_000),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.data: memoryview | None = None
        self.early: list[uxk.Request] = []
        ctx.allocate(64 << 10, keep="data").then(lambda done: self.opened(ctx, done))

    def opened(self, ctx: uxk.Context, done: uxk.Completion) -> None:
        self.data = ctx.map(done.result, writable=True)
        self.on_batch(ctx, self.early)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        if self.data is None:
            self.early += requests
            return
        for request in requests:
            ctx.call_later_ns(10_000, lambda r: self.finish(ctx, r), request)

    def finish(self, ctx: uxk.Context, request: uxk.Request) -> None:
        assert self.data is not None
        place = slice(request.offset, request.offset + request.length)
        if request.opcode == uxk.Op.WRITE:
            self.data[place] = request.payload
        ctx.complete(request, bytes(self.data[place]) if request.opcode == uxk.Op.READ else b"")


class Careless(Disk):
    """Keeps its data in its own memory: another incarnation knows nothing of them."""

    manifest = msgspec.structs.replace(Disk.manifest, name="xp-careless")

    def setup(self, ctx: uxk.Context) -> None:
        self.data, self.early = memoryview(bytearray(64 << 10)), []


def scenario(name: str = "xp-disk", **fields: Any) -> Scenario:
    load = msgspec.structs.replace(LOAD, device=name.replace("-", "_") + "0")
    return Scenario(
        name="xp", modules=(Load(name=name),), workloads=(load,), invariant_interval_ns=100_000, **fields
    )  # fmt: skip


# --- schedules -------------------------------------------------------------------------------------------


def two_disks(**fields: Any) -> Scenario:
    modules = (Load(name="xp-disk"), Load(name="xp-disk", instance="xp-other"))
    loads = (LOAD, msgspec.structs.replace(LOAD, name="other", device="xp_other"))
    return Scenario(name="two", modules=modules, workloads=loads, **fields)


def test_the_usual_schedule_is_what_it_was_and_a_drawn_one_repeats() -> None:
    usual = [run_one(two_disks(), seed=seed).event_hash for seed in (1, 1)]
    drawn = [run_one(two_disks(schedule="random"), seed=seed).event_hash for seed in (1, 1, 2)]
    assert usual[0] == usual[1] != drawn[0] == drawn[1] != drawn[2]


def test_a_drawn_schedule_loses_nobody() -> None:
    result = run_one(two_disks(schedule="random"), seed=3)
    assert result.ok
    assert all(load["completed"] == load["issued"] for load in result["workloads"].values())


# --- plans -----------------------------------------------------------------------------------------------


def target(name: str = "a", requests: int = 10, hints: int = 0, heartbeat_ns: int | None = MS) -> Target:
    return Target(name, requests, hints, 2 * MS, heartbeat_ns, True)


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 32), horizon_ns=st.integers(1, 1 << 40), hints=st.integers(0, 1))
def test_every_plan_makes_sense(seed: int, horizon_ns: int, hints: int) -> None:
    stream = np.random.default_rng(seed)
    plan = random_plan(stream, [target("a", 1 - hints, hints), target("b")], horizon_ns, Exploration())
    assert 1 <= len(plan) <= 4
    for fault in plan:
        assert not problem(fault)
        assert fault.module in ("a", "b")


def test_a_plan_keeps_to_what_the_scenario_allows() -> None:
    stream = np.random.default_rng(1)
    allowed = Exploration(modules=("b-c",), kinds=("crash", "drop"), faults_max=2)
    plans = [random_plan(stream, [target("a"), target("b_c")], MS, allowed) for _ in range(50)]
    assert {fault.module for plan in plans for fault in plan} == {"b_c"}
    assert {fault.kind for plan in plans for fault in plan} == {"crash", "drop"}
    assert max(map(len, plans)) == 2
    assert random_plan(stream, [target("a")], MS, allowed) == ()


# --- trials ----------------------------------------------------------------------------------------------


def test_a_good_module_survives_and_a_trial_repeats_exactly() -> None:
    report = explore(scenario(), range(6))
    assert (report.trials, report.findings) == (6, ())
    assert report.struck > 0
    again = explore(scenario(), range(6))
    assert again.hashes == report.hashes
    assert len(set(report.hashes.values())) == 6


def test_a_careless_module_is_found_and_the_plan_shrunk_to_one_crash() -> None:
    report = explore(scenario("xp-careless"), range(40))
    (finding,) = report.findings
    assert "data-intact" in finding.outcome.broken
    (fault,) = finding.shrunk.faults
    assert fault.kind in ("crash", "hang", "drop")
    assert finding.shrunk.schedule == "fifo"
    assert int(finding.shrunk.options.get("workloads.load.count", 80)) < 80
    explorer = Explorer(scenario("xp-careless"), 0)
    assert explorer.run(finding.shrunk) == finding.shrunk_outcome


def test_endless_waiting_is_a_broken_invariant_not_an_endless_run() -> None:
    """Half of the answers are lost for ever: requests time out all the time, long after a usual run is over."""
    drop = Fault(kind="drop", module="xp-disk", probability_ppm=1_000_000)
    outcome = run_trial(scenario(explore=Exploration(settle_ns=MS)), Trial(1, (drop,)), normal_ns=100_000)
    assert "liveness" in outcome.broken


def test_a_module_that_is_gone_for_no_reason_is_found() -> None:
    class Mortal(Disk):
        """Dies of its tenth request, for good."""

        manifest = msgspec.structs.replace(
            Disk.manifest, name="xp-mortal", restart=uxk.RestartPolicy(mode="transient", max_restarts=1)
        )

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            if any(request.cid > 9 for request in requests):
                raise ValueError("the tenth")
            super().on_batch(ctx, requests)

    outcome = run_trial(scenario("xp-mortal"), Trial(1))
    assert outcome.broken["liveness"] == "xp_mortal: gone after 2 deaths, struck 0 times"


def test_an_exception_of_the_kernels_is_a_finding_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from uxk.kernel.requests import RequestTable

    def broken(self: Any, *_: object) -> None:
        raise KeyError("oh")

    monkeypatch.setattr(RequestTable, "on_death", broken)
    crash = Fault(kind="crash", module="xp-disk", at_ns=1000)
    outcome = run_trial(scenario(), Trial(1, (crash,)))
    assert outcome.broken == {"no-exception": "KeyError: 'oh'"}
    assert "in broken" in outcome.trace


def test_an_authors_own_invariant_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(INVARIANTS, "xp-few", raising=False)
    monkeypatch.setitem(INVARIANTS, "xp-none", INVARIANTS["progress"])
    with pytest.raises(UsageError, match="registered already"):
        register_invariant("xp-none")
    register_invariant("xp-few", during=lambda run: "too many" if run.agents["xp_disk"].account.completed > 20 else "")
    report = explore(scenario(invariants=("xp-few",)), range(3))
    del INVARIANTS["xp-few"]
    assert report.findings[0].outcome.broken.keys() == {"xp-few"}
    assert report.findings[0].trial.faults == (), "the run without faults breaks it"


def test_scenario_mistakes_are_no_findings() -> None:
    with pytest.raises(ConfigError, match="no device"):
        explore(msgspec.structs.replace(scenario(), workloads=(LOAD, ClosedLoop(device="x", name="b", count=1))), [1])


# --- shrinking -------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(st.sets(st.integers(0, 11), min_size=1, max_size=3))
def test_shrinking_finds_the_faults_that_matter(needed: set[int]) -> None:
    """Whatever few faults together make it fail, those are left."""
    faults = tuple(Fault(kind="crash", module="m", name=f"n{n}", at_ns=1000 + n) for n in range(12))
    wanted = {f"n{n}" for n in needed}
    bad, good = (Outcome({"x": "y"} if fails else {}, "", 0, 0, ()) for fails in (True, False))

    def run(trial: Trial) -> Outcome:
        return bad if wanted <= {fault.name for fault in trial.faults} else good

    trial, outcome, runs = shrink(run, Scenario(name="t"), Trial(1, faults), bad, runs_max=500)
    assert {fault.name for fault in trial.faults} == wanted
    assert (outcome, trial.schedule) == (bad, "fifo")
    assert {fault.at_ns for fault in trial.faults} <= {0, 1}
    assert runs <= 500


def test_shrinking_stops_in_time() -> None:
    bad = Outcome({"x": "y"}, "", 0, 0, ())
    calls = []
    shrink(lambda t: calls.append(t) or bad, scenario(), Trial(1), bad, runs_max=3)  # type: ignore[func-returns-value]
    assert len(calls) == 3


# --- files and the command -------------------------------------------------------------------------------


def test_a_trial_is_written_and_read_back(tmp_path: Path) -> None:
    faults = (
        Fault(kind="drop", module="a", name="x", probability_ppm=7, where="requests", message="read"),
        Fault(kind="crash", module="a", when="log:a?\\*b"),
    )
    trial = Trial(9, faults, "fifo", {"workloads.load.count": "5"})
    path = tmp_path / "t.toml"
    write_trial(path, "name\nwith", trial, Outcome({"one": "two\nlines"}, "abc", 5, 1, ()), normal_ns=77)
    saved = read_trial(path)
    assert saved.trial == trial
    assert (saved.scenario, saved.broken, saved.event_hash, saved.normal_ns) == ("name\nwith", ("one",), "abc", 77)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("seed = 1", "scenario"), ("scenario = 'x'\nseed = -1", "seed"),
        ("scenario = 'x'\nseed = 1\nsched = 2", "sched"),
        ("scenario = 'x'\nseed = 1\n[[faults]]\nkind = 'crash'\nmodule = 'm'\nfactor = 3", r"faults\[0\]: factor"),
        ("scenario = 'x'\nseed = 1\nschedule = 'lifo'", "expected 'fifo' or 'random'"), ("[", "t.toml"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_told_with_their_place(tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(ConfigError, match=wrong):
        read_trial(tmp_path / "t.toml")


SOURCE = """
from __future__ import annotations
import uxk
from uxk.scenario import ClosedLoop, Load, Scenario

class Forgetful(uxk.Extension):
    "Forgets what it was asked when it dies."
    manifest = uxk.Manifest(
        name="xp-forgetful", driver_class="xp", fate="reissue", budget=uxk.Budget(queue_depth=8),
        restart=uxk.RestartPolicy(max_restarts=50), watchdog=uxk.Watchdog(request_timeout_ns=2_000_000),
    )
    def setup(self, ctx):
        self.blocks = {}
    def on_batch(self, ctx, requests):
        for request in requests:
            ctx.call_later_ns(10_000, lambda r: self.finish(ctx, r), request)
    def finish(self, ctx, request):
        if request.opcode == uxk.Op.WRITE:
            self.blocks[request.offset] = request.payload
        ctx.complete(request, self.blocks.get(request.offset, bytes(request.length)))

found = Scenario(
    name="forgetful", modules=(Load(name="xp-forgetful"),), invariant_interval_ns=100_000,
    workloads=(ClosedLoop(device="xp_forgetful0", depth=4, count=60, size_bytes=512, span_bytes=8192, verify=True),),
)
"""


def test_the_command_finds_writes_and_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "forgetful.py").write_text(SOURCE)
    assert main(["explore", "forgetful.py", "--seeds", "40"]) == 3
    out = capsys.readouterr().out
    assert "data-intact" in out
    assert "shrunk in" in out
    (file,) = tmp_path.glob("explore-forgetful-*.toml")
    assert main(["explore", "forgetful.py", "--replay", file.name]) == 3
    out = capsys.readouterr().out
    assert "data-intact" in out
    assert out.endswith("the same run\n")
    assert main(["explore", "forgetful.py", "--replay", file.name, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["same"] is True


def test_the_command_refuses_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "crash-under-lod"]) == 2
    assert "did you mean 'crash-under-load'" in capsys.readouterr().err
    assert main(["explore", "crash-under-load", "--seeds", "0"]) == 2
    assert main(["explore", "crash-under-load", "--replay", "/nowhere.toml"]) == 2


def test_the_command_is_good_about_a_good_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explore", "crash-under-load", "--seeds", "2", "-o", "workloads.load.count=200"]
    assert main(words) == 0
    assert "2 of 2 seeds good" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
