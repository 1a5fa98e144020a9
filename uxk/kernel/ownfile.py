"""What the kernel's own char devices share: ``/dev/kmsg`` and ``/dev/ml_lib`` are read record by record."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from uxk.errors import TreeError, UsageError
from uxk.kernel.chardev import POLLIN, POLLOUT

if TYPE_CHECKING:
    from uxk.kernel.dispatcher import Dispatcher


class OwnFile(ABC):
    """An open file of the kernel's own.  Use it as :class:`~uxk.kernel.chardev.File`."""

    path: ClassVar[str]

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    @abstractmethod
    def readable(self) -> bool:
        """Whether there is something to read."""

    @abstractmethod
    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls ``wake`` once when there is something new; returns what cancels it."""

    async def wait_readable(self, *, wait: bool) -> None:
        """Returns when there is something to read; EAGAIN at once if there is not and ``wait`` is False."""
        while not self.readable:
            if not wait:
                raise TreeError(f"{self.path}: nothing to read", errno=errno.EAGAIN)
            await self.poll(POLLIN)

    async def ioctl(self, command: str | int, argument: Any = None) -> Any:
        """There are none: ENOTTY."""
        self.check_open()
        raise UsageError(f"{self.path}: no ioctl {command!r}", errno=errno.ENOTTY)

    async def poll(self, mask: int = POLLIN | POLLOUT) -> int:
        """Waits until one of ``mask`` is reported.  It can always be written."""
        self.check_open()
        if not mask & (POLLIN | POLLOUT):
            raise UsageError(f"{self.path}: poll for {mask:#x}, expected POLLIN, POLLOUT or both")
        while True:
            ready = (POLLOUT | (POLLIN if self.readable else 0)) & mask
            if ready:
                return ready
            goal = self._dispatcher.goal(f"{self.path} to become readable")
            cancel = self.subscribe(goal.reach)
            try:
                await self._dispatcher.wait(goal)
            finally:
                cancel()

    async def close(self) -> None:
        """Closes the file."""
        self._closed = True

    def check_open(self) -> None:
        """EBADF if it is closed."""
        if self._closed:
            raise UsageError(f"{self.path}: file is closed", errno=errno.EBADF)
