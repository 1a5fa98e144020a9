"""Runs on a kernel: an agent advises the volume's collector, in whatever mode it has earned."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Final

import trio

from uxk.bridges.datalog.recorder import open_datalog
from uxk.core.kmsg import format_dmesg
from uxk.errors import KernelBug
from uxk.kernel.agent import KernelAgent
from uxk.scenario.lfs.batch import half_of
from uxk.scenario.lfs.entrants import Entrant
from uxk.scenario.lfs.floats import twin_of
from uxk.scenario.lfs.latency import measure
from uxk.scenario.lfs.memory import held_bytes, instances_of
from uxk.scenario.lfs.outcome import Epoch, HintRecord, OnLive, Outcome
from uxk.scenario.lfs.study import Study
from uxk.scenario.lfs.victims import next_victim
from uxk.scenario.model import Scenario
from uxk.scenario.results import Result
from uxk.scenario.run import Runner
from uxk.subsystems.lfs.subsystem import Lfs
from uxk.uapi.entries import Hint
from uxk.uapi.info import Record

HINTS_MAX: Final = 1_000_000
"""Hints recorded of one run; further ones are only counted."""
_ACCOUNT: Final = (
    "crossings", "turns", "messages_in", "messages_out", "bytes_in", "bytes_out", "hints", "declared_ns", "charged_ns",
    "cpu_ns", "restarts", "arena_bytes_max",
)  # fmt: skip


def run_agent(
    entrant: Entrant, study: Study, seed: int, live: OnLive | None = None,
    on_record: Callable[[Record], object] | None = None, *, latency: bool = True,
) -> Outcome:  # fmt: skip
    """One agent on a kernel of its own, with modes on; without ``latency`` that is left out, and it is faster.

    Raises UsageError or ModuleError as scenarios do.
    """
    assert entrant.load is not None
    volume = study.volume
    tick_ns = max(volume.write_ns * 1_000, 1_000_000)
    values = {name: getattr(volume, name) for name in volume.__struct_fields__} | {"debt": latency}
    scenario = Scenario(
        name=study.name, seed=seed, clock=study.clock, modules=(entrant.load,), invariant_interval_ns=tick_ns,
        subsystems={"lfs": values},
    )  # fmt: skip
    runner = Runner(scenario.validate(), on_record, where=f"policy {entrant.name}")
    recorder = _Recorder(runner, live)
    began_ns = perf_counter_ns()
    part = f"{entrant.name}-seed-{seed}"
    with open_datalog(study.datalog, runner.kernel, scenario=study.name, part=part) as kept:
        result = trio.run(runner.execute)
    outcome = _outcome(entrant, study, runner, result, recorder)
    if kept is not None and kept.complaint:
        outcome.notes.append(kept.complaint)
    outcome.host_ns = perf_counter_ns() - began_ns
    return outcome


class _Recorder:
    """What a run says of itself on its way."""

    def __init__(self, runner: Runner, live: OnLive | None) -> None:
        self.hints: list[HintRecord] = []
        self.unrecorded = 0
        self.kmsg: list[str] = []
        self.victims: list[tuple[int, int] | None] = []
        """The next one at each epoch's end."""
        self.held_bytes = 0
        """What the extensions had in memory at the end of the last epoch."""
        self._runner = runner
        self._live = live
        self._told = -1
        self.crossings_before: int | None = None
        """Crossings until a program first decided; None if none has."""
        runner.kernel.models.on_hint = self._on_hint
        runner.kernel.machine.hash.sink = self._on_event
        runner.on_record.append(self._on_record)
        runner.on_progress = self._on_progress

    @property
    def lfs(self) -> Lfs:
        """The volume."""
        found = self._runner.subsystems["lfs"]
        assert isinstance(found, Lfs)
        return found

    def _on_hint(self, agent: KernelAgent, hint: Hint, refused: str) -> None:
        if len(self.hints) >= HINTS_MAX:
            self.unrecorded += 1
            return
        self.hints.append(HintRecord(
            epoch=len(self.lfs.epochs), now_ns=self._runner.kernel.machine.now_ns, agent=agent.name, cid=hint.cid,
            site=hint.site, generation=hint.generation, payload=bytes(hint.payload).hex(), standing=hint.standing,
            ttl_ns=hint.ttl_ns, predicted=hint.predicted, refused=refused,
            dataset=hint.dataset, dataset_generation=hint.dataset_generation,
        ))  # fmt: skip

    def _on_event(self, now_ns: int, kind: str, instance: int, data: bytes) -> None:
        """The volume notes the end of each epoch."""
        if kind == "lfs":
            lfs = self.lfs
            if lfs.programs.twin is None:
                lfs.programs.twin = twin_of(self._classes)
            if self.crossings_before is None and lfs.programs.port.current is not None:
                self.crossings_before = _account(self._runner)["crossings"]
            self.victims.append(next_victim(lfs.volume))
            if lfs.done == len(lfs.ops):
                self.held_bytes = sum(held_bytes(each) for cls in self._classes() for each in instances_of(cls))

    def _classes(self) -> set[type[Any]]:
        return {agent.extension_class for agent in self._runner.agents.values()}

    def _on_record(self, record: Record) -> None:
        self.kmsg.append(format_dmesg(record))

    def _on_progress(self, _: int) -> None:
        """Called between events: looks, and changes nothing."""
        if self._live is None or "lfs" not in self._runner.subsystems:
            return
        lfs = self.lfs
        if lfs.epochs and len(lfs.epochs) != self._told:
            self._told = len(lfs.epochs)
            heat = list(lfs.results()["segments"])
            self._live(lfs.done, len(lfs.ops), lfs.epochs[-1].written.wa_ppm, lfs.proxy.mode.name.lower(), heat)


def _epochs(found: dict[str, Any], victims: list[tuple[int, int] | None]) -> list[Epoch]:
    return [
        Epoch(
            epoch=number, user=each["user"], moved=each["moved"], mode=each["mode"], share_ppm=each["share_ppm"],
            policy=each["policy"], args=list(each["args"]), default_wa_ppm=each["default_wa_ppm"],
            hinted_wa_ppm=each["hinted_wa_ppm"], victim=victims[number] if number < len(victims) else None,
        )
        for number, each in enumerate(found["epochs"])
    ]  # fmt: skip


def _half(lfs: Lfs, found: dict[str, Any]) -> tuple[int, int]:
    """User and moved blocks of the second half, in whole epochs."""
    begin, done, user, moved = half_of(len(lfs.ops), lfs.fill, lfs.epoch_blocks), 0, 0, 0
    for each in found["epochs"]:
        if done >= begin:
            user, moved = user + each["user"], moved + each["moved"]
        done += each["user"]
    return user, moved


def _outcome(entrant: Entrant, study: Study, runner: Runner, result: Result, recorder: _Recorder) -> Outcome:
    lfs = recorder.lfs
    found = dict(result.values["subsystems"]["lfs"])
    model = found["model"]
    user, moved = _half(lfs, found)
    outcome = Outcome(
        policy=entrant.name, kind="agent", seed=result.seed, is_default=False, user_blocks=found["user_blocks"],
        moved_blocks=found["moved_blocks"], half_user_blocks=user, half_moved_blocks=moved,
        event_hash=result.event_hash, engine="kernel", clean_min=found["clean_segments_min"],
        epochs=_epochs(found, recorder.victims),
        heat=list(found["segments"]), received=model["hints_received"], applied=model["hints_applied"],
        expired=model["hints_expired"], superseded=model["hints_superseded"], refused=dict(model["rejects"]),
        account=_account(runner), timeline=list(model["timeline"]), mode_epochs=dict(model["mode_epochs"]),
        following_ppm=found.get("following_ppm", 0), exit_code=result.exit_code, hint_log=recorder.hints,
        kmsg=recorder.kmsg,
        notes=[*result.notes, *(f"broken: {v.what} ({v.seen})" for v in result.invariants if not v.good)],
    )  # fmt: skip
    if lfs.debt is None:
        outcome.missing = dict.fromkeys(("foreground_stalls", "write_latency"), "was not asked for")
    else:
        params = study.lfs
        outcome.latency = measure(
            lfs.debt, write_ns=params.write_ns, read_ns=params.read_ns, program_ns=params.program_ns
        )  # fmt: skip
        if (moved := int(lfs.debt.sum(dtype="int64"))) != outcome.moved_blocks:
            raise KernelBug(f"{entrant.name}: {outcome.moved_blocks} blocks moved, but {moved} write by write")
    outcome.account["held_bytes"] = recorder.held_bytes
    if recorder.crossings_before is not None:
        counted, port = lfs.programs.counted, lfs.programs.port
        outcome.account |= {
            "victims": counted.victims, "program_victims": counted.named, "program_runs": counted.runs,
            "program_charged_ns": port.charged_ns,
            "program_crossings": outcome.account["crossings"] - recorder.crossings_before,
        }  # fmt: skip
    if outcome.user_blocks < len(lfs.ops):
        outcome.notes.append(f"{outcome.user_blocks} of {len(lfs.ops)} writes done")
    if recorder.unrecorded:
        outcome.notes.append(f"{recorder.unrecorded} hints not recorded")
    return outcome


def _account(runner: Runner) -> dict[str, int]:
    """Sums over the run's modules."""
    accounts = [agent.account for agent in runner.agents.values()]
    return {name: sum(getattr(account, name) for account in accounts) for name in _ACCOUNT}
