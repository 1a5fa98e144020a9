"""A study: the same writes under several policies, as data; TOML with ``study = "lfs-gc"`` at its top."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from uxk.bridges.datalog.settings import DataLogSettings
from uxk.errors import ConfigError
from uxk.scenario.find import bundled
from uxk.scenario.lfs.params import LfsScenario
from uxk.scenario.model import Count, Name
from uxk.scenario.read import convert, read_text, with_options
from uxk.subsystems.lfs.params import LfsParams
from uxk.uapi.manifest import param

POLICIES_MAX: Final = 256
SEEDS_MAX: Final = 1_000
WORKLOAD_KEYS: Final = ("trace", "format", "device", "page_bytes", "pages", "writes")
"""What options may also call ``lfs.KEY``."""
_NS_MAX: Final = 1_000_000_000


class StudyParams(LfsParams):
    """A volume, and how runs without a kernel are done."""

    engine: Literal["batch", "reference", "timed"] = "batch"
    """``timed`` cleans in the background and by watermarks: its write amplification is not that of the frozen rule."""
    read_ns: Annotated[int, param(ge=0, le=_NS_MAX, unit="ns", help="time of reading a block that is moved")] = 1_000
    program_ns: Annotated[int, param(ge=0, le=_NS_MAX, unit="ns", help="time of writing a block")] = 2_000


class WorkloadSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is written: a workload by name, or a trace."""

    name: str = ""
    """A synthetic workload or a bundled trace."""
    trace: str = ""
    format: str = ""
    """Of the trace; empty: what it looks like."""
    device: str = ""
    page_bytes: Annotated[int, Meta(ge=512, le=1 << 20, extra={"unit": "bytes"})] = 4096
    pages: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    writes: Annotated[int, Meta(ge=0, le=1 << 40)] = 0


class Study(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to compare on what."""

    study: Literal["lfs-gc"] = "lfs-gc"
    name: Name = "lfs-gc"
    description: str = ""
    seed: Count = 0
    seeds: Annotated[int, Meta(ge=1, le=SEEDS_MAX)] = 1
    clock: Literal["virtual", "charged"] = "virtual"
    """Of the kernel that an agent runs on: whether its thinking takes time."""
    policies: tuple[str, ...] = ("default",)
    lfs: StudyParams = StudyParams()
    workload: WorkloadSpec = WorkloadSpec()
    datalog: DataLogSettings | None = None
    """Keeps what volumes publish for agents: each run in a folder ``AGENT-seed-SEED`` of its directory."""

    def validate(self) -> Study:
        """Itself, or :class:`ConfigError` for what no single field can know to be wrong."""
        if not self.policies:
            raise ConfigError("policies: none: expected at least one")
        if len(self.policies) > POLICIES_MAX:
            raise ConfigError(f"policies: {len(self.policies)}, at most {POLICIES_MAX}")
        if self.workload.name and self.workload.trace:
            raise ConfigError(f"workload: both name={self.workload.name!r} and trace={self.workload.trace!r}")
        return self

    @property
    def volume(self) -> LfsScenario:
        """As the subsystem on a kernel takes it."""
        values: dict[str, Any] = {name: getattr(self.lfs, name) for name in LfsParams.__struct_fields__}
        workload = {name: getattr(self.workload, name) for name in WORKLOAD_KEYS}
        return LfsScenario(**values, **workload, workload=self.workload.name)

    @property
    def all_seeds(self) -> range:
        """Every seed of it."""
        return range(self.seed, self.seed + self.seeds)


def open_study(source: str | Path) -> tuple[Study, str] | None:
    """The study that a TOML file or the name of a bundled one stands for, and its text; None if it is no study.

    Raises :class:`ConfigError` for a study with something wrong in it.
    """
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        if path.suffix == ".py":
            return None
        text, where = read_text(path), str(path)
    else:
        text, where = bundled().get(str(source).replace("_", "-"), ""), f"{source}.toml"
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return None  # for a scenario's reader to complain about
    return (parse_study(table, where), text) if "study" in table else None


def parse_study(table: Mapping[str, Any], where: str) -> Study:
    """A study from plain data; ``where`` names it in complaints."""
    try:
        return convert({"name": Path(where).stem, **table}, Study).validate()
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}", errno=exc.errno) from None


def _whole(name: str) -> str:
    """``lfs.NAME`` or ``workload.NAME`` of a key, or ``""``."""
    parts = {"lfs": StudyParams.__struct_fields__, "workload": WorkloadSpec.__struct_fields__}
    return next((f"{part}.{name}" for part, names in parts.items() if name in names), "")


def with_study_options(study: Study, options: Mapping[str, str]) -> Study:
    """The study with values replaced: ``{"lfs.segment_blocks": "512", "workload.writes": "100000"}``.

    What belongs to the workload may also be called ``lfs.writes`` and so on.  Raises :class:`ConfigError`.
    """
    renamed = {}
    for key, text in options.items():
        head, _, rest = key.partition(".")
        if not rest and head not in Study.__struct_fields__ and (whole := _whole(head)):
            raise ConfigError(f"-o {key}: unknown key {key!r} (did you mean {whole!r}?)")
        renamed[f"workload.{rest}" if head == "lfs" and rest in WORKLOAD_KEYS else key] = text
    try:
        return with_options(study, renamed)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"-o: {exc}") from None
