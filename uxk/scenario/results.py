"""What a run leaves behind: figures as a tree of plain data, verdicts, and the exit code."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from uxk.core.kmsg import LEVELS
from uxk.core.params import parse_integer
from uxk.core.suggest import did_you_mean
from uxk.errors import ConfigError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.kernel import Kernel
from uxk.scenario.model import Check, Scenario

EXIT_GOOD: Final = 0
EXIT_CHECK_FAILED: Final = 1
EXIT_INVARIANT_BROKEN: Final = 3
"""Not 2, which is the command line's own for wrong usage."""

_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_OPEN_ENDED: Final = frozenset({"attributes", "rejects", "errors", "drive", "subsystems"})
"""Tables whose keys come to be during the run: a path through them cannot be checked before it."""


class Verdict(NamedTuple):
    """One check or invariant: what it demands, whether that holds, and what was seen."""

    what: str
    good: bool
    seen: str = ""
    checked: bool = True
    """False for an invariant that nothing in this run put to the test; it is good all the same."""


class Result(NamedTuple):
    """A finished run."""

    scenario: Scenario
    seed: int
    values: dict[str, Any]
    """modules, workloads, faults, subsystems, drive, kernel: figures at the end, before anything was unloaded."""
    checks: list[Verdict]
    invariants: list[Verdict]
    event_hash: str
    events: int
    virtual_ns: int
    host_ns: int
    costs_ns: dict[str, int]
    notes: tuple[str, ...] = ()
    """Lines on modules that were not live at the end, and on workloads with errors or that stopped early."""
    unfinished: tuple[str, ...] = ()
    """Workloads that stopped before their ``count``, their device being gone, where no check names ``issued``,
    ``refused`` or ``failed`` of theirs."""

    @property
    def exit_code(self) -> int:
        """0 good; 1 a check failed, or a workload with a ``count`` stopped early because its device was gone and no
        check names its ``issued``, ``refused`` or ``failed``; 3 an invariant broken."""
        if not all(verdict.good for verdict in self.invariants):
            return EXIT_INVARIANT_BROKEN
        good = all(verdict.good for verdict in self.checks) and not self.unfinished
        return EXIT_GOOD if good else EXIT_CHECK_FAILED

    @property
    def ok(self) -> bool:
        """Whether every check and every invariant held."""
        return self.exit_code == EXIT_GOOD

    def __getitem__(self, path: Any) -> Any:
        """A figure by its path: ``result["modules.null.completed"]``.  ConfigError if there is none."""
        return look_up(self.values, path) if isinstance(path, str) else tuple(self)[path]

    def report(self) -> str:
        """The run in words and tables; only the line that begins with ``host time`` differs between repeats."""
        from uxk.scenario.report import report

        return report(self)

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain data; only ``host`` differs between repeats."""
        return {
            "scenario": self.scenario.name, "seed": self.seed, "clock": self.scenario.clock,
            "exit_code": self.exit_code, "event_hash": self.event_hash, "events": self.events,
            "virtual_ns": self.virtual_ns, "results": self.values,
            "checks": [verdict._asdict() for verdict in self.checks],
            "invariants": [verdict._asdict() for verdict in self.invariants],
            "notes": list(self.notes), "unfinished": list(self.unfinished), "costs_ns": self.costs_ns,
            "host": {"host_ns": self.host_ns, "events_per_s": events_per_s(self)},
        }  # fmt: skip


def events_per_s(result: Result) -> int:
    """Events of the event hash per second of host time."""
    return result.events * 1_000_000_000 // max(1, result.host_ns)


def module_figures(agent: KernelAgent) -> dict[str, Any]:
    """Figures for ``modules.NAME``: the account, latency quantiles, state and published attributes."""
    figures: dict[str, Any] = agent.account.to_dict()
    figures.pop("cpu_ns", None)  # measured on the host: not the same twice
    latency = agent.account.latency.summary()
    return {
        **figures, "p50_ns": latency.p50_ns, "p99_ns": latency.p99_ns, "p999_ns": latency.p999_ns,
        "state": agent.state.name, "incarnation": agent.incarnation,
        "attributes": {name: _number(text) for name, text in sorted(agent.attributes.items())},
    }  # fmt: skip


def kernel_figures(kernel: Kernel) -> dict[str, Any]:
    """Figures for ``kernel``."""
    waits = kernel.machine.waits.statistics()
    return {
        "now_ns": kernel.machine.now_ns, "events": kernel.machine.hash.count, "outstanding": kernel.machine.outstanding,
        "cycles": waits.cycles, "blocking_decisions": waits.blocking_decisions,
        "kmsg": dict(zip(LEVELS, kernel.kmsg.statistics().by_level, strict=True)),
    }  # fmt: skip


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# --- checks ------------------------------------------------------------------------------------------------


def look_up(values: Mapping[str, Any], path: str) -> Any:
    """The figure at a dotted path.  ConfigError, with the nearest name, if there is none."""
    node: Any = values
    walked: list[str] = []
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            known = list(node) if isinstance(node, Mapping) else []
            where = ".".join(walked) or "results"
            raise ConfigError(f"{path}: {where} has no {key!r}{did_you_mean(key, known)}")
        node = node[key]
        walked.append(key)
    return node


def check_path(values: Mapping[str, Any], check: Check, number: int) -> None:
    """Raises :class:`ConfigError`, before the run, for a check on something that no run will give."""
    sides: list[Any] = []
    for path in (check.value, _path_of(check.than)):
        if not path or not _OPEN_ENDED.isdisjoint(path.split(".")):
            continue
        try:
            found = look_up(values, path)
        except ConfigError as exc:
            raise ConfigError(f"checks[{number}]: {exc}") from None
        if isinstance(found, Mapping):
            raise ConfigError(f"checks[{number}]: {path} is a table: {', '.join(found)}")
        sides.append(found)
    try:
        than = _than(check)
    except ConfigError as exc:
        raise ConfigError(f"checks[{number}].{exc}") from None
    if not _path_of(check.than):
        sides.append(than)
    if len(sides) == 2 and isinstance(sides[0], str) != isinstance(sides[1], str):
        kinds = ["text" if isinstance(side, str) else "a number" for side in sides]
        raise ConfigError(f"checks[{number}]: {check}: {check.value} is {kinds[0]}, but it is compared with {kinds[1]}")


def _than(check: Check) -> int | float | bool | str:
    """``than`` with its unit resolved if ``value`` has one: ``"10ms"`` for a path that ends in ``_ns``."""
    than = check.than
    unit = next((unit for unit in ("ns", "bytes") if check.value.endswith(f"_{unit}")), "")
    if not unit or not isinstance(than, str) or _path_of(than):
        return than
    try:
        return parse_integer(than, unit)
    except ValueError as exc:
        raise ConfigError(f"than = {than[:60]!r}: {exc}, expected a number of {unit}") from None


def expects_failure(checks: Iterable[Check], workload: str) -> bool:
    """Whether a check names ``issued``, ``refused`` or ``failed`` of a workload: it judges an early stop itself."""
    paths = {f"workloads.{workload}.{figure}" for figure in ("issued", "refused", "failed")}
    return any(check.value in paths or _path_of(check.than) in paths for check in checks)


def _path_of(than: object) -> str:
    return than[1:] if isinstance(than, str) and than.startswith("$") else ""


def judge(values: Mapping[str, Any], check: Check) -> Verdict:
    """Whether a check holds."""
    try:
        seen = look_up(values, check.value)
        than = look_up(values, path) if (path := _path_of(check.than)) else _than(check)
    except ConfigError as exc:
        return Verdict(str(check), False, str(exc))
    try:
        good = bool(_OPERATORS[check.op](seen, than))
    except TypeError:
        return Verdict(str(check), False, f"{seen!r} and {than!r} cannot be compared")
    return Verdict(str(check), good, str(seen))
