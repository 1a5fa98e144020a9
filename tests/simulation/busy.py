"""A busy random run of 50 extensions; prints its event hash.  ``python tests/simulation/busy.py [SEED]``.

Drivers stacked on drivers, agents, Trio tasks with locks and snapshots, timers, crashes and restarts, kmsg
followers, hints, char devices and attributes, modules that come and go: everything that could bring in chance.
Which of it happens is drawn from the run's own streams, so that equal seeds must give equal hashes.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Annotated

import trio

import uxk
from uxk.core.site import DecisionSite
from uxk.errors import UxkError

MS = 1_000_000
DRIVERS, STACKED, AGENTS, TASKS, WATCHERS = 14, 12, 10, 10, 4
RUN_NS = 20 * MS


class Params(uxk.Params):
    lower: str = ""
    delay_ns: Annotated[int, uxk.param(ge=0)] = 2_000
    crash_ppm: Annotated[int, uxk.param(ge=0, le=1_000_000)] = 4_000


RESTART = uxk.RestartPolicy(mode="transient", max_restarts=1000, backoff_ns=20_000, backoff_max_ns=MS)


class Driver(uxk.Extension[Params]):
    """Answers out of order after random delays; crashes now and then."""

    manifest = uxk.Manifest(
        name="busy-driver", driver_class="busy", params=Params, restart=RESTART, fate="requeue", turn_cost_ns=300,
        watchdog=uxk.Watchdog(heartbeat_ns=MS, request_timeout_ns=3 * MS),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.random = ctx.random("driver")
        ctx.allocate(4096, keep="medium")
        ctx.add_device(f"{ctx.name}-x", colour=str(self.random.integers(10)))
        self.served = 0

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            self.served += 1
            if self.random.integers(1_000_000) < self.params.crash_ppm:
                raise RuntimeError(f"bad luck with request {request.cid}")
            if self.random.integers(500) == 0:
                continue  # lost: its deadline ends it
            delay_ns = int(self.random.integers(self.params.delay_ns + 1))
            ctx.call_later_ns(delay_ns, self.finish(ctx), request)
        ctx.set_attribute("served", self.served)

    def finish(self, ctx: uxk.Context) -> Callable[[uxk.Request], None]:
        def done(request: uxk.Request) -> None:
            ctx.complete(request, request.payload, result=ctx.now_ns, status=0 if request.cid % 7 else 5)

        return done


class Stacked(uxk.Extension[Params]):
    """Passes requests on to a lower device."""

    manifest = uxk.Manifest(
        name="busy-stacked", driver_class="busy", params=Params, restart=RESTART, fate="reissue",
        capabilities=("device:busy*",), depends=("busy-driver",),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.random = ctx.random("stacked")
        self.cap = 0
        self.early: list[uxk.Request] = []
        ctx.open_device(self.params.lower).then(lambda done: self.opened(ctx, done))

    def opened(self, ctx: uxk.Context, done: uxk.Completion) -> None:
        self.cap = done.result
        early, self.early = self.early, []
        self.on_batch(ctx, early)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        if not self.cap:
            self.early += requests
            return
        for request in requests:
            if self.random.integers(1_000_000) < self.params.crash_ppm:
                raise ValueError(f"stacked: {request.cid}")
            try:
                reply = ctx.submit(self.cap, payload=request.payload, wait=bool(request.cid % 2))
            except UxkError:
                ctx.fail(request, 11)
                continue
            reply.then(self.passing(ctx, request))

    @staticmethod
    def passing(ctx: uxk.Context, request: uxk.Request) -> Callable[[uxk.Completion], None]:
        return lambda done: ctx.complete(request, done.payload, status=done.status)


class Agent(uxk.Extension[Params]):
    """Submits to devices that bind rules attach, and gives hints."""

    manifest = uxk.Manifest(
        name="busy-agent", kind="ml-agent", params=Params, restart=RESTART, binds=(uxk.Bind({"class": "busy"}),),
        capabilities=("sysfs:/sys/*:read,write", "site:busy-site"),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.random = ctx.random("agent")
        self.caps: dict[str, int] = {}
        ctx.call_later_ns(int(self.random.integers(10_000)), self.act, ctx)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "device_add":
            self.caps[event.name] = event.cap
        elif event.topic == "device_remove":
            self.caps.pop(event.name, None)

    def act(self, ctx: uxk.Context) -> None:
        draw = int(self.random.integers(100))
        if draw < 1:
            raise KeyError("agent")
        if self.caps and draw < 70:
            name = sorted(self.caps)[int(self.random.integers(len(self.caps)))]
            for _ in range(int(self.random.integers(1, 6))):
                try:
                    ctx.submit(self.caps[name], payload=bytes([draw]) * draw)
                except UxkError:
                    break
        elif draw < 85:
            ctx.hint("busy-site", 0, 100_000, bytes([draw]))
        else:
            ctx.read("/sys/class").then(lambda done: ctx.log(f"{done.status}"))
        ctx.call_later_ns(int(self.random.integers(1_000, 60_000)), self.act, ctx)


class Task(uxk.Extension[Params]):
    """A Trio task with children of its own that take locks and read and publish snapshots."""

    manifest = uxk.Manifest(
        name="busy-task", kind="ml-agent", params=Params, restart=RESTART,
        capabilities=("lock:busy*", "snapshot:busy*:read,write"),
    )  # fmt: skip

    async def run(self, ctx: uxk.Context) -> None:
        async with trio.open_nursery() as nursery:
            for child in range(3):
                nursery.start_soon(self.child, ctx, child)

    async def child(self, ctx: uxk.Context, number: int) -> None:
        random = ctx.random(f"child{number}")
        lock = (await ctx.open("lock", f"busy{number}", uxk.Rights.LOCK)).result
        cell = (await ctx.open("snapshot", "busy", uxk.Rights.READ | uxk.Rights.WRITE)).result
        for turn in range(1_000_000):
            await ctx.sleep_ns(int(random.integers(1, 200_000)))
            if random.integers(400) == 0:
                raise OSError(f"task {ctx.name} {number}")
            try:
                exclusive = bool(random.integers(2))
                async with ctx.lock(lock, exclusive=exclusive, lease_ns=int(random.integers(10_000, 100_000))):
                    await ctx.sleep_ns(int(random.integers(1, 50_000)))
                    await ctx.publish(cell, f"{ctx.name} {number} {turn}".encode())
                pin = await ctx.pin(cell)
                await ctx.sleep_ns(int(random.integers(1, 5_000)))
                await ctx.unpin(cell, pin.result)
            except UxkError as exc:
                ctx.log(f"{type(exc).__name__}")


class Watcher(uxk.Extension[Params]):
    """Follows the log, and writes one of its own."""

    manifest = uxk.Manifest(name="busy-watcher", kind="ml-agent", params=Params, capabilities=("kmsg:read",))

    def setup(self, ctx: uxk.Context) -> None:
        ctx.follow_kmsg(max_level=5)
        ctx.add_chardev(f"{ctx.name}-dev")
        self.seen = 0

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        self.seen += len(event.value)
        if self.seen % 16 == 0:
            ctx.log(f"seen {self.seen} bytes", seen=self.seen)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, str(self.seen).encode())


async def load(kernel: uxk.Kernel) -> list[uxk.Module]:
    """Fifty instances."""
    modules = [await kernel.modprobe("busy-driver", instance=f"busy_d{i}" if i else None) for i in range(DRIVERS)]
    drivers = [module.devices[0] for module in modules]
    for i in range(STACKED):
        lower = drivers[i % DRIVERS] if i < 8 else f"busy_s{i - 8}"
        modules.append(await kernel.modprobe("busy-stacked", instance=f"busy_s{i}", lower=lower))
    for kind, count in (("agent", AGENTS), ("task", TASKS), ("watcher", WATCHERS)):
        modules += [await kernel.modprobe(f"busy-{kind}", instance=f"busy_{kind[0]}{i}") for i in range(count)]
    return modules


async def user(kernel: uxk.Kernel, number: int) -> None:
    """A user's task: submits, reads, loads and unloads."""
    random = kernel.machine.streams.stream(f"user{number}")
    while True:
        await kernel.sleep_ns(int(random.integers(1_000, 400_000)))
        draw = int(random.integers(100))
        try:
            if draw < 60:
                module = kernel.module(f"busy_s{int(random.integers(STACKED))}")
                await module.submit(bytes([draw]) * 10, check=False)
            elif draw < 75:
                async with await kernel.open(f"/dev/busy_w{int(random.integers(WATCHERS))}-dev") as file:
                    await file.read(16)
            elif draw < 90:
                await kernel.rmmod(f"busy_{'ats'[int(random.integers(3))]}{int(random.integers(10))}")
            else:
                letter = "at"[int(random.integers(2))]
                kind = {"a": "busy-agent", "t": "busy-task"}[letter]
                await kernel.modprobe(kind, instance=f"busy_{letter}{int(random.integers(12))}")
        except UxkError as exc:
            kernel.machine.log("info", "user", f"{number}: {exc.errno_name}")


async def main(seed: int, clock: str = "virtual") -> tuple[str, dict[str, int]]:
    async with uxk.Kernel(seed=seed, clock=clock) as kernel:  # type: ignore[arg-type]
        kernel.machine.costs_ns.update({"busy-stacked": 400, "busy-agent": 900, "busy-task": 100, "busy-watcher": 50})
        kernel.machine.sites["busy-site"] = DecisionSite("busy-site", lambda payload: "odd" if payload[0] % 2 else "")
        modules = await load(kernel)
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(user, kernel, number)
            await kernel.run_until_ns(RUN_NS)
            nursery.cancel_scope.cancel()
        figures = {
            "modules": len(modules), "events": kernel.machine.hash.count, "now_ns": kernel.now_ns,
            "restarts": sum(module.account.restarts for module in modules),
            "requests": sum(module.account.requests for module in modules),
            "timeouts": sum(module.account.timeouts for module in modules),
            "kmsg": kernel.kmsg.next_seq, "log": hash_of_log(kernel),
        }  # fmt: skip
    return kernel.event_hash(), figures


def hash_of_log(kernel: uxk.Kernel) -> int:
    """A digest of the log, which must repeat as well.  (Tracebacks name this file, not addresses.)"""
    text = "\n".join(f"{r.time_ns} {r.source} {r.text}" for r in kernel.kmsg.records() if " | " not in r.text)
    return zlib.crc32(text.encode())


if __name__ == "__main__":
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    digest, figures = trio.run(main, seed, sys.argv[2] if len(sys.argv) > 2 else "virtual")
    print(digest, figures)
