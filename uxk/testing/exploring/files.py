"""Trials as TOML files: all that it takes to run one again."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from uxk.errors import ConfigError
from uxk.faults.model import Fault, problem
from uxk.scenario.exploring import PLAN_MAX
from uxk.scenario.model import Count
from uxk.scenario.read import convert, read_text
from uxk.testing.exploring.trial import Outcome, Trial


class SavedTrial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file written by ``uxk explore``."""

    scenario: str
    """As it was named on the command line."""
    seed: Count
    schedule: str = "random"
    options: dict[str, str] = {}
    faults: tuple[Fault, ...] = ()
    broken: tuple[str, ...] = ()
    """Invariants that broke."""
    normal_ns: Count = 0
    """Virtual time of a run without faults: how long a run may take depends on it."""
    event_hash: str = ""
    """Of the run: equal if the same happened again."""

    @property
    def trial(self) -> Trial:
        """What is to be run."""
        return Trial(self.seed, self.faults, "fifo" if self.schedule == "fifo" else "random", dict(self.options))


def write_trial(path: Path, scenario: str, trial: Trial, outcome: Outcome, *, normal_ns: int = 0) -> None:
    """Writes a trial and what came of it.  Raises OSError."""
    lines = [f"# uxk explore {' '.join(scenario.split())} --replay {path.name}"]
    lines += [f"# {name}: {' '.join(text.split())}" for name, text in outcome.broken.items()]
    lines += [
        f"scenario = {_toml(scenario)}", f"seed = {trial.seed}", f"schedule = {_toml(trial.schedule)}",
        f"normal_ns = {normal_ns}", f"broken = {_toml(list(outcome.broken))}",
        f"event_hash = {_toml(outcome.event_hash)}",
    ]  # fmt: skip
    if trial.options:
        lines += ["", "[options]", *(f"{_toml(key)} = {_toml(value)}" for key, value in trial.options.items())]
    for fault in trial.faults:
        lines += ["", "[[faults]]", *fault_lines(fault)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def fault_lines(fault: Fault) -> list[str]:
    """A fault as lines of TOML, without what is as by default."""
    fields = msgspec.structs.fields(Fault)
    told = [(field.name, getattr(fault, field.name), field.default) for field in fields]
    return [f"{name} = {_toml(value)}" for name, value, default in told if value != default]


def _toml(value: Any) -> str:
    """Texts, numbers and lists of texts are written in TOML as in JSON."""
    return json.dumps(value, ensure_ascii=True)


def read_trial(path: Path) -> SavedTrial:
    """Reads a trial.  ConfigError names file, place and what was expected."""
    try:
        table = tomllib.loads(read_text(path))
        saved = convert(table, SavedTrial)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path}: {exc}") from None
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc.args[0]}", errno=exc.errno) from None
    if saved.schedule not in ("fifo", "random"):
        raise ConfigError(f"{path}: schedule = {saved.schedule!r}: expected 'fifo' or 'random'")
    if len(saved.faults) > PLAN_MAX:
        raise ConfigError(f"{path}: {len(saved.faults)} faults, at most {PLAN_MAX}")
    for number, fault in enumerate(saved.faults):
        if wrong := problem(fault):
            raise ConfigError(f"{path}: faults[{number}]: {wrong}")
    return saved
