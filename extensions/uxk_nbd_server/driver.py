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
        exclusive=True,  # the address that it listens on
        params=NbdParams,
        capabilities=("device:*:submit",),
        budget=uxk.Budget(memory_bytes=1 << 16, memory_params=("pool",), queue_depth=2048),
        sandbox=uxk.Sandbox(
            network=True, read=("{tls_cert}", "{tls_key}", "{tls_ca}"), write=("{unix}/..",), files=1024
        ),
        ready="explicit",
    )

    _server: Server | None = None

    def setup(self, ctx: uxk.Context) -> None:
        """Refuses parameters that cannot be."""
        params = self.params
        if params.device and bool(params.unix) == bool(params.tcp):
            raise uxk.UsageError(f"unix={params.unix!r} tcp={params.tcp!r}: expected one of them")
        if not params.tls_cert and (params.tls != "off" or params.tls_key or params.tls_ca):
            given = {"tls": params.tls, "tls_key": params.tls_key, "tls_ca": params.tls_ca}
            named = " ".join(f"{name}={value}" for name, value in given.items() if value not in ("", "off"))
            raise uxk.UsageError(f"{named}: needs tls_cert")
        if params.tls_cert and params.tls == "off":
            raise uxk.UsageError(f"tls_cert={params.tls_cert} tls=off: expected tls=require, or tls=allow")

    async def run(self, ctx: uxk.Context) -> None:
        """Listens until the end."""
        params = self.params
        if not params.device:
            ctx.log("nothing is exported: no device is named")
            ctx.ready()
            return
        region = (await ctx.allocate(params.pool)).result
        server = Server(ctx, params, region, ctx.map(region, writable=True))
        await server.exports.open()
        self._server = server
        path = _path(params.unix)
        listener = listen_tcp(params.tcp) if path is None else listen_unix(path)
        identity = None if path is None else identity_of(path)
        try:
            uri = uri_of(listener, "" if path is None else str(path), server.exports.first, tls=params.tls != "off")
            ctx.set_attribute("uri", uri)
            ctx.set_attribute("link", "up", writable=True)
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
        """News of disks; or ``link`` was written."""
        if self._server is not None:
            if event.topic == "device_change":
                self._server.exports.changed(event.name, event.value)
            elif event.topic == "device_remove":
                self._server.exports.removed(event.name)
            elif event.topic == "store" and event.name == "link":
                self._set_link(ctx, self._server, event.value.decode(errors="replace").strip())

    def _set_link(self, ctx: uxk.Context, server: Server, word: str) -> None:
        if word not in ("up", "down"):
            ctx.log(f"link: {word[:80]!r}, expected up or down", level=4)
        elif server.link != (word == "up"):
            server.set_link(word == "up")
            ctx.log(f"link {word}")
        ctx.set_attribute("link", "up" if server.link else "down", writable=True)


def _path(text: str) -> Path | None:
    return Path(text).absolute() if text else None
