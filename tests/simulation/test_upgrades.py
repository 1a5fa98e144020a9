"""Upgrades, good and bad, under load, faults and supervisors, at random: whatever happens, every invariant holds."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

import uxk
from uxk.errors import UpgradeError, UsageError
from uxk.scenario import ClosedLoop, Fault, Load
from uxk.scenario.results import Result
from uxk.uapi.supervisor import STRATEGIES, SupervisorSpec

MS = 1_000_000
SIZE_BYTES = 64 << 10
END_NS = 15 * MS


class Disk(uxk.Extension):
    """Its medium is kept memory; it hands over how often it was asked."""

    manifest = uxk.Manifest(
        name="sim_disk", version="1", driver_class="block", ready="explicit", fate="reissue",
        budget=uxk.Budget(memory_bytes=SIZE_BYTES), restart=uxk.RestartPolicy(max_restarts=50),
        ready_timeout_ns=MS,
    )  # fmt: skip
    dies_after = 1 << 60
    fails = ""

    def setup(self, ctx: uxk.Context) -> None:
        if self.fails == "setup":
            raise ValueError("no")
        self.served = self.mine = 0
        ctx.allocate(SIZE_BYTES, keep="medium").then(lambda done: self.on_memory(ctx, done))

    def on_memory(self, ctx: uxk.Context, done: uxk.Completion) -> None:
        self.medium = ctx.map(done.result, writable=True)
        if self.fails != "ready":
            ctx.ready()

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.call_later_ns(30_000, lambda _: self.serve(ctx, requests))

    def serve(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        self.served += len(requests)
        self.mine += len(requests)
        if self.mine > self.dies_after:
            raise ValueError("a bug")
        for request in requests:
            area = slice(request.offset, request.offset + request.length)
            if request.opcode == uxk.Op.READ:
                ctx.complete(request, bytes(self.medium[area]))
            else:
                self.medium[area] = request.payload
                ctx.complete(request)

    def checkpoint(self) -> bytes:
        return struct.pack("<Q", self.served)

    def restore(self, data: bytes) -> None:
        (self.served,) = struct.unpack("<Q", data)


def build(version: str, name: str = "sim_disk", **body: Any) -> type[Disk]:
    manifest = msgspec.structs.replace(Disk.manifest, name=name, version=version)
    return type("Build", (Disk,), {"manifest": manifest, **body})


def scenario(seed: int) -> uxk.Scenario:
    """What happens depends on the seed alone."""
    chance = random.Random(seed)
    builds = [
        build("2"), build("3", dies_after=chance.randrange(1, 60)), build("4", fails="setup"),
        build("5", fails="ready"), None,
    ]  # fmt: skip

    async def drive(kernel: uxk.Kernel) -> dict[str, int]:
        tried = good = 0
        while True:
            await kernel.sleep_ns(chance.randrange(1, 500_000))
            if kernel.now_ns >= END_NS or "sim_disk" not in kernel.agents:
                return {"tried": tried, "good": good}
            tried += 1
            try:
                await kernel.upgrade(
                    "sim_disk", chance.choice(builds), probation_ns=chance.choice([0, 1000, 300_000]),
                    quiesce_ns=chance.choice([1, 100_000, MS]),
                    kpi=chance.choice([None, "latency", lambda: chance.randrange(1, 4)]),
                )  # fmt: skip
                good += 1
            except (UpgradeError, UsageError):
                continue

    names = ("sim_disk", "sim_other")
    supervisor = SupervisorSpec(
        name="top", strategy=chance.choice(STRATEGIES), children=names, max_restarts=chance.randrange(1, 40)
    )
    return uxk.Scenario(
        name="upgrades", seed=seed, until=END_NS + 2 * MS, drive=drive, clock=chance.choice(["virtual", "charged"]),
        costs_ns=dict.fromkeys(names, 500), modules=tuple(Load(name=name) for name in names),
        supervisors=(supervisor,) if chance.random() < 0.7 else (),
        faults=tuple(
            Fault(kind=chance.choice(["crash", "hang"]), module=chance.choice(names), at_ns=chance.randrange(END_NS))
            for _ in range(chance.randrange(4))
        ),
        workloads=tuple(
            ClosedLoop(
                name=name, device=f"{name}0", depth=16, count=1500, think_ns=20_000, span_bytes=SIZE_BYTES,
                size_bytes=512, verify=True,
            )
            for name in names
        ),
    )  # fmt: skip


def run(seed: int) -> Result:
    made = scenario(seed)
    _newest = build("1", "sim_other"), build("1")  # of several builds the newest is the one that is loaded
    return uxk.run(made)


@pytest.mark.parametrize("seed", range(6))
def test_every_invariant_holds(seed: int) -> None:
    result = run(seed)
    assert all(verdict.good for verdict in (*result.invariants, *result.checks)), result.report()
    assert result["drive.tried"] >= 2


def test_the_same_seed_gives_the_same_run() -> None:
    assert run(1).event_hash == run(1).event_hash
