"""Extensions that misbehave on purpose, one rule each: for tests of whatever must survive them.

``await kernel.insmod(hostile.NeverAnswers)``.  :data:`HOSTILE` lists them all; each behaves until its moment has
come: in ``setup`` for those that cannot be loaded (:data:`UNLOADABLE`), at its first request for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final

import trio

from uxk.context import Context
from uxk.errors import RingFull
from uxk.limits import I64_MAX, PAYLOAD_MAX_BYTES
from uxk.module import Extension
from uxk.uapi.entries import Completion, Event, Request
from uxk.uapi.manifest import Budget, Manifest, RestartPolicy, Watchdog
from uxk.uapi.rights import Rights

FLOOD: Final = 10_000
"""How often a flooder tries."""


class Misfit(Exception):
    """What extensions here raise: no error of uxk's."""


def _manifest(name: str, **more: Any) -> Manifest:
    more = {"restart": RestartPolicy(max_restarts=1), "budget": Budget(memory_bytes=1 << 16), **more}
    return Manifest(name=f"hostile_{name}", version="1", license="Apache-2.0", **more)


class Hostile(Extension):
    """Base: answers every request, after :meth:`misbehave` has had its way, once for each batch."""

    def on_batch(self, ctx: Context, requests: Sequence[Request]) -> None:
        """Misbehaves, then serves."""
        self.misbehave(ctx, requests)
        for request in requests:
            ctx.complete(request, request.payload)

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """What a subclass does wrong."""


# --- those that fail ------------------------------------------------------------------------------------


class RaisesInInit(Hostile):
    """Cannot even be made."""

    manifest = _manifest("raises_in_init")

    def __init__(self) -> None:
        raise Misfit("init")


class RaisesInSetup(Hostile):
    """Fails while it is being loaded, holding a few things already."""

    manifest = _manifest("raises_in_setup")

    def setup(self, ctx: Context) -> None:
        """Asks, then fails."""
        ctx.allocate(4096)
        ctx.add_device("hostile-half")
        ctx.set_attribute("half", 1)
        ctx.call_later_ns(10, lambda _: None)
        raise Misfit("setup")


class ExitsInSetup(Hostile):
    """Wants to end the whole process."""

    manifest = _manifest("exits_in_setup")

    def setup(self, ctx: Context) -> None:
        """Leaves."""
        raise SystemExit(3)


class NeverReady(Hostile):
    """Promises a readiness signal that never comes."""

    manifest = _manifest("never_ready", ready="explicit")


class RaisesInBatch(Hostile):
    """Fails with requests in hand."""

    manifest = _manifest("raises_in_batch")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """Fails."""
        raise Misfit("on_batch")


class RaisesInEvent(Hostile):
    """Fails at any news; its own attribute brings some."""

    manifest = _manifest("raises_in_event")

    def setup(self, ctx: Context) -> None:
        """Offers the attribute ``knob``."""
        ctx.set_attribute("knob", 0, writable=True)

    def on_event(self, ctx: Context, event: Event) -> None:
        """Fails."""
        raise Misfit(event.topic)


class RaisesInTimer(Hostile):
    """Fails in a timer, between requests."""

    manifest = _manifest("raises_in_timer")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """Sets the timer."""
        ctx.call_later_ns(5, self._fail)

    def _fail(self, _: object) -> None:
        raise Misfit("timer")


class RaisesInStop(Hostile):
    """Fails when told to go."""

    manifest = _manifest("raises_in_stop")

    def on_stop(self, ctx: Context, reason: str) -> None:
        """Fails."""
        raise Misfit("on_stop")


class RaisesInRun(Hostile):
    """Its Trio task fails, inside a nursery of its own."""

    manifest = _manifest("raises_in_run")

    async def run(self, ctx: Context) -> None:
        """Fails at the first batch of requests that the task sees; ``on_batch`` serves them all the same."""
        async with trio.open_nursery():
            await ctx.sleep_ns(5)
            raise Misfit("run")


class Exits(Hostile):
    """Raises SystemExit in the middle of its work."""

    manifest = _manifest("exits")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """Leaves."""
        raise SystemExit(3)


class Unprintable(Hostile):
    """Raises an exception that cannot be shown."""

    manifest = _manifest("unprintable")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """Fails in a way that makes reporting fail."""

        class Silent(Exception):
            def __str__(self) -> str:
                raise Misfit("no words")

        raise Silent


class SwallowsCancellation(Hostile):
    """Its Trio task ignores that it is cancelled, once."""

    manifest = _manifest("swallows_cancellation")

    async def run(self, ctx: Context) -> None:
        """Sleeps; told to go, clings on for a moment."""
        with suppress(trio.Cancelled):
            await trio.sleep_forever()
        await trio.lowlevel.cancel_shielded_checkpoint()


# --- those that break the protocol ------------------------------------------------------------------------


class NeverAnswers(Hostile):
    """Takes requests and keeps them."""

    manifest = _manifest("never_answers", watchdog=Watchdog(request_timeout_ns=1_000_000, timeouts_max=2))

    def on_batch(self, ctx: Context, requests: Sequence[Request]) -> None:
        """Nothing."""


class NoPong(Hostile):
    """Serves itself in ``run``, and does not take anything out of its inbox, heartbeats included."""

    manifest = _manifest("no_pong", watchdog=Watchdog(heartbeat_ns=1_000_000))
    on_batch = Extension.on_batch  # so that requests and pings go to the inbox

    async def run(self, ctx: Context) -> None:
        """Sleeps."""
        await trio.sleep_forever()


class ForgesCompletions(Hostile):
    """Answers requests that it never got."""

    manifest = _manifest("forges_completions")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """Answers the future, the past and the impossible."""
        for cid in (0, requests[-1].cid + 1, requests[-1].cid + 1000, I64_MAX):
            ctx.complete(Request(cid), b"forged")


class DuplicatesCompletions(Hostile):
    """Answers twice, the second time otherwise."""

    manifest = _manifest("duplicates_completions")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """The first answers; the base class gives the second."""
        for request in requests:
            ctx.complete(request, b"first")


class WritesGarbage(Hostile):
    """Writes bytes that are no frames into both queues, with lies about their number."""

    manifest = _manifest("writes_garbage")
    FRAMES: ClassVar[tuple[bytes, ...]] = (
        b"", b"\xc1", b"\x90", b"\xdd\xff\xff\xff\xff", b"\x91\x90", b"\x91\x92\x10\xc0", b"\x91" * 2000,
        b"\x91\x92\x22\xcf\xff\xff\xff\xff\xff\xff\xff\xff", bytes(range(256)) * 16, b"\x91\xc6\xff\xff\xff\xff",
    )  # fmt: skip

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """Every frame, in both directions, with every claim."""
        for frame in self.FRAMES:
            for count in (1, 0, -1, 1 << 40):
                ctx.write_raw(frame, count)
                ctx.write_raw(frame, count, up=True)


class PayloadTooLarge(Hostile):
    """Answers with more than a completion may hold."""

    manifest = _manifest("payload_too_large")

    def on_batch(self, ctx: Context, requests: Sequence[Request]) -> None:
        """One byte too many."""
        for request in requests:
            ctx.complete(request, bytes(PAYLOAD_MAX_BYTES + 1))


class OutOfRange(Hostile):
    """Answers with numbers that no field can hold."""

    manifest = _manifest("out_of_range")

    def on_batch(self, ctx: Context, requests: Sequence[Request]) -> None:
        """A negative status."""
        for request in requests:
            ctx.complete(request, status=-5, result=-I64_MAX)


class Unencodable(Hostile):
    """Answers with something that no message can hold."""

    manifest = _manifest("unencodable")

    def on_batch(self, ctx: Context, requests: Sequence[Request]) -> None:
        """An object as payload, an integer beyond 64 bits as result."""
        thing: Any = object()
        for request in requests:
            ctx.complete(request, thing, result=1 << 80)


class AnswersWithCommands(Hostile):
    """Sends a completion up and a command down: each where the other belongs."""

    manifest = _manifest("answers_with_commands")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """Confuses the queues."""
        ctx.stage(Completion(requests[0].cid))


# --- those that want too much -------------------------------------------------------------------------------


class FloodsLog(Hostile):
    """Logs without end."""

    manifest = _manifest("floods_log")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """Many lines, at an alarming level."""
        for number in range(FLOOD):
            ctx.log(f"flood {number} " + "x" * 2000, level=0)


class FloodsHints(Hostile):
    """Hints at everything until its queue is full, for ever."""

    manifest = _manifest("floods_hints", budget=Budget(hints_per_s=10))

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """As many hints as the queue takes."""
        for number in range(FLOOD):
            try:
                ctx.hint("no-such-site", number, 1 << 40, b"x" * 100)
            except RingFull:
                break


class FloodsSubmits(Hostile):
    """Submits to whatever might be a capability, again with every answer."""

    manifest = _manifest("floods_submits")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """As many as the queue takes, with guessed capabilities."""
        for number in range(FLOOD):
            try:
                ctx.submit(number, 2, b"x" * 100)
            except RingFull:
                break


class FloodsNames(Hostile):
    """Registers devices, char devices and attributes until it is refused."""

    manifest = _manifest("floods_names")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """A few at a time; each batch of requests brings more."""
        first = 16 * requests[0].cid
        for number in range(first, first + 16):
            try:
                ctx.add_device(f"hostile-{number}")
                ctx.add_chardev(f"hostile-{number}")
                ctx.set_attribute(f"a{number}", "x" * 4000)
            except RingFull:
                break


class AsksTooMuch(Hostile):
    """Opens everything, with all rights, and writes where it must not."""

    manifest = _manifest("asks_too_much")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """None of this is in its manifest."""
        for kind in ("device", "lock", "snapshot", "sysctl", "sysfs", "kmsg", "chardev", "arena", "queue", "*"):
            for target in ("*", "echo0", "/sys/*", "../../etc"):
                try:
                    ctx.open(kind, target, Rights.ALL)
                except RingFull:
                    break
        ctx.log("done asking")


class AllocatesTooMuch(Hostile):
    """Allocates beyond its budget and keeps all it gets."""

    manifest = _manifest("allocates_too_much")

    def misbehave(self, ctx: Context, requests: Sequence[Request]) -> None:
        """More and more."""
        for length_bytes in (1, 4096, 1 << 15, 1 << 16, 1 << 20, 1 << 40, I64_MAX):
            ctx.allocate(length_bytes)


UNLOADABLE: Final[tuple[type[Extension], ...]] = (RaisesInInit, RaisesInSetup, ExitsInSetup, NeverReady)
"""Those whose loading must fail, and leave nothing."""
HOSTILE: Final[tuple[type[Extension], ...]] = (
    *UNLOADABLE, RaisesInBatch, RaisesInEvent, RaisesInTimer, RaisesInStop, RaisesInRun, Exits, Unprintable,
    SwallowsCancellation, NeverAnswers, NoPong, ForgesCompletions, DuplicatesCompletions, WritesGarbage,
    PayloadTooLarge, OutOfRange, Unencodable, AnswersWithCommands, FloodsLog, FloodsHints, FloodsSubmits, FloodsNames,
    AsksTooMuch, AllocatesTooMuch,
)  # fmt: skip
"""Every extension of this file."""
