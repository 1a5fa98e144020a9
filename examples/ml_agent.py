"""An agent in under 20 lines that learns online which of two routes is cheaper, and is trusted step by step (river).

    python examples/ml_agent.py

The emulated kernel's own rule is static: always the short route.  That is wrong under load, and wrong altogether
once the long route gets faster; nobody tells the agent.  It learns from probes, and recommends a table: the route
for every load.  The mode machine lets a sixteenth of the flows follow it, then half, then all, as the evidence grows.
"""

from __future__ import annotations

import numpy as np
import trio

import uxk

MS = 1_000_000
LOADS, FLOWS, PACKETS, EPOCHS, DRIFT = 10, 16, 20, 240, 120


class RouteAgent(uxk.MLAgent):
    """Learns the cost of either route from the load, and recommends the cheaper one for each load."""

    manifest = uxk.Manifest(name="route-agent", version="1.0", license="Apache-2.0")
    model = "router0"
    sites = ("router0.table",)

    def setup(self, ctx: uxk.Context) -> None:
        self.cost = [uxk.online("tree.HoeffdingAdaptiveTreeRegressor", grace_period=50) for _ in range(2)]

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        for row in dataset.features():
            self.cost[row["route"]].learn_one({"load": row["load"]}, row["cost_us"])

    def recommend(self, ctx: uxk.Context, site: str) -> uxk.Advice:
        costs = [[model.predict_one({"load": load}, 0.0) for load in range(LOADS)] for model in self.cost]
        table = bytes(int(long < short) for short, long in zip(*costs, strict=True))
        return uxk.Advice(table, predicted=round(sum(map(min, zip(*costs, strict=True))) / LOADS))


class Router:
    """The subsystem: 16 flows send packets over one of two routes; in every epoch both are probed."""

    def __init__(self, kernel: uxk.Kernel) -> None:
        self.kernel = kernel
        self.random = np.random.default_rng(kernel.seed)
        self.proxy = kernel.create_model("net", "router0")
        columns = [("route", "u1"), ("load", "u1"), ("cost_us", "<u4")]
        self.probes = self.proxy.dataset("probes", columns, capacity=64)
        self.site = self.proxy.site("router0.table", check=self.check, units=FLOWS)
        self.epochs = self.cost_us = 0

    def check(self, payload: bytes) -> str:
        """Advice is believed only if it is a table of routes that exist."""
        return "" if len(payload) == LOADS and max(payload) <= 1 else "malformed"

    def cost(self, route: int, load: int) -> int:
        if route == 0:
            return 100 + 12 * load + int(self.random.integers(20))
        return (70 if self.epochs >= DRIFT else 160) + int(self.random.integers(20))

    def epoch(self, _: object = None) -> None:
        sums, counts, advice = [0, 0], [0, 0], None
        for flow in range(FLOWS):
            hint = self.site.standing(self.kernel.now_ns, flow)
            advice = hint or advice
            for load in self.random.integers(LOADS, size=PACKETS).tolist():
                sums[hint is not None] += self.cost(hint.payload[load] if hint else 0, load)
            counts[hint is not None] += PACKETS
        self.cost_us += sum(sums)
        default, hinted = (total * 1000 // count if count else None for total, count in zip(sums, counts, strict=True))
        if advice is not None and hinted is not None:
            self.site.applied(advice, outcome=hinted // 1000, baseline=(default or 0) // 1000)
        self.site.epoch(default_kpi=default, hinted_kpi=hinted, weight=sum(counts), hinted_weight=counts[1])
        loads = self.random.integers(LOADS, size=16).tolist()
        self.probes.append([(route, load, self.cost(route, load)) for load in loads for route in (0, 1)])
        self.probes.publish()
        self.epochs += 1
        if self.epochs < EPOCHS:
            self.kernel.call_at_ns(self.kernel.now_ns + MS, self.epoch)


async def cost_us(*agents: type[uxk.MLAgent]) -> float:
    """Mean cost of a packet over the run, and what one sees of it."""
    async with uxk.Kernel(seed=1) as kernel:
        router = Router(kernel)
        for agent in agents:
            await kernel.insmod(agent)
        router.epoch()
        await kernel.run()
        for change in router.proxy.timeline if agents else ():
            print(f"epoch {change.epoch:3}: {change.old.name.lower()} -> {change.new.name.lower()}: {change.why}")
        if agents:
            print(f"hints: {router.site.hints_received} received, {router.site.hints_applied} applied")
        return router.cost_us / (EPOCHS * FLOWS * PACKETS)


async def main() -> None:
    default = await cost_us()
    agent = await cost_us(RouteAgent)
    print(
        f"default {default:.1f} us per packet, with the agent {agent:.1f} us: {100 * (1 - agent / default):.0f} % less"
    )


if __name__ == "__main__":
    trio.run(main)
