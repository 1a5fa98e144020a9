"""What a host process is told at its start, what it may see of memory, and what its death is called."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from uxk.actor import wire
from uxk.actor.actor import Crash, Start
from uxk.core.confine import allowed
from uxk.errors import CapabilityError, ModuleError, UxkError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.foreign import Foreign, program
from uxk.kernel.process_child import SOCKET_FD
from uxk.kernel.seconds import monotonic_ns
from uxk.module import Extension

MAPS_MAX: Final = 8
"""Descriptors on their way to a process: the kernel has to hold what is not read, and does not hold many."""
_OWN_FAULTS: Final = frozenset({
    signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS,
})  # fmt: skip
"""Signals that a process brings on itself: it would again."""


class Shared(NamedTuple):
    """Memory for a child: a descriptor, which whoever gets this closes, and the granted bytes in it."""

    descriptor: int
    offset: int
    length: int
    region: int
    """Number of the region that the bytes are part of."""
    generation: int
    """Number of the file that the descriptor leads to."""


Share: TypeAlias = Callable[[KernelAgent, int, bool], Shared]
"""``share(agent, cap, writable)``; raises UxkError as CapTable.check does."""


def NO_MEMORY(agent: KernelAgent, cap: int, writable: bool) -> Shared:  # noqa: N802 - a value of Share
    """Refuses."""
    raise CapabilityError(
        f"{agent.name}: capability {cap}: this kernel shares no memory with processes, expected placement=task",
        errno=errno.ENOTSUP,
    )


def mapped(share: Share, agent: KernelAgent, asked: wire.Map) -> tuple[wire.Mapped, int]:
    """The answer to MAP and the descriptor that goes with it, or why there is none."""
    try:
        shared = share(agent, asked.cap, asked.writable)
    except UxkError as exc:
        return wire.Mapped(asked.cap, 0, 0, asked.writable, exc.errno, str(exc)[: wire.WORD_MAX_CHARS]), -1
    return wire.Mapped(
        asked.cap, shared.length, shared.offset, asked.writable, region=shared.region, generation=shared.generation
    ), shared.descriptor  # fmt: skip


def program_of(cls: type[Extension[Any]], start: wire.Start) -> list[str]:
    """What the interpreter is started with: the runtime, or what turns into a program in another language.

    ModuleError or NoSuchModule if there is no such program.
    """
    ends = [str(SOCKET_FD), str(os.getpid())]
    if not issubclass(cls, Foreign):
        return ["-m", "uxk.actor.child", *ends]
    sandbox = msgspec.json.encode(start.sandbox).decode()
    folder = os.path.dirname(cls.file)
    return ["-m", "uxk.actor.launch", *ends, sandbox, str(start.memory_bytes), folder, *program(cls)]


def program_of_shared() -> list[str]:
    """The same for a process that instances are to share."""
    return ["-m", "uxk.actor.shared", str(SOCKET_FD), str(os.getpid())]


def described(agent: KernelAgent, start: Start, *, held: bool) -> wire.Start:
    """Everything that a process is told.  ModuleError if its class cannot be imported by another process."""
    cls, machine = agent.extension_class, agent.machine
    module = sys.modules.get(cls.__module__)
    name, file = cls.__module__, getattr(module, "__file__", None) or ""
    spec = getattr(module, "__spec__", None)
    if name == "__main__" and spec is not None and spec.name:
        name = spec.name
    if "<locals>" in cls.__qualname__:
        raise ModuleError(
            f"{agent.name}: {name}.{cls.__qualname__} is made inside a function; placement=process needs a class that "
            "a process of its own can import"
        )
    if name == "__main__" and not os.path.isfile(file):
        raise ModuleError(f"{agent.name}: {cls.__qualname__} is in no file; placement=process needs one to import")
    search, folder = tuple(entry or os.getcwd() for entry in sys.path), os.getcwd()
    if issubclass(cls, Foreign):
        name, file, search, folder = "", cls.file, (), os.path.dirname(cls.file)
    machine.refresh()
    return wire.Start(
        version=wire.VERSION_MAX, name=start.name, instance=start.instance, seed=start.seed, depth=start.depth,
        now_ns=start.now_ns, params=start.params, device=start.device, module=name, qualname=cls.__qualname__,
        file=os.path.abspath(file) if file else "", search=search, held=held,
        boot_ns=monotonic_ns() - machine.now_ns, memory_bytes=machine.arena.size_bytes,
        sandbox=allowed(agent.manifest, agent.params, folder),
        state_version=None if start.state is None else start.state.version,
        state=b"" if start.state is None else start.state.data,
    )  # fmt: skip


def death(status: str, printed: str) -> Crash:
    """The crash of a process that ended as ``status`` says, with the end of what it had printed."""
    kind, _, number = status.partition(" ")
    if kind == "signal":
        name = signal.Signals(int(number)).name if int(number) in set(signal.Signals) else "unknown"
        return Crash("process", "Killed", f"signal {number} ({name})", printed)
    return Crash("process", "Exited", status, printed)


def is_chance(crash: Crash) -> bool:
    """Whether the same run might go differently next time: somebody killed it, or it took too long."""
    own = {f"signal {number.value} ({number.name})" for number in _OWN_FAULTS}
    return crash.kind == "Hung" or (crash.kind == "Killed" and crash.message not in own)
