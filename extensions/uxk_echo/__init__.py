"""Echo: answers with what it was sent, over its device and over a char device.

Copy this package to begin an extension; ``uxk new extension NAME`` does it for you.  It shows one of each:
a batch callback, typed parameters, an attribute, an event, a log line, a char device, a stop.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Annotated

import uxk


class EchoParams(uxk.Params):
    """What ``modprobe echo limit=4KiB`` may set; types and bounds are checked."""

    greeting: Annotated[str, uxk.param(max_length=64, help="what it says to the log when it is loaded")] = "hello"
    # Writable: self.params follows `echo 1KiB > /sys/module/echo/parameters/limit`.
    limit: Annotated[int, uxk.param(ge=0, le=64 << 10, unit="bytes", writable=True, help="longest echo")] = 64 << 10


class Echo(uxk.Extension[EchoParams]):
    """Answers every request with its own payload."""

    manifest = uxk.Manifest(
        name="echo",
        version="0.1.0",
        author="The uxk authors",
        license="Apache-2.0",
        kind="both",
        driver_class="misc",
        params=EchoParams,
    )

    def setup(self, ctx: uxk.Context) -> None:
        """Once, before anything else.  Nothing here waits: what is asked of the kernel leaves when the turn ends."""
        self.served = 0
        self.kept = b""
        ctx.log(f"{self.params.greeting}, {ctx.name} here")
        ctx.set_attribute("served", 0, writable=True)  # /sys/module/echo/attributes/served
        ctx.add_chardev(ctx.name)  # /dev/echo: what is written can be read back

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        """Every request is answered exactly once.  A batch, so that the cost of a crossing is shared."""
        for request in requests:
            self._serve(ctx, request)
        self.served += len(requests)
        ctx.set_attribute("served", self.served, writable=True)
        ctx.set_poll(ctx.name, readable=bool(self.kept), writable=True)

    def _serve(self, ctx: uxk.Context, request: uxk.Request) -> None:
        """Requests may come from anybody: check everything."""
        if len(request.payload) > self.params.limit:
            ctx.fail(request, errno.EMSGSIZE)
        elif request.opcode == uxk.Op.CALL:
            ctx.complete(request, request.payload)
        elif request.opcode == uxk.Op.WRITE:
            self.kept = request.payload
            ctx.complete(request, result=len(request.payload))
        elif request.opcode == uxk.Op.READ:
            taken, self.kept = self.kept[: request.length], self.kept[request.length :]
            ctx.complete(request, taken, result=len(taken))
        elif request.opcode in (uxk.Op.OPEN, uxk.Op.RELEASE):
            ctx.complete(request)
        else:
            ctx.fail(request, errno.EOPNOTSUPP)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        """News: a write to ``served`` sets the count; ``param`` says that a parameter has changed."""
        if event.topic == "store" and event.value.strip().isdigit():
            self.served = int(event.value)
            ctx.set_attribute(event.name, self.served, writable=True)

    def on_stop(self, ctx: uxk.Context, reason: str) -> None:
        """The last words; the kernel takes back everything else by itself."""
        ctx.log(f"served {self.served} requests; {reason}")
