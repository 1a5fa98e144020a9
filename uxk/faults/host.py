"""What stands between an instance and its kernel when faults may befall it: same surface as the host that it wraps.

Messages are filtered as the frames that cross the boundary, so neither the extension nor the kernel knows of
it.  The first fault of a plan is nearest to the kernel: what goes to the instance meets it first, what comes from the
instance last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

from uxk import limits
from uxk.actor.actor import Crash, Output
from uxk.core.codec import Frame, frames_of
from uxk.faults.filter import Filter, Item
from uxk.faults.model import Fault
from uxk.faults.sides import SIDES, Where, name_of
from uxk.faults.strike import Striker
from uxk.kernel.agent import KernelAgent
from uxk.kernel.host import TaskHost
from uxk.uapi.entries import Allocate, Completion, Entry, Log

Way: TypeAlias = Literal["down", "answers", "replies", "up"]
"""The four queues of an instance; requests and events go down together."""

_WAYS: Final[dict[Where, Way]] = {
    "requests": "down", "events": "down", "answers": "answers", "completions": "replies", "commands": "up",
}  # fmt: skip
_CODECS: Final = {_WAYS[side]: codec for side, codec in SIDES.items()}
_TO_INSTANCE: Final = ("down", "answers")
_KNOWN_MAX: Final = 1 << 16
"""Requests of which is known what they were and when they came."""
_OWN_CIDS: Final = 1 << 61
"""Command ids of messages that the fault makes up: an instance never comes near."""


class FaultyHost:
    """Wraps one incarnation's host; ``strikers`` are the faults that may befall it."""

    __slots__ = (
        "_cid", "_commands", "_crash", "_held", "_hung", "_inner", "_late", "_requests", "_stacks", "agent",
        "hung_since_ns", "machine",
    )  # fmt: skip

    def __init__(self, agent: KernelAgent, inner: TaskHost, strikers: Sequence[Striker]) -> None:
        self.agent = agent
        self.machine = agent.machine
        self._inner = inner
        self._crash: Crash | None = None
        self._hung = False
        self.hung_since_ns: int | None = None
        """Since when it has been deaf and mute, while it is."""
        self._held: dict[Way, list[bytes]] = {"down": [], "answers": []}
        """What the instance could not hear, or is to hear late."""
        self._late: dict[Way, list[Frame]] = {"replies": [], "up": []}
        """What it has said, and the kernel is to hear late."""
        self._requests: dict[int, tuple[str, int]] = {}
        self._commands: dict[int, tuple[str, int]] = {}
        self._cid = _OWN_CIDS
        self._stacks: dict[Way, list[Filter]] = {}
        self.aim(strikers)

    def aim(self, strikers: Sequence[Striker]) -> None:
        """From now on, these may befall it."""
        old = {each.striker: each for stack in self._stacks.values() for each in stack}
        stacks: dict[Way, list[Filter]] = {"down": [], "answers": [], "replies": [], "up": []}
        for striker in strikers:
            if not striker.fault.timed:
                stacks[_WAYS[striker.fault.side]].append(old.get(striker) or Filter(self, striker))
        stacks["replies"].reverse()
        stacks["up"].reverse()
        for stack in stacks.values():
            for at, each in enumerate(stack):
                each.at = at
        self._stacks = stacks

    # --- the host's surface ---

    @property
    def crash(self) -> Crash | None:
        """What ended the actor: the fault, or its own doing."""
        return self._crash or self._inner.crash

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def slip_under(self, make: Callable[[Any], Any]) -> None:
        """Puts another wrapper between itself and what it wraps; between two turns."""
        self._inner = make(self._inner)

    def stop(self, reason: str) -> Output:
        """A hung instance says nothing, not even goodbye."""
        return Output((), (), None, False) if self._hung else self._inner.stop(reason)

    def turn(self, now_ns: int, down: Sequence[bytes], answers: Sequence[bytes]) -> Output:
        """One turn, through the filters both ways."""
        if not self._hung:
            down, answers = self._inwards(now_ns, "down", down), self._inwards(now_ns, "answers", answers)
        if self._crash is not None:
            return Output((), (), None, False)
        if self._hung:
            self._hold("down", down)
            self._hold("answers", answers)
            return self._overdue()
        held = self._held
        if held["down"] or held["answers"]:
            down, answers = [*held["down"], *down], [*held["answers"], *answers]
            self._held = {"down": [], "answers": []}
        return self._outwards(now_ns, self._inner.turn(now_ns, down, answers))

    def collect(self) -> Output:
        """What was staged outside turns, and what a delay has let go."""
        if self._hung:
            return self._overdue()
        return self._outwards(self.machine.now_ns, self._inner.collect())

    # --- the whole instance ---

    @property
    def broken(self) -> bool:
        """Whether nothing more can befall it."""
        return self._crash is not None or self._hung

    def break_down(self, crash: Crash) -> None:
        """Its end, inside a turn."""
        self._crash = self._crash or crash

    def befall(self, fault: Fault) -> None:
        """A fault of the instance as a whole, which is no crash."""
        if fault.kind == "hang":
            self.hang(fault.duration_ns)
        elif fault.kind == "leak" and not self._hung:
            self._cid += 1
            self._late["up"] += frames_of([Allocate(self._cid, fault.size_bytes)])
        elif fault.kind == "flood" and not self._hung:
            self._flood(fault)

    def _flood(self, fault: Fault) -> None:
        if fault.side == "commands":
            self._late["up"] += frames_of([Log(6, f"flood {number}") for number in range(fault.entries)])
            return
        self._late["replies"] += frames_of([Completion(self._cid + 1 + number) for number in range(fault.entries)])
        self._cid += fault.entries

    def strike_now(self, fault: Fault) -> None:
        """A fault of the instance as a whole, between two turns."""
        self.befall(fault)
        if self._late["up"] or self._late["replies"]:
            self.agent.collect()

    def hang(self, duration_ns: int) -> None:
        """Stops the instance where it is; a ``duration_ns`` of 0 leaves it to the watchdog."""
        self._hung = True
        self.hung_since_ns = self.machine.now_ns
        if duration_ns:
            self.machine.call_later(duration_ns, self._resume)

    def _resume(self, _: object) -> None:
        if self.agent.host is self:
            self._hung = False
            self.hung_since_ns = None
            self.agent.wake()

    def _hold(self, way: Way, frames: Sequence[bytes]) -> None:
        """Keeps what the instance cannot hear now; what no queue of its depth could hold is lost."""
        held = self._held[way]
        taken = max(0, self.agent.queues.sq.depth - len(held))
        held.extend(frames[:taken])
        if len(frames) > taken:
            self.agent.account.reject("event_dropped", len(frames) - taken)

    # --- messages ---

    def _inwards(self, now_ns: int, way: Way, frames: Sequence[bytes]) -> Sequence[bytes]:
        """Frames for the instance, filtered."""
        if not frames or not (self._stacks["down"] or self._stacks["replies"] or self._stacks["answers"]):
            return frames
        out: list[bytes] = []
        for frame in frames:
            out += [each for each, _ in self._filtered(now_ns, way, (frame, limits.ENTRY_MAX_COUNT))]
        return out

    def _outwards(self, now_ns: int, output: Output) -> Output:
        """What the instance says, filtered, after what was on its way already."""
        late, stacks = self._late, self._stacks
        knows = bool(stacks["up"] or stacks["answers"])
        if not (late["replies"] or late["up"] or (stacks["replies"] and output.replies) or (knows and output.up)):
            return output
        self._late = {"replies": [], "up": []}
        replies, up = late["replies"], late["up"]
        for frame in output.replies:
            replies += self._filtered(now_ns, "replies", frame)
        for frame in output.up:
            up += self._filtered(now_ns, "up", frame)
        if self._crash is not None:
            replies, up = [], []
        return Output(replies, up, output.wake_at_ns, output.daemon_wake)

    def _filtered(self, now_ns: int, way: Way, frame: Frame) -> Sequence[Frame]:
        """What becomes of one frame.  One that cannot be read passes as it is."""
        entries, bad = _CODECS[way].decode(frame[0], limits.ENTRY_MAX_COUNT)
        if bad:
            return [frame]
        if way == "up" and self._stacks["answers"]:
            self._know(self._commands, entries, now_ns)
        items = self._through(now_ns, way, 0, entries)
        if way == "down" and self._stacks["replies"]:
            self._know(self._requests, items, now_ns)
        if items is entries:
            return [frame]
        return _frames(items, max(1, len(entries)))

    def _through(self, now_ns: int, way: Way, begin: int, items: Sequence[Item]) -> Sequence[Item]:
        for each in self._stacks[way][begin:]:
            items = each.pass_on(now_ns, items)
        return items

    def let_go(self, held: Filter, items: Sequence[Item]) -> None:
        """A held message goes on, unless the incarnation that it belongs to is gone."""
        if self.agent.host is not self:
            return
        way = _WAYS[held.striker.fault.side]
        stack = self._stacks[way]
        begin = held.at + 1 if held in stack else len(stack)
        frames = _frames(self._through(self.machine.now_ns, way, begin, items), len(items))
        if way in _TO_INSTANCE:
            self._hold(way, [frame for frame, _ in frames])
            self.agent.wake()
        else:
            self._late[way] += frames
            self.agent.collect()

    def _overdue(self) -> Output:
        """What was on its way before a hang still arrives."""
        late = self._late
        self._late = {"replies": [], "up": []}
        return Output(late["replies"], late["up"], None, False)

    # --- what is known of requests ---

    def _know(self, book: dict[int, tuple[str, int]], items: Sequence[Item], now_ns: int) -> None:
        """Answers do not say what they are answers to."""
        for item in items:
            cid = getattr(item, "cid", None)
            if cid is not None:
                book[cid] = (name_of(item), now_ns)
        while len(book) > _KNOWN_MAX:
            del book[next(iter(book))]

    def name_of(self, side: Where, item: Any) -> str:
        """What a message is called; see :func:`uxk.faults.sides.name_of`."""
        if side == "completions":
            return self._requests.get(item.cid, ("", 0))[0]
        if side == "answers":
            return self._commands.get(item.cid, ("", 0))[0]
        return name_of(item)

    def since_ns(self, side: Where, item: Any, now_ns: int) -> int:
        """When the instance, or for answers the kernel, was told what this answers; now for other messages."""
        if side == "completions":
            return self._requests.get(item.cid, ("", now_ns))[1]
        if side == "answers":
            return self._commands.get(item.cid, ("", now_ns))[1]
        return now_ns


def _frames(items: Sequence[Item], most: int) -> list[Frame]:
    """Frames of no more than ``most`` messages each, so that none holds more than a queue; damaged ones stay alone."""
    frames: list[Frame] = []
    run: list[Entry] = []
    for item in items:
        if not isinstance(item, bytes):
            run.append(item)
        if run and (isinstance(item, bytes) or len(run) == most):
            frames += frames_of(run)
            run = []
        if isinstance(item, bytes):
            frames.append((item, 1))
    return frames + (frames_of(run) if run else [])
