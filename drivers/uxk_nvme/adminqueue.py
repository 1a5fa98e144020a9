"""The driver's admin queue: identifies, creates queues, listens for events (Linux: drivers/nvme/host/core.c)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeAlias

from uxk_nvme.events import SUPPORTED
from uxk_nvme.pcie import Registers
from uxk_nvme.queues import HostQueue
from uxk_nvme.spec import PAGE_BYTES, PSDT_SGL, Admin, Feature, Log
from uxk_nvme.watch import Watch

ADMIN_ENTRIES: Final = 32
ABORTS_MAX: Final = 4
"""Abort commands at a time, as Identify Controller's ACL has it."""
_CIDS: Final = 0xFFFF
"""Identifiers come in turn, so that one whose command was swallowed is not given again soon (FFFFh is none)."""

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
        self._cid = 0
        self._then: dict[int, Callable[[int, int], object]] = {}
        self._jobs: deque[tuple[tuple[int, ...], OnDone]] = deque()
        self._current = -1
        self._aborts: dict[int, None] = {}
        """Abort commands under way."""
        self._watch = Watch()
        self._postponed: dict[Callable[[], object], None] = {}
        self._polling = False
        self._on_namespaces: Callable[[], object] = _nothing

    @property
    def busy(self) -> bool:
        """Whether a sweep has anything to do: only requests for events may be under way for ever."""
        return self._current >= 0 or bool(self._aborts) or bool(self._postponed)

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
        """Asks the controller to end a command; what becomes of it shows in its own completion.

        When too many such are under way, nothing is done: the command is found again by the next sweep.
        """
        if len(self._aborts) >= ABORTS_MAX:
            return

        def done(status: int, dw0: int) -> None:
            self._aborts.pop(mine, None)

        mine = self._next_cid()
        self._aborts[mine] = None
        self._issue((Admin.ABORT, 0, qid | cid << 16), 0, done, mine)

    def postpone(self, job: Callable[[], object]) -> None:
        """Something has failed: ``job`` tries it again at the next sweep.  The same is done once."""
        self._postponed[job] = None

    def _arm(self) -> None:
        self._issue((Admin.ASYNC_EVENT, 0, 0), 0, self._happened)

    def _arm_again(self) -> None:
        self._arm()
        if self._arm_again not in self._postponed:
            self._on_namespaces()  # nobody listened for a while

    def _happened(self, status: int, dw0: int) -> None:
        if status:
            self.postpone(self._arm_again)
            return
        self._arm()
        self._read_log(dw0 >> 16 & 0xFF)

    def _read_log(self, log: int) -> None:
        """Reads a page, which arms its events again; without that no more would come."""
        length = 511 if log == Log.SMART else 1023
        words = (length >> 2 if log == Log.SMART else length) << 16 | log

        def done(page: bytes) -> None:
            if not page:
                self.postpone(partial(self._read_log, log))
            elif log == Log.CHANGED_NAMESPACES:
                self._on_namespaces()

        self._ask((Admin.GET_LOG_PAGE, 0xFFFFFFFF if log == Log.SMART else 0, words), done)

    # --- the ring ---

    def _ask(self, words: tuple[int, ...], then: OnDone, *, address: int = 0) -> None:
        self._jobs.append(((*words, *(0,) * (4 - len(words)), address), then))
        self._next()

    def _next(self) -> None:
        if self._current >= 0 or not self._jobs:
            return
        words, then = self._jobs.popleft()

        def done(status: int, dw0: int) -> None:
            if self._current == cid:
                self._current = -1
                then(b"" if status else bytes(self._page))
                self._next()

        self._current = cid = self._next_cid()
        self._issue(words[:4], words[4], done, cid)

    def _next_cid(self) -> int:
        while True:
            self._cid = (self._cid + 1) % _CIDS
            if self._cid not in self._then:
                return self._cid

    def _issue(self, words: tuple[int, ...], address: int, then: Callable[[int, int], object], cid: int = -1) -> None:
        cid = self._next_cid() if cid < 0 else cid
        opcode, nsid, dw10, dw11 = (*words, *(0,) * (4 - len(words)))
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
                if then is not None:
                    then(words >> 49, dw0 & 0xFFFFFFFF)
        self._polling = False

    def sweep(self, limit_ns: int) -> None:
        """Aborts a command that has been under way for so long, and tries again what has failed."""
        for cid in self._watch.late(dict.fromkeys((*self._aborts, self._current)), self._clock.now_ns, limit_ns):
            if cid in self._aborts:
                del self._aborts[cid], self._then[cid]  # the controller has swallowed it: others may be tried
            elif cid >= 0:
                self.abort(0, cid)
        postponed, self._postponed = self._postponed, {}
        for job in postponed:
            job()


def _nothing() -> None:
    """The handler of whom nobody watches."""
