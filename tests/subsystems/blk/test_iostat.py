"""The figures of ``iostat -x``, held against what sysstat's formulas give for the same counters."""

from __future__ import annotations

from typing import Any

import pytest

from uxk.errors import UsageError
from uxk.subsystems.blk.iostat import HEADERS, Snapshot, columns, extended, parse_stat
from uxk.uapi.entries import Op, Request

S = 1_000_000_000
MS = 1_000_000
BEFORE = (100, 10, 800, 50, 200, 20, 3200, 400, 3, 1000, 450, 5, 0, 40, 5, 2, 4)
AFTER = (300, 60, 4000, 450, 205, 20, 3240, 420, 1, 2500, 3450, 6, 1, 1064, 8, 4, 10)


def test_the_formulas_of_sysstat() -> None:
    figures = extended(Snapshot(10 * S, BEFORE), Snapshot(12 * S, AFTER))
    shown = dict(zip(HEADERS, (value / 100 for value in columns(figures)), strict=True))
    assert shown == {
        "r/s": 100, "rkB/s": 800, "rrqm/s": 25, "%rrqm": 20, "r_await": 2, "rareq-sz": 8,
        "w/s": 2.5, "wkB/s": 10, "wrqm/s": 0, "%wrqm": 0, "w_await": 4, "wareq-sz": 4,
        "d/s": 0.5, "dkB/s": 256, "drqm/s": 0.5, "%drqm": 50, "d_await": 3, "dareq-sz": 512,
        "f/s": 1, "f_await": 3, "aqu-sz": 1.5, "%util": 75,
    }  # fmt: skip


def test_nothing_in_no_time_is_nothing() -> None:
    figures = extended(Snapshot(5, AFTER), Snapshot(5, AFTER))
    assert set(columns(figures)) == {0}
    assert min(columns(extended(Snapshot(0, AFTER), Snapshot(S, BEFORE)))) >= 0, "a new disk under an old name"


def test_halves_are_rounded_up() -> None:
    figures = extended(Snapshot(0, (0,) * 17), Snapshot(8 * S, (1, 0, 0, *([0] * 14))))
    assert figures.reads.per_s == 13  # 0.125


@pytest.mark.parametrize("text", ["", "1 2 3", "a " * 17, "1 " * 18])
def test_what_is_no_stat_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="17 integers"):
        parse_stat(text, 0)


async def test_a_disk_that_is_busy_half_of_the_time(lab: Any) -> None:
    async with lab() as it:
        it.medium.latency_ns = 5 * MS

        def look() -> Snapshot:
            return parse_stat(it.kernel.sysfs.read(f"{it.path}/stat"), it.kernel.now_ns)

        client = it.client()
        before, begin_ns = look(), it.kernel.now_ns
        for step in range(100):
            await it.kernel.run_until_ns(begin_ns + step * 10 * MS)
            client.submit(Request(0, Op.READ, b"", 8192, 4096), Request(0, Op.READ, b"", 65536, 4096))
        await it.kernel.run_until_ns(begin_ns + 1000 * MS)
        figures = extended(before, look())
        assert figures.util_percent == 50_00
        assert figures.queue == 1_00
        assert figures.reads == (200_00, 800_00, 0, 0, 5_00, 4_00)
