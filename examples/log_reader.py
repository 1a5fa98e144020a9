"""An agent that reads the kernel log and learns online how often a driver complains (with river).

    python examples/log_reader.py

The driver begins to fail more often after two seconds; nobody tells the agent.  ADWIN notices that the times
between its lines have changed (Bifet and Gavalda, SDM 2007), and the agent publishes the new rate.
"""

from __future__ import annotations

import json
from typing import Annotated

import uxk
from uxk.scenario import Check, Load

MS = 1_000_000
WARNING = 4


class FlakyParams(uxk.Params):
    worse_at_ns: Annotated[int, uxk.param(ge=0, unit="ns", help="when it begins to fail more often")] = 2000 * MS
    end_ns: Annotated[int, uxk.param(ge=0, unit="ns", help="when it falls silent")] = 3000 * MS


class Flaky(uxk.Extension[FlakyParams]):
    """A driver that complains: first every 10 ms or so, later every 2 ms."""

    manifest = uxk.Manifest(
        name="flaky", version="1.0", license="Apache-2.0", params=FlakyParams, budget=uxk.Budget(log_burst=4096)
    )

    def setup(self, ctx: uxk.Context) -> None:
        self.complain(ctx)

    def complain(self, ctx: uxk.Context) -> None:
        ctx.log("media error, retried", level=WARNING)
        mean_ns = 2 * MS if ctx.now_ns >= self.params.worse_at_ns else 10 * MS
        if ctx.now_ns < self.params.end_ns:
            ctx.call_later_ns(int(ctx.random("gap").exponential(mean_ns)), lambda _: self.complain(ctx))


class LogReader(uxk.Extension):
    """Learns the rate of warnings, line by line, and says so when it changes."""

    manifest = uxk.Manifest(
        name="log-reader", version="1.0", license="Apache-2.0", kind="ml-agent", capabilities=("kmsg:read",)
    )

    def setup(self, ctx: uxk.Context) -> None:
        from river import drift, stats  # slow to import: only the extension that learns pays for it

        self.drift = drift.ADWIN(delta=0.002)
        self.gap_ms = stats.EWMean(fading_factor=0.05)
        self.before_ns = 0
        self.changes = 0
        ctx.follow_kmsg(max_level=WARNING)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        if event.topic != "kmsg" or event.name != "flaky":
            return
        now_ns = json.loads(event.value)["time_ns"]
        gap_ms = (now_ns - self.before_ns) / MS
        self.before_ns = now_ns
        self.gap_ms.update(gap_ms)
        self.drift.update(gap_ms)
        rate_per_s = round(1000 / max(self.gap_ms.get(), 0.001))
        ctx.set_attribute("rate_per_s", rate_per_s)
        if self.drift.drift_detected:
            self.changes += 1
            ctx.set_attribute("changes", self.changes)
            ctx.set_attribute("noticed_ms", now_ns // MS)
            ctx.log(f"flaky complains {rate_per_s} times a second now", level=WARNING)


SCENARIO = uxk.Scenario(
    name="log-reader",
    description="an agent learns from the kernel log that a driver gets worse",
    seed=1,
    until=4000 * MS,
    modules=(Load(name="log-reader"), Load(name="flaky")),
    checks=(
        Check(value="modules.log_reader.attributes.changes", op="==", than=1),
        Check(value="modules.log_reader.attributes.noticed_ms", op=">=", than=2000),
        Check(value="modules.log_reader.attributes.noticed_ms", op="<", than=2300),
        Check(value="modules.log_reader.attributes.rate_per_s", op=">", than=250),
    ),
)

if __name__ == "__main__":
    print(uxk.run(SCENARIO).report())
