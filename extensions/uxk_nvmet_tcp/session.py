"""One connection of a host: commands out of the protocol machine, into the controller, and answers back."""

from __future__ import annotations

import errno
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from uxk.uapi.blk import NvmeOp
from uxk.uapi.nvme import DNR, Admin, Status
from uxk_nvmet_tcp.command import Command
from uxk_nvmet_tcp.connection import Connection
from uxk_nvmet_tcp.memory import Slice
from uxk_nvmet_tcp.pdu import Buffer
from uxk_nvmet_tcp.spec import FABRICS, FcType

if TYPE_CHECKING:
    from uxk_nvmet_tcp.controller import Controller
    from uxk_nvmet_tcp.target import Target

_TO_CONTROLLER, _TO_HOST, _BOTH = 1, 2, 3
"""Bits 1:0 of an opcode: which way its data go."""
_REQUEST_FAULTS: Final = frozenset({
    errno.EINVAL, errno.EFAULT, errno.E2BIG, errno.EMSGSIZE, errno.EACCES, errno.EOPNOTSUPP, errno.ERANGE,
})  # fmt: skip
"""Errors of a request that say nothing of the device."""


class Session:
    """A connection's commands.  Sans-IO: the server gives bytes to :meth:`receive` and sends :meth:`take_output`."""

    __slots__ = (
        "_filling", "_spent", "_waiting", "closed", "conn", "connecting", "controller", "heard_ns", "local", "part",
        "peer", "qid", "since_ns", "target",
    )  # fmt: skip

    def __init__(self, target: Target, part: Slice, peer: str, local: tuple[str, int]) -> None:
        self.target = target
        self.part = part
        self.peer = peer
        """Who it is, for the log."""
        self.local = local
        """The address and the port that the host has connected to."""
        self.conn = Connection(self, target.load_crc, target.config.in_capsule_bytes)
        self.controller: Controller | None = None
        self.qid = 0
        self.connecting = False
        """A Connect waits for the device."""
        self.since_ns = self.heard_ns = target.now_ns()
        self.closed = False
        self._waiting: deque[Command] = deque()
        self._filling: set[Command] = set()
        self._spent: list[Command] = []

    # --- the server's side ---

    def receive(self, data: bytes) -> None:
        """Bytes from the host."""
        self.heard_ns = self.target.now_ns()
        if self.controller is not None:
            self.controller.heard_ns = self.heard_ns
        self._receive(data)

    def _receive(self, data: bytes) -> None:
        conn = self.conn
        conn.receive(data)
        if conn.out:
            self.target.dirty[self] = None
        if conn.closed and not self.closed:
            self.target.bad_hosts += 1
            self.close(conn.reason)

    def take_output(self) -> bytes:
        """What is to be sent, as one piece; the memory that it lay in is free again, and goes to who waits for it.

        Input that was held back is acted on, so that there may be more to send at once.
        """
        held = self.conn.held
        data = b"".join(self.conn.out)
        self.conn.out.clear()
        if self._spent:
            spent, self._spent = self._spent, []
            for command in spent:
                self.part.free(command.offset, command.length)
            while self._waiting and self._place(self._waiting[0]):
                self._waiting.popleft()
        if held:
            self._receive(b"")
        return data

    def close(self, reason: str) -> None:
        """The end of the connection: its commands are forgotten, their memory is free when the device is done."""
        if self.closed:
            return
        self.closed = True
        if not self.conn.closed:
            self.conn.end(reason)
        self._waiting.clear()
        if self._spent:  # what is still to be sent must not lie in memory that is given back
            self.conn.out = [bytes(piece) for piece in self.conn.out]
        for command in (*self._filling, *self._spent):
            self.part.free(command.offset, command.length)
        self._filling.clear()
        self._spent.clear()
        self.part.close()
        self.target.lost(self, reason)

    def begin_connect(self) -> None:
        """The device is asked for a controller: the place stays taken until it has answered."""
        self.connecting = True
        self.part.hold()

    def end_connect(self) -> None:
        """The device has answered."""
        self.connecting = False
        self.part.release()

    # --- the protocol machine's side ---

    def on_command(self, command: Command) -> None:
        """A capsule has come."""
        controller = self.controller
        counts = self.target.io_counts if self.qid else self.target.admin_counts
        counts[command.opcode] += 1
        if controller is None:
            if command.opcode == FABRICS and command.sqe[4] == FcType.CONNECT and not self.connecting:
                self.target.connect(self, command)
            else:
                self.conn.complete(command, Status.SEQUENCE_ERROR | DNR)
        elif command.opcode == FABRICS:
            controller.on_fabrics(self, command)
        elif not controller.registers.ready:
            self.conn.complete(command, Status.SEQUENCE_ERROR | DNR)
        elif self.qid:
            controller.on_io(self, command)
        else:
            controller.on_admin(self, command)

    def on_data(self, command: Command, good: bool) -> None:
        """The host has sent what was asked for."""
        self._filling.discard(command)
        if good:
            self._submit(command)
            return
        self.conn.complete(command, Status.TRANSIENT_TRANSPORT)
        self._spent.append(command)

    # --- to the device and back ---

    def passthrough(self, command: Command) -> None:
        """Gives a command to the device as it is, with its data in the connection's memory.

        An admin command that reads is answered out of :meth:`Controller.content` where there is any.
        """
        way = command.opcode & 3
        if not way:
            command.length = 0
        length = command.length
        if not length:
            self._submit(command)
        elif length > self.target.max_transfer_bytes or way == _BOTH:
            self.conn.complete(command, Status.INVALID_FIELD | DNR)
        elif way == _TO_HOST and not command.transport:
            self.conn.complete(command, Status.SGL_TYPE_INVALID | DNR)
        elif self._waiting or not self._place(command):
            self._waiting.append(command)

    def _place(self, command: Command) -> bool:
        """Gives a command its memory; False if there is none."""
        length = command.length
        offset = self.part.take(length)
        if offset < 0:
            return False
        command.offset = offset
        if command.opcode & 3 == _TO_CONTROLLER:
            view = self.part.view(offset, length)
            if command.transport:
                self._filling.add(command)
                self.conn.request_data(command, view)
                return True
            view[:] = command.data
            command.data = b""
        elif not self.qid:
            assert self.controller is not None
            view = self.part.view(offset, length)
            content = self.controller.content(self, command)
            view[:] = bytes(length) if content is None else content  # the device may write less than it was asked for
            if content is not None:
                self.conn.complete(command, data=view)
                self._spent.append(command)
                self.target.dirty[self] = None
                return True
        self._submit(command)
        return True

    def _submit(self, command: Command) -> None:
        controller = self.controller
        assert controller is not None
        if command.offset < 0:
            self.part.hold()
        self.target.backend.request(
            NvmeOp.IO if self.qid else NvmeOp.ADMIN, controller.device_cntlid, self.qid, command.sqe,
            partial(self._done, controller, controller.life, command), length=command.length,
            buffer=self.part.offset + command.offset if command.offset >= 0 else -1,
        )  # fmt: skip

    def _done(
        self, controller: Controller, life: int, command: Command, error: int, result: int, payload: bytes
    ) -> None:
        """The device has answered, or the request has failed on its way."""
        if command.offset < 0:
            self.part.release()
        if self.closed:
            if command.offset >= 0:
                self.part.free(command.offset, command.length)
            return
        if error and life == controller.life and error not in _REQUEST_FAULTS and error != errno.ETIMEDOUT:
            if command.offset >= 0:
                self.part.free(command.offset, command.length)
                command.offset = -1
            controller.failed(error)
            return
        status = result >> 32 & 0x7FFF
        data: Buffer | None = None
        if error:
            status = int(Status.INTERNAL) | (0 if error == errno.ETIMEDOUT else DNR)
        elif command.opcode & 3 == _TO_HOST and command.length and not status:
            data = payload or self.part.view(command.offset, command.length)
            if len(data) != command.length:
                status = Status.INTERNAL | DNR
            elif not self.qid and command.opcode == Admin.IDENTIFY:
                data = controller.patched(command, data)
        self.conn.complete(command, status, result & 0xFFFFFFFF, data)
        if command.offset >= 0:
            self._spent.append(command)
        self.target.dirty[self] = None
