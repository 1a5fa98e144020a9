"""What happens when an extension dies: oops, fate of its requests, reclaim, restart.

A crash, a hang and a missed heartbeat end the same way; only the words in the log differ.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from uxk.actor.actor import Crash
from uxk.core import lifecycle
from uxk.core.restart import GiveUp, Restart
from uxk.kernel import oops
from uxk.kernel.agent import KernelAgent
from uxk.kernel.machine import Machine
from uxk.uapi.entries import Ping

if TYPE_CHECKING:
    from uxk.kernel.reclaim import Reclaimer
    from uxk.kernel.supervision import Supervisors


class Supervisor:
    """Contains failures and brings instances back."""

    def __init__(self, machine: Machine, reclaimer: Reclaimer) -> None:
        self._machine = machine
        self.reclaimer = reclaimer
        self.start: Callable[[KernelAgent], None] = lambda agent: None
        """Starts a new incarnation; set by who starts the first."""
        self.give_up: Callable[[KernelAgent, str], None] = lambda agent, reason: None
        """Takes an instance down for good; set by the loader."""
        self.supervisors: Supervisors | None = None
        """Who decides about instances that have a supervisor; those without have their own policy."""
        self._stopping: KernelAgent | None = None

    # --- watching ---

    def watch(self, agent: KernelAgent) -> None:
        """Begins to watch a live instance: deadlines always, heartbeats if its manifest wants them."""
        agent.pings_unanswered = 0
        agent.pulse += 1
        agent.requests.on_hung = lambda count: self.hung(
            agent, f"{agent.manifest.watchdog.timeouts_max} requests in a row timed out"
        )
        agent.on_pong = lambda number: self._on_pong(agent, number)
        if agent.manifest.watchdog.heartbeat_ns is not None:
            self._schedule_ping(agent)

    def _schedule_ping(self, agent: KernelAgent) -> None:
        interval_ns = agent.manifest.watchdog.heartbeat_ns
        assert interval_ns is not None
        due_ns = self._machine.now_ns + interval_ns
        self._machine.heap.call_at_daemon(due_ns, self._ping, (agent, agent.incarnation, agent.pulse))

    def _ping(self, item: tuple[KernelAgent, int, int]) -> None:
        agent, incarnation, pulse = item
        if agent.host is None or (agent.incarnation, agent.pulse) != (incarnation, pulse):
            return
        silenced = agent.held_back or agent.unheard  # its silence is the kernel's doing
        if agent.pings_unanswered >= 2 and not silenced:
            self.hung(agent, f"{agent.pings_unanswered} heartbeats in a row without an answer")
            return
        if not silenced:
            agent.pings_unanswered += 1
        agent.send(Ping(self._machine.now_ns))
        self._schedule_ping(agent)

    def _on_pong(self, agent: KernelAgent, number: int) -> None:
        if number > self._machine.now_ns:
            agent.account.reject("forged_pong")
            return
        agent.pings_unanswered = 0

    # --- dying ---

    def hung(self, agent: KernelAgent, why: str) -> None:
        """The watchdog's verdict: treated as a crash."""
        self.crashed(agent, Crash("watchdog", "Hung", why, ""))

    def crashed(self, agent: KernelAgent, crash: Crash) -> None:
        """Contains a crash: logs the oops, settles requests, reclaims, and restarts by policy."""
        if agent.host is None:
            return
        agent.account.faults += 1
        self._machine.note("crash", agent.id, f"{crash.where} {crash.kind}".encode(errors="replace"))
        oops.report(agent, crash)
        if agent.state is lifecycle.ModuleState.GOING:  # its end is under way already
            agent.detach()
            return
        if agent is self._stopping:  # it is being taken down
            return
        if agent.state is not lifecycle.ModuleState.LIVE and agent.incarnation == 0:
            agent.detach()
            agent.on_failed(crash)
            return
        self._down(agent, crashed=True, why=f"{crash.kind} in {crash.where}", detail=crash.message)

    def not_started(self, agent: KernelAgent, why: Exception) -> None:
        """A new incarnation could not even be given what it needs: as if it had died at once."""
        self._machine.log("err", agent.name, f"cannot be started again: {why}")
        self._down(agent, crashed=True, why="no grants")

    def exited(self, agent: KernelAgent) -> None:
        """The instance's ``run`` of a permanent module came to an end by itself."""
        if agent.manifest.restart.mode == "permanent" and agent.host is not None:
            self._machine.log("notice", agent.name, "exited")
            self._down(agent, crashed=False, why="exit")

    def _down(self, agent: KernelAgent, *, crashed: bool, why: str, detail: str = "") -> None:
        agent.detach()
        self.reclaimer.crashed(agent)
        if agent.upgrade is not None and agent.upgrade.died(f"{why}: {detail}" if detail else why):
            return
        if self.supervisors is not None and agent.name in self.supervisors.tree:
            self._rest(agent)
            self.supervisors.exited(agent, crashed=crashed, why=why)
            return
        decision = agent.restarter.on_exit(self._machine.now_ns, crashed)
        if isinstance(decision, Restart):
            self._rest(agent)
            self._machine.log(
                "notice", agent.name, f"restarts in {decision.delay_ns} ns ({why})", restart_ns=decision.delay_ns
            )
            agent.set_life_timer(decision.delay_ns, partial(self.restart, agent))
            return
        agent.requests.close(errno.EIO)
        reason = decision.reason if isinstance(decision, GiveUp) else f"policy {agent.manifest.restart.mode}"
        self._machine.log("err", agent.name, f"stays down: {reason}")
        self.give_up(agent, reason)

    def _rest(self, agent: KernelAgent) -> None:
        """It is down, and will be started again."""
        agent.state = lifecycle.advance(agent.state, lifecycle.Event.DIE)
        agent.requests.on_death(agent.manifest.fate)

    def take_down(self, agent: KernelAgent, why: str) -> None:
        """Ends the incarnation of a healthy instance, which :meth:`restart` will follow; one that is down stays so."""
        if agent.upgrade is not None:
            agent.upgrade.interrupt(why)
        if agent.host is None:
            return
        self.end(agent, why)
        self._rest(agent)

    def end(self, agent: KernelAgent, why: str) -> None:
        """Lets a healthy incarnation say goodbye, cuts it off, and reclaims what it held."""
        self._stopping = agent
        try:
            agent.last_words(why)
        finally:
            self._stopping = None
        agent.detach()
        self.reclaimer.crashed(agent)

    def restart(self, agent: KernelAgent) -> None:
        """Starts the next incarnation of an instance that is down."""
        agent.state = lifecycle.advance(agent.state, lifecycle.Event.RETRY)
        agent.account.restarts += 1
        self.start(agent)
