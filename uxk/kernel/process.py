"""All host processes of a kernel: started, let run together, told of memory that goes.

See :mod:`uxk.kernel.process_host` for one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import trio

from uxk import limits
from uxk.actor import wire
from uxk.actor.actor import Crash, Start
from uxk.actor.link import Gone
from uxk.errors import ModuleError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.machine import Machine
from uxk.kernel.pin import set_aside
from uxk.kernel.process_child import CLOSED, HostProcess
from uxk.kernel.process_host import SERVICE, ProcessHost
from uxk.kernel.process_shared import Seat, SharedHost
from uxk.kernel.process_start import NO_MEMORY, Share, described, program_of


class Processes:
    """The host processes of one kernel."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.nursery: trio.Nursery | None = None
        """Where their watchers run; set while the kernel is up."""
        self.answer_ns = limits.HOST_ANSWER_NS_DEFAULT
        """Host time for an answer while the kernel holds its clock."""
        self.start_ns = limits.HOST_START_NS_DEFAULT
        """Host time for an interpreter to start, and a module to be imported and set up."""
        self.share: Share = NO_MEMORY
        """Memory by capability, checked as :meth:`uxk.kernel.memory.Memory.map_region` does."""
        self.closing = False
        """Whether the kernel shuts down: from then on it may wait for last words on any clock."""
        self._unsettled: dict[int, ProcessHost] = {}
        self._hosts: dict[int, ProcessHost] = {}
        """The present one of every instance."""
        self._aside: dict[int, ProcessHost] = {}
        """Those that rest while another build is started beside them."""
        self._shared: dict[str, SharedHost] = {}
        """Processes that instances may join, by the name that manifests give them."""
        machine.settle_hosts = self.settle

    def host(self, agent: KernelAgent, start: Start, on_set_up: Callable[[], None]) -> ProcessHost:
        """A host for the next incarnation; its process is being started.  ModuleError if that cannot be."""
        if sys.platform != "linux":
            raise ModuleError(f"{agent.name}: placement=process needs Linux (pidfd_open, memfd_create)")
        set_aside(SERVICE)
        word = described(agent, start, held=self.machine.clock != "real")
        try:
            process = self._process(agent, word)
        except OSError as exc:
            raise ModuleError(f"{agent.name}: no process for it: {exc.strerror}", errno=exc.errno) from exc
        host = self._hosts[agent.id] = ProcessHost(self, agent, process, word, on_set_up)
        return host

    def _process(self, agent: KernelAgent, word: wire.Start) -> HostProcess | Seat:
        """One of its own, or a seat in the one that its manifest names."""
        name = agent.manifest.host
        if not name:
            return HostProcess(program_of(agent.extension_class, word))
        shared = self._shared.get(name)
        if shared is not None:
            try:
                return shared.join(word)
            except Gone:
                shared.fall(None, Crash("process", "Exited", CLOSED, ""))
        shared = SharedHost(name, word, self._retired)
        try:
            seat = shared.join(word)
        except (ModuleError, Gone) as exc:
            assert self.nursery is not None
            bury = partial(shared.process.bury, _nothing, gently=False)
            self.nursery.start_soon(bury, name=f"{SERVICE}{name} burial")
            raise ModuleError(f"{agent.name}: host {name!r}: {exc}") from exc
        self._shared[name] = shared
        return seat

    def _retired(self, shared: SharedHost) -> None:
        """Nobody may join it any more."""
        if self._shared.get(shared.name) is shared:
            del self._shared[shared.name]

    def unmap(self, agent: KernelAgent, cap: int, *, moved: bool) -> None:
        """Memory that a process has mapped is not its any more, or not where it was."""
        for hosts in (self._hosts, self._aside):
            if (host := hosts.get(agent.id)) is not None:
                host.unmap(cap, moved=moved)

    def unsettle(self, host: ProcessHost) -> None:
        """Tasks of its extension may have something to do: they get their chance at the next settling."""
        if self._aside.get(host.agent.id) is not host:
            self._unsettled[host.agent.id] = host
            self.machine.settle_needed = True

    def set_aside(self, agent: KernelAgent) -> None:
        """The process of an instance's old build rests: its tasks are not let run."""
        self._unsettled.pop(agent.id, None)
        if (host := self._hosts.pop(agent.id, None)) is not None:
            self._aside[agent.id] = host

    def put_back(self, agent: KernelAgent) -> None:
        """It goes on."""
        if (host := self._aside.pop(agent.id, None)) is not None:
            self._hosts[agent.id] = host
            if host.runs and host.crash is None:
                self.unsettle(host)

    def forget(self, host: ProcessHost) -> None:
        """It is gone."""
        for hosts in (self._unsettled, self._hosts, self._aside):
            if hosts.get(host.agent.id) is host:
                del hosts[host.agent.id]

    def settle(self, take: bool) -> None:
        """Lets tasks of all extensions run at the same time, until every one waits.

        With ``take``, what they have staged comes along, to be collected in order of instances.
        """
        if self._unsettled:
            hosts = [self._unsettled[number] for number in sorted(self._unsettled)]
            self._unsettled.clear()
            for host in hosts:
                host.ask_settle(take)
            for host in hosts:
                host.hear_settled(take)


def _nothing() -> None:
    """Nobody waits for it."""
