"""What a disk can do and what was set for it (Linux: struct queue_limits, block/blk-settings.c).

The properties of the device say what the hardware can; the attributes under ``queue/`` narrow that.  What the
request path asks for is worked out once for every change.
"""

from __future__ import annotations

from typing import Final

from uxk.limits import NS_PER_S, PAYLOAD_MAX_BYTES
from uxk.uapi.blk import BlockLimits, IoFlag

SECTOR_SHIFT: Final = 9
"""Sectors of 512 bytes, whatever the logical block: as everywhere in Linux's block layer."""
MAX_BYTES_CAP: Final = 1280 << 10
"""Longest request unless more is asked for (Linux: BLK_DEF_MAX_SECTORS_CAP, 2560 sectors)."""
SEGMENTS_MAX: Final = 128
"""Pieces of clients' requests that one request may join (Linux: BLK_MAX_SEGMENTS)."""
REQUESTS_MIN: Final = 4
"""Least ``nr_requests`` (Linux: BLKDEV_MIN_RQ)."""
REQUESTS_DEFAULT: Final = 128
"""Linux: BLKDEV_DEFAULT_RQ; a scheduler gets twice as many, or twice the driver's depth if that is less."""
REQUESTS_MAX: Final = 2048
"""Most ``nr_requests`` with a scheduler (Linux: MAX_SCHED_RQ, 16 times the default)."""
DEPTH_MAX: Final = 1 << 16
NS_PER_MS: Final = NS_PER_S // 1000
_FUA: Final = int(IoFlag.FUA)
_PREFLUSH: Final = int(IoFlag.PREFLUSH)


class QueueLimits:
    """Limits in force; :meth:`work_out` after every change of ``hardware`` or of a setting."""

    __slots__ = (
        "block_mask", "cache", "capacity_bytes", "discard_bytes", "discard_setting_bytes", "fua", "hardware",
        "inline_bytes", "io_timeout_ns", "iostats", "max_bytes", "max_setting_bytes", "no_zeroes", "nomerges",
        "plain", "read_only_setting", "rotational_setting", "writable",
        "write_cache_setting", "zeroes_bytes",
    )  # fmt: skip

    def __init__(self, hardware: BlockLimits, io_timeout_ns: int) -> None:
        self.hardware = hardware
        self.io_timeout_ns = io_timeout_ns
        self.iostats = True
        self.nomerges = 0
        """0: merge wherever possible, 1: only with the last request of a batch, 2: never."""
        self.max_setting_bytes = 0
        """As written to ``max_sectors_kb``; 0 for the default."""
        self.discard_setting_bytes: int | None = None
        self.write_cache_setting: bool | None = None
        self.rotational_setting: bool | None = None
        self.read_only_setting = False
        self.no_zeroes = False
        """The driver said that it cannot write zeroes after all (Linux: blk_queue_disable_write_zeroes)."""
        self.work_out()

    def work_out(self) -> None:
        """Computes what the request path looks at."""
        hardware, setting = self.hardware, self.discard_setting_bytes
        block = hardware.logical_block_bytes
        self.block_mask = block - 1
        self.capacity_bytes = hardware.capacity_bytes & ~self.block_mask
        wanted = self.max_setting_bytes or MAX_BYTES_CAP
        self.max_bytes = self._blocks(min(wanted, hardware.max_transfer_bytes))
        self.inline_bytes = min(self.max_bytes, PAYLOAD_MAX_BYTES)
        """Longest request whose data travel inside its entry."""
        discard = hardware.max_discard_bytes if setting is None else min(setting, hardware.max_discard_bytes)
        self.discard_bytes = discard & ~self.block_mask
        self.zeroes_bytes = 0 if self.no_zeroes else hardware.max_write_zeroes_bytes & ~self.block_mask
        self.cache = bool(hardware.write_cache) if self.write_cache_setting is None else self.write_cache_setting
        """Whether flushes are sent."""
        self.writable = not hardware.read_only and not self.read_only_setting
        self.fua = self.cache and bool(hardware.fua)
        slow_flags = _PREFLUSH if self.fua else _PREFLUSH | _FUA
        self.plain = (
            self.block_mask, self.capacity_bytes, self.inline_bytes, slow_flags, self.writable, self.nomerges < 2
        )  # fmt: skip
        """What a request must be for the short way (:func:`~uxk.subsystems.blk.port.plain_sums`): whole blocks, within
        the capacity, at most so long, without flags that the queue takes care of; a write only to what is writable;
        and whether neighbours would be merged."""

    def _blocks(self, size_bytes: int) -> int:
        return max(size_bytes & ~self.block_mask, self.block_mask + 1)

    @property
    def rotational(self) -> bool:
        """Whether it says it turns."""
        return bool(self.hardware.rotational) if self.rotational_setting is None else self.rotational_setting
