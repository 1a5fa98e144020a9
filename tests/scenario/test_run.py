"""Runs: counts, verification, faults, checks, invariants, the run folder."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import uxk
from uxk.errors import ConfigError, NoSuchModule, ParamError, UsageError
from uxk.scenario import Check, ClosedLoop, Fault, Load, OpenLoop, Result, Scenario
from uxk.scenario.folder import read_costs
from uxk.scenario.invariants import INVARIANTS, Watched, register_invariant
from uxk.scenario.model import AnyWorkload
from uxk.scenario.subsystems import SUBSYSTEMS, register_subsystem

ROOT = Path(__file__).resolve().parent.parent.parent
MS = 1_000_000
DISK = Load(name="spec-disk")


def run(*workloads: AnyWorkload, params: dict[str, Any] | None = None, seed: int = 1, **fields: Any) -> Result:
    disk = msgspec.structs.replace(DISK, params=params or {})
    return uxk.run(uxk.Scenario(name="t", modules=(disk,), workloads=workloads, **fields), seed=seed)


def broken(result: Result) -> list[str]:
    return [verdict.what for verdict in result.invariants if not verdict.good]


# --- workloads -------------------------------------------------------------------------------------------


def test_a_closed_loop_sends_its_count_and_never_more_than_its_depth() -> None:
    result = run(ClosedLoop(device="spec_disk0", depth=8, count=100, read_ppm=250_000))
    load = result.values["workloads"]["load"]
    assert (load["issued"], load["completed"], load["failed"], load["inflight"]) == (100, 100, 0, 0)
    assert load["reads"] + load["writes"] == 100
    assert 10 <= load["reads"] <= 40
    assert result.virtual_ns == -(-100 // 8) * 10_000
    assert result["modules.spec_disk.requests"] == 100
    assert result.exit_code == 0


def test_thinking_takes_time() -> None:
    result = run(ClosedLoop(device="spec_disk0", depth=1, count=10, think_ns=MS, start_ns=5 * MS))
    assert result.virtual_ns == 5 * MS + 10 * (MS + 10_000)


def test_more_depth_than_the_device_takes_is_back_pressure_not_loss() -> None:
    result = run(ClosedLoop(device="spec_disk0", depth=500, count=2000))
    assert result["workloads.load.completed"] == 2000
    assert result["modules.spec_disk.deferred"] > 0
    assert result.ok


@pytest.mark.parametrize("arrival", ["poisson", "uniform", "periodic"])
def test_an_open_loop_has_its_rate(arrival: Any) -> None:
    result = run(OpenLoop(device="spec_disk0", rate_per_s=10_000, arrival=arrival), until=1_000 * MS)
    assert 9_600 <= result["workloads.load.issued"] <= 10_400
    if arrival == "periodic":
        assert result["workloads.load.issued"] == 10_000
    assert result.virtual_ns == 1_000 * MS
    assert result.ok


def test_an_open_loop_stops_by_count_or_duration() -> None:
    assert run(OpenLoop(device="spec_disk0", rate_per_s=1000, count=17))["workloads.load.issued"] == 17
    some = run(OpenLoop(device="spec_disk0", rate_per_s=1000, duration_ns=10 * MS, arrival="periodic"))
    assert some["workloads.load.issued"] == 9


def test_an_open_loop_that_outruns_its_device_is_refused_not_queued_for_ever() -> None:
    result = run(
        OpenLoop(device="spec_disk0", rate_per_s=1_000_000, arrival="periodic", count=2000), params={"latency_ns": MS}
    )
    load = result.values["workloads"]["load"]
    assert load["refused"] > 0
    assert load["accepted"] + load["refused"] == load["issued"] == 2000
    assert load["completed"] == load["accepted"]
    assert result.ok


@pytest.mark.parametrize("offset", ["sequential", "uniform", "zipf"])
@pytest.mark.parametrize("depth", [1, 16])
def test_what_was_written_is_read_back(offset: Any, depth: int) -> None:
    result = run(
        ClosedLoop(device="spec_disk0", depth=depth, count=500, offset=offset, verify=True, span_bytes=1 << 18)
    )
    load = result.values["workloads"]["load"]
    assert load["mismatches"] == 0
    assert load["verified"] > 0
    assert load["completed"] == load["issued"] > 500  # reading back comes on top
    assert result.ok


def test_open_loops_read_back_too() -> None:
    load = OpenLoop(device="spec_disk0", rate_per_s=50_000, count=500, verify=True, read_ppm=0, span_bytes=1 << 18)
    result = run(load)
    assert result["workloads.load.verified"] >= 40
    assert result.ok


def test_offsets_are_distributed_as_asked() -> None:
    from uxk.core.streams import RandomStreams
    from uxk.scenario.choices import operations

    def blocks(**fields: Any) -> list[int]:
        spec = ClosedLoop(device="d", span_bytes=4096 * 100, **fields)
        source = operations(spec, RandomStreams(3).stream("x"))
        return [next(source)[1] for _ in range(10_000)]

    assert blocks(offset="sequential")[:101] == [*range(100), 0]
    uniform = blocks(offset="uniform")
    assert set(uniform) == set(range(100))
    assert max(map(uniform.count, set(uniform))) < 200
    zipf = blocks(offset="zipf")
    counts = sorted((zipf.count(block) for block in set(zipf)), reverse=True)
    assert 2.0 < counts[0] / counts[1] < 2.6  # 2 ** 1.2 is 2.3
    assert set(zipf) <= set(range(100))


def test_a_disk_that_lies_is_caught() -> None:
    result = run(ClosedLoop(device="spec_disk0", depth=4, count=200, verify=True), params={"lies_every": 50})
    assert result["workloads.load.mismatches"] > 0
    assert broken(result) == ["data-intact"]
    assert "; the first: block " in next(verdict.seen for verdict in result.invariants if not verdict.good)
    assert result.exit_code == 3


def test_planted_corruption_is_caught() -> None:
    result = run(
        ClosedLoop(device="spec_disk0", depth=4, count=200, verify=True),
        faults=(Fault(kind="corrupt", module="spec-disk", at_ns=100_000, where="requests", count=5),),
    )
    assert result["faults.corrupt-0.fired"] == 5
    assert 0 < result["workloads.load.mismatches"] <= 5 * 3
    assert broken(result) == ["data-intact"]


def test_a_failed_write_leaves_its_block_in_doubt_not_wrong() -> None:
    result = run(
        ClosedLoop(device="spec_disk0", depth=4, count=400, verify=True, span_bytes=1 << 18),
        faults=(Fault(kind="drop", module="spec-disk", probability_ppm=50_000, where="completions"),),
    )
    assert result["workloads.load.errors.ETIMEDOUT"] > 5
    assert result.ok, result.report()


def test_two_workloads_have_streams_of_their_own() -> None:
    a = ClosedLoop(device="spec_disk0", name="a", count=50, span_bytes=1 << 19)
    b = ClosedLoop(device="spec_disk0", name="b", count=50, span_bytes=1 << 19)
    assert run(a)["workloads.a.reads"] == run(b, a)["workloads.a.reads"]


# --- faults, checks, ends --------------------------------------------------------------------------------


def test_a_module_that_crashes_under_load_loses_nothing() -> None:
    for seed in range(5):
        result = run(
            ClosedLoop(device="spec_disk0", depth=16, count=1000, verify=True),
            faults=(Fault(kind="crash", module="spec-disk", probability_ppm=10_000, count=5),),
            seed=seed,
        )
        assert result["modules.spec_disk.restarts"] == result["faults.crash-0.fired"] > 0
        assert result["workloads.load.failed"] == 0
        assert result.ok, result.report()


class Mortal(uxk.Extension):
    """Dies for good, and fails what it had."""

    manifest = uxk.Manifest(name="spec-mortal", license="MIT", restart=uxk.RestartPolicy(mode="temporary"))

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.call_later_ns(1000, lambda _: [ctx.complete(request) for request in requests])


@pytest.mark.parametrize("load", [
    ClosedLoop(device="spec_mortal0", depth=4, count=1000),
    OpenLoop(device="spec_mortal0", rate_per_s=1_000_000, count=1000),
], ids=["closed", "open"])  # fmt: skip
def test_a_module_that_dies_for_good_ends_its_load(load: AnyWorkload) -> None:
    result = uxk.run(Scenario(
        name="t", modules=(Load(name="spec-mortal"),), workloads=(load,),
        faults=(Fault(kind="crash", module="spec-mortal", at_ns=20_500),),
    ))  # fmt: skip
    assert result["modules.spec_mortal.state"] == "GONE"
    assert 0 < result["workloads.load.completed"] < 1000
    assert result["workloads.load.refused"] > 0
    assert broken(result) == []
    lines = result.report().splitlines()
    assert any(line.startswith("spec_mortal: gone after 0 restarts: ") for line in lines)
    closed = isinstance(load, ClosedLoop)
    assert result.exit_code == (1 if closed else 0)
    if closed:
        done = result["workloads.load.accepted"]
        assert f"load: EIO x{result['workloads.load.failed']}; stopped after {done} of 1000" in lines
        checks = (Check(value="workloads.load.refused", op=">", than=0),)
        assert uxk.run(msgspec.structs.replace(result.scenario, checks=checks)).exit_code == 0


@pytest.mark.parametrize(
    ("check", "complaint"),
    [
        (Check(value="modules.spec_disk.state", op="<", than=3), "is text, but it is compared with a number"),
        (Check(value="modules.spec_disk.completed", op="==", than="many"), "is a number, but it is compared with text"),
        (Check(value="kernel.now_ns", op="<", than="5 parsec"), r"checks\[0\].than = '5 parsec': unknown unit"),
        (Check(value="kernel.now_ns", op="<", than="$modules.spec_disk.state"), "is a number, but"),
    ],
    ids=str,
)
def test_checks_that_compare_text_with_numbers_are_refused(check: Check, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        run(checks=(check,))


def test_an_invariant_that_nothing_tested_says_so() -> None:
    report = run(ClosedLoop(device="spec_disk0", count=10)).report()
    assert "  - data-intact (not checked: no workload has verify)" in report.splitlines()
    assert "  ✔ data-intact" in run(ClosedLoop(device="spec_disk0", count=10, verify=True)).report().splitlines()


def test_a_module_that_cannot_be_loaded_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("[[modules]]\nname = 'spec-disk'\nparams = { sise = 1 }\n")
    with pytest.raises(ParamError, match=r"s\.toml: modules\[0\]: .*unknown parameter 'sise'"):
        uxk.run(path)


def test_time_ends_a_run_with_requests_in_flight() -> None:
    result = run(ClosedLoop(device="spec_disk0", depth=8), until=MS + 5_000)
    assert result.virtual_ns == MS + 5_000
    assert result["workloads.load.inflight"] == 8
    assert result.ok


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (Check(value="workloads.load.completed", op="==", than=10), True),
        (Check(value="workloads.load.completed", op="==", than="$workloads.load.issued"), True),
        (Check(value="workloads.load.completed", op="!=", than=10), False),
        (Check(value="workloads.load.p99_ns", op=">", than=1.5), True),
        (Check(value="modules.spec_disk.state", op="==", than="LIVE"), True),
        (Check(value="workloads.load.p99_ns", op="<=", than="1.5ms"), True),
        (Check(value="workloads.load.p99_ns", op=">=", than="1h"), False),
        (Check(value="modules.spec_disk.attributes.nothing", op="==", than=3), False),
        (Check(value="kernel.now_ns", op="<=", than=float("nan")), False),
    ],
    ids=str,
)
def test_checks(check: Check, good: bool) -> None:
    result = run(ClosedLoop(device="spec_disk0", count=10), checks=(check,))
    assert [verdict.good for verdict in result.checks] == [good]
    assert result.exit_code == (0 if good else 1)
    assert ("✔" if good else "✘") + f" {check}" in result.report()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"checks": (Check(value="modules.spec_disk.complete", op="==", than=1),)}, "did you mean 'completed'"),
        ({"checks": (Check(value="modules.spec_disc.x", op="==", than=1),)}, "did you mean 'spec_disk'"),
        ({"checks": (Check(value="kernel.now_ns", op="==", than="$kernel.noww"),)}, "kernel has no 'noww'"),
        ({"checks": (Check(value="modules", op="==", than=1),)}, "modules is a table"),
        ({"invariants": ("no-lost-requests",)}, "did you mean 'no-lost-request'"),
        ({"subsystems": {"lsf": {}}}, "subsystems: unknown 'lsf'"),
        ({"workloads": (ClosedLoop(device="spec_disk", count=1),)}, "no device 'spec_disk' (did you mean 'spec_disk0'"),
        ({"faults": (Fault(kind="crash", module="spec-disc"),)}, "did you mean 'spec_disk'"),
        ({"faults": (Fault(kind="delay", module="spec-disk"),)}, "needs delay_ns"),
    ],
)
def test_what_does_not_exist_is_refused_before_the_run(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        uxk.run(Scenario(name="t", modules=(DISK,), **fields))
    assert complaint in str(caught.value)


def test_modules_that_cannot_be_loaded_are_told_apart() -> None:
    with pytest.raises(NoSuchModule):
        uxk.run(Scenario(name="t", modules=(Load(name="spec-disc"),)))
    with pytest.raises(ParamError, match="latency_ms"):
        uxk.run(Scenario(name="t", modules=(Load(name="spec-disk", params={"latency_ms": 3}),)))


# --- invariants ------------------------------------------------------------------------------------------


def test_an_invariant_that_breaks_during_the_run_ends_it() -> None:
    def during(watched: Watched) -> str:
        return "half of it is done" if watched.generators[0].completed >= 500 else ""

    register_invariant("spec-half", during=during)
    try:
        result = run(ClosedLoop(device="spec_disk0", count=1_000), invariants=("spec-half",))
    finally:
        del INVARIANTS["spec-half"]
    assert result.exit_code == 3
    assert result["workloads.load.completed"] < 1_000
    assert result.virtual_ns % MS == 0
    assert "half of it is done (seen at" in result.invariants[0].seen


async def _leak(kernel: uxk.Kernel) -> None:
    kernel.agents["spec_disk"].account.files += 1


async def _lose(kernel: uxk.Kernel) -> None:
    await kernel.sleep_ns(5_000)
    kernel.agents["spec_disk"].requests.inflight.popitem()


async def _repeat(kernel: uxk.Kernel) -> None:
    await kernel.sleep_ns(5_000)
    agent = kernel.agents["spec_disk"]
    cid, batch = next(iter(agent.requests.inflight.items()))
    batch.port.on_completions([uxk.Completion(cid)])


async def _bug(kernel: uxk.Kernel) -> None:
    kernel.machine.log("crit", "kernel", "BUG: planted", bug="planted")


async def _deadlock(kernel: uxk.Kernel) -> None:
    from uxk.core.waitfor import Node

    a, b = Node("task", "a"), Node("task", "b")
    kernel.machine.waits.add(a, b, "lock one", 0)
    kernel.machine.waits.add(b, a, "lock two", 0)


async def _stall(kernel: uxk.Kernel) -> None:
    kernel.machine.outstanding += 1


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (_leak, {"accounts-balance"}), (_lose, {"no-lost-request"}), (_repeat, {"no-duplicate-request"}),
        (_bug, {"no-kernel-bug"}), (_deadlock, {"non-blocking"}), (_stall, {"progress"}),
    ],
)  # fmt: skip
def test_planted_defects_are_caught(plant: Any, expected: set[str]) -> None:
    until = "idle" if plant is _stall else 10 * MS
    result = run(ClosedLoop(device="spec_disk0", depth=4, count=200), drive=plant, until=until)
    assert expected <= set(broken(result)), result.report()
    assert result.exit_code == 3


def test_a_drive_brings_results_and_its_exception_is_a_failed_check() -> None:
    async def drive(kernel: uxk.Kernel) -> dict[str, int]:
        module = await kernel.modprobe("spec-mortal")
        return {"status": (await module.submit(b"x")).status}

    result = run(drive=drive, checks=(Check(value="drive.status", op="==", than=0),))
    assert result.exit_code == 0
    assert "spec_mortal" in result.values["modules"]

    async def fails(kernel: uxk.Kernel) -> None:
        raise ValueError("no luck")

    result = run(drive=fails)
    assert result.exit_code == 1
    assert result.checks[0].seen == "ValueError: no luck"


def test_subsystems_are_a_table_that_others_extend() -> None:
    class Params(uxk.Params):
        level: int = 1

    class Running:
        def __init__(self, kernel: uxk.Kernel, params: Params) -> None:
            self.level = params.level

        def results(self) -> dict[str, int]:
            return {"level": self.level}

    register_subsystem("spec-sub", Params, Running)
    try:
        result = run(subsystems={"spec-sub": {"level": "5"}})
        with pytest.raises(UsageError, match="registered already"):
            register_subsystem("spec-sub", Params, Running)
        with pytest.raises(ParamError, match="did you mean 'level'"):
            run(subsystems={"spec-sub": {"levle": 5}})
    finally:
        del SUBSYSTEMS["spec-sub"]
    assert result.values["subsystems"] == {"spec-sub": {"level": 5}}


def test_the_bundled_scenario_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "drivers"))
    importlib.import_module("uxk_null")
    result = uxk.run("crash-under-load")
    assert result.exit_code == 0, result.report()
    assert result["modules.null.restarts"] == 2
    assert result["workloads.load.completed"] == 20_000


# --- run folders -----------------------------------------------------------------------------------------


def test_a_run_folder_tells_everything(tmp_path: Path) -> None:
    scenario = Scenario(name="t", modules=(DISK,), workloads=(ClosedLoop(device="spec_disk0", count=10),))
    out = tmp_path / "a" / "run"
    result = uxk.run(scenario, seed=3, out=out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["seed"], manifest["event_hash"]) == (3, result.event_hash)
    assert {"uxk", "python", "trio", "msgspec", "numpy"} <= manifest["versions"].keys()
    assert manifest["scenario"]["workloads"][0]["count"] == 10
    summary = json.loads((out / "summary.json").read_text())
    assert summary["results"]["workloads"]["load"]["completed"] == 10
    assert summary["exit_code"] == 0
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert len(events) >= result.events
    assert events[0]["kind"] == "start"
    assert "booted, seed 3" in (out / "kmsg.log").read_text().splitlines()[0]
    assert "shut down" in (out / "kmsg.log").read_text().splitlines()[-1]
    with pytest.raises(UsageError, match="not an empty folder"):
        uxk.run(scenario, out=out)
    assert uxk.run(scenario, seed=3).event_hash == result.event_hash  # watching changes nothing


def test_costs_measured_once_are_reused(tmp_path: Path) -> None:
    scenario = Scenario(
        name="t", clock="charged", modules=(DISK,), workloads=(ClosedLoop(device="spec_disk0", count=100),)
    )
    uxk.run(scenario, out=tmp_path / "first")
    costs = tmp_path / "first" / "manifest.json"
    assert read_costs(costs)["spec-disk"] > 0
    second, third = (uxk.run(scenario, costs=costs) for _ in range(2))
    assert second.event_hash == third.event_hash
    assert second.costs_ns == third.costs_ns == read_costs(costs)


@pytest.mark.parametrize("text", ["", "[]", '{"null": -1}', '{"null": "x"}', '{"costs_ns": 3}', '{"null": 1e30}'])
def test_hostile_cost_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--costs"):
        read_costs(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_costs(tmp_path / "none")
