"""Two builds of one instance side by side: the old one rests, complete, while the new one is started.

Old and new are the same instance: one name, one number, one set of rings and devices.  See :mod:`uxk.kernel.aside` for
what each has to itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uxk.core.lifecycle import Event, ModuleState, advance
from uxk.uapi.entries import Log

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent
    from uxk.kernel.host import Host
    from uxk.kernel.incarnation import Incarnations


def set_aside(incarnations: Incarnations, agent: KernelAgent) -> None:
    """The quiesced incarnation rests from now on; the instance is ready for another one."""
    incarnations.processes.set_aside(agent)
    incarnations.supervisor.reclaimer.set_aside(agent)
    agent.state = advance(agent.state, Event.DIE)


def drop_new(incarnations: Incarnations, agent: KernelAgent) -> None:
    """Ends the new incarnation, if there is one, without a word."""
    if agent.host is not None:
        agent.detach()
        incarnations.supervisor.reclaimer.crashed(agent)


def put_back(incarnations: Incarnations, agent: KernelAgent) -> None:
    """The old incarnation is live again, as it was; the new one is reclaimed already."""
    aside = agent.aside
    assert aside is not None
    agent.clear_life_timer()
    incarnations.supervisor.reclaimer.put_back(agent, aside)
    incarnations.processes.put_back(agent)
    if agent.state is ModuleState.RESTARTING:
        agent.state = advance(agent.state, Event.RETRY)
    agent.state = advance(agent.state, Event.READY)
    incarnations.supervisor.watch(agent)


def let_go(incarnations: Incarnations, agent: KernelAgent) -> str:
    """The new incarnation is live: the old one hears so, and goes.  Returns what it had died of meanwhile, or "".

    Of its last words only lines for the log are heard: what else it could ask for is the new one's by now.
    """
    aside, nursery = agent.aside, incarnations.nursery
    assert aside is not None and nursery is not None
    host: Host = aside.host
    crash = host.crash
    if crash is None and agent.placement == "process" and agent.machine.clock == "real":
        nursery.start_soon(_dismiss, agent, host, name=f"uxk {agent.name} upgrade")
    else:
        if crash is None:
            _hear(agent, host)
        host.abandon()
    incarnations.supervisor.reclaimer.let_go(agent, aside)
    return "" if crash is None else f"{crash.kind} in {crash.where}"


def _hear(agent: KernelAgent, host: Host) -> None:
    words = agent.queues.ups_of(host.stop("upgrade").up)
    agent.on_up(agent, [word for word in words if type(word) is Log])


async def _dismiss(agent: KernelAgent, host: Host) -> None:
    """Where last words take time to come: requests go to the new instance meanwhile."""
    try:
        await host.farewell("upgrade")
        if agent.state is ModuleState.LIVE:
            _hear(agent, host)
    finally:
        host.abandon()
