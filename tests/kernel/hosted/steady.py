"""A driver that comes back at once, and is given again what it had not answered."""

from __future__ import annotations

from collections.abc import Sequence

import uxk


class Steady(uxk.Extension):
    manifest = uxk.Manifest(
        name="steady", fate="reissue",
        restart=uxk.RestartPolicy(max_restarts=1024, backoff_ns=1_000_000, backoff_max_ns=1_000_000),
    )  # fmt: skip

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        ctx.complete_batch(requests, [request.payload for request in requests])
