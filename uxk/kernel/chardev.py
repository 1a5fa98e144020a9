"""Char devices: ``/dev/NAME``, served by an extension; open, read, write, ioctl, poll, release (R45).

Each operation is a request with a deadline, so a hanging extension means ETIMEDOUT, never a stuck caller.
``poll`` asks nobody: it reports what the extension last said with ``set_poll``.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from uxk import limits
from uxk.core.manifest import name_problem
from uxk.errors import TreeError, UsageError, UxkError
from uxk.kernel.machine import Machine
from uxk.uapi import entries as e
from uxk.uapi.manifest import Ioctl

if TYPE_CHECKING:
    from uxk.kernel.agent import KernelAgent
    from uxk.kernel.aside import Aside
    from uxk.kernel.callport import CallPort

BUILTIN: Final = ("kmsg", "ml_lib")
"""The kernel's own char devices: no driver may have these names."""
POLLIN = 1
POLLOUT = 4
Wait: TypeAlias = Callable[["Chardev", int], Awaitable[int]]
"""Waits until a device reports one of some poll bits."""


OnUse: TypeAlias = Callable[["KernelAgent", int, int, int], object]
"""Told of every request to a driver's char device: driver, opcode, bytes moved, errno."""


def _unused(agent: KernelAgent, opcode: int, size_bytes: int, error: int) -> None:
    """Nobody wants to know."""


class Chardev:
    """A registered char device."""

    __slots__ = ("_waiters", "_watched", "agent", "files", "mask", "name", "on_use")

    def __init__(self, name: str, agent: KernelAgent, on_use: OnUse) -> None:
        self.name = name
        self.agent = agent
        self.on_use = on_use
        self.mask = POLLOUT
        self.files: dict[int, File] = {}
        self._waiters: dict[int, Callable[[], None]] = {}
        self._watched = 0

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls ``wake`` once when readiness changes; returns what cancels it.  ENOSPC if too many poll."""
        if len(self._waiters) >= limits.POLL_WAITERS_MAX:
            raise TreeError(f"/dev/{self.name}: {limits.POLL_WAITERS_MAX} poll already", errno=errno.ENOSPC)
        self._watched = number = self._watched + 1
        self._waiters[number] = wake
        return lambda: self._forget(number)

    def _forget(self, number: int) -> None:
        self._waiters.pop(number, None)

    def set_mask(self, mask: int) -> None:
        """New readiness; wakes those who poll."""
        self.mask = mask & (POLLIN | POLLOUT)
        waiters, self._waiters = self._waiters, {}
        for wake in waiters.values():
            wake()


class File:
    """An open char device.  Use it as an async context manager."""

    def __init__(self, device: Chardev, port: CallPort, wait: Wait) -> None:
        self._device = device
        self._port = port
        self._wait = wait
        self._closed = False
        self.offset = 0

    async def __aenter__(self) -> File:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def opened(self) -> None:
        """Tells the driver; its refusal closes the file again."""
        try:
            await self._do(e.Request(0, e.Op.OPEN))
        except BaseException:
            self.forget()
            raise

    async def read(self, size_bytes: int = limits.SHOW_MAX_BYTES) -> bytes:
        """At most ``size_bytes`` at the file's position; ``b""`` at the end."""
        completion = await self._do(e.Request(0, e.Op.READ, b"", self.offset, size_bytes))
        data = completion.payload[:size_bytes]
        self.offset += len(data)
        return data

    async def write(self, data: bytes) -> int:
        """Writes at the file's position; returns how much the device took."""
        if len(data) > limits.PAYLOAD_MAX_BYTES:
            raise UsageError(
                f"/dev/{self._device.name}: write of {len(data)} bytes, at most {limits.PAYLOAD_MAX_BYTES}",
                errno=errno.EMSGSIZE,
            )
        completion = await self._do(e.Request(0, e.Op.WRITE, data, self.offset, len(data)))
        taken = max(0, min(completion.result or len(data), len(data)))
        self.offset += taken
        return taken

    async def ioctl(self, command: str | int, argument: Any = None) -> Any:
        """A typed ioctl of the module's manifest, by name or number.  ENOTTY if it has none such."""
        ioctl = self._find(command)
        where = f"/dev/{self._device.name}: ioctl {ioctl.name}"
        if ioctl.arg is None and argument is not None:
            raise UsageError(f"{where}: takes no argument, got {argument!r}")
        try:
            payload = b"" if ioctl.arg is None else msgspec.msgpack.encode(msgspec.convert(argument, ioctl.arg))
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as exc:
            raise UsageError(f"{where}: argument {repr(argument)[:200]}: {exc}") from None
        completion = await self._do(e.Request(0, e.Op.IOCTL, payload, ioctl.number))
        if ioctl.reply is None:
            return completion.result
        try:
            return msgspec.msgpack.decode(completion.payload, type=ioctl.reply)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise UsageError(f"{where}: the driver's reply is malformed: {exc}", errno=errno.EBADMSG) from None

    async def poll(self, mask: int = POLLIN | POLLOUT) -> int:
        """Waits until one of ``mask`` is reported; returns which (POLLIN, POLLOUT)."""
        self._check_open()
        if not mask & (POLLIN | POLLOUT):
            raise UsageError(f"/dev/{self._device.name}: poll for {mask:#x}, expected POLLIN, POLLOUT or both")
        return await self._wait(self._device, mask)

    async def close(self) -> None:
        """Releases the file; a driver that is gone or hangs does not keep it open."""
        if self._closed:
            return
        try:
            await self._do(e.Request(0, e.Op.RELEASE))
        except UxkError:
            pass  # the file is closed all the same
        finally:
            self.forget()

    def forget(self) -> None:
        """Closes without telling the driver."""
        if not self._closed:
            self._closed = True
            if self._device.files.pop(self._port.port.id, None) is not None:
                self._device.agent.account.files -= 1
            self._port.close()

    def _find(self, command: str | int) -> Ioctl:
        for ioctl in self._device.agent.manifest.ioctls:
            if command in (ioctl.name, ioctl.number) and not isinstance(command, bool):
                return ioctl
        known = ", ".join(ioctl.name for ioctl in self._device.agent.manifest.ioctls) or "none"
        raise UsageError(f"/dev/{self._device.name}: no ioctl {command!r}; known: {known}", errno=errno.ENOTTY)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"/dev/{self._device.name}: file is closed", errno=errno.EBADF)

    async def _do(self, request: e.Request) -> e.Completion:
        self._check_open()
        device = self._device
        try:
            completion = await self._port.checked(request)
        except UxkError as exc:
            device.on_use(device.agent, request.opcode, 0, exc.errno)
            raise
        moved_bytes = len(completion.payload) or max(0, min(completion.result or len(request.payload), request.length))
        device.on_use(device.agent, request.opcode, moved_bytes, 0)
        return completion


class ChardevTable:
    """All char devices of a kernel."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.devices: dict[str, Chardev] = {}
        self.on_use: OnUse = _unused
        """Hears what was done with char devices that are added from now on."""

    def add(self, agent: KernelAgent, entry: e.AddChardev) -> tuple[int, bytes]:
        """Service of AddChardev: EEXIST for another's name, ENOSPC over the limit."""
        problem = name_problem(entry.name)
        if problem or entry.name in BUILTIN:
            raise UsageError(f"char device: {problem or f'{entry.name} is the kernel'}")
        known = self.devices.get(entry.name)
        if known is None:
            if len(agent.chardevs) >= limits.DEVICES_PER_INSTANCE_MAX:
                raise UsageError(
                    f"{agent.name}: {limits.DEVICES_PER_INSTANCE_MAX} char devices at most", errno=errno.ENOSPC
                )
            self.devices[entry.name] = agent.chardevs[entry.name] = Chardev(entry.name, agent, self.on_use)
            self._machine.log("info", agent.name, f"char device /dev/{entry.name}")
        elif known.agent is not agent:
            raise UsageError(f"/dev/{entry.name} belongs to {known.agent.name}", errno=errno.EEXIST)
        return 0, b""

    def set_poll(self, agent: KernelAgent, entry: e.SetPoll) -> None:
        """Service of SetPoll."""
        device = agent.chardevs.get(entry.name)
        if device is None:
            raise UsageError(f"{agent.name} has no char device {entry.name!r}", errno=errno.ENODEV)
        device.set_mask(entry.mask)

    def get(self, path: str) -> Chardev:
        """The device at ``/dev/NAME``.  ENOENT, or ENODEV if its driver is down."""
        device = self.devices.get(path.removeprefix("/dev/"))
        if device is None:
            raise TreeError(f"{path}: no such char device", errno=errno.ENOENT)
        return device

    def open(self, path: str, connect: Callable[[KernelAgent], CallPort], wait: Wait) -> File:
        """A file on the device at ``path``; EMFILE if too many are open."""
        device = self.get(path)
        if sum(len(each.files) for each in self.devices.values()) >= limits.OPEN_FILES_MAX:
            raise TreeError(f"{path}: {limits.OPEN_FILES_MAX} files are open already", errno=errno.EMFILE)
        port = connect(device.agent)
        file = File(device, port, wait)
        device.files[port.port.id] = file
        device.agent.account.files += 1
        return file

    def quiesce(self, agent: KernelAgent) -> None:
        """The driver died: nothing is readable until it says so again."""
        for device in agent.chardevs.values():
            device.set_mask(0)

    def remove_all(self, agent: KernelAgent) -> None:
        """The driver is gone for good: its files are closed, its nodes removed."""
        for name in list(agent.chardevs):
            self._remove(agent, name)

    def _remove(self, agent: KernelAgent, name: str) -> None:
        device = agent.chardevs[name]
        for file in list(device.files.values()):
            file.forget()
        device.set_mask(0)
        del self.devices[name], agent.chardevs[name]

    def set_aside(self, agent: KernelAgent, aside: Aside) -> None:
        """Nodes and open files are handed over; what they report is the new build's to say."""
        aside.masks = {name: device.mask for name, device in agent.chardevs.items()}
        self.quiesce(agent)

    def put_back(self, agent: KernelAgent, aside: Aside) -> None:
        """The old build goes on: what the new one has added goes."""
        for name in [name for name in agent.chardevs if name not in aside.masks]:
            self._remove(agent, name)
        for name, mask in aside.masks.items():
            agent.chardevs[name].set_mask(mask)
