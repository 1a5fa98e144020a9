"""The eleven steps between a subsystem and its agent, each seen where an administrator would look: tree and kmsg.

    python examples/eleven_steps.py

A reader of files (the subsystem) reads ahead a fixed window of 8 blocks.  How far it should read depends on how long
runs are, which it cannot know.  It declares what may be seen and what may be advised (1), so that entries appear in the
tree (2); it updates them as it works (3), publishes them in epochs (4), and whoever polls is woken (5).  What was
published is saved (6).  The agent trains on it (7), elaborates a model of the cost of every window (8), recommends the
best (9); the subsystem is notified (10), and applies it where the mode lets it (11).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import trio

import uxk

MS = 1_000_000
STREAMS, RUNS, EPOCHS = 8, 16, 60
WINDOWS = (2, 4, 8, 16, 32, 64)
DEFAULT = 8
MODEL = "/sys/kernel/ml/vm/ra0"


def cost_us(run: int, window: int) -> int:
    """A run of blocks read with a window: 100 us for each read, and 10 us for each block too many."""
    reads = -(-run // window)
    return 100 * reads + 10 * (reads * window - run)


class ReadAhead:
    """The subsystem: streams of sequential runs, mostly long ones."""

    def __init__(self, kernel: uxk.Kernel) -> None:
        self.kernel = kernel
        self.random = np.random.default_rng(kernel.seed)
        self.heard = self.used = b""
        self.epochs = 0
        self.proxy = kernel.create_model("vm", "ra0")
        self.runs = self.proxy.dataset("runs", [("stream", "u1"), ("blocks", "<u2")], capacity=STREAMS * RUNS)
        self.site = self.proxy.site("ra0.window", check=self.check, units=STREAMS)
        self.say("declared: dataset runs (stream, blocks), site ra0.window, one byte: a window in blocks")

    def say(self, text: str) -> None:
        self.kernel.machine.log("info", "vm/ra0", text)

    def check(self, payload: bytes) -> str:
        """What is recommended passes here first: this is how the subsystem hears of it.  It does not wait for any."""
        if len(payload) != 1 or payload[0] not in WINDOWS:
            return "out_of_range"
        if payload != self.heard:
            self.heard = payload
            self.say(f"heard: {payload[0]} blocks are recommended")
        return ""

    def epoch(self, _: object = None) -> None:
        sums, counts, hint = [0, 0], [0, 0], None
        for stream in range(STREAMS):
            lengths = np.minimum(self.random.geometric(1 / 40, size=RUNS), 500)
            advice = self.site.standing(self.kernel.now_ns, stream)
            window = DEFAULT if advice is None else advice.payload[0]
            hint = hint or advice
            sums[advice is not None] += sum(cost_us(run, window) for run in lengths.tolist())
            counts[advice is not None] += RUNS
            self.runs.append([(stream, run) for run in lengths.tolist()])
        default, hinted = (total // count if count else None for total, count in zip(sums, counts, strict=True))
        if hint is not None and hinted is not None:
            if hint.payload != self.used:
                self.used = hint.payload
                self.say(f"applied: {self.site.hinted_units} of {STREAMS} streams read {self.used[0]} blocks ahead")
            self.site.applied(hint, outcome=hinted, baseline=default or 0)
        self.site.epoch(default_kpi=default, hinted_kpi=hinted, weight=sum(counts), hinted_weight=counts[1])
        self.epochs += 1
        if self.epochs == 1:
            self.say(f"updated: {self.runs.rows} runs seen")
        self.kernel.call_at_ns(self.kernel.now_ns + MS // 2, self.publish)

    def publish(self, _: object) -> None:
        generation = self.runs.publish()
        if generation == 1:
            self.say(f"published: generation 1, {len(self.runs.published)} rows")
        if self.epochs < EPOCHS:
            self.kernel.call_at_ns(self.kernel.now_ns + MS // 2, self.epoch)


class WindowAgent(uxk.MLAgent):
    """Learns how often runs have which length; recommends the window that costs least for such runs."""

    manifest = uxk.Manifest(name="window-agent", version="1.0", license="Apache-2.0")
    model = "ra0"
    sites = ("ra0.window",)

    def setup(self, ctx: uxk.Context) -> None:
        from river import stats

        self.cost = {window: stats.EWMean(fading_factor=0.01) for window in WINDOWS}
        self.best = DEFAULT
        self.trained = 0

    def on_dataset(self, ctx: uxk.Context, dataset: uxk.DatasetView) -> None:
        if dataset.generation == 1:
            ctx.log(f"notified: generation 1 of {dataset.info.name}, {dataset.info.rows} rows")
        for row in dataset.features():  # the model is elaborated as it is trained: one mean for each window
            for window, mean in self.cost.items():
                mean.update(cost_us(row["blocks"], window))
            self.trained += 1
        best = min(self.cost, key=lambda window: self.cost[window].get())
        if dataset.generation == 1 or best != self.best:
            ctx.log(f"trained on {self.trained} runs")
            table = " ".join(f"{window}:{round(mean.get())}" for window, mean in self.cost.items())
            ctx.log(f"elaborated: us a run by window {table}")
            ctx.log(f"recommends {best} blocks")
        self.best = best
        ctx.set_attribute("trained", self.trained)
        ctx.set_attribute("model", " ".join(f"{window}:{round(mean.get())}" for window, mean in self.cost.items()))

    def recommend(self, ctx: uxk.Context, site: str) -> uxk.Advice:
        return uxk.Advice(bytes([self.best]), predicted=round(self.cost[self.best].get()))


class Administrator:
    """Looks into tree and log: shows a step by what both say of it."""

    def __init__(self, kernel: uxk.Kernel) -> None:
        self.kernel = kernel
        self.woken: list[int] = []

    def poll(self, path: str) -> Callable[[], None]:
        """As poll(2) on the attribute: the time of each wake-up."""
        return self.kernel.sysfs.poll(path, lambda: self.woken.append(self.kernel.now_ns))

    def show(self, number: int, step: str, path: str, words: str) -> None:
        value = self.kernel.sysfs.read(path).replace("\n", ", ")
        line = next(record for record in self.kernel.kmsg.records() if words in record.text)
        print(f"{number:2} {step:<22} {path.replace(MODEL, '...')} = {value}")
        print(f"   {'':<22} [{line.time_ns / 1e9:.6f}] {line.source}: {line.text}")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with uxk.Kernel(seed=3) as kernel:
            with uxk.DataLogRecorder(kernel, uxk.DataLogSettings(dir=folder)):
                async with await kernel.open("/dev/kmsg", "administrator") as kmsg:
                    await kmsg.write(b"<6>saving what models publish in a dataset log")
                await loop(kernel)
        saved = uxk.DataLog(folder)["ra0/runs"]
        print(f"saved: {len(saved.rows())} rows of {len(list(saved.batches()))} generations are in the dataset log")


async def loop(kernel: uxk.Kernel) -> None:
    see = Administrator(kernel)
    subsystem = ReadAhead(kernel)
    see.show(1, "declare parameters", f"{MODEL}/datasets/runs/schema", "declared:")
    see.show(2, "entries appear", f"{MODEL}/state", "registered")
    cancel = see.poll(f"{MODEL}/datasets/runs/generation")
    await kernel.insmod(WindowAgent)
    subsystem.epoch()
    see.show(3, "values are updated", f"{MODEL}/datasets/runs/appended", "updated:")
    await kernel.run_until_ns(kernel.now_ns + MS // 2)
    see.show(4, "publish", f"{MODEL}/datasets/runs/generation", "published:")
    see.show(5, "notify the agent", "/sys/module/window_agent/statistics/messages_in", "notified:")
    print(f"   {'':<22} poll woke at {see.woken[0]} ns")
    cancel()
    see.show(6, "save", "/sys/kernel/datalog/lost_rows", "saving")
    see.show(7, "train", "/sys/module/window_agent/attributes/trained", "trained on")
    see.show(8, "elaborate the model", "/sys/module/window_agent/attributes/model", "elaborated:")
    see.show(9, "share recommendations", "/sys/module/window_agent/statistics/hints", "recommends")
    see.show(10, "notify the subsystem", f"{MODEL}/sites/ra0.window/held", "heard:")
    await kernel.run()
    see.show(11, "apply", f"{MODEL}/sites/ra0.window/hints_applied", "applied:")
    for change in subsystem.proxy.timeline[1:]:
        print(f"epoch {change.epoch:2}: {change.old.name.lower()} -> {change.new.name.lower()}")
    saved_ppm = int(kernel.sysfs.read(f"{MODEL}/saved_ppm"))
    print(f"{saved_ppm // 10_000} % less time than by default in all of the run; the last window: {subsystem.used[0]}")


if __name__ == "__main__":
    trio.run(main)
