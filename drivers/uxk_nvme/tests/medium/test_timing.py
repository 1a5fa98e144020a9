"""Latencies: dies overlap, channels carry, collection shows in the tail, bad dies are slow, heat throttles."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import uxk
from uxk_nvme.medium import POWER_STATES, Medium, MediumParams, open_medium
from uxk_nvme.medium.ftl.device import FtlMedium
from uxk_nvme.medium.ftl.thermal import Thermal
from uxk_nvme.medium.latency import SLOTS, table

MIB = 1 << 20
S = 10**9
PAGE = b"x" * 4096
BUFFER = memoryview(bytearray(4096))
TR_NS = 50_000
TPROG_NS = 500_000


def made(**more: Any) -> Medium:
    params = MediumParams(**{"size": 16 * MIB, **more})
    return open_medium(params, np.random.default_rng(1))


def ftl(**more: Any) -> FtlMedium:
    """Flash with round numbers: one unit to a page, no channel time to speak of, no firmware time."""
    medium = made(
        **{
            "medium": "ftl", "cell": "slc", "channels": 4, "dies_per_channel": 2, "planes": 1, "pages_per_block": 16,
            "page_read_ns": TR_NS, "page_program_ns": TPROG_NS, "block_erase_ns": 3_000_000, "interface": 4 * 10**12,
            "controller_ns": 0, "bandwidth": 0, "precondition": "sequential", **more,
        }
    )  # fmt: skip
    assert isinstance(medium, FtlMedium)
    return medium


def read_at(medium: Medium, unit: int, now_ns: int = 0) -> int:
    return medium.read(unit * 4096, BUFFER, now_ns)


# --- dies and channels ---


def test_dies_work_at_the_same_time() -> None:
    medium = ftl()
    # Eight neighbours lie on eight dies; the ninth is the first die's again.
    ends = [read_at(medium, unit) for unit in range(9)]
    assert max(ends[:8]) < TR_NS + 1000
    assert 2 * TR_NS <= ends[8] < 2 * TR_NS + 1000


def test_one_command_uses_all_dies() -> None:
    medium = ftl()
    done_ns = medium.read(0, memoryview(bytearray(8 * 4096)), 0)
    assert done_ns < TR_NS + 10_000
    assert medium.figures()["page_reads"] == 8


def test_neighbours_in_a_page_are_read_once() -> None:
    medium = ftl(planes=4, pages_per_block=4)
    medium.read(0, memoryview(bytearray(4 * 4096)), 0)
    assert medium.figures()["page_reads"] == 1


def test_a_channel_carries_one_at_a_time() -> None:
    """A page takes the channel four times as long as the die: two dies of a channel queue for it."""
    medium = ftl(channels=1, interface=4096 * S // (4 * TR_NS))
    ends = sorted(read_at(medium, unit) for unit in range(2))
    assert ends[0] == 5 * TR_NS
    assert ends[1] == pytest.approx(8 * TR_NS, abs=10)


def test_unwritten_blocks_cost_no_flash() -> None:
    medium = ftl(precondition="none", controller_ns=3000)
    assert read_at(medium, 5, 100) == 3100
    assert medium.figures()["page_reads"] == 0


def test_what_is_buffered_is_read_from_memory() -> None:
    medium = ftl()
    done_ns = medium.write(0, PAGE, 0)
    assert done_ns == 0
    assert read_at(medium, 0) == 0


def test_writes_are_fast_until_the_buffer_is_full() -> None:
    medium = ftl(write_cache=64 * 4096)
    ends = [medium.write(unit * 4096, PAGE, 0) for unit in range(400)]
    assert set(ends[:64]) == {0}
    # From there on as fast as eight dies program.
    assert ends[-1] == pytest.approx((400 - 64) // 8 * TPROG_NS, rel=0.1)


def test_fua_waits_for_the_program() -> None:
    medium = ftl(write_cache=64 * 4096)
    assert medium.write(0, PAGE, 0, fua=True) >= TPROG_NS
    assert medium.write(8 * 4096, PAGE, 0) == 0
    done_ns = medium.flush(0)
    assert done_ns >= TPROG_NS
    assert medium.flush(done_ns) == done_ns
    assert medium.set_write_cache(False, done_ns) == done_ns
    assert medium.write(16 * 4096, PAGE, done_ns) >= done_ns + TPROG_NS
    protected = ftl(write_cache=0)
    assert protected.write(0, PAGE, 0, fua=True) == 0
    assert protected.flush(0) == 0


def test_page_types_differ() -> None:
    medium = ftl(cell="tlc", page_read_ns=0, page_program_ns=0, planes=1, channels=1, dies_per_channel=1,
                 pages_per_block=12)  # fmt: skip
    seen = set()
    for unit in range(0, 48, 4):
        start_ns = (unit + 1) * S
        seen.add(read_at(medium, unit, start_ns) - start_ns)
    assert len(seen) == 3
    assert min(seen) == pytest.approx(56_500, abs=50)
    assert max(seen) == pytest.approx(106_000, abs=50)


def test_reads_may_suspend_programs() -> None:
    def second(**more: Any) -> int:
        medium = ftl(channels=1, dies_per_channel=1, write_cache=4096 * 8, **more)
        medium.write(0, PAGE, 0, fua=True)
        return read_at(medium, 100)

    assert second() >= TPROG_NS + TR_NS
    assert second(read_suspend=True) < TPROG_NS
    medium = ftl(channels=1, dies_per_channel=1, write_cache=4096 * 8, read_suspend=True)
    programmed_ns = medium.write(0, PAGE, 0, fua=True)
    ends = [read_at(medium, unit) for unit in (100, 200, 300)]
    assert ends == sorted(set(ends)), "reads of a die still wait for each other"
    assert medium.write(4096, PAGE, 0, fua=True) > programmed_ns + 3 * TR_NS, "what was suspended takes longer"


def latencies(medium: Medium, count: int, *, writes: int = 2, depth: int = 8) -> list[int]:
    """Of reads among so many writes in ``writes + 1`` commands, in a closed loop."""
    draw = random.Random(3)
    units = medium.store.size_bytes // 4096
    ready, reads = [0] * depth, []
    for number in range(count):
        ready.sort()
        now_ns = ready[0]
        unit = draw.randrange(units)
        if number % (writes + 1):
            done_ns = medium.write(unit * 4096, PAGE, now_ns)
        else:
            done_ns = read_at(medium, unit, now_ns)
            reads.append(done_ns - now_ns)
        assert done_ns >= now_ns
        ready[0] = done_ns
    return sorted(reads)


def test_collection_shows_in_the_tail() -> None:
    # The first writes of a new device, and those of one in use, at the same rate.
    new, used = (
        ftl(precondition="none", over_provisioning_ppm=200_000),
        ftl(over_provisioning_ppm=200_000, precondition="random"),
    )
    fresh, worn = latencies(new, 2000), latencies(used, 2000)
    assert new.figures()["moved_units"] == 0 < used.figures()["moved_units"]
    assert worn[len(worn) * 99 // 100] > 2 * fresh[len(fresh) * 99 // 100]


def test_a_slow_die_is_the_tail() -> None:
    medium = ftl(slow_die=3, slow_ppm=20_000_000)
    ends = [read_at(medium, unit) for unit in range(8)]
    assert sum(end > 10 * TR_NS for end in ends) == 1
    medium.slow_die(3, 1_000_000)
    ends = [read_at(medium, unit, S) - S for unit in range(8)]
    assert max(ends) < 2 * TR_NS


def test_a_slow_channel_slows_its_dies() -> None:
    medium = ftl(interface=4096 * S // TR_NS)
    medium.slow_channel(2, 10_000_000)
    ends = [read_at(medium, unit, (unit + 1) * S) - (unit + 1) * S for unit in range(8)]
    assert sum(end > 5 * TR_NS for end in ends) == 2


def test_flash_is_changed_at_run_time() -> None:
    medium = ftl()
    medium.control("slow_die 3 20000000")
    ends = [read_at(medium, unit) for unit in range(8)]
    assert sum(end > 10 * TR_NS for end in ends) == 1
    medium.control("slow_die 3 1000000")
    medium.control("slow_channel 1 5000000")
    medium.control("throttle 1")
    assert medium.smart(0).throttle == 1
    medium.control("throttle off")
    assert medium.smart(0).throttle == 0
    for text in (
        "",
        "slow_die",
        "slow_die 3",
        "slow_die 3 1",
        "slow_die x 2000000",
        "throttle 3",
        "throttle 1 2",
        "slow_die 3 9999999999999",
    ):
        with pytest.raises(uxk.UsageError, match="expected"):
            medium.control(text)
    with pytest.raises(uxk.UsageError, match="slow_die=8"):
        medium.control("slow_die 8 2000000")
    with pytest.raises(uxk.UsageError, match="medium=ftl"):
        made().control("throttle 1")


def test_a_link_bounds_the_rate() -> None:
    medium = ftl(bandwidth=1_000_000_000)
    ends = [medium.write(unit * 4096, PAGE, 0) for unit in range(4)]
    assert ends == pytest.approx([4096, 8192, 12288, 16384], abs=8)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 255), st.integers(0, 10**6)), max_size=200), st.integers(0, 9)
)
def test_equal_seeds_give_equal_times(steps: list[tuple[int, int, int]], seed: int) -> None:
    def play() -> list[int]:
        params = MediumParams(size=MIB, medium="ftl", cell="tlc-2tb-scaled", write_cache=65536, precondition="random",
                              initial_cycles=2000, gc_victim="d-choices")  # fmt: skip
        medium = open_medium(params, np.random.default_rng(seed))
        now_ns, results = 0, []
        for kind, unit, gap_ns in steps:
            now_ns += gap_ns
            match kind:
                case 0:
                    results.append(medium.write(unit * 4096, PAGE, now_ns))
                case 1:
                    results.append(medium.read(unit * 4096, BUFFER, now_ns))
                case _:
                    results.append(medium.flush(now_ns))
        return [*results, *medium.figures().values()]

    assert play() == play()


# --- heat and power ---


def test_full_load_heats_and_throttling_holds() -> None:
    thermal = Thermal(MediumParams())
    idle_mk = thermal.mk
    for _ in range(3000):
        thermal.advance(S // 10, 8 * S // 10, 8, 200 * MIB)
    assert thermal.mk > idle_mk + 30_000
    assert thermal.level == 1
    assert thermal.transitions[1] == 1
    assert thermal.time_ns[1] > 0
    assert thermal.warning_ns == pytest.approx(thermal.time_ns[1], rel=0.1)
    for _ in range(3000):
        thermal.advance(S // 10, 0, 8, 0)
    assert thermal.level == 0
    assert thermal.mk == pytest.approx(idle_mk, abs=50)


@given(st.integers(1, 10**13), st.integers(0, 10**13), st.integers(0, 10**12))
def test_temperature_stays_between_idle_and_full(dt_ns: int, busy_ns: int, moved: int) -> None:
    thermal = Thermal(MediumParams())
    low_mk = thermal.mk
    thermal.advance(dt_ns, busy_ns, 8, moved)
    assert thermal.mk >= low_mk - 100
    assert thermal.mk <= max(low_mk, 298_000 + 8 * (5_200 + moved * 250 // dt_ns * 1000)) + 100


def test_a_hot_place_makes_it_slow() -> None:
    cool, hot = ftl(), ftl(ambient_k=350)
    now_ns = 10 * S
    assert read_at(cool, 0, now_ns) - now_ns < 1.2 * TR_NS
    assert read_at(hot, 0, now_ns) - now_ns > 4 * TR_NS
    smart = hot.smart(now_ns)
    assert smart.throttle == 2
    assert smart.critical_warning & 2
    assert smart.temperature_k > 353
    assert smart.thermal_transitions_2 == 1


def test_throttling_can_be_forced() -> None:
    medium = ftl()
    medium.force_throttle(2)
    assert read_at(medium, 0) == pytest.approx(5 * TR_NS, abs=100)
    medium.force_throttle(None)
    assert read_at(medium, 0, S) - S == pytest.approx(TR_NS, abs=100)


@pytest.mark.parametrize("kind", ["simple", "ftl"])
def test_power_states_slow_and_sleep(kind: str) -> None:
    medium = made(medium=kind, precondition="sequential")
    base_ns = read_at(medium, 0, S) - S
    medium.set_power_state(2, 2 * S)
    slow_ns = read_at(medium, 0, 2 * S) - 2 * S
    assert slow_ns > 1.5 * base_ns
    medium.set_power_state(4, 2 * S)
    assert read_at(medium, 0, 3 * S) - 3 * S == pytest.approx(slow_ns + POWER_STATES[4].exit_ns, rel=0.01)
    assert medium.power_state == 2, "the last operational state"
    assert read_at(medium, 0, 4 * S) - 4 * S == pytest.approx(slow_ns, rel=0.01)
    medium.set_power_state(0, 4 * S)
    assert read_at(medium, 0, 5 * S) - 5 * S == pytest.approx(base_ns, rel=0.01)
    with pytest.raises(uxk.UsageError, match="power state 5"):
        medium.set_power_state(5, 4 * S)


# --- without flash ---


def test_none_takes_no_time() -> None:
    medium = made()
    assert medium.write(0, PAGE, 77) == medium.flush(77) == medium.deallocate(0, 512, 77) == 77
    assert read_at(medium, 0, 77) == 77
    medium.set_power_state(2, 77)
    medium.run_background(77)
    assert medium.next_event_ns is None
    assert medium.smart(77).host_written_bytes == 4096


def test_simple_has_lanes_and_a_pipe() -> None:
    medium = made(medium="simple", lanes=2, read_ns=100, write_ns=10, bandwidth=0, flush_ns=50, trim_ns=7)
    assert [read_at(medium, unit) for unit in range(5)] == [100, 100, 200, 200, 300]
    assert medium.write(0, PAGE, 1000) == 1010
    assert medium.flush(2000) == 2000, "without a volatile cache there is nothing to wait for"
    assert medium.deallocate(0, 4096, 3000) == 3007
    assert medium.verify(0, 4096, 4000) == 4100
    piped = made(medium="simple", lanes=64, read_ns=100, bandwidth=4096 * 10**6)
    assert [read_at(piped, unit) for unit in range(3)] == [1000, 2000, 3000]
    cached = made(medium="simple", write_ns=10, flush_ns=50, write_cache=65536, bandwidth=0)
    assert cached.write(0, PAGE, 0, fua=True) == 60
    assert cached.flush(100) == 150


def test_simple_follows_a_percentile_table() -> None:
    medium = made(medium="simple", read_percentiles="50:100us 99:200us 99.9:5ms", lanes=1, bandwidth=0)
    taken = sorted(read_at(medium, 0, k * S) - k * S for k in range(4000))
    assert taken[1000] == 100_000
    assert taken[3950] == pytest.approx(200_000, rel=0.05)
    assert 2 <= sum(t == 5_000_000 for t in taken) <= 12


def test_tables_are_inverse_distributions() -> None:
    steps = table("p", "10:1us 90:9us")
    assert len(steps) == SLOTS
    assert steps == sorted(steps)
    assert steps[0] == 1000
    assert steps[SLOTS // 2] == pytest.approx(5000, rel=0.01)
    assert steps[-1] == 9000
    assert table("p", "100:5") == [5] * SLOTS


@pytest.mark.parametrize("text", ["", "x", "50", "50:", "50:1 40:2", "50:2 60:1", "101:5", "50:1h", "-5:1", "5 :1"])
def test_bad_tables_are_refused(text: str) -> None:
    with pytest.raises(uxk.ParamError, match="expected ascending"):
        table("read_percentiles", text)


def test_health_data_can_be_set() -> None:
    for kind in ("none", "ftl"):
        medium = made(medium=kind)
        medium.override_smart("temperature_k", 400)
        medium.override_smart("percentage_used", 120)
        assert medium.smart(0)[:2] == (400, 120)
        medium.override_smart("temperature_k", None)
        assert medium.smart(0).temperature_k < 310
        with pytest.raises(uxk.UsageError, match="temprature"):
            medium.override_smart("temprature", 1)
