"""Workloads, runs and the cache of what the log-structured volume's benches compare.

A run is one policy with one seed on one row.  Its figures go to a cache, one JSON object a line, as soon as they are
there: what was run is not run again, and several processes may add to one file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import process_time_ns
from typing import Any, NamedTuple

from msgspec.structs import replace

from uxk.scenario.lfs.attach import is_random, load
from uxk.scenario.lfs.compare import run_study
from uxk.scenario.lfs.entrants import Entrant, resolve
from uxk.scenario.lfs.outcome import Outcome
from uxk.scenario.lfs.study import Study, StudyParams, WorkloadSpec
from uxk.scenario.pages import HOLDOUTS, WORKLOADS, bundled

ROOT = Path(__file__).resolve().parent.parent
HPLAJW = ROOT.parent / "shared" / "data" / "hplajw" / "hplajw-1week.srt"
"""Third-party, so it is only there where somebody put it."""
GP_PPM = 150_000
GUIDE, HELD_OUT, RECORDED, CONTROL = "guide", "holdout", "recorded", "control"
GROUPS = (GUIDE, CONTROL, HELD_OUT, RECORDED)
WA_LIMITS = {"zipf1.0": 1.83, "hot-cold-80-20": 2.48, "shifting-zipf": 1.98, "mixed": 1.65, "hplajw": 1.12}
"""The most that the agent's second half may cost, at full scale."""


class Scale(NamedTuple):
    """Size of the volumes."""

    name: str
    pages: int
    """Of synthetic workloads, which write ten times as many; a recording has its own."""
    segment_blocks: int
    """Of all rows but ``hplajw``, whose segments have 64 blocks of 1 KiB."""


SCALES = {each.name: each for each in (Scale("full", 262_144, 512), Scale("small", 65_536, 128))}


class Row(NamedTuple):
    """One workload at one scale."""

    name: str
    group: str
    study: Study
    """Without policies, and with seed 0."""

    @property
    def is_random(self) -> bool:
        """Whether its writes depend on the seed."""
        return is_random(self.study.volume)


class Run(NamedTuple):
    """One policy with one seed on one row."""

    row: Row
    seed: int
    entrant: Entrant

    @property
    def key(self) -> str:
        """In the cache.  Where the seed makes no difference it is 0."""
        seed = self.seed if self.row.is_random or self.entrant.kind == "agent" else 0
        blocks = self.row.study.lfs.segment_blocks
        return f"{self.row.name} {self.row.study.workload.pages} {blocks} {seed} {self.entrant.name}"


def rows(scale: Scale) -> list[Row]:
    """All that are there."""
    found = []
    for name in (*WORKLOADS, *HOLDOUTS):
        group = HELD_OUT if name in HOLDOUTS else CONTROL if name == "uniform" else GUIDE
        found.append(_row(name, group, scale.segment_blocks, WorkloadSpec(name=name, pages=scale.pages)))
    if HPLAJW.is_file():
        trace = WorkloadSpec(trace=str(HPLAJW), format="disksim-hp", page_bytes=1024)
        found.append(_row("hplajw", GUIDE, 64, trace))
    found += [_row(name, RECORDED, scale.segment_blocks, WorkloadSpec(name=name)) for name in bundled()]
    return sorted(found, key=lambda row: GROUPS.index(row.group))


def _row(name: str, group: str, segment_blocks: int, workload: WorkloadSpec) -> Row:
    params = StudyParams(segment_blocks=segment_blocks, gp_ppm=GP_PPM, logs=6)
    return Row(name, group, Study(name="goals", lfs=params, workload=workload))


def chosen(found: Sequence[Row], words: Sequence[str]) -> list[Row]:
    """Rows whose name or group is one of the words, or whose name has one in it.  :class:`ValueError` for a word
    that is none of these."""
    for word in words:
        if not any(word == row.group or word in row.name for row in found):
            raise ValueError(f"row {word!r}: expected one of {', '.join([*GROUPS, *(row.name for row in found)])}")
    return [row for row in found if not words or any(word == row.group or word in row.name for word in words)]


def entrants(words: Iterable[str]) -> list[Entrant]:
    """As ``uxk run lfs-gc --policy`` takes them; ``humans`` stands for 53."""
    return resolve(words, StudyParams().default)


# --- the cache ----------------------------------------------------------------------------------------------


class Cache:
    """Figures by run.  An agent's are stale when its sources have changed."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    entry = json.loads(line)
                except ValueError as exc:  # a process was killed while it wrote
                    print(f"{path}:{number}: ignored: {exc}", file=sys.stderr)
                else:
                    self._found[entry["key"]] = entry

    def get(self, run: Run, fresh: bool = False) -> dict[str, Any] | None:
        """What is known of a run; if ``fresh``, only what the sources of today have done."""
        entry = self._found.get(run.key)
        return entry if entry is None or not fresh or entry["sources"] == sources(run.entrant) else None

    def is_stale(self, run: Run) -> bool:
        """Whether it has the run, but from other sources."""
        return run.key in self._found and self.get(run, fresh=True) is None

    def put(self, run: Run, entry: dict[str, Any]) -> None:
        """Adds a line to the file."""
        entry = {"key": run.key, "sources": sources(run.entrant), **entry}
        self._found[run.key] = entry
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(json.dumps(entry) + "\n")
                file.flush()


def sources(entrant: Entrant) -> str:
    """Digest of what an agent's figures depend on, its advice and how much of it is followed; empty for others."""
    if entrant.kind != "agent" or entrant.load is None:
        return ""
    paths = [ROOT / "uxk" / "subsystems" / "lfs" / f"{name}.py" for name in ("subsystem", "sample", "thresholds")]
    paths += [ROOT / "uxk" / "core" / f"{name}.py" for name in ("evidence", "mode")]
    module = Path(entrant.load.file) if entrant.load.file else ROOT / "extensions" / entrant.load.name.replace("-", "_")
    paths += sorted(module.rglob("*.py")) if module.is_dir() else [module]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths if path.is_file())).hexdigest()[:16]


def figures(outcome: Outcome, cpu_ns: int) -> dict[str, Any]:
    """What is kept of a run; ``cpu_ns`` is the process's, the workload's making not included."""
    kept: dict[str, Any] = {
        "policy": outcome.policy, "wa_ppm": outcome.wa_ppm, "half_wa_ppm": outcome.half_wa_ppm,
        "user_blocks": outcome.user_blocks, "moved_blocks": outcome.moved_blocks, "cpu_ns": cpu_ns,
        "host_ns": outcome.host_ns, "hash": outcome.event_hash,
    }  # fmt: skip
    if outcome.kind == "agent":
        kept |= {
            "modes": outcome.mode_epochs, "following_ppm": outcome.following_ppm, "account": outcome.account,
            "received": outcome.received, "applied": outcome.applied, "refused": outcome.refused,
            "notes": outcome.notes, "exit_code": outcome.exit_code,
        }  # fmt: skip
    return kept


def perform(run: Run) -> dict[str, Any]:
    """Runs it.  Raises what a study does."""
    study = replace(run.row.study, policies=(run.entrant.name,), seed=run.seed)
    load(study.volume, run.seed)
    began_ns = process_time_ns()
    outcome = run_study(study).outcomes[0]
    return figures(outcome, process_time_ns() - began_ns)


def work(todo: Sequence[Run], cache: Cache, again: Sequence[str] = ()) -> None:
    """Performs what the cache has not, row by row; ``again`` names policies that are run whatever it has."""
    missing = [run for run in todo if run.entrant.name in again or cache.get(run, fresh=True) is None]
    done: set[str] = set()
    for number, run in enumerate(missing, 1):
        if run.key in done:  # a policy without an agent on a recording: one run stands for all seeds
            continue
        done.add(run.key)
        entry = perform(run)
        cache.put(run, entry)
        print(
            f"{number:>5}/{len(missing)} {run.row.name:<20} {run.seed:>5} {run.entrant.name:<24}"
            f" {entry['half_wa_ppm'] / 1e6:8.4f} {entry['host_ns'] / 1e9:7.1f} s",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def all_runs(found: Sequence[Row], seeds: Sequence[int], words: Iterable[str]) -> Iterator[Run]:
    """Every run of these policies, in an order that makes each workload once."""
    policies = entrants(words)
    return (Run(row, seed, entrant) for row in found for seed in seeds for entrant in policies)
