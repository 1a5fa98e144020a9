"""Recompilation: an agent recommends another build of a running module, the kernel swaps it in on probation (R30).

Who may build what is the administrator's to say: a builder, called with constants that have types and ranges, returns a
class or the path of a file, made outside the kernel.  What comes of it is checked as every upgrade is, and has to stand
up to a KPI: a build that makes it worse is rolled back, by the same transaction.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from uxk.core.kobject import brief
from uxk.core.manifest import canonical
from uxk.core.params import parse_params
from uxk.core.suggest import did_you_mean
from uxk.errors import CapabilityError, ModuleError, UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.builds import PROBATION_NS, QUIESCE_NS, WORSE_PPM, Kpi, trial_of
from uxk.kernel.catalog import ExtensionClass
from uxk.kernel.machine import Machine
from uxk.kernel.upgrade import Upgrades
from uxk.limits import NS_PER_S, SHOW_MAX_BYTES
from uxk.uapi import entries as e
from uxk.uapi.manifest import Params
from uxk.uapi.rights import Rights

Builder: TypeAlias = Callable[[Any], "ExtensionClass | Path"]
"""Called with an instance of the constants' class; must not take long: what does is built beforehand."""
INTERVAL_NS: Final = NS_PER_S
_MADE_MAX: Final = 16


class Offer(NamedTuple):
    """Builds of one module."""

    build: Builder
    constants: type[Params]
    trial: dict[str, Any]
    interval_ns: int


class Builds:
    """Serves RecommendBuild; ``kernel.builds`` is the one of a kernel."""

    def __init__(self, machine: Machine, agents: dict[str, KernelAgent], upgrades: Upgrades) -> None:
        self._machine = machine
        self._agents = agents
        self._upgrades = upgrades
        self._offers: dict[str, Offer] = {}
        self._last_ns: dict[str, int] = {}
        self._made: dict[str, list[ExtensionClass]] = {}
        """The newest that were built, by instance: upgrades find them by their version."""
        upgrades.finder.offered = self.made

    def offer(
        self, module: str, build: Builder, constants: type[Params], *, kpi: Kpi | str = "latency",
        worse_ppm: int = WORSE_PPM, probation_ns: int = PROBATION_NS, quiesce_ns: int = QUIESCE_NS,
        interval_ns: int = INTERVAL_NS,
    ) -> None:  # fmt: skip
        """Lets agents with the capability ``module:NAME:submit`` recommend builds of a loaded instance.

        ``constants`` are checked as parameters are; ``interval_ns`` lies between the beginnings of two upgrades.
        UsageError: ENOENT for an instance that is not loaded, EINVAL.
        """
        name = canonical(module)
        agent = self._agents.get(name)
        if agent is None:
            raise UsageError(f"builds of {module!r}: not loaded{did_you_mean(name, self._agents)}", errno=errno.ENOENT)
        trial = {"kpi": kpi, "worse_ppm": worse_ppm, "probation_ns": probation_ns, "quiesce_ns": quiesce_ns}
        trial_of(trial, agent.account)
        self._offers[name] = Offer(build, constants, trial, interval_ns)

    def withdraw(self, module: str) -> None:
        """No more builds of it."""
        self._offers.pop(canonical(module), None)
        self._made.pop(canonical(module), None)

    def made(self, module: str) -> list[ExtensionClass]:
        """Builds of an instance that recommendations have led to, :data:`_MADE_MAX` at most, and that with the
        constants' defaults if there are any."""
        offer, made = self._offers.get(module), list(self._made.get(module, ()))
        if offer is not None:
            with contextlib.suppress(Exception):  # a constant without a default, or a builder that cannot
                built = offer.build(offer.constants())
                made += [] if isinstance(built, Path) else [built]
        return made

    def services(self) -> dict[type, Callable[[KernelAgent, Any], tuple[int, bytes] | None]]:
        """For the dispatch table."""
        return {e.RecommendBuild: self._recommend}

    def _recommend(self, agent: KernelAgent, entry: e.RecommendBuild) -> None:
        name, now_ns = canonical(entry.module), self._machine.now_ns
        if self._machine.caps.find(agent.id, "module", name, Rights.SUBMIT) is None:
            raise CapabilityError(f"build of {name}: {agent.name}'s manifest does not ask for module:{name}:submit")
        offer, target = self._offers.get(name), self._agents.get(name)
        if offer is None or target is None:
            raise UsageError(f"build of {name}: none are offered{did_you_mean(name, self._offers)}", errno=errno.ENODEV)
        begun_ns = self._last_ns.get(name)
        if begun_ns is not None and now_ns < begun_ns + offer.interval_ns:
            raise UsageError(
                f"build of {name}: one was tried at {begun_ns} ns, the next may be {offer.interval_ns} ns after that",
                errno=errno.EAGAIN,
            )
        constants = parse_params(f"build of {name}", offer.constants, entry.constants)
        text = " ".join(f"{key}={value}" for key, value in sorted(entry.constants.items()))
        cls = self._built(name, offer, constants)
        on_end = partial(self._ended, agent, agent.incarnation, entry.cid)
        self._last_ns[name] = now_ns
        why = brief(entry.why) or "no reason given"
        self._machine.log("notice", name, f"build with {brief(text) or 'no constants'} by {agent.name}: {why}")
        self._upgrades.begin(target, cls, {}, on_end, **offer.trial)  # it takes kernel time: not over when it returns
        agent.defer(entry.cid)

    def _built(self, name: str, offer: Offer, constants: Params) -> ExtensionClass:
        """What the builder makes of it.  ModuleError for whatever goes wrong there: it is somebody else's code."""
        try:
            made = offer.build(constants)
        except Exception as exc:
            raise ModuleError(f"build of {name}: {type(exc).__name__}: {exc}") from exc
        cls = self._upgrades.finder.load(made, name) if isinstance(made, Path) else made
        if isinstance(cls, type):
            known = self._made.setdefault(name, [])
            known[:] = [*(each for each in known if each is not cls), cls][-_MADE_MAX:]
        return cls

    def _ended(self, agent: KernelAgent, incarnation: int, cid: int, problem: str) -> None:
        if agent.incarnation == incarnation:
            agent.answer(cid, errno.ECANCELED if problem else 0, payload=problem.encode()[:SHOW_MAX_BYTES])
