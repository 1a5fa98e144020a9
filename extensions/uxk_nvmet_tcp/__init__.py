"""NVMe over TCP: exports the namespaces of an NVMe controller to hosts that nobody here wrote.

Commands pass through to the controller device as they are, as with Linux's nvmet passthru; connections, discovery,
keep-alive and the controllers' life cycle are handled here.  Data lie in arena memory that is handed to the driver.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

import uxk
from uxk.uapi.blk import NvmeOp
from uxk_nvmet_tcp.backend import Passthrough
from uxk_nvmet_tcp.digest import load_crc32c
from uxk_nvmet_tcp.memory import UNIT_BYTES, Pool
from uxk_nvmet_tcp.params import NvmetTcpParams, address_of, hosts_of
from uxk_nvmet_tcp.pdu import Crc
from uxk_nvmet_tcp.server import Server, listen, shown
from uxk_nvmet_tcp.spec import DISCOVERY_NQN
from uxk_nvmet_tcp.target import Target, TargetConfig

SLICE_MIN_BYTES: Final = 64 << 10
"""Memory of one connection: two transfers of 32 KiB."""


class NvmetTcp(uxk.Extension[NvmetTcpParams]):
    """NVMe/TCP target for an NVMe controller device."""

    manifest = uxk.Manifest(
        name="nvmet_tcp",
        version="0.1.0",
        author="The uxk authors",
        license="Apache-2.0",
        description="exports an NVMe controller over TCP",
        driver_class="export",
        exclusive=True,  # the address that it listens on
        params=NvmetTcpParams,
        capabilities=("device:*:submit",),
        budget=uxk.Budget(memory_bytes=0, memory_params=("memory",), queue_depth=4096),
        sandbox=uxk.Sandbox(network=True, files=1024),
        ready="explicit",
    )

    def setup(self, ctx: uxk.Context) -> None:
        """Looks at the parameters; everything else needs to wait: see :meth:`run`."""
        params = self.params
        if params.nqn == DISCOVERY_NQN:
            raise uxk.ParamError(f"nqn={params.nqn!r}: this is what every discovery controller is called")
        config = TargetConfig(
            params.nqn, hosts_of(params.allow), address_of(params.advertise), params.queues, params.depth,
            params.in_capsule // 16 * 16, params.per_address or max(params.connections // 2, params.queues + 2),
        )  # fmt: skip
        slice_bytes = params.memory // params.connections // UNIT_BYTES * UNIT_BYTES
        if slice_bytes < SLICE_MIN_BYTES:
            raise uxk.ParamError(
                f"memory={params.memory}: {slice_bytes} for each of {params.connections} connections, "
                f"expected at least {SLICE_MIN_BYTES}"
            )
        self._config = config
        self._target: Target | None = None
        self._server: Server | None = None
        self._figures: dict[str, str] = {}
        self._crc: Crc | None = None
        self._ctx = ctx

    async def run(self, ctx: uxk.Context) -> None:
        """Listens, opens the device, and serves; without a device, there is nothing to do."""
        params = self.params
        if not params.device:
            ctx.log("no device is named, nothing is exported")
            ctx.ready()
            return
        self._crc = load_crc32c() if params.digests else None
        if params.digests and self._crc is None:
            ctx.log("no digests for hosts: they need the package crc32c, pip install uxk[serve]", level=4)
        with await listen(params.host, params.port) as listener:
            region = (await ctx.allocate(params.memory)).result
            backend = Passthrough(ctx, params.device, region, self._on_answers)
            pool = Pool(ctx.map(region, writable=True), params.connections)
            target = Target(self._config, backend, pool, lambda: ctx.now_ns, ctx.log, lambda: self._crc)
            await self._probe(ctx, backend)
            self._target, self._server = target, Server(ctx, listener, target, 2 * params.connections)
            host, port = shown(listener.getsockname())
            ctx.set_attribute("address", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            ctx.set_attribute("link", "up", writable=True)
            ctx.set_attribute("digests", "Y" if self._crc is not None else "N")
            ctx.log(f"{params.device} as {params.nqn} on {host} port {port}")
            ctx.ready()
            await self._server.run(self._publish)

    async def _probe(self, ctx: uxk.Context, backend: Passthrough) -> None:
        """Whether the device is there, and is an NVMe controller: better said now than to the first host."""
        device = self.params.device
        opened = await ctx.open_device(device)
        cap = opened.result
        payload = self.params.nqn.encode()[:256].ljust(256, b"\0") + bytes(16)
        try:
            cntlid = (await ctx.submit(cap, NvmeOp.ATTACH, payload)).result
        except uxk.RequestError as exc:
            raise uxk.UsageError(f"device={device!r}: no NVMe controller that takes hosts: {exc}") from exc
        await ctx.submit(cap, NvmeOp.DETACH, offset=cntlid << 16)
        backend.use(cap, opened.payload.decode())

    # --- callbacks ---

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        """There is nothing to ask of an export."""
        for request in requests:
            ctx.fail(request, errno.EOPNOTSUPP)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        """``link`` was written; ``allow`` or ``advertise`` has changed."""
        if self._target is None or self._server is None:
            return
        if event.topic == "store" and event.name == "link":
            word = event.value.decode(errors="replace").strip()
            if word in ("up", "down"):
                self._target.set_link(word == "up")
            else:
                ctx.log(f"link: {word[:80]!r}, expected up or down", level=4)
            ctx.set_attribute("link", "up" if self._target.link else "down", writable=True)
        elif event.topic == "param":
            try:
                self._target.reconfigure(
                    allow=hosts_of(self.params.allow), advertise=address_of(self.params.advertise)
                )  # fmt: skip
            except uxk.ParamError as exc:
                ctx.log(f"{exc}; everything stays as it was", level=4)
        self._server.flush()
        self._publish()

    def on_stop(self, ctx: uxk.Context, reason: str) -> None:
        """The device learns that its hosts are gone."""
        if self._target is not None:
            for session in list(self._target.sessions):
                session.close(reason)

    def _on_answers(self) -> None:
        if self._server is not None:
            self._server.on_answers()

    def _publish(self) -> None:
        """Figures as attributes, those that have changed."""
        target = self._target
        assert target is not None
        figures = {
            "connections": str(len(target.sessions)),
            "hosts": target.hosts(),
            "commands": target.commands(),
            "refused": str(target.refused),
            "protocol_errors": str(target.bad_hosts),
        }
        for name, value in figures.items():
            if self._figures.get(name) != value:
                self._figures[name] = value
                self._ctx.set_attribute(name, value)
