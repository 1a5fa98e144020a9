"""One decision of a kernel's, asked for and hinted at: which of the two may hang when user space does?

    python examples/upcall_or_hint.py

A flusher in the kernel decides how many pages to write back at once.  An adviser in user space says 16; the built-in
default is 4.  First the kernel *asks* and waits for the answer, which it never should: the wait-for graph says so at
that moment.  Then it looks for a *hint* and waits for nothing.  In the middle the adviser stops answering.
docs/methods.md has the same for a real decision, and for four more ways.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

import uxk
from uxk.core.site import DecisionSite
from uxk.core.waitfor import Node

DEFAULT_PAGES, ADVISED_PAGES = 4, 16
MS = 1_000_000
HANGS_AT_NS = 30 * MS
FLUSHER = Node("kernel", "flusher")


class Adviser(uxk.Extension):
    """Completes what it is asked, and sends a hint every five milliseconds; until it hangs."""

    manifest = uxk.Manifest(
        name="adviser", capabilities=("site:flush.pages",), turn_cost_ns=2 * MS,
        watchdog=uxk.Watchdog(request_timeout_ns=50 * MS),
    )  # fmt: skip

    def setup(self, ctx: uxk.Context) -> None:
        self.ctx = ctx
        self.advise(None)

    def advise(self, _: object) -> None:
        if self.ctx.now_ns < HANGS_AT_NS:
            self.ctx.hint("flush.pages", 0, 8 * MS, bytes([ADVISED_PAGES]), standing=True)
            self.ctx.call_later_ns(5 * MS, self.advise, daemon=True)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        for request in requests:
            if ctx.now_ns < HANGS_AT_NS:
                ctx.complete(request, bytes([ADVISED_PAGES]))


async def ask(kernel: uxk.Kernel, adviser: uxk.Module) -> int:
    """The wrong way: the decision takes as long as the adviser does."""
    node = Node("instance", adviser.name)
    for finding in kernel.machine.waits.add(FLUSHER, node, "its advice", kernel.now_ns, decision=True):
        print(*finding.text.splitlines()[1:2], *finding.text.splitlines()[3:-2], sep="\n    ")
    done = await adviser.submit(check=False)
    kernel.machine.waits.remove(FLUSHER, node, "its advice")
    return DEFAULT_PAGES if done.status else done.payload[0]


def look(kernel: uxk.Kernel, site: DecisionSite) -> int:
    """The right way: what is there at this moment, or the default."""
    hint = site.standing(kernel.now_ns)
    return DEFAULT_PAGES if hint is None else int(hint.payload[0])


async def main() -> None:
    async with uxk.Kernel(seed=1, clock="charged") as kernel:
        proxy = kernel.create_model("flush", "flush")
        site = proxy.site("flush.pages", check=lambda payload: "" if len(payload) == 1 else "malformed")
        adviser = await kernel.insmod(Adviser)
        for at_ms in (20, 40):
            await kernel.run_until_ns(at_ms * MS)
            print(f"{at_ms} ms, the adviser {'hangs' if at_ms * MS >= HANGS_AT_NS else 'works'}")
            print(f"  hint:   {look(kernel, site)} pages, after 0.0 ms")
            began_ns = kernel.now_ns
            pages = await ask(kernel, adviser)
            print(f"  upcall: {pages} pages, after {(kernel.now_ns - began_ns) / MS:.1f} ms")
        print(f"decisions that waited for user space: {kernel.machine.waits.statistics().blocking_decisions}")


if __name__ == "__main__":
    trio.run(main)
