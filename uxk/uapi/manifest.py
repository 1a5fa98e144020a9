"""The manifest: everything that tells one extension from another, as data."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, dataclass_transform

import msgspec

from uxk import limits

Kind: TypeAlias = Literal["ml-agent", "driver", "both"]
Fate: TypeAlias = Literal["fail", "requeue", "reissue"]
Restart: TypeAlias = Literal["permanent", "transient", "temporary"]
Placement: TypeAlias = Literal["task", "process"]
Passthrough: TypeAlias = Literal["", "nvme"]
FullPolicy: TypeAlias = Literal["defer", "reject"]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base class of a module's parameters: subclass it, give every field a type and a default.

    Constrain and describe a field with ``Annotated[int, uxk.param(ge=1, help="...")]``.
    """


def param(
    *,
    ge: int | None = None,
    gt: int | None = None,
    le: int | None = None,
    lt: int | None = None,
    pattern: str | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    help: str = "",
    unit: Literal["", "bytes", "ns"] = "",
    writable: bool = False,
) -> msgspec.Meta:
    """Constraints and help of a parameter, for use inside ``Annotated``.

    ``unit="bytes"`` accepts ``"64KiB"``, ``"1GiB"``; ``unit="ns"`` accepts ``"10us"``, ``"5ms"``, ``"2s"``.
    ``writable`` makes ``/sys/module/NAME/parameters/PARAM`` writable (mode 0644) while the module is loaded.
    """
    bounds: dict[str, Any] = {
        "ge": ge, "gt": gt, "le": le, "lt": lt,
        "pattern": pattern, "min_length": min_length, "max_length": max_length,
    }  # fmt: skip
    return msgspec.Meta(**bounds, description=help or None, extra={"unit": unit, "writable": writable})


class Bind(msgspec.Struct, frozen=True):
    """A bind rule: the extension attaches to every device whose properties match all of ``match``.

    Values are shell patterns (``fnmatch``), as in Linux's ``modules.alias``.  Example:
    ``Bind({"class": "block", "vendor": "uxk*"})``.
    """

    match: dict[str, str]


class Softdep(msgspec.Struct, frozen=True):
    """Optional dependencies: loaded before (``pre``) or after (``post``) if they can be found."""

    pre: tuple[str, ...] = ()
    post: tuple[str, ...] = ()


class MemoryParam(msgspec.Struct, frozen=True):
    """Memory that goes with a parameter: ``times`` bytes for every ``per`` bytes of it, if others are as ``when`` says.

    Example: ``MemoryParam("size", {"backing": "ram"})``, a disk that takes memory only if that is where it is.
    """

    name: str
    """An int parameter in bytes; not a writable one."""
    when: dict[str, str] = {}
    """Parameters and shell patterns that their values must match, all of them, as sysfs shows them (``Y`` or ``N``)."""
    times: int = 1
    per: int = 1


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance may use at most; granted before any of its code runs (R8)."""

    memory_bytes: int = limits.MEMORY_BYTES_DEFAULT
    """Arena bytes."""
    memory_params: tuple[str | MemoryParam, ...] = ()
    """Parameters, in bytes, that come on top: a device as large as the user says."""
    queue_depth: int = limits.QUEUE_DEPTH_DEFAULT
    """Slots of each of its rings; a power of two."""
    cpu_ppm: int = limits.PPM
    """Share of one processor, in parts per million: of charged virtual time, on the real clock of the kernel's own."""
    hints_per_s: int = limits.HINTS_PER_SECOND_DEFAULT
    log_burst: int = limits.LOG_BURST_DEFAULT
    """Log lines per five seconds."""


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When and how often a dead instance is started again (OTP's words).

    permanent: always; transient: only after a crash; temporary: never.  More than ``max_restarts`` within
    ``period_ns`` gives up.  The n-th restart in a row waits ``backoff_ns * 2**(n-1)``, at most ``backoff_max_ns``.
    """

    mode: Restart = "transient"
    max_restarts: int = 3
    period_ns: int = 5_000_000_000
    backoff_ns: int = 1_000_000
    backoff_max_ns: int = 1_000_000_000


class Watchdog(msgspec.Struct, frozen=True, kw_only=True):
    """When a silent instance counts as dead.  ``None`` switches a check off."""

    heartbeat_ns: int | None = None
    """Interval of pings; an instance that has not answered one before the next but one is dead."""
    request_timeout_ns: int = limits.REQUEST_TIMEOUT_NS_DEFAULT
    """Deadline of every request handed to the driver."""
    timeouts_max: int = 3
    """Timed-out requests in a row before the driver counts as hung."""


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """What a host process may do beside computing (placement ``process``); everything else is denied.

    Paths are absolute, or begin with a parameter in braces: ``{tls_cert}`` is the file that it names,
    ``{backing:file}`` is PATH if its value is ``file:PATH``, ``{unix}/..`` the folder around a file.  One that is empty
    stands for nothing.
    """

    memory_bytes: int = limits.HOST_MEMORY_BYTES_DEFAULT
    """Private memory, beside the runtime's own and the arena."""
    files: int = limits.HOST_FILES_DEFAULT
    """Open descriptors."""
    network: bool = False
    """Sockets of its own."""
    processes: bool = False
    """Programs and processes of its own, confined alike; it can wait for them, and not send them signals."""
    read: tuple[str, ...] = ()
    """Files, and folders with all that is in them, to read: beside what lies on the import path."""
    write: tuple[str, ...] = ()
    """The same to read, write, make and remove."""


class Ioctl(msgspec.Struct, frozen=True):
    """A typed ioctl of a char device: name, number, and the msgspec types of argument and reply."""

    name: str
    number: int
    arg: Any = None
    reply: Any = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a module says of itself.  Checked by :mod:`uxk.core.manifest` before the module is used."""

    name: str
    """Lower case; ``-`` and ``_`` are the same."""
    version: str = "0"
    author: str = ""
    license: str = ""
    """An SPDX expression."""
    description: str = ""
    """Defaults to the first line of the extension's docstring."""
    kind: Kind = "driver"
    """A driver gets a device of its own; an ml-agent none."""
    driver_class: str = "misc"
    """The class of its devices, ``/sys/class/NAME``; comes into being with the first of them."""
    params: type[Params] = Params
    """Its parameters: a subclass of :class:`Params`."""
    depends: tuple[str, ...] = ()
    """Modules that must be loaded before it, and stay while it is."""
    softdep: Softdep = Softdep()
    """Modules that are loaded with it if they can be."""
    alias: tuple[str, ...] = ()
    """Further names or patterns by which ``modprobe`` finds it."""
    binds: tuple[Bind, ...] = ()
    """Devices that it attaches to: each arrives as an event ``device_add`` with a capability."""
    capabilities: tuple[str, ...] = ()
    """What it asks for beyond its own queues: ``"kmsg:read"``, ``"sysctl:vm/*:write"``, ``"device:null0"``."""
    budget: Budget = Budget()
    """What it may use at most."""
    restart: RestartPolicy = RestartPolicy()
    """When it is started again after its death."""
    watchdog: Watchdog = Watchdog()
    """When its silence counts as death."""
    fate: Fate = "fail"
    """Of requests in flight when the instance dies (ublk's words): fail, requeue or reissue."""
    full: FullPolicy = "defer"
    """What happens to a submission that finds the ring full: wait in a bounded backlog, or ``EAGAIN``."""
    placement: Placement = "task"
    """Where it runs, unless who loads it says otherwise: in the kernel's process as a task, or in one of its own."""
    host: str = ""
    """Name of the process that it shares with all modules that name the same, where placement is ``process``; one of
    its own if empty."""
    sandbox: Sandbox = Sandbox()
    """What its process may do, if it has one of its own."""
    ready: Literal["setup", "explicit"] = "setup"
    """Ready when ``setup`` returns, or only when the extension calls ``ctx.ready()``."""
    ready_timeout_ns: int = limits.READY_TIMEOUT_NS_DEFAULT
    """Limit of the way to readiness, in virtual time."""
    turn_cost_ns: int | None = None
    """Declared cost of one turn on the charged clock; ``None`` measures it once."""
    ioctls: tuple[Ioctl, ...] = ()
    """Typed ioctls of its char devices."""
    passthrough: Passthrough = ""
    """What its opcodes from ``Op.PRIVATE`` up are: ``"nvme"``, as of ``NvmeOp``. Accounts count their data,
    and when a client extension's connection ends, the driver gets ``Op.RELEASE`` from its port."""
    exclusive: bool = False
    """Whether it has something outside the kernel that there can be only once, as a socket's address: in an upgrade
    the old build ends before the new one begins.  Else the new one is started beside it."""
    state_version: int = 1
    """Format of the state handed over by a hot upgrade."""
