"""What a volume has to say at the end: integers, texts and lists, ready for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast import pools
from uxk.subsystems.lfs.miniature import Count
from uxk.uapi.ml import Mode

if TYPE_CHECKING:
    from uxk.subsystems.lfs.subsystem import Lfs


class Epoch(NamedTuple):
    """What happened in one epoch."""

    mode: Mode
    share_ppm: int
    """Extents that followed hints."""
    written: Count
    """The volume's own blocks."""
    default: Count
    """What the default's miniature wrote."""
    hinted: Count
    """What the miniature that follows hints wrote."""
    policy: str
    """What hints had put in force; empty for the default."""
    args: tuple[int, ...]


def second_half(epochs: list[Epoch], fill: int) -> Count:
    """Blocks of the epochs after the fill and half of the writes."""
    writes = sum(epoch.written.user for epoch in epochs)
    begin, done, user, moved = fill + (writes - fill) // 2, 0, 0, 0
    for epoch in epochs:
        if done >= begin:
            user, moved = user + epoch.written.user, moved + epoch.written.moved
        done += epoch.written.user
    return Count(user, moved)


def figures(lfs: Lfs) -> dict[str, Any]:
    """``wa_ppm`` and ``wa_second_half_ppm`` are (user + moved) / user blocks in millionths.

    ``segments`` counts sealed segments by tenths of valid blocks, ``epochs`` is the whole history, ``model`` what the
    proxy counted.
    """
    reg, seg = lfs.volume.reg, lfs.volume.seg
    whole, half = Count(int(reg[c.NOW]), int(reg[c.MOVED])), second_half(lfs.epochs, lfs.fill)
    sealed = seg[seg[:, c.SEALED] >= 0]
    tenths = (sealed[:, c.LIVE] * 10 // int(reg[c.SIZE])).tolist()
    return {
        "pages": lfs.pages, "fill": lfs.fill, "user_blocks": whole.user, "moved_blocks": whole.moved,
        "wa_ppm": whole.wa_ppm, "wa_second_half_ppm": half.wa_ppm, "clean_segments": int(reg[c.CLEAN]),
        "clean_segments_min": int(reg[c.LOW]), "cleaned_segments": int(reg[c.CLEANED]), "stuck": int(reg[c.STUCK]),
        "default": lfs.default.name, "sample_ratio": lfs.sample.ratio, "epoch_blocks": lfs.epoch_blocks,
        "victims": pools.hint_fates(lfs.volume),
        "segments": [tenths.count(tenth) for tenth in range(11)],
        "model": lfs.proxy.report(),
        "epochs": [
            {
                "mode": epoch.mode.name.lower(), "share_ppm": epoch.share_ppm, "user": epoch.written.user,
                "moved": epoch.written.moved, "default_wa_ppm": epoch.default.wa_ppm,
                "hinted_wa_ppm": epoch.hinted.wa_ppm, "policy": epoch.policy, "args": list(epoch.args),
            }
            for epoch in lfs.epochs
        ],
        "following_ppm": sum(e.share_ppm * e.written.user for e in lfs.epochs) // max(whole.user, 1),
    }  # fmt: skip
