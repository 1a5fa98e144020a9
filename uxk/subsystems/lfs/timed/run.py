"""One timed run of a policy over given writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from uxk.errors import ParamError
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policies.base import Policy
from uxk.subsystems.lfs.timed.cleaner import Choose
from uxk.subsystems.lfs.timed.clock import Clock
from uxk.subsystems.lfs.timed.config import TimedConfig
from uxk.subsystems.lfs.timed.device import DeviceSpec
from uxk.subsystems.lfs.timed.engine import TimedVolume
from uxk.subsystems.lfs.timed.volume import StepVolume


def _numbers(values: Iterable[int]) -> Iterator[int]:
    """Plain integers of any iterable, numpy arrays included."""
    tolist = getattr(values, "tolist", None)
    return iter(values if tolist is None else tolist())


class Feeder:
    """Sends writes into a volume: at given times (open loop), or ``depth`` at a time (closed loop)."""

    def __init__(
        self, volume: TimedVolume, clock: Clock, pages: Iterable[int], arrivals_ns: Iterable[int] | None, depth: int
    ) -> None:
        self._volume, self._clock = volume, clock
        self._pages = _numbers(pages)
        self._arrivals = None if arrivals_ns is None else _numbers(arrivals_ns)
        self._depth = depth
        self._credit = 0
        self._sending = False

    def start(self) -> None:
        """Begins at the clock's present instant."""
        if self._arrivals is not None:
            self._schedule()
        else:
            self._credit = self._depth
            self._send()

    def _schedule(self) -> None:
        page = next(self._pages, None)
        if page is None or self._arrivals is None:
            return
        due_ns = next(self._arrivals, None)
        if due_ns is None:
            raise ParamError(f"arrivals_ns: fewer times than pages, {self._volume.writes}")
        self._clock.call_later(max(due_ns - self._clock.now_ns, 0), self._arrive, page)

    def _arrive(self, page: int) -> None:
        self._volume.submit(page)
        self._schedule()

    def _answered(self, _: int) -> None:
        self._credit += 1
        self._send()

    def _send(self) -> None:
        # An answer may come while one is being sent (ENOSPC): a loop, where a recursion would know no bound.
        if self._sending:
            return
        self._sending = True
        while self._credit and (page := next(self._pages, None)) is not None:
            self._credit -= 1
            self._volume.submit(page, self._answered)
        self._sending = False


def run_timed(
    geometry: Geometry,
    policy: Policy,
    pages: Iterable[int],
    arrivals_ns: Iterable[int] | None = None,
    *,
    depth: int = 1,
    fill: Iterable[int] = (),
    config: TimedConfig | None = None,
    device: DeviceSpec | None = None,
    choose: Choose | None = None,
) -> dict[str, Any]:
    """Writes ``pages`` and returns :meth:`TimedVolume.results`.

    ``arrivals_ns``, one for each page and ascending, makes an open loop; without it ``depth`` writes are always under
    way.  ``fill`` is written before that, at once and without time, by the frozen rule.  Raises :class:`ParamError`.
    """
    if depth < 1:
        raise ParamError(f"depth = {depth}: expected at least 1")
    clock = Clock()
    filled = StepVolume(geometry, policy)
    filled.run(fill)
    filled.low = len(filled.clean)
    volume = TimedVolume(clock, filled, config, device, choose=choose)
    Feeder(volume, clock, pages, arrivals_ns, depth).start()
    clock.run()
    return volume.results()


def every(gap_ns: int) -> Iterator[int]:
    """Arrival times of a steady open loop: ``gap_ns``, ``2 * gap_ns``, ..."""
    return count(gap_ns, gap_ns)
