"""One end of the connection between a kernel and a host process: a Unix stream socket, and how to wait for it.

The one place that knows the transport.  Neither end blocks in the socket itself: sending keeps what does not fit,
receiving takes what is there.  Who waits spins for a moment first, if spinning has paid of late: a peer that
answers within microseconds is then heard without a sleep and a wake-up, which cost more than the answer.
"""

from __future__ import annotations

import array
import os
import select
import socket
from collections import deque
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any, Final, Generic, TypeVar

from uxk.actor.wire import Message, Reader, packed
from uxk.limits import I64_MAX

T = TypeVar("T")

SPIN_NS: Final = 50_000
"""Longest spin: about what a sleep, a wake-up and two context switches cost."""
_CREDIT_MAX: Final = 8
_PROBE_WAITS: Final = 64
"""Waits without spinning before it is tried again."""
_NONE: Final = -1
_NS_PER_MS: Final = 1_000_000
_RIGHTS_BYTES: Final = socket.CMSG_SPACE(4 * array.array("i").itemsize)
BACKLOG_MAX_BYTES: Final = 256 << 10
"""Bytes that wait for the peer to read; with more, the link counts as stalled."""


class Gone(Exception):
    """The peer has closed its end, or died."""


class Spin:
    """Decides whether a wait begins with a spin: while most spins hit, and never on a single processor."""

    __slots__ = ("_credit", "_idle", "allowed")

    def __init__(self) -> None:
        self.allowed = len(os.sched_getaffinity(0)) > 1
        self._credit = _CREDIT_MAX
        self._idle = 0

    def worth(self) -> bool:
        """Whether to spin now."""
        if self._credit > 0:
            return self.allowed
        self._idle += 1
        return self.allowed and self._idle % _PROBE_WAITS == 0

    def hit(self) -> None:
        """The spin was long enough."""
        self._credit = min(_CREDIT_MAX, self._credit + 1)

    def miss(self) -> None:
        """It was not."""
        self._credit = max(0, self._credit - 2)


class Link(Generic[T]):
    """One end.  ``kinds`` is the union of messages that the peer sends."""

    __slots__ = ("_out", "_poll", "_reader", "_watched", "pending_bytes", "pending_descriptors", "sock", "spin")

    def __init__(self, sock: socket.socket, kinds: Any, watched: Sequence[int] = ()) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._reader: Reader[T] = Reader(kinds)
        self._out: deque[tuple[memoryview, int]] = deque()
        self.pending_bytes = 0
        """Bytes that the peer has not taken yet."""
        self.pending_descriptors = 0
        """Descriptors that it has not taken yet."""
        self._watched = set(watched)
        self._poll: select.poll | None = None
        self.spin = Spin()

    # --- sending ---

    def send(self, message: Message, descriptor: int = _NONE) -> None:
        """Sends what fits and keeps the rest for :meth:`flush`.  Gone if nobody will ever read it.

        A ``descriptor`` goes along, and is closed here when it is sent.
        """
        data = packed(message)
        if not self._out and descriptor == _NONE:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as exc:
                raise Gone(str(exc)) from None
            if sent == len(data):
                return
            data = data[sent:]
        self._out.append((memoryview(data), descriptor))
        self.pending_bytes += len(data)
        self.pending_descriptors += descriptor != _NONE
        self.flush()

    @property
    def stalled(self) -> bool:
        """Whether the peer does not read: give it nothing more."""
        return self.pending_bytes > BACKLOG_MAX_BYTES

    @property
    def pending_messages(self) -> int:
        """Messages that the peer has not taken yet."""
        return len(self._out)

    def flush(self) -> bool:
        """Sends more of what is kept; True if nothing is left."""
        out = self._out
        while out:
            data, descriptor = out[0]
            try:
                if descriptor == _NONE:
                    sent = self.sock.send(data)
                else:
                    rights = array.array("i", [descriptor])
                    sent = self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                    os.close(descriptor)
                    self.pending_descriptors -= 1
            except BlockingIOError:
                return False
            except OSError as exc:
                raise Gone(str(exc)) from None
            self.pending_bytes -= sent
            if sent == len(data):
                out.popleft()
            else:
                out[0] = (data[sent:], _NONE)
        return True

    # --- receiving ---

    @property
    def more(self) -> bool:
        """Whether there are messages that the last :meth:`receive` was not to return."""
        return self._reader.more

    def receive(self, most: int = I64_MAX) -> list[T]:
        """The messages that are there, perhaps none, ``most`` at most.

        Gone at the end; ProtocolError for what is no message.
        """
        reader = self._reader
        if reader.more:
            return reader.filled(0, most)
        try:
            count = self.sock.recv_into(reader.room())
        except BlockingIOError:
            return []
        except OSError as exc:
            raise Gone(str(exc)) from None
        if not count:
            raise Gone("end of file")
        return reader.filled(count, most)

    def receive_with(self) -> tuple[list[T], list[int]]:
        """As :meth:`receive`, with the descriptors that came along; they are the caller's."""
        reader = self._reader
        try:
            count, ancillary, _, _ = self.sock.recvmsg_into([reader.room()], _RIGHTS_BYTES)
        except BlockingIOError:
            return [], []
        except OSError as exc:
            raise Gone(str(exc)) from None
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        if not count:
            raise Gone("end of file")
        return reader.filled(count), list(descriptors)

    # --- waiting ---

    def spin_receive(self) -> list[T]:
        """Spins for messages if that is worth it; perhaps none."""
        spin = self.spin
        if self._reader.more or not spin.worth():
            return self.receive()
        until_ns = perf_counter_ns() + SPIN_NS
        recv_into, room = self.sock.recv_into, self._reader.room()
        while True:
            try:
                count = recv_into(room)
            except BlockingIOError:
                if perf_counter_ns() < until_ns:
                    continue
                spin.miss()
                return []
            except OSError as exc:
                raise Gone(str(exc)) from None
            if not count:
                raise Gone("end of file")
            spin.hit()
            return self._reader.filled(count)

    def wait(self, timeout_ns: int | None = None) -> bool:
        """Sleeps until there is something to receive, room to send what is kept, or a watched descriptor.

        False if the time is over.
        """
        if self._reader.more:
            return True
        poll = self._poll
        if poll is None:
            poll = self._poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            for descriptor in self._watched:
                poll.register(descriptor, select.POLLIN)
        if self._out:
            poll.modify(self.sock, select.POLLIN | select.POLLOUT)
        try:
            timeout_ms = None if timeout_ns is None else max(0, -(-timeout_ns // _NS_PER_MS))
            return bool(poll.poll(timeout_ms))
        finally:
            if self._out:
                poll.modify(self.sock, select.POLLIN)

    def wait_for_messages(self) -> list[T]:
        """At least one message, however long it takes; sends what is kept meanwhile.  For the child."""
        messages = self.spin_receive()
        while not messages:
            self.wait()
            if self._out:
                self.flush()
            messages = self.receive()
        return messages

    def send_all(self, message: Message) -> None:
        """Sends a message to its last byte, however long that takes.  For the child."""
        self.send(message)
        while self._out:
            poll = select.poll()
            poll.register(self.sock, select.POLLOUT)
            poll.poll()
            self.flush()

    def watch(self, descriptor: int) -> None:
        """Waits end with something to read from this descriptor, too."""
        self._watched.add(descriptor)
        self._poll = None

    def unwatch(self, descriptor: int) -> None:
        """Waits are for this descriptor no more."""
        self._watched.discard(descriptor)
        self._poll = None

    def close(self) -> None:
        """Hangs up; what is still kept is lost."""
        self.sock.close()
        for _, descriptor in self._out:
            if descriptor != _NONE:
                os.close(descriptor)
        self._out.clear()
        self.pending_descriptors = 0
