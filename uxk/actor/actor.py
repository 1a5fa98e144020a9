"""Runs one extension: frames in, callbacks, frames out.

Sans-IO, so that the same code serves task and process placement: a host calls :meth:`Actor.turn` with bytes
and gets bytes.  An exception in the extension's code ends the actor, and is reported as :class:`Crash`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import trio

from uxk import limits
from uxk.context import Context, Reply
from uxk.core.codec import Frame, completion_codec, down_codec, frames_of
from uxk.core.params import with_param
from uxk.errors import ProtocolError, UsageError, UxkError
from uxk.module import Extension, overrides
from uxk.submission import SubmissionQueue
from uxk.uapi import entries as e

_ENTRIES_MAX: Final = limits.ENTRY_MAX_COUNT


class Crash(NamedTuple):
    """What ended an actor: the callback it was in, the exception, and the traceback's lines."""

    where: str
    kind: str
    message: str
    traceback: str
    errno: int = 0
    """Of an exception that has one, such as uxk's own; 0: it has none."""
    refusal: bool = False
    """Whether it is a UsageError, which is meant for whoever asked: nothing is broken."""


class Output(msgspec.Struct, gc=False):
    """What a turn leaves behind: frames, and when to be called again."""

    replies: Sequence[Frame]
    up: Sequence[Frame]
    wake_at_ns: int | None
    daemon_wake: bool


class State(NamedTuple):
    """A checkpoint on its way from one instance to the next: the version of its format, and the data."""

    version: int
    data: bytes


class Saved(NamedTuple):
    """What became of asking an extension for its state: the state, none (it keeps none), or why not."""

    state: State | None
    problem: str = ""


class Start(NamedTuple):
    """What a host tells an actor at birth.  Plain data: it may cross a process boundary."""

    name: str
    instance: int
    seed: int
    depth: int
    now_ns: int
    params: bytes
    device: str = ""
    state: State | None = None
    """Of the instance before it, in a hot upgrade or restart."""


class Actor:
    """One extension and its context.  After a crash, :attr:`crash` is set and turns do nothing."""

    __slots__ = ("_batched", "_extension", "_runs", "_state", "crash", "ctx")

    def __init__(
        self, cls: type[Extension[Any]], start: Start, map_region: Callable[[int, bool], memoryview] | None = None
    ) -> None:
        self.ctx = Context(start.name, start.instance, start.seed, start.depth, start.now_ns)
        self.ctx.device = start.device
        self.ctx._map = map_region
        self.crash: Crash | None = None
        self._state = start.state
        self._extension: Extension[Any] | None = None
        self._runs = self._batched = False
        with self._contained("__init__"):
            extension = cls()
            extension.params = msgspec.msgpack.decode(start.params, type=cls.manifest.params)
            self._extension = extension
            self._runs = overrides(extension, "run")
            self._batched = overrides(extension, "on_batch") or not self._runs

    @property
    def runs(self) -> bool:
        """Whether the extension has a Trio task of its own."""
        return self._runs

    def setup(self) -> None:
        """Calls the extension's ``setup``."""
        if self._extension is not None:
            with self._contained("setup"):
                self._extension.setup(self.ctx)
                self._restore(self._extension)
                if self.crash is None:
                    self._extension._begin(self.ctx)

    def _restore(self, extension: Extension[Any]) -> None:
        """Gives it the state of the instance before it, in its own version."""
        state, self._state = self._state, None
        if state is None:
            return
        with self._contained("restore"):
            manifest, data = extension.manifest, state.data
            if not overrides(extension, "restore"):
                raise UsageError(f"{manifest.name} {manifest.version} has no restore(): it takes no state over")
            if state.version != manifest.state_version:
                data = extension.convert(state.version, data)
            extension.restore(data)
            extension._handed_over = True

    def checkpoint(self) -> Saved:
        """Asks the extension for its state; an exception there is no crash, but an answer."""
        extension = self._extension
        if extension is None or self.crash is not None:
            return Saved(None, "it is dead")
        if not overrides(extension, "checkpoint"):
            return Saved(None)
        kick, self.ctx._kick = self.ctx._kick, None
        try:
            data = extension.checkpoint()
            if not isinstance(data, bytes):
                return Saved(None, f"checkpoint() returned {type(data).__name__}, expected bytes")
            if len(data) > limits.STATE_MAX_BYTES:
                return Saved(None, f"checkpoint() returned {len(data)} bytes, at most {limits.STATE_MAX_BYTES}")
            return Saved(State(extension.manifest.state_version, data))
        except KeyboardInterrupt:
            raise
        except BaseException as exc:
            return Saved(None, f"{type(exc).__name__} in checkpoint: {_described(exc)[0]}")
        finally:
            self.ctx._kick = kick

    async def run(self) -> None:
        """The extension's Trio task.  A crash is recorded; cancellation passes through."""
        assert self._extension is not None
        self.ctx._tasks.root = trio.lowlevel.current_task()
        try:
            await self._extension.run(self.ctx)
        except BaseException as exc:
            if _is_not_its_fault(exc):
                raise
            self._record("run", exc)

    def turn(self, now_ns: int, down: Sequence[bytes], answers: Sequence[bytes]) -> Output:
        """Delivers frames of requests and of answers, fires due timers, and returns what the extension said."""
        ctx = self.ctx
        ctx._now_ns = now_ns
        if self.crash is None:
            try:
                for frame in answers:
                    self._on_answers(frame)
                for frame in down:
                    self._on_down(frame)
                timers = ctx._timers
                if timers is not None and timers.is_due(now_ns):
                    # Not more than there are now: one that arms itself for now again has its next turn.
                    for _ in range(len(timers)):
                        due = timers.pop_due(now_ns)
                        if due is None:
                            break
                        due[0](due[1])
            except KeyboardInterrupt:
                raise
            except BaseException as exc:
                self._record("turn", exc)
        return self.output()

    def output(self) -> Output:
        """Takes what is staged, as frames."""
        ctx = self.ctx
        replies: Sequence[Frame] = ()
        up: Sequence[Frame] = ()
        try:
            if ctx._replies:
                replies = frames_of(ctx._replies)
                ctx._replies.clear()
            if ctx._up:
                up = frames_of(ctx._up)
                ctx._up.clear()
        except Exception as exc:  # a value that no message can hold
            self._record("encode", exc)
            ctx._replies.clear()
            ctx._up.clear()
        if ctx._raw:
            raw, ctx._raw = ctx._raw, []
            replies = [*replies, *((frame, count) for to_up, frame, count in raw if not to_up)]
            up = [*up, *((frame, count) for to_up, frame, count in raw if to_up)]
        timers = ctx._timers
        if timers is None:
            return Output(replies, up, None, False)
        return Output(replies, up, timers.next_due_ns(), timers.lasting == 0)

    def stop(self, reason: str) -> None:
        """Tells the extension that it is going."""
        self.ctx._kick = None  # it is told outside turns: a kick would have it called while it is being called
        if self._extension is not None and self.crash is None:
            with self._contained("on_stop"):
                self._extension.on_stop(self.ctx, reason)

    # --- delivery ---

    def _on_answers(self, frame: bytes) -> None:
        pop = self.ctx._pending.pop
        completions = completion_codec.decode(frame, _ENTRIES_MAX)[0]
        waiting = [pop(completion.cid, None) for completion in completions]
        first = waiting[0]
        if type(first) is SubmissionQueue and (len(waiting) == 1 or waiting.count(first) == len(waiting)):  # mostly
            first.on_completions(completions)
            return
        if len(waiting) == 1:
            if type(first) is Reply:
                first.resolve(completions[0])
            return
        group: list[e.Completion] = []
        queue: SubmissionQueue | None = None
        for who, completion in zip(waiting, completions, strict=True):
            if group and who is not queue:
                assert queue is not None
                queue.on_completions(group)
                group = []
            if isinstance(who, SubmissionQueue):
                queue = who
                group.append(completion)
            elif who is not None:
                who.resolve(completion)
        if group and queue is not None:
            queue.on_completions(group)

    def _on_down(self, frame: bytes) -> None:
        requests = down_codec.decode_usual(frame, _ENTRIES_MAX)
        if requests is not None:
            self._requests(requests)
            return
        entries, bad = down_codec.decode(frame, _ENTRIES_MAX)
        if bad:
            raise ProtocolError(f"{self.ctx.name}: the kernel sent {len(bad)} unreadable entries: {bad[0].reason}")
        extension, ctx = self._extension, self.ctx
        assert extension is not None
        on_event = extension.on_event
        batch: list[e.Request] = []
        for entry in entries:
            if type(entry) is e.Request:
                batch.append(entry)
                continue
            if batch:
                self._requests(batch)
                batch = []
            if type(entry) is e.Event:
                if entry.topic == "param":
                    extension.params = with_param(ctx.name, extension.params, entry.name, entry.value.decode())
                on_event(ctx, entry)
            elif type(entry) is e.Ping:
                self._ping(entry)
        if batch:
            self._requests(batch)

    def _requests(self, batch: list[e.Request]) -> None:
        if self._batched:
            assert self._extension is not None
            self._extension.on_batch(self.ctx, batch)
        else:
            self._to_inbox(*batch)

    def _ping(self, ping: e.Ping) -> None:
        if self._batched:
            self.ctx._replies.append(e.Pong(ping.number))
        else:
            self._to_inbox(ping)

    def _to_inbox(self, *entries: Any) -> None:
        ctx = self.ctx
        ctx._inbox.extend(entries)
        if ctx._inbox_event is not None:
            ctx._inbox_event.set()

    # --- containment ---

    def _contained(self, where: str) -> _Contained:
        return _Contained(self, where)

    def _record(self, where: str, exc: BaseException) -> None:
        number = getattr(exc, "errno", None) if isinstance(exc, (UxkError, OSError)) else None
        known = number if isinstance(number, int) else 0
        self.crash = Crash(where, type(exc).__name__, *_described(exc), known, isinstance(exc, UsageError))

    def follow_clock(self, clock: Callable[[], int]) -> None:
        """Lets a task that runs outside turns see the present time: the world may wake it at any."""
        self.ctx._clock = clock

    def watch_output(self, callback: Callable[[], None] | None, kick: Callable[[], bool] | None = None) -> None:
        """``callback()`` whenever something is staged: for output made outside turns, by ``run``.

        ``kick()`` has it taken at once, where that can be.
        """
        self.ctx._on_output = callback
        self.ctx._kick = kick


def _described(exc: BaseException) -> tuple[str, str]:
    """Message and traceback of an exception whose own methods may fail, too."""
    try:
        return str(exc), "".join(traceback.format_exception(exc))
    except KeyboardInterrupt:
        raise
    except BaseException as second:
        text = f"an exception that cannot be shown: {type(second).__name__}"
        return text, "".join(traceback.format_tb(exc.__traceback__))


def _is_not_its_fault(exc: BaseException) -> bool:
    """Cancellation and Ctrl-C pass through, alone or in groups; everything else is a crash."""
    if isinstance(exc, BaseExceptionGroup):
        return all(_is_not_its_fault(inner) for inner in exc.exceptions)
    return isinstance(exc, (KeyboardInterrupt, trio.Cancelled))


class _Contained:
    """Context manager: an exception in the extension's code becomes the actor's crash."""

    __slots__ = ("_actor", "_where")

    def __init__(self, actor: Actor, where: str) -> None:
        self._actor = actor
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, tb: object) -> bool:
        if exc is None or isinstance(exc, KeyboardInterrupt):
            return False
        self._actor._record(self._where, exc)
        return True
