from __future__ import annotations

import errno
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from uxk.core.arena import PAGE, Arena, Region, anonymous
from uxk.errors import KernelBug, UsageError, UxkError
from uxk.uapi.ids import InstanceId

A, B, C = (InstanceId(n) for n in (1, 2, 3))


@contextmanager
def refused(number: int, *words: str) -> Iterator[None]:
    with pytest.raises(UxkError) as caught:
        yield
    assert caught.value.errno == number
    assert all(word in str(caught.value) for word in words)


def test_nothing_is_mapped_before_it_is_needed() -> None:
    made: list[int] = []

    def backing(size_bytes: int) -> mmap.mmap:
        made.append(size_bytes)
        return anonymous(size_bytes)

    arena = Arena(1 << 40, backing)
    assert arena.statistics().free_bytes == 1 << 40
    assert made == []
    small = Arena(4 * PAGE, backing)
    small.allocate(A, 1)
    small.allocate(A, 1)
    assert made == [4 * PAGE]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the host decides")
def test_an_arena_may_be_larger_than_the_host() -> None:
    arena = Arena(16 << 40)
    region = arena.allocate(A, arena.size_bytes)
    view = arena.view(region.offset, region.length, writable=True)
    view[-1] = 7
    assert (view[0], view[-1]) == (0, 7)


def test_regions_are_whole_pages_and_reused_first_fit() -> None:
    arena = Arena(8 * PAGE)
    regions = [arena.allocate(A, length) for length in (1, PAGE, PAGE + 1)]
    assert regions == [Region(0, PAGE), Region(PAGE, PAGE), Region(2 * PAGE, 2 * PAGE)]
    assert arena.statistics().used_bytes == 4 * PAGE
    assert arena.free(A, 0) == PAGE
    assert arena.allocate(B, 2 * PAGE).offset == 4 * PAGE
    assert arena.allocate(B, PAGE).offset == 0


def test_what_one_wrote_the_next_does_not_see() -> None:
    arena = Arena(600 * PAGE)
    for length in (1, 600 * PAGE):
        region = arena.allocate(A, length)
        old = arena.view(*region, writable=True)
        old[:] = b"\xaa" * region.length
        arena.free(A, region.offset)
        old[:] = b"\xbb" * region.length
        new = arena.allocate(B, length)
        assert bytes(arena.view(*new)) == bytes(region.length)
        arena.free(B, new.offset)


@pytest.mark.parametrize("pages", [3, 300])
def test_a_plain_buffer_will_do_as_backing(pages: int) -> None:
    arena = Arena(pages * PAGE, bytearray)
    region = arena.allocate(A, pages * PAGE)
    arena.view(*region, writable=True)[:] = b"x" * region.length
    arena.free(A, 0)
    assert not any(arena.view(*arena.allocate(B, pages * PAGE)))


@pytest.mark.parametrize("backing", [lambda size: bytearray(size + 1), lambda size: memoryview(bytes(size))])
def test_a_wrong_backing_is_a_bug(backing: type[bytearray]) -> None:
    with pytest.raises(KernelBug, match="backing"):
        Arena(PAGE, backing).allocate(A, 1)


def test_exhaustion_gives_figures() -> None:
    arena = Arena(4 * PAGE)
    for owner in (A, B, A, B):
        arena.allocate(owner, PAGE)
    arena.free(A, 0)
    arena.free(A, 2 * PAGE)
    with refused(errno.ENOMEM, "instance 3", f"asks for {2 * PAGE}", f"{2 * PAGE} of {4 * PAGE}", f"has {PAGE}"):
        arena.allocate(C, PAGE + 1)
    with refused(errno.ENOMEM):
        arena.allocate(C, 1 << 62)
    assert arena.statistics().failures == 2
    assert arena.statistics().used_bytes == 2 * PAGE


@pytest.mark.parametrize("length", [0, -1])
def test_lengths_below_one_are_refused(length: int) -> None:
    with refused(errno.EINVAL):
        Arena(PAGE).allocate(A, length)
    with refused(errno.EINVAL):
        Arena(length)
    with refused(errno.EINVAL):
        Arena(PAGE + 1)


def test_only_the_owner_frees_and_only_once() -> None:
    arena = Arena(8 * PAGE)
    arena.allocate(A, 2 * PAGE)
    for owner, offset in ((B, 0), (A, PAGE), (A, 1), (A, -PAGE), (A, 7 * PAGE), (A, 1 << 70)):
        with refused(errno.EINVAL, str(offset)):
            arena.free(owner, offset)
    arena.free(A, 0)
    with refused(errno.EINVAL):
        arena.free(A, 0)
    assert arena.statistics().used_bytes == 0


def test_a_region_in_flight_lingers_until_released() -> None:
    arena = Arena(4 * PAGE)
    region = arena.allocate(A, 2 * PAGE)
    arena.retain(PAGE + 7)
    arena.retain(0)
    view = arena.view(*region, writable=True)
    view[0] = 7
    assert arena.free(A, 0) == 2 * PAGE
    assert arena.reclaim(A) == 0, "it is nobody's any more"
    assert arena.statistics().lingering_bytes == 2 * PAGE
    with refused(errno.EINVAL):
        arena.free(A, 0)
    with refused(errno.EFAULT):
        arena.retain(0)
    assert arena.allocate(B, PAGE).offset == 2 * PAGE
    assert arena.view(0, 1)[0] == 7, "the request in flight still sees it"
    arena.release(0)
    assert arena.statistics().used_bytes == 3 * PAGE
    arena.release(PAGE + 7)
    assert arena.statistics().used_bytes == PAGE
    assert arena.statistics().lingering_bytes == 0
    with pytest.raises(KernelBug, match="no reference"):
        arena.release(0)
    with refused(errno.EFAULT):
        arena.view(0, 1)


def test_a_view_stays_within_one_region() -> None:
    arena = Arena(8 * PAGE)
    arena.allocate(A, PAGE)
    arena.allocate(B, PAGE)
    assert arena.view(10, 20).nbytes == 20
    assert arena.view(0, PAGE).readonly
    assert not arena.view(PAGE, 1, writable=True).readonly
    for offset, length in ((0, PAGE + 1), (PAGE - 1, 2), (-1, 1), (0, -1), (2 * PAGE, 1), (2 * PAGE, 0), (1 << 70, 1)):
        with refused(errno.EFAULT, f"{offset}+{length}"):
            arena.view(offset, length)


def test_arrays_share_the_memory() -> None:
    arena = Arena(4 * PAGE)
    region = arena.allocate(A, PAGE)
    array = arena.array(region.offset + 8, "<u4", 4, writable=True)
    array[:] = (1, 2, 3, 4)
    assert arena.array(region.offset + 8, np.uint32, 4).tolist() == [1, 2, 3, 4]
    assert not arena.array(0, np.uint8, PAGE).flags.writeable
    assert arena.array(0, np.int64, 0).size == 0
    record = np.dtype([("block", "<u8"), ("heat", "<u2")])
    assert arena.array(0, record, 3).dtype == record
    for dtype, count in (("O", 1), ("V0", 1), ("nonsense", 1), ("<u4", -1), ([("x", "O")], 1)):
        with refused(errno.EINVAL):
            arena.array(0, dtype, count)
    with refused(errno.EFAULT):
        arena.array(0, "<u8", PAGE // 8 + 1)


def test_reclaim_takes_everything_but_what_is_kept() -> None:
    arena = Arena(8 * PAGE)
    for owner in (A, B, A, A):
        arena.allocate(owner, PAGE)
    assert arena.reclaim(A, keep={2 * PAGE}) == 2 * PAGE
    assert arena.holes() == [Region(0, PAGE), Region(3 * PAGE, 5 * PAGE)]
    assert arena.reclaim(A) == PAGE
    assert arena.reclaim(A) == 0
    assert arena.holes() == [Region(0, PAGE), Region(2 * PAGE, 6 * PAGE)]


def test_closing_with_views_about_is_harmless() -> None:
    arena = Arena(4 * PAGE)
    region = arena.allocate(A, PAGE)
    view = arena.view(*region, writable=True)
    arena.close()
    view[0] = 1
    with refused(errno.EFAULT):
        arena.view(*region)
    arena.close()
    assert not any(arena.view(*arena.allocate(A, 4 * PAGE)))


PAGES = 12
OWNER = st.sampled_from([A, B, C])


class ArenaMachine(RuleBasedStateMachine):
    """The model is one letter per page: whose it is."""

    @initialize(plain=st.booleans())
    def start(self, plain: bool) -> None:
        self.arena = Arena(PAGES * PAGE, bytearray if plain else anonymous)
        self.regions: dict[int, tuple[InstanceId, int]] = {}
        self.lingering: dict[int, int] = {}
        self.references: dict[int, int] = {}

    def _taken(self) -> dict[int, int]:
        return {**{offset: length for offset, (_, length) in self.regions.items()}, **self.lingering}

    @rule(owner=OWNER, length=st.integers(1, 5 * PAGE))
    def allocate(self, owner: InstanceId, length: int) -> None:
        largest = self.arena.statistics().largest_hole_bytes
        if length > largest:
            with refused(errno.ENOMEM):
                self.arena.allocate(owner, length)
            return
        region = self.arena.allocate(owner, length)
        assert length <= region.length < length + PAGE
        view = self.arena.view(*region, writable=True)
        assert not any(view)
        view[:] = b"\xff" * region.length
        self.regions[region.offset] = (owner, region.length)

    def _drop(self, offset: int) -> None:
        _, length = self.regions.pop(offset)
        if self.references.get(offset):
            self.lingering[offset] = length

    @precondition(lambda self: self.regions)
    @rule(data=st.data(), owner=OWNER)
    def free(self, data: st.DataObject, owner: InstanceId) -> None:
        offset = data.draw(st.sampled_from(sorted(self.regions)))
        mine, length = self.regions[offset]
        if mine == owner:
            assert self.arena.free(owner, offset) == length
            self._drop(offset)
        else:
            with pytest.raises(UsageError, match="no region"):
                self.arena.free(owner, offset)

    @rule(owner=OWNER, spare=st.booleans())
    def reclaim(self, owner: InstanceId, spare: bool) -> None:
        mine = [offset for offset, (each, _) in self.regions.items() if each == owner]
        keep = mine[:1] if spare else []
        expected = sum(self.regions[offset][1] for offset in mine if offset not in keep)
        assert self.arena.reclaim(owner, keep) == expected
        for offset in mine:
            if offset not in keep:
                self._drop(offset)

    @precondition(lambda self: self.regions)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.regions)))
        self.arena.retain(offset + data.draw(st.integers(0, self.regions[offset][1] - 1)))
        self.references[offset] = self.references.get(offset, 0) + 1

    @precondition(lambda self: self.references)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.references)))
        length = self._taken()[offset]
        self.arena.release(offset + data.draw(st.integers(0, length - 1)))
        self.references[offset] -= 1
        if not self.references[offset]:
            del self.references[offset]
            self.lingering.pop(offset, None)

    @invariant()
    def regions_and_holes_tile_the_arena(self) -> None:
        holes = self.arena.holes()
        tiles = sorted([*holes, *(Region(*item) for item in self._taken().items())])
        assert sum(tile.length for tile in tiles) == PAGES * PAGE
        assert all(left.offset + left.length == right.offset for left, right in pairwise(tiles))
        assert all(left.offset + left.length < right.offset for left, right in pairwise(holes)), "not coalesced"

    @invariant()
    def the_books_are_exact(self) -> None:
        statistics = self.arena.statistics()
        assert statistics.used_bytes == sum(self._taken().values())
        assert statistics.used_bytes + statistics.free_bytes == PAGES * PAGE
        assert statistics.lingering_bytes == sum(self.lingering.values())
        assert statistics.regions == len(self._taken())
        assert statistics.owners == len({owner for owner, _ in self.regions.values()})

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            self.arena.close()


TestArena = ArenaMachine.TestCase
