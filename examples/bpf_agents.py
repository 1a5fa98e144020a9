"""Two drivers and a learning agent whose kernel side is eBPF programs and nothing else (R19).

The first driver is a disk that holds nothing: its program answers every request where it enters the kernel.  The second
stripes two disks: its program gives each request to one of them.  Neither extension is ever woken.  The agent learns a
decision tree, has it compiled, and injects it at a decision site: it runs in the shadow, is judged by the tree that it
was made from, and is swapped in; from then on no decision crosses the boundary.  A further program keeps the mode's
news from the agent, but for emergencies.

    python examples/bpf_agents.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import trio
from numpy.typing import NDArray
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
STRIPES = """
    r0 = *(u64 *)(r1 + 32)      // the offset of the request
    r0 >>= 16                   // in stripes of 64 KiB
    r0 &= 1                     // even or odd
    r0 += 2                     // is for the first or the second target
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
        ctx.load_program("queue/nulldisk0", assemble(NULL_DISK))


class Striped(uxk.Extension):
    """A driver above two others."""

    manifest = uxk.Manifest(name="striped", version="1.0", license="Apache-2.0", capabilities=("bpf:queue/striped0",))

    def setup(self, ctx: uxk.Context) -> None:
        ctx.load_program("queue/striped0", assemble(STRIPES))


class Platter(uxk.Extension):
    """A disk below, in the usual way: it keeps what it is given."""

    manifest = uxk.Manifest(name="platter", version="1.0", license="Apache-2.0")

    def setup(self, ctx: uxk.Context) -> None:
        self.kept: dict[int, bytes] = {}

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            if request.opcode == uxk.Op.WRITE:
                self.kept[request.offset] = request.payload
            ctx.complete(request, self.kept.get(request.offset, b""))


class Keeper(uxk.MLAgent):
    """A learning agent: which pages are worth keeping."""

    manifest = uxk.Manifest(name="keeper", version="1.0", license="Apache-2.0", capabilities=("bpf:agent/keeper",))
    model = "disk0"
    policies = (SITE,)

    def setup(self, ctx: uxk.Context) -> None:
        self.tree = tree.HoeffdingTreeClassifier(leaf_prediction="mc", grace_period=100, delta=0.01, tau=0.1)
        for number in range(6000):
            age, heat = number * 7919 % 10_001, number * 31 % 256
            self.tree.learn_one({"age": age, "heat": heat}, age < 3_000 or heat > 200)
        ctx.load_program("agent/keeper", assemble(EMERGENCIES_ONLY))
        compiled = compile_model(self.tree, SCHEMA)
        ctx.log(f"a tree of {compiled.model.leaves} leaves is {compiled.model.instructions} instructions")
        ctx.inject(SITE, compiled.code, why="learned from 6000 pages")

    def judge(self, ctx: uxk.Context, site: str, rows: NDArray[np.int64]) -> list[bool]:
        return [bool(self.tree.predict_one({"age": age, "heat": heat})) for age, heat in rows.tolist()]

    def on_mode(self, ctx: uxk.Context, change: ml.ModeChange) -> None:
        ctx.log(f"heard of mode {change.new.name}")


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

        striped = await kernel.insmod(Striped)
        for name in ("left", "right"):
            await kernel.insmod(Platter, instance=name)
        kernel.queues.redirect_to("striped0", ["left", "right"])
        await kernel.sleep_ns(1_000)
        turns, texts = striped.account.turns, list[bytes]()
        port = kernel.open_port("striped0", lambda done: texts.extend(each.payload for each in done))
        for opcode in (uxk.Op.WRITE, uxk.Op.READ):
            for stripe in range(100):
                text = f"stripe {stripe}".encode() if opcode == uxk.Op.WRITE else b""
                port.submit_batch([uxk.Request(0, opcode, text, offset=stripe << 16, length=16)])
                await kernel.run()
        assert texts[100:] == [f"stripe {stripe}".encode() for stripe in range(100)]
        served = [kernel.module(name).account.completed for name in ("left", "right")]
        print(f"striped disk: {lines(STRIPES)} instructions, {served} requests below, "
              f"{striped.account.turns - turns} turns")  # fmt: skip

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
        print(f"keeper: {lines(EMERGENCIES_ONLY)} instructions before its events, and those of its tree")
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
