"""Bit errors grow with wear, age and reads; retries cost time; what cannot be corrected is lost until rewritten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxk_nvme.medium import MediumParams, open_medium
from uxk_nvme.medium.cells import CELLS, PRESETS, TLC
from uxk_nvme.medium.ftl.device import FtlMedium
from uxk_nvme.medium.ftl.health import NEVER, Health

MIB = 1 << 20
S = 10**9
DAY_NS = 24 * 3600 * S
UNRECOVERED_READ = 0x281


def health(cell: str = "tlc", **more: Any) -> Health:
    return Health(CELLS[cell], MediumParams(**more), np.random.default_rng(1))


def ftl(**more: Any) -> FtlMedium:
    given: dict[str, Any] = {
        "size": MIB, "medium": "ftl", "cell": "tlc-2tb-scaled", "precondition": "sequential", **more,
    }  # fmt: skip
    medium = open_medium(MediumParams(**given), np.random.default_rng(1))
    assert isinstance(medium, FtlMedium)
    return medium


def read(medium: FtlMedium, unit: int, now_ns: int) -> int:
    return medium.read(unit * 4096, memoryview(bytearray(4096)), now_ns)


@given(
    st.sampled_from(sorted(CELLS)), st.integers(0, 5000), st.integers(0, 1000), st.integers(0, 10**6),
    st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 1000)),
)  # fmt: skip
def test_errors_never_shrink(cell: str, cycles: int, days: int, reads: int, more: tuple[int, int, int]) -> None:
    model = health(cell)
    before = model.rber_ppt(cycles, days * DAY_NS, reads)
    assert before > 0
    assert model.rber_ppt(cycles + more[0], (days + more[1]) * DAY_NS, reads + more[2]) >= before


@given(st.integers(0, 3000), st.integers(0, 500), st.integers(0, 1 << 40))
def test_below_the_limit_no_read_needs_a_retry(cycles: int, days: int, reads: int) -> None:
    model = health()
    if reads < model.limit(cycles, days * DAY_NS):
        assert all(model.read(cycles, days * DAY_NS, reads) == 0 for _ in range(20))


def test_numbers_are_of_the_published_order() -> None:
    # Fresh 3D TLC about 1e-4; Cai et al. (Proc. IEEE 2017): some 1e-3 at the end of the rated life.
    model = health()
    assert 10**7 <= model.rber_ppt(0, 0, 0) <= 10**9
    assert 10**9 <= model.rber_ppt(1000, 0, 0) <= 10**10
    # A read of a worn block adds about 1e-9 (Cai et al., DSN 2015, MLC at 2,000 cycles).
    mlc = health("mlc")
    assert 0.3 * 10**9 <= mlc.rber_ppt(2000, 0, 10**6) - mlc.rber_ppt(2000, 0, 0) <= 3 * 10**9
    # Denser cells bear less.
    rated = [CELLS[name].endurance_cycles for name in ("slc", "mlc", "tlc", "qlc")]
    assert rated == sorted(rated, reverse=True)
    assert {preset.cell for preset in PRESETS.values()} <= set(CELLS)


def test_new_flash_has_no_errors_and_old_flash_needs_retries() -> None:
    new, old = health(), health()
    assert new.limit(0, 30 * DAY_NS) > 10**5
    retries = [old.read(1000, 180 * DAY_NS, 0) for _ in range(200)]
    assert sum(retries) > 0
    assert -1 not in retries
    hopeless = [old.read(3000, 1000 * DAY_NS, 0) for _ in range(100)]
    assert -1 in hopeless
    assert health(errors=False).limit(10**6, 10**20) == NEVER


def test_retries_take_time() -> None:
    fresh = ftl()
    worn = ftl(initial_cycles=1000, refresh=False)
    times = [365 * DAY_NS + unit * S for unit in range(100)]
    quick, slow = ([read(medium, unit, at_ns) - at_ns for unit, at_ns in enumerate(times)] for medium in (fresh, worn))
    assert worn.figures()["read_retries"] > 20
    assert fresh.figures()["read_retries"] == 0
    assert worn.smart(times[-1]).media_errors == 0, "JESD218: a year at the end of the rated life"
    assert sum(slow) > 1.3 * sum(quick)


def test_what_cannot_be_corrected_stays_lost_until_it_is_written() -> None:
    medium = ftl(initial_cycles=3000, refresh=False)
    now_ns = 2000 * DAY_NS
    lost = next(unit for unit in range(200) if read(medium, unit, now_ns) < 0)
    assert read(medium, lost, now_ns) == -UNRECOVERED_READ
    assert medium.verify(lost * 4096, 4096, now_ns) == -UNRECOVERED_READ
    assert medium.smart(now_ns).media_errors >= 1
    assert medium.figures()["uncorrectable_blocks"] >= 8
    end_ns = medium.write(lost * 4096, b"y" * 4096, now_ns)
    assert read(medium, lost, end_ns) >= 0


def test_no_data_leave_with_an_error() -> None:
    medium = ftl(initial_cycles=3000, refresh=False, precondition="none", write_cache=0)
    medium.write(0, b"secret!!" * 512 * 64, 0)
    medium.run_background(S)
    for unit in range(60):
        buffer = bytearray(4096)
        if medium.read(unit * 4096, memoryview(buffer), 3000 * DAY_NS) < 0:
            assert bytes(buffer) == bytes(4096)
            break
    else:
        pytest.fail("no read failed")


def test_reading_disturbs_and_refreshing_helps() -> None:
    def play(*, refresh: bool) -> dict[str, int]:
        medium = ftl(error_scale_ppm=4_000_000, initial_cycles=200, refresh=refresh, endurance_cycles=1000)
        for line in range(medium.geometry.lines):
            medium.flash.reads[line] += 1_500_000
        now_ns = 0
        for round_ in range(3000):
            done_ns = read(medium, round_ % 12, now_ns)
            now_ns = max(now_ns + 1_000_000, done_ns)
            if medium.next_event_ns is not None and medium.next_event_ns <= now_ns - 3_000_000:
                medium.run_background(now_ns)
            if round_ % 100 == 99:
                now_ns += 10 * S
                while medium.next_event_ns is not None:
                    now_ns = max(now_ns, medium.next_event_ns)
                    medium.run_background(now_ns)
        return medium.figures()

    ignored, cared = play(refresh=False), play(refresh=True)
    assert ignored["gc_refreshes"] == 0 < cared["gc_refreshes"]
    assert cared["moved_units"] > 0
    assert cared["read_retries"] * 2 < ignored["read_retries"]


def test_old_data_are_written_anew() -> None:
    medium = ftl(initial_cycles=900, age_scale=1000)
    now_ns = 0
    for _ in range(40):
        now_ns += 3600 * S
        read(medium, 0, now_ns)
        while medium.next_event_ns is not None:
            now_ns = max(now_ns, medium.next_event_ns)
            medium.run_background(now_ns)
    assert medium.figures()["gc_refreshes"] > 0
    assert medium.smart(now_ns).media_errors == 0


def test_blocks_die_faster_the_older_they_are() -> None:
    def dead(cycles: int) -> int:
        model = health()
        return sum(model.goes_bad(cycles, 32) >= 0 for _ in range(4000))

    young, rated, old = dead(100), dead(1000), dead(2500)
    assert young < 10
    assert young < rated < old
    assert old > 3000
    model = health()
    assert {model.goes_bad(10**6, 4) for _ in range(100)} == {0, 1, 2, 3}
    assert health(errors=False).goes_bad(10**6, 4) == -1


def test_health_follows_the_work() -> None:
    medium = ftl(initial_cycles=500, write_cache=0)
    smart = medium.smart(0)
    assert smart.percentage_used == 50
    assert smart.available_spare == 100
    assert smart.critical_warning == 0
    now_ns = 0
    for unit in range(256):
        now_ns = medium.write(unit * 4096, b"x" * 4096, now_ns)
    read(medium, 0, now_ns)
    smart = medium.smart(now_ns)
    assert (smart.host_writes, smart.host_written_bytes) == (256, MIB)
    assert (smart.host_reads, smart.host_read_bytes) == (1, 4096)
    assert smart.nand_written_bytes > MIB // 2
    assert medium.figures()["die_busy_ns"] > 0
    assert TLC.endurance_cycles == 1000
