"""A command of a host on its way, and who hears of commands."""

from __future__ import annotations

from typing import Protocol


class Command:
    """A command of a host, from its capsule to its completion."""

    __slots__ = ("cid", "data", "length", "offset", "opcode", "sqe", "transport")

    def __init__(self, sqe: bytes, data: bytes, length: int, transport: bool) -> None:
        self.sqe = sqe
        self.opcode = sqe[0]
        self.cid = sqe[2] | sqe[3] << 8
        self.data = data
        """What its capsule carried."""
        self.length = length
        """Of its data, in bytes, whichever way they go."""
        self.transport = transport
        """Whether its data go over PDUs of their own."""
        self.offset = -1
        """Where its data lie in the connection's memory."""

    def __repr__(self) -> str:
        return f"<Command {self.opcode:#x} cid {self.cid} {self.length} B>"


class Handler(Protocol):
    """Who hears of commands."""

    def on_command(self, command: Command) -> None:
        """A capsule has come, sound and with all that it carried."""

    def on_data(self, command: Command, good: bool) -> None:
        """What :meth:`Connection.request_data` asked for is there; not ``good``: a data digest was wrong."""
