"""The scheduler ``mq-deadline`` (Linux: block/mq-deadline.c, Documentation/block/deadline-iosched.rst).

Requests are served in the order of their sectors, in batches of one direction.  Reads go before writes, but after
``writes_starved`` batches of reads it is the writes' turn; and who has waited longer than its direction's time is
served next when a batch ends.  Three classes of priority: a lower one is served while no higher one has anything
queued or under way, or when it is older than ``prio_aging_expire``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import ClassVar, Final

from uxk.core.kobject import Attribute, AttributeTable, attribute_table
from uxk.errors import UsageError
from uxk.subsystems.blk.elevator import Shape
from uxk.subsystems.blk.limits import NS_PER_MS
from uxk.subsystems.blk.merge import FRONT, absorb, mergeable, side_of
from uxk.subsystems.blk.request import READ, Bio, Rq

REALTIME, BEST_EFFORT, IDLE = range(3)
"""Classes of priority, the highest first (Linux: DD_RT_PRIO, DD_BE_PRIO, DD_IDLE_PRIO)."""
_READS, _WRITES = range(2)
_I32_MAX: Final = (1 << 31) - 1


class _Lane:
    """Waiting requests of one class and direction."""

    __slots__ = ("by_end", "fifo", "latest", "order")

    def __init__(self) -> None:
        self.fifo: dict[int, Rq] = {}
        """By number, the oldest first."""
        self.order: list[tuple[int, int, Rq]] = []
        """By offset."""
        self.by_end: dict[int, Rq] = {}
        self.latest = 0
        """Where the last one given out began."""

    def add(self, rq: Rq) -> None:
        self.fifo[rq.number] = rq
        insort(self.order, (rq.offset, rq.number, rq))
        self.by_end[rq.end] = rq

    def remove(self, rq: Rq, offset: int, end: int) -> None:
        """Takes out what is kept under these two, whatever it has become since."""
        del self.order[bisect_left(self.order, (offset, rq.number))]
        if self.by_end.get(end) is rq:
            del self.by_end[end]

    def starting_at(self, offset: int) -> Rq | None:
        index = bisect_left(self.order, (offset,))
        return self.order[index][2] if index < len(self.order) and self.order[index][0] == offset else None

    def next(self) -> Rq | None:
        """The first one at or behind the last position; nothing wraps around."""
        index = bisect_left(self.order, (self.latest,))
        return self.order[index][2] if index < len(self.order) else None

    def oldest(self) -> Rq | None:
        for rq in self.fifo.values():
            return rq
        return None


class _Class:
    """One class of priority."""

    __slots__ = ("lanes", "pending")

    def __init__(self) -> None:
        self.lanes = (_Lane(), _Lane())
        self.pending = 0
        """Taken and not completed (Linux: dd_queued)."""


class MqDeadline:
    """The scheduler of one disk."""

    name: ClassVar[str] = "mq-deadline"
    attributes: ClassVar[AttributeTable | None] = None  # set below, where the table is

    def __init__(self, shape: Shape) -> None:
        self._limits = shape.limits
        self._classes = (_Class(), _Class(), _Class())
        self._last_lane = _WRITES  # Linux: dd->last_dir = DD_WRITE
        self._batching = 0
        self._starved = 0
        self._count = 0
        self.read_expire_ns = 500 * NS_PER_MS
        self.write_expire_ns = 5000 * NS_PER_MS
        self.prio_aging_expire_ns = 10_000 * NS_PER_MS
        self.writes_starved = 2
        self.front_merges = 1
        self.fifo_batch = 16

    # --- in ---

    def _lane(self, prio: int, op: int) -> _Lane:
        return self._classes[prio].lanes[_READS if op == READ else _WRITES]

    def merge(self, bio: Bio, at: int, count: int) -> tuple[Rq, bool] | None:
        """One that ends where these bytes begin, or, if allowed, one that begins where they end."""
        lane, start = self._lane(bio.port.prio, bio.op), bio.offset + at
        candidates = [lane.by_end.get(start)]
        if self.front_merges:
            candidates.append(lane.starting_at(start + count))
        for rq in candidates:
            if rq is not None:
                side = side_of(rq, bio, at, count, self._limits)
                if side is not None:
                    return rq, side
        return None

    def joined(self, rq: Rq, before: tuple[int, int], side: bool) -> Rq | None:
        """Keeps its order; a request that has grown up to the next one takes that over."""
        lane = self._lane(rq.prio, rq.op)
        offset, length = before
        lane.remove(rq, offset, offset + length)
        index = bisect_left(lane.order, (rq.offset,))
        beside = lane.starting_at(rq.end)
        if side is FRONT:  # the one before it may have grown up to it
            earlier = lane.by_end.get(rq.offset)
            if earlier is not None and earlier is not rq and mergeable(earlier, rq, self._limits):
                return self._take_over(lane, earlier, rq)
        insort(lane.order, (rq.offset, rq.number, rq), lo=index)
        lane.by_end[rq.end] = rq
        if side is not FRONT and beside is not None and beside is not rq and mergeable(rq, beside, self._limits):
            lane.remove(beside, beside.offset, beside.end)
            return self._take_over(lane, rq, beside)
        return None

    def _take_over(self, lane: _Lane, rq: Rq, following: Rq) -> Rq:
        """``following`` is in no list but the FIFO; the older of both times counts (Linux: dd_merged_requests)."""
        lane.remove(rq, rq.offset, rq.end)
        absorb(rq, following)
        insort(lane.order, (rq.offset, rq.number, rq))
        lane.by_end[rq.end] = rq
        if following.expires_ns < rq.expires_ns:
            rq.expires_ns = following.expires_ns
            items = [(number, each) for number, each in lane.fifo.items() if each is not rq]
            lane.fifo = {(rq.number if each is following else n): (rq if each is following else each)
                         for n, each in items}  # fmt: skip
        else:
            del lane.fifo[following.number]
        self._count -= 1
        self._classes[rq.prio].pending -= 1
        return following

    def insert(self, rq: Rq, now_ns: int) -> None:
        """Into both orders: by sector and by time."""
        rq.expires_ns = now_ns + (self.read_expire_ns if rq.op == READ else self.write_expire_ns)
        self._lane(rq.prio, rq.op).add(rq)
        self._classes[rq.prio].pending += 1
        self._count += 1

    # --- out ---

    def dispatch(self, now_ns: int) -> Rq | None:
        """The next request by the rules above."""
        if not self._count:
            return None
        classes = self._classes
        if sum(1 for each in classes if each.pending) > 1:
            for each in classes[BEST_EFFORT:]:
                rq = self._from_class(each, now_ns, now_ns - self.prio_aging_expire_ns)
                if rq is not None:
                    return rq
        for each in classes:
            rq = self._from_class(each, now_ns, now_ns)
            if rq is not None or each.pending:
                return rq
        return None

    def _from_class(self, each: _Class, now_ns: int, latest_start_ns: int) -> Rq | None:
        reads, writes = each.lanes
        rq = each.lanes[self._last_lane].next()
        if rq is None or self._batching >= self.fifo_batch:  # else the batch goes on
            if reads.fifo:
                starved = bool(writes.fifo) and self._starved >= self.writes_starved
                self._starved += bool(writes.fifo)
                which = _WRITES if starved else _READS
            elif writes.fifo:
                which = _WRITES
            else:
                return None
            if which == _WRITES:
                self._starved = 0
            lane = each.lanes[which]
            rq, oldest = lane.next(), lane.oldest()
            assert oldest is not None
            if rq is None or oldest.expires_ns <= now_ns:
                rq = oldest
            self._last_lane = which
            self._batching = 0
        expire_ns = self.read_expire_ns if rq.op == READ else self.write_expire_ns
        if rq.expires_ns - expire_ns > latest_start_ns:
            return None
        self._batching += 1
        lane = each.lanes[self._last_lane]
        lane.latest = rq.offset
        lane.remove(rq, rq.offset, rq.end)
        del lane.fifo[rq.number]
        self._count -= 1
        return rq

    def completed(self, rq: Rq) -> None:
        """A lower class may have its turn now."""
        self._classes[rq.prio].pending -= 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Rq]:
        return chain.from_iterable(lane.fifo.values() for each in self._classes for lane in each.lanes)


def _number(text: str, name: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise UsageError(f"{name}: {text[:64]!r}, expected an integer in {least}..{most}")
    return value


def _setting(name: str, unit: int, least: int, most: int) -> Attribute:
    """A number of the scheduler's; times are shown in milliseconds and kept in nanoseconds."""
    field = f"{name}_ns" if unit > 1 else name

    def show(field: str, scheduler: MqDeadline) -> str:
        return str(getattr(scheduler, field) // unit)

    def store(field: str, scheduler: MqDeadline, text: str) -> None:
        setattr(scheduler, field, _number(text, name, least, most) * unit)

    return Attribute(name, partial(show, field), partial(store, field))


MqDeadline.attributes = attribute_table(
    _setting("read_expire", NS_PER_MS, 0, _I32_MAX),
    _setting("write_expire", NS_PER_MS, 0, _I32_MAX),
    _setting("prio_aging_expire", NS_PER_MS, 0, _I32_MAX),
    _setting("writes_starved", 1, 0, _I32_MAX),
    _setting("front_merges", 1, 0, 1),
    _setting("fifo_batch", 1, 0, _I32_MAX),
)
