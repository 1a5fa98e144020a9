"""The cleaner's flow beside the writers' (R108): victims, operations of bounded size, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.timed.cache import PageCache
from uxk.subsystems.lfs.timed.clock import Timeline
from uxk.subsystems.lfs.timed.config import Choice, TimedConfig
from uxk.subsystems.lfs.timed.device import FlashDevice
from uxk.subsystems.lfs.timed.volume import StepVolume

Choose: TypeAlias = Callable[[StepVolume], Choice | None]
"""A decision site: a recommended victim, or None for the policy's own; must not wait."""
POINTER_BYTES: Final = 8
"""Of the page table, per page, in a checkpoint."""
CHECKPOINT_ENDS: Final = 2
"""Blocks before and after a checkpoint's content (as F2FS' checkpoint pack)."""
RETRY_SHARE: Final = 8
"""The background looks for a victim again when there is an 8th of a segment more garbage than when it found none."""


class Owner(Protocol):
    """The engine, as the cleaner sees it."""

    volume: StepVolume
    device: FlashDevice
    cache: PageCache

    def cleaner_rests(self) -> None:
        """An operation or a checkpoint is over: user writes may go on."""

    def write_back(self, page: int) -> bool:
        """Writes a dirty page now, on the cleaner's account; false if there is no room for it."""
        ...


class Cleaner:
    """Cleans one victim at a time.  An operation reads up to ``max_blocks`` valid blocks, looks at each again
    (R104), appends it, and ends when all are written (R106); then user writes get their turn."""

    def __init__(
        self,
        timeline: Timeline,
        owner: Owner,
        geometry: Geometry,
        config: TimedConfig,
        choose: Choose | None,
        on_checkpoint: Callable[[], object] | None,
    ) -> None:
        self._timeline, self._owner, self._config = timeline, owner, config
        self._choose, self._on_checkpoint = choose, on_checkpoint
        self.low, self.high = config.marks(geometry)
        self._holds = config.trigger == "watermark" and config.checkpoint_segments > 0
        self._blocks: list[int] = []
        self._cursor = 0
        self._bound = config.max_blocks
        self._operating = False
        self._kicking = False
        self._began_ns = 0
        self._told = owner.volume.now + owner.volume.moved
        self._none_at = -1
        self.is_idle_time = False
        """Whether users have been quiet for long; set by the engine."""
        self.checkpointing = False
        self.stale = self.skipped = self.operations = self.checkpoints = self.checkpoint_blocks = 0
        self.foreground = self.background = self.gc_ns = 0
        self.hinted = 0
        self.rejects: dict[str, int] = {}

    @property
    def is_busy(self) -> bool:
        """Whether a victim is under way or being looked for, or segments are about to become clean."""
        return self._kicking or self.checkpointing or self._owner.volume.victim >= 0

    # --- deciding ---

    def kick(self) -> None:
        """Goes on with what there is to do; called whenever something has changed."""
        if self._kicking:
            return
        self._kicking = True
        self._checkpoint_if_due()
        while not self._operating and (self._owner.volume.victim >= 0 or self._begin()):
            if self._gather():
                self._read()
            else:
                self._close()
        self._kicking = False

    def _begin(self) -> bool:
        volume = self._owner.volume
        spare = len(volume.clean) + len(volume.held)
        frozen = self._config.trigger == "frozen"
        # Foreground: users wait.  Urgent: what is held does not end that, so any garbage will do.
        foreground = not frozen and len(volume.clean) <= self.low
        urgent = foreground and spare <= self.low
        if volume.room < volume.size - 1:
            return False
        if frozen or (self.is_idle_time and spare >= self.high):
            if not volume.triggered:
                return False
        elif spare >= self.high:
            return False
        if not frozen and not urgent and volume.garbage < self._none_at:
            return False
        victim = self._pick(urgent, background=not frozen and not foreground)
        if victim < 0:
            self._none_at = volume.garbage + max(volume.size // RETRY_SHARE, 1)
            volume.stuck += 1
            return False
        self._none_at = -1
        volume.begin(victim)
        self._cursor = victim * volume.size
        self._began_ns = self._timeline.now_ns
        self.foreground += foreground or frozen
        self.background += not (foreground or frozen)
        return True

    def _pick(self, urgent: bool, background: bool) -> int:
        volume = self._owner.volume
        self._bound = self._config.max_blocks
        choice = self._choose(volume) if self._choose is not None else None
        if choice is not None:
            reason = self._objection(choice, urgent)
            if not reason:
                self.hinted += 1
                if choice.max_blocks:
                    self._bound = min(choice.max_blocks, self._bound)
                return choice.segment
            self.rejects[reason] = self.rejects.get(reason, 0) + 1
        return volume.candidate(urgent, background)

    def _objection(self, choice: Choice, urgent: bool) -> str:
        volume, segment = self._owner.volume, choice.segment
        if not 0 <= segment < volume.segments or choice.max_blocks < 0:
            return "range"
        if volume.sealed_at[segment] < 0:
            return "not exhausted"
        return "too full" if volume.live[segment] > (volume.size - 1 if urgent else volume.most) else ""

    # --- one operation ---

    def _gather(self) -> bool:
        """Notes the next valid blocks of the victim; false if there are none."""
        volume, blocks, block = self._owner.volume, self._blocks, self._cursor
        end = (volume.victim + 1) * volume.size
        blocks.clear()
        while block < end and len(blocks) < self._bound:
            if volume.is_valid[block]:
                blocks.append(block)
            block += 1
        self._cursor = block
        return bool(blocks)

    def _read(self) -> None:
        self.operations += 1
        self._operating = True
        self._owner.device.read(self._move, blocks=len(self._blocks))

    def _move(self, _: int) -> None:
        owner, volume, moved = self._owner, self._owner.volume, 0
        for block in self._blocks:
            if not volume.is_valid[block]:
                self.stale += 1
            elif volume.owner[block] in owner.cache and owner.write_back(volume.owner[block]):
                # Its newest content is in memory and would have made the old copy garbage soon (R105).
                self.skipped += 1
            else:
                volume.move(block)
                moved += 1
        if moved:
            owner.device.program(self._end_operation, blocks=moved)
        else:
            self._end_operation(0)

    def _end_operation(self, _: int) -> None:
        self._operating = False
        volume = self._owner.volume
        if not volume.live[volume.victim]:
            self._close()
        # Under the frozen rule the next victim, if there is one, comes before the next user block.
        if self._config.trigger != "frozen":
            self._owner.cleaner_rests()
        self.kick()
        self._owner.cleaner_rests()

    def _close(self) -> None:
        self._owner.volume.finish(hold=self._holds)
        self.gc_ns += self._timeline.now_ns - self._began_ns
        self._checkpoint_if_due()

    # --- checkpoints ---

    def _checkpoint_if_due(self) -> None:
        """After flushing the log, writes the page table's changes; then the segments held so far become clean."""
        volume, device = self._owner.volume, self._owner.device
        due = len(volume.held) >= self._config.checkpoint_segments or len(volume.clean) <= self.low
        if self.checkpointing or not volume.held or not due:
            return
        self.checkpointing = True
        changes, self._told = volume.now + volume.moved - self._told, volume.now + volume.moved
        per_block = device.spec.block_bytes // POINTER_BYTES or 1
        blocks = CHECKPOINT_ENDS + -(-changes // per_block)
        self.checkpoint_blocks += blocks
        count = len(volume.held)

        def flushed(_: int) -> None:
            device.program(lambda _: device.flush(self._checkpointed, count), blocks=blocks)

        device.flush(flushed)

    def _checkpointed(self, count: int) -> None:
        self.checkpointing = False
        self.checkpoints += 1
        if self._on_checkpoint is not None:
            self._on_checkpoint()
        self._owner.volume.release(count)
        self.kick()
        self._owner.cleaner_rests()
