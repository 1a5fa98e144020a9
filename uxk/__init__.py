"""uxk: a laboratory for operating systems whose policies are learned and whose drivers live in user space.

This façade imports lazily: an extension that needs :class:`Extension` does not load the kernel, and nothing
loads river until a learning extension asks for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

__version__: Final = "0.1.0"

if TYPE_CHECKING:
    from uxk.context import Context as Context
    from uxk.context import Reply as Reply
    from uxk.core.cost import CostModel as CostModel
    from uxk.errors import BudgetError as BudgetError
    from uxk.errors import CapabilityError as CapabilityError
    from uxk.errors import InUse as InUse
    from uxk.errors import ModuleError as ModuleError
    from uxk.errors import NoSuchModule as NoSuchModule
    from uxk.errors import ParamError as ParamError
    from uxk.errors import ProbeError as ProbeError
    from uxk.errors import RequestError as RequestError
    from uxk.errors import RingFull as RingFull
    from uxk.errors import Stalled as Stalled
    from uxk.errors import UsageError as UsageError
    from uxk.errors import UxkError as UxkError
    from uxk.kernel.kernel import Kernel as Kernel
    from uxk.kernel.module import Module as Module
    from uxk.kernel.ports import Port as Port
    from uxk.module import Extension as Extension
    from uxk.scenario.model import Scenario as Scenario
    from uxk.scenario.run import run as run
    from uxk.uapi.entries import Completion as Completion
    from uxk.uapi.entries import Event as Event
    from uxk.uapi.entries import Op as Op
    from uxk.uapi.entries import Request as Request
    from uxk.uapi.manifest import Bind as Bind
    from uxk.uapi.manifest import Budget as Budget
    from uxk.uapi.manifest import Ioctl as Ioctl
    from uxk.uapi.manifest import Manifest as Manifest
    from uxk.uapi.manifest import Params as Params
    from uxk.uapi.manifest import RestartPolicy as RestartPolicy
    from uxk.uapi.manifest import Softdep as Softdep
    from uxk.uapi.manifest import Watchdog as Watchdog
    from uxk.uapi.manifest import param as param
    from uxk.uapi.rights import Rights as Rights

_HOME: Final = {
    "Context": "context", "Reply": "context",
    "BudgetError": "errors", "CapabilityError": "errors", "InUse": "errors", "ModuleError": "errors",
    "NoSuchModule": "errors", "ParamError": "errors", "ProbeError": "errors", "RequestError": "errors",
    "RingFull": "errors", "Stalled": "errors", "UsageError": "errors", "UxkError": "errors",
    "CostModel": "core.cost", "Kernel": "kernel.kernel", "Module": "kernel.module", "Port": "kernel.ports",
    "Extension": "module",
    "Completion": "uapi.entries", "Event": "uapi.entries", "Op": "uapi.entries", "Request": "uapi.entries",
    "Bind": "uapi.manifest", "Budget": "uapi.manifest", "Ioctl": "uapi.manifest", "Manifest": "uapi.manifest",
    "Params": "uapi.manifest", "RestartPolicy": "uapi.manifest", "Softdep": "uapi.manifest",
    "Watchdog": "uapi.manifest", "param": "uapi.manifest",
    "Rights": "uapi.rights",
    "Scenario": "scenario.model", "run": "scenario.run",
}  # fmt: skip

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'uxk' has no attribute {name!r}")
    value = getattr(import_module(f"uxk.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
