"""Builds of a module: what one upgrade may replace by what, what is carried over, and what it has to stand up to."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from uxk.core.account import Account
from uxk.core.budget import memory_bytes
from uxk.core.events import nanoseconds
from uxk.core.manifest import canonical
from uxk.core.suggest import did_you_mean
from uxk.errors import BudgetError, UpgradeError, UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.catalog import ExtensionClass
from uxk.limits import NS_PER_S
from uxk.module import Extension
from uxk.uapi.manifest import Manifest, Params

QUIESCE_NS: Final = NS_PER_S
PROBATION_NS: Final = 10_000_000
WORSE_PPM: Final = 100_000
Kpi: TypeAlias = Callable[[], int | None]
"""An integer where lower is better, over the time since the last call; None: nothing was measured."""
_SAME: Final = ("kind", "driver_class", "passthrough")
"""What clients rely on: fields of the manifest that must not change."""


class Trial(NamedTuple):
    """What an upgrade has to stand up to."""

    quiesce_ns: int = QUIESCE_NS
    """Limit for what is in flight."""
    probation_ns: int = PROBATION_NS
    kpi: Kpi | None = None
    """An integer where lower is better, over the time since it was last called; None: nothing was measured.  It is
    called over ``probation_ns`` of the old build, too."""
    worse_ppm: int = WORSE_PPM
    """By how much the KPI may be worse."""


class Build(NamedTuple):
    """A class and the parameters to run it with."""

    cls: ExtensionClass
    params: Params
    deps: tuple[str, ...]

    @property
    def version(self) -> str:
        """Of the module."""
        return self.cls.manifest.version


def mean_latency(account: Account) -> Kpi:
    """A KPI: the mean latency of an instance's requests, in nanoseconds, since it was last asked for."""
    count, total_ns = account.latency.count, account.latency.total

    def read() -> int | None:
        nonlocal count, total_ns
        before, before_ns = count, total_ns
        count, total_ns = account.latency.count, account.latency.total
        return (total_ns - before_ns) // (count - before) if count > before else None

    return read


KPIS: Final[Mapping[str, Callable[[Account], Kpi]]] = {"latency": mean_latency}
"""By the names that upgrades know them by."""


def trial_of(given: Mapping[str, Any], account: Account) -> Trial:
    """Settings of an upgrade, checked.  UsageError naming what is wrong."""
    if isinstance(kpi := given.get("kpi"), str):
        if kpi not in KPIS:
            raise UsageError(f"upgrade: kpi={kpi!r}{did_you_mean(kpi, KPIS)}; known: {', '.join(KPIS)}; or a function")
        given = {**given, "kpi": KPIS[kpi](account)}
    trial = Trial(**given)
    for name in ("quiesce_ns", "probation_ns", "worse_ppm"):
        value = nanoseconds(name, getattr(trial, name))
        if value < (1 if name == "quiesce_ns" else 0):
            raise UsageError(f"upgrade: {name}={value}, expected at least {int(name == 'quiesce_ns')}")
    return trial


def check_same(agent: KernelAgent, manifest: Manifest) -> None:
    """What clients, rings and the tree rely on."""
    old, problems = agent.manifest, []
    if canonical(manifest.name) != canonical(old.name):
        problems.append(f"module {manifest.name}, expected {old.name}")
    problems += [
        f"{field} {getattr(manifest, field)!r}, expected {getattr(old, field)!r}"
        for field in _SAME if getattr(manifest, field) != getattr(old, field)
    ]  # fmt: skip
    if manifest.budget.queue_depth != old.budget.queue_depth:
        problems.append(f"queue_depth {manifest.budget.queue_depth}, expected {old.budget.queue_depth}: the rings stay")
    if problems:
        raise UpgradeError(f"{agent.name}: {'; '.join(problems)}", errno=errno.EINVAL)


def check_state(agent: KernelAgent, cls: ExtensionClass) -> None:
    """Whether the state can be taken over, as far as that can be told from the classes."""
    old = agent.extension_class
    if old.checkpoint is Extension.checkpoint:
        return
    theirs, ours = old.manifest.state_version, cls.manifest.state_version
    missing = [
        method for method, needed in (("restore", True), ("convert", theirs != ours))
        if needed and getattr(cls, method) is getattr(Extension, method)
    ]  # fmt: skip
    if missing:
        raise UpgradeError(
            f"{agent.name}: {cls.__name__} cannot take over state of version {theirs}: it has no {missing[0]}()",
            errno=errno.EINVAL,
        )


def carried(params: Params, cls: type[Params]) -> dict[str, object]:
    """Values that somebody has set, as far as the new build knows them."""
    defaults = type(params)()
    known = {field.name for field in msgspec.structs.fields(cls)}
    return {
        field.name: getattr(params, field.name) for field in msgspec.structs.fields(type(params))
        if field.name in known and getattr(params, field.name) != getattr(defaults, field.name)
    }  # fmt: skip


def is_exclusive(agent: KernelAgent, cls: ExtensionClass) -> bool:
    """Whether one of the builds has something outside the kernel that there can be only once."""
    return agent.manifest.exclusive or cls.manifest.exclusive


def room_for_both(agent: KernelAgent, build: Build, *, beside: bool, booked_bytes: int | None = None) -> int:
    """Arena memory that the two builds may hold together: kept memory is there once.

    BudgetError: EINVAL if the new one could not hold what is kept, ENOMEM if the arena has no room for both.
    """
    machine, wanted = agent.machine, memory_bytes(build.cls.manifest, build.params)
    kept = sum(agent.regions[offset] for offset in agent.kept_regions.values())
    if wanted < kept:
        raise BudgetError(f"{agent.name}: budget of {wanted} bytes, its kept memory has {kept}")
    both = agent.memory_bytes + wanted - kept if beside else max(agent.memory_bytes, wanted)
    booked = agent.memory_bytes if booked_bytes is None else booked_bytes
    left = machine.arena.size_bytes - machine.granted_bytes
    if both - booked > left:
        how = f"beside the old build's {agent.memory_bytes}, {kept} of them kept" if beside else "after the old build's"
        raise BudgetError(
            f"{agent.name}: budget of {wanted} bytes {how}: {left} of {machine.arena.size_bytes} are left to grant "
            "(the size of the arena is set at boot: --arena)", errno=errno.ENOMEM,
        )  # fmt: skip
    return both


def held_fate(manifest: Manifest) -> Any:
    """The fate of requests while a rollback is sure to come: nobody is turned away."""
    return "requeue" if manifest.fate == "fail" else manifest.fate
