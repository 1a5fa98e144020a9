"""What the metrics are made of: one consistent copy of the kernel's counters, taken in one step of its own thread.

It holds numbers and names only, so that formatting it, and sending it to whoever is slow, is somebody else's time.
How much it may hold is bounded: a scrape must not grow with what extensions invent.
"""

from __future__ import annotations

import importlib.metadata
from functools import cache
from typing import Any, Final, TypeVar

from uxk.core.account import COUNTERS, GAUGES
from uxk.core.kmsg import LEVELS
from uxk.kernel.agent import KernelAgent
from uxk.kernel.kernel import Kernel
from uxk.kernel.proxy import MLModelProxy
from uxk.kernel.proxydata import ProxyDataset
from uxk.kernel.sites import ProxySite
from uxk.uapi.metrics import LATENCY_BOUNDS_NS, ModelSample, ModuleSample, PartSample, Snapshot
from uxk.uapi.ml import Mode

MODULES_MAX: Final = 256
MODELS_MAX: Final = 64
PARTS_MAX: Final = 256
"""Sites, and datasets, of all models together."""
REASONS_MAX: Final = 64
T = TypeVar("T")


def take_snapshot(kernel: Kernel) -> Snapshot:
    """Changes nothing in the kernel, and nothing of the event hash."""
    machine, kmsg = kernel.machine, kernel.kmsg.statistics()
    waits = machine.waits.statistics()
    left_out: dict[str, int] = {}
    agents = _first(sorted(kernel.agents.values(), key=lambda agent: agent.id), MODULES_MAX, "modules", left_out)
    models = _first(list(kernel.models), MODELS_MAX, "models", left_out)
    room = {"sites": PARTS_MAX, "datasets": PARTS_MAX}
    return Snapshot(
        machine.clock, str(kernel.seed), _version(),
        {
            "now_ns": kernel.now_ns, "events": machine.heap.fired, "turns": machine.turns,
            "hash_events": machine.hash.count, "outstanding": machine.outstanding, "runnable": len(machine.runnable),
            "modules": len(kernel.agents), "models": len(kernel.models), "devices": len(kernel.devices.devices),
            "arena_bytes": machine.arena.size_bytes, "granted_bytes": machine.granted_bytes,
            "wait_edges": waits.edges, "wait_cycles": waits.cycles, "blocking_decisions": waits.blocking_decisions,
            "kmsg_overwritten": kmsg.dropped, "kmsg_truncated": kmsg.truncated, "kmsg_followers": kmsg.followers,
        },
        dict(zip(LEVELS, kmsg.by_level, strict=True)), tuple(map(_module, agents)),
        tuple(_model(model, room, left_out) for model in models), left_out,
    )  # fmt: skip


@cache
def _version() -> str:
    try:
        return importlib.metadata.version("uxk")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _first(items: list[T], most: int, what: str, left_out: dict[str, int]) -> list[T]:
    if len(items) > most:
        left_out[what] = left_out.get(what, 0) + len(items) - most
    return items[:most]


def _reasons(rejects: dict[str, int]) -> dict[str, int]:
    """At most so many: the most frequent, and the sum of the others."""
    if len(rejects) <= REASONS_MAX:
        return dict(sorted(rejects.items()))
    ordered = sorted(rejects.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(sorted(ordered[: REASONS_MAX - 1]))
    kept["other"] = kept.get("other", 0) + sum(count for _, count in ordered[REASONS_MAX - 1 :])
    return kept


def _module(agent: KernelAgent) -> ModuleSample:
    account, queues = agent.account, agent.queues
    rings = {"sq": queues.sq, "cq": queues.cq, "up": queues.up, "answers": queues.answers}
    gauges = {name: getattr(account, name) for name in GAUGES}
    gauges |= {
        "staged": len(queues.staged), "staged_answers": len(queues.staged_answers),
        "backlog": len(agent.requests.backlog), "commands": len(agent.commands), "memory_bytes": agent.memory_bytes,
        "arena_bytes_max": account.arena_bytes_max,
    }  # fmt: skip
    return ModuleSample(
        agent.name, agent.manifest.name, agent.manifest.version, agent.manifest.driver_class, agent.placement,
        agent.state.name.lower(), {name: getattr(account, name) for name in COUNTERS}, gauges,
        _reasons(account.rejects), {name: ring.statistics()._asdict() for name, ring in rings.items()},
        account.latency.cumulated(LATENCY_BOUNDS_NS), account.latency.count, account.latency.total,
    )  # fmt: skip


def _model(proxy: MLModelProxy, room: dict[str, int], left_out: dict[str, int]) -> ModelSample:
    modes = proxy.modes
    sites = _first(list(proxy.sites.values()), room["sites"], "sites", left_out)
    datasets = _first(list(proxy.datasets.values()), room["datasets"], "datasets", left_out)
    room["sites"] -= len(sites)
    room["datasets"] -= len(datasets)
    return ModelSample(
        proxy.name, proxy.subsystem, proxy.mode.name.lower(), proxy.state.name.lower(),
        {
            "share_ppm": modes.share_ppm, "efficiency_ppm": modes.ledger.efficiency_ppm,
            "saved_ppm": modes.ledger.saved_ppm, "loss_ppm": modes.ledger.loss_ppm, "epochs": modes.epoch,
            "agents": len(proxy.agents), "watermarks": len(modes.critical),
        },
        {mode.name.lower(): proxy.mode_epochs[mode] for mode in Mode},
        tuple(map(_site, sites)), tuple(map(_dataset, datasets)),
    )  # fmt: skip


def _site(site: ProxySite) -> PartSample:
    names = (
        "generation", "units", "hinted_units", "held", "hints_received", "hints_applied", "hints_refused", "expired",
        "superseded",
    )  # fmt: skip
    return PartSample(site.name, _values(site, names), _reasons(site.rejects))


def _dataset(dataset: ProxyDataset) -> PartSample:
    return PartSample(dataset.name, {
        "generation": dataset.generation, "rows": dataset.describe().rows, "appended": dataset.rows,
        "lost": dataset.lost, "capacity": dataset.capacity,
    })  # fmt: skip


def _values(owner: Any, names: tuple[str, ...]) -> dict[str, int]:
    return {name: int(getattr(owner, name)) for name in names}
