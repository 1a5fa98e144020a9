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

KEPT_BYTES: Final = 128 << 10
_HALF: Final = KEPT_BYTES >> 1
_HEADER: Final = struct.Struct("<8sQII")
_MAGIC: Final = b"uxknvme1"


class ControllerRecord(msgspec.Struct, array_like=True):
    """A controller of a host's: it goes on after a crash as if nothing had been."""

    cntlid: int
    port: int
    host: str
    host_id: bytes
    features: dict[int, int] = {}


class Kept(msgspec.Struct, array_like=True):
    """The table."""

    serial: str
    generation: int = 0
    last_cntlid: int = 0
    power_cycles: int = 0
    namespaces: list[NamespaceRecord] = []
    controllers: list[ControllerRecord] = []
    saved: dict[int, int] = {}
    """Saved features of the kernel's own controller."""
    enabled: dict[int, int] = {}
    """Asynchronous event configuration by CNTLID."""
    life: int = 0
    """Whose medium it is: the next incarnation ends that of one that could not say goodbye."""


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
        """Writes the other copy; its header last.  What does not fit keeps its hosts' controllers out."""
        body = _encode(kept)
        if len(body) > _HALF - _HEADER.size:
            kept = msgspec.structs.replace(kept, controllers=[])
            body = _encode(kept)
        if len(body) > _HALF - _HEADER.size:  # names of hosts may be long
            bare = [msgspec.structs.replace(each, hosts=[], refused=[]) for each in kept.namespaces]
            body = _encode(msgspec.structs.replace(kept, namespaces=bare))
        self._sequence += 1
        half = _HALF * (self._sequence & 1)
        at = half + _HEADER.size
        self._view[at : at + len(body)] = body
        _HEADER.pack_into(self._view, half, _MAGIC, self._sequence, len(body), zlib.crc32(body))
