"""Regions of the arena in files of their own: same contents, same addresses, and nothing more to reach."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from uxk.core.arena import PAGE, Region
from uxk.errors import BudgetError, UsageError
from uxk.kernel.sharedmemory import SharedMemory, Window
from uxk.uapi.ids import InstanceId

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes share memory on Linux only")
A, B = InstanceId(1), InstanceId(2)
READ, BOTH = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    before = set(os.listdir("/proc/self/fd"))
    memory = SharedMemory(64 * PAGE)
    yield memory
    memory.close()
    assert set(os.listdir("/proc/self/fd")) <= before


def mapped(window: Window, protection: int = BOTH) -> mmap.mmap:
    try:
        return mmap.mmap(window.descriptor, window.region.length, prot=protection)
    finally:
        os.close(window.descriptor)


def ranges() -> int:
    """Mappings of this process that belong to an arena."""
    with open("/proc/self/maps", encoding="ascii") as file:
        return sum("uxk-arena" in line for line in file)


def test_a_process_sees_what_the_kernel_has_and_the_other_way_round(shared: SharedMemory) -> None:
    arena = shared.arena
    arena.allocate(A, PAGE)
    region = arena.allocate(A, 3 * PAGE)
    view = arena.view(*region, writable=True)
    view[:5] = b"early"
    assert shared.generation(region.offset) == 0
    window = shared.window(region.offset + PAGE, writable=True)
    assert (window.region, shared.files, shared.generation(region.offset)) == (region, 1, window.generation)
    theirs = mapped(window)
    assert theirs[:5] == b"early"
    view[PAGE : PAGE + 4] = b"late"  # a view from before the move
    theirs[:5] = b"their"
    assert theirs[PAGE : PAGE + 4] == b"late"
    assert bytes(view[:5]) == b"their"
    assert bytes(arena.view(region.offset, 5)) == b"their"


def test_the_way_in_shows_the_region_and_nothing_else(shared: SharedMemory) -> None:
    first, region, last = (shared.arena.allocate(A, PAGE) for _ in range(3))
    window = shared.window(region.offset, writable=True)
    assert os.fstat(window.descriptor).st_size == PAGE
    theirs = mapped(window)
    theirs[:] = b"x" * PAGE
    assert not any(shared.arena.view(*first)) and not any(shared.arena.view(*last))


def test_who_may_only_read_cannot_write_by_any_way(shared: SharedMemory) -> None:
    region = shared.arena.allocate(A, PAGE)
    window = shared.window(region.offset, writable=False)
    with pytest.raises(PermissionError):
        mmap.mmap(window.descriptor, PAGE, prot=BOTH)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(window.descriptor, b"x")
    os.fchmod(window.descriptor, 0o600)  # the owner can; it does not help
    again = os.open(f"/proc/self/fd/{window.descriptor}", os.O_RDWR)
    for attempt in (lambda: mmap.mmap(again, PAGE, prot=BOTH), lambda: os.write(again, b"x")):
        with pytest.raises(PermissionError):
            attempt()
    os.close(again)
    mapped(window, READ)
    shared.arena.view(*region, writable=True)[:4] = b"mine"  # the kernel still can


def test_a_second_way_for_reading_cannot_be_opened_for_writing_again(shared: SharedMemory) -> None:
    region = shared.arena.allocate(A, PAGE)
    mapped(shared.window(region.offset, writable=True))
    window = shared.window(region.offset, writable=False)
    assert os.fstat(window.descriptor).st_mode & 0o222 == 0
    with pytest.raises(PermissionError):
        mapped(window, BOTH)


@pytest.mark.parametrize("writable", [False, True])
def test_nobody_can_pull_the_ground_from_under_the_kernel(shared: SharedMemory, writable: bool) -> None:
    region = shared.arena.allocate(A, 2 * PAGE)
    window = shared.window(region.offset, writable=writable)
    for size in (0, PAGE, 4 * PAGE):
        with pytest.raises(OSError, match=r"not permitted|Invalid argument"):
            os.ftruncate(window.descriptor, size)
    os.close(window.descriptor)
    assert not any(shared.arena.view(*region))


def test_a_region_that_is_to_be_written_by_a_process_leaves_the_file_that_could_only_be_read(
    shared: SharedMemory,
) -> None:
    region = shared.arena.allocate(A, 2 * PAGE)
    view = shared.arena.view(*region, writable=True)
    view[:4] = b"data"
    first = shared.window(region.offset, writable=False)
    reader = mapped(first, READ)
    second = shared.window(region.offset, writable=True)
    assert (second.number, second.generation > first.generation) == (first.number, True)
    writer = mapped(second)
    writer[PAGE] = 1
    assert (bytes(view[:4]), view[PAGE], reader[PAGE]) == (b"data", 1, 0)
    third = shared.window(region.offset, writable=False)
    assert third.generation == second.generation
    assert mapped(third, READ)[PAGE] == 1
    assert shared.files == 1


def test_whoever_is_not_to_see_a_region_any_more_keeps_its_past_only(shared: SharedMemory) -> None:
    region = shared.arena.allocate(A, PAGE)
    view = shared.arena.view(*region, writable=True)
    theirs = mapped(shared.window(region.offset, writable=True))
    view[:3] = b"one"
    assert not shared.renew(region.offset + PAGE, writable=True)
    assert shared.renew(region.offset, writable=True)
    view[:3] = b"two"
    theirs[3] = 7
    assert (theirs[:3], bytes(view[:4])) == (b"one", b"two\0")


def test_a_region_that_no_process_sees_comes_back_and_may_go_again(shared: SharedMemory) -> None:
    shared.arena.allocate(A, PAGE)
    region = shared.arena.allocate(A, 2 * PAGE)
    view = shared.arena.view(*region, writable=True)
    first = shared.window(region.offset, writable=True)
    theirs = mapped(first)
    theirs[PAGE] = 5
    shared.retire(region.offset)
    shared.retire(region.offset)
    assert (shared.files, view[PAGE], shared.generation(region.offset)) == (0, 5, 0)
    theirs[PAGE] = 6
    assert view[PAGE] == 5
    second = shared.window(region.offset, writable=True)
    assert second.number > first.number and second.generation > first.generation
    assert mapped(second)[PAGE] == 5


def test_what_is_freed_leads_nowhere(shared: SharedMemory) -> None:
    arena = shared.arena
    region = arena.allocate(A, 2 * PAGE)
    arena.view(*region, writable=True)[:6] = b"secret"
    theirs = mapped(shared.window(region.offset, writable=True))
    arena.free(A, region.offset)
    assert shared.files == 0 and not any(theirs[:])
    again = arena.allocate(B, 2 * PAGE)
    assert again == region
    view = arena.view(*again, writable=True)
    assert not any(view)
    view[:5] = b"other"
    theirs[:5] = b"stale"
    assert (theirs[:5], bytes(view[:5])) == (b"stale", b"other")


def test_what_requests_refer_to_stays_until_they_are_done(shared: SharedMemory) -> None:
    arena = shared.arena
    region = arena.allocate(A, PAGE)
    theirs = mapped(shared.window(region.offset, writable=True))
    arena.retain(region.offset)
    arena.free(A, region.offset)
    theirs[:4] = b"done"
    assert bytes(arena.view(region.offset, 4)) == b"done"
    arena.release(region.offset)
    assert shared.files == 0
    with pytest.raises(UsageError) as caught:
        shared.window(region.offset, writable=False)
    assert caught.value.errno == errno.EFAULT
    theirs.close()


def test_mappings_do_not_pile_up(shared: SharedMemory) -> None:
    shared.arena.allocate(B, 1)
    gc.collect()  # arenas of other tests
    before = ranges()
    for _ in range(3):
        regions = [shared.arena.allocate(A, PAGE) for _ in range(20)]
        for region in regions:
            os.close(shared.window(region.offset, writable=True).descriptor)
        for region in regions[::2] + regions[1::2]:
            shared.arena.free(A, region.offset)
        assert (ranges(), shared.files) == (before, 0)


def test_an_empty_disk_takes_no_memory_when_it_moves() -> None:
    shared = SharedMemory(1 << 40)
    region = shared.arena.allocate(A, 1 << 39)
    view = shared.arena.view(*region, writable=True)
    view[1 << 38] = 7
    window = shared.window(region.offset, writable=True)
    try:
        assert os.fstat(window.descriptor).st_blocks <= 2 * PAGE // 512
        assert view[1 << 38] == 7
    finally:
        os.close(window.descriptor)
        shared.close()


def test_a_host_that_has_nothing_left_is_an_error_of_the_asker(
    shared: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = shared.arena.allocate(A, PAGE)
    view = shared.arena.view(*region, writable=True)
    view[:4] = b"kept"

    def refuse(*args: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", refuse)
        with pytest.raises(BudgetError, match=r"4096 bytes.*Too many") as caught:
            shared.window(region.offset, writable=True)
    assert caught.value.errno == errno.EMFILE
    assert (bytes(view[:4]), shared.files) == (b"kept", 0)
    mapped(shared.window(region.offset, writable=True))


class Sharing(RuleBasedStateMachine):
    """Whatever moves, the kernel's view of every region stays the same, and so does that of whoever sees it rightly."""

    regions = Bundle("regions")

    @initialize()
    def begin(self) -> None:
        self.shared = SharedMemory(64 * PAGE)
        self.known: dict[Region, bytearray] = {}
        self.seen: dict[Region, tuple[int, mmap.mmap]] = {}

    @rule(target=regions, pages=st.integers(1, 4))
    def allocate(self, pages: int) -> Region:
        try:
            region = self.shared.arena.allocate(A, pages * PAGE)
        except BudgetError:
            return Region(-PAGE, PAGE)
        self.known[region] = bytearray(region.length)
        return region

    @rule(region=regions, at=st.integers(0, PAGE - 1), value=st.integers(1, 255))
    def write(self, region: Region, at: int, value: int) -> None:
        if region in self.known:
            self.shared.arena.view(*region, writable=True)[at] = value
            self.known[region][at] = value

    @rule(region=regions, writable=st.booleans())
    def show(self, region: Region, writable: bool) -> None:
        if region in self.known:
            window = self.shared.window(region.offset, writable=writable)
            self.seen[region] = window.generation, mapped(window, BOTH if writable else READ)
            if writable:
                self.seen[region][1][PAGE - 1] = self.known[region][PAGE - 1] = 99

    @rule(region=regions, writable=st.booleans())
    def renew(self, region: Region, writable: bool) -> None:
        if region in self.known:
            assert self.shared.renew(region.offset, writable=writable) == (region in self.seen)

    @rule(region=regions)
    def retire(self, region: Region) -> None:
        if region in self.known:
            self.shared.retire(region.offset)
            self.seen.pop(region, None)

    @rule(region=regions)
    def free(self, region: Region) -> None:
        if self.known.pop(region, None) is not None:
            self.shared.arena.free(A, region.offset)
            self.seen.pop(region, None)

    @invariant()
    def everybody_sees_the_same(self) -> None:
        for region, contents in getattr(self, "known", {}).items():
            assert self.shared.arena.view(*region) == contents
            generation, theirs = self.seen.get(region, (0, b""))
            if generation and generation == self.shared.generation(region.offset):
                assert theirs[:] == contents

    def teardown(self) -> None:
        self.shared.close()


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
