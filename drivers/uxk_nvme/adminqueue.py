"""The driver's admin queue: identifies, creates queues, listens for events (Linux: drivers/nvme/host/core.c)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from uxk_nvme.events import SUPPORTED
from uxk_nvme.pcie import Registers
from uxk_nvme.queues import HostQueue
from uxk_nvme.spec import PAGE_BYTES, PSDT_SGL, Admin, Feature, Log

ADMIN_ENTRIES: Final = 32
_RESERVED: Final = 8
"""Places that commands with data leave to events and aborts."""

OnDone: TypeAlias = Callable[[bytes], object]
"""Gets a page of data, or nothing when the command has failed."""


class Now(Protocol):
    """A clock to look at."""

    @property
    def now_ns(self) -> int:
        """Present time."""
        ...


class AdminQueue:
    """Commands one after the other, since they share a page for their data; events and aborts beside them."""

    def __init__(self, registers: Registers, ring: HostQueue, page: memoryview, address: int, clock: Now) -> None:
        self._registers = registers
        self._ring = ring
        self._page = page
        self._address = address
        self._clock = clock
        self._free = list(range(ring.entries - 1))
        self._then: dict[int, Callable[[int, int], object]] = {}
        self._jobs: deque[tuple[tuple[int, ...], OnDone]] = deque()
        self._current = -1
        self._seen = -1
        """The command that was under way at the last sweep."""
        self._polling = False
        self._on_namespaces: Callable[[], object] = _nothing

    @property
    def busy(self) -> bool:
        """Whether a command other than a request for events is under way."""
        return self._current >= 0

    # --- commands ---

    def identify_controller(self, then: OnDone) -> None:
        """CNS 01h."""
        self._ask((Admin.IDENTIFY, 0, 1), then)

    def identify(self, cns: int, nsid: int, then: OnDone) -> None:
        """Any Identify data structure."""
        self._ask((Admin.IDENTIFY, nsid, cns), then)

    def create_queue(self, qid: int, entries: int, cq_address: int, sq_address: int, then: OnDone) -> None:
        """An I/O queue pair at those bus addresses."""
        size = qid | (entries - 1) << 16

        def with_cq(_: bytes) -> None:
            self._ask((Admin.CREATE_SQ, 0, size, 1 | qid << 16), then, address=sq_address)

        self._ask((Admin.CREATE_CQ, 0, size, 3 | qid << 16), with_cq, address=cq_address)

    def watch_events(self, on_namespaces: Callable[[], object]) -> None:
        """Calls back whenever namespaces have changed."""
        self._on_namespaces = on_namespaces
        self._page[:] = b"\1".ljust(PAGE_BYTES, b"\0")  # ACRE: it understands Command Retry Delay
        self._ask((Admin.SET_FEATURES, 0, Feature.HOST_BEHAVIOUR), lambda _: None)
        self._ask((Admin.SET_FEATURES, 0, Feature.EVENTS, SUPPORTED), lambda _: self._arm())

    def abort(self, qid: int, cid: int) -> None:
        """Asks the controller to end a command; what becomes of it shows in its own completion."""
        if self._free:
            self._issue((Admin.ABORT, 0, qid | cid << 16), 0, lambda status, dw0: None)

    def _arm(self) -> None:
        if self._free:
            self._issue((Admin.ASYNC_EVENT, 0, 0), 0, self._happened)

    def _happened(self, status: int, dw0: int) -> None:
        if status:
            return
        self._arm()
        log = dw0 >> 16 & 0xFF
        length = 511 if log == Log.SMART else 1023
        words = (length >> 2 if log == Log.SMART else length) << 16 | log
        # Reading the page arms the event again.
        self._ask((Admin.GET_LOG_PAGE, 0xFFFFFFFF if log == Log.SMART else 0, words), lambda _: self._read(log))

    def _read(self, log: int) -> None:
        if log == Log.CHANGED_NAMESPACES:
            self._on_namespaces()

    # --- the ring ---

    def _ask(self, words: tuple[int, ...], then: OnDone, *, address: int = 0) -> None:
        self._jobs.append(((*words, *(0,) * (4 - len(words)), address), then))
        self._next()

    def _next(self) -> None:
        if self._current >= 0 or not self._jobs or len(self._free) <= _RESERVED:
            return
        words, then = self._jobs.popleft()

        def done(status: int, dw0: int) -> None:
            if self._current == cid:
                self._current = -1
                then(b"" if status else bytes(self._page))
                self._next()

        self._current = cid = self._free[-1]
        self._issue(words[:4], words[4], done)

    def _issue(self, words: tuple[int, ...], address: int, then: Callable[[int, int], object]) -> None:
        opcode, nsid, dw10, dw11 = (*words, *(0,) * (4 - len(words)))
        cid = self._free.pop()
        self._then[cid] = then
        flags, length = (0, 0) if address else (PSDT_SGL << 8, PAGE_BYTES)
        at = address or self._address
        head = opcode | flags | cid << 16
        self._ring.put_dwords((
            head, nsid, 0, 0, 0, 0, at & 0xFFFFFFFF, at >> 32, length, 0, dw10, dw11, 0, 0, 0, 0,
        ))  # fmt: skip
        self._ring.ring()
        self._registers.doorbell(0, self._clock.now_ns)
        self.poll()

    def poll(self) -> None:
        """Takes completions; each may issue further commands."""
        if self._polling:
            return
        self._polling = True
        while taken := self._ring.reap():
            for dw0, words in taken:
                cid = words >> 32 & 0xFFFF
                then = self._then.pop(cid, None)
                self._free.append(cid)
                if then is not None:
                    then(words >> 49, dw0 & 0xFFFFFFFF)
        self._polling = False

    def sweep(self) -> None:
        """Aborts a command that was under way at the last sweep already."""
        if self._current >= 0 and self._current == self._seen:
            self.abort(0, self._current)
        self._seen = self._current


def _nothing() -> None:
    """The handler of whom nobody watches."""
