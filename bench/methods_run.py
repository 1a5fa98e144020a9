"""Runs one method, or several, on the same writes, and says what they did."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import thread_time_ns
from typing import Any, Final

import msgspec
import trio

import uxk
from bench.methods_flow import Cleaner, Figures, Setup
from bench.methods_ways import WAYS, Upcall, Way
from uxk.errors import KernelBug
from uxk.scenario.pages.load import load_pages
from uxk.subsystems.lfs.geometry import Geometry
from uxk.subsystems.lfs.policies import Greedy, Policy, SepGC
from uxk.subsystems.lfs.reference import Volume

GP_PPM: Final = 150_000
LOGS: Final = 2
START_NS: Final = 1_000_000
"""When the timed writes begin: by then every adviser is loaded."""
HEARD_NS: Final = 100_000
"""For the first answer to what was pushed."""
ACCOUNTED: Final = (
    "crossings", "messages_in", "messages_out", "bytes_in", "bytes_out", "charged_ns", "cpu_ns", "turns",
)  # fmt: skip


class Outcome(msgspec.Struct, frozen=True):
    """One run of one method.  Times are virtual but for ``host_ns`` and ``cpu_ns``."""

    way: str
    setup: Setup
    wa_ppm: int
    """The KPI: (user + moved) / user blocks of the timed writes, in millionths."""
    decisions: int
    followed: int
    same: int
    crossings: int
    """All of the timed part, as the account of the adviser's instance has them."""
    bytes: int
    """Frames, both ways."""
    shared_bytes: int
    entries: int
    charged_ns: int
    """What crossings, entries, bytes and thinking were charged."""
    age_median_ns: int
    age_p99_ns: int
    wait_median_ns: int
    """From the need to the decision."""
    wait_max_ns: int
    writes_delayed: int
    delay_ns: int
    delay_max_ns: int
    blocking: int
    """Decisions of the kernel's that waited for an extension, as the wait-for graph has found them."""
    cycles: int
    dropped: int
    """Entries that the kernel refused or dropped."""
    elapsed_ns: int
    cpu_ns: int
    """Host time in the adviser's turns."""
    host_ns: int
    """Host time of the thread for the timed part."""
    event_hash: str
    victims: list[int]
    report: str = ""
    """What the wait-for graph said first."""


def prepared(setup: Setup) -> tuple[Volume, list[int]]:
    """The volume after its fill and one more round of writes, all by the default; and the pages of the timed writes."""
    run = load_pages(setup.workload, pages=setup.pages, writes=setup.pages + setup.writes, seed=setup.seed)
    geometry = Geometry(pages=setup.pages, segment_blocks=setup.segment_blocks, gp_ppm=GP_PPM, logs=LOGS)
    volume = Volume(geometry, Policy(SepGC(), Greedy()))
    pages = run.pages.tolist()
    begin = run.fill + setup.pages
    volume.run(pages[:begin])
    while volume.triggered and (victim := volume.select()) >= 0:
        volume.collect(victim)
    return volume, pages[begin : begin + setup.writes]


async def play(way_class: type[Way], setup: Setup) -> Outcome:
    """One run.  Raises what the kernel raises, and :class:`KernelBug` if the volume does not add up afterwards."""
    volume, pages = prepared(setup)
    user, moved = volume.now, volume.moved
    async with uxk.Kernel(seed=setup.seed, clock=setup.clock) as kernel, trio.open_nursery() as nursery:
        cleaner = Cleaner(kernel, volume, pages, setup)
        way = way_class(cleaner, nursery, START_NS + setup.hang_ns)
        await way.start()
        await kernel.run_until_ns(START_NS)
        way.push()  # everybody begins with the same state
        await kernel.sleep_ns(HEARD_NS)
        before = _account(way)
        way.shared_bytes = 0
        began_ns = thread_time_ns()
        cleaner.start()
        await kernel.run()
        host_ns = thread_time_ns() - began_ns
        spent = {name: after - before[name] for name, after in _account(way).items()}
        waits = kernel.machine.waits.statistics()
        rejects = sum(way.module.account.rejects.values()) if way.module is not None else 0
        outcome = _outcome(way, cleaner.figures, spent, {
            "wa_ppm": (volume.now - user + volume.moved - moved) * 1_000_000 // max(volume.now - user, 1),
            "blocking": waits.blocking_decisions, "cycles": waits.cycles, "dropped": rejects,
            "elapsed_ns": kernel.now_ns - START_NS - HEARD_NS, "host_ns": host_ns, "event_hash": kernel.event_hash(),
        })  # fmt: skip
        if volume.now - user != len(pages):
            raise KernelBug(f"{way.name}: {volume.now - user} of {len(pages)} writes done")
        nursery.cancel_scope.cancel()
    volume.check()
    return outcome


def _account(way: Way) -> dict[str, int]:
    account = None if way.module is None else way.module.account
    return {name: 0 if account is None else getattr(account, name) for name in ACCOUNTED}


def _outcome(way: Way, figures: Figures, spent: dict[str, int], more: dict[str, Any]) -> Outcome:
    ages, waits = figures.ages_ns, figures.waits_ns
    return Outcome(
        way=way.name, setup=way.setup, decisions=len(figures.victims), followed=figures.followed, same=figures.same,
        crossings=spent["crossings"], bytes=spent["bytes_in"] + spent["bytes_out"], shared_bytes=way.shared_bytes,
        entries=spent["messages_in"] + spent["messages_out"], charged_ns=spent["charged_ns"] + way.charged_ns,
        age_median_ns=int(median(ages)) if ages else 0, age_p99_ns=sorted(ages)[len(ages) * 99 // 100] if ages else 0,
        wait_median_ns=int(median(waits)) if waits else 0, wait_max_ns=max(waits, default=0),
        writes_delayed=figures.writes_delayed, delay_ns=figures.delay_ns, delay_max_ns=figures.delay_max_ns,
        cpu_ns=spent["cpu_ns"], victims=figures.victims,
        report=way.reports[0] if isinstance(way, Upcall) and way.reports else "", **more,
    )  # fmt: skip


def run_ways(names: Sequence[str], setup: Setup) -> dict[str, Outcome]:
    """Each method of these names once."""
    return {name: trio.run(play, WAYS[name], setup) for name in names}
