"""The policy as bytecode: cost-benefit over the rows of the table, verified, injected, run by the kernel itself."""

from __future__ import annotations

from typing import Any, Final

import uxk
from bench.methods_agents import SITE, Adviser, AdviserParams, manifest_of
from bench.methods_policy import Shape, rank
from uxk.bpf.asm import assemble
from uxk.bpf.compiler.schema import Feature, Schema
from uxk.bpf.values import S64_MAX, S64_MIN
from uxk.kernel.bpf.shadow import InjectionConfig
from uxk.uapi.ml import decode_shadow

SCORES: Final = (S64_MIN, S64_MAX)
CONFIG: Final = InjectionConfig(decisions_min=32, agreement_ppm=1_000_000, audit_every=0, batch=8, flush_ns=1_000)
"""Before the first timed write, 32 tables are judged by both; afterwards nothing crosses any more."""


def schema(size: int) -> Schema:
    """A row: valid blocks of a segment, and user writes since its last append."""
    return Schema([Feature("live", 0, size, "blocks"), Feature("age", 0, (1 << 32) - 1, "writes")])


def bytecode(size: int) -> bytes:
    """g * age / v with 16 fraction bits; a segment without valid blocks costs nothing."""
    return assemble(f"""
        r2 = *(u64 *)(r1 + 0)
        r3 = *(u64 *)(r1 + 8)
        r0 = {1 << 62} ll
        if r2 == 0 goto out
        r0 = {size}
        r0 -= r2
        r0 *= r3
        r0 <<= 16
        r0 /= r2
    out:
        exit
    """)


class Injector(Adviser, uxk.Extension[AdviserParams]):
    """Injects the policy, and judges it while it runs in the shadow."""

    manifest = manifest_of("methods_injector", f"bpf:site/{SITE}")

    def setup(self, ctx: uxk.Context) -> None:
        """Sends the bytecode."""
        ctx.inject(SITE, bytecode(self.params.size), why="cost-benefit")

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        """What the policy would have said of each table."""
        if event.topic == "shadow" and not self.hangs(ctx):
            shown = decode_shadow(event.value)
            numbers: Any = memoryview(shown.rows).cast("q").tolist()
            rows = [numbers[at : at + shown.width] for at in range(0, len(numbers), shown.width)]
            said, at = list[int](), 0
            for count in shown.counts:
                said.append(self.best(rows[at : at + count]))
                at += count
            ctx.judge(shown.injection, shown.first, said)

    def best(self, rows: list[list[int]]) -> int:
        """The place of the row that the policy of :mod:`bench.methods_policy` would take."""
        shape = Shape(self.params.size, self.params.most)
        return rank(((place, live, age) for place, (live, age) in enumerate(rows)), shape)[0]
