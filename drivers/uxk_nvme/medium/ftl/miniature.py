"""Two small copies of the flash that tell what a policy is worth: one under the default, one under what is hinted.

Lines of one flash share their free ones, so no part of it could follow a hint without changing the others' lot.
Instead both policies collect the same miniature: every page in so many, in lines that much shorter, made from the
flash as it is and fed with the same writes from then on (after Waldspurger et al., USENIX ATC 2017).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from uxk_nvme.medium.ftl.collector import Collector
from uxk_nvme.medium.ftl.flash import VICTIM, Flash
from uxk_nvme.medium.ftl.geometry import Geometry
from uxk_nvme.medium.ftl.health import Health
from uxk_nvme.medium.ftl.timing import PPM, Timing
from uxk_nvme.medium.ftl.victims import Selector
from uxk_nvme.medium.params import MediumParams

UNITS_MIN: Final = 4096
"""Ours: a miniature has at least so many units, if the flash has."""
LINE_UNITS_MIN: Final = 8
"""Ours: and lines of at least so many."""
LINES_LEFT: Final = 3
"""Free at the beginning: one to write to, one to move to, one in hand."""
STEP_NS: Final = 10**12
"""Between two programs of a miniature: everything before is done."""
_HASH: Final = 0x9E3779B1


class Written(NamedTuple):
    """Units that the host wrote and that collection moved."""

    host: int
    moved: int

    @property
    def wa_ppm(self) -> int:
        """Write amplification; 0 if nothing was written."""
        return (self.host + self.moved) * PPM // self.host if self.host else 0


class Sample:
    """One unit of every ``ratio`` (a power of two), by a hash; within the miniature it has the number of its group."""

    def __init__(self, geometry: Geometry) -> None:
        ratio = 1
        while geometry.units // (2 * ratio) >= UNITS_MIN and geometry.line_units // (2 * ratio) >= LINE_UNITS_MIN:
            ratio *= 2
        self.ratio = ratio
        self.units = geometry.units // ratio
        page_units = max(geometry.page_units // ratio, 1)
        line_units = geometry.line_units // ratio // page_units * page_units
        self.geometry = geometry._replace(
            units=self.units, channels=1, dies=1, planes=1, pages_per_block=line_units // page_units,
            page_units=page_units, line_pages=line_units // page_units, line_units=line_units,
            lines=geometry.lines * geometry.line_units // ratio // line_units, lines_needed=0, spares_per_die=0,
        )  # fmt: skip

    def unit(self, number: int) -> int:
        """The unit of the flash that stands for the group ``number``."""
        return number * self.ratio + ((number * _HASH & 0xFFFFFFFF) * self.ratio >> 32)

    def of(self, units: list[int]) -> list[int]:
        """The groups of those among ``units`` that are in the sample."""
        ratio, count = self.ratio, self.units
        if ratio == 1:
            return units
        found = []
        for unit in units:
            number = unit // ratio
            if unit % ratio == (number * _HASH & 0xFFFFFFFF) * ratio >> 32 and number < count:
                found.append(number)
        return found


class Miniature:
    """One of the two: map, lines and collector as the flash has them, without time."""

    def __init__(self, sample: Sample, params: MediumParams, like: Flash, random: np.random.SeedSequence) -> None:
        plain = replace(params, errors=False, wear_gap_cycles=0)
        geometry = sample.geometry
        health = Health(geometry.cell, plain, np.random.Generator(np.random.PCG64(random)))
        self.flash = Flash(geometry, Timing(geometry, plain), health, 0)
        self.collector = Collector(self.flash, plain, lambda unit: None)
        self.default = self.collector.selector
        self._sample = sample
        self._pending: list[int] = []
        self._now_ns = 0
        self._before = Written(0, 0)
        self._copy(like)

    def _copy(self, like: Flash) -> None:
        """Begins with what the flash holds, garbage included, in the order in which its lines were closed."""
        sample, flash = self._sample, self.flash
        nowhere, line_units, l2p = sample.geometry.units, like.geometry.line_units, like.l2p
        members: dict[int, list[tuple[int, int]]] = {}
        for number in range(sample.units):
            slot = l2p[sample.unit(number)]
            if slot >= 0:
                members.setdefault(slot // line_units, []).append((slot, number))
        written = {each.line: each.at - each.line * line_units for each in (like.gc, like.host) if each.line >= 0}
        victims = [line for line, state in enumerate(like.state) if state == VICTIM]
        held: list[int] = []
        for line in [*victims, *like.closed, *written]:
            valid = [number for _, number in sorted(members.get(line, ()))]
            size = written.get(line, line_units) // sample.ratio
            held += [nowhere] * (size - len(valid)) + valid
        excess = len(held) - (sample.geometry.lines - LINES_LEFT) * sample.geometry.line_units
        kept = []
        for number in held:  # a sample may have drawn more garbage than its lines can hold
            if number == nowhere and excess > 0:
                excess -= 1
            else:
                kept.append(number)
        flash.fill(kept)
        flash.unmap(nowhere, nowhere + 1)

    def follow(self, selector: Selector | None) -> None:
        """Victims are chosen by this rule from now on; None: by the default."""
        self.collector.selector = selector or self.default

    def program(self, numbers: list[int]) -> None:
        """The host programs these units of the sample."""
        pending, flash, collector = self._pending, self.flash, self.collector
        pending += numbers
        page_units = flash.geometry.page_units
        while len(pending) >= page_units:
            page = pending[:page_units]
            del pending[:page_units]
            self._now_ns += STEP_NS
            if flash.host.at == flash.host.end and not collector.make_room(self._now_ns):
                continue
            flash.program(page, self._now_ns)
            if collector.active:
                collector.step(self._now_ns)

    def unmap(self, first: int, last: int) -> None:
        """Forgets the units [first, last) of the sample."""
        self.flash.unmap(first, last)

    def written(self) -> Written:
        """What was written since the last call."""
        flash, before = self.flash, self._before
        self._before = now = Written(flash.clock_units - flash.clock_base, flash.moved_units)
        return Written(now.host - before.host, now.moved - before.moved)


class Pair:
    """The default's miniature and the follower's; the flash tells them what its host programs and gives up."""

    def __init__(self, params: MediumParams, like: Flash, random: np.random.SeedSequence) -> None:
        self.sample = Sample(like.geometry)
        self.default, self.hinted = (Miniature(self.sample, params, like, random) for _ in range(2))

    def program(self, units: list[int]) -> None:
        """Units of the flash."""
        numbers = self.sample.of(units)
        if numbers:
            self.default.program(numbers)
            self.hinted.program(numbers)

    def unmap(self, first: int, last: int) -> None:
        """The units [first, last) of the flash."""
        sample = self.sample
        least, most = first // sample.ratio, min(-(-last // sample.ratio), sample.units)
        while least < most and sample.unit(least) < first:
            least += 1
        while least < most and sample.unit(most - 1) >= last:
            most -= 1
        if least < most:
            self.default.unmap(least, most)
            self.hinted.unmap(least, most)
