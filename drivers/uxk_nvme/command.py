"""One command that is not on the fast path, as handlers see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from uxk_nvme.queues import ReplyQueue
from uxk_nvme.spec import BROADCAST, Refused, Status

if TYPE_CHECKING:
    from uxk_nvme.controller import Controller
    from uxk_nvme.namespaces import Namespace


class Command:
    """The 16 dwords of a command, where it came from, and what it is to be answered with."""

    __slots__ = (
        "_flags", "_sgl", "address", "controller", "corrupt", "dw", "dw0", "edit", "keep_bytes", "now_ns", "nsid",
        "opcode", "queue", "slba", "tag",
    )  # fmt: skip

    def __init__(
        self, controller: Controller, queue: ReplyQueue, dwords: tuple[int, ...], entry: tuple[int, ...], now_ns: int
    ) -> None:
        self.controller = controller
        self.queue = queue
        self.tag = entry[0] >> 16 & 0xFFFF
        self.dw = dwords
        self.opcode = entry[0] & 0xFF
        self.nsid = entry[0] >> 32
        self._flags = entry[0] >> 8 & 0xFF
        self.address = entry[1]
        """Where its data are: a bus address."""
        self._sgl = entry[2]
        self.slba = entry[3]
        self.now_ns = now_ns
        self.dw0 = 0
        """Dword 0 of the completion."""
        self.corrupt: Callable[[memoryview], object] | None = None
        """What a fault does to the data."""
        self.keep_bytes = -1
        """A fault moves only so many bytes of the data; negative: there is none."""
        self.edit: int | None = None
        """A fault replaces dword 0 of the completion."""

    def data(self, length: int, *, to_host: bool, exact: bool = False) -> memoryview:
        """The command's data, ``length`` bytes, on the host's side; with ``exact`` it may not say otherwise.

        Raises :class:`Refused`: SGL Descriptor Type Invalid, Data SGL Length Invalid, Data Transfer Error.
        """
        if self._flags >> 6 != 1:
            raise Refused(Status.INVALID_FIELD, byte=1, bit=6)  # PRPs are not served (SGLS says so)
        if self._sgl >> 56:
            raise Refused(Status.SGL_TYPE_INVALID)
        given = self._sgl & 0xFFFFFFFF
        if given < length or (exact and given != length):
            raise Refused(Status.SGL_LENGTH_INVALID)
        if not length:
            return memoryview(b"")
        return self.controller.subsystem.iommu.resolve(self.address, length, writable=to_host)

    def answer(self, payload: bytes) -> None:
        """Moves ``payload`` to the host; a fault may corrupt it, or cut it short."""
        view = self.data(len(payload), to_host=True)
        kept = len(payload) if self.keep_bytes < 0 else min(self.keep_bytes, len(payload))
        view[:kept] = payload[:kept]
        if self.corrupt is not None:
            self.corrupt(view[:kept])

    def namespace(self) -> Namespace:
        """The namespace that it addresses.  Refused: Invalid Namespace, or Invalid Field for an inactive one."""
        found = self.controller.active.get(self.nsid)
        if found is None:
            self.check_nsid()
            raise Refused(Status.INVALID_FIELD, byte=4)
        if found.busy_until_ns > self.now_ns:
            raise Refused(Status.FORMAT_IN_PROGRESS)
        return found

    def check_nsid(self) -> None:
        """Refused: Invalid Namespace for 0, for all of them, and beyond NN."""
        if not 0 < self.nsid <= self.controller.subsystem.namespaces.limit:
            raise Refused(Status.INVALID_NAMESPACE, byte=4)

    @property
    def broadcast(self) -> bool:
        """Whether it is about all namespaces."""
        return self.nsid == BROADCAST
