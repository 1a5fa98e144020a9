"""The extension: disks in, NBD out."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import uxk
from uxk_nbd_server.params import NbdParams
from uxk_nbd_server.server import Server, uri_of
from uxk_nbd_server.sockets import identity_of, listen_tcp, listen_unix, remove_unix


class NbdServer(uxk.Extension[NbdParams]):
    """Exports disks to NBD clients."""

    manifest = uxk.Manifest(
        name="nbd_server",
        version="0.1.0",
        author="The uxk authors",
        license="Apache-2.0",
        kind="driver",
        driver_class="export",
        params=NbdParams,
        capabilities=("device:*:submit",),
        budget=uxk.Budget(memory_bytes=1 << 16, memory_params=("pool",), queue_depth=2048),
        ready="explicit",
    )

    _server: Server | None = None

    def setup(self, ctx: uxk.Context) -> None:
        """Refuses parameters that cannot be."""
        params = self.params
        if params.device and bool(params.unix) == bool(params.tcp):
            raise uxk.UsageError(f"unix={params.unix!r} tcp={params.tcp!r}: expected one of them")
        if params.tls != "off" and not params.tls_cert:
            raise uxk.UsageError(f"tls={params.tls}: needs tls_cert")

    async def run(self, ctx: uxk.Context) -> None:
        """Listens until the end."""
        params = self.params
        if not params.device:
            ctx.log("nothing is exported: no device is named")
            ctx.ready()
            return
        region = (await ctx.allocate(params.pool)).result
        server = Server(ctx, params, region, ctx.map(region, writable=True))
        await server.open()
        self._server = server
        path = _path(params.unix)
        listener = listen_tcp(params.tcp) if path is None else listen_unix(path)
        identity = None if path is None else identity_of(path)
        try:
            uri = uri_of(listener, "" if path is None else str(path), server.first_export, tls=params.tls != "off")
            ctx.set_attribute("uri", uri)
            server.show()
            ctx.log(f"listening on {uri}")
            ctx.ready()
            await server.serve(listener)
        finally:
            listener.close()
            if path is not None and identity is not None:
                remove_unix(path, identity)

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        """There is nothing to ask of an export."""
        for request in requests:
            ctx.fail(request, errno.EOPNOTSUPP)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        """News of disks."""
        if self._server is not None:
            if event.topic == "device_change":
                self._server.device_changed(event.name, event.value)
            elif event.topic == "device_remove":
                self._server.device_removed(event.name)


def _path(text: str) -> Path | None:
    return Path(text).absolute() if text else None
