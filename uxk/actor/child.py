"""The host process of one extension: ``python -m uxk.actor.child DESCRIPTOR``.

Connects the same :class:`~uxk.actor.actor.Actor` as everywhere with a kernel at the other end of a socket.  Under a
clock that the kernel holds (virtual, charged) nothing here runs but what the kernel has asked for; on the real clock
an extension's tasks run freely, and what they stage is sent at once.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import platform
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from time import monotonic_ns, perf_counter_ns
from typing import Any, Final

import trio

from uxk import limits
from uxk.actor import sandbox, wire
from uxk.actor.actor import Actor, Crash, Output, State
from uxk.actor.actor import Start as ActorStart
from uxk.actor.link import Gone, Link
from uxk.actor.mapping import Mappings
from uxk.actor.rest import Rest
from uxk.core.codec import Frame
from uxk.errors import CapabilityError, ModuleError
from uxk.module import Extension

_LIVES_ON: Final = 0.5
"""Seconds that tasks may take to end when the kernel has hung up."""


class Child:
    """Serves one kernel until that hangs up."""

    def __init__(self, link: Link[wire.FromKernel]) -> None:
        self._link = link
        self._waiting: list[wire.FromKernel] = []
        """Messages that came while an answer was awaited."""
        self._down: list[bytes] = []
        self._answers: list[bytes] = []
        self._number = -1
        self._now_ns = 0
        self._staged = self._in_turn = False
        self._ended = False
        self._crash_told = False
        self._mappings = Mappings()
        self._unmaps: list[wire.Unmap] = []
        """News of memory that are still to be acted on."""
        self._flush = trio.Event()
        self._done = trio.Event()
        self._rest = Rest()
        self._actor: Actor | None = None
        self._start: wire.Start
        self.resting = False
        """Whether its tasks rest until the kernel lets them run, which hears then what they have staged."""

    # --- life ---

    def greet(self) -> None:
        """The first word."""
        self._link.send_all(
            wire.Hello(wire.MAGIC, wire.VERSION_MIN, wire.VERSION_MAX, f"python {platform.python_version()}")
        )

    def begin(self, start: wire.FromKernel) -> bool:
        """Sets up the extension that the kernel names; whether it has tasks, which are to be started."""
        if isinstance(start, wire.Refuse):
            raise SystemExit(f"the kernel refuses: {start.reason}")
        if not isinstance(start, wire.Start):
            raise SystemExit(f"the kernel sent {type(start).__name__}, expected Start")
        self._start = start
        self._now_ns = start.now_ns
        began_ns = perf_counter_ns()
        actor = self._load(start)
        if actor is None:
            self._answer(Output((), (), None, False), began_ns)
            return False
        self._actor = actor
        actor.setup()
        if actor.runs and actor.crash is None:
            actor.follow_clock(self._clock)
            actor.watch_output(self._note_staged, None if start.held else self._kick)
        self._answer(actor.output(), began_ns)
        return actor.runs and actor.crash is None

    async def serve(self) -> None:
        """From the first word to the end of the connection."""
        self.greet()
        if not self.begin(self._next()):
            self._serve_plain()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run, name=f"uxk {self._start.name}")
            try:
                if self._start.held:
                    self._rest.watch()
                    await self._serve_held()
                else:
                    nursery.start_soon(self._flusher)
                    await self._serve_free()
            except Gone:
                nursery.cancel_scope.cancel()
                with trio.move_on_after(_LIVES_ON, shield=True):
                    await self._done.wait()

    def _load(self, start: wire.Start) -> Actor | None:
        """Confines this process, imports the class and makes the actor; None, and told, if that fails."""
        try:
            self._confine(start)
            cls = self._class(start)
        except BaseException as exc:  # somebody else's package: anything may go wrong
            if isinstance(exc, KeyboardInterrupt):
                raise
            lines = "".join(traceback.format_exception(exc))
            number = getattr(exc, "errno", 0)
            self._tell(Crash("import", type(exc).__name__, str(exc), lines, number if isinstance(number, int) else 0))
            return None
        birth = ActorStart(
            start.name, start.instance, start.seed, start.depth, start.now_ns, start.params, start.device,
            None if start.state_version is None else State(start.state_version, start.state),
        )  # fmt: skip
        return Actor(cls, birth, self._map)

    def _confine(self, start: wire.Start) -> None:
        confine(start)

    def _class(self, start: wire.Start) -> type[Extension[Any]]:
        return load_class(start)

    async def _run(self) -> None:
        assert self._actor is not None
        try:
            await self._actor.run()
        finally:
            self._ended = True
            self._done.set()
            with contextlib.suppress(Gone):
                self._note_staged()

    def _clock(self) -> int:
        return self._now_ns if self._start.held else monotonic_ns() - self._start.boot_ns

    # --- serving ---

    def _serve_plain(self) -> None:
        """Without tasks of its own all that happens happens in turns: no need to wait through Trio."""
        while True:
            self._handle(self._next())

    async def _serve_held(self) -> None:
        """Tasks rest from every turn to the SETTLE after it: when they run is the kernel's decision."""
        while True:
            message = self._next()
            while not isinstance(message, wire.Settle):
                self._handle(message)
                message = self._next()
            await self._settle(message, self._rest)
            while not self._waiting:
                await trio.lowlevel.wait_readable(self._link.sock)
                self._waiting += self._link.receive()

    async def _settle(self, message: wire.Settle, rest: Rest) -> None:
        """Lets tasks run until all of them wait, and tells."""
        self._now_ns = message.now_ns
        began_ns = perf_counter_ns()
        self._in_turn = True  # the answer tells what they stage
        await rest.wait()
        self._in_turn = False
        self._number += 1
        if message.take:
            output, staged = self._output(), self._staged
            self._staged = False
            self._tell_crash()
            self._say(output, began_ns, staged)
        else:
            self._say(Output((), (), None, False), began_ns, self._staged)

    async def _serve_free(self) -> None:
        while True:
            while not self._waiting:
                await trio.lowlevel.wait_readable(self._link.sock)
                self._waiting += self._link.receive()
            self._handle(self._waiting.pop(0))

    async def _flusher(self) -> None:
        """Sends what tasks stage outside turns, on the real clock, a step's worth at a time."""
        while True:
            await self._flush.wait()
            self._flush = trio.Event()
            self._send_staged()

    def _send_staged(self) -> None:
        if self._staged:
            self._staged = False
            output = self._output()
            self._tell_crash()
            self._say(output, perf_counter_ns(), True)

    def _kick(self) -> bool:
        """Sends what is staged at once; the kernel acts on it in its own time."""
        if not self._in_turn:
            self._send_staged()
        return False

    def _note_staged(self) -> None:
        """Something is staged outside turns, or the task has ended."""
        if self._staged or (self._in_turn and not self._start.held):
            return
        self._staged = True
        if not self._start.held:
            self._flush.set()
        elif not (self._in_turn or self.resting):
            self._link.send_all(wire.Dirty())

    # --- messages ---

    def _next(self) -> wire.FromKernel:
        if not self._waiting:
            self._waiting += self._link.wait_for_messages()
        return self._waiting.pop(0)

    def _handle(self, message: wire.FromKernel) -> None:
        """One message that is answered at once."""
        if type(message) is wire.Turn:
            if message.more or self._down or self._answers:
                self._down += message.down
                self._answers += message.answers
                if message.more:
                    return
                down, self._down = self._down, []
                answers, self._answers = self._answers, []
            else:
                down, answers = message.down, message.answers
            self._now_ns = message.now_ns
            self._outside(lambda actor: actor.turn(message.now_ns, down, answers))
        elif isinstance(message, wire.Stop):
            self._outside(lambda actor: self._last_words(actor, message.reason))
        elif isinstance(message, wire.Unmap):
            self._unmaps.append(message)
            self._catch_up()
        elif isinstance(message, wire.Checkpoint):
            self._number += 1
            self._link.send_all(self._saved())
        elif isinstance(message, wire.Settle):  # there is no task
            self._now_ns = message.now_ns
            self._answer(Output((), (), None, False), perf_counter_ns())
        else:
            raise SystemExit(f"the kernel sent {type(message).__name__}, expected Turn, Settle or Stop")

    def _outside(self, call: Callable[[Actor], Output]) -> None:
        """A turn outside the extension's tasks; what these had staged leaves with its output."""
        began_ns, actor = perf_counter_ns(), self._actor
        self._in_turn = True
        output = Output((), (), None, False) if actor is None else call(actor)
        self._in_turn = False
        self._staged = self._staged and self._ended
        self._answer(output, began_ns)

    def _saved(self) -> wire.Saved:
        if self._actor is None:
            return wire.Saved(self._number, None, problem="it is dead")
        self._in_turn = True
        saved = self._actor.checkpoint()
        self._in_turn = False
        if saved.state is None:
            return wire.Saved(self._number, None, problem=_utf8(saved.problem[: wire.TRACEBACK_MAX_CHARS]))
        return wire.Saved(self._number, saved.state.version, saved.state.data)

    @staticmethod
    def _last_words(actor: Actor, reason: str) -> Output:
        actor.stop(reason)
        return actor.output()

    def _output(self) -> Output:
        assert self._actor is not None
        return self._actor.output()

    def _answer(self, output: Output, began_ns: int) -> None:
        self._number += 1
        self._tell_crash()
        self._say(output, began_ns, False)

    def _say(self, output: Output, began_ns: int, staged: bool) -> None:
        """Sends an output, in several messages if one cannot hold it."""
        spent_ns = max(0, perf_counter_ns() - began_ns)
        send, number = self._link.send_all, self._number
        replies: list[Frame] = []
        up: list[Frame] = []
        if output.replies or output.up:
            size_bytes = 0
            for which, frames in ((replies, output.replies), (up, output.up)):
                for frame, count in frames:
                    if size_bytes and size_bytes + len(frame) > wire.SPLIT_BYTES:
                        send(wire.Out(number, replies, up, None, False, 0, more=True))
                        replies.clear()
                        up.clear()
                        size_bytes = 0
                    which.append((frame, count if -1 <= count <= limits.I64_MAX else limits.I64_MAX))
                    size_bytes += len(frame)
        send(wire.Out(number, replies, up, output.wake_at_ns, output.daemon_wake, spent_ns, staged, self._ended))

    def _tell_crash(self) -> None:
        crash = None if self._actor is None else self._actor.crash
        if crash is not None and not self._crash_told:
            self._tell(crash)

    def _tell(self, crash: Crash) -> None:
        self._crash_told = True
        cut = wire.TRACEBACK_MAX_CHARS
        self._link.send_all(wire.Crashed(
            _utf8(crash.where[: wire.WORD_MAX_CHARS]), _utf8(crash.kind[: wire.WORD_MAX_CHARS]),
            _utf8(crash.message[:cut]), _utf8(crash.traceback[-cut:]), _errno(crash.errno), crash.refusal,
        ))  # fmt: skip

    # --- memory ---

    def _map(self, cap: int, writable: bool) -> memoryview:
        """The memory that a capability names, as the kernel grants it.  CapabilityError with its errno if not."""
        if not 0 <= cap <= limits.I64_MAX:
            raise CapabilityError(f"{self._start.name}: capability {cap}, expected a number from the kernel")
        known = self._mappings.again(cap, writable)
        if known is not None:
            return known
        while True:
            view = self._mapped(cap, writable)
            self._catch_up()
            if view is not None:
                return view

    def _mapped(self, cap: int, writable: bool) -> memoryview | None:
        """Asks once; None if the region has moved on meanwhile."""
        link = self._link
        link.send_all(wire.Map(cap, writable))
        descriptors: list[int] = []
        try:
            while True:
                messages, more = link.receive_with()
                descriptors += more
                answer: wire.Mapped | None = None
                for message in messages:
                    if isinstance(message, wire.Mapped):
                        answer = message
                    elif isinstance(message, wire.Unmap):
                        self._unmaps.append(message)
                    else:
                        self._waiting.append(message)
                if answer is not None:
                    return self._looked_at(answer, descriptors)
                if not messages:
                    link.wait()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _looked_at(self, answer: wire.Mapped, descriptors: Sequence[int]) -> memoryview | None:
        if answer.status or not descriptors:
            raise CapabilityError(answer.text or "the kernel sent no memory", errno=answer.status or None)
        mappings = self._mappings
        if mappings.is_past(answer.region, answer.generation):
            return None
        try:
            return mappings.view(
                answer.cap, answer.region, answer.generation, descriptors[0], answer.offset, answer.length,
                answer.writable,
            )  # fmt: skip
        except OSError as exc:
            raise CapabilityError(f"{self._start.name}: {exc}", errno=exc.errno) from None

    def _catch_up(self) -> None:
        """Lets go of memory that was taken away, and looks at what has moved where it is now."""
        while self._unmaps:
            message = self._unmaps.pop(0)
            self._mappings.release(message.ended)
            for cap, writable in self._mappings.grants(message.moved):
                with contextlib.suppress(CapabilityError):  # taken away meanwhile
                    self._mapped(cap, writable)


def _errno(number: int) -> int:
    return number if 0 <= number < 1 << 16 else 0


def _utf8(text: str) -> str:
    """Text that can be encoded, whatever an exception calls itself."""
    return text.encode(errors="replace").decode()


# --- the process -----------------------------------------------------------------------------------------


def confine(start: wire.Start) -> None:
    """Gives up, before any code of the module runs, what its manifest does not ask for."""
    package = package_of(start)
    sandbox.enter(start.sandbox, start.memory_bytes, [*start.search, start.file, *([package] if package else [])])


def load_class(start: wire.Start) -> type[Extension[Any]]:
    """Imports the extension's class: by name, or from its file.  ModuleError if there is none there."""
    sys.path[:] = list(start.search)
    module = None
    if start.module != "__main__" and not start.module.startswith("uxk_insmod_"):
        try:
            module = importlib.import_module(start.module)
        except ModuleNotFoundError as exc:
            if not start.file or exc.name is None or not f"{start.module}.".startswith(f"{exc.name}."):
                raise
    if module is None:
        module = _from_file(start)
    found: Any = module
    for part in start.qualname.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Extension)):
        raise ModuleError(f"{start.name}: {start.module} has no extension {start.qualname} in its host process")
    return found


def package_of(start: wire.Start) -> str:
    """The folder of the package that a module imported from a path is in, or ""."""
    above, file = start.module.count("."), start.file
    if not start.module.startswith("uxk_insmod_") or not file:
        return ""
    is_package = os.path.basename(file) == "__init__.py"
    folder = os.path.dirname(file)
    for _ in range(above - (0 if is_package else 1)):
        folder = os.path.dirname(folder)
    return folder if above or is_package else ""


def _from_file(start: wire.Start) -> Any:
    name, package = "__uxk_main__" if start.module == "__main__" else start.module, package_of(start)
    if package:
        top = _executed(start, name.partition(".")[0], os.path.join(package, "__init__.py"), [package])
        return importlib.import_module(name) if "." in name else top
    return _executed(start, name, start.file, None)


def _executed(start: wire.Start, name: str, file: str, within: list[str] | None) -> Any:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=within) if file else None
    if spec is None or spec.loader is None:
        raise ModuleError(f"{start.name}: module {start.module} has no file that its host process could import")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # msgspec resolves annotations through it
    spec.loader.exec_module(module)
    return module


def main(argv: Sequence[str]) -> int:
    """``DESCRIPTOR PARENT``: the connected socket, and the process that it leads to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the kernel's to act on
    sandbox.die_with_parent(int(argv[1]))
    sandbox.close_descriptors(int(argv[0]))
    sock = socket.socket(fileno=int(argv[0]))
    link: Link[wire.FromKernel] = Link(sock, wire.FromKernel)
    return converse(Child(link))


def converse(child: Child) -> int:
    """Runs a child until the kernel hangs up; the exit status."""
    run: Callable[[], Any] = child.serve
    try:
        trio.run(run)
    except Gone:
        pass
    except BaseExceptionGroup as group:
        rest = group.split(Gone)[1]
        if rest is not None:
            raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # other threads, of a library's, end with it
