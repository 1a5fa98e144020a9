"""Binary formats: HP's SRT as DiskSim reads it, and page numbers as NumPy stores them."""

from __future__ import annotations

from typing import Any, BinaryIO, Final, cast

import numpy as np
import numpy.typing as npt

from uxk.errors import ConfigError
from uxk.scenario.trace.collect import Collector
from uxk.scenario.trace.files import BLOCK_BYTES, Bytes
from uxk.scenario.trace.model import I64_MAX, REQUEST_MAX_BYTES, REQUESTS_MAX, SECTOR_BYTES, Ints, TraceOp, check_extent

SRT_MAGIC: Final = b"$$TR_IOREC-"
NPY_MAGIC: Final = b"\x93NUMPY"
_HEADER_MAX_BYTES: Final = 1 << 16
_END_OF_HEADER: Final = b"\x0c"
_SIZE: Final = 0
_TYPE: Final = 1
_SECONDS: Final = 2
_MICROSECONDS: Final = 3
_LENGTH: Final = 6
_SECTOR: Final = 7
_DEVICE: Final = 8
_FLAGS: Final = 11
_SHORT_IO: Final = 1
"""Low half of a record's type; 2 are suspect records, which DiskSim leaves out."""
_READ_FLAG: Final = 1
_RECORD_BYTES: Final = (52, 56, 60)
"""Versions 1 to 3, version 4 with the length of the queue, and suspect ones with flags."""


def read_srt(stream: Bytes, collector: Collector, guess: str) -> None:
    """Records of big-endian 32-bit integers after a header of text that a form feed ends (DiskSim 4.0, iotrace.c).

    The device is the disk's number (bits 8 to 15, as DiskSim has it).  DiskSim counts sectors of 512 bytes, whatever
    the header says the disk's own are.
    """
    head = stream.read(_HEADER_MAX_BYTES)
    end = head.find(_END_OF_HEADER)
    if not head:
        return
    if not head.startswith(SRT_MAGIC) or end < 0:
        raise ConfigError(f"{stream.path}: no SRT header ({SRT_MAGIC.decode()}... up to a form feed){guess}")
    rest = head[end + 1 :]
    while not collector.full:
        piece = stream.read(BLOCK_BYTES)
        rest += piece
        rest = _records(collector, rest)
        collector.check(guess)
        if not piece:
            break
    if rest and not collector.full:
        collector.lines += 1
        collector.complaints.add(collector.lines, f"{len(rest)} bytes at the end: no whole record")


def _records(collector: Collector, data: bytes) -> bytes:
    """Takes whole records and returns what is left; records of one length are taken together."""
    at = 0
    while len(data) - at >= 4:
        size = int.from_bytes(data[at : at + 4], "big")
        if size not in _RECORD_BYTES:
            line = collector.lines + 1
            raise ConfigError(
                f"{collector.name}: record {line} is {size} bytes long: expected {', '.join(map(str, _RECORD_BYTES))}"
            )
        whole = (len(data) - at) // size
        if not whole:
            break
        table = np.frombuffer(data, ">i4", whole * (size // 4), at).reshape(whole, size // 4)
        other = np.flatnonzero(table[:, _SIZE] != size)
        alike = int(other[0]) if len(other) else whole
        _take(collector, table[:alike].astype(np.int64))
        at += alike * size
    return data[at:]


def _take(collector: Collector, table: Ints) -> None:
    line = collector.lines + 1 + np.arange(len(table))
    collector.lines += len(table)
    kind, version = table[:, _TYPE] & 0xFFFF, table[:, _TYPE] >> 16
    suspect = kind == _SHORT_IO + 1
    collector.skipped += int(suspect.sum())
    unknown = ((kind != _SHORT_IO) & ~suspect) | (version < 1) | (version > 4)
    sector, length = table[:, _SECTOR], table[:, _LENGTH]
    seconds, us = table[:, _SECONDS], table[:, _MICROSECONDS]
    bad = unknown | (~suspect & ((sector < 0) | (length < 0) | (length > REQUEST_MAX_BYTES) | (seconds < 0) | (us < 0)))
    for i in np.flatnonzero(bad):
        what = f"type {table[i, _TYPE]:#x}: expected 0x10001 to 0x40002" if unknown[i] else (
            f"sector {sector[i]}, {length[i]} bytes, {seconds[i]} s, {us[i]} us: expected 0 or more, "
            f"at most {REQUEST_MAX_BYTES} bytes"
        )  # fmt: skip
        collector.complaints.add(int(line[i]), what)
    keep = ~bad & ~suspect
    disk = (table[:, _DEVICE] >> 8) & 0xFF
    device = np.zeros(len(table), np.int64)
    for number in np.unique(disk[keep]):
        device[disk == number] = collector.index(str(int(number)).encode())
    op = np.where(table[:, _FLAGS] & _READ_FLAG, int(TraceOp.READ), int(TraceOp.WRITE))
    time = seconds * 1_000_000 + us
    columns = (line, time, op, sector * SECTOR_BYTES, length, device)
    collector.add(*(column[keep] for column in columns))


def read_pages(stream: Bytes, collector: Collector, guess: str, page_bytes: int, limit: int | None) -> None:
    """Page numbers in a ``.npy`` file: each is a write of one page, all at time 0."""
    check_extent(TraceOp.WRITE, 0, page_bytes)
    shape, dtype = _npy_header(stream, guess)
    count = shape[0]
    if count > REQUESTS_MAX and limit is None:
        raise ConfigError(f"{stream.path}: {count} page numbers, more than {REQUESTS_MAX}: pass a limit")
    count = min(count, limit) if limit is not None else count
    device = collector.index(b"0")
    while count > 0:
        wanted = min(count, BLOCK_BYTES // dtype.itemsize)
        data = stream.read(wanted * dtype.itemsize)
        if len(data) < wanted * dtype.itemsize:
            raise ConfigError(f"{stream.path}: ends {count - len(data) // dtype.itemsize} page numbers early")
        raw = np.frombuffer(data, dtype)
        line = collector.lines + 1 + np.arange(wanted)
        collector.lines += wanted
        last = (I64_MAX - page_bytes) // page_bytes
        bad = (raw < 0) | (raw > last)
        for i in np.flatnonzero(bad):
            collector.complaints.add(int(line[i]), f"page number {raw[i]}: expected 0 to {last}")
        page = raw[~bad].astype(np.int64)
        zero = np.zeros(len(page), np.int64)
        collector.add(line[~bad], zero, zero + TraceOp.WRITE, page * page_bytes, zero + page_bytes, zero + device)
        collector.check(guess)
        count -= wanted


def _npy_header(stream: Bytes, guess: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type, nothing executed (numpy.lib.format: the header is a literal, objects would need pickle)."""
    form, source = np.lib.format, cast(BinaryIO, stream)
    try:
        version = form.read_magic(source)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"version {version}")
        read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, _, dtype = read(source)
    except ValueError as exc:
        raise ConfigError(f"{stream.path}: no .npy file: {exc}{guess}") from None
    if len(shape) != 1 or shape[0] < 0:
        raise ConfigError(f"{stream.path}: shape {shape}: expected one dimension of page numbers")
    if dtype.kind not in "iu":
        raise ConfigError(f"{stream.path}: numbers of type {dtype}: expected whole numbers")
    numbers: npt.DTypeLike = dtype
    return shape, np.dtype(numbers)
