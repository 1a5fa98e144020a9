"""Conformance checks of service: requests, events, the log, and what happens over time."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from uxk.errors import RequestError, RingFull, UxkError
from uxk.kernel.kernel import Kernel
from uxk.limits import LOG_INTERVAL_NS_DEFAULT, NS_PER_S
from uxk.testing.kernels import Ledger, after_turns, crash
from uxk.testing.lifecycle import POINTS, until_up
from uxk.testing.subject import (
    Subject,
    about,
    broken,
    check,
    expect,
    expect_healthy,
    last_words,
    patience_ns,
    session,
)
from uxk.testing.traffic import hostile, ordinary
from uxk.uapi.entries import Request

IDLE_TURNS_MAX: Final = 1000
"""Turns that an idle module with a timer may take in a second of virtual time: one each millisecond."""


@check
def check_hostile_requests(examined: Subject) -> None:
    """Answers every request exactly once, with whatever status: unknown opcodes, garbage, absurd sizes."""

    async def body(kernel: Kernel) -> None:
        for what, requests in hostile():
            await _serve(examined, kernel, requests, what)

    session(examined, body)


@check
def check_full_queue(examined: Subject) -> None:
    """With the ring and the backlog full, the next submission is refused with EAGAIN; all others are answered."""
    depth = examined.manifest.budget.queue_depth

    async def body(kernel: Kernel) -> None:
        await examined.load(kernel)
        ledger = Ledger(kernel, examined.name)
        ledger.submit(ordinary(depth))
        try:
            ledger.submit(ordinary(depth))
        except RingFull:
            expect(examined.manifest.full == "reject", "EAGAIN with an empty backlog", "a backlog that takes a ring")
        try:
            ledger.submit(ordinary(1))
        except RingFull:
            pass
        else:
            broken(f"{ledger.asked} requests accepted", f"EAGAIN when {depth} are in flight and the backlog is full")
        await ledger.settle(patience_ns(examined.manifest))
        expect(not ledger.problems(), ledger.problems()[:3], "one answer to every request")
        expect_healthy(examined, kernel)

    session(examined, body)


@check
def check_busy_events(examined: Subject) -> None:
    """Survives as many events as its queue can hold, alone and between requests: writes to all its attributes."""

    async def body(kernel: Kernel) -> None:
        await examined.load(kernel)
        ledger = Ledger(kernel, examined.name)
        await after_turns(kernel, POINTS)
        for between in (0, 1):
            for number in range(examined.manifest.budget.queue_depth):
                _write_all(kernel, f"/sys/module/{examined.name}", number)
                ledger.submit(ordinary(between))
            await ledger.settle(patience_ns(examined.manifest))
            await after_turns(kernel, POINTS)
        expect(not ledger.problems(), ledger.problems()[:3], "one answer to every request")
        expect_healthy(examined, kernel)

    session(examined, body)


@check
def check_determinism(examined: Subject) -> None:
    """Two runs with one seed give the same event hash; a run with another seed works as well."""

    async def body(kernel: Kernel) -> str:
        await _serve(examined, kernel, ordinary(64), "ordinary traffic")
        crash(kernel, examined.name)
        await until_up(examined, kernel)
        await kernel.sleep_ns(NS_PER_S)
        return kernel.event_hash()

    first, second = session(examined, body, seed=1), session(examined, body, seed=1)
    expect(first == second, f"event hashes {first} and {second} with seed 1", "the same hash twice")
    session(examined, body, seed=2)


@check
def check_log(examined: Subject) -> None:
    """Under ordinary traffic it logs within its budget, breaks no rule of the queues, and says nothing alarming."""

    async def body(kernel: Kernel) -> None:
        await _serve(examined, kernel, ordinary(64), "ordinary traffic")
        await kernel.sleep_ns(LOG_INTERVAL_NS_DEFAULT)
        account = kernel.module(examined.name).account
        expect(not account.log_suppressed, f"{account.log_suppressed} lines suppressed", "log lines within the budget")
        alarming = [record.text for record in kernel.kmsg.records(max_level=3, source=examined.name)]
        expect(not alarming, alarming[:3], "no line of level err or worse")

    session(examined, body)


@check
def check_idle(examined: Subject) -> None:
    """Idle costs nothing: without a timer or a heartbeat, not one turn in a second."""

    async def body(kernel: Kernel) -> None:
        await examined.load(kernel)
        await kernel.sleep_ns(NS_PER_S)
        agent = examined.agent(kernel)
        if agent is None:
            broken(f"gone by itself; log: {last_words(kernel)}", "a live module")
        before, beats = agent.account.turns, examined.manifest.watchdog.heartbeat_ns
        timed = agent._wake_event is not None
        await kernel.sleep_ns(NS_PER_S)
        turns = agent.account.turns - before
        allowed = (IDLE_TURNS_MAX if timed else 0) + (2 * NS_PER_S // beats + 2 if beats else 0)
        expect(turns <= allowed, f"{turns} turns in an idle second", f"at most {allowed}")

    session(examined, body)


def _write_all(kernel: Kernel, base: str, number: int) -> None:
    """Writes every writable attribute: a parameter's own value, something odd to others."""
    odd = ("0", "-1", "\u20ac", "")[number % 4]
    for path, stat in kernel.sysfs.walk(base):
        if stat.kind == "file" and stat.mode & 0o200:
            with suppress(UxkError, OSError):  # full, or a value that it does not take
                kernel.sysfs.write(path, kernel.sysfs.read(path) if "/parameters/" in path else odd)


async def _serve(examined: Subject, kernel: Kernel, requests: list[Request], what: str) -> None:
    """Has all requests answered, in batches that fit, and looks whether the module is well afterwards."""
    await examined.load(kernel)
    ledger = Ledger(kernel, examined.name)
    depth = examined.manifest.budget.queue_depth
    for begin in range(0, len(requests), depth):
        try:
            ledger.submit(requests[begin : begin + depth])
        except RequestError as exc:
            broken(f"{what}: {exc}; log: {last_words(kernel)}", "a live module")
        await ledger.settle(patience_ns(examined.manifest))
    ledger.port.close()
    with about(what):
        expect(not ledger.problems(), ledger.problems()[:3], "one answer to every request")
        expect_healthy(examined, kernel)
