"""A driver and a learning agent whose kernel side is an eBPF program and nothing else (R19).

The driver is a disk that holds nothing: its program answers every request where it enters the kernel, so that the
extension is never woken.  The agent learns a decision tree, has it compiled, and injects it at a decision site: it runs
in the shadow, is judged by the tree that it was made from, and is swapped in; from then on no decision crosses the
boundary.  A second program keeps the mode's news from the agent, but for emergencies.

    python examples/bpf_agents.py
"""

from __future__ import annotations

import trio
from river import tree

import uxk
from uxk.bpf.asm import assemble
from uxk.bpf.compiler.compile import compile_model
from uxk.bpf.compiler.schema import Feature, Schema
from uxk.kernel.bpf.events import TOPICS
from uxk.kernel.bpf.shadow import InjectionConfig
from uxk.uapi import ml

NULL_DISK = """
    r2 = *(u64 *)(r1 + 40)      // the length of the request
    *(u64 *)(r1 + 64) = r2      // is the result of its answer
    r0 = 1                      // answered here
    exit
"""
EMERGENCIES_ONLY = f"""
    r0 = 0
    r2 = *(u64 *)(r1 + 0)       // the topic of the event
    if r2 != {TOPICS.index("mode")} goto out
    r2 = *(u64 *)(r1 + 8)       // the new mode
    if r2 == {int(ml.Mode.EMERGENCY)} goto out
    r0 = 1                      // ends here
out:
    exit
"""
SCHEMA = Schema([Feature("age", 0, 10_000, "writes"), Feature("heat", 0, 255)])
SITE = "disk0.keep"


class NullDisk(uxk.Extension):
    """A driver."""

    manifest = uxk.Manifest(name="nulldisk", version="1.0", license="Apache-2.0", capabilities=("bpf:queue/nulldisk0",))

    def setup(self, ctx: uxk.Context) -> None:
        ctx.call_later_ns(1, lambda _: ctx.load_program("queue/nulldisk0", assemble(NULL_DISK)))


class Keeper(uxk.Extension):
    """A learning agent: which pages are worth keeping."""

    manifest = uxk.Manifest(
        name="keeper", version="1.0", license="Apache-2.0", kind="ml-agent",
        capabilities=("model:disk0", f"bpf:site/{SITE}", "bpf:agent/keeper"),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.tree = tree.HoeffdingTreeClassifier(leaf_prediction="mc", grace_period=100, delta=0.01, tau=0.1)
        for number in range(6000):
            age, heat = number * 7919 % 10_001, number * 31 % 256
            self.tree.learn_one({"age": age, "heat": heat}, age < 3_000 or heat > 200)
        ctx.attach("disk0")
        ctx.load_program("agent/keeper", assemble(EMERGENCIES_ONLY))
        compiled = compile_model(self.tree, SCHEMA)
        ctx.log(f"a tree of {compiled.model.leaves} leaves is {compiled.model.instructions} instructions")
        ctx.inject(SITE, compiled.code, why="learned from 6000 pages")

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic == "shadow":
            shown = ml.decode_shadow(event.value)
            ages_and_heats = memoryview(shown.rows).cast("q").tolist()
            rows = zip(ages_and_heats[::2], ages_and_heats[1::2], strict=True)
            ctx.judge(shown.injection, shown.first, [
                bool(self.tree.predict_one({"age": age, "heat": heat})) for age, heat in rows
            ])  # fmt: skip
        elif event.topic == "mode":
            ctx.log(f"heard of mode {ml.decode_mode(event.value).new.name}")


def lines(text: str) -> int:
    """Instructions of a program's text."""
    return len(assemble(text)) // 8


async def main() -> None:
    async with uxk.Kernel(seed=7) as kernel:
        disk = await kernel.insmod(NullDisk)
        await kernel.sleep_ns(1_000)
        turns, answers = disk.account.turns, list[int]()
        port = kernel.open_port("nulldisk0", lambda done: answers.extend(each.result for each in done))
        for length in range(1000):
            port.submit_batch([uxk.Request(0, uxk.Op.READ, length=length)])
            await kernel.run()
        print(f"null disk: {lines(NULL_DISK)} instructions, {len(answers)} answers, {disk.account.turns - turns} turns")

        proxy = kernel.create_model("demo", "disk0", config=uxk.ModeConfig(learning_share_ppm=1_000_000))
        site = proxy.site(SITE, lambda payload: "")
        config = InjectionConfig(decisions_min=64, audit_every=0)
        policy = kernel.policies.offer(site, SCHEMA, (0, 1), config=config)
        keeper = await kernel.insmod(Keeper)
        await kernel.sleep_ns(1_000)
        verdicts, crossings = list[int](), 0
        for number in range(1_000):
            verdict = policy.decide(number * 613 % 10_001, number % 256)
            if verdict is not None:
                verdicts.append(verdict.value)
            if number == 64:
                await kernel.sleep_ns(100_000)
                crossings = keeper.account.crossings
        print(f"decided by the program: {len(verdicts)}, kept {sum(verdicts)}; "
              f"crossings since: {keeper.account.crossings - crossings}")  # fmt: skip
        proxy.override(ml.Mode.COLLABORATION)
        proxy.override(ml.Mode.EMERGENCY)
        await kernel.sleep_ns(1_000)
        assert policy.decide(1, 1) is None
        for record in kernel.kmsg.records():
            if record.source == "keeper" or "site/" in record.text:
                print(f"{record.source}: {record.text}")


trio.run(main)
