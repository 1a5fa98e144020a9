"""What of the device outlives its driver: a table in memory that the kernel keeps.

Two copies, written in turn, each with a sequence number and a checksum: a driver that dies while it writes leaves the
older one whole.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

import msgspec

from uxk_nvme.namespaces import NamespaceRecord

KEPT_BYTES: Final = 1 << 20
"""The longest table there can be fits into half of it: namespaces and controllers are bounded, and so are names."""
_HALF: Final = KEPT_BYTES >> 1
_HEADER: Final = struct.Struct("<8sQII")
_MAGIC: Final = b"uxknvme1"


class ControllerRecord(msgspec.Struct, array_like=True):
    """A controller: it goes on after a crash as if nothing had been."""

    cntlid: int
    port: int
    host: str
    host_id: bytes
    features: dict[int, int] = {}
    saved: dict[int, int] = {}
    enabled: int = 0
    """Asynchronous event configuration."""
    delays: bool = False
    """ACRE (feature 16h)."""
    timestamp_ns: tuple[int, int] = (0, 0)
    errors: int = 0
    """Entries that its error log has had."""


class Kept(msgspec.Struct, array_like=True):
    """The table."""

    serial: str
    generation: int = 0
    last_cntlid: int = 0
    power_cycles: int = 0
    namespaces: list[NamespaceRecord] = []
    controllers: list[ControllerRecord] = []
    """The kernel's own among them."""
    life: int = 0
    """Whose medium it is: the next incarnation ends that of one that could not say goodbye."""
    write_cache_on: bool = True
    power_state: int = 0
    thermal: int = 0
    """Features 06h, 02h and 10h, which are the device's."""
    lifetime: dict[str, int] = {}
    """Counters of the SMART log that never begin anew."""


_decode: Final = msgspec.msgpack.Decoder(Kept).decode
_encode: Final = msgspec.msgpack.Encoder().encode


class KeptTable:
    """Loads and saves :class:`Kept` in :data:`KEPT_BYTES` of memory."""

    __slots__ = ("_sequence", "_view")

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._sequence = 0

    def load(self) -> Kept | None:
        """The newest whole copy, or None in fresh memory."""
        best: Kept | None = None
        for half in (0, _HALF):
            magic, sequence, length, checksum = _HEADER.unpack_from(self._view, half)
            if magic != _MAGIC or length > _HALF - _HEADER.size or sequence <= self._sequence:
                continue
            body = bytes(self._view[half + _HEADER.size : half + _HEADER.size + length])
            if zlib.crc32(body) != checksum:
                continue
            try:
                best = _decode(body)
            except msgspec.MsgspecError:
                continue
            self._sequence = sequence
        return best

    def save(self, kept: Kept) -> None:
        """Writes the other copy; its header last."""
        body = _encode(kept)
        self._sequence += 1
        half = _HALF * (self._sequence & 1)
        at = half + _HEADER.size
        self._view[at : at + len(body)] = body
        _HEADER.pack_into(self._view, half, _MAGIC, self._sequence, len(body), zlib.crc32(body))
