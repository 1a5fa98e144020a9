"""The flusher of one backing device: it writes dirty folios to the volume (Linux: fs/fs-writeback.c).

Which file is next is a decision site: by default the one that has been dirty longest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from uxk.core.waitfor import Node
from uxk.kernel.machine import Machine
from uxk.subsystems.kthread import Flow, Kthread, WaitQueue
from uxk.subsystems.mm.forbidden import SyncUpcall
from uxk.subsystems.mm.memory import Memory
from uxk.subsystems.mm.mempool import Mempool
from uxk.subsystems.mm.pagecache import Folio
from uxk.subsystems.mm.zone import Use

CHUNK_PAGES: Final = 64
"""Pages of one file that are written before the next decision (Linux: ``MAX_WRITEBACK_PAGES``, 1024)."""
BIO_PAGES: Final = 32
"""Pages in one command to the device."""


class BackingStore(Protocol):
    """The volume below, as the flusher sees it."""

    def has_room(self) -> bool:
        """Whether a block can be allocated now."""
        ...

    def wait_for_room(self, thread: Kthread) -> Flow[None]:
        """Copy-on-write allocation: waits until a block can be allocated."""
        ...

    def put(self, file: int, index: int) -> None:
        """Allocates a block for a page, in place of its old one."""
        ...

    def write(self, blocks: int, done: Callable[[int], object]) -> None:
        """Writes so many blocks to the device; ``done`` is called when they are on it."""
        ...


class Flusher:
    """A kernel thread that writes while there is more dirty memory than the background limit, or while asked to.

    ``choose`` is told since when it has been at work, and names a file, or says -1 for the default; it must not wait.
    ``forbidden`` is for the demonstration of
    what happens if a decision waits; see there.
    """

    def __init__(
        self, machine: Machine, memory: Memory, store: BackingStore, node: Node, choose: Callable[[int], int],
        pool: Mempool | None, forbidden: SyncUpcall | None = None,
    ) -> None:  # fmt: skip
        self._machine = machine
        self._memory = memory
        self._store = store
        self._choose = choose
        self._pool = pool
        self._forbidden = forbidden
        self._work = WaitQueue(machine, "work for the flusher")
        self._asked = 0
        """Pages still to be written because reclaim wants them."""
        self._bio: list[Folio] = []
        self._busy = False
        """Whether it has something to do."""
        self._busy_since_ns = 0
        self.written = self.bios = self.decisions = self.followed = 0
        self.last_ns = 0
        """When the last page arrived on the volume."""
        self.longest_gap_ns = 0
        """The longest time, over by now, in which it had something to write and no page arrived."""
        self._waiting_since_ns = -1
        self.thread = Kthread(machine, node)
        self.thread.start(self._run())

    def flush(self, everything: bool) -> None:
        """Wakes it; with ``everything`` it writes all that is dirty now, whatever the limits."""
        if everything:
            self._asked = max(self._asked, self._memory.zone.count[Use.DIRTY])
        self._work.wake_all()

    @property
    def gap_ns(self) -> int:
        """The longest time without progress: in which it had something to write and no page arrived."""
        since_ns = self._waiting_since_ns
        return max(self.longest_gap_ns, self._machine.now_ns - since_ns if since_ns >= 0 else 0)

    def _must_write(self) -> bool:
        memory = self._memory
        return memory.zone.count[Use.DIRTY] > 0 and (self._asked > 0 or memory.over_background)

    def _run(self) -> Flow[None]:
        while True:
            self._busy = self._must_write()
            if not self._busy and not self._memory.in_flight:
                self._waiting_since_ns = -1
            yield from self._work.wait_until(self.thread, self._must_write)
            if not self._busy:
                self._busy, self._busy_since_ns = True, self._machine.now_ns
            if self._waiting_since_ns < 0:
                self._waiting_since_ns = self._machine.now_ns
            file = yield from self._pick()
            yield from self._write_chunk(file)

    def _pick(self) -> Flow[int]:
        """The file to write next.  Nothing here waits, but in the demonstration."""
        if self._forbidden is not None:
            yield from self._forbidden.ask_and_wait(self.thread)
        self.decisions += 1
        file = self._choose(self._busy_since_ns)
        if file >= 0 and self._memory.cache.dirty_count(file):
            self.followed += 1
            return file
        return self._memory.cache.oldest()

    def _write_chunk(self, file: int) -> Flow[None]:
        memory, store = self._memory, self._store
        for folio in memory.cache.dirty_of(file, CHUNK_PAGES):
            if folio.use is not Use.DIRTY:
                continue
            memory.cache.begin_writeback(folio)
            if not store.has_room():
                self._submit()  # what is mapped must not wait for what cannot be (as a plug is flushed on sleep)
            yield from store.wait_for_room(self.thread)
            if not self._bio:
                yield from self._begin_bio()
            store.put(folio.file, folio.index)
            self._bio.append(folio)
            if len(self._bio) >= BIO_PAGES:
                self._submit()
        self._submit()

    def _begin_bio(self) -> Flow[None]:
        """A page for the command and for the pointers that change with the blocks' places."""
        if self._pool is not None:
            yield from self._pool.alloc(self.thread)
        else:
            yield from self._memory.alloc(self.thread, Use.POOL)

    def _submit(self) -> None:
        if self._bio:
            bio, self._bio = self._bio, []
            self.bios += 1
            self._asked = max(self._asked - len(bio), 0)
            self._memory.send(bio)
            self._store.write(len(bio), lambda _: self._arrived(bio))

    def _arrived(self, bio: list[Folio]) -> None:
        memory, now_ns = self._memory, self._machine.now_ns
        if self._pool is not None:
            self._pool.free()
        else:
            memory.zone.move(Use.POOL, Use.FREE)
        self.written += len(bio)
        if self._waiting_since_ns >= 0:
            self.longest_gap_ns = max(self.longest_gap_ns, now_ns - self._waiting_since_ns)
        memory.end_writeback(bio)
        self.last_ns = now_ns
        self._waiting_since_ns = now_ns if self._busy or memory.in_flight else -1

    def results(self) -> dict[str, Any]:
        """Figures since it began."""
        return {
            "written": self.written, "bios": self.bios, "decisions": self.decisions, "followed": self.followed,
            "longest_gap_ns": self.gap_ns, "last_ns": self.last_ns,
        }  # fmt: skip
