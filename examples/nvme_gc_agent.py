"""An agent that learns which lines an emulated SSD should collect (river): python examples/nvme_gc_agent.py

The flash takes the line with the fewest valid pages; nine in ten writes go to a tenth of the pages, so others may be
better.  Miniatures of the flash tell in every epoch what each policy costs.  With uniform writes nothing is gained.
"""

from __future__ import annotations

import random

import trio
from river import stats

import uxk
from uxk_nvme.medium.hint import GcHint, encode_hint

POLICIES, TRIAL, UNITS, BATCH = ("greedy", "cost-benefit", "windowed", "fifo"), 4, 2048, 64
SYSFS = "/sys/module/nvme/attributes"


class VictimAgent(uxk.MLAgent):
    """Tries every policy for some epochs, then recommends the one with the lowest fading mean of costs."""

    manifest = uxk.Manifest(name="victim-agent", version="1.0", license="Apache-2.0")
    model, sites = "nvme0-gc", ("nvme0.gc",)

    def setup(self, ctx: uxk.Context) -> None:
        self.costs = {encode_hint(GcHint(policy)): stats.EWMean(0.2) for policy in POLICIES}
        self.asked = 0

    def on_feedback(self, ctx: uxk.Context, feedback: uxk.Feedback) -> None:
        advice = self.advice_of(feedback)
        if advice is not None and not feedback.reject:
            self.costs[advice.payload].update(feedback.outcome / feedback.baseline)

    def recommend(self, ctx: uxk.Context, site: str) -> bytes:
        turn, self.asked = self.asked // TRIAL, self.asked + 1
        return list(self.costs)[turn] if turn < len(POLICIES) else min(self.costs, key=lambda p: self.costs[p].get())


async def written(*agents: type[uxk.MLAgent]) -> float:
    """Pages programmed for each page of the host's, learning included, and what one sees of the run."""
    async with uxk.Kernel(seed=1) as kernel:
        nvme = await kernel.modprobe("nvme", size="8MiB", medium="ftl", cell="slc", precondition="random")
        for agent in agents:
            await kernel.insmod(agent)
        draw = random.Random(1)
        for _ in range(8 * UNITS // BATCH):
            at = (draw.randrange(UNITS // 10 if draw.random() < 0.9 else UNITS) * 4096 for _ in range(BATCH))
            await nvme.submit_batch([uxk.Request(0, uxk.Op.WRITE, bytes(4096), offset, 4096) for offset in at])
        kernel.sysfs.write(f"{SYSFS}/refresh", "1")
        await nvme.submit(opcode=uxk.Op.NOP)
        for change in kernel.models.get("nvme0-gc").timeline if agents else ():
            print(f"epoch {change.epoch:2}: {change.old.name.lower()} -> {change.new.name.lower()}: {change.why}")
        return int(kernel.sysfs.read(f"{SYSFS}/medium").split()[1]) / 1e6


if __name__ == "__main__":
    alone, advised = trio.run(written), trio.run(written, VictimAgent)
    print(f"write amplification: default {alone:.3f}, with the agent {advised:.3f}")
