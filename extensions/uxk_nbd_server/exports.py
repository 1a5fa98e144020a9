"""The disks that are exported, by name: what clients are told of them, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

import uxk
from uxk.uapi.blk import BlockLimits
from uxk_nbd_server.disk import Disk, limits_in
from uxk_nbd_server.handshake import ExportInfo
from uxk_nbd_server.memory import Pool
from uxk_nbd_server.params import NbdParams
from uxk_nbd_server.wire import REQUEST_MAX_BYTES, Tx

EXPORTS_MAX: Final = 64
_PREFERRED_BYTES: Final = 4096
_CHECK_PAUSE_S: Final = 0.05


class Exports:
    """All of one server.  ``on_retire(disk, reason)`` is called when clients cannot go on with a disk as it is."""

    def __init__(
        self, ctx: uxk.Context, params: NbdParams, region: int, pool: Pool,
        on_retire: Callable[[Disk, str], object], complain: Callable[[str], object],
    ) -> None:  # fmt: skip
        self._complain = complain
        self._params = params
        self._on_retire = on_retire
        self._trouble = trio.Event()
        self._opening = trio.Lock()
        self._disks: dict[str, Disk] = {}
        """By the export's name."""
        devices = [name.strip() for name in params.device.split(",") if name.strip()]
        names = [name.strip() for name in params.export.split(",")] if params.export else devices
        if not devices or len(names) != len(devices) or len(set(names)) != len(names) or len(names) > EXPORTS_MAX:
            raise uxk.UsageError(
                f"device={params.device!r} export={params.export!r}: expected 1 to {EXPORTS_MAX} disks, "
                "and a different name for each"
            )
        for name, device in zip(names, devices, strict=True):
            disk = self._disks[name] = Disk(ctx, device, region, pool, params.depth)
            disk.on_trouble = self._suspect

    @property
    def first(self) -> str:
        """The one that clients get who ask for none in particular."""
        return next(iter(self._disks))

    def disk(self, name: str) -> Disk:
        """The disk behind an export."""
        return self._disks[name]

    async def open(self) -> None:
        """Opens all disks.  Raises what they raise."""
        for disk in self._disks.values():
            await disk.open()

    async def reopen(self) -> None:
        """A disk that was away may have come back."""
        if all(disk.alive for disk in self._disks.values()):
            return
        async with self._opening:
            for disk in self._disks.values():
                if not disk.alive:
                    try:
                        await disk.open()
                    except uxk.UxkError as exc:
                        self._complain(f"{disk.name}: {exc}")

    # --- what clients are told ---

    def find(self, name: str) -> ExportInfo | None:
        """An export, or None if there is none now."""
        name = name or self.first
        disk = self._disks.get(name)
        return self._info(name, disk) if disk is not None and disk.alive else None

    def listed(self) -> list[ExportInfo]:
        """All that may be asked for."""
        return [self._info(name, disk) for name, disk in self._disks.items() if disk.alive]

    def _info(self, name: str, disk: Disk) -> ExportInfo:
        limits, params = disk.limits, self._params
        flags = Tx.HAS_FLAGS | Tx.SEND_FLUSH | Tx.SEND_FUA | Tx.SEND_CACHE
        if params.read_only or limits.read_only:
            flags |= Tx.READ_ONLY
        else:
            flags |= Tx.SEND_WRITE_ZEROES
            if limits.max_discard_bytes:
                flags |= Tx.SEND_TRIM
            if limits.max_write_zeroes_bytes:
                flags |= Tx.SEND_FAST_ZERO
        if params.multi_conn:  # the device's cache is one for all, and so is a FLUSH of it
            flags |= Tx.CAN_MULTI_CONN
        block = limits.logical_block_bytes
        sizes = (block, max(block, _PREFERRED_BYTES), REQUEST_MAX_BYTES)
        return ExportInfo(name, params.description, limits.capacity_bytes, flags, *sizes)

    # --- what becomes of them ---

    def changed(self, device: str, uevent: bytes) -> None:
        """A disk has other properties now: its clients, who cannot be told, have to come again."""
        try:
            limits = limits_in(uevent)
        except uxk.UxkError:
            limits = None
        for disk in self._disks.values():
            if disk.name == device and disk.alive and limits != disk.limits:
                self._retire(disk, "the disk has changed")

    def removed(self, device: str) -> None:
        """A disk is gone."""
        for disk in self._disks.values():
            if disk.name == device and disk.alive:
                self._retire(disk, "the disk is gone")

    def _retire(self, disk: Disk, reason: str) -> None:
        disk.alive = False
        self._on_retire(disk, reason)

    def _suspect(self, disk: Disk) -> None:
        self._trouble.set()

    async def watch(self) -> None:
        """Finds out whether disks that refuse requests are still there; until cancelled."""
        while True:
            await self._trouble.wait()
            await trio.sleep(_CHECK_PAUSE_S)
            self._trouble = trio.Event()
            for disk in self._disks.values():
                if disk.alive:
                    limits: BlockLimits | None = None
                    with suppress(uxk.UxkError):
                        limits = await disk.look()
                    if limits != disk.limits:
                        self._retire(disk, "the disk is gone")
