"""Takes back what an instance holds, exactly: after a crash, and for good.

A crash ends the incarnation: locks, pins, memory, capabilities, subscriptions, published attributes and hints
go; devices, char devices and memory with a name stay for the next one.  The end takes those, too, and proves
with the account that nothing is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uxk.errors import KernelBug
from uxk.kernel.agent import KernelAgent
from uxk.kernel.aside import Aside
from uxk.kernel.dma import pool_caps
from uxk.kernel.machine import Machine

if TYPE_CHECKING:
    from uxk.kernel.chardev import ChardevTable
    from uxk.kernel.devices import DeviceRegistry
    from uxk.kernel.memory import Memory
    from uxk.kernel.models import Models
    from uxk.kernel.publish import Publisher
    from uxk.kernel.services import Services
    from uxk.kernel.sharing import Sharing


class Reclaimer:
    """Knows everybody who hands something out."""

    def __init__(
        self, machine: Machine, services: Services, sharing: Sharing, memory: Memory, publisher: Publisher,
        devices: DeviceRegistry, chardevs: ChardevTable, models: Models,
    ) -> None:  # fmt: skip
        self._machine = machine
        self._services = services
        self._sharing = sharing
        self._memory = memory
        self._publisher = publisher
        self._devices = devices
        self._chardevs = chardevs
        self._models = models

    def crashed(self, agent: KernelAgent) -> None:
        """What dies with an incarnation."""
        machine = self._machine
        self._services.forwarders.forget(agent, gone=False)
        self._sharing.drop(agent)
        self._memory.drop(agent, keep=True)
        self._chardevs.quiesce(agent)
        self._publisher.withdraw(agent)
        self._models.forget(agent)
        kept = self._services.forwarders.lent_to(agent) | pool_caps(machine, agent)
        machine.caps.revoke_holder(agent.id, keep=kept)
        agent.queue_cap = 0
        if agent.aside is None:  # others may wait for the locks of a build that is put aside
            machine.waits.remove_node(agent.node)
        self._devices.unbind_all(agent)

    # --- two builds of one instance ---

    def set_aside(self, agent: KernelAgent) -> None:
        """Puts the present incarnation aside with all that it holds, so that another can be started beside it.

        What is the instance's, and not the incarnation's, is there for both: device names and open files, kept
        memory, what clients have lent it.
        """
        machine, forwarders = self._machine, self._services.forwarders
        for tell in machine.on_aside:
            tell(agent.id)
        connections = forwarders.set_aside(agent)
        self._sharing.cut_waits(agent)
        aside = agent.set_aside()
        aside.forwarders = connections
        self._sharing.set_aside(agent, aside)
        self._memory.set_aside(agent, aside)
        self._chardevs.set_aside(agent, aside)
        self._publisher.set_aside(agent, aside)
        self._models.set_aside(agent, aside)
        machine.caps.set_aside(agent.id, keep=forwarders.lent_to(agent) | pool_caps(machine, agent))
        agent.queue_cap = 0
        self._devices.set_aside(agent, aside)

    def put_back(self, agent: KernelAgent, aside: Aside) -> None:
        """The incarnation that was put aside is the present one again; the one after it was reclaimed already."""
        self._machine.caps.put_back(agent.id)
        self._sharing.put_back(agent)
        self._memory.put_back(agent, aside)
        agent.put_back(aside)
        self._services.forwarders.put_back(aside)
        self._chardevs.put_back(agent, aside)
        self._devices.put_back(agent, aside)
        self._publisher.put_back(agent, aside)
        self._models.put_back(agent, aside)

    def let_go(self, agent: KernelAgent, aside: Aside) -> None:
        """Takes back what the incarnation that was put aside still has."""
        self._services.forwarders.let_go(aside)
        self._sharing.let_go(agent, aside)
        self._machine.caps.revoke_aside(agent.id)
        agent.aside = None
        self._memory.let_go(agent, aside)
        agent.requests.overdue.clear()

    def gone(self, agent: KernelAgent) -> None:
        """Everything.  Raises :class:`KernelBug` if something is left: that must not happen."""
        self.crashed(agent)
        for tell in self._machine.on_gone:
            tell(agent.id)
        agent.requests.close()
        self._chardevs.remove_all(agent)
        for device in list(agent.devices.values()):
            self._devices.remove(device)
        self._services.forwarders.forget(agent, gone=True)
        self._memory.drop(agent, keep=False)
        self._sharing.withdraw(agent)
        self._machine.caps.revoke_holder(agent.id)
        agent.account.queue_slots = 0
        left = agent.account.holdings()
        if left:
            raise KernelBug(f"{agent.name}: left after reclaim: {left}")
