"""An extension that does its work, whoever its neighbours are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import uxk


class HonestParams(uxk.Params):
    latency_ns: Annotated[int, uxk.param(ge=0, unit="ns", help="what a batch takes; 0: it is answered at once")] = 0


class Honest(uxk.Extension[HonestParams]):
    """Answers every request with its own payload."""

    manifest = uxk.Manifest(
        name="honest", version="1.0", license="Apache-2.0", params=HonestParams,
        budget=uxk.Budget(queue_depth=256),
    )  # fmt: skip

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        if self.params.latency_ns:
            ctx.call_later_ns(self.params.latency_ns, lambda _: self.answer(ctx, requests))
        else:
            self.answer(ctx, requests)

    def answer(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.complete_batch(requests, [request.payload for request in requests])
