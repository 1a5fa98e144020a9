"""What one does to a volume's two pools between runs: shares, adoption, hinted victims, counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from uxk.errors import ParamError
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.rare import rebuild
from uxk.subsystems.lfs.fast.volume import Volume, registers

REASONS: Final = {
    "not_sealed": c.HINT_NOT_SEALED, "too_full": c.HINT_TOO_FULL, "costly": c.HINT_COSTLY, "range": c.HINT_RANGE,
}  # fmt: skip
"""Why hinted victims were refused, and the registers that count it."""


class PoolCount(NamedTuple):
    """A pool's figures since the beginning."""

    user: int
    moved: int
    garbage: int
    total: int
    cleaned: int


def share(volume: Volume, buckets: int, *, warm: bool = False) -> None:
    """Gives the second pool the pages of the first ``buckets`` of 1,024; they change over as they are written.

    Its placement learns from all pages if it has some; or if ``warm``, so that it knows them when it gets them.
    """
    _two(volume)
    if not 0 <= buckets <= c.BUCKETS:
        raise ParamError(f"share {buckets}: expected 0 to {c.BUCKETS} buckets")
    volume.reg[c.SHARE], volume.reg[c.WARM] = buckets, int(warm)


def adopt(volume: Volume, pool: int) -> None:
    """Makes all segments ``pool``'s; the other pool's open ones are sealed as they are.  Shares stay.

    Their blocks came from logs of another placement, unless both have the same one; they go on as ``FOREIGN``.
    """
    _two(volume)
    new, old = registers(volume, pool), registers(volume, 1 - pool)
    seg = volume.seg
    for log in range(16):
        segment = old[c.HEAD + log]
        if segment >= 0:
            seg[segment, c.SEALED] = volume.reg[c.NOW]
            garbage = seg[segment, c.USED] - seg[segment, c.LIVE]
            old[c.GARBAGE] += garbage
            volume.reg[c.GARBAGE] += garbage
    old[c.HEAD : c.HEAD + 16] = -1
    theirs = (seg[:, c.POOL] != pool) & (seg[:, c.USED] > 0)
    seg[theirs, c.POOL] = pool
    if old[c.BASIS] != new[c.BASIS]:
        seg[theirs, c.CLASS] = c.FOREIGN
    for register in (c.GARBAGE, c.TOTAL):
        new[register] += old[register]
        old[register] = 0
    rebuild(new, volume.page, seg, volume.owner, int(new[c.PAGES]) * pool)


def hint_victims(volume: Volume, segments: Sequence[int], max_valid_blocks: int = 0) -> None:
    """Queues segments to be cleaned next in the second pool; what was left of an earlier hint is dropped.

    Each is checked when its turn comes.  ``max_valid_blocks`` bounds one operation; 0: the frozen rule's bound.
    """
    _two(volume)
    if len(segments) > c.QUEUE_MAX:
        raise ParamError(f"{len(segments)} victims: expected at most {c.QUEUE_MAX}")
    reg = volume.reg
    queue = reg[c.QUEUE : c.QUEUE + 2 * len(segments)].reshape(-1, 2)
    queue[:, 0] = segments
    queue[:, 1] = max_valid_blocks or reg[c.MOST]
    reg[c.HINT_NEXT], reg[c.HINT_COUNT] = 0, len(segments)


def hint_fates(volume: Volume) -> dict[str, int]:
    """Hinted victims so far: ``used``, ``waiting``, and refused by reason."""
    reg = volume.reg
    fates = {"used": int(reg[c.HINT_USED]), "waiting": int(reg[c.HINT_COUNT] - reg[c.HINT_NEXT])}
    return fates | {name: int(reg[register]) for name, register in REASONS.items()}


def count(volume: Volume, pool: int) -> PoolCount:
    """A pool's figures."""
    reg = registers(volume, pool)
    return PoolCount(*(int(reg[register]) for register in (c.USER, c.MOVED, c.GARBAGE, c.TOTAL, c.CLEANED)))


def _two(volume: Volume) -> None:
    if volume.reg[c.POOLS] != 2:
        raise ParamError("the volume has one pool: expected two (make_volume(..., pools=2))")
