"""An agent recommends a threshold of a running file system; the kernel keeps it or not, and an administrator wins.

    python examples/gc_threshold.py

A log-structured volume cleans segments while more than ``gp_ppm`` of its blocks are garbage.  Garbage costs space,
cleaning costs moves; a value is judged by write amplification times space amplification.  All that the agent may do is
recommend.  What is in range is put in force on trial: the value from before comes back as soon as the figure is worse
by two per cent, and at the latest when the trial's time is over, unless the agent asks to keep it and the figure is
no worse.  After bad advice the agent has to wait longer; and whoever writes the file by hand has the last word.
"""

from __future__ import annotations

import errno

import numpy as np
import trio

import uxk
from uxk.scenario.pages.load import load_pages
from uxk.subsystems.lfs.params import LfsParams
from uxk.subsystems.lfs.subsystem import Lfs

NAME = "lfs/lfs0/gp_ppm"
PAGES, EPOCHS_PER_VOLUME, WRITE_NS = 4_096, 16, 20_000
EPOCH_NS = PAGES // EPOCHS_PER_VOLUME * WRITE_NS
LOOKS_EVERY, ADMINISTRATOR_AT, END = 32, 200, 224
"""Epochs."""


class ThresholdAgent(uxk.MLAgent):
    """Halves the threshold, and turns round when that was wrong; makes smaller steps where the range ends."""

    manifest = uxk.Manifest(name="threshold-agent", version="1.0", license="Apache-2.0")
    model, sysctls = "lfs0", (NAME,)

    def setup(self, ctx: uxk.Context) -> None:
        self.per_cent, self.on_trial = 50, 0

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        if dataset.name != "state" or int(dataset.rows["epoch"][0]) % LOOKS_EVERY:
            return
        if self.on_trial:
            ctx.settle_action(self.on_trial, keep=True)
        elif self.per_cent:
            self.suggest(ctx, int(dataset.rows["gp_ppm"][0]))

    def suggest(self, ctx: uxk.Context, present: int) -> None:
        def answered(done: uxk.Completion) -> None:
            if done.status == errno.EINVAL:
                self.per_cent = 100 + (self.per_cent - 100) // 4
                self.suggest(ctx, present)

        value, why = present * self.per_cent // 100, f"{self.per_cent} % of {present}"
        ctx.recommend_sysctl(NAME, value, why=why).then(answered)

    def on_action(self, ctx: uxk.Context, change: uxk.ActionChange) -> None:
        step = change.step.value
        self.on_trial = change.action if step == "applied" else 0
        if step == "reverted":
            self.per_cent = 10_000 // self.per_cent
        elif step == "superseded":
            self.per_cent = 0  # somebody has decided: nothing more to suggest


async def main() -> None:
    run = load_pages("zipf1.0", pages=PAGES, writes=(END // EPOCHS_PER_VOLUME - 1) * PAGES, seed=1)
    params = LfsParams(
        segment_blocks=32, gp_max_ppm=400_000, epochs_per_volume=EPOCHS_PER_VOLUME, write_ns=WRITE_NS, silence_epochs=0
    )
    async with uxk.Kernel(seed=1) as kernel:
        await kernel.insmod(ThresholdAgent)
        lfs = Lfs(kernel, params, run.pages.astype(np.int32), fill=run.fill)
        await kernel.run_until_ns(ADMINISTRATOR_AT * EPOCH_NS + EPOCH_NS // 2)
        kernel.sysfs.write(f"/proc/sys/{NAME}", "200000")
        await kernel.run()
        for record in kernel.kmsg.records():
            if NAME in record.text:
                print(f"epoch {record.time_ns // EPOCH_NS:3}  {record.text}")
        entry, counts = kernel.sysctl.entry(NAME), kernel.actions.counts
        told = ", ".join(f"{count} {step.value}" for step, count in counts.items())
        print(f"after {len(lfs.epochs)} epochs: gp_ppm = {entry.text}, written by {entry.writer}")
        print(f"actions: {told}; {kernel.actions.refused} refused")


if __name__ == "__main__":
    trio.run(main)
