"""A driver that counts what it is asked, and hands the count over; a word in its parameters says what goes wrong."""

from __future__ import annotations

from collections.abc import Sequence

import uxk


class TallyParams(uxk.Params):
    fails: str = ""


class Tally(uxk.Extension[TallyParams]):
    manifest = uxk.Manifest(name="tally", version="1", params=TallyParams, fate="reissue")
    count = served = 0

    def setup(self, ctx: uxk.Context) -> None:
        if self.params.fails == "setup":
            raise ValueError("as asked")

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        self.count += len(requests)
        self.served += len(requests)
        if self.params.fails == "later" and self.served > 40:
            raise ValueError("as asked, later")
        ctx.call_later_ns(1000, lambda _: ctx.complete_batch(requests, [request.payload for request in requests]))

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        ctx.log(f"{event.topic} at {self.count}")

    def checkpoint(self) -> bytes:
        if self.params.fails == "checkpoint":
            raise ValueError("as asked, at the end")
        return b"%d" % self.count

    def restore(self, data: bytes) -> None:
        self.count = int(data)

    def on_stop(self, ctx: uxk.Context, reason: str) -> None:
        ctx.log(f"{reason} after {self.count}")
