"""Policies that agents inject: verify, shadow, swap, fall back; every step is one kmsg line and an event (R32, R33).

An agent brings bytecode; the verifier looks at it with the ranges of the site's schema.  Then it runs beside the site's
decisions, without effect, and the model in the agent is asked what it would have said.  If they agree often enough the
program is swapped in, in one step and with a new generation.  The built-in rule is back at once when the model
disagrees with it later, when it faults, when the site refuses it, in an emergency, and when the agent or its capability
is gone.  Weights that move fast are data: two areas in a map, and the generation says which one counts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from uxk.bpf.compiler.schema import Schema
from uxk.bpf.maps import ArrayMap
from uxk.core.caps import Capability, covers
from uxk.core.kobject import brief
from uxk.core.site import DecisionSite
from uxk.core.suggest import did_you_mean
from uxk.errors import UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.bpf import siteview
from uxk.kernel.bpf.loaded import Loaded, LoadedMap
from uxk.kernel.bpf.policy import PREFIX, PolicyPort
from uxk.kernel.bpf.registry import Bpf
from uxk.kernel.bpf.shadow import Comparison, InjectionConfig
from uxk.limits import SHOW_MAX_BYTES
from uxk.uapi import entries as e
from uxk.uapi.ml import Mode, ModeChange, PolicyChange, PolicyStep, ShadowRows, encode
from uxk.uapi.rights import Rights

if TYPE_CHECKING:
    from uxk.kernel.proxy import MLModelProxy

WEIGHTS_MAP: Final = 0
"""The number that bytecode knows its weights by."""


class Weights:
    """A map with one value: the generation, then two areas; the one that counts has the generation's lowest bit."""

    def __init__(self, bpf: Bpf, owner: KernelAgent, data: bytes) -> None:
        self.size_bytes = len(data)
        self.area_bytes = -(-len(data) // 8) * 8
        self._values = ArrayMap(8 + 2 * self.area_bytes, 1, "weights")
        self.loaded: LoadedMap = bpf.add_map(self._values, owner)
        self.generation = 0
        self._put(0, data)

    def _put(self, area: int, data: bytes) -> None:
        start = 8 + area * self.area_bytes
        self._values.data[start : start + len(data)] = data

    def update(self, data: bytes) -> int:
        """Fills the area that nobody reads, then makes it the one that counts; its generation.  EINVAL: the size."""
        if len(data) != self.size_bytes:
            raise UsageError(f"weights of {len(data)} bytes, expected {self.size_bytes} as before")
        self._put((self.generation + 1) & 1, data)
        self.generation += 1
        self._values.data[:8] = self.generation.to_bytes(8, "little")
        return self.generation


class Injection:
    """One program that an agent has injected: in the shadow, in force, or over."""

    def __init__(
        self, service: Injections, number: int, agent: KernelAgent, cid: int, port: PolicyPort, program: Loaded,
        weights: Weights | None,
    ) -> None:  # fmt: skip
        self._service, self.number, self.agent, self._cid = service, number, agent, cid
        self.port: PolicyPort = port
        self.program: Loaded = program
        self.weights: Weights | None = weights
        self.incarnation = agent.incarnation
        self.step = PolicyStep.SHADOW
        self._armed = self._watched = False
        self.comparison = Comparison(
            number, len(port.schema), port.config, self._send, ranked=port.ranked
        )  # fmt: skip
        program.waits = True
        program.on_fault = lambda _, why: self.end(f"fault: {why}")
        machine = agent.machine
        self._timer = machine.heap.call_at_daemon(machine.now_ns + port.config.lifetime_ns, self._expire)

    # --- what both say ---

    def observe(self, rows: list[tuple[int, ...]]) -> None:
        """A decision that it does not make: what it would have said."""
        verdict = self.program.best(rows) if self.port.ranked else self.program.decide(rows[0])
        if verdict is not None:
            self.note(rows, verdict)

    def note(self, rows: list[tuple[int, ...]], verdict: int) -> None:
        """A decision that the model is to judge."""
        self.comparison.note(rows, verdict)
        if self.comparison.waiting and not self._armed:
            self._armed = True
            machine = self.agent.machine
            machine.heap.call_at_daemon(machine.now_ns + self.port.config.flush_ns, self._flush)

    def _flush(self, _: object) -> None:
        self._armed = False
        if self.step in (PolicyStep.SHADOW, PolicyStep.SWAPPED):
            self.comparison.flush()

    @property
    def _alive(self) -> bool:
        return self.agent.host is not None and self.agent.incarnation == self.incarnation

    def _send(self, rows: ShadowRows) -> bool:
        if not self._alive or not self.agent.event("shadow", self.port.site.name, encode(rows)):
            return False
        if self.step is PolicyStep.SWAPPED:
            self._watch(rows.first + 1)
        return True

    def _watch(self, before: int) -> None:
        """Decisions below ``before`` are to be judged in time."""
        if not self._watched:
            self._watched = True
            machine = self.agent.machine
            machine.heap.call_at_daemon(machine.now_ns + self.port.config.audit_ns, self._audit, before)

    def _audit(self, before: int) -> None:
        """A policy that nobody judges must not stay: whatever keeps the model from it, a filter on its events, too."""
        self._watched = False
        oldest = self.comparison.oldest
        if self.step is not PolicyStep.SWAPPED or not self._alive or oldest is None:
            return
        if oldest < before:
            self.port.fall_back(f"the model did not judge decision {oldest} within {self.port.config.audit_ns} ns")
        else:
            self._watch(self.comparison.asked)

    def hand_over(self) -> None:
        """The build that has injected it was upgraded: the one that is there now judges."""
        self.incarnation = self.program.incarnation = self.agent.incarnation
        self.comparison.forget()
        version = self.agent.manifest.version
        self._service.tell(self, f"program {self.program.id} stays, judged by {version} from now on")

    def judge(self, first: int, verdicts: bytes) -> None:
        """The model's verdicts, and what follows from them."""
        comparison, config = self.comparison, self.port.config
        comparison.judge(first, verdicts)
        if self.step is PolicyStep.SHADOW:
            if comparison.judged < config.decisions_min:
                return
            if comparison.agreement_ppm >= config.agreement_ppm:
                self._service.swap(self)
            else:
                self.end(f"the model agreed in {comparison.agreement_ppm} ppm, expected {config.agreement_ppm}")
        elif self.step is PolicyStep.SWAPPED:
            latest_ppm = comparison.latest_ppm
            if latest_ppm is not None and latest_ppm < config.agreement_ppm:
                self.port.fall_back(f"the model agrees in {latest_ppm} ppm by now, expected {config.agreement_ppm}")

    # --- its end ---

    def _expire(self, _: object) -> None:
        if self.step is PolicyStep.SHADOW:
            comparison = self.comparison
            self.end(
                f"the model judged {comparison.judged} decisions in time, expected {self.port.config.decisions_min}"
            )

    def swapped(self) -> None:
        """It decides: its agent gets the answer."""
        self.agent.machine.heap.discard(self._timer)
        self.step = PolicyStep.SWAPPED
        self._answer(0, b"")

    def end(self, why: str) -> None:
        """It is over, whatever it was; the built-in rule decides."""
        if self.step in (PolicyStep.REFUSED, PolicyStep.ENDED):
            return
        shadow = self.step is PolicyStep.SHADOW
        self.step = PolicyStep.REFUSED if shadow else PolicyStep.ENDED
        self.agent.machine.heap.discard(self._timer)
        self._service.ended(self, why)
        if shadow:
            self._answer(errno.ECANCELED, why.encode()[:SHOW_MAX_BYTES])

    def _answer(self, status: int, payload: bytes) -> None:
        if self.agent.incarnation == self.incarnation:
            self.agent.answer(self._cid, status, self.port.generation, payload)


class Injections:
    """Serves InjectPolicy, JudgePolicy and UpdatePolicy, and offers sites; see ``kernel.policies.offer``."""

    def __init__(self, bpf: Bpf) -> None:
        self._bpf = bpf
        self._machine = bpf.machine
        self.ports: dict[str, PolicyPort] = {}
        self._live: dict[int, Injection] = {}
        self._begun_ns: dict[str, int] = {}
        self._last = 0
        bpf.models.on_mode.append(self._mode_changed)
        bpf.on_revoked.append(self._revoked)
        self._machine.on_aside.append(self._set_aside)

    def offer(
        self, site: DecisionSite, schema: Schema, verdict: tuple[int, int], *, config: InjectionConfig | None = None,
        ranked: bool = False,
    ) -> PolicyPort:  # fmt: skip
        """Lets a decision site have a policy in the kernel: ``verdict`` are the least and the greatest that it may say.

        ``ranked``: it scores rows one by one, and the site takes the best.  EEXIST, EINVAL.
        """
        port = PolicyPort(self._bpf, site, schema, verdict, config or InjectionConfig(), ranked=ranked)
        self._bpf.add_point(port)
        self.ports[site.name] = port
        siteview.add(self._bpf, port)
        return port

    def withdraw(self, site: str, why: str = "the site is gone") -> None:
        """The site has no policy any more."""
        port = self.ports.pop(site, None)
        if port is not None:
            port.stop(why)
            self._bpf.remove_point(port.name, why)
            siteview.remove(self._bpf, port)

    # --- for agents ---

    def services(self) -> dict[type, Callable[[KernelAgent, Any], tuple[int, bytes] | None]]:
        """For the dispatch table."""
        return {e.InjectPolicy: self._inject, e.JudgePolicy: self._judge, e.UpdatePolicy: self._update}

    def _inject(self, agent: KernelAgent, entry: e.InjectPolicy) -> None:
        at, weights = f"{PREFIX}{entry.site}", None
        self._bpf.check(agent, at, Rights.WRITE, Rights.SUBMIT)
        port = self._check(entry.site)
        self._begun_ns[entry.site] = self._machine.now_ns
        maps = {}
        if entry.weights:
            weights = Weights(self._bpf, agent, entry.weights)
            maps[WEIGHTS_MAP] = weights.loaded
        try:
            if agent.aside is not None:
                raise UsageError(f"{agent.name}: the build before it may come back", errno=errno.EAGAIN)
            program = self._bpf.load(entry.code, at, maps, f"injected-{self._last + 1}", owner=agent)
        except UsageError as exc:
            for each in maps.values():
                self._bpf.drop_map(each)
            self._bpf.log(f"{at}: a program of {agent.name} refused: {exc}", owner=agent, bad=True, site=entry.site)
            raise
        self._last += 1
        made = Injection(self, self._last, agent, entry.cid, port, program, weights)
        port.candidate = self._live[made.number] = made
        why = brief(entry.why) or "no reason given"
        agent.defer(entry.cid)
        self.tell(made, f"program {program.id} of {agent.name} in the shadow: {why}")

    def _check(self, site: str) -> PolicyPort:
        port = self.ports.get(site)
        if port is None:
            raise UsageError(f"site {site!r}: takes no program{did_you_mean(site, self.ports)}", errno=errno.ENODEV)
        if port.candidate is not None:
            by = port.candidate.agent.name
            raise UsageError(f"site {site}: a program of {by} is in the shadow", errno=errno.EBUSY)
        begun_ns, now_ns = self._begun_ns.get(site), self._machine.now_ns
        if begun_ns is not None and now_ns < begun_ns + port.config.interval_ns:
            raise UsageError(
                f"site {site}: a program came at {begun_ns} ns, the next may {port.config.interval_ns} ns after that",
                errno=errno.EAGAIN,
            )
        if port.site.share_ppm <= 0:
            raise UsageError(f"site {site}: its own rule decides now: emergency, or stopped", errno=errno.EAGAIN)
        return port

    def _find(self, agent: KernelAgent, number: int) -> Injection:
        found = self._live.get(number)
        if found is None or found.agent is not agent or found.incarnation != agent.incarnation:
            raise UsageError(f"injection {number}: {agent.name} has none of it", errno=errno.ENOENT)
        return found

    def _judge(self, agent: KernelAgent, entry: e.JudgePolicy) -> tuple[int, bytes]:
        found = self._find(agent, entry.injection)
        found.judge(entry.first, entry.verdicts)
        return found.comparison.agreement_ppm, b""

    def _update(self, agent: KernelAgent, entry: e.UpdatePolicy) -> tuple[int, bytes]:
        found = self._find(agent, entry.injection)
        self._bpf.check(agent, found.port.name, Rights.WRITE)
        if found.weights is None:
            raise UsageError(f"injection {found.number}: was made without weights")
        number = found.weights.update(entry.weights)
        if found.step is PolicyStep.SWAPPED:
            found.port.generation += 1
        self._machine.note("weights", agent.id, b"%d %d" % (found.number, number) + entry.weights)
        return found.port.generation, b""

    # --- steps ---

    def swap(self, made: Injection) -> None:
        """In one step: what was there goes, the candidate decides."""
        port, bpf = made.port, self._bpf
        port.candidate, made.program.waits = None, False
        before = port.injection
        if before is not None:
            before.end(f"injection {made.number} takes its place")
        elif port.current is not None:
            bpf.detach(port.current, port.name, f"injection {made.number} takes its place")
        try:
            bpf.attach(made.program)
        except Exception as exc:  # the right went meanwhile
            made.end(str(exc))
            return
        port.injection = made
        made.swapped()
        ppm, judged = made.comparison.agreement_ppm, made.comparison.judged
        self.tell(
            made, f"program {made.program.id} decides, generation {port.generation}: {ppm} ppm of {judged} agreed"
        )

    def ended(self, made: Injection, why: str) -> None:
        """It is over: detached, unloaded, told."""
        port = made.port
        if port.candidate is made:
            port.candidate = None
        self._live.pop(made.number, None)
        made.program.waits = False
        if port.injection is made:
            port.injection = None
            if made.program.attached:
                self._bpf.detach(made.program, port.name, why)
        self.tell(made, why)
        if made.program.id in self._bpf.programs and not made.program.pins:
            self._bpf.unload(made.program)

    def tell(self, made: Injection, why: str) -> None:
        """A step, to the log and to its agent."""
        step, port, agent = made.step, made.port, made.agent
        bad = step in (PolicyStep.REFUSED, PolicyStep.ENDED)
        self._bpf.log(
            f"{port.name}: injection {made.number} {step.value}: {why}", owner=agent, bad=bad, site=port.site.name,
            injection=made.number, step=step.value,
        )  # fmt: skip
        if agent.host is not None and agent.incarnation == made.incarnation:
            change = PolicyChange(made.number, step, port.generation, made.comparison.agreement_ppm, why)
            agent.event("policy", port.site.name, encode(change))

    # --- what ends them ---

    def _mode_changed(self, proxy: MLModelProxy, change: ModeChange) -> None:
        for name in [name for name in proxy.sites if name in self.ports]:
            if change.new is Mode.UNKNOWN:
                self.withdraw(name)
            elif change.new is Mode.EMERGENCY:
                self.ports[name].stop(f"emergency: {change.why}")

    def _set_aside(self, instance: int) -> None:
        """Another build is being started: the command of what is in the shadow is cut off, and so is that."""
        for made in list(self._live.values()):
            if made.agent.id == instance and made.step is PolicyStep.SHADOW:
                made.end(f"{made.agent.name} is being upgraded")

    def _revoked(self, cap: Capability) -> None:
        for made in list(self._live.values()):
            agent, port = made.agent, made.port
            if not covers(cap.target, port.name) or not self._bpf.concerns(cap, agent, made.incarnation):
                continue
            if self._bpf.still_allowed(cap, port.name):
                if self._machine.caps.is_aside(cap):
                    made.hand_over()
                continue
            if made.step is PolicyStep.SHADOW or not made.program.pins:
                why = f"{agent.name} is gone" if agent.host is None else f"{agent.name} may not any more"
                end: Callable[[str], None] = made.end if made.step is PolicyStep.SHADOW else partial(_fall_back, made)
                end(why)


def _fall_back(made: Injection, why: str) -> None:
    made.port.fall_back(why)
