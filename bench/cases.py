"""Which questions are asked, of whom, and what is demanded of uxk."""

from __future__ import annotations

from functools import partial

from bench import others, uxk_side
from bench.runner import Case, Contender, Target

BATCHES = (1, 32, 256)
SLEEPERS = (1, 32, 1000)
IDLE_MAX_BYTES = 20 << 10
"""Target for one idle extension."""

_ONEWAY_FLOORS = {32: {"trio channel": 20.0, "asyncio.Queue": 2.0}}
_ROUNDTRIP_FLOORS = {1: {"trio channels": 3.0}, 32: {"trio channels": 20.0, "asyncio.Queue": 2.5}}


def oneway(batch: int) -> Case:
    """Messages that reach the peer."""
    contenders = [
        Contender("uxk events", partial(uxk_side.oneway_events, batch)),
        Contender("uxk requests", partial(uxk_side.oneway_requests, batch), "each is completed, too; counted once"),
        Contender("trio channel", partial(others.trio_oneway, batch)),
        Contender("asyncio.Queue", partial(others.asyncio_oneway, batch)),
        Contender("SimPy Store", partial(others.simpy_oneway, batch)),
        Contender("pykka tell", others.pykka_oneway, "unbounded inbox"),
    ]
    if batch == 32:
        contenders += [
            Contender("trio channel of lists", others.trio_oneway_lists, "batched by hand: lists of 32"),
            Contender("asyncio.Queue of lists", others.asyncio_oneway_lists, "batched by hand: lists of 32"),
        ]
    floors = _ONEWAY_FLOORS.get(batch, {})
    targets = [Target(ours, other, floor) for ours in ("uxk events", "uxk requests") for other, floor in floors.items()]
    return Case(f"oneway/{batch}", "messages/s", contenders, targets)


def roundtrip(depth: int) -> Case:
    """Requests answered, ``depth`` of them in flight."""
    floors = _ROUNDTRIP_FLOORS.get(depth, {})
    return Case(
        f"roundtrip/{depth}",
        "round trips/s",
        [
            Contender("uxk", partial(uxk_side.roundtrip, depth)),
            Contender("uxk peers", partial(uxk_side.roundtrip_peers, depth), "extension to extension: two queue pairs"),
            Contender("uxk peers, ctx.queue", partial(uxk_side.roundtrip_queue, depth), "the same, answers in batches"),
            Contender("trio channels", partial(others.trio_roundtrip, depth)),
            Contender("asyncio.Queue", partial(others.asyncio_roundtrip, depth)),
            Contender("SimPy Store", partial(others.simpy_roundtrip, depth)),
            Contender("pykka ask", partial(others.pykka_roundtrip, depth)),
        ],
        [Target("uxk", other, floor) for other, floor in floors.items()],
    )


def heap(sleepers: int) -> Case:
    """Events of virtual time."""
    return Case(
        f"heap/{sleepers}",
        "events/s",
        [
            Contender("uxk", partial(uxk_side.sleepers, sleepers)),
            Contender("SimPy timeout", partial(others.simpy_sleepers, sleepers)),
            Contender("trio MockClock", partial(others.trio_sleepers, sleepers)),
        ],
        [Target("uxk", "SimPy timeout", 1.0)],
    )


def all_cases() -> list[Case]:
    """Every question but that of memory, which needs processes of its own."""
    return [*map(oneway, BATCHES), *map(roundtrip, BATCHES), *map(heap, SLEEPERS)]
