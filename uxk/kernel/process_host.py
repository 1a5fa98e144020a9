"""Process placement: the extension's actor runs in a process of its own, behind the same frames.

Under a clock that the kernel holds a turn is a synchronous exchange, so everything happens in the order of task
placement and gives the same event hash.  On the real clock the kernel never waits: it sends, and a reader takes what
comes.  Whatever a child does, from silence to garbage, ends as a :class:`~uxk.actor.actor.Crash` of its instance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from uxk.actor import wire
from uxk.actor.actor import Crash, Output, Saved, State
from uxk.actor.link import Gone
from uxk.core.codec import Frame
from uxk.errors import ProtocolError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.process_child import GRACE_NS, HostProcess
from uxk.kernel.process_shared import Seat
from uxk.kernel.process_start import MAPS_MAX, death, is_chance, mapped
from uxk.kernel.process_valve import Valve
from uxk.kernel.seconds import cpu_ns, monotonic_ns, to_seconds
from uxk.module import Extension

if TYPE_CHECKING:
    from uxk.kernel.process import Processes

TURNS_AHEAD: Final = 4
"""Turns sent and not answered yet, on the real clock: more wait in the ring, and leave as one batch."""
SERVICE: Final = "uxk-host "
"""How the names of watching tasks begin."""
UNREAD_MAX: Final = 1024
"""Messages kept for a process that asks for memory and does not read: more than the turns ahead come to."""
HEARD_AT_ONCE: Final = 32
"""Messages of one process that are acted on before others have their turn."""


class ProcessHost:
    """One incarnation of an extension in a process of its own; same surface as a task's host."""

    __slots__ = (
        "_abandoned", "_answered", "_asked", "_broken", "_crash", "_daemon_wake", "_ended", "_greeted", "_held",
        "_machine", "_news", "_on_saved", "_on_set_up", "_outputs", "_part", "_part_bytes", "_process", "_processes",
        "_saved", "_set_up", "_staged", "_start", "_stopped", "_unmapped", "_valve", "_wake_at_ns", "_writing", "agent",
        "done", "runs",
    )  # fmt: skip

    def __init__(
        self, processes: Processes, agent: KernelAgent, process: HostProcess | Seat, start: wire.Start,
        on_set_up: Callable[[], None],
    ) -> None:  # fmt: skip
        self._processes = processes
        self._machine = processes.machine
        self._process = process
        process.occupant = self
        self._start = start
        self._held = start.held
        self._on_set_up = on_set_up
        self.agent = agent
        self.runs = self._held and agent.extension_class.run is not Extension.run
        """Whether a task of the extension's may stage output when the kernel lets it."""
        self.done: trio.Event | None = trio.Event()
        """Set when the process has ended and been reaped."""
        self._asked, self._answered = 0, -1
        self._greeted = self._set_up = self._staged = self._ended = False
        self._broken = self._stopped = self._abandoned = self._writing = False
        self._crash: Crash | None = None
        self._outputs: deque[Output] = deque()
        self._part: tuple[list[Frame], list[Frame]] = ([], [])
        self._part_bytes = 0
        self._valve = Valve(self._machine, agent)
        self._news: trio.Event | None = None
        self._on_saved: Callable[[Saved], object] | None = None
        self._saved: Saved | None = None
        self._wake_at_ns: int | None = None
        self._unmapped: list[int] = []
        """Capabilities that have ended, to be told with the next turn."""
        self._daemon_wake = False

    # --- the host's surface ---

    @property
    def number(self) -> int:
        """Of its instance."""
        return self.agent.id

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def crash(self) -> Crash | None:
        """What ended the actor or its process; on the real clock, when all that it said before has been taken."""
        return None if self._outputs and not self._held else self._crash

    @property
    def ended(self) -> bool:
        """Whether its ``run`` has come to an end, in the same sense."""
        return self._ended and (self._held or not self._outputs)

    @property
    def stalled(self) -> bool:
        """Whether it is to be given nothing more for now."""
        return not self._held and (self._asked - self._answered >= TURNS_AHEAD or self._process.link.stalled)

    def setup(self) -> bool:
        """Has the module imported and set up; whether that is done when this returns."""
        nursery = self._processes.nursery
        assert nursery is not None
        nursery.start_soon(self._read, name=f"{SERVICE}{self.agent.name} reader")
        nursery.start_soon(self._process.watch_stderr, name=f"{SERVICE}{self.agent.name} stderr")
        if self._held:
            self._set_up = True
            self._exchange(self._processes.start_ns, "setup")
        return self._held

    def start_task(
        self, nursery: trio.Nursery, clock: Callable[[], int], on_output: Callable[[], None],
        on_exit: Callable[[], None], book: Callable[[trio.lowlevel.Task], None], kick: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Its ``run`` is a task over there: it begins with the first settling."""
        self._processes.unsettle(self)

    def turn(self, now_ns: int, down: Sequence[bytes], answers: Sequence[bytes]) -> Output:
        """One turn: with its output, or on the real clock without."""
        if self._crash is None:
            if self._wake_at_ns is not None and self._wake_at_ns <= now_ns:
                self._wake_at_ns = None  # this turn is what it waited for
            self._ask_turn(now_ns, down, answers)
            if self._held:
                self._exchange(self._processes.answer_ns, "turn")
                if self.runs and self._crash is None:
                    self._processes.unsettle(self)
                return self._taken()
        if self._outputs or self._crash is not None:
            self._machine.mark_dirty(self.agent)
        return self._silence()

    def collect(self) -> Output:
        """The oldest output that is still to be taken."""
        if not self._set_up and self._outputs:
            self._set_up = True
            if self._crash is None:
                self._on_set_up()
        output = self._taken()
        if self._outputs:
            self._machine.mark_dirty(self.agent)
        self._valve.open()
        return output

    def checkpoint(self, on_saved: Callable[[Saved], object]) -> None:
        """Asks a healthy extension for its state: it comes at once, or on the real clock later."""
        if self._crash is not None:
            return
        self._on_saved, self._saved = on_saved, None
        self._ask(wire.Checkpoint())
        if self._held:
            self._exchange(self._processes.answer_ns, "checkpoint")
            if self._saved is not None:
                on_saved(self._saved)

    def stop(self, reason: str) -> Output:
        """Says goodbye and returns its last words; on the real clock, what has arrived of them."""
        if not self._stopped and self._crash is None:
            self._ask(wire.Stop(reason[: wire.WORD_MAX_CHARS]))
            self._stopped = True
            if self._held or self._processes.closing:
                self._exchange(self._processes.answer_ns if self._held else 2 * GRACE_NS, "on_stop")
        words = self._silence()
        while self._outputs:
            output = self._taken()
            words.replies = [*words.replies, *output.replies]
            words.up = [*words.up, *output.up]
        return words

    async def farewell(self, reason: str) -> None:
        """On the real clock, asks for last words and waits a while for them: the caller does, not the kernel."""
        if self._held or self._stopped or self._crash is not None:
            return
        self._ask(wire.Stop(reason[: wire.WORD_MAX_CHARS]))
        self._stopped = True
        with trio.move_on_after(to_seconds(2 * GRACE_NS)):
            while self._crash is None and self._answered < self._asked:
                self._news = trio.Event()
                await self._news.wait()

    def abandon(self) -> None:
        """Cuts the incarnation off: a process that has said goodbye may end by itself, any other is killed."""
        if self._abandoned:
            return
        self._abandoned = True
        self._processes.forget(self)
        self._outputs.clear()
        self._valve.open()
        answered = self._answered == self._asked
        gently = self._stopped and self._crash is None and answered
        if not gently:
            self._process.cut(obedient=not self._broken and (answered or self._crash is not None))
        else:
            self._process.leave()
        done, nursery = self.done, self._processes.nursery
        assert done is not None and nursery is not None
        nursery.start_soon(
            partial(self._process.bury, done.set, gently=gently), name=f"{SERVICE}{self.agent.name} burial"
        )  # fmt: skip

    # --- settling ---

    def ask_settle(self, take: bool) -> None:
        """Lets its tasks run."""
        if self._crash is None:
            self._ask(wire.Settle(self._machine.now_ns, take))

    def hear_settled(self, take: bool) -> None:
        """Waits until they rest; what they have staged, if it was to be taken, is then to be collected."""
        self._exchange(self._processes.answer_ns, "run")
        if self._crash is not None:
            self._machine.mark_dirty(self.agent)
        elif not take:
            self._outputs.clear()
            if self._staged:
                self._processes.unsettle(self)
        elif self._staged:
            self._machine.mark_dirty(self.agent)
        else:
            self._outputs.clear()

    # --- sending ---

    def _ask(self, message: wire.Message) -> None:
        """Sends what wants an answer."""
        self._asked += 1
        self._send(message)

    def _ask_turn(self, now_ns: int, down: Sequence[bytes], answers: Sequence[bytes]) -> None:
        if self._unmapped:
            self._send(wire.Unmap(self._unmapped, []))
            self._unmapped = []
        size_bytes = sum(map(len, down)) + sum(map(len, answers))
        if size_bytes > wire.SPLIT_BYTES:
            for frame in down:
                self._send(wire.Turn(now_ns, [frame], [], more=True))
            for frame in answers:
                self._send(wire.Turn(now_ns, [], [frame], more=True))
            down = answers = ()
        self._ask(wire.Turn(now_ns, list(down), list(answers)))

    def _send(self, message: wire.Message, descriptor: int = -1) -> None:
        link = self._process.link
        try:
            link.send(message, descriptor)
        except Gone:
            return  # the end of file tells why
        if link.pending_bytes and not self._held and not self._writing:
            assert self._processes.nursery is not None
            self._writing = True
            self._processes.nursery.start_soon(self._write, name=f"{SERVICE}{self.agent.name} writer")

    async def _write(self) -> None:
        """Sends what the child did not take at once, as it reads."""
        link = self._process.link
        try:
            while not self._flushed():
                await trio.lowlevel.wait_writable(link.sock)
        except (Gone, OSError, trio.ClosedResourceError):
            return
        finally:
            self._writing = False
        self.agent.wake()

    def _flushed(self) -> bool:
        began_ns = cpu_ns()
        try:
            return self._process.link.flush()
        finally:
            self.agent.book(cpu_ns() - began_ns)

    # --- hearing ---

    def _exchange(self, limit_ns: int, where: str) -> None:
        """Waits for the answer to everything asked; a child that gives none within the limit is killed."""
        process, link = self._process, self._process.link
        until_ns = monotonic_ns() + limit_ns
        try:
            messages = link.spin_receive()
            while True:
                for message in messages:
                    self._hear(message)
                if self._answered == self._asked or self._broken:
                    return
                left_ns = until_ns - monotonic_ns()
                if left_ns <= 0:
                    self._break(Crash(where, "Hung", f"no answer within {limit_ns} ns of host time", self._tail()))
                    return
                link.flush()
                link.wait(left_ns)
                process.drain()
                process.listen_to_others()
                messages = link.receive()
        except Gone:
            process.drain()
            self._break(death(process.end(), self._tail()))
        except ProtocolError as exc:
            self._break(Crash("process", "ProtocolError", str(exc), self._tail()))

    def listen(self) -> None:
        """Hears what the child has said, without waiting."""
        process = self._process
        if self._broken:
            return
        try:
            for message in process.link.receive():
                self._hear(message)
            process.link.flush()
        except Gone:
            process.drain()
            self._break(death(process.end(), self._tail()))
            self._tell()
        except ProtocolError as exc:
            self._break(Crash("process", "ProtocolError", str(exc), self._tail()))
            self._tell()

    async def _read(self) -> None:
        """Takes what comes while nobody waits for it."""
        process, link = self._process, self._process.link
        try:
            while not (self._broken or self._abandoned):
                if link.more:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(link.sock)
                began_ns = cpu_ns()
                for message in link.receive(HEARD_AT_ONCE):
                    self._hear(message)
                self._tell()
                self.agent.book(cpu_ns() - began_ns)
                if not self._held:
                    await self._valve.share(self._over)
                await self._valve.room(self._outputs)
        except (trio.ClosedResourceError, OSError):
            return
        except Gone:
            why = await process.ended()
            process.drain()
            self._break(death(why, self._tail()))
        except ProtocolError as exc:
            self._break(Crash("process", "ProtocolError", str(exc), self._tail()))
        self._tell()

    def _over(self) -> bool:
        """Whether nothing more can come of it; the rest of what a dead process has written is read at once."""
        return self._broken or self._abandoned or bool(self._process.reap())

    def _tell(self) -> None:
        """Has the dispatcher act on what was heard."""
        machine = self._machine
        if self._news is not None:
            self._news.set()
        if self._abandoned:
            return
        if self._broken or (not self._held and (self._outputs or self._crash is not None)):
            machine.mark_dirty(self.agent)
        if machine.parked and (machine.dirty or machine.settle_needed):
            machine.wake()

    def _hear(self, message: wire.FromChild) -> None:
        """One message.  ProtocolError if it has no place here."""
        if self._abandoned or self._broken:
            return
        if type(message) is wire.Out:
            self._hear_output(message)
        elif not self._greeted:
            if not isinstance(message, wire.Hello):
                raise ProtocolError(f"{type(message).__name__} before HELLO")
            try:
                self._start.version = wire.chosen_version(message)
            except ProtocolError as exc:
                self._send(wire.Refuse(str(exc)))
                raise
            self._greeted = True
            if problem := self._process.admit(partial(self._send, self._start)):
                self._machine.log("warning", self.agent.name, problem)
        elif isinstance(message, wire.Crashed):
            if self._crash is None:
                self._crash = Crash(
                    message.where, message.kind, message.message, message.traceback, message.errno, message.refusal
                )
        elif isinstance(message, wire.Map):
            self._map(message)
        elif isinstance(message, wire.Dirty):
            if not self._held:
                raise ProtocolError("Dirty, and the clock is not held")
            self._processes.unsettle(self)
        elif isinstance(message, wire.Saved):
            self._hear_saved(message)
        else:
            raise ProtocolError(f"a second {type(message).__name__}")

    def _hear_saved(self, message: wire.Saved) -> None:
        on_saved, self._on_saved = self._on_saved, None
        if on_saved is None or not self._answered < message.number <= self._asked:
            raise ProtocolError(f"SAVED {message.number}, which nobody asked for")
        self._answered = message.number
        state = None if message.version is None else State(message.version, message.data)
        saved = Saved(state, message.problem)
        if self._held:
            self._saved = saved
        else:  # whoever asked acts on it in the dispatcher, as on everything
            self._machine.call_at(self._machine.now_ns, lambda _: on_saved(saved))

    def _hear_output(self, message: wire.Out) -> None:
        number, part = message.number, self._part
        if not self._greeted or number > self._asked or number < self._answered or (
            self._held and number != self._answered + 1
        ):  # fmt: skip
            raise ProtocolError(f"OUTPUT {number}, {self._answered} of {self._asked} are answered")
        size_bytes = self._valve.weigh(message, self._outputs)
        if message.more or part[0] or part[1]:
            self._part_bytes += size_bytes
            if self._part_bytes > wire.ANSWER_MAX_BYTES:
                raise ProtocolError(f"an OUTPUT of more than {wire.ANSWER_MAX_BYTES} bytes")
            part[0].extend(message.replies)
            part[1].extend(message.up)
            if message.more:
                return
            replies, up = part
            self._part, self._part_bytes = ([], []), 0
        else:
            replies, up = message.replies, message.up
        was_stalled = not self._held and self.stalled
        self._answered = number
        if not number:
            self._process.set_up()
        news = bool(replies or up or self._held or not self._set_up or message.ended)
        if news or message.wake_at_ns != (self._outputs[-1].wake_at_ns if self._outputs else self._wake_at_ns):
            self._outputs.append(Output(replies, up, message.wake_at_ns, message.daemon_wake))
        self._staged = message.staged or bool(replies or up)
        self._ended = self._ended or message.ended
        if not self._held:
            self._valve.believe(message.cpu_ns)
            if was_stalled and not self.stalled:
                self.agent.wake()

    def unmap(self, cap: int, *, moved: bool) -> None:
        """Memory of the child's has moved, which it hears at once, or is not its any more: with its next turn."""
        if moved:
            self._send(wire.Unmap([], [cap]))
        else:
            self._unmapped.append(cap)

    def _map(self, message: wire.Map) -> None:
        """Memory for the child, or why not."""
        link = self._process.link
        if link.pending_messages >= UNREAD_MAX:  # what is refused is answered without a descriptor
            raise ProtocolError(f"MAP, and {UNREAD_MAX} messages to it are not read yet")
        if link.pending_descriptors >= MAPS_MAX:
            raise ProtocolError(f"MAP, and {MAPS_MAX} answers to others are not read yet")
        self._send(*mapped(self._processes.share, self.agent, message))

    # --- its end ---

    def fall(self, crash: Crash, *, chance: bool) -> None:
        """Another instance has brought their process down."""
        self._break(crash, chance)
        self._tell()

    def _break(self, crash: Crash, chance: bool | None = None) -> None:
        """Nothing more is to be heard from it: its process is dead, or will be in a moment."""
        known, self._broken = self._broken, True
        if known or self._abandoned:
            return
        self._process.fell(crash)
        if self._crash is None:
            self._crash = crash
        if is_chance(crash) if chance is None else chance:
            self._machine.log(
                "warning", self.agent.name, f"{crash.kind}: {crash.message}: this run is not reproducible", stuck=1
            )

    def _tail(self) -> str:
        return self._process.tail.decode(errors="replace")

    # --- outputs ---

    def _silence(self) -> Output:
        return Output((), (), self._wake_at_ns, self._daemon_wake)

    def _taken(self) -> Output:
        if not self._outputs:
            return self._silence()
        output = self._outputs.popleft()
        self._wake_at_ns, self._daemon_wake = output.wake_at_ns, output.daemon_wake
        return output
