"""The filter between an instance and its kernel: same surface as the host that it wraps.

Messages are filtered as the frames that cross the boundary, so neither the extension nor the kernel knows of
it.  Entries of the up queue pass unharmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from uxk import limits
from uxk.actor.actor import Crash, Output
from uxk.core.codec import Frame, down_codec, down_reply_codec, frames_of
from uxk.faults.strike import Striker, corrupted
from uxk.kernel.agent import KernelAgent
from uxk.kernel.host import TaskHost
from uxk.uapi.entries import Completion, Request


def _silence(replies: Sequence[Frame] = ()) -> Output:
    return Output(replies, (), None, False)


class FaultyHost:
    """Wraps one incarnation's host; ``strikers`` are the faults that may befall it."""

    __slots__ = (
        "_agent", "_answers", "_crash", "_down", "_hung", "_in", "_inner", "_late_replies", "_out",
    )  # fmt: skip

    def __init__(self, agent: KernelAgent, inner: TaskHost, strikers: Sequence[Striker]) -> None:
        self._agent = agent
        self._inner = inner
        self.aim(strikers)
        self._crash: Crash | None = None
        self._hung = False
        self._down: list[bytes] = []
        self._answers: list[bytes] = []
        self._late_replies: list[Frame] = []

    def aim(self, strikers: Sequence[Striker]) -> None:
        """From now on, these may befall it."""
        entry = [s for s in strikers if not s.fault.timed]
        self._in = [s for s in entry if s.fault.kind in ("crash", "hang") or s.fault.where == "requests"]
        self._out = [s for s in entry if s not in self._in]

    # --- the host's surface ---

    @property
    def crash(self) -> Crash | None:
        """What ended the actor: the fault, or its own doing."""
        return self._crash or self._inner.crash

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def stop(self, reason: str) -> Output:
        """A hung instance says nothing, not even goodbye."""
        return _silence() if self._hung else self._inner.stop(reason)

    def turn(self, now_ns: int, down: Sequence[bytes], answers: Sequence[bytes]) -> Output:
        """One turn, through the filter both ways."""
        if self._hung:
            self._hold(down, answers)
            return self._late()
        if self._in and down:
            down = self._filter_down(now_ns, down)
        if self._crash is not None:
            return _silence()
        if self._hung:
            self._hold(down, answers)
            return self._late()
        if self._down or self._answers:
            down, self._down = [*self._down, *down], []
            answers, self._answers = [*self._answers, *answers], []
        return self._filter_output(now_ns, self._inner.turn(now_ns, down, answers))

    def collect(self) -> Output:
        """What was staged outside turns, and what a delay has let go."""
        if self._hung:
            return self._late()
        return self._filter_output(self._agent.machine.now_ns, self._inner.collect())

    # --- hanging ---

    def hang(self, duration_ns: int) -> None:
        """Stops the instance where it is; a ``duration_ns`` of 0 leaves it to the watchdog."""
        self._hung = True
        if duration_ns:
            self._agent.machine.call_later(duration_ns, self._resume)

    def _resume(self, _: object) -> None:
        if self._agent.host is self:  # type: ignore[comparison-overlap]
            self._hung = False
            self._agent.wake()

    def _hold(self, down: Sequence[bytes], answers: Sequence[bytes]) -> None:
        """Keeps what the instance cannot hear now; what no queue of its depth could hold is lost."""
        room = self._agent.queues.sq.depth
        for held, frames in ((self._down, down), (self._answers, answers)):
            taken = max(0, room - len(held))
            held.extend(frames[:taken])
            if len(frames) > taken:
                self._agent.account.reject("event_dropped", len(frames) - taken)

    # --- messages ---

    def _filter_down(self, now_ns: int, frames: Sequence[bytes]) -> list[bytes]:
        out: list[bytes] = []
        for frame in frames:
            entries, bad = down_codec.decode(frame, limits.ENTRY_MAX_COUNT)
            kept = None if bad else self._filter(now_ns, entries, Request, self._in, self._let_in)
            out.extend([frame] if kept is None else [raw for raw, _ in kept])
        return out

    def _filter_output(self, now_ns: int, output: Output) -> Output:
        late, self._late_replies = self._late_replies, []
        if not (late or (self._out and output.replies)):
            return output
        replies: list[Frame] = late
        for frame in output.replies:
            kept: Sequence[Frame] | None = None
            entries, bad = down_reply_codec.decode(frame[0], limits.ENTRY_MAX_COUNT)
            if self._out and not bad:
                kept = self._filter(now_ns, entries, Completion, self._out, self._let_out)
            replies.extend((frame,) if kept is None else kept)
        return Output(replies, output.up, output.wake_at_ns, output.daemon_wake)

    def _filter(
        self, now_ns: int, entries: Sequence[Any], kind: type[Any], strikers: list[Striker],
        let_go: Callable[[list[Frame]], None],
    ) -> list[Frame] | None:  # fmt: skip
        """The frames that remain of one, or None if nothing befell it.  At most one fault strikes an entry."""
        frames: list[Frame] = []
        kept: list[Any] = []
        struck = False
        for entry in entries:
            striker = None
            if type(entry) is kind and self._crash is None and not self._hung:
                striker = next((s for s in strikers if s.strikes(self._agent, now_ns, entry)), None)
            if striker is None:
                kept.append(entry)
                continue
            struck = True
            fault = striker.fault
            if fault.kind == "crash":
                self._crash = Crash("fault", "Injected", f"fault {striker.name}", "")
            elif fault.kind == "hang":
                self.hang(fault.duration_ns)
                kept.append(entry)
            elif fault.kind == "duplicate":
                kept.append(entry)
                frames += frames_of(kept)  # a frame of its own: no frame may hold more entries than a queue
                kept = [entry]
            elif fault.kind == "delay":
                self._agent.machine.call_later(fault.delay_ns, self._let_go, (let_go, frames_of([entry])))
            elif fault.kind == "corrupt":
                frames += frames_of(kept) if kept else []  # what came before stays before
                frames.append((corrupted(entry, fault.part, striker.stream), 1))
                kept = []
        if not struck:
            return None
        return [*frames, *frames_of(kept)] if kept else frames

    # --- delays ---

    def _let_go(self, item: tuple[Callable[[list[Frame]], None], list[Frame]]) -> None:
        """A held message goes on, unless the incarnation that it belongs to is gone."""
        if self._agent.host is self:  # type: ignore[comparison-overlap]
            item[0](item[1])

    def _let_in(self, frames: list[Frame]) -> None:
        self._down.extend(frame for frame, _ in frames)
        self._agent.wake()

    def _let_out(self, frames: list[Frame]) -> None:
        self._late_replies.extend(frames)
        self._agent.collect()

    def _late(self) -> Output:
        """What was on its way before a hang still arrives."""
        late, self._late_replies = self._late_replies, []
        return _silence(late)
