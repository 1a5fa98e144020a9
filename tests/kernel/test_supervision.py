"""Crashes, hangs, fates and restarts: what dies is contained, told, and started again by policy."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio

import uxk
from uxk.core.lifecycle import ModuleState
from uxk.errors import UxkError
from uxk.uapi.manifest import Fate, Restart

MS = 1_000_000
RESTART = uxk.RestartPolicy(backoff_ns=MS, backoff_max_ns=8 * MS, max_restarts=1000)


def texts(kernel: uxk.Kernel, source: str) -> list[str]:
    return [record.text for record in kernel.kmsg.records(source=source)]


class Bystander(uxk.Extension):
    """Must not notice anything."""

    manifest = uxk.Manifest(name="sup_bystander")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            ctx.complete(request, payload=request.payload)


# --- containment ---


class Fragile(uxk.Extension):
    """Fails where a request's payload says; opcode 1 is answered."""

    manifest = uxk.Manifest(
        name="sup_fragile", restart=RESTART, capabilities=("sysfs:/sys/*:read",),
        watchdog=uxk.Watchdog(request_timeout_ns=100 * MS),
    )  # fmt: skip

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            if request.opcode == 1:
                ctx.complete(request, payload=request.payload)
                continue
            where = request.payload.decode()
            if where == "on_batch":
                raise ValueError("in on_batch")
            if where == "timer":
                ctx.call_later_ns(10, self.fail)
            if where == "reply":
                ctx.read("/sys/kernel/seed").then(self.fail)
            if where == "event":
                ctx.set_attribute("knob", 1, writable=True)
            if where == "encode":
                ctx.complete(request, payload=object())  # type: ignore[arg-type]
            if where == "status":
                ctx.complete(request, status="bad")  # type: ignore[arg-type]
            if where == "run":
                self.wake.set()
            if where == "attribute":
                self.nothing  # type: ignore[attr-defined]  # noqa: B018
            if where == "surrogate":
                raise type("\ud800Error", (Exception,), {})("\ud800")
            if where == "str":
                raise Unprintable
            if where == "group":
                raise ExceptionGroup("g", [ValueError("one"), ExceptionGroup("h", [KeyError(1)])])
            if where == "exit":
                raise SystemExit("leaving")
            if where == "generator":
                raise GeneratorExit
            if where == "recursion":
                self.on_batch(ctx, requests)
            if where == "stop":
                raise StopIteration

    def setup(self, ctx: uxk.Context) -> None:
        self.wake = trio.Event()

    def fail(self, _: Any) -> None:
        raise ValueError("in a callback")

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        raise ValueError("in on_event")

    async def run(self, ctx: uxk.Context) -> None:
        await self.wake.wait()
        raise ValueError("in run")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


WHERE = [
    "on_batch", "timer", "reply", "event", "encode", "run", "attribute", "surrogate", "str", "group", "exit",
    "generator", "recursion", "stop",
]  # fmt: skip


@pytest.mark.parametrize("where", WHERE)
async def test_a_crash_is_contained_told_and_repaired(where: str) -> None:
    _keep = [Bystander, Fragile]
    async with uxk.Kernel() as kernel:
        bystander = await kernel.modprobe("sup_bystander")
        fragile = await kernel.modprobe("sup_fragile")
        assert (await fragile.submit(b"before", opcode=1)).payload == b"before"
        done: list[uxk.Completion] = []
        fragile.open_port(done.extend).submit(uxk.Request(0, payload=where.encode()))
        await kernel.run_until_ns(50)
        if where == "event":
            kernel.sysfs.write("/sys/module/sup_fragile/attributes/knob", "2")
            await kernel.run_until_ns(60)
        assert fragile.state == ModuleState.RESTARTING and fragile.account.faults == 1
        assert [completion.status for completion in done] == [errno.EIO]
        oops = [text for text in texts(kernel, "sup_fragile") if text.startswith("oops")]
        assert oops[0].startswith("oops: ") and " in " in oops[0]
        assert any(f"payload=b'{where}'" in text for text in oops if "last in" in text)
        assert where == "str" or any("Traceback" in text for text in oops)
        assert (await bystander.submit(b"calm")).payload == b"calm" and bystander.account.faults == 0
        await kernel.run()
        assert fragile.state.name == "LIVE" and fragile.account.restarts == 1
        assert (await fragile.submit(b"after", opcode=1)).payload == b"after"
        assert any("live again, incarnation 1" in text for text in texts(kernel, "sup_fragile"))
        assert kernel.machine.outstanding == 0


async def test_an_answer_of_the_wrong_type_is_refused_and_its_request_answered() -> None:
    _keep = Fragile
    async with uxk.Kernel() as kernel:
        fragile = await kernel.modprobe("sup_fragile")
        assert (await fragile.submit(b"status", check=False)).status == errno.EBADMSG
        assert fragile.state.name == "LIVE" and fragile.account.rejected == 1


async def test_the_traceback_names_the_line_of_the_author() -> None:
    _keep = Fragile
    async with uxk.Kernel() as kernel:
        fragile = await kernel.modprobe("sup_fragile")
        await fragile.submit(b"on_batch", check=False)
        oops = texts(kernel, "sup_fragile")
        assert any('raise ValueError("in on_batch")' in text for text in oops)
        assert any("test_supervision.py" in text for text in oops)


async def test_an_endless_traceback_is_cut() -> None:
    _keep = Fragile
    async with uxk.Kernel() as kernel:
        fragile = await kernel.modprobe("sup_fragile")
        await fragile.submit(b"recursion", check=False)
        assert len(texts(kernel, "sup_fragile")) < 200


# --- restart policies ---


def dying(mode: Restart, **policy: int) -> type[uxk.Extension]:
    class Dying(uxk.Extension):
        manifest = uxk.Manifest(
            name="sup_dying",
            restart=uxk.RestartPolicy(mode=mode, **policy),
            kind="ml-agent",
        )

        async def run(self, ctx: uxk.Context) -> None:
            await ctx.sleep_ns(10)
            if mode != "permanent":
                raise ValueError("again")

    return Dying


def restarts(kernel: uxk.Kernel, source: str) -> list[int]:
    return [int(r.fields["restart_ns"]) for r in kernel.kmsg.records(source=source) if "restart_ns" in r.fields]


async def test_back_off_grows_to_its_limit_and_intensity_gives_up() -> None:
    cls = dying("transient", max_restarts=6, backoff_ns=100, backoff_max_ns=1000, period_ns=10**9)
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(cls)
        await kernel.run()
        assert restarts(kernel, "sup_dying") == [100, 200, 400, 800, 1000, 1000]
        assert kernel.now_ns == 7 * 10 + 3500
        assert module.state == ModuleState.GONE and kernel.lsmod() == [] and module.account.holdings() == {}
        assert any("stays down: 7 exits within" in text for text in texts(kernel, "sup_dying"))
        await kernel.insmod(cls)  # the administrator may try again


async def test_temporary_never_comes_back() -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(dying("temporary"))
        await kernel.run()
        assert module.state == ModuleState.GONE and restarts(kernel, "sup_dying") == []


async def test_permanent_comes_back_from_a_normal_end_until_it_is_too_often() -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(dying("permanent", max_restarts=3, backoff_ns=100))
        await kernel.run()
        assert restarts(kernel, "sup_dying") == [100, 200, 400] and module.state == ModuleState.GONE
        assert module.account.faults == 0


async def test_a_transient_module_may_end_normally() -> None:
    class Ends(uxk.Extension):
        manifest = uxk.Manifest(name="sup_ends", kind="ml-agent")

        async def run(self, ctx: uxk.Context) -> None:
            await ctx.sleep_ns(10)

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("sup_ends")
        await kernel.run()
        assert module.state == ModuleState.LIVE and module.account.restarts == 0


async def test_a_quiet_period_forgives() -> None:
    _keep = Fragile
    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("sup_fragile")
        for _ in range(3):
            await module.submit(b"on_batch", check=False)
            await kernel.run()
        await kernel.sleep_ns(6_000 * MS)
        await module.submit(b"on_batch", check=False)
        assert restarts(kernel, "sup_fragile") == [MS, 2 * MS, 4 * MS, MS]


# --- after a restart ---


async def test_the_second_life_begins_clean_and_keeps_what_was_to_be_kept() -> None:
    lives: list[dict[str, Any]] = []

    class Phoenix(uxk.Extension):
        manifest = uxk.Manifest(
            name="sup_phoenix", restart=RESTART, capabilities=("lock:sup", "snapshot:sup:read,write"),
            binds=(uxk.Bind({"class": "misc"}),),
        )  # fmt: skip

        def setup(self, ctx: uxk.Context) -> None:
            self.life: dict[str, Any] = {"events": []}
            lives.append(self.life)
            ctx.allocate(4096, keep="medium").then(lambda done: self.mapped(ctx, done))
            ctx.allocate(4096).then(lambda done: self.life.update(scratch=done.result))
            ctx.open("lock", "sup", uxk.Rights.LOCK).then(lambda done: ctx.acquire(done.result, lease_ns=10**12))
            ctx.set_attribute("life", len(lives))
            ctx.add_device("sup_extra")
            ctx.add_chardev("sup_char")
            self.life["random"] = int(ctx.random().integers(1 << 60))

        def mapped(self, ctx: uxk.Context, done: uxk.Completion) -> None:
            view = ctx.map(done.result, writable=True)
            self.life["medium"] = bytes(view[:4])
            view[:4] = b"data"

        def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
            self.life["events"].append((event.topic, event.name))

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            raise ValueError("fire")

    _keep = Bystander
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("sup_bystander")
        module = await kernel.modprobe("sup_phoenix")
        await kernel.run_until_ns(10)
        before = module.account.to_dict()
        caps = len(kernel.machine.caps)
        await module.submit(check=False)
        assert len(kernel.machine.caps) < caps and module.account.locks == 0
        assert kernel.sysfs.exists("/sys/class/misc/sup_phoenix0")
        assert not kernel.sysfs.exists("/sys/module/sup_phoenix/attributes/life")
        await kernel.run()
        await kernel.sleep_ns(10)
        assert [life["medium"] for life in lives] == [b"\0\0\0\0", b"data"]
        assert lives[0]["random"] != lives[1]["random"]
        assert lives[0]["events"] == lives[1]["events"] == [("device_add", "sup_bystander0")]
        assert kernel.sysfs.read("/sys/module/sup_phoenix/attributes/life").strip() == "2"
        assert sorted(module.devices) == ["sup_extra", "sup_phoenix0"] and len(kernel.machine.caps) == caps
        after = module.account.to_dict()
        for gauge in ("arena_bytes", "locks", "devices", "queue_slots", "inflight", "pins", "files"):
            assert after[gauge] == before[gauge], gauge


async def test_timers_and_answers_of_a_former_life_do_not_reach_the_next() -> None:
    heard: list[str] = []

    class Haunted(uxk.Extension):
        manifest = uxk.Manifest(name="sup_haunted", restart=RESTART, capabilities=("device:sup_slow0",), kind="driver")

        def setup(self, ctx: uxk.Context) -> None:
            def say(text: str) -> Callable[[Any], None]:
                return lambda _: heard.append(text)

            self.mine = len(heard)
            if not heard:
                heard.append("first life")
                ctx.call_later_ns(5 * MS, say("old timer"))
                ctx.open_device("sup_slow0").then(lambda done: ctx.submit(done.result).then(say("old answer")))

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            raise ValueError("boo")

    class Slow(uxk.Extension):
        manifest = uxk.Manifest(name="sup_slow")

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                ctx.call_later_ns(3 * MS, ctx.complete, request)

    _keep = Slow
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("sup_slow")
        module = await kernel.modprobe("sup_haunted")
        await kernel.run_until_ns(10)
        await module.submit(check=False)
        await kernel.run()
        assert heard == ["first life"] and module.state == ModuleState.LIVE and module.account.rejects == {}
        assert kernel.machine.outstanding == 0


async def test_a_busy_instance_that_dies_is_not_busy_in_its_next_life() -> None:
    class Busy(uxk.Extension):
        manifest = uxk.Manifest(name="sup_busy", restart=RESTART, turn_cost_ns=0)
        lives = 0

        def setup(self, ctx: uxk.Context) -> None:
            type(self).lives += 1

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                ctx.complete(request)
                ctx.charge_ns(request.offset)

        async def run(self, ctx: uxk.Context) -> None:
            if type(self).lives == 1:
                await self.crash.wait()
                raise ValueError("while its turn was still being charged")
            await trio.sleep_forever()

        crash = trio.Event()

    free = uxk.CostModel(crossing_ns=0, entry_ns=0, kib_ns=0)
    async with uxk.Kernel(clock="charged", cost=free) as kernel:
        module = await kernel.modprobe("sup_busy")
        done: list[uxk.Completion] = []
        port = module.open_port(done.extend)
        port.submit(uxk.Request(0, offset=1000 * MS))
        kernel.call_at_ns(10, lambda _: port.submit(uxk.Request(0)))  # finds it busy
        kernel.call_at_ns(20, lambda _: Busy.crash.set())
        await kernel.run_until_ns(2 * MS)
        assert [each.status for each in done] == [errno.EIO, errno.EIO] and module.state == ModuleState.LIVE
        await module.submit()
        assert kernel.now_ns == 2 * MS


# --- fates of requests ---


class Dropping(uxk.Extension):
    """Keeps requests; payload b"die" kills it; in its next life it answers with the order of arrival."""

    manifest = uxk.Manifest(name="sup_drop", restart=RESTART, budget=uxk.Budget(queue_depth=4))
    lives = 0

    def setup(self, ctx: uxk.Context) -> None:
        type(self).lives += 1

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            if type(self).lives > 1:
                ctx.complete(request, payload=request.payload, result=request.cid)
            elif request.payload == b"die":
                raise ValueError("died")


@pytest.mark.parametrize(
    ("fate", "failed", "repeated"),
    [
        ("fail", ["a", "b", "die", "d", "e", "f"], []),
        ("requeue", ["a", "b", "die", "d"], ["e", "f"]),
        ("reissue", [], ["a", "b", "die", "d", "e", "f"]),
    ],
)  # fmt: skip
async def test_fates_are_exact_and_keep_the_order(fate: Fate, failed: list[str], repeated: list[str]) -> None:
    class Fated(Dropping):
        manifest = uxk.Manifest(name="sup_fated", restart=RESTART, budget=uxk.Budget(queue_depth=4), fate=fate)
        lives = 0

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("sup_fated")
        done: list[tuple[int, uxk.Completion]] = []
        port = module.open_port(lambda batch: done.extend((kernel.now_ns, each) for each in batch))
        # four are in flight, seen by the instance when it dies; two wait in the backlog
        requests = [uxk.Request(0, payload=name.encode()) for name in ("a", "b", "die", "d")]
        port.submit_batch(requests)
        late = [uxk.Request(0, payload=name.encode()) for name in ("e", "f")]
        for request in late:
            port.submit(request)
        names = {request.cid: request.payload.decode() for request in requests + late}
        await kernel.run_until_ns(10)
        lost = [(names[each.cid], each.status) for _, each in done]
        assert lost == [(name, errno.EIO) for name in failed]
        if fate == "fail":
            with pytest.raises(UxkError) as caught:
                port.submit(uxk.Request(0))
            assert caught.value.errno == errno.ENODEV
            repeated_now: list[str] = []
        elif fate == "reissue":
            with pytest.raises(uxk.RingFull):  # six wait already: the backlog stays bounded
                port.submit(uxk.Request(0))
            repeated_now = []
        else:
            port.submit(uxk.Request(0, payload=b"during"))
            repeated_now = ["during"]
        done.clear()
        await kernel.run()
        assert [each.payload.decode() for _, each in done] == repeated + repeated_now
        assert all(at_ns == MS and each.status == 0 for at_ns, each in done)
        assert [each.cid for _, each in done] == sorted(each.cid for _, each in done)
        assert module.account.inflight == 0 and kernel.machine.outstanding == 0


async def test_what_waits_for_a_restart_still_has_its_deadline() -> None:
    class Slowly(Dropping):
        manifest = uxk.Manifest(
            name="sup_slowly", fate="reissue", watchdog=uxk.Watchdog(request_timeout_ns=5 * MS),
            restart=uxk.RestartPolicy(backoff_ns=20 * MS),
        )  # fmt: skip
        lives = 0

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("sup_slowly")
        assert (await module.submit(b"die", check=False)).status == errno.ETIMEDOUT
        assert kernel.now_ns == 5 * MS
        await kernel.run()
        assert module.state == ModuleState.LIVE and (await module.submit(b"x")).payload == b"x"


async def test_giving_up_answers_everything_that_still_waited() -> None:
    class Hopeless(uxk.Extension):
        manifest = uxk.Manifest(
            name="sup_hopeless", fate="reissue", restart=uxk.RestartPolicy(max_restarts=3, backoff_ns=10),
        )  # fmt: skip

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            raise ValueError("each time")

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("sup_hopeless")
        assert (await module.submit(check=False)).status == errno.EIO
        assert module.account.faults == 4 and kernel.lsmod() == [] and kernel.machine.outstanding == 0


# --- the watchdog ---


async def test_an_async_extension_that_stops_serving_is_caught_by_its_heartbeat() -> None:
    class Sleepy(uxk.Extension):
        manifest = uxk.Manifest(
            name="sup_sleepy", watchdog=uxk.Watchdog(heartbeat_ns=MS), restart=RESTART,
        )  # fmt: skip

        async def run(self, ctx: uxk.Context) -> None:
            async for batch in ctx.batches():
                for request in batch:
                    if request.payload == b"sleep":
                        await trio.sleep_forever()
                    ctx.complete(request)

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("sup_sleepy")
        await kernel.run_until_ns(10 * MS + 1)
        assert module.account.faults == 0
        assert (await module.submit()).status == 0
        assert (await module.submit(b"sleep", check=False)).status == errno.EIO
        assert kernel.now_ns == 13 * MS
        assert any("2 heartbeats in a row" in text for text in texts(kernel, "sup_sleepy"))
        await kernel.run()
        assert (await module.submit()).status == 0


async def test_heartbeats_of_a_plain_extension_are_answered_for_it() -> None:
    class Plain(uxk.Extension):
        manifest = uxk.Manifest(name="sup_plain", watchdog=uxk.Watchdog(heartbeat_ns=MS))

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("sup_plain")
        await kernel.run_until_ns(50 * MS)
        assert module.account.faults == 0 and module.account.turns >= 49


async def test_timeouts_in_a_row_mean_hung_and_an_answer_ends_the_row() -> None:
    class Lossy(uxk.Extension):
        manifest = uxk.Manifest(
            name="sup_lossy", watchdog=uxk.Watchdog(request_timeout_ns=MS, timeouts_max=3), restart=RESTART,
        )  # fmt: skip

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                if request.opcode == 1:
                    ctx.complete(request)

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("sup_lossy")
        for opcode in (0, 0, 1, 0, 0, 1, 0, 0):
            answer = await module.submit(opcode=opcode, check=False)
            assert answer.status == (0 if opcode else errno.ETIMEDOUT)
        assert module.account.faults == 0 and kernel.now_ns == 6 * MS
        await module.submit(check=False)
        assert module.account.faults == 1 and module.account.timeouts == 7
        assert any("Hung in watchdog: 3 requests in a row" in text for text in texts(kernel, "sup_lossy"))
        await kernel.run()
        assert (await module.submit(opcode=1)).status == 0


async def test_a_restart_that_never_gets_ready_is_tried_again_and_given_up() -> None:
    lives: list[int] = []

    class Reluctant(uxk.Extension):
        manifest = uxk.Manifest(
            name="sup_reluctant", ready="explicit", ready_timeout_ns=5 * MS,
            restart=uxk.RestartPolicy(max_restarts=3, backoff_ns=MS, backoff_max_ns=MS),
        )  # fmt: skip

        def setup(self, ctx: uxk.Context) -> None:
            lives.append(ctx.now_ns)
            if len(lives) == 1:
                ctx.ready()

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            raise ValueError("first")

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("sup_reluctant")
        await module.submit(check=False)
        await kernel.run()
        assert lives == [0, MS, 7 * MS, 13 * MS] and kernel.now_ns == 18 * MS
        assert module.state == ModuleState.GONE and kernel.machine.heap.lasting == 0


async def test_setup_that_fails_in_a_restart_is_tried_again() -> None:
    lives: list[int] = []

    class Unlucky(uxk.Extension):
        manifest = uxk.Manifest(name="sup_unlucky", restart=uxk.RestartPolicy(backoff_ns=MS))

        def __init__(self) -> None:
            lives.append(0)
            if len(lives) == 2:
                raise OSError("in __init__")

        def setup(self, ctx: uxk.Context) -> None:
            if len(lives) == 3:
                raise OSError("in setup")

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            if len(lives) == 1:
                raise ValueError("first")
            for request in requests:
                ctx.complete(request, result=len(lives))

    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("sup_unlucky")
        await module.submit(check=False)
        await kernel.run()
        assert (await module.submit()).result == 4 and module.account.faults == 3
        assert restarts(kernel, "sup_unlucky") == [MS, 2 * MS, 4 * MS]


async def test_a_crash_takes_its_clients_requests_with_it_but_not_the_clients() -> None:
    answers: list[int] = []

    class Client(uxk.Extension):
        manifest = uxk.Manifest(name="sup_client", kind="ml-agent", capabilities=("device:sup_fragile0",))

        def setup(self, ctx: uxk.Context) -> None:
            self.cap = 0
            ctx.open_device("sup_fragile0").then(lambda done: setattr(self, "cap", done.result))
            for at_ns, payload, opcode in ((10, b"x", 1), (20, b"on_batch", 0), (30, b"y", 1), (2 * MS, b"z", 1)):
                ctx.call_at_ns(at_ns, lambda item: self.ask(ctx, *item), (payload, opcode))

        def ask(self, ctx: uxk.Context, payload: bytes, opcode: int) -> None:
            ctx.submit(self.cap, opcode, payload, wait=True).then(lambda done: answers.append(done.status))

    _keep = [Client, Fragile]
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("sup_fragile")
        client = await kernel.modprobe("sup_client")
        await kernel.run()
        assert answers == [0, errno.EIO, errno.ENODEV, 0]
        assert client.account.faults == 0 and kernel.machine.waits.edges() == []


async def test_many_crashes_do_not_grow_anything() -> None:
    _keep = Fragile
    async with uxk.Kernel() as kernel:
        module = await kernel.modprobe("sup_fragile")
        sizes: list[tuple[int, ...]] = []
        for _ in range(12):
            await module.submit(b"on_batch", check=False)
            await kernel.run()
            machine = kernel.machine
            sizes.append((
                len(machine.caps), machine.tree.kobject_count, machine.tree.link_count, machine.heap.lasting,
                len(machine.heap._heap), machine.outstanding, len(trio.lowlevel.current_root_task().child_nurseries),  # type: ignore[union-attr]
            ))  # fmt: skip
            await kernel.sleep_ns(200 * MS)
        assert len(set(sizes[1:])) == 1, sizes


async def test_a_run_that_calls_its_context_is_alive_without_serving_batches() -> None:
    class Ticker(uxk.Extension):
        manifest = uxk.Manifest(name="sup_ticker", watchdog=uxk.Watchdog(heartbeat_ns=1000))

        async def run(self, ctx: uxk.Context) -> None:
            for _ in range(30):
                await ctx.sleep_ns(500)
            await trio.sleep_forever()

    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(Ticker)
        await kernel.run_until_ns(15_000)
        assert module.account.faults == 0
        await kernel.run_until_ns(30_000)  # by now it has been silent for long
        assert module.account.faults >= 1
