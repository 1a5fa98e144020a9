"""The reference engine: one volume in plain Python integers, the specification of the batch kernel.

The GC rule is frozen (it is part of every published figure): after each user block, while invalid
blocks of sealed segments exceed ``gp_ppm`` of all blocks not yet reclaimed, ONE victim is cleaned.
An open segment's garbage counts from its sealing; the old copy dies before the new one is placed;
a victim must have its share of garbage itself.

Engines with rules of their own call :meth:`Volume.write` with ``gc=False`` and :meth:`Volume.collect`.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable, Iterable
from itertools import compress
from typing import Any, Final, Protocol

from uxk.errors import KernelBug, ParamError, UsageError
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policies.base import Policy, hook

OPEN: Final = 1 << 40
"""Added to ``live`` of every segment that is not sealed: ``min()`` then finds the emptiest sealed one."""
MILLION: Final = 1_000_000


class VolumeFull(UsageError):
    """No clean segment is left for what was asked; it was not done at all."""

    default_errno = errno.ENOSPC


class Trace(Protocol):
    """Who wants to see every step, in program order; see :class:`Volume`."""

    def opened(self, segment: int, log: int) -> None:
        """A clean segment became the head of ``log``."""

    def written(self, page: int, block: int, old: int) -> None:
        """A user write went to ``block``; the copy in ``old`` is garbage (-1: the page is new)."""

    def moved(self, page: int, block: int, old: int) -> None:
        """A valid block was copied from ``old`` to ``block``."""

    def sealed(self, segment: int) -> None:
        """The segment is full."""

    def cleaned(self, segment: int) -> None:
        """The segment holds nothing any more and is clean."""


class Volume:
    """Mapping, segments and logs of one volume under one policy.

    Lists by page: ``block_of`` (-1: never written), ``last`` (user clock of the last user write or -1).
    By block: ``owner`` (the page appended there last) and ``is_valid`` (0 or 1).  By segment: ``live`` (valid
    blocks, plus ``OPEN`` while not sealed), ``used``, ``log_of`` (-1: clean), ``sealed_at`` (-1: not sealed)
    and ``born`` (user clocks).  ``heads`` has the open segment of each log (-1: none), and ``clean`` is the
    stack of clean segments.  All are read-only for policies.
    """

    def __init__(self, geometry: Geometry, policy: Policy, trace: Trace | None = None) -> None:
        self.geometry = geometry
        self.policy = policy
        self.trace = trace
        self.pages, self.size, self.logs = geometry.pages, geometry.segment_blocks, geometry.logs
        self.gp_ppm, self.most = geometry.gp_ppm, geometry.most_valid_blocks
        count = self.segments = geometry.segment_count
        # Arrays, not lists, where there is one number per page or block: cache misses are half the time.
        self.block_of = array("q", [-1]) * self.pages
        self.last = array("q", [-1]) * self.pages
        self.owner = array("q", [-1]) * (count * self.size)
        self.is_valid = bytearray(count * self.size)
        self.live = [OPEN] * count
        self.used = [0] * count
        self.log_of = [-1] * count
        self.sealed_at = [-1] * count
        self.born = [0] * count
        self.heads = [-1] * self.logs
        self.clean = list(range(count - 1, -1, -1))
        self.now = self.moved = self.garbage = self.total = self.cleaned = self.valid = self.stuck = 0
        self.low = count
        self._bind()
        if self.logs < policy.placement.logs_needed:
            raise ParamError(f"{policy.name}: lfs.logs = {self.logs}, expected at least {policy.placement.logs_needed}")
        parts = (policy.placement, policy.selection, policy.background)
        for part in dict.fromkeys(parts):
            if part is not None:
                part.attach(self)

    def _bind(self) -> None:
        placement = self.policy.placement
        self._invalidated = self._hooks("invalidated")
        self._appended = self._hooks("appended")
        self._sealed = self._hooks("sealed")
        self._retired = self._hooks("retired")
        self._plain = (
            placement.user_log is not None
            and placement.moved_log is not None
            and self._invalidated is self._appended is self._sealed is None
        )

    def _hooks(self, name: str) -> Callable[..., None] | None:
        """One call for the hooks of that name of all parts; None if there is none."""
        parts = dict.fromkeys((self.policy.placement, self.policy.selection, self.policy.background))
        hooks = [found for part in parts if part is not None and (found := hook(part, name)) is not None]
        if len(hooks) < 2:
            return hooks[0] if hooks else None

        def call(*arguments: Any) -> None:
            for each in hooks:
                each(*arguments)

        return call

    # --- what one asks ---------------------------------------------------------------------------

    @property
    def wa_ppm(self) -> int:
        """Write amplification, (user + moved) / user blocks, in ppm; 0 before the first write."""
        return (self.now + self.moved) * MILLION // self.now if self.now else 0

    @property
    def triggered(self) -> bool:
        """Whether the frozen rule wants a victim now."""
        return self.garbage * MILLION > self.gp_ppm * self.total

    def valid_blocks(self, segment: int) -> int:
        """Valid blocks of any segment, sealed or not."""
        return self.live[segment] & (OPEN - 1)

    def select(self) -> int:
        """The policy's victim, or -1 if no sealed segment has garbage enough."""
        return self.policy.selection.victim(self)

    # --- what one does ---------------------------------------------------------------------------

    def write(self, page: int, gc: bool = True) -> int:
        """Writes one page and returns the block it went to; then cleans by the frozen rule unless ``gc`` is false.

        Raises :class:`ParamError` for a page outside the volume, :class:`VolumeFull` if no segment is clean, and what
        :meth:`collect` raises, after the write was done.
        """
        if not 0 <= page < self.pages:
            raise ParamError(f"page {page}: the volume has pages 0 to {self.pages - 1}")
        if not self.clean:
            raise VolumeFull(f"page {page}: no clean segment left of {self.segments}")
        self.now += 1
        old = self.block_of[page]
        if old >= 0:
            self.is_valid[old] = 0
            segment = old // self.size
            self.live[segment] -= 1
            if self.live[segment] < OPEN:
                self.garbage += 1
            if self._invalidated is not None:
                self._invalidated(self, page, segment)
        else:
            self.valid += 1
        log = self.policy.placement.user(self, page)
        self.last[page] = self.now
        block = self._append(page, log, -1)
        self.total += 1
        if self.trace is not None:
            self.trace.written(page, block, old)
        if self.used[block // self.size] == self.size:
            self._seal(block // self.size)
        if gc:
            while self.garbage * MILLION > self.gp_ppm * self.total:
                victim = self.select()
                if victim < 0:
                    self.stuck += 1
                    break
                self.collect(victim)
        return block

    def collect(self, victim: int) -> int:
        """Moves what is valid in a sealed segment, makes it clean, and returns how many blocks were moved.

        Raises :class:`ParamError` if it is not sealed and :class:`VolumeFull` if its blocks might not fit.
        """
        if not (0 <= victim < self.segments and self.sealed_at[victim] >= 0):
            raise ParamError(f"segment {victim}: only sealed segments are cleaned")
        live = self.live[victim]
        placement, size, trace = self.policy.placement, self.size, self.trace
        if len(self.clean) < min(live, 1 if placement.moved_log is not None else self.logs):
            raise VolumeFull(f"segment {victim}: {len(self.clean)} clean segments for its {live} valid blocks")
        if self._retired is not None:
            self._retired(self, victim)
        if self._plain and trace is None:
            self._move_all(victim, placement.moved_log or 0)
        else:
            is_valid = self.is_valid
            start = victim * size
            for old, page in enumerate(self.owner[start : start + size], start):
                if is_valid[old]:
                    block = self._append(page, placement.moved(self, page, victim), victim)
                    if trace is not None:
                        trace.moved(page, block, old)
                    if self.used[block // size] == size:
                        self._seal(block // size)
        self.moved += live
        self.total -= size - live
        self.garbage -= size - live
        self._make_clean(victim)
        return live

    def run(self, pages: Iterable[int]) -> None:
        """Writes all the pages under the frozen rule: the same as :meth:`write` for each, sooner.

        Takes any iterable, numpy arrays included.  Raises as :meth:`write`; a page outside the volume is
        reported before the first write.
        """
        tolist = getattr(pages, "tolist", None)
        todo = array("q", pages if tolist is None else tolist())
        if todo and not 0 <= min(todo) <= max(todo) < self.pages:
            bad = min(todo) if min(todo) < 0 else max(todo)
            raise ParamError(f"page {bad}: the volume has pages 0 to {self.pages - 1}")
        if self._plain and self.trace is None:
            self._run_plain(todo)
        else:
            write = self.write
            for page in todo:
                write(page)

    # --- steps -----------------------------------------------------------------------------------

    def _open(self, log: int) -> int:
        """Takes a clean segment as the head of ``log``."""
        if not 0 <= log < self.logs:
            raise KernelBug(f"{self.policy.name}: log {log}, expected 0 to {self.logs - 1}")
        segment = self.clean.pop()
        self.low = min(self.low, len(self.clean))
        self.heads[log] = segment
        self.log_of[segment] = log
        self.born[segment] = self.now
        if self.trace is not None:
            self.trace.opened(segment, log)
        return segment

    def _append(self, page: int, log: int, victim: int) -> int:
        """Puts a page at the head of a log and returns the block; the caller seals what is full."""
        segment = self.heads[log] if 0 <= log < self.logs else -1
        if segment < 0:
            segment = self._open(log)
        used = self.used[segment]
        block = segment * self.size + used
        self.owner[block] = page
        self.is_valid[block] = 1
        self.block_of[page] = block
        self.used[segment] = used + 1
        self.live[segment] += 1
        if self._appended is not None:
            self._appended(self, page, segment, victim)
        return block

    def _seal(self, segment: int) -> None:
        """Closes a full segment: its garbage counts from now on."""
        live = self.live[segment] = self.live[segment] - OPEN
        self.sealed_at[segment] = self.now
        self.garbage += self.size - live
        self.heads[self.log_of[segment]] = -1
        if self.trace is not None:
            self.trace.sealed(segment)
        if self._sealed is not None:
            self._sealed(self, segment)

    def _make_clean(self, segment: int) -> None:
        start = segment * self.size
        self.is_valid[start : start + self.size] = bytes(self.size)
        self.live[segment] = OPEN
        self.used[segment] = 0
        self.log_of[segment] = -1
        self.sealed_at[segment] = -1
        self.clean.append(segment)
        self.cleaned += 1
        if self.trace is not None:
            self.trace.cleaned(segment)

    # --- the same in slices, for placements with one log for users and one for moves ---------------

    def _move_all(self, victim: int, log: int) -> None:
        """Moves the victim's valid blocks to one log."""
        block_of, owner, is_valid, size = self.block_of, self.owner, self.is_valid, self.size
        start = victim * size
        pages = array("q", compress(owner[start : start + size], is_valid[start : start + size]))
        done = 0
        while done < len(pages):
            segment = self.heads[log]
            if segment < 0:
                segment = self._open(log)
            used = self.used[segment]
            part = pages[done : done + size - used]
            block = segment * size + used
            owner[block : block + len(part)] = part
            is_valid[block : block + len(part)] = b"\1" * len(part)
            for place, page in enumerate(part, block):
                block_of[page] = place
            self.used[segment] = used + len(part)
            self.live[segment] += len(part)
            done += len(part)
            if used + len(part) == size:
                self._seal(segment)

    def _run_plain(self, todo: array[int]) -> None:
        """Writes in stretches within which the head cannot fill and the trigger cannot hold."""
        block_of, last, live, owner, size = self.block_of, self.last, self.live, self.owner, self.size
        is_valid = self.is_valid
        gp_ppm, log = self.gp_ppm, self.policy.placement.user_log or 0
        done, end = 0, len(todo)
        while done < end:
            if not self.clean:
                raise VolumeFull(f"page {todo[done]}: no clean segment left of {self.segments}")
            segment = self.heads[log]
            if segment < 0:
                self.now += 1  # it is born with its first block
                segment = self._open(log)
                self.now -= 1
            used = self.used[segment]
            # Each write adds gp_ppm to the slack and takes at most a million: this many are safe, and one more.
            safe = (gp_ppm * self.total - self.garbage * MILLION) // (MILLION - gp_ppm) + 1
            # Without a clean segment only the write that took the last one is allowed.
            part = todo[done : done + max(1, min(size - used, safe) if self.clean else 1)]
            block = segment * size + used
            owner[block : block + len(part)] = part
            is_valid[block : block + len(part)] = b"\1" * len(part)
            live[segment] += len(part)  # first: a page may come twice
            since = self.now + 1 - block
            garbage = fresh = 0
            for place, page in enumerate(part, block):
                old = block_of[page]
                block_of[page] = place
                last[page] = place + since
                if old >= 0:
                    is_valid[old] = 0
                    old //= size
                    left = live[old] = live[old] - 1
                    if left < OPEN:
                        garbage += 1
                else:
                    fresh += 1
            done += len(part)
            self.now += len(part)
            self.total += len(part)
            self.valid += fresh
            self.garbage += garbage
            self.used[segment] = used + len(part)
            if used + len(part) == size:
                self._seal(segment)
            while self.garbage * MILLION > gp_ppm * self.total:
                victim = self.select()
                if victim < 0:
                    self.stuck += 1
                    break
                self.collect(victim)

    # --- invariants ------------------------------------------------------------------------------

    def check(self) -> None:
        """Counts everything anew; raises :class:`KernelBug` at the first number that does not add up."""
        counts = [0] * self.segments
        for page, block in enumerate(self.block_of):
            if block >= 0:
                _same("valid bit", block, self.is_valid[block], 1)
                _same("owner", block, self.owner[block], page)
                _same("block below the fill", block, block % self.size < self.used[block // self.size], True)
                counts[block // self.size] += 1
        clean = set(self.clean)
        _same("clean segments", 0, len(clean), len(self.clean))
        sealed = [at >= 0 for at in self.sealed_at]
        for segment, count in enumerate(counts):
            head = self.heads[self.log_of[segment]] == segment if self.log_of[segment] >= 0 else False
            _same("one state of segment", segment, (segment in clean) + head + sealed[segment], 1)
            _same("valid blocks of segment", segment, self.live[segment], count if sealed[segment] else count + OPEN)
            _same("full if sealed, segment", segment, self.used[segment] == self.size, sealed[segment])
            _same("empty if clean, segment", segment, self.used[segment] == 0, segment in clean)
        _same("valid pages", 0, self.valid, sum(counts))
        _same("valid bits", 0, self.valid, sum(self.is_valid))
        _same("total", 0, self.total, sum(self.used))
        _same("garbage", 0, self.garbage, sum(self.size - n for n, s in zip(counts, sealed, strict=True) if s))
        _same("lists of the clean", 0, self.low <= len(self.clean), True)


def _same(what: str, where: int, found: object, expected: object) -> None:
    if found != expected:
        raise KernelBug(f"lfs: {what} {where}: found {found!r}, expected {expected!r}")
