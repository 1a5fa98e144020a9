"""A study out of its folder, so that it can be judged and told again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from uxk.errors import ConfigError
from uxk.limits import I64_MAX, PPM
from uxk.scenario.lfs.attach import TraceFacts
from uxk.scenario.lfs.folder import StoredRun, StoredStudy, load_study
from uxk.scenario.lfs.latency import Latency
from uxk.scenario.lfs.outcome import Outcome
from uxk.scenario.lfs.verdict import Verdict


class _Hints(Struct, frozen=True):
    received: int
    applied: int
    refused: dict[str, int]
    expired: int
    superseded: int


class _Half(Struct, frozen=True):
    user_blocks: int
    moved_blocks: int


class _Quantiles(Struct, frozen=True):
    p50_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int
    utilisation_ppm: int | None


class _Result(Struct, frozen=True):
    """What is needed of an entry of ``results``."""

    is_default: bool
    engine: str
    user_blocks: int
    moved_blocks: int
    second_half: _Half
    hints: _Hints
    crossings: int
    thinking: dict[str, int]
    restarts: int
    mode_timeline: list[dict[str, Any]]
    mode_share_ppm: dict[str, int]
    following_ppm: int
    missing: dict[str, str]
    exit_code: int
    notes: list[str]
    host: dict[str, int | None]
    foreground_stalls: int | None = None
    longest_stall_ns: int | None = None
    write_latency: _Quantiles | None = None
    clean_min: int | None = None
    segments_by_tenths: list[int] | None = None


class _Results(Struct, frozen=True):
    results: list[dict[str, Any]]
    notes: list[str]
    host: dict[str, int]
    trace: TraceFacts | None = None


def is_study_folder(path: str | Path) -> bool:
    """Whether a folder is a study's, be it damaged, and not a scenario's."""
    return any((Path(path) / name).exists() for name in ("results.json", "runs"))


def open_study(path: str | Path) -> tuple[StoredStudy, Verdict]:
    """The folder as it is, and the verdict in it.  ConfigError names the file, and what is wrong with it."""
    path = Path(path)
    try:
        stored = load_study(path)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        where = path / "results.json"
        raise ConfigError(f"{where}: expected a list of results with policy and seed ({type(exc).__name__})") from None
    return stored, verdict_of(stored)


def verdict_of(stored: StoredStudy) -> Verdict:
    """What :func:`uxk.scenario.lfs.folder.write_study` was given, but for kernels' figures that nobody tells."""
    where = stored.path / "results.json"
    try:
        results = msgspec.convert(stored.results, _Results)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{where}: {exc}") from None
    manifest = stored.manifest
    if not stored.runs:
        raise ConfigError(f"{stored.path / 'manifest.json'}: no runs")
    return Verdict(
        study=manifest.study, workload=manifest.workload, pages=manifest.pages, fill=manifest.fill,
        writes=manifest.writes, trace_sha256=manifest.trace_sha256, trace=results.trace,
        outcomes=[_outcome(run, where) for run in stored.runs], notes=results.notes,
        host_ns=results.host.get("host_ns", 0),
    )  # fmt: skip


def _outcome(run: StoredRun, where: Path) -> Outcome:
    entry = run.entry
    try:
        found = msgspec.convert(run.result, _Result)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{where}: result of {entry.policy}, seed {entry.seed}: {exc}") from None
    half, hints, thinking = found.second_half, found.hints, found.thinking
    blocks = (found.user_blocks, found.moved_blocks, half.user_blocks, half.moved_blocks)
    if not all(0 <= number <= I64_MAX for number in blocks) or found.user_blocks < half.user_blocks:
        raise ConfigError(f"{where}: result of {entry.policy}, seed {entry.seed}: {blocks} blocks cannot be")
    modes: dict[str, int] = {}
    for epoch in run.epochs:
        if epoch.mode:
            modes[epoch.mode] = modes.get(epoch.mode, 0) + 1
    return Outcome(
        policy=entry.policy, kind=entry.kind, seed=entry.seed, is_default=found.is_default,
        user_blocks=found.user_blocks, moved_blocks=found.moved_blocks, half_user_blocks=half.user_blocks,
        half_moved_blocks=half.moved_blocks, event_hash=entry.event_hash, engine=found.engine,
        clean_min=found.clean_min, latency=_latency(found), epochs=run.epochs, heat=found.segments_by_tenths,
        received=hints.received, applied=hints.applied, expired=hints.expired, superseded=hints.superseded,
        refused=hints.refused, timeline=found.mode_timeline, mode_epochs=modes, following_ppm=found.following_ppm,
        account={
            "crossings": found.crossings, "restarts": found.restarts, "bytes_in": thinking.get("bytes", 0),
            "charged_ns": thinking.get("charged_ns", 0), "declared_ns": thinking.get("declared_ns", 0),
            "cpu_ns": thinking.get("cpu_ns", 0), "arena_bytes_max": thinking.get("arena_bytes_max", 0),
            "held_bytes": thinking.get("held_bytes", 0),
        },
        missing=found.missing, notes=found.notes, exit_code=found.exit_code, host_ns=found.host.get("host_ns") or 0,
        hint_log=run.hints, kmsg=run.kmsg,
    )  # fmt: skip


def _latency(found: _Result) -> Latency | None:
    quantiles = found.write_latency
    if quantiles is None or found.foreground_stalls is None or found.longest_stall_ns is None:
        return None
    return Latency(
        p50_ns=quantiles.p50_ns, p99_ns=quantiles.p99_ns, p999_ns=quantiles.p999_ns, max_ns=quantiles.max_ns,
        stalls=found.foreground_stalls, longest_stall_ns=found.longest_stall_ns,
        utilisation_ppm=min(quantiles.utilisation_ppm or 0, PPM * PPM),
    )  # fmt: skip
