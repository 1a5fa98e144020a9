"""Run folders of scenarios, read back: their figures as one flat table, and what differs between two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError

FILE_MAX_BYTES: Final = 1 << 28
DEPTH_MAX: Final = 32
"""Levels of tables in a summary."""
NOT_COMPARED: Final = ("host", "costs_ns")
"""Of a summary: measured on the host, not the same twice."""
_SUMMARY: Final = {"scenario": str, "seed": int, "event_hash": str, "results": dict}
_MANIFEST: Final = {"versions": dict, "seed": int, "scenario": dict}


class Saved(NamedTuple):
    """A scenario's folder."""

    path: Path
    manifest: dict[str, Any]
    summary: dict[str, Any]
    kmsg: list[str]

    @property
    def figures(self) -> dict[str, Any]:
        """The summary's values by dotted path, without those of the host."""
        kept = {name: value for name, value in self.summary.items() if name not in NOT_COMPARED}
        return dict(flat(kept))

    @property
    def settings(self) -> dict[str, Any]:
        """The scenario's values by dotted path."""
        return dict(flat(self.manifest["scenario"]))


class Difference(NamedTuple):
    """A value that two folders do not share; None where it is not there."""

    name: str
    first: Any
    second: Any

    @property
    def ratio(self) -> float | None:
        """Second over first, of numbers that have one."""
        numbers = [each for each in (self.first, self.second) if isinstance(each, int | float)]
        if len(numbers) < 2 or any(isinstance(each, bool) for each in numbers) or not self.first:
            return None
        return float(self.second / self.first)


def open_saved(path: str | Path) -> Saved:
    """Reads a scenario's folder.  ConfigError names the file that is missing or wrong, and what was expected."""
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: expected a run folder, as `uxk run --out` makes them")
    if not (path / "manifest.json").exists():
        inner = sorted(each.name for each in path.iterdir() if (each / "manifest.json").is_file())
        hint = f"; there are run folders in it: {', '.join(inner[:5])}" if inner else ""
        raise ConfigError(f"{path / 'manifest.json'}: not there: expected a run folder{hint}")
    manifest = _table(path / "manifest.json", _MANIFEST)
    summary = _table(path / "summary.json", _SUMMARY)
    try:
        kmsg = (path / "kmsg.log").read_bytes()[-FILE_MAX_BYTES:].decode("utf-8", "replace").splitlines()
    except OSError:
        kmsg = []
    return Saved(path, manifest, summary, kmsg)


def _table(path: Path, wanted: Mapping[str, type]) -> dict[str, Any]:
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ConfigError(f"{path}: larger than {FILE_MAX_BYTES} bytes")
        found = msgspec.json.decode(path.read_bytes())
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}", errno=exc.errno) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path}: no JSON: {exc}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected an object, not {type(found).__name__}")
    for name, kind in wanted.items():
        if name not in found:
            raise ConfigError(f"{path}: no {name!r}{did_you_mean(name, found)}: written by another version?")
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise ConfigError(f"{path}: {name} is {str(found[name])[:40]!r}, expected {kind.__name__}")
    return found


def flat(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(dotted path, plain value) of everything in nested tables and lists."""
    parts: Any = None
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    if parts is None or not value or depth >= DEPTH_MAX:
        yield path, value
        return
    for key, inner in parts:
        yield from flat(inner, f"{path}.{key}" if path else str(key), depth + 1)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """What is not the same in both, in the order of the first, then what only the second has."""
    names = [*first, *(name for name in second if name not in first)]
    return [
        Difference(name, first.get(name), second.get(name))
        for name in names
        if name not in first or name not in second or first[name] != second[name]
    ]
