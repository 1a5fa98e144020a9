"""What sysfs shows of the kernel and of every instance: tables, shared by all instances (R11)."""

from __future__ import annotations

import errno
from functools import partial
from typing import Final

from uxk.actor.sandbox import measures
from uxk.core.account import COUNTERS, GAUGES
from uxk.core.params import describe_params, format_param, with_param
from uxk.core.tree import Attribute, AttributeTable, attribute_table
from uxk.errors import UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.machine import Machine
from uxk.uapi.manifest import Params


def footprint_bytes(agent: KernelAgent) -> int:
    """What ``lsmod`` shows as size: arena memory held and ring slots, at eight bytes a slot."""
    return agent.account.arena_bytes + 8 * agent.account.queue_slots


def _counter(name: str) -> Attribute:
    # Host time differs from run to run: people may read it, actors may not.
    mode = 0o400 if name == "cpu_ns" else 0o444
    return Attribute(name, show=lambda agent: str(getattr(agent.account, name)), mode=mode)


def _rejects(agent: KernelAgent) -> str:
    return "\n".join(f"{reason} {count}" for reason, count in sorted(agent.account.rejects.items()))


def _latency(agent: KernelAgent) -> str:
    return "\n".join(f"{key} {value}" for key, value in agent.account.latency.summary()._asdict().items())


def _rings(agent: KernelAgent) -> str:
    lines = []
    queues = agent.queues
    for name, ring in (("sq", queues.sq), ("cq", queues.cq), ("up", queues.up), ("answers", queues.answers)):
        figures = ring.statistics()._asdict()
        lines.append(name + " " + " ".join(f"{key}={value}" for key, value in figures.items()))
    return "\n".join(lines)


MODULE: Final[AttributeTable] = attribute_table(
    Attribute("initstate", show=lambda agent: agent.state.initstate),
    Attribute("version", show=lambda agent: agent.manifest.version),
    Attribute("refcnt", show=lambda agent: str(len(agent.users()))),
    Attribute("coresize", show=lambda agent: str(footprint_bytes(agent))),
    Attribute("holders", show=lambda agent: "\n".join(agent.users())),
    Attribute("placement", show=lambda agent: agent.placement),
    # A number that differs from run to run, as cpu_ns does: 0 while it is down.
    Attribute("pid", show=lambda agent: str(0 if agent.host is None else agent.host.pid), mode=0o400),
    # Differs from host to host.
    Attribute("confined", show=lambda agent: measures() if agent.placement == "process" else "", mode=0o400),
)
"""``/sys/module/NAME`` (Linux: kernel/module/sysfs.c and kernel/params.c)."""

STATISTICS: Final[AttributeTable] = attribute_table(
    *(_counter(name) for name in (*COUNTERS, *GAUGES, "arena_bytes_max")),
    Attribute("capabilities", show=lambda agent: str(agent.machine.caps.count(agent.id))),
    Attribute("rejects", show=_rejects),
    Attribute("latency_ns", show=_latency),
    Attribute("rings", show=_rings),
)
"""``/sys/module/NAME/statistics``: the account (R7, R10, R11)."""

_parameter_tables: dict[type[Params], AttributeTable] = {}


def parameters(cls: type[Params]) -> AttributeTable:
    """``/sys/module/NAME/parameters``: one table for each parameter class."""
    table = _parameter_tables.get(cls)
    if table is None:
        table = _parameter_tables[cls] = attribute_table(*(
            Attribute(
                info.name,
                show=partial(_show_param, info.name),
                store=partial(_store_param, info.name) if info.writable else None,
            )
            for info in describe_params(cls)
        ))  # fmt: skip
    return table


def _show_param(name: str, agent: KernelAgent) -> str:
    return format_param(getattr(agent.params, name))


def _store_param(name: str, agent: KernelAgent, text: str) -> None:
    params = with_param(agent.name, agent.params, name, text)
    if agent.aside is not None:
        raise UsageError(f"{agent.name}: {name}: another build of it is being started", errno=errno.EBUSY)
    if not agent.event("param", name, text.encode()) and agent.host is not None:
        raise UsageError(f"{agent.name}: {name}: its queue is full", errno=errno.EAGAIN)
    agent.params = params


KERNEL: Final[AttributeTable] = attribute_table(
    Attribute("now_ns", show=lambda m: str(m.now_ns)),
    Attribute("clock", show=lambda m: m.clock),
    Attribute("seed", show=lambda m: str(m.streams.seed)),
    Attribute("events", show=lambda m: str(m.heap.fired)),
    Attribute("event_hash", show=lambda m: m.hash.hexdigest()),
    Attribute("outstanding", show=lambda m: str(m.outstanding)),
    Attribute("wait_for", show=lambda m: "\n".join(str(edge) for edge in m.waits.edges())),
    Attribute("costs_ns", show=lambda m: "\n".join(f"{k} {v}" for k, v in sorted(m.costs_ns.items())), mode=0o400),
)
"""``/sys/kernel``."""


def add_instance(machine: Machine, agent: KernelAgent) -> None:
    """Puts an instance into the tree."""
    base = f"/sys/module/{agent.name}"
    machine.tree.add(base, agent, MODULE)
    machine.tree.add(f"{base}/parameters", agent, parameters(agent.manifest.params))
    machine.tree.add(f"{base}/statistics", agent, STATISTICS)


def replace_parameters(machine: Machine, agent: KernelAgent) -> None:
    """Shows the parameters of another build of the module."""
    path = f"/sys/module/{agent.name}/parameters"
    machine.tree.remove(path)
    machine.tree.add(path, agent, parameters(agent.manifest.params))


def remove_instance(machine: Machine, agent: KernelAgent) -> None:
    """Takes it out again, with everything it published."""
    if machine.tree.exists(f"/sys/module/{agent.name}"):
        machine.tree.remove(f"/sys/module/{agent.name}")
