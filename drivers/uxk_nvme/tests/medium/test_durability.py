"""What survives a loss of power, on every medium, against a model; and that the flash's books stay right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import uxk
from uxk_nvme.medium import Medium, MediumParams, open_medium
from uxk_nvme.medium.ftl import flash as fl
from uxk_nvme.medium.ftl.device import FtlMedium

SIZE = 1 << 20
LBA = 512
BLOCKS = 48
"""Those that the machine plays with: few, so that it meets itself."""
UNRECOVERED_READ = 0x281


def check_books(medium: FtlMedium) -> None:
    """What must hold of map, lines and counters at any time."""
    flash, geometry = medium.flash, medium.geometry
    counted = [0] * geometry.lines
    for unit in range(geometry.units):
        at = flash.l2p[unit]
        if at >= 0:
            assert flash.p2l[at] == unit, "two units at one place"
            counted[at // geometry.line_units] += 1
    assert counted == flash.valid
    lines: dict[int, set[int]] = {}
    for line, state in enumerate(flash.state):
        lines.setdefault(state, set()).add(line)
    free = [line for _, line in flash.free]
    assert len(set(free)) == len(free)
    assert set(free) == lines.get(fl.FREE, set())
    assert not any(counted[line] for line in free)
    assert set(flash.closed) == lines.get(fl.CLOSED, set())
    waiting = [*(line for _, line in medium.collector.erasable), *medium.collector.held]
    assert set(waiting) == lines.get(fl.ERASING, set())
    assert not any(counted[line] for line in waiting)
    assert {stream.line for stream in (flash.host, flash.gc)} - {-1} == lines.get(fl.OPEN, set())
    assert {medium.collector.victim} - {-1} == lines.get(fl.VICTIM, set())
    assert medium.read_only or free or waiting, "nothing to move into"
    erased = sum(flash.erases) - medium.params.initial_cycles * geometry.lines
    assert erased * geometry.dies * geometry.planes == flash.erasures
    figures = medium.figures()
    assert figures["write_amplification_ppm"] >= 1_000_000
    programmed = flash.page_programs * geometry.page_units
    places = figures["host_units"] + figures["moved_units"] + figures["padded_units"]
    open_places = flash.gc.at % geometry.page_units if flash.gc.line >= 0 else 0
    assert programmed == places - open_places
    buffer = medium.buffer
    assert len(buffer.dirty) + buffer.flying_units <= buffer.capacity_units
    assert buffer.flying_units == sum(len(flight.units) for flight in buffer.flights)


class Powered(RuleBasedStateMachine):
    """Random commands and losses of power.  For each block: its newest contents, and all that it may come back as."""

    medium: Medium

    @initialize(
        params=st.sampled_from(
            [
                {"medium": "none", "write_cache": 16384},
                {"medium": "simple", "write_cache": 16384},
                {"medium": "none", "write_cache": 0},
                {"medium": "ftl", "write_cache": 16384},
                {"medium": "ftl", "write_cache": 65536, "over_provisioning_ppm": 20_000, "pages_per_block": 3},
                {"medium": "ftl", "write_cache": 65536, "precondition": "random"},
                {"medium": "ftl", "write_cache": 0},
                {"medium": "ftl", "write_cache": 65536, "map_bytes": 16384},
            ]
        ),
        tear_ppm=st.sampled_from([0, 300_000, 1_000_000]),
        integrity=st.booleans(),
    )
    def begin(self, params: dict[str, Any], tear_ppm: int, integrity: bool) -> None:
        made = MediumParams(size=SIZE, tear_ppm=tear_ppm, integrity=integrity, cell="slc", **params)
        self.medium = open_medium(made, np.random.default_rng(7))
        self.volatile = made.write_cache > 0
        self.now_ns = 0
        self.serial = 0
        self.newest = [bytes(LBA)] * BLOCKS
        self.possible: list[set[bytes]] = [{bytes(LBA)} for _ in range(BLOCKS)]
        self.bad: set[int] = set()

    def settle(self, first: int, count: int) -> None:
        for block in range(first, first + count):
            self.possible[block] = {self.newest[block]}

    @rule(first=st.integers(0, BLOCKS - 1), count=st.integers(1, 24), fua=st.booleans(), wait=st.booleans())
    def write(self, first: int, count: int, fua: bool, wait: bool) -> None:
        count = min(count, BLOCKS - first)
        self.serial += 1
        data = b"".join((self.serial << 16 | block).to_bytes(8, "little") * (LBA // 8) for block in range(count))
        done_ns = self.medium.write(first * LBA, data, self.now_ns, fua)
        assert done_ns >= self.now_ns
        for index in range(count):
            self.newest[first + index] = data[index * LBA : (index + 1) * LBA]
            self.possible[first + index].add(self.newest[first + index])
        self.bad -= set(range(first, first + count))
        if wait or fua:
            self.now_ns = done_ns
        if fua or not self.volatile:
            self.settle(first, count)

    @rule(first=st.integers(0, BLOCKS - 1), count=st.integers(1, 24))
    def read(self, first: int, count: int) -> None:
        count = min(count, BLOCKS - first)
        buffer = bytearray(count * LBA)
        done_ns = self.medium.read(first * LBA, memoryview(buffer), self.now_ns)
        if self.bad & set(range(first, first + count)):
            assert done_ns == -UNRECOVERED_READ
            assert self.medium.verify(first * LBA, count * LBA, self.now_ns) == -UNRECOVERED_READ
        else:
            assert done_ns >= self.now_ns
            assert bytes(buffer) == b"".join(self.newest[first : first + count])
            assert self.medium.verify(first * LBA, count * LBA, self.now_ns) >= self.now_ns

    @rule()
    def flush(self) -> None:
        self.now_ns = self.medium.flush(self.now_ns)
        self.settle(0, BLOCKS)

    @rule(first=st.integers(0, BLOCKS - 1), count=st.integers(1, 24), how=st.sampled_from(["zero", "free", "format"]))
    def zero(self, first: int, count: int, how: str) -> None:
        count = min(count, BLOCKS - first)
        offset, length = first * LBA, count * LBA
        match how:
            case "zero":
                done_ns = self.medium.write_zeroes(offset, length, self.now_ns, False)
            case "free":
                done_ns = self.medium.deallocate(offset, length, self.now_ns)
            case _:
                done_ns = self.medium.format(offset, length, self.now_ns)
        assert done_ns >= self.now_ns
        for block in range(first, first + count):
            self.newest[block] = bytes(LBA)
        self.bad -= set(range(first, first + count))
        self.settle(first, count)

    @rule(first=st.integers(0, BLOCKS - 1), count=st.integers(1, 3))
    def spoil(self, first: int, count: int) -> None:
        # Blocks whose fate is open would make the model's answer a guess.
        blocks = range(first, min(first + count, BLOCKS))
        self.flush()
        assert self.medium.write_uncorrectable(first * LBA, len(blocks) * LBA, self.now_ns) >= self.now_ns
        self.bad.update(blocks)
        self.flush()
        self.zero(first, len(blocks), "free")

    @rule(on=st.booleans())
    def cache(self, on: bool) -> None:
        self.now_ns = self.medium.flush(self.now_ns)
        self.medium.set_write_cache(on, self.now_ns)
        self.settle(0, BLOCKS)

    @rule(after_ns=st.sampled_from([0, 100, 10_000, 1_000_000, 10**9]))
    def wait(self, after_ns: int) -> None:
        self.now_ns += after_ns
        event_ns = self.medium.next_event_ns
        if event_ns is not None and event_ns <= self.now_ns:
            self.medium.run_background(self.now_ns)

    @rule()
    def lose_power(self) -> None:
        self.medium.power_loss(self.now_ns)
        for block in range(BLOCKS):
            buffer = bytearray(LBA)
            assert self.medium.read(block * LBA, memoryview(buffer), self.now_ns) >= 0
            assert bytes(buffer) in self.possible[block]
            self.newest[block] = bytes(buffer)
            self.possible[block] = {bytes(buffer)}

    @invariant()
    def extents_tell_the_truth(self) -> None:
        medium = getattr(self, "medium", None)
        if medium is None:
            return
        at = 0
        for piece in medium.extents(0, BLOCKS * LBA):
            if piece.zero:
                for block in range(at // LBA, (at + piece.length_bytes) // LBA):
                    assert self.newest[block] == bytes(LBA)
            at += piece.length_bytes
        assert at == BLOCKS * LBA

    @invariant()
    def books_are_right(self) -> None:
        medium = getattr(self, "medium", None)
        if isinstance(medium, FtlMedium):
            check_books(medium)


TestPowered = Powered.TestCase
TestPowered.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def cached(**more: Any) -> Medium:
    given: dict[str, Any] = {"size": SIZE, "write_cache": 65536, **more}
    return open_medium(MediumParams(**given), np.random.default_rng(1))


def contents(medium: Medium, offset: int, length: int = 4096) -> bytes:
    buffer = bytearray(length)
    assert medium.read(offset, memoryview(buffer), 10**12) >= 0
    return bytes(buffer)


@pytest.mark.parametrize("kind", ["none", "simple", "ftl"])
def test_what_was_not_flushed_is_gone(kind: str) -> None:
    medium = cached(medium=kind)
    medium.write(0, b"a" * 4096, 0)
    done_ns = medium.flush(0)
    medium.write(0, b"b" * 4096, done_ns)
    medium.write(8192, b"c" * 512, done_ns)
    assert contents(medium, 0) == b"b" * 4096
    medium.power_loss(done_ns)
    assert contents(medium, 0) == b"a" * 4096
    assert contents(medium, 8192) == bytes(4096)
    assert medium.smart(done_ns).unsafe_shutdowns == 1
    assert medium.figures()["lost_units"] == 2


@pytest.mark.parametrize("kind", ["none", "simple", "ftl"])
def test_a_small_cache_keeps_little(kind: str) -> None:
    """Of 64 units written into a cache of 4, at most 4 are lost."""
    medium = cached(medium=kind, write_cache=4 * 4096)
    now_ns = 0
    for unit in range(64):
        now_ns = medium.write(unit * 4096, b"x" * 4096, now_ns)
    medium.power_loss(now_ns)
    lost = sum(contents(medium, unit * 4096) == bytes(4096) for unit in range(64))
    assert 0 < lost <= 4


@pytest.mark.parametrize("kind", ["none", "ftl"])
def test_writes_are_torn_block_by_block(kind: str) -> None:
    medium = cached(medium=kind, tear_ppm=500_000)
    medium.write(0, b"x" * 32768, 0)
    medium.power_loss(0)
    survived = [contents(medium, at, 512) == b"x" * 512 for at in range(0, 32768, 512)]
    assert 10 < sum(survived) < 54


def test_a_program_that_was_not_done_is_taken_back_in_the_right_order() -> None:
    """An older program of a slow die must not undo a newer one that was done."""
    medium = cached(medium="ftl", cell="slc", slow_die=0, slow_ppm=1_000_000_000, write_cache=65536)
    assert isinstance(medium, FtlMedium)
    first_ns = medium.write(0, b"1" * 4096, 0, fua=True)
    second_ns = medium.write(0, b"2" * 4096, 0, fua=True)
    assert second_ns < first_ns
    medium.power_loss(second_ns)
    assert contents(medium, 0) == b"2" * 4096


def test_without_volatile_cache_everything_acknowledged_stays() -> None:
    medium = cached(medium="ftl", write_cache=0)
    done_ns = max(medium.write(unit * 4096, b"x" * 4096, 0) for unit in range(100))
    medium.power_loss(done_ns)
    assert contents(medium, 0, 409_600) == b"x" * 409_600


def test_a_tiny_cache_is_refused() -> None:
    with pytest.raises(uxk.ParamError, match="write_cache=512"):
        cached(medium="ftl", write_cache=512)
