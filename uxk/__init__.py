"""uxk: a laboratory for operating systems whose policies are learned and whose drivers live in user space.

This façade imports lazily: an extension that needs :class:`Extension` does not load the kernel, and nothing
loads river until a learning extension asks for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

__version__: Final = "0.1.0"

if TYPE_CHECKING:
    from uxk.bridges.datalog.reader import DataLog as DataLog
    from uxk.bridges.datalog.recorder import DataLogRecorder as DataLogRecorder
    from uxk.bridges.datalog.settings import DataLogSettings as DataLogSettings
    from uxk.bridges.face.api import Face as Face
    from uxk.bridges.face.api import FaceFile as FaceFile
    from uxk.bridges.face.folder import FolderFace as FolderFace
    from uxk.bridges.face.graft import GraftedFace as GraftedFace
    from uxk.bridges.face.memory import MemoryFace as MemoryFace
    from uxk.bridges.face.socket import SocketFace as SocketFace
    from uxk.bridges.logs.reader import read_logs as read_logs
    from uxk.bridges.logs.replay import replay_log as replay_log
    from uxk.bridges.logs.settings import LogTo as LogTo
    from uxk.bridges.logs.writer import LogFile as LogFile
    from uxk.bridges.metrics.server import MetricsServer as MetricsServer
    from uxk.bridges.trace.recorder import TraceRecorder as TraceRecorder
    from uxk.context import Context as Context
    from uxk.core.action import ActionConfig as ActionConfig
    from uxk.core.cost import CostModel as CostModel
    from uxk.core.mode import ModeConfig as ModeConfig
    from uxk.core.rows import DatasetView as DatasetView
    from uxk.core.rows import feature_dicts as feature_dicts
    from uxk.core.sysctl import Sysctl as Sysctl
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
    from uxk.errors import UpgradeError as UpgradeError
    from uxk.errors import UsageError as UsageError
    from uxk.errors import UxkError as UxkError
    from uxk.evaluation import Evaluation as Evaluation
    from uxk.evaluation import evaluate as evaluate
    from uxk.evaluation import split_by_time as split_by_time
    from uxk.kernel.kernel import Kernel as Kernel
    from uxk.kernel.module import Module as Module
    from uxk.kernel.ports import Port as Port
    from uxk.ml import Advice as Advice
    from uxk.ml import Learner as Learner
    from uxk.ml import MLAgent as MLAgent
    from uxk.ml import Online as Online
    from uxk.ml import online as online
    from uxk.module import Extension as Extension
    from uxk.reply import Reply as Reply
    from uxk.scenario.model import Scenario as Scenario
    from uxk.scenario.run import run as run
    from uxk.submission import SubmissionQueue as SubmissionQueue
    from uxk.uapi.action import ActionChange as ActionChange
    from uxk.uapi.entries import Completion as Completion
    from uxk.uapi.entries import Event as Event
    from uxk.uapi.entries import Op as Op
    from uxk.uapi.entries import Request as Request
    from uxk.uapi.manifest import Bind as Bind
    from uxk.uapi.manifest import Budget as Budget
    from uxk.uapi.manifest import Ioctl as Ioctl
    from uxk.uapi.manifest import Manifest as Manifest
    from uxk.uapi.manifest import MemoryParam as MemoryParam
    from uxk.uapi.manifest import Params as Params
    from uxk.uapi.manifest import RestartPolicy as RestartPolicy
    from uxk.uapi.manifest import Sandbox as Sandbox
    from uxk.uapi.manifest import Softdep as Softdep
    from uxk.uapi.manifest import Watchdog as Watchdog
    from uxk.uapi.manifest import param as param
    from uxk.uapi.ml import Feedback as Feedback
    from uxk.uapi.ml import Mode as Mode
    from uxk.uapi.ml import ModeChange as ModeChange
    from uxk.uapi.ml import ModelCommand as ModelCommand
    from uxk.uapi.ml import ModelInfo as ModelInfo
    from uxk.uapi.ml import SiteState as SiteState
    from uxk.uapi.ml import decode_site as decode_site
    from uxk.uapi.rights import Rights as Rights

_HOME: Final = {
    "Context": "context", "Reply": "reply", "SubmissionQueue": "submission",
    "BudgetError": "errors", "CapabilityError": "errors", "InUse": "errors", "ModuleError": "errors",
    "NoSuchModule": "errors", "ParamError": "errors", "ProbeError": "errors", "RequestError": "errors",
    "RingFull": "errors", "Stalled": "errors", "UpgradeError": "errors", "UsageError": "errors", "UxkError": "errors",
    "DataLog": "bridges.datalog.reader", "DataLogRecorder": "bridges.datalog.recorder",
    "DataLogSettings": "bridges.datalog.settings",
    "Face": "bridges.face.api", "FaceFile": "bridges.face.api", "FolderFace": "bridges.face.folder",
    "GraftedFace": "bridges.face.graft", "MemoryFace": "bridges.face.memory", "SocketFace": "bridges.face.socket",
    "LogFile": "bridges.logs.writer", "LogTo": "bridges.logs.settings", "MetricsServer": "bridges.metrics.server",
    "TraceRecorder": "bridges.trace.recorder", "read_logs": "bridges.logs.reader", "replay_log": "bridges.logs.replay",
    "Evaluation": "evaluation", "evaluate": "evaluation", "split_by_time": "evaluation",
    "ActionConfig": "core.action", "CostModel": "core.cost", "ModeConfig": "core.mode", "feature_dicts": "core.rows",
    "Sysctl": "core.sysctl",
    "Kernel": "kernel.kernel", "Module": "kernel.module", "Port": "kernel.ports",
    "Advice": "ml", "DatasetView": "core.rows", "Learner": "ml", "MLAgent": "ml", "Online": "ml", "online": "ml",
    "Extension": "module", "ActionChange": "uapi.action",
    "Completion": "uapi.entries", "Event": "uapi.entries", "Op": "uapi.entries", "Request": "uapi.entries",
    "Bind": "uapi.manifest", "Budget": "uapi.manifest", "Ioctl": "uapi.manifest", "Manifest": "uapi.manifest",
    "MemoryParam": "uapi.manifest", "Params": "uapi.manifest", "RestartPolicy": "uapi.manifest",
    "Sandbox": "uapi.manifest",
    "Softdep": "uapi.manifest", "Watchdog": "uapi.manifest", "param": "uapi.manifest",
    "Feedback": "uapi.ml", "Mode": "uapi.ml", "ModeChange": "uapi.ml", "ModelCommand": "uapi.ml",
    "ModelInfo": "uapi.ml", "SiteState": "uapi.ml", "decode_site": "uapi.ml", "Rights": "uapi.rights",
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
