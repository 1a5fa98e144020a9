"""An extension that attacks the kernel and its neighbours, in the way that its parameter says.

    uxk insmod examples/attacks/hostile.py attack=flood placement=process

``bench/attacks.py`` measures what honest extensions lose by each; ``docs/attacks.md`` says what stops it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Final

import uxk
from uxk.actor import wire
from uxk.core.codec import encode
from uxk.uapi import entries
from uxk.uapi.entries import Entry

SOCKET: Final = 3
"""Descriptor of the connection to the kernel, which a hostile extension uses as it likes."""
CPU_PPM: Final = 50_000
"""Its share of a processor, in what its crossings, entries and bytes are charged."""
GIANT_BYTES: Final = 2 << 20
FRAME: Final = 32
"""Entries of a frame."""
STEP_NS: Final = 100_000
"""Between two blows, where the attack leaves the kernel any choice."""


class HostileParams(uxk.Params):
    attack: Annotated[str, uxk.param(help="name of the attack; `none` does nothing")] = "none"
    blows: Annotated[int, uxk.param(ge=1, le=1_000_000, help="commands, lines or messages of one blow")] = 200


class Hostile(uxk.Extension[HostileParams]):
    """Attacks as soon as it is told to, again after every restart of its own, and every 100 microseconds."""

    manifest = uxk.Manifest(
        name="hostile", version="1.0", license="Apache-2.0", kind="both", params=HostileParams, fate="fail",
        capabilities=("kmsg:read", "device:honest0:submit"),
        budget=uxk.Budget(memory_bytes=4 << 20, log_burst=16, cpu_ppm=CPU_PPM),
        restart=uxk.RestartPolicy(max_restarts=1, backoff_ns=1_000_000),
        watchdog=uxk.Watchdog(heartbeat_ns=200_000_000, request_timeout_ns=500_000_000),
        sandbox=uxk.Sandbox(memory_bytes=128 << 20, files=64),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.number = 0
        self.refused = 0
        self.neighbour = 0

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        """The first request begins it; a slow reader never answers, all others do."""
        if self.params.attack != "slow_reader":
            ctx.complete_batch(requests)
        if not self.number:
            self.number = 1
            ctx.call_later_ns(STEP_NS, lambda _: self.strike(ctx), daemon=True)

    def strike(self, ctx: uxk.Context) -> None:
        """One blow, and the next one planned."""
        ATTACKS[self.params.attack](self, ctx)
        self.number += self.params.blows
        ctx.call_later_ns(STEP_NS, lambda _: self.strike(ctx), daemon=True)

    # --- through the queues, past the limits of the runtime in this process ---

    def say(self, ctx: uxk.Context, words: Sequence[Entry], *, up: bool = True) -> None:
        """Entries in frames that the ring could hold, more of them than it can."""
        for at in range(0, len(words), FRAME):
            part = words[at : at + FRAME]
            ctx.write_raw(encode(part), len(part), up=up)

    def cids(self) -> range:
        """Command ids of one blow: far from those that the runtime gives."""
        return range((1 << 40) + self.number, (1 << 40) + self.number + self.params.blows)

    def none(self, ctx: uxk.Context) -> None:
        """Comparison: a neighbour that only wakes up."""

    def flood(self, ctx: uxk.Context) -> None:
        """More commands than its rings hold."""
        self.say(ctx, [entries.TreeRead(cid, "/proc/uptime") for cid in self.cids()])

    def forged(self, ctx: uxk.Context) -> None:
        """Answers that nobody asked for, entries that are none, and lies about how many there are."""
        self.say(ctx, [entries.Completion(cid) for cid in self.cids()], up=False)
        ctx.write_raw(b"\x93\xc1" * 16, 16)
        ctx.write_raw(b"\xdd\xff\xff\xff\xff", 1 << 40, up=True)

    def giant(self, ctx: uxk.Context) -> None:
        """Frames twice as long as any may be."""
        ctx.write_raw(bytes(GIANT_BYTES), 1)
        ctx.write_raw(bytes(GIANT_BYTES), 1, up=True)

    def arena(self, ctx: uxk.Context) -> None:
        """All the memory that can be had, and more; what it gets, it never gives back."""
        self.say(ctx, [entries.Allocate(cid, 1 << 20) for cid in self.cids()])

    def log(self, ctx: uxk.Context) -> None:
        """Lines as long as may be, of the highest level."""
        self.say(ctx, [entries.Log(0, f"{number} " + "spam" * 250) for number in self.cids()])

    def guess(self, ctx: uxk.Context) -> None:
        """Capabilities of others: numbers in order, on what takes one."""
        first = self.number
        for kind in (entries.Submit, entries.Revoke, entries.Free):
            self.say(ctx, [kind(cid, first + cid - self.cids()[0]) for cid in self.cids()])
        for cap in range(first, first + 8):
            with contextlib.suppress(uxk.UxkError):
                ctx.map(cap, writable=True)

    # --- past the runtime ---

    def fork(self, ctx: uxk.Context) -> None:
        """Children, as many as can be had."""
        for _ in range(self.params.blows):
            try:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
            except OSError:
                self.refused += 1
        ctx.set_attribute("refused", self.refused)

    def spin(self, ctx: uxk.Context) -> None:
        """It never yields."""
        while True:
            pass

    def slow_reader(self, ctx: uxk.Context) -> None:
        """It asks for all there is to hear, and for a neighbour's services; then its process sleeps."""
        if self.number == 1:
            ctx.follow_kmsg(oldest=True)
            ctx.open_device("honest0").then(lambda opened: setattr(self, "neighbour", opened.result))
        elif self.neighbour:
            with contextlib.suppress(uxk.UxkError):
                while True:
                    ctx.submit(self.neighbour)
            self.neighbour = 0
        else:
            time.sleep(3600)

    def chatter(self, ctx: uxk.Context) -> None:
        """Well-formed output without end, out of turn, written into the socket."""
        line = encode([entries.Log(6, "chatter")])
        message = wire.packed(wire.Out(self.number - 1, [], [(line, 1)], None, False, 0)) * 100
        push(message)

    def wire_flood(self, ctx: uxk.Context) -> None:
        """MAP after MAP, written into the socket, and no answer read."""
        message = wire.packed(wire.Map(1, False)) * 1000
        push(message)

    def wire_giant(self, ctx: uxk.Context) -> None:
        """A message that claims 4 GiB."""
        os.write(SOCKET, b"\xff\xff\xff\xff" + bytes(1 << 16))

    names: ClassVar[tuple[str, ...]] = (
        "flood", "forged", "giant", "arena", "log", "guess", "fork", "spin", "slow_reader", "chatter", "wire_flood",
        "wire_giant",
    )  # fmt: skip


def push(message: bytes) -> None:
    """Writes it into the connection for ever."""
    os.set_blocking(SOCKET, True)
    while True:
        os.write(SOCKET, message)


ATTACKS: Final[dict[str, Callable[[Hostile, uxk.Context], None]]] = {
    name: getattr(Hostile, name) for name in ("none", *Hostile.names)
}
