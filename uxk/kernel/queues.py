"""Both queue pairs of one instance: entries become frames, frames become entries.

In task placement the consumer of a ring is always the turn that follows, or the kernel at once; so a frame is handed
over, bounded and counted by the ring, but never lies in it.  What the extension wrote is believed in nothing:
neither its number of entries nor their form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from uxk import limits
from uxk.actor.actor import Output
from uxk.core.account import Account
from uxk.core.codec import Codec, Frame, down_reply_codec, encode, frames_of, up_codec
from uxk.core.ring import Ring
from uxk.errors import RingFull
from uxk.kernel.machine import Machine
from uxk.uapi.entries import Completion, Entry, Pong, Request, Up

T = TypeVar("T")
NOTHING: Final[Sequence[bytes]] = ()
NO_REPLIES: Final[list[Completion]] = []
NO_PONGS: Final[list[Pong]] = []
NO_UPS: Final[list[Up]] = []
_UNSAYABLE: Final = (OverflowError, TypeError, ValueError)


class Queues:
    """Rings and staged entries.  ``on_bad(which, cid, reason)`` hears of entries that cannot be read or written."""

    __slots__ = (
        "_instance", "_machine", "account", "answers", "cq", "on_bad", "sq", "staged", "staged_answers", "up",
    )  # fmt: skip

    def __init__(self, machine: Machine, instance: int, depth: int) -> None:
        self._machine = machine
        self._instance = instance
        twice = 2 * depth if 2 * depth <= limits.QUEUE_DEPTH_MAX else depth
        self.sq, self.up = Ring(depth), Ring(depth)
        self.cq = Ring(twice)  # a full queue of answers, and the pongs of a full queue of pings
        self.answers = Ring(twice)
        self.account = Account(machine.cost, (self.sq, self.answers), (self.cq, self.up))
        self.account.queue_slots = self.sq.depth + self.cq.depth + self.up.depth + self.answers.depth
        self.staged: list[Entry] = []
        self.staged_answers: list[Entry] = []
        self.on_bad: Callable[[str, int | None, str], None] = _ignore

    # --- to the extension ---

    def ring_out(self, ring: Ring, staged: list[Entry]) -> Sequence[bytes]:
        """Frames of what is staged, at most a ring full; the rest stays staged."""
        machine, count = self._machine, len(staged)
        try:
            frame = encode(staged)
        except _UNSAYABLE:
            self._drop_unsayable(staged)
            return self.ring_out(ring, staged) if staged else NOTHING
        if count <= ring.depth and len(frame) <= limits.FRAME_MAX_BYTES:  # nearly always
            ring.hand_over(frame, count)
            machine.hash.note(machine.now_ns, "in", self._instance, frame)
            staged.clear()
            return (frame,)
        frames = frames_of(staged[: ring.depth])
        for frame, count in frames:
            ring.hand_over(frame, count)
            machine.hash.note(machine.now_ns, "in", self._instance, frame)
        del staged[: ring.depth]
        return [frame for frame, _ in frames]

    def _drop_unsayable(self, staged: list[Entry]) -> None:
        """Takes out what no message can hold: a client of the kernel's own has built a wrong request."""
        for entry in list(staged):
            try:
                encode([entry])
            except _UNSAYABLE as exc:
                staged.remove(entry)
                self.on_bad("in", entry.cid if isinstance(entry, Request) else None, f"unsayable: {exc}")

    # --- from the extension ---

    def replies_of(self, frames: Sequence[Frame]) -> tuple[list[Completion], list[Pong]]:
        """Completions and pongs of these frames, in order; mostly there is one frame of completions alone."""
        replies: list[Completion] = []
        pongs: list[Pong] = NO_PONGS
        for frame, claimed in frames if len(frames) == 1 else self._within(self.cq, "cq_full", frames):
            if not self._hand_over(self.cq, "replies", frame, claimed):
                continue
            usual = down_reply_codec.decode_usual(frame, claimed)
            if usual is None:
                entries = self._decode(down_reply_codec, "replies", frame, claimed)
                replies += [entry for entry in entries if type(entry) is Completion]
                pongs = pongs + [entry for entry in entries if type(entry) is Pong]
            elif replies:
                replies += usual
            else:
                replies = usual
        return replies, pongs

    def ups_of(self, frames: Sequence[Frame]) -> list[Up]:
        """What the extension asks for in these frames, in order."""
        ups: list[Up] = []
        for frame, claimed in frames if len(frames) == 1 else self._within(self.up, "sq_full", frames):
            if self._hand_over(self.up, "up", frame, claimed):
                ups += self._decode(up_codec, "up", frame, claimed)
        return ups

    def drop(self, output: Output) -> int:
        """Throws away what the extension says; returns how many entries that were, as it claims."""
        lost = sum(_plausible(claimed) for frames in (output.replies, output.up) for _, claimed in frames)
        output.replies = output.up = ()
        return lost

    def _within(self, ring: Ring, reason: str, frames: Sequence[Frame]) -> Sequence[Frame]:
        """Cuts a flood: what one turn says must fit into the ring altogether.  The ring judges one alone."""
        room, kept = ring.depth, []
        for frame, claimed in frames:
            if 0 < claimed <= room:
                room -= claimed
                kept.append((frame, claimed))
            else:
                ring.full += 1
                self.account.reject(reason, _plausible(claimed))
        return kept

    def _hand_over(self, ring: Ring, which: str, frame: bytes, claimed: int) -> bool:
        """Takes one frame through a ring; False if it has no room for as many entries as are claimed."""
        try:
            ring.hand_over(frame, claimed)
        except RingFull:
            self.account.reject("cq_full" if ring is self.cq else "sq_full", _plausible(claimed))
            return False
        machine = self._machine
        machine.hash.note(machine.now_ns, which, self._instance, frame)
        return True

    def _decode(self, codec: Codec[T], which: str, frame: bytes, claimed: int) -> list[T]:
        entries, bad = codec.decode(frame, claimed)
        for cid, reason in bad:
            self.on_bad(which, cid, reason)
        return entries


def _plausible(claimed: int) -> int:
    """A claimed number of entries as a figure that can be counted and printed, whatever was claimed."""
    return min(max(claimed, 1), limits.ENTRY_MAX_COUNT)


def _ignore(*_: Any) -> None:
    """Nobody listens yet."""
