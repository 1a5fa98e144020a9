"""The run folder: everything needed to look at a run later, and to repeat it."""

from __future__ import annotations

import base64
import errno
import importlib.metadata
import platform
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec

from uxk.core.kmsg import format_dmesg
from uxk.errors import ConfigError, UsageError
from uxk.limits import I64_MAX
from uxk.scenario.model import Scenario
from uxk.scenario.results import Result
from uxk.uapi.info import Record

if TYPE_CHECKING:
    from uxk.scenario.run import Runner

EVENTS_MAX: Final = 1_000_000
"""Events written to events.jsonl; the rest are counted in its last line."""
DATA_SHOWN_BYTES: Final = 256
"""Data of an event written out; the event hash covers all of it."""
COSTS_FILE_MAX_BYTES: Final = 1 << 20


class RunFolder:
    """Open files of one run; a context manager."""

    def __init__(self, path: Path, scenario: Scenario, text: str) -> None:
        self.path = path
        self._scenario = scenario
        self._text = text
        self._events: IO[bytes] = (path / "events.jsonl").open("wb")
        self._kmsg: IO[str] = (path / "kmsg.log").open("w", encoding="utf-8")
        self._written = 0
        self._unwritten = 0

    @classmethod
    def create(cls, path: Path, scenario: Scenario, text: str) -> RunFolder:
        """A new run folder.  UsageError (EEXIST) if the path is a file or a folder with something in it."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"--out {path}: exists and is not an empty folder", errno=errno.EEXIST)
        try:
            path.mkdir(parents=True, exist_ok=True)
            return cls(path, scenario, text)
        except OSError as exc:
            raise UsageError(f"--out {path}: {exc.strerror}", errno=exc.errno) from None

    def attach(self, runner: Runner) -> None:
        """Begins to record."""
        runner.kernel.machine.hash.sink = self._on_event
        runner.on_record.append(self._on_record)

    def _on_event(self, now_ns: int, kind: str, instance: int, data: bytes) -> None:
        if self._written >= EVENTS_MAX:
            self._unwritten += 1
            return
        self._written += 1
        event = {
            "t_ns": now_ns, "kind": kind, "instance": instance, "bytes": len(data),
            "data": base64.b64encode(data[:DATA_SHOWN_BYTES]).decode(),
        }  # fmt: skip
        self._events.write(msgspec.json.encode(event) + b"\n")

    def _on_record(self, record: Record) -> None:
        self._kmsg.write(format_dmesg(record) + "\n")

    def finish(self, result: Result) -> None:
        """Writes manifest and summary."""
        if self._unwritten:
            self._events.write(msgspec.json.encode({"kind": "truncated", "events": self._unwritten}) + b"\n")
        self._write("manifest.json", self._manifest(result))
        self._write("summary.json", result.to_dict())

    def _manifest(self, result: Result) -> dict[str, Any]:
        scenario = {
            name: msgspec.to_builtins(getattr(self._scenario, name))
            for name in self._scenario.__struct_fields__
            if name != "drive"
        }
        return {
            "versions": versions(), "seed": result.seed, "clock": self._scenario.clock, "costs_ns": result.costs_ns,
            "event_hash": result.event_hash, "scenario": scenario, "scenario_text": self._text,
        }  # fmt: skip

    def _write(self, name: str, value: object) -> None:
        encoded = msgspec.json.encode(value, enc_hook=str)
        (self.path / name).write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._events.close()
        self._kmsg.close()


def versions() -> dict[str, str]:
    """Of everything that a run's numbers may depend on."""
    import uxk

    found = {"uxk": uxk.__version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in ("trio", "msgspec", "numpy", "river", "numba"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def read_costs(path: str | Path) -> dict[str, int]:
    """Costs of turns by module: a manifest.json of an earlier run, or JSON of the form ``{"null": 1500}``."""
    try:
        with Path(path).open("rb") as file:
            data: Any = msgspec.json.decode(file.read(COSTS_FILE_MAX_BYTES))
        if isinstance(data, dict) and "costs_ns" in data:
            data = data["costs_ns"]
        costs = msgspec.convert(data, dict[str, int])
    except OSError as exc:
        raise ConfigError(f"--costs {path}: {exc.strerror}", errno=exc.errno) from None
    except msgspec.MsgspecError as exc:
        raise ConfigError(f"--costs {path}: {exc}") from None
    for name, cost_ns in costs.items():
        if not 0 <= cost_ns <= I64_MAX:
            raise ConfigError(f"--costs {path}: {name} = {cost_ns}, expected 0 or more")
    return costs
