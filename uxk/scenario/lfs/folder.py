"""A study's folder, written and read::

manifest.json               versions, seeds, options, the study's text, the trace's digest
results.json                everything that --json prints
summary.json                scores over the seeds
metrics.csv                 the figures as a table, a line for each policy and seed
runs/seed-N/POLICY/
    events.jsonl            one line per epoch
    hints.jsonl             of agents: every hint as the kernel got it
    kmsg.log                of agents: the kernel's log
"""

from __future__ import annotations

import csv
import errno
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from uxk.errors import ConfigError, UsageError
from uxk.scenario.folder import versions
from uxk.scenario.lfs.entrants import Kind
from uxk.scenario.lfs.outcome import Epoch, HintRecord, Outcome
from uxk.scenario.lfs.study import Study
from uxk.scenario.lfs.verdict import Verdict
from uxk.scenario.saved import flat

LAYOUT: Final = 1
"""Version of the layout; grows when a reader of the last one would go wrong."""
FILE_MAX_BYTES: Final = 1 << 30
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._=-]+")


class RunEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one run's files are."""

    policy: str
    kind: Kind
    seed: int
    event_hash: str
    folder: str
    """Relative to the study's."""


class Manifest(Struct, frozen=True, kw_only=True):
    """What it takes to repeat a study."""

    layout: int
    versions: dict[str, str]
    study: Study
    study_text: str
    workload: str
    pages: int
    fill: int
    writes: int
    trace_sha256: str
    runs: list[RunEntry]


class StoredRun(Struct, frozen=True, kw_only=True):
    """One run as read back."""

    entry: RunEntry
    result: dict[str, Any]
    """Its entry of ``results``."""
    epochs: list[Epoch]
    hints: list[HintRecord]
    kmsg: list[str]


class StoredStudy(Struct, frozen=True, kw_only=True):
    """A study as read back."""

    path: Path
    manifest: Manifest
    results: dict[str, Any]
    runs: list[StoredRun]


def check_folder(path: str | Path) -> Path:
    """A folder that may be written: it is empty or will be made.  UsageError (EEXIST) if not."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"--out {path}: exists and is not an empty folder", errno=errno.EEXIST)
    return path


def write_study(path: str | Path, verdict: Verdict, text: str) -> None:
    """Writes a study's folder; ``text`` is the study's TOML.  UsageError as :func:`check_folder`."""
    path = check_folder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        entries = [_write_run(path, outcome) for outcome in verdict.outcomes]
        manifest = Manifest(
            layout=LAYOUT, versions=versions(), study=verdict.study, study_text=text, workload=verdict.workload,
            pages=verdict.pages, fill=verdict.fill, writes=verdict.writes, trace_sha256=verdict.trace_sha256,
            runs=entries,
        )  # fmt: skip
        results = verdict.to_dict()
        _write(path / "results.json", results)
        kept = ("study", "name", "workload", "seeds", "summary", "winner", "notes", "exit_code")
        _write(path / "summary.json", {name: results[name] for name in kept})
        (path / "metrics.csv").write_text(metrics(results["results"]), "utf-8")
        _write(path / "manifest.json", manifest)
    except OSError as exc:
        raise UsageError(f"--out {path}: {exc.strerror}", errno=exc.errno) from None


def _write_run(path: Path, outcome: Outcome) -> RunEntry:
    folder = f"runs/seed-{outcome.seed}/{_UNSAFE.sub('-', outcome.policy)}"
    inner = path / folder
    inner.mkdir(parents=True)
    _write_lines(inner / "events.jsonl", outcome.epochs)
    if outcome.kind == "agent":
        _write_lines(inner / "hints.jsonl", outcome.hint_log)
        (inner / "kmsg.log").write_text("".join(f"{line}\n" for line in outcome.kmsg), "utf-8")
    return RunEntry(
        policy=outcome.policy, kind=outcome.kind, seed=outcome.seed, event_hash=outcome.event_hash, folder=folder
    )  # fmt: skip


def metrics(results: Sequence[Mapping[str, Any]]) -> str:
    """``results`` as CSV: nested figures are named by dotted path, lists left out, what is not known is empty."""
    rows = [{name: value for name, value in flat(result) if not isinstance(value, list | dict)} for result in results]
    lists = {name.partition(".")[0] for result in results for name, value in result.items() if isinstance(value, list)}
    names = dict.fromkeys(name for row in rows for name in row if name.partition(".")[0] not in lists)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(names), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _write(path: Path, value: object) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def _write_lines(path: Path, values: list[Epoch] | list[HintRecord]) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(value) + b"\n" for value in values))


# --- reading ------------------------------------------------------------------------------------------------


def load_study(path: str | Path) -> StoredStudy:
    """Reads a study's folder.  Raises :class:`ConfigError` naming the file that is missing or wrong."""
    path = Path(path)
    manifest = _decode(path / "manifest.json", Manifest)
    if manifest.layout != LAYOUT:
        raise ConfigError(f"{path / 'manifest.json'}: layout {manifest.layout}, this version reads {LAYOUT}")
    results: dict[str, Any] = _decode(path / "results.json", dict[str, Any])
    by_run = {(each["policy"], each["seed"]): each for each in results.get("results", [])}
    runs = []
    for entry in manifest.runs:
        folder = path / entry.folder
        if not folder.resolve().is_relative_to(path.resolve()):
            raise ConfigError(f"{path / 'manifest.json'}: folder {entry.folder!r} is not inside")
        is_agent = entry.kind == "agent"
        runs.append(StoredRun(
            entry=entry, result=by_run.get((entry.policy, entry.seed), {}),
            epochs=_lines(folder / "events.jsonl", Epoch),
            hints=_lines(folder / "hints.jsonl", HintRecord) if is_agent else [],
            kmsg=_read(folder / "kmsg.log").decode("utf-8", "replace").splitlines() if is_agent else [],
        ))  # fmt: skip
    return StoredStudy(path=path, manifest=manifest, results=results, runs=runs)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ConfigError(f"{path}: larger than {FILE_MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}", errno=exc.errno) from None


def _decode(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(_read(path), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: {exc}") from None


def _lines(path: Path, kind: Any) -> list[Any]:
    decode = msgspec.json.Decoder(kind).decode
    found = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        try:
            found.append(decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path}: line {number}: {exc}") from None
    return found
