"""An agent in under 30 lines that learns which of three published garbage collectors suits a volume (river).

    python examples/gc_agent.py

The kernel's own policy is sepbit/cb-age.  The agent lets three policies work on miniatures of the volume, fed with the
kernel's sample of its writes, and recommends the one with the lowest fading mean of write amplification.  Nobody has to
believe it: the mode machine lets a share of the volume follow, then more, then all, as the evidence grows.

With other seeds than this one (2 to 5) it writes 8 to 14 % less than the default in the second half.  It does not win
everywhere, and on volumes as small as this one it can lose some per cent.  This is how it does on larger ones:

    uxk run lfs-gc --policy default dac/cb-age fadac/cb-age examples/gc_agent.py --workload holdout-tpcc

Without the extra ``fast`` the same comes out, some seconds later.
"""

from __future__ import annotations

import numpy as np
import trio
from river import stats

import uxk
from uxk.scenario.pages.load import PageRun, load_pages
from uxk.subsystems.lfs.hint import GcHint, encode_hint
from uxk.subsystems.lfs.miniature import Miniature, parse_policy
from uxk.subsystems.lfs.params import LfsParams
from uxk.subsystems.lfs.subsystem import Lfs

POLICIES = ("sepbit/cb-age", "dac/cb-age", "fadac/cb-age")


class GcAgent(uxk.MLAgent):
    """Recommends what has moved least on its miniatures lately."""

    manifest = uxk.Manifest(name="gc-agent", version="1.0", license="Apache-2.0")
    model, sites = "lfs0", ("lfs0.gc",)

    def setup(self, ctx: uxk.Context) -> None:
        self.costs_ppm = [stats.EWMean(0.1) for _ in POLICIES]
        self.volumes: list[Miniature] = []
        self.ops = np.empty(0, np.int32)

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        if dataset.name == "writes":
            self.ops = dataset.rows["page"].astype(np.int32)
        elif dataset.name == "state":
            pages, size, gp_ppm, logs = dataset.rows[["sampled", "segment_blocks", "gp_ppm", "logs"]][0].tolist()
            self.volumes = self.volumes or [Miniature(pages, size, gp_ppm, logs, parse_policy(p)) for p in POLICIES]
            for volume, cost_ppm in zip(self.volumes, self.costs_ppm, strict=True):
                volume.run(self.ops)
                cost_ppm.update(volume.epoch().wa_ppm)
            least_ppm, policy = min(zip((cost.get() for cost in self.costs_ppm), POLICIES, strict=True))
            self.advise(ctx, "lfs0.gc", uxk.Advice(encode_hint(GcHint(policy)), predicted=round(least_ppm)), dataset)


# --- the volume, and what it is compared with ---

PAGES, SEGMENT_BLOCKS, WRITES, SEED = 4_096, 16, 5 * 4_096, 1
GP_PPM, LOGS = 150_000, 6


async def with_agent(run: PageRun) -> int:
    """Blocks written per million user blocks in the second half, and what one sees of the run."""
    async with uxk.Kernel(seed=SEED) as kernel:
        await kernel.insmod(GcAgent)
        params = LfsParams(segment_blocks=SEGMENT_BLOCKS, gp_ppm=GP_PPM, logs=LOGS, default=POLICIES[0])
        lfs = Lfs(kernel, params, run.pages.astype(np.int32), fill=run.fill)
        await kernel.run()
        for change in lfs.proxy.timeline:
            print(f"epoch {change.epoch:2}: {change.old.name.lower()} -> {change.new.name.lower()}: {change.why}")
        found = lfs.results()
        print(
            f"hints: {lfs.site.hints_received} received, in force in {lfs.site.hints_applied} of {len(lfs.epochs)} "
            f"epochs; {found['following_ppm'] // 10_000} % of the writes followed them\n"
        )
        return int(found["wa_second_half_ppm"])


def alone(policy: str, run: PageRun) -> int:
    """The same of one policy from beginning to end."""
    volume = Miniature(PAGES, SEGMENT_BLOCKS, GP_PPM, LOGS, parse_policy(policy))
    pages, half = run.pages.astype(np.int32), run.fill + WRITES // 2
    volume.run(pages[:half])
    volume.epoch()
    volume.run(pages[half:])
    return volume.epoch().wa_ppm


def main() -> None:
    run = load_pages("mixed", pages=PAGES, writes=WRITES, seed=SEED)
    found = {"with the agent": trio.run(with_agent, run)} | {policy: alone(policy, run) for policy in POLICIES}
    print("write amplification in the second half, journal + table + scan")
    for name, wa_ppm in sorted(found.items(), key=lambda pair: pair[1]):
        less = 100 * (1 - wa_ppm / found[POLICIES[0]])
        print(f"  {name:14} {wa_ppm / 1e6:.3f}  " + ("the default" if name == POLICIES[0] else f"{less:.1f} % less"))


if __name__ == "__main__":
    main()
