"""A driver with something of everything that an upgrade may take away; what its new build does wrong, a parameter says.

Its state for the next build is a word; all else it has is in its own memory, and is to be there after a failed upgrade.
"""

from __future__ import annotations

from collections.abc import Sequence

import uxk

PAGE = 4096
BEAT_NS = 50_000_000


class KeeperParams(uxk.Params):
    fails: str = ""


class Keeper(uxk.Extension[KeeperParams]):
    manifest = uxk.Manifest(
        name="keeper", version="1", params=KeeperParams, fate="reissue", ready="explicit", ready_timeout_ns=1_000_000,
        capabilities=("lock:kept:lock", "snapshot:kept:read,write", "device:steady0:submit"),
        budget=uxk.Budget(memory_bytes=4 * PAGE), watchdog=uxk.Watchdog(heartbeat_ns=1_000_000_000),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.ctx, self.born_ns, self.beats, self.told = ctx, ctx.now_ns, 0, ""
        self.generation = 1
        ctx.allocate(PAGE, keep="medium").then(self.on_medium)
        ctx.allocate(PAGE).then(self.on_memory)
        ctx.open("lock", "kept", uxk.Rights.LOCK).then(self.on_lock)
        ctx.open("snapshot", "kept", uxk.Rights.READ | uxk.Rights.WRITE).then(self.on_snapshot)
        ctx.add_chardev("keeper")
        ctx.add_device("keeper_side", build=self.params.fails or "good")
        ctx.set_poll("keeper", readable=True)
        ctx.set_attribute("mood", "calm", writable=True)
        ctx.call_later_ns(BEAT_NS, self.on_beat, daemon=True)
        if self.params.fails == "setup":
            raise ValueError("as asked")

    def on_medium(self, done: uxk.Completion) -> None:
        self.medium = self.ctx.map(done.result, writable=True)

    def on_memory(self, done: uxk.Completion) -> None:
        self.memory = self.ctx.map(done.result, writable=True)
        self.memory[:8] = b"private!"

    def on_lock(self, done: uxk.Completion) -> None:
        self.lock = done.result
        self.ctx.acquire(self.lock, lease_ns=10**12).then(self.on_acquired)

    def on_acquired(self, done: uxk.Completion) -> None:
        self.token = done.result

    def on_snapshot(self, done: uxk.Completion) -> None:
        self.snapshot = done.result
        self.ctx.publish(self.snapshot, b"published")
        self.ctx.pin(self.snapshot).then(self.on_pinned)

    def on_pinned(self, done: uxk.Completion) -> None:
        self.version = done.result
        if self.params.fails == "extra":
            self.ctx.add_device("keeper_extra")
            self.ctx.add_chardev("keeper_extra")
            self.ctx.allocate(PAGE, keep="extra").then(self.on_extra)
        elif self.params.fails == "grabs":
            self.ctx.remove_device("keeper_side").then(self.on_refused)
        elif self.params.fails != "never":
            self.ctx.ready()

    def on_extra(self, done: uxk.Completion) -> None:
        raise ValueError(f"as asked, with {done.status}")

    def on_refused(self, done: uxk.Completion) -> None:
        raise ValueError(done.payload.decode())

    def on_beat(self, _: object) -> None:
        self.beats += 1
        self.ctx.call_later_ns(BEAT_NS, self.on_beat, daemon=True)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "store":
            ctx.set_attribute("mood", event.value.decode(), writable=True)
            self.medium[:4] = event.value[:4].ljust(4)
        self.told += event.topic + " "

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        """READ: what it remembers.  WRITE: lets go of lock and pin, and says how that went."""
        for request in requests:
            if request.opcode == uxk.Op.READ:
                what = f"{self.generation} {self.born_ns} {bytes(self.memory[:8]).decode()} {bytes(self.medium[:4])!r}"
                ctx.complete(request, what.encode())
            else:
                ctx.release(self.lock, self.token).then(lambda done, request=request: self.on_released(request, done))

    def on_released(self, request: uxk.Request, done: uxk.Completion) -> None:
        first = done.status
        self.ctx.unpin(self.snapshot, self.version).then(
            lambda done: self.ctx.complete(request, b"%d %d" % (first, done.status))
        )

    def checkpoint(self) -> bytes:
        return b"%d" % self.generation

    def restore(self, data: bytes) -> None:
        self.generation = int(data) + 1
        if self.params.fails == "restore":
            raise ValueError("as asked")

    def on_stop(self, ctx: uxk.Context, reason: str) -> None:
        ctx.log(f"generation {self.generation}: {reason}")
        ctx.set_attribute("mood", "gone")
