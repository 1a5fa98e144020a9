"""The adviser in user space, once for each way to reach it.  What it thinks is the same in all of them."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

import uxk
from bench.methods_policy import (
    THINK_NS,
    Answer,
    Shape,
    answer_text,
    pack_answer,
    parse_state,
    rank,
    unpack_state,
)

DEVICE: Final = "lfs0-advice"
FOLDER: Final = "/sys/kernel/lfs0"
BASE: Final = "lfs0-base"
"""The snapshot of the whole state, written by the kernel."""
VICTIMS: Final = "lfs0-victims"
"""The snapshot of the answer, written by the adviser."""
TRACE: Final = "lfs0-trace"
TIMEOUT_NS: Final = 10_000_000
"""Deadline of a request to the adviser."""
MODEL: Final = "lfs0"
SITE: Final = "lfs0.victim"
BUDGET: Final = uxk.Budget(queue_depth=256, hints_per_s=1_000_000_000)
"""A budget of hints that never binds: it would be a difference between methods that is none."""
WROTE, MOVED, SEALED, CLEANED = range(4)
"""Kinds of trace records: two words each, kind and segment, and the segment that lost a block, plus one."""
KIND_SHIFT: Final = 28
HEAD: Final = struct.Struct("<qqq")
"""Of a base and of a batch of records: time, records before it, user clock."""


class AdviserParams(uxk.Params):
    """What an adviser has to know from the start."""

    size: int
    most: int
    hang_ns: int
    poll_ns: int
    ttl_ns: int


class Adviser:
    """What all of them have in common."""

    params: AdviserParams
    _armed = False

    def soon(self, ctx: uxk.Context, think: Callable[[uxk.Context], object]) -> None:
        """Calls ``think`` once at the end of this turn: of several states that came together the newest counts."""
        if not self._armed:
            self._armed = True
            ctx.call_at_ns(ctx.now_ns, lambda _: self._now(ctx, think))

    def _now(self, ctx: uxk.Context, think: Callable[[uxk.Context], object]) -> None:
        self._armed = False
        if not self.hangs(ctx):
            think(ctx)

    def hangs(self, ctx: uxk.Context) -> bool:
        """Whether it has stopped to answer: it goes on to read."""
        return ctx.now_ns >= self.params.hang_ns

    def think(self, ctx: uxk.Context, at_ns: int, rows: Iterable[tuple[int, int, int]]) -> Answer:
        """The policy, and what it is charged."""
        ctx.charge_ns(THINK_NS)
        return Answer(at_ns, rank(rows, Shape(self.params.size, self.params.most)))


def manifest_of(name: str, *capabilities: str) -> uxk.Manifest:
    """A manifest for one of them: an instance that fails stays down, so that nothing is hidden."""
    return uxk.Manifest(
        name=name, params=AdviserParams, capabilities=capabilities, budget=BUDGET, turn_cost_ns=0,
        restart=uxk.RestartPolicy(mode="temporary"),
        watchdog=uxk.Watchdog(request_timeout_ns=TIMEOUT_NS),
    )  # fmt: skip


class Called(Adviser, uxk.Extension[AdviserParams]):
    """Synchronous upcall: a request with the state, completed with the answer."""

    manifest = manifest_of("methods-upcall")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            if not self.hangs(ctx):
                ctx.complete(request, pack_answer(self.think(ctx, *unpack_state(request.payload))))


class Polling(Adviser, uxk.Extension[AdviserParams]):
    """sysfs: reads the state as text every so often, and writes the answer if the state is another one."""

    manifest = manifest_of("methods-sysfs", f"sysfs:{FOLDER}/victims:write")

    def setup(self, ctx: uxk.Context) -> None:
        self.ctx = ctx
        self.before: list[tuple[int, int, int]] = []
        self.poll(None)

    def poll(self, _: object) -> None:
        """A read that is not answered yet is not repeated."""
        self.ctx.read(f"{FOLDER}/segments").then(self.on_text)

    def on_text(self, done: uxk.Completion) -> None:
        """What the read has brought."""
        ctx = self.ctx
        ctx.call_later_ns(self.params.poll_ns, self.poll, daemon=True)
        if done.status or self.hangs(ctx):
            return
        state = parse_state(done.payload.decode())
        if state.rows != self.before:
            self.before = state.rows
            ctx.write(f"{FOLDER}/victims", answer_text(self.think(ctx, *state)))


class Device(Adviser, uxk.Extension[AdviserParams]):
    """Char device: what is written to it is the state, what is read from it the answer."""

    manifest = manifest_of("methods-chardev")

    def setup(self, ctx: uxk.Context) -> None:
        self.answer = b""
        ctx.add_chardev(DEVICE)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        if self.hangs(ctx):
            return
        for request in requests:
            if request.opcode == uxk.Op.WRITE:
                self.answer = pack_answer(self.think(ctx, *unpack_state(request.payload)))
                ctx.set_poll(DEVICE, readable=True, writable=True)
                ctx.complete(request, result=len(request.payload))
            elif request.opcode == uxk.Op.READ:
                ctx.set_poll(DEVICE, writable=True)
                ctx.complete(request, self.answer)
            else:
                ctx.complete(request)


class Tracer(Adviser, uxk.Extension[AdviserParams]):
    """Event ring: follows every change in a copy of its own; begins, and begins anew after a loss, with a snapshot."""

    manifest = manifest_of("methods-events", f"snapshot:{BASE}:read", f"snapshot:{VICTIMS}:write")

    def setup(self, ctx: uxk.Context) -> None:
        self.ctx = ctx
        self.base = self.victims = 0
        self.seen = -1
        """Records that the copy has; -1 while there is none."""
        self.now = self.at_ns = 0
        self.live, self.sealed = array("q"), array("q")
        self.early: list[bytes] = []
        """Batches that came while there was no copy to apply them to."""
        ctx.open("snapshot", VICTIMS, uxk.Rights.WRITE).then(self.on_victims)
        ctx.open("snapshot", BASE, uxk.Rights.READ).then(self.on_base)

    def on_victims(self, done: uxk.Completion) -> None:
        """Where answers go."""
        self.victims = done.result

    def on_base(self, done: uxk.Completion) -> None:
        """Where to begin."""
        self.base = done.result
        self.resync()

    def resync(self) -> None:
        """Reads the whole state, as it was at some record."""
        self.seen = -1
        self.ctx.pin(self.base).then(self.on_pinned)

    def on_pinned(self, done: uxk.Completion) -> None:
        """The copy from now on, with what came in the meantime; the version is not needed any more."""
        if done.status:
            return
        _, self.seen, self.now = HEAD.unpack_from(done.payload)
        words = np.frombuffer(done.payload, "<i8", offset=HEAD.size)
        half = len(words) // 2
        self.live, self.sealed = array("q", words[:half].tobytes()), array("q", words[half:].tobytes())
        self.ctx.unpin(self.base, done.result)
        early, self.early = self.early, []
        for batch in early:
            self.take(batch)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == TRACE:
            self.take(event.value)

    def take(self, batch: bytes) -> None:
        """Applies a batch that continues the copy; one further ahead means that some were lost."""
        at_ns, before, _ = HEAD.unpack_from(batch)
        if self.seen < 0 or before > self.seen:
            self.early.append(batch)
            if self.seen >= 0:
                self.resync()
        elif before == self.seen:
            self.apply(batch[HEAD.size :])
            self.at_ns = at_ns
            self.soon(self.ctx, self.answer)

    def answer(self, ctx: uxk.Context) -> None:
        """What the copy says."""
        live, now = self.live, self.now
        rows = [(number, live[number], now - at) for number, at in enumerate(self.sealed) if at >= 0]
        ctx.publish(self.victims, pack_answer(self.think(ctx, self.at_ns, rows)))

    def apply(self, records: bytes) -> None:
        """Does to the copy what was done to the volume."""
        words: list[int] = np.frombuffer(records, "<u4").tolist()
        live, sealed = self.live, self.sealed
        for word, lost in zip(words[::2], words[1::2], strict=True):
            kind, segment = word >> KIND_SHIFT, word & (1 << KIND_SHIFT) - 1
            if kind <= MOVED:
                live[segment] += 1
                if lost:
                    live[lost - 1] -= 1
                self.now += kind == WROTE
            elif kind == SEALED:
                sealed[segment] = self.now
            else:
                live[segment], sealed[segment] = 0, -1
        self.seen += len(words) // 2


class Hinter(Adviser, uxk.MLAgent[AdviserParams]):
    """SQ/CQ: reads datasets in shared memory, sends standing hints to a decision site."""

    manifest = manifest_of("methods-hints")
    model, sites = MODEL, (SITE,)

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        self.newest = dataset
        self.soon(ctx, self.answer)

    def answer(self, ctx: uxk.Context) -> None:
        """The answer's time is that of the dataset, which the kernel knows by its generation."""
        dataset = self.newest
        answer = self.think(ctx, 0, dataset.rows.tolist())
        self.advise(ctx, SITE, uxk.Advice(pack_answer(answer), ttl_ns=self.params.ttl_ns), dataset)
