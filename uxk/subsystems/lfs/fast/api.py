"""A volume by names: the batch kernel for people, and for agents' miniatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from uxk.errors import ParamError, UsageError
from uxk.limits import PPM
from uxk.subsystems.lfs import codes as c
from uxk.subsystems.lfs.fast.kernel import run
from uxk.subsystems.lfs.fast.volume import Volume, make_volume, set_policy
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policy import parse_policy

PRESETS: Final = {
    "f2fs": (c.F2FS, c.GREEDY),
    "f2fs-atgc": (c.F2FS, c.ATGC),
    "nilfs2": (c.NOSEP, c.TIMESTAMP),
}


class FastVolume:
    """One volume under one policy by name, e.g. ``"sepbit/cb-age"`` or ``"nilfs2"``.

    ``aux`` is each write's next one for ``fk`` and ``fkg6``, or each page's class for ``table``.
    """

    def __init__(
        self, geometry: Geometry, policy: str, args: Sequence[int] = (), aux: npt.ArrayLike | None = None
    ) -> None:
        self.geometry = geometry
        more = None if aux is None else np.ascontiguousarray(aux, np.int64)
        self.volume: Volume = make_volume(
            geometry.pages, geometry.segment_blocks, geometry.gp_ppm, geometry.logs, more, geometry.segments
        )
        self.follow(policy, args)

    def follow(self, policy: str, args: Sequence[int] = ()) -> None:
        """Puts another policy in force from the next write on; :class:`ConfigError` for an unknown name."""
        if policy in PRESETS:
            set_policy(self.volume, *PRESETS[policy], args)
        else:
            set_policy(self.volume, *parse_policy(policy, args).codes)
        self.policy = policy

    def run(self, pages: npt.ArrayLike) -> None:
        """Writes pages under the frozen rule.

        Raises :class:`ParamError` for a page outside the volume, before the first write, and :class:`UsageError`
        when clean segments run out.
        """
        ops = np.ascontiguousarray(pages, np.int32)
        if len(ops) and not 0 <= ops.min() <= ops.max() < self.geometry.pages:
            bad = ops.min() if ops.min() < 0 else ops.max()
            raise ParamError(f"page {bad}: the volume has pages 0 to {self.geometry.pages - 1}")
        done = run(*self.volume, ops, 0, len(ops))
        if self.volume.reg[c.FULL]:
            clean, count = self.volume.reg[c.CLEAN], self.volume.reg[c.SEGMENTS]
            raise UsageError(f"write {done} of {len(ops)}: {clean} clean segments of {count} are too few to go on")

    @property
    def wa_ppm(self) -> int:
        """Write amplification, (user + moved) / user blocks, in ppm; 0 before the first write."""
        reg = self.volume.reg
        return int((reg[c.NOW] + reg[c.MOVED]) * PPM // reg[c.NOW]) if reg[c.NOW] else 0

    def statistics(self) -> dict[str, int]:
        """Counts since the beginning, by name."""
        names = {
            "user": c.NOW, "moved": c.MOVED, "garbage": c.GARBAGE, "total": c.TOTAL, "clean": c.CLEAN,
            "cleaned": c.CLEANED, "valid": c.VALID, "stuck": c.STUCK, "clean_min": c.LOW,
        }  # fmt: skip
        return {name: int(self.volume.reg[register]) for name, register in names.items()}
