"""A log-structured volume whose writers and cleaner are threads that can wait for each other.

The same volume, device and marks as the timed engine, whose flows are callbacks and so cannot stand in a wait-for
graph.  Up to ``low`` clean segments writers wait for the cleaner, below ``high`` it works in the background; the last
segments are its own, and a victim with one invalid block gives back more than it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from uxk.core.waitfor import Node
from uxk.kernel.machine import Machine
from uxk.limits import PPM
from uxk.subsystems.kthread import Flow, Kthread, WaitQueue
from uxk.subsystems.lfs.timed.config import Choice
from uxk.subsystems.lfs.timed.device import FlashDevice
from uxk.subsystems.lfs.timed.volume import StepVolume

MAX_BLOCKS: Final = 32
"""Most valid blocks that one operation of the cleaner moves."""


class Pages(Protocol):
    """Where the cleaner gets memory for blocks that it moves."""

    def alloc(self, thread: Kthread, pages: int) -> Flow[None]:
        """Takes pages; may wait."""
        ...

    def free(self, pages: int) -> object:
        """Gives them back."""
        ...


class Asks(Protocol):
    """Something that the cleaner does before each decision: only the demonstration of what is forbidden does."""

    def ask_and_wait(self, thread: Kthread) -> Flow[None]:
        """Waits for an answer."""
        ...


class ThreadedVolume:
    """``bases`` are the first pages of the files on it.

    ``choose`` is the decision site: told since when the cleaner has been at work, it recommends a victim, or None for
    the policy's own.  ``on_clean`` is called whenever the number of clean segments has changed.
    """

    def __init__(
        self, machine: Machine, name: str, volume: StepVolume, device: FlashDevice, bases: Sequence[int],
        marks: tuple[int, int], *, pages: Pages, choose: Callable[[int], Choice | None],
        on_clean: Callable[[], object], forbidden: Asks | None = None,
    ) -> None:  # fmt: skip
        self._machine = machine
        self._bases = bases
        self._pages = pages
        self._choose = choose
        self._on_clean = on_clean
        self._forbidden = forbidden
        self.name = name
        self.volume = volume
        self.device = device
        self.low, self.high = marks
        self.cleaner = Kthread(machine, Node("kernel", f"cleaner of {name}"))
        why = "it empties one"
        self.room = WaitQueue(machine, f"a clean segment of {name}", self.cleaner.node, via=why)
        self._work = WaitQueue(machine, f"work for the cleaner of {name}")
        self._io = WaitQueue(machine, f"the device of {name}", Node("resource", f"device of {name}"))
        self._done = 0
        self._busy_since_ns = machine.now_ns
        self.decisions = self.victims = self.hinted = self.stale = 0
        self.rejects: dict[str, int] = {}
        self._began: tuple[int, int] = (volume.now, volume.moved)
        volume.low = len(volume.clean)
        self.cleaner.start(self._clean())

    # --- writers ---

    def has_room(self) -> bool:
        """Whether a writer may allocate a block."""
        return len(self.volume.clean) > self.low

    def wait_for_room(self, thread: Kthread) -> Flow[None]:
        """Copy-on-write allocation: up to the low mark a writer waits for the cleaner."""
        yield from self.room.wait_until(thread, self.has_room)

    def put(self, file: int, index: int) -> None:
        """Appends a page to the log; the old copy becomes garbage."""
        volume, before = self.volume, len(self.volume.clean)
        volume.write(self._bases[file] + index, gc=False)
        if len(volume.clean) != before:
            self._on_clean()
        self._work.wake_all()

    def write(self, blocks: int, done: Callable[[int], object]) -> None:
        """Programs what was appended."""
        self.device.program(done, blocks=blocks)

    # --- the cleaner ---

    def _clean(self) -> Flow[None]:
        volume, thread = self.volume, self.cleaner
        while True:
            if not self._has_work():
                yield from self._work.wait_until(thread, self._has_work)
                self._busy_since_ns = self._machine.now_ns
            if self._forbidden is not None:
                yield from self._forbidden.ask_and_wait(thread)
            victim = self._pick()
            if victim < 0:  # the state has changed while it was asked
                continue
            self.decisions += 1
            volume.begin(victim)
            cursor, end = victim * volume.size, (victim + 1) * volume.size
            while cursor < end:
                blocks: list[int] = []
                while cursor < end and len(blocks) < MAX_BLOCKS:
                    if volume.is_valid[cursor]:
                        blocks.append(cursor)
                    cursor += 1
                if blocks:
                    yield from self._move(blocks)
            volume.finish()
            self.victims += 1
            self._on_clean()
            self.room.wake_all()

    def _has_work(self) -> bool:
        volume = self.volume
        return len(volume.clean) < self.high and volume.candidate(self._urgent) >= 0

    @property
    def _urgent(self) -> bool:
        """Writers wait: any garbage will do."""
        return len(self.volume.clean) <= self.low

    def _pick(self) -> int:
        """The victim.  A hint is checked against the state of this moment (R104), and never waited for."""
        volume = self.volume
        choice = self._choose(self._busy_since_ns)
        if choice is not None:
            reason = self._objection(choice.segment)
            if not reason:
                self.hinted += 1
                return choice.segment
            self.rejects[reason] = self.rejects.get(reason, 0) + 1
        return volume.candidate(self._urgent)

    def _objection(self, segment: int) -> str:
        volume = self.volume
        if not 0 <= segment < volume.segments:
            return "range"
        if volume.sealed_at[segment] < 0:
            return "not exhausted"
        return "too full" if volume.live[segment] > volume.most else ""

    def _move(self, blocks: list[int]) -> Flow[None]:
        """One operation: memory, read, look at each again, append, write (R106)."""
        volume, thread = self.volume, self.cleaner
        yield from self._pages.alloc(thread, len(blocks))
        yield from self._device(lambda done: self.device.read(done, blocks=len(blocks)))
        before, moved = len(volume.clean), 0
        for block in blocks:
            if volume.move(block) >= 0:
                moved += 1
            else:
                self.stale += 1
        if len(volume.clean) != before:
            self._on_clean()
        if moved:
            yield from self._device(lambda done: self.device.program(done, blocks=moved))
        self._pages.free(len(blocks))

    def _device(self, command: Callable[[Callable[[int], object]], object]) -> Flow[None]:
        wanted = self._done + 1
        command(self._io_done)
        yield from self._io.wait_until(self.cleaner, lambda: self._done >= wanted)

    def _io_done(self, _: int) -> None:
        self._done += 1
        self._io.wake_all()

    # --- figures ---

    def results(self) -> dict[str, Any]:
        """Figures since it began; the lowest number of clean segments counts from then, too."""
        volume = self.volume
        user, moved = volume.now - self._began[0], volume.moved - self._began[1]
        return {
            "user_blocks": user, "moved_blocks": moved, "wa_ppm": (user + moved) * PPM // user if user else 0,
            "clean": len(volume.clean), "clean_min": volume.low, "low": self.low, "high": self.high,
            "segments": volume.segments, "victims": self.victims,
            "decisions": self.decisions, "hinted": self.hinted, "stale_blocks": self.stale,
            "rejects": dict(sorted(self.rejects.items())), "room_waits": self.room.waits,
            "room_wait_ns": self.room.total_ns, "room_longest_ns": self.room.longest_ns,
        }  # fmt: skip
