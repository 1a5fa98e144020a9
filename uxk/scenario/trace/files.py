"""Plain, gzip, bzip2 and xz files as one stream of bytes, bounded whatever the file claims."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from uxk.errors import ConfigError

BLOCK_BYTES: Final = 1 << 22
TEXT_MAX_BYTES: Final = 1 << 38
"""Of one unpacked trace."""
RATIO_MAX: Final = 1000
"""Unpacked to packed; repetitive traces reach some hundreds."""
RATIO_FREE_BYTES: Final = 1 << 26
"""Unpacked bytes before the ratio counts."""
XZ_MEMORY_MAX_BYTES: Final = 256 << 20
"""xz -9 needs 65 MiB to unpack."""
LINE_MAX_BYTES: Final = 1 << 16

_MAGIC: Final = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"))
_FOREIGN: Final = ((b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip"), (b"7z\xbc\xaf\x27\x1c", "7z"))


class Bytes(io.RawIOBase):
    """An unpacked trace file, read forward.

    Raises :class:`ConfigError` naming the file when it is no regular file, truncated, corrupt, or unpacks to more
    than the bounds of this module allow.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._raw: BinaryIO | None = None
        self.unpacked_bytes = 0
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise ConfigError(f"{path}: no regular file")
            self.packed_bytes = path.stat().st_size
            self._raw = path.open("rb")
            head = self._raw.read(8)
            self._raw.seek(0)
        except OSError as exc:
            self.close()
            raise ConfigError(f"{path}: {exc.strerror}", errno=exc.errno) from None
        for magic, kind in _FOREIGN:
            if head.startswith(magic):
                self.close()
                raise ConfigError(
                    f"{path}: packed with {kind}: unpack it first (gzip, bzip2 and xz are read as they are)"
                )
        self.packing = next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")
        self._pieces = self._unpack(self._raw)
        self._rest = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Closes the file."""
        if self._raw is not None:
            self._raw.close()
        super().close()

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, fewer only at the end; never everything at once."""
        if size < 0:
            raise ValueError("read a bounded number of bytes")
        parts, wanted = [self._rest[:size]], size - len(self._rest[:size])
        self._rest = self._rest[size:]
        while wanted and (piece := self._next()):
            parts.append(piece[:wanted])
            self._rest = piece[wanted:]
            wanted -= len(parts[-1])
        return b"".join(parts)

    def _next(self) -> bytes:
        try:
            piece = next(self._pieces, b"")
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as exc:
            cut = isinstance(exc, EOFError)
            what = "ends in the middle" if cut else f"is corrupt ({exc})"
            packing = f"its {self.packing} data " if self.packing else ""
            raise ConfigError(f"{self.path}: {packing}{what}, after {self.unpacked_bytes} unpacked bytes") from None
        self.unpacked_bytes += len(piece)
        if self.unpacked_bytes > TEXT_MAX_BYTES:
            raise ConfigError(f"{self.path}: unpacks to more than {TEXT_MAX_BYTES} bytes")
        if self.packing and self.unpacked_bytes > max(RATIO_FREE_BYTES, RATIO_MAX * self.packed_bytes):
            raise ConfigError(
                f"{self.path}: {self.packed_bytes} bytes unpack to more than {self.unpacked_bytes}: "
                f"at most {RATIO_MAX} times as many are believed"
            )
        return piece

    def _unpack(self, raw: BinaryIO) -> Iterator[bytes]:
        if self.packing in ("bzip2", "xz"):
            yield from _unpack_streams(raw, self.packing)
            return
        source = gzip.GzipFile(fileobj=raw) if self.packing == "gzip" else raw
        while piece := source.read(BLOCK_BYTES):
            yield piece


def _unpack_streams(raw: BinaryIO, packing: str) -> Iterator[bytes]:
    """One stream after another; xz pads with zero bytes between them."""
    while True:
        data = raw.read(BLOCK_BYTES)
        if packing == "xz":
            data = data.lstrip(b"\0")
        if not data:
            return
        unpacker = bz2.BZ2Decompressor() if packing == "bzip2" else lzma.LZMADecompressor(memlimit=XZ_MEMORY_MAX_BYTES)
        while not unpacker.eof:
            if unpacker.needs_input and not data and not (data := raw.read(BLOCK_BYTES)):
                raise EOFError
            piece = unpacker.decompress(data, BLOCK_BYTES)
            data = b""
            if piece:
                yield piece
        raw.seek(-len(unpacker.unused_data), io.SEEK_CUR)


def blocks(stream: Bytes, head: bytes = b"") -> Iterator[bytes]:
    """Whole lines, some megabytes at a time, each block ending in a newline; ``head`` was read before."""
    rest = head
    while True:
        piece = stream.read(BLOCK_BYTES)
        if not piece:
            if rest:
                yield rest if rest.endswith(b"\n") else rest + b"\n"
            return
        cut = piece.rfind(b"\n") + 1
        if not cut and len(rest) + len(piece) > LINE_MAX_BYTES:
            raise ConfigError(f"{stream.path}: a line of more than {LINE_MAX_BYTES} bytes: no text trace")
        if cut:
            yield rest + piece[:cut]
            rest = piece[cut:]
        else:
            rest += piece
