"""What keeps the reader of a process's connection from reading on: output that is not collected, a share used up."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Final

import trio

from uxk import limits
from uxk.actor import wire
from uxk.kernel.agent import KernelAgent
from uxk.kernel.machine import Machine
from uxk.kernel.seconds import to_seconds

OUTPUTS_MAX: Final = 64
"""Outputs that wait to be collected before the reader waits for the kernel."""
FRAME_COST_BYTES: Final = 64
"""What the kernel holds for a frame beside its bytes: four bytes of a message are an empty one."""


class Valve:
    """Of one reader.  What is not read fills the socket; then the process waits itself."""

    __slots__ = ("_agent", "_heard_bytes", "_machine", "_opened")

    def __init__(self, machine: Machine, agent: KernelAgent) -> None:
        self._machine = machine
        self._agent = agent
        self._opened: trio.Event | None = None
        self._heard_bytes = 0
        """Of the outputs since there were none to collect."""

    def weigh(self, message: wire.Out, waiting: Sized) -> int:
        """Bytes that the kernel holds for an output, about, beside those that are ``waiting`` to be collected."""
        if not waiting:
            self._heard_bytes = 0
        size_bytes = sum(len(frame) for frames in (message.replies, message.up) for frame, _ in frames)
        size_bytes += FRAME_COST_BYTES * (len(message.replies) + len(message.up))
        self._heard_bytes += size_bytes
        return size_bytes

    def believe(self, cpu_ns: int) -> None:
        """What the process says it took: it is its own account, but a number that can be told stays one."""
        account = self._agent.account
        account.cpu_ns = min(account.cpu_ns + cpu_ns, limits.I64_MAX)

    def open(self) -> None:
        """Whoever waits looks again."""
        if self._opened is not None:
            self._opened.set()

    async def room(self, outputs: Sized) -> None:
        """Waits until not too many outputs are left to be collected, or none after as much as one may be long."""
        while len(outputs) > OUTPUTS_MAX or (outputs and self._heard_bytes > wire.ANSWER_MAX_BYTES):
            self._opened = trio.Event()
            await self._opened.wait()

    async def share(self, over: Callable[[], bool]) -> None:
        """Waits until the instance has some of its share of the kernel's processor again, or it is ``over``.

        For the real clock: on others the share is of virtual time.
        """
        agent, machine = self._agent, self._machine
        if not agent.limited:
            return
        while not over():
            machine.refresh()
            until_ns = agent.not_before_ns()
            if until_ns is None:
                agent.unheard = False
                return
            agent.unheard = True
            self._opened = trio.Event()
            with trio.move_on_after(to_seconds(until_ns - machine.now_ns)):
                await self._opened.wait()
