"""All host processes of a kernel: started, let run together, told of memory that goes.

See :mod:`uxk.kernel.process_host` for one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import trio

from uxk import limits
from uxk.actor.actor import Start
from uxk.errors import ModuleError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.machine import Machine
from uxk.kernel.pin import set_aside
from uxk.kernel.process_child import HostProcess
from uxk.kernel.process_host import SERVICE, ProcessHost
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
        machine.settle_hosts = self.settle

    def host(self, agent: KernelAgent, start: Start, on_set_up: Callable[[], None]) -> ProcessHost:
        """A host for the next incarnation; its process is being started.  ModuleError if that cannot be."""
        if sys.platform != "linux":
            raise ModuleError(f"{agent.name}: placement=process needs Linux (pidfd_open, memfd_create)")
        set_aside(SERVICE)
        word = described(agent, start, held=self.machine.clock != "real")
        try:
            process = HostProcess(program_of(agent.extension_class, word))
        except OSError as exc:
            raise ModuleError(f"{agent.name}: no process for it: {exc.strerror}", errno=exc.errno) from exc
        host = self._hosts[agent.id] = ProcessHost(self, agent, process, word, on_set_up)
        return host

    def unmap(self, agent: KernelAgent, cap: int, *, moved: bool) -> None:
        """Memory that a process has mapped is not its any more, or not where it was."""
        if (host := self._hosts.get(agent.id)) is not None:
            host.unmap(cap, moved=moved)

    def unsettle(self, host: ProcessHost) -> None:
        """Tasks of its extension may have something to do: they get their chance at the next settling."""
        self._unsettled[host.agent.id] = host
        self.machine.settle_needed = True

    def forget(self, host: ProcessHost) -> None:
        """It is gone."""
        for hosts in (self._unsettled, self._hosts):
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
