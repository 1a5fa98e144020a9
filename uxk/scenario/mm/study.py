"""The deadlock laboratory as data: cases, and ways to decide; TOML with ``study = "reclaim-deadlock"`` at its top."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from uxk.core.params import parse_params
from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError, ParamError
from uxk.faults.model import Fault
from uxk.limits import I64_MAX
from uxk.scenario.find import bundled
from uxk.scenario.mm.params import MmScenario
from uxk.scenario.model import DEFAULT_INVARIANTS, Count, Load, Name, Scenario
from uxk.scenario.read import convert, read_text, with_options

STUDY: Final = "reclaim-deadlock"
AGENT: Final = "advisor"
"""The instance that is asked, and that faults befall."""
PARTS_MAX: Final = 64
SEEDS_MAX: Final = 1_000
_FILES: Final = {"writeback": "writeback_advisor.py", "gc": "gc_advisor.py"}
_NO_LAW: Final = tuple(name for name in DEFAULT_INVARIANTS if name != "non-blocking")
"""For runs that break the law to show what comes of it."""


class Case(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A situation: who needs what while a decision is due."""

    name: Name
    title: str = ""
    params: dict[str, Any] = {}
    """What differs from the study's ``mm``."""
    ways: tuple[str, ...] = ()
    """Names of ways; none means all."""
    cycle: bool = True
    """Whether asking and waiting ends in a cycle here."""


class Way(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it is decided, and what becomes of the agent."""

    name: str
    params: dict[str, Any] = {}
    faults: tuple[Fault, ...] = ()


class LabStudy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every case in every way, on the same seeds."""

    study: Literal["reclaim-deadlock"] = STUDY
    name: Name = STUDY
    description: str = ""
    seed: Count = 0
    seeds: Annotated[int, Meta(ge=1, le=SEEDS_MAX)] = 1
    until: Annotated[int, Meta(ge=1, le=I64_MAX, extra={"unit": "ns"})] = 600_000_000
    mm: MmScenario = MmScenario()
    cases: tuple[Case, ...] = ()
    ways: tuple[Way, ...] = ()

    def validate(self) -> LabStudy:
        """Itself, or :class:`ConfigError` for what no single field can know to be wrong."""
        for what, parts in (("cases", self.cases), ("ways", self.ways)):
            names = [part.name for part in parts]
            if not 0 < len(parts) <= PARTS_MAX:
                raise ConfigError(f"{what}: {len(parts)}, expected 1 to {PARTS_MAX}")
            if double := next((name for name in names if names.count(name) > 1), ""):
                raise ConfigError(f"{what}: {double!r} is there {names.count(double)} times")
        known = [way.name for way in self.ways]
        for case in self.cases:
            if unknown := next((name for name in case.ways if name not in known), ""):
                raise ConfigError(f"cases.{case.name}.ways: no way {unknown!r}{did_you_mean(unknown, known)}")
            for way in self.ways_of(case):
                try:
                    self.params(case, way)
                except ParamError as exc:
                    raise ConfigError(f"cases.{case.name}, way {way.name!r}: {exc}") from None
        return self

    def ways_of(self, case: Case) -> list[Way]:
        """The ways of a case, in the study's order."""
        return [way for way in self.ways if not case.ways or way.name in case.ways]

    def params(self, case: Case, way: Way) -> MmScenario:
        """The settings of one run.  :class:`ParamError`."""
        base = {name: getattr(self.mm, name) for name in self.mm.__struct_fields__}
        return parse_params("mm", MmScenario, {**base, **case.params, **way.params, "agent": AGENT})

    def scenario(self, case: Case, way: Way) -> Scenario:
        """One run.  The agent is loaded whether it is asked or not."""
        params = self.params(case, way)
        values = {name: getattr(params, name) for name in params.__struct_fields__}
        file = str(Path(__file__).with_name(_FILES[params.ask]))
        return Scenario(
            name=case.name, until=self.until, modules=(Load(file=file, instance=AGENT),),
            subsystems={"mm": values}, faults=way.faults,
            invariants=_NO_LAW if params.policy == "sync-upcall" or not params.pool_pages else DEFAULT_INVARIANTS,
        )  # fmt: skip


def open_lab(source: str | Path) -> tuple[LabStudy, str] | None:
    """The study that a TOML file or the bundled name stands for, and its text; None if it is no such study.

    Raises :class:`ConfigError` for one with something wrong in it.
    """
    path = Path(source)
    if path.suffix == ".py":
        return None
    if path.suffix == ".toml" or path.is_file():
        text, where = read_text(path), str(path)
    else:
        text, where = bundled().get(str(source).replace("_", "-"), ""), f"{source}.toml"
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return None  # left to the reader of scenarios to complain about
    return (parse_lab(table, where), text) if table.get("study") == STUDY else None


def parse_lab(table: Mapping[str, Any], where: str) -> LabStudy:
    """A study from plain data; ``where`` names it in complaints."""
    try:
        return convert({"name": Path(where).stem, **table}, LabStudy).validate()
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}", errno=exc.errno) from None


def with_lab_options(study: LabStudy, options: Mapping[str, str]) -> LabStudy:
    """The study with values replaced: ``{"mm.pages": "8192", "until": "2s"}``.  :class:`ConfigError`."""
    return with_options(study, dict(options))
