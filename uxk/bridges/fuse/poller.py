"""poll(2) on an open file: FUSE asks what is ready now, and wants to be told when that changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import trio

from uxk.bridges.face.api import POLLERR, POLLHUP
from uxk.errors import UxkError

GRACE_S: Final = 0.02
"""How long an answer waits for what may be ready already: a face says so by returning, over a socket a little later."""


class Poller:
    """Readiness of one open file.  ``waits`` has an endless wait for each bit that may not be there."""

    def __init__(
        self, nursery: trio.Nursery, always: int, waits: Mapping[int, Callable[[], Awaitable[int]]]
    ) -> None:  # fmt: skip
        self._nursery = nursery
        self._always = always
        self._waits = waits
        self._running: dict[int, trio.CancelScope] = {}
        self._found: dict[int, int] = {}
        self._asking = 0
        self._news = trio.Event()
        self._bell: Any = None

    async def poll(self, bell: Any) -> int:
        """The bits that are there.  ``bell.notify()`` is called once when there are others; None is nobody's bell.

        A bit that was ready is asked for anew each time, since somebody may have read what there was.
        """
        if bell is not None:
            self._bell = bell
        fresh = [bit for bit in self._waits if bit not in self._running]
        for bit in fresh:
            self._found.pop(bit, None)
            self._start(bit)
        self._asking += 1
        try:
            with trio.move_on_after(GRACE_S):
                while any(bit in self._running for bit in fresh):
                    await self._news.wait()
        finally:
            self._asking -= 1
        ready = self._always
        for bits in self._found.values():
            ready |= bits
        return ready

    def close(self) -> None:
        """Stops waiting; whoever polls is told to look again."""
        for scope in self._running.values():
            scope.cancel()
        self._ring()

    def silence(self) -> None:
        """Nobody is to be told any more."""
        self._bell = None

    def _start(self, bit: int) -> None:
        scope = self._running[bit] = trio.CancelScope()
        self._nursery.start_soon(self._wait, bit, scope, name=f"fuse poll {bit:#x}")

    async def _wait(self, bit: int, scope: trio.CancelScope) -> None:
        with scope:
            try:
                self._found[bit] = await self._waits[bit]() or bit | POLLERR | POLLHUP
            except UxkError:
                self._found[bit] = bit | POLLERR | POLLHUP  # a read would say why, at once
        del self._running[bit]
        news, self._news = self._news, trio.Event()
        news.set()
        if not self._asking:
            self._ring()

    def _ring(self) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            with suppress(OSError):  # nobody polls any more
                bell.notify()
