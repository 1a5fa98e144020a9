"""Collects what lsmod, modinfo and depmod tell."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from uxk.core.bind import modalias
from uxk.core.budget import memory_text
from uxk.core.confine import sandbox_texts
from uxk.core.params import describe_params
from uxk.kernel.agent import KernelAgent
from uxk.kernel.catalog import Catalog, ExtensionClass, description
from uxk.kernel.foreign import Foreign
from uxk.kernel.views import footprint_bytes
from uxk.uapi.info import Dependencies, ModuleInfo, ModuleRow


def loaded_rows(agents: Iterable[KernelAgent]) -> list[ModuleRow]:
    """Loaded instances, the newest first, as on Linux."""
    return [
        ModuleRow(
            agent.name, footprint_bytes(agent), tuple(agent.users()), agent.state.initstate,
            agent.manifest.version, agent.manifest.driver_class, agent.placement,
            agent.host.pid if agent.host is not None and agent.placement == "process" else 0,
        )
        for agent in reversed(list(agents))
    ]  # fmt: skip


def available_rows(catalog: Catalog) -> list[ModuleRow]:
    """Modules that could be loaded; size is the memory they would be granted."""
    rows = []
    for name in catalog.names():
        cls = catalog.usable(name)
        if cls is not None:
            manifest = cls.manifest
            rows.append(ModuleRow(
                name, manifest.budget.memory_bytes, (), "available", manifest.version, manifest.driver_class
            ))  # fmt: skip
    return rows


def module_info(cls: ExtensionClass) -> ModuleInfo:
    """Everything about a module that its manifest tells."""
    manifest = cls.manifest
    soft = manifest.softdep
    softdep = " ".join(
        ([f"pre: {' '.join(soft.pre)}"] if soft.pre else []) + ([f"post: {' '.join(soft.post)}"] if soft.post else [])
    )
    return ModuleInfo(
        filename=_filename(cls), name=manifest.name, version=manifest.version, author=manifest.author,
        license=manifest.license, description=description(cls), kind=manifest.kind,
        driver_class=manifest.driver_class, alias=(*manifest.alias, *(modalias(b.match) for b in manifest.binds)),
        depends=manifest.depends, softdep=softdep, capabilities=manifest.capabilities,
        placement=manifest.placement, memory_bytes=manifest.budget.memory_bytes,
        memory_params=tuple(map(memory_text, manifest.budget.memory_params)),
        queue_depth=manifest.budget.queue_depth, sandbox=tuple(sandbox_texts(manifest.sandbox)),
        parameters=tuple(describe_params(manifest.params)),
    )  # fmt: skip


def _filename(cls: ExtensionClass) -> str:
    if issubclass(cls, Foreign):
        return cls.file
    try:
        return inspect.getfile(cls)
    except (TypeError, OSError):
        return f"(built in: {cls.__module__}.{cls.__qualname__})"


def depmod(catalog: Catalog) -> Dependencies:
    """Dependencies and aliases of every module that can be found, and what is wrong with them."""
    graph = catalog.graph()
    broken = [text for _, text in sorted(catalog.broken.items())]
    return Dependencies(graph.modules_dep(), graph.modules_alias(), (*graph.check_all(), *broken))
