"""One volume on one device in virtual time: the writers' flow.  The cleaner's is in ``cleaner.py``."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

from uxk.core.histogram import Histogram
from uxk.errors import ParamError
from uxk.limits import PPM
from uxk.subsystems.lfs.reference import VolumeFull
from uxk.subsystems.lfs.timed.cache import PageCache
from uxk.subsystems.lfs.timed.cleaner import Choose, Cleaner
from uxk.subsystems.lfs.timed.clock import Timeline
from uxk.subsystems.lfs.timed.config import TimedConfig
from uxk.subsystems.lfs.timed.device import DeviceSpec, FlashDevice
from uxk.subsystems.lfs.timed.volume import StepVolume

Answer: TypeAlias = Callable[[int], object]
"""Called once with 0, or with the errno, when a write is over."""
FLOOR: Final = 1
"""Clean segments that users get only for what makes garbage where it can be cleaned: with one, any victim fits."""


class Write(NamedTuple):
    """A user write that is not over."""

    page: int
    began_ns: int
    answer: Answer | None


class TimedVolume:
    """Takes writes at any time and answers when they are on the device, or in the page cache if there is one.

    ``choose`` is asked for each victim and never waited for; ``on_checkpoint`` is called when one is durable.
    """

    def __init__(
        self,
        timeline: Timeline,
        volume: StepVolume,
        config: TimedConfig | None = None,
        device: DeviceSpec | None = None,
        *,
        choose: Choose | None = None,
        on_checkpoint: Callable[[], object] | None = None,
    ) -> None:
        self._timeline = timeline
        self.config = config or TimedConfig()
        self.volume = volume
        self.device = FlashDevice(timeline, device or DeviceSpec())
        self.cache = PageCache(self.config.cache_pages, self.config.writeback_ns)
        self.cleaner = Cleaner(timeline, self, volume.geometry, self.config, choose, on_checkpoint)
        self._before = self.volume.now, self.volume.moved, self.volume.cleaned
        self._cached = self.config.cache_pages > 0
        self._waiting: deque[Write] = deque()
        self._under_way = 0
        self._stalled_at_ns = -1
        self._active_ns = 0
        self._idle_armed = self._writeback_armed = self._pumping = self._syncing = False
        self.latency = Histogram()
        """Of each write from its arrival to its answer, those that failed included."""
        self.writes = self.answered = self.enospc = self.trims = 0
        self.stalls = self.stall_ns = self.longest_stall_ns = 0

    # --- what users do ---

    def submit(self, page: int, answer: Answer | None = None) -> None:
        """A write arrives.  Raises :class:`ParamError` for a page outside the volume."""
        if not 0 <= page < self.volume.pages:
            raise ParamError(f"page {page}: the volume has pages 0 to {self.volume.pages - 1}")
        self.writes += 1
        self._active_ns = self._timeline.now_ns
        self.cleaner.is_idle_time = False
        write = Write(page, self._timeline.now_ns, answer)
        if self._cached and not self._waiting and (page in self.cache or not self.cache.is_full):
            self._into_cache(write)
        else:
            self._waiting.append(write)
        self._pump()

    def trim(self, page: int) -> bool:
        """Forgets a page, in the cache too; false if it had no content.

        Writes to it that still wait for room are answered at once: they came before, and must not come after.
        """
        dirty = self.cache.take(page)
        overtaken = [write for write in self._waiting if write.page == page]
        self._waiting = deque(write for write in self._waiting if write.page != page)
        for write in overtaken:
            self._finish(write, 0)
        found = self.volume.trim(page)
        self.trims += 1
        self.cleaner.kick()
        self._pump()
        return found or dirty or bool(overtaken)

    def sync(self) -> None:
        """Writes back all that is dirty now and everything that becomes so until the cache is empty once."""
        self._syncing = True
        self._pump()

    # --- from the cache or straight to the log ---

    def _into_cache(self, write: Write) -> None:
        self.cache.add(write.page, self._timeline.now_ns)
        self._timeline.call_later(self.config.cache_ns, self._cached_done, write)

    def _cached_done(self, write: Write) -> None:
        self._finish(write, 0)

    def _next(self) -> int:
        """The page to be written to the log next, or -1."""
        if not self._cached:
            return self._waiting[0].page if self._waiting else -1
        page = self.cache.due(self._timeline.now_ns, all_pages=self._syncing)
        if page < 0:
            self._syncing = False
        return page

    def _pump(self) -> None:
        """Puts into the log what may go there; everything that changes something ends here."""
        if self._pumping:
            return
        self._pumping = True
        while self._under_way < self.device.spec.slots and (page := self._next()) >= 0:
            status = self._admission(page)
            if status == errno.EAGAIN:
                self._stall()
                break
            self._unstall()
            if status:
                if not self._fail(status):
                    break
                continue
            self._map(page)
        self._pumping = False
        if self._cached:
            self._arm_writeback()

    def _admission(self, page: int) -> int:
        """0 if a user block may go into the log, EAGAIN if it must wait for the cleaner, ENOSPC if nothing helps."""
        volume, cleaner = self.volume, self.cleaner
        if self.config.trigger == "frozen":
            return errno.EAGAIN if cleaner.is_busy else 0 if volume.clean else errno.ENOSPC
        if len(volume.clean) > cleaner.low:
            return 0
        cleaner.kick()
        if cleaner.is_busy:
            return errno.EAGAIN
        block = volume.block_of[page]
        makes_room = block >= 0 and volume.sealed_at[block // volume.size] >= 0
        return 0 if len(volume.clean) > FLOOR or (volume.clean and makes_room) else errno.ENOSPC

    def _map(self, page: int) -> None:
        volume = self.volume
        volume.write(page, gc=False)
        self._under_way += 1
        if self._cached:
            self.cache.take(page)
            self.device.program(self._written_back)
            self._let_in()
        else:
            write = self._waiting.popleft()
            self.device.program(lambda _: self._written(write))
        self.cleaner.kick()

    def write_back(self, page: int) -> bool:
        """Writes a dirty page to the log on the cleaner's account; false if there is no clean segment."""
        try:
            self.volume.write(page, gc=False)
        except VolumeFull:
            return False
        self.cache.take(page)
        self._under_way += 1
        self.device.program(self._written_back)
        self._let_in()
        return True

    def _let_in(self) -> None:
        """Room in the cache: those who waited for it get in."""
        while self._waiting and (self._waiting[0].page in self.cache or not self.cache.is_full):
            self._into_cache(self._waiting.popleft())

    def _fail(self, status: int) -> bool:
        """No room: the write that waits gets the error.  Dirty pages stay where they are.  False if nobody waits."""
        if not self._waiting:
            return False
        self.enospc += 1
        self._finish(self._waiting.popleft(), status)
        return True

    # --- endings ---

    def _written(self, write: Write) -> None:
        self._under_way -= 1
        self._finish(write, 0)
        self._pump()

    def _written_back(self, _: int) -> None:
        self._under_way -= 1
        self._pump()

    def _finish(self, write: Write, status: int) -> None:
        now_ns = self._timeline.now_ns
        self._active_ns = now_ns
        self.latency.record(now_ns - write.began_ns)
        self.answered += 1
        if write.answer is not None:
            write.answer(status)
        if self.config.idle_ns and not self._idle_armed and self.config.trigger == "watermark":
            self._idle_armed = True
            self._timeline.call_later(self.config.idle_ns, self._idle)

    def cleaner_rests(self) -> None:
        """The cleaner pauses: user writes may go on."""
        self._pump()

    # --- timers and stalls ---

    def _idle(self, _: object) -> None:
        quiet_ns = self._timeline.now_ns - self._active_ns
        if quiet_ns < self.config.idle_ns:
            self._timeline.call_later(self.config.idle_ns - quiet_ns, self._idle)
            return
        self._idle_armed = False
        self.cleaner.is_idle_time = True
        self.cleaner.kick()

    def _arm_writeback(self) -> None:
        due_ns = self.cache.next_due_ns()
        # What is overdue waits for the cleaner or for room, not for time.
        if due_ns > self._timeline.now_ns and not self._writeback_armed:
            self._writeback_armed = True
            self._timeline.call_later(due_ns - self._timeline.now_ns, self._writeback)

    def _writeback(self, _: object) -> None:
        self._writeback_armed = False
        self._pump()

    def _stall(self) -> None:
        if self._stalled_at_ns < 0:
            self._stalled_at_ns = self._timeline.now_ns
            self.stalls += 1

    def _unstall(self) -> None:
        if self._stalled_at_ns >= 0:
            stall_ns = self._timeline.now_ns - self._stalled_at_ns
            self.stall_ns += stall_ns
            self.longest_stall_ns = max(self.longest_stall_ns, stall_ns)
            self._stalled_at_ns = -1

    # --- figures ---

    def results(self) -> dict[str, Any]:
        """Figures since this engine began; times in ns, write amplification in ppm of user blocks."""
        user, moved, victims = self.volume.now, self.volume.moved, self.volume.cleaned
        user, moved, victims = (now - then for now, then in zip((user, moved, victims), self._before, strict=True))
        volume, cleaner, device, latency = self.volume, self.cleaner, self.device, self.latency.summary()
        return {
            "writes": self.writes, "answered": self.answered, "enospc": self.enospc, "trims": self.trims,
            "user_blocks": user, "moved_blocks": moved, "wa_ppm": (user + moved) * PPM // user if user else 0,
            "p50_ns": latency.p50_ns, "p99_ns": latency.p99_ns, "p999_ns": latency.p999_ns, "max_ns": latency.max_ns,
            "mean_ns": latency.mean_ns, "foreground_stalls": self.stalls, "stall_ns": self.stall_ns,
            "longest_stall_ns": self.longest_stall_ns, "clean_min": volume.low, "victims": victims,
            "foreground_victims": cleaner.foreground, "background_victims": cleaner.background,
            "gc_operations": cleaner.operations, "gc_ns": cleaner.gc_ns, "stale_blocks": cleaner.stale,
            "cached_blocks_skipped": cleaner.skipped, "absorbed": self.cache.absorbed, "dirty": len(self.cache),
            "checkpoints": cleaner.checkpoints, "checkpoint_blocks": cleaner.checkpoint_blocks,
            "hinted": cleaner.hinted, "rejects": dict(sorted(cleaner.rejects.items())),
            "device_reads": device.reads, "device_programs": device.programs, "now_ns": self._timeline.now_ns,
        }  # fmt: skip
