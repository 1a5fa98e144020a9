"""Supervisors in a kernel: strategies, escalation, what is told and shown; and what an oops says."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

import uxk
from uxk.core.lifecycle import ModuleState
from uxk.testing import crash, residue, unload_all
from uxk.uapi.manifest import Restart

MS = 1_000_000
LIVE = ModuleState.LIVE


def child(
    name: str, mode: Restart = "transient", *, fails: int = 0, binds_to: list[str] | None = None
) -> type[uxk.Extension]:
    """An instance that fails in its first ``fails`` restarts; ``binds_to`` collects who was set up and stopped."""
    seen = [] if binds_to is None else binds_to

    class Child(uxk.Extension):
        manifest = uxk.Manifest(name=name, restart=uxk.RestartPolicy(mode=mode), fate="requeue")
        lives = 0

        def setup(self, ctx: uxk.Context) -> None:
            Child.lives += 1
            seen.append(f"+{name}")
            if 1 < Child.lives <= fails + 1:
                raise ValueError("not yet")

        def on_stop(self, ctx: uxk.Context, reason: str) -> None:
            seen.append(f"-{name}")

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            for request in requests:
                if request.payload == b"die":
                    raise ValueError("told to")
                ctx.complete(request, payload=request.payload)

    return Child


def told(kernel: uxk.Kernel, source: str = "supervisor") -> list[str]:
    return [record.text for record in kernel.kmsg.records(source=source)]


async def test_rest_for_one_takes_down_and_brings_back_in_order() -> None:
    seen: list[str] = []
    async with uxk.Kernel() as kernel:
        modules = [await kernel.insmod(child(name, binds_to=seen)) for name in ("tree_a", "tree_b", "tree_c")]
        kernel.supervise("top", strategy="rest_for_one", children=["tree_a", "tree-b", "tree_c"], backoff_ns=2 * MS)
        ids = [module.id for module in modules]
        seen.clear()
        crash(kernel, "tree_b")
        assert [module.state for module in modules] == [LIVE, ModuleState.RESTARTING, ModuleState.RESTARTING]
        assert kernel.sysfs.read("/sys/kernel/supervisors/top/pending").split() == ["tree_b", "tree_c"]
        assert kernel.sysfs.read("/sys/kernel/supervisors/top/state").strip() == "restarting"
        answer = await modules[2].submit(b"held")  # requeue: it waits for the next incarnation
        assert answer.payload == b"held" and kernel.now_ns == 2 * MS
        assert seen == ["-tree_c", "+tree_b", "+tree_c"]
        assert [module.state for module in modules] == [LIVE] * 3 and [m.id for m in modules] == ids
        assert [module.account.restarts for module in modules] == [0, 1, 1]
        assert told(kernel)[-1] == (
            "top: rest_for_one: restarts tree_b, tree_c in 2000000 ns (tree_b: Injected in outside)"
        )
        assert kernel.sysfs.read("/sys/kernel/supervisors/top/restarts").strip() == "1"
        await unload_all(kernel)
        kernel.unsupervise("top")
        assert residue(kernel) == {}


async def test_escalation_ends_at_the_top_with_everything_down() -> None:
    async with uxk.Kernel() as kernel:
        modules = [await kernel.insmod(child(name)) for name in ("tree_a", "tree_b")]
        kernel.supervise("top", strategy="one_for_all", children=["tree_a"], max_restarts=1)
        kernel.supervise("low", children=["tree_b"], max_restarts=1, parent="top")
        for expected in ([0, 1], [1, 2], [1, 3]):
            crash(kernel, "tree_b")
            await kernel.run()
            assert [module.account.restarts for module in modules] == expected
        crash(kernel, "tree_b")
        assert [module.state for module in modules] == [ModuleState.GONE] * 2 and kernel.lsmod() == []
        last = told(kernel)[-2:]
        assert last[0].startswith("low: gives up: 2 exits within") and last[0].endswith("tells top")
        assert "nobody is above: tree_b, tree_a stay down" in last[1]
        assert not kernel.sysfs.exists("/sys/kernel/supervisors/top")
        assert any("stays down: supervisor top gave up" in text for text in told(kernel, "tree_a"))
        assert residue(kernel) == {}


async def test_a_child_that_fails_to_start_is_tried_again_with_back_off() -> None:
    async with uxk.Kernel() as kernel:
        first = await kernel.insmod(child("tree_a", fails=2))
        second = await kernel.insmod(child("tree_b"))
        kernel.supervise("top", strategy="one_for_all", children=["tree_a", "tree_b"])
        crash(kernel, "tree_b")
        await kernel.run()
        assert first.state is LIVE and second.state is LIVE and kernel.now_ns == (1 + 2 + 4) * MS
        assert (first.account.restarts, second.account.restarts) == (3, 1)


async def test_a_temporary_child_leaves_and_its_siblings_stay() -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(child("tree_a", "temporary"))
        other = await kernel.insmod(child("tree_b"))
        kernel.supervise("top", strategy="one_for_all", children=["tree_a", "tree_b"])
        with pytest.raises(uxk.RequestError) as caught:
            await module.submit(b"die")
        assert caught.value.errno == errno.EIO
        assert module.state is ModuleState.GONE and other.state is LIVE
        await kernel.insmod(child("tree_a", "temporary"))
        assert told(kernel)[-1] == "top: tree_a is back among its children"
        crash(kernel, "tree_b")
        await kernel.run()
        assert [row.name for row in kernel.lsmod()] == ["tree_b"]


async def test_who_dies_while_being_taken_down_is_taken_down() -> None:
    class Spiteful(uxk.Extension):
        manifest = uxk.Manifest(name="tree_b")

        def on_stop(self, ctx: uxk.Context, reason: str) -> None:
            raise ValueError(reason)

    async with uxk.Kernel() as kernel:
        await kernel.insmod(child("tree_a"))
        module = await kernel.insmod(Spiteful)
        kernel.supervise("top", strategy="one_for_all", children=["tree_a", "tree_b"])
        crash(kernel, "tree_a")
        await kernel.run()
        assert module.state is LIVE and (module.account.restarts, module.account.faults) == (1, 1)
        assert kernel.sysfs.read("/sys/kernel/supervisors/top/restarts").strip() == "1"


async def test_hundreds_of_children_are_restarted_in_order() -> None:
    class Small(uxk.Extension):
        manifest = uxk.Manifest(name="tree_small", budget=uxk.Budget(memory_bytes=4096, queue_depth=2))

    async with uxk.Kernel() as kernel:
        names = [f"tree_{number}" for number in range(300)]
        for name in names:
            await kernel.insmod(Small, instance=name)
        kernel.supervise("top", strategy="one_for_all", children=names)
        crash(kernel, "tree_0")
        await kernel.run()
        assert all(agent.state is LIVE and agent.account.restarts == 1 for agent in kernel.agents.values())
        live = [record.source for record in kernel.kmsg.records() if record.text.startswith("live again")]
        assert live == names[-len(live) :]


async def test_an_intensity_of_0_is_no_restart_at_all() -> None:
    """Neither by a supervisor, which tells its parent, nor by an instance's own policy."""
    async with uxk.Kernel() as kernel:
        modules = [await kernel.insmod(child(name)) for name in ("tree_a", "tree_b")]
        kernel.supervise("top", children=["tree_a"], max_restarts=1)
        kernel.supervise("middle", parent="top", max_restarts=0)
        kernel.supervise("low", children=["tree_b"], max_restarts=0, parent="middle")
        crash(kernel, "tree_b")
        assert [text.rpartition(" tells ")[2] for text in told(kernel) if "gives up" in text] == ["middle", "top"]
        await kernel.run()
        assert [module.account.restarts for module in modules] == [0, 1]
        crash(kernel, "tree_b")
        assert [module.state for module in modules] == [ModuleState.GONE] * 2
        alone = type("Alone", (uxk.Extension,), {"manifest": uxk.Manifest(
            name="tree_alone", restart=uxk.RestartPolicy(mode="permanent", max_restarts=0)
        )})  # fmt: skip
        module = await kernel.insmod(alone)
        crash(kernel, "tree_alone")
        assert module.state is ModuleState.GONE


async def test_unloading_amid_a_restart_of_several() -> None:
    """rmmod during the back-off, of who would be first and of who would be last; the rest is started."""
    for gone in ("tree_a", "tree_b", "tree_c"):
        async with uxk.Kernel() as kernel:
            modules = [await kernel.insmod(child(name)) for name in ("tree_a", "tree_b", "tree_c")]
            kernel.supervise("top", strategy="one_for_all", children=["tree_a", "tree_b", "tree_c"])
            crash(kernel, "tree_b")
            await kernel.rmmod(gone)
            with pytest.raises(uxk.UsageError, match="busy with"):
                kernel.unsupervise("top")
            await kernel.run()
            states = {module.name: module.state for module in modules}
            assert states.pop(gone) is ModuleState.GONE and set(states.values()) == {LIVE}
            assert kernel.sysfs.read("/sys/kernel/supervisors/top/state").strip() == "up"
            await kernel.insmod(child(gone))
            crash(kernel, gone)
            await kernel.run()
            assert {agent.state for agent in kernel.agents.values()} == {LIVE}


async def test_nobody_is_started_again_after_rmmod_or_at_shutdown() -> None:
    async with uxk.Kernel() as kernel:
        modules = [await kernel.insmod(child(name)) for name in ("tree_a", "tree_b")]
        kernel.supervise("top", strategy="one_for_all", children=["tree_a", "tree_b"])
        crash(kernel, "tree_a")
        await kernel.rmmod("tree_a")
        await kernel.run()
        assert [module.state for module in modules] == [ModuleState.GONE, LIVE]
        crash(kernel, "tree_b")
    assert modules[1].state is ModuleState.GONE


@pytest.mark.parametrize(
    ("settings", "number", "what"),
    [
        ({"children": ["nobody"]}, errno.ENOENT, "no instance 'nobody'"),
        ({"children": ["tree_dead"]}, errno.EAGAIN, "tree_dead is restarting"),
        ({"strategy": "one_for_none"}, errno.EINVAL, "one_for_none"),
        ({"max_restarts": -1}, errno.EINVAL, "max_restarts"),
        ({"parent": "nobody"}, errno.ENOENT, "no supervisor 'nobody'"),
    ],
)
async def test_refusals(settings: dict[str, object], number: int, what: str) -> None:
    async with uxk.Kernel() as kernel:
        await kernel.insmod(child("tree_dead"))
        crash(kernel, "tree_dead")
        with pytest.raises(uxk.UsageError, match=what) as caught:
            kernel.supervise("top", **settings)  # type: ignore[arg-type]
        assert caught.value.errno == number and not kernel.sysfs.exists("/sys/kernel/supervisors/top")


async def test_an_instance_without_a_supervisor_is_told_nothing_of_it() -> None:
    hashes = []
    for supervised in (False, True):
        async with uxk.Kernel(seed=3) as kernel:
            module = await kernel.insmod(child("tree_a"))
            if supervised:
                kernel.supervise("top")
            await module.submit(b"die", check=False)
            await kernel.run()
            hashes.append(kernel.event_hash())
    assert hashes[0] == hashes[1]


# --- the report of an oops ---


async def test_an_oops_says_what_the_instance_was_doing() -> None:
    class Busy(uxk.Extension):
        manifest = uxk.Manifest(
            name="tree_busy", capabilities=("lock:tree:lock", "device:tree_slow0"),
            restart=uxk.RestartPolicy(mode="temporary"), budget=uxk.Budget(queue_depth=8),
        )  # fmt: skip

        def setup(self, ctx: uxk.Context) -> None:
            ctx.open("lock", "tree", uxk.Rights.LOCK).then(lambda done: ctx.acquire(done.result, lease_ns=9 * MS))
            ctx.open_device("tree_slow0").then(lambda done: [ctx.submit(done.result) for _ in range(3)])
            ctx.call_later_ns(7 * MS, print)

    class Slow(uxk.Extension):
        manifest = uxk.Manifest(name="tree_slow")

        def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
            return

    async with uxk.Kernel() as kernel:
        await kernel.insmod(Slow)
        module = await kernel.insmod(Busy)
        await kernel.run_until_ns(MS)
        port = module.open_port(lambda done: None)
        port.submit_batch([uxk.Request(0, uxk.Op.READ, b"", 4096 * n, 512) for n in range(8)])
        port.submit_batch([uxk.Request(0, uxk.Op.READ, b"", 0, 512) for n in range(3)])
        crash(kernel, "tree_busy")
        lines = told(kernel, "tree_busy")
        for expected in (
            "oops: sq: 8 of 8 not yet delivered: Request(cid=1, opcode=",
            "oops: in flight: 8 requests, the oldest first: 1 (opcode 1, 0+512, for 0 ns), 2 (opcode 1, 4096+512, ",
            "oops: waiting: 3 requests, the oldest first: 9 (opcode 1, 0+512, for 0 ns), ",
            "oops: outstanding: 3 commands: ",
            f"oops: timer: the next is due at {7 * MS} ns",
            "oops: lock tree: held, token 1, until 9000000 ns at the latest",
        ):
            assert any(line.startswith(expected) for line in lines), (expected, lines)
