"""What a scenario is: data, the same in TOML and in Python.

Fields named ``_ns`` and ``_bytes`` are integers here; a file or an option may write ``"10ms"`` and ``"64KiB"``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from uxk.bridges.datalog.settings import DataLogSettings
from uxk.bridges.logs.settings import LogTo
from uxk.core.cost import CostModel
from uxk.core.manifest import canonical
from uxk.core.supervision import SUPERVISORS_MAX
from uxk.errors import ConfigError
from uxk.faults.model import FAULTS_MAX, Fault, ModuleName, Ns
from uxk.kernel.kernel import Kernel
from uxk.limits import I64_MAX, NAME_MAX_BYTES, NS_PER_S, PATH_MAX_BYTES, PPM, QUEUE_DEPTH_MAX
from uxk.scenario.exploring import Exploration
from uxk.uapi.manifest import Placement
from uxk.uapi.supervisor import SupervisorSpec

TRANSFER_MAX_BYTES: Final = 128 << 10
"""Largest request of a workload: half of what an entry may carry, so that data and answer always fit."""
PARTS_MAX: Final = 1024
"""Modules, workloads or checks of one scenario."""
BLOCKS_MAX: Final = 1 << 20
"""Blocks that a zipf or verifying workload may choose from; it keeps a table of them."""

Size: TypeAlias = Annotated[int, Meta(ge=1, le=TRANSFER_MAX_BYTES, extra={"unit": "bytes"})]
Span: TypeAlias = Annotated[int, Meta(ge=1, le=I64_MAX, extra={"unit": "bytes"})]
Ppm: TypeAlias = Annotated[int, Meta(ge=0, le=PPM)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=I64_MAX)]
Depth: TypeAlias = Annotated[int, Meta(ge=1, le=QUEUE_DEPTH_MAX)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=NAME_MAX_BYTES, pattern=r"^[A-Za-z0-9_-]+$")]
FilePath: TypeAlias = Annotated[str, Meta(max_length=PATH_MAX_BYTES)]


class Load(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A module to load: by name, as modprobe, or from a ``file``, as insmod."""

    name: Annotated[str, Meta(max_length=NAME_MAX_BYTES)] = ""
    file: FilePath = ""
    """Relative to the scenario's file."""
    instance: Annotated[str, Meta(max_length=NAME_MAX_BYTES)] = ""
    placement: Placement | None = None
    """Where it runs, if not where its manifest says."""
    params: dict[str, Any] = {}

    @property
    def loaded_as(self) -> str:
        """The instance's name; ``""`` if only the file knows it."""
        return canonical(self.instance or self.name)


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="loop"):
    """Requests to one device: blocks of ``size_bytes`` within ``span_bytes``, chosen at random or in order.

    Every choice comes from the run's stream ``workload/NAME``.  ``count`` and ``duration_ns`` end it, whichever
    comes first; 0 means no limit.
    """

    device: ModuleName
    name: Name = "load"
    count: Count = 0
    duration_ns: Ns = 0
    start_ns: Ns = 0
    size_bytes: Size = 4096
    span_bytes: Span = 1 << 20
    read_ppm: Ppm = 500_000
    """Share of reads; the rest are writes."""
    offset: Literal["sequential", "uniform", "zipf"] = "uniform"
    zipf_ppm: Annotated[int, Meta(ge=1, le=10 * PPM)] = 1_200_000
    """Exponent of the zipf distribution in millionths; the popular blocks are scattered over the span."""
    verify: bool = False
    """Write a pattern that tells block and version, and compare what is read; ``count`` is then followed by
    reading everything back."""

    @property
    def blocks(self) -> int:
        """Blocks in the span."""
        return self.span_bytes // self.size_bytes


class ClosedLoop(Workload, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="closed"):
    """``depth`` requests at a time: the next is sent ``think_ns`` after an answer (fio: iodepth)."""

    depth: Depth = 1
    think_ns: Ns = 0


class OpenLoop(Workload, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="open"):
    """Requests come at ``rate_per_s`` whether or not answers do; what finds no room is counted as refused."""

    rate_per_s: Annotated[int, Meta(ge=1, le=NS_PER_S)]
    arrival: Literal["poisson", "uniform", "periodic"] = "poisson"
    """Times between arrivals: exponential, uniform between 0 and twice the mean, or all equal."""


AnyWorkload: TypeAlias = ClosedLoop | OpenLoop


class BlockQueues(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The block layer between workloads and disks: attached if a scenario has a table ``[blk]``."""

    cpus: Annotated[int, Meta(ge=1, le=1024)] = 4
    """Emulated CPUs, over which clients are spread."""
    devices: dict[str, dict[str, Any]] = {}
    """By device: attributes under ``queue/`` with their values, those of the scheduler in a table ``iosched``."""


Operator: TypeAlias = Literal["==", "!=", "<", "<=", ">", ">="]


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``value op than`` on the results; ``value`` is a path such as ``modules.null.completed``.

    A text with a unit is converted if ``value`` ends in ``_ns`` or ``_bytes``: ``"10ms"``, ``"64KiB"``.
    A ``than`` that begins with ``$`` is a path, too: ``"$workloads.load.issued"``.
    """

    value: Annotated[str, Meta(min_length=1, max_length=PATH_MAX_BYTES)]
    op: Operator
    than: int | float | bool | str

    def __str__(self) -> str:
        return f"{self.value} {self.op} {self.than}"


DEFAULT_INVARIANTS: Final = (
    "no-lost-request", "no-duplicate-request", "accounts-balance", "no-kernel-bug", "non-blocking", "data-intact",
    "progress",
)  # fmt: skip


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run.  Times count from the moment when all modules are loaded."""

    name: Name
    description: str = ""
    seed: Count = 0
    clock: Literal["virtual", "charged"] = "virtual"
    cost: CostModel = CostModel()
    costs_ns: dict[str, Annotated[int, Meta(ge=0, le=I64_MAX)]] = {}
    """Cost of a turn by module on the charged clock, as an earlier run measured it."""
    until: Annotated[int, Meta(ge=1, le=I64_MAX, extra={"unit": "ns"})] | Literal["idle"] = "idle"
    """When to end: a time in nanoseconds, or when nothing is left to do."""
    modules: tuple[Load, ...] = ()
    subsystems: dict[str, dict[str, Any]] = {}
    blk: BlockQueues | None = None
    """Request queues for devices of class ``block``: docs/block-layer.md."""
    supervisors: tuple[SupervisorSpec, ...] = ()
    """Who looks after whom, once all modules are loaded."""
    workloads: tuple[AnyWorkload, ...] = ()
    faults: tuple[Fault, ...] = ()
    checks: tuple[Check, ...] = ()
    invariants: tuple[str, ...] = DEFAULT_INVARIANTS
    invariant_interval_ns: Annotated[int, Meta(ge=1000, le=I64_MAX, extra={"unit": "ns"})] = 1_000_000
    schedule: Literal["fifo", "random"] = "fifo"
    """Which instance runs next: the one that has been runnable for longest, or any (stream ``schedule``)."""
    log: LogTo | None = None
    """A file for the run's log: docs/observing.md."""
    datalog: DataLogSettings | None = None
    """A directory for the datasets that models publish: docs/datasets.md."""
    explore: Exploration | None = None
    """Which faults `uxk explore` may draw: docs/explore.md."""
    drive: Callable[[Kernel], Awaitable[object]] | None = None
    """A coroutine function that runs beside the workloads; Python only.  A dict that it returns is ``drive``
    among the results."""

    def validate(self) -> Scenario:
        """Itself, or :class:`ConfigError`: for values of the wrong type, which Python does not refuse, and for what
        no single field can know to be wrong."""
        self._check_types()
        for what, parts, most in (
            ("modules", self.modules, PARTS_MAX), ("workloads", self.workloads, PARTS_MAX),
            ("checks", self.checks, PARTS_MAX), ("faults", self.faults, FAULTS_MAX),
            ("supervisors", self.supervisors, SUPERVISORS_MAX),
        ):  # fmt: skip
            if len(parts) > most:
                raise ConfigError(f"{what}: {len(parts)}, at most {most}")
        for number, load in enumerate(self.modules):
            if bool(load.name) == bool(load.file):
                raise ConfigError(f"modules[{number}]: needs a name or a file, and not both")
        _unique("modules", [load.loaded_as for load in self.modules if load.loaded_as])
        _unique("supervisors", [spec.name for spec in self.supervisors])
        _unique("workloads", [workload.name for workload in self.workloads])
        _unique("faults", [fault.name for fault in self.faults if fault.name])
        for number, workload in enumerate(self.workloads):
            if wrong := self._wrong(workload):
                raise ConfigError(f"workloads[{number}]: {wrong}")
        return self

    def _check_types(self) -> None:
        for field in msgspec.structs.fields(Scenario):
            value = getattr(self, field.name)
            if field.name == "drive":
                continue
            if field.name == "modules":  # parameters may be anything: the module's own types judge them
                value = [msgspec.structs.replace(load, params={}) for load in value]
            try:
                msgspec.convert(msgspec.to_builtins(value), field.type)
            except (msgspec.ValidationError, TypeError, OverflowError) as exc:
                raise ConfigError(f"{field.name}: {exc}") from None

    def _wrong(self, workload: AnyWorkload) -> str:
        if workload.blocks < 1:
            return f"span_bytes={workload.span_bytes} is less than size_bytes={workload.size_bytes}"
        if (workload.verify or workload.offset == "zipf") and workload.blocks > BLOCKS_MAX:
            return f"{workload.blocks} blocks are too many to verify or for zipf, at most {BLOCKS_MAX}"
        if workload.verify and workload.size_bytes < 16:
            return f"size_bytes={workload.size_bytes}: verify needs 16 or more"
        if workload.verify and isinstance(workload, ClosedLoop) and workload.depth > workload.blocks:
            return f"depth={workload.depth} with only {workload.blocks} blocks: verify wants one request per block"
        if self.until == "idle" and not (workload.count or workload.duration_ns):
            return "without count or duration_ns it never ends, and the scenario runs until idle"
        return ""


def _unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{what}: {name!r} is there {names.count(name)} times")
