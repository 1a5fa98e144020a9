"""Begins hot upgrades and restarts: what is refused is refused before anything happens.

See :mod:`uxk.kernel.transaction` for what happens then.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from uxk.core import lifecycle
from uxk.core.manifest import canonical
from uxk.core.params import parse_params
from uxk.errors import InUse, UsageError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.builds import Build, carried, check_same, check_state, is_exclusive, room_for_both, trial_of
from uxk.kernel.catalog import Catalog, ExtensionClass, checked
from uxk.kernel.incarnation import Incarnations
from uxk.kernel.loader import Loader
from uxk.kernel.machine import Machine
from uxk.kernel.transaction import Upgrade
from uxk.kernel.versions import Finder


class Upgrades:
    """Begins upgrades."""

    def __init__(
        self, machine: Machine, loader: Loader, incarnations: Incarnations, catalog: Catalog,
        busy: Callable[[KernelAgent], int],
    ) -> None:  # fmt: skip
        self.machine = machine
        self.loader = loader
        self.incarnations = incarnations
        self.catalog = catalog
        self.busy = busy
        """Requests that an instance has under way with others."""
        self.finder = Finder(catalog)

    def begin(
        self, agent: KernelAgent, to: ExtensionClass | str | Path | None, params: Mapping[str, object],
        on_end: Callable[[str], object], **trial: Any,
    ) -> Upgrade:  # fmt: skip
        """Begins to replace ``agent``'s build, by its own if ``to`` is None; ``on_end`` hears what went wrong, or "".

        Before anything happens: UsageError (EAGAIN, EBUSY, EINVAL), NoSuchModule, ManifestError, ParamError,
        BudgetError.
        """
        if agent.upgrade is not None:
            raise InUse(f"{agent.name}: an upgrade is under way: {agent.upgrade.phase.value}")
        if agent.state is not lifecycle.ModuleState.LIVE:
            raise UsageError(f"{agent.name}: it is {agent.state.initstate}, expected live", errno=errno.EAGAIN)
        cls = self.finder.find(agent, to)
        try:
            upgrade = self._begun(agent, cls, params, on_end, trial)
        except BaseException:
            self.finder.forget(cls)
            raise
        upgrade.begin()
        return upgrade

    def _begun(
        self, agent: KernelAgent, cls: ExtensionClass, params: Mapping[str, object], on_end: Callable[[str], object],
        trial: dict[str, Any],
    ) -> Upgrade:  # fmt: skip
        manifest = checked(cls)
        check_same(agent, manifest)
        check_state(agent, cls)
        given = {canonical(name): value for name, value in params.items()}
        values = parse_params(manifest.name, manifest.params, {**carried(agent.params, manifest.params), **given})
        build = Build(cls, values, self.loader.dependencies(manifest, agent.name))
        both_bytes = room_for_both(agent, build, beside=not is_exclusive(agent, cls))
        upgrade = Upgrade(self, agent, build, trial_of(trial, agent.account), on_end, both_bytes)
        upgrade.given = given
        return upgrade
