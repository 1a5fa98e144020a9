"""The choice of victims as an experiment: what the flash follows, and what that is worth.

The flash has one pool of free lines, so its parts cannot be compared.  A :class:`~uxk_nvme.medium.ftl.miniature.Pair`
of miniatures is, while somebody advises; on the flash itself the share of the mode decides how many of sixteen
choices follow the hint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from uxk_nvme.medium.ftl.device import FtlMedium
from uxk_nvme.medium.ftl.miniature import Miniature, Pair, Written
from uxk_nvme.medium.ftl.victims import Candidates, Selector
from uxk_nvme.medium.hint import GcHint, Unfit, decode_hint, selector_for

SHARES: Final = 16
"""Choices of which a share follows hints."""
EPOCHS_PER_CAPACITY: Final = 16
EPOCH_UNITS_MIN: Final = 64
ROWS_MAX: Final = 1024
"""Lines told of in an epoch: those with the most garbage."""
SLACK: Final = 8
"""Ours: a hinted line may hold a part in so many more valid units than the best; miniatures do not measure it."""
NO_END_NS: Final = 1 << 62
SCHEMA: Final = (
    ("line", "<u4"), ("generation", "<u4"), ("valid", "<u4"), ("units", "<u4"), ("erases", "<u4"), ("age", "<u8"),
    ("reads", "<u8"),
)  # fmt: skip
"""Columns of :meth:`Arms.rows`, as :class:`~uxk_nvme.medium.ftl.victims.Candidates`; ``units``: of a line."""


class Measured(NamedTuple):
    """What one epoch was like."""

    default_ppm: int
    """Write amplification: the default's miniature's, or the flash's while nobody advises; 0: nothing was written."""
    hinted_ppm: int
    """0: nothing was hinted."""
    weight: int
    """Units that the host programmed."""
    hinted_weight: int


class Arms:
    """Follows hints on one flash."""

    def __init__(self, medium: FtlMedium, random: np.random.SeedSequence) -> None:
        self._medium = medium
        self._flash, self._collector = medium.flash, medium.collector
        self._default = medium.collector.selector
        self._hinted: Selector = self._default
        self._random = random
        self._pair: Pair | None = None
        self._payload = b""
        self._share = self._turn = 0
        self.policy = ""
        """Followed now; empty: the default alone."""
        self.followed = 0
        """Victims that a hinted policy chose on the flash itself."""
        self.useless = 0
        """Choices of a hinted policy that fell on a line without garbage; the default chose instead."""
        self.offered = 0
        """Victims by name that hints brought, as far as they were in the share."""
        self._epoch_units = max(medium.geometry.units // EPOCHS_PER_CAPACITY, EPOCH_UNITS_MIN)
        self._before = self._count()
        self._due_units = self._flash.clock_units + self._epoch_units

    @property
    def due(self) -> bool:
        """Whether the host has programmed an epoch's worth of units."""
        return self._flash.clock_units >= self._due_units

    def _count(self) -> Written:
        return Written(self._flash.clock_units, self._flash.moved_units)

    # --- the end of an epoch ---

    def measure(self) -> Measured:
        """Ends the epoch."""
        before, self._before = self._before, self._count()
        self._due_units = self._flash.clock_units + self._epoch_units
        self._collector.hints.drop()
        real = Written(self._before.host - before.host, self._before.moved - before.moved)
        if self._pair is None:
            return Measured(real.wa_ppm, 0, real.host, 0)
        default, hinted = self._pair.default.written(), self._pair.hinted.written()
        followed = max(real.host * self._share // SHARES, 1) if hinted.wa_ppm and real.host else 0
        return Measured(default.wa_ppm, hinted.wa_ppm if followed else 0, real.host, followed)

    def rows(self) -> bytes:
        """The lines that may be collected, those with the fewest valid units first; :data:`SCHEMA`."""
        seen = self._collector.candidates()
        picks = sorted(range(len(seen.line)), key=seen.valid.__getitem__)[:ROWS_MAX]
        rows = np.empty(len(picks), np.dtype(list(SCHEMA)))
        for name, column in zip(Candidates._fields, seen[:6], strict=False):
            rows[name] = [column[i] for i in picks]
        rows["units"] = seen.line_units
        return rows.tobytes()

    # --- what is followed ---

    def follow(self, payload: bytes, share: int) -> str:
        """From now on so many of :data:`SHARES` choices follow the hint; an empty one, or none of them: the default.

        Returns why the hint cannot be followed, or ``""``; the default decides then.
        """
        if not payload or not share:
            self.stop()
            return ""
        fresh, self._share = payload != self._payload, share
        if fresh:
            try:
                self._begin(decode_hint(payload))
            except Unfit as exc:
                self.stop()
                return str(exc)
            self._payload = payload
        return ""

    def _begin(self, hint: GcHint) -> None:
        if any(not 0 <= line < self._medium.geometry.lines for line in hint.victims) or hint.max_valid_units < 0:
            raise Unfit("out_of_range")
        selector = selector_for(hint.policy, hint.args) if hint.policy else None
        if self._pair is None:
            self._pair = Pair(self._medium.params, self._flash, self._random)
            self._flash.listener = self._pair
        self._pair.hinted.follow(selector and _checked(selector, self._pair.hinted.default, lambda: None))
        self.policy = " ".join([hint.policy, *map(str, hint.args)]) if hint.policy else "victims"
        self._hinted = _checked(selector, self._default, self._refuse) if selector else self._default
        self._medium.set_selector(self._choose if selector else self._default)
        self._offer(hint)

    def _offer(self, hint: GcHint) -> None:
        """Lines by name, as many as the share allows; none much worse than what the default would take."""
        valid = self._flash.valid
        least = min((valid[line] for line in self._flash.closed), default=0)
        bound = max(least + self._medium.geometry.line_units // SLACK, 1)
        lines = hint.victims[: -(-len(hint.victims) * self._share // SHARES)]
        self.offered += self._medium.offer_victims(
            lines, hint.generations[: len(lines)] or None, max_valid=min(hint.max_valid_units or bound, bound),
            expires_ns=NO_END_NS,
        )  # fmt: skip

    def stop(self) -> None:
        """The default decides everywhere; nothing is measured any more."""
        self._pair = self._flash.listener = None
        self._payload, self._share, self.policy = b"", 0, ""
        self._collector.hints.drop()
        self._medium.set_selector(self._default)

    def _choose(self, seen: Candidates, draw: Callable[[], int]) -> int:
        self._turn += 1
        if self._turn * self._share % SHARES >= self._share:
            return self._default(seen, draw)
        self.followed += 1
        return self._hinted(seen, draw)

    def _refuse(self) -> None:
        self.followed -= 1
        self.useless += 1

    @property
    def miniatures(self) -> tuple[Miniature, Miniature] | None:
        """The default's and the follower's, while there are any."""
        return None if self._pair is None else (self._pair.default, self._pair.hinted)


def _checked(selector: Selector, default: Selector, refused: Callable[[], None]) -> Selector:
    """The rule as long as it chooses lines that are worth collecting; else the default's choice, at once."""

    def choose(seen: Candidates, draw: Callable[[], int]) -> int:
        index = selector(seen, draw)
        if seen.valid[index] < seen.line_units:
            return index
        refused()
        return default(seen, draw)

    return choose
