"""Conformance checks of lifecycle: loading, removal, shutdown, crashes; at once and after each of the first turns."""

from __future__ import annotations

from typing import Final

import trio

from uxk.core.lifecycle import ModuleState
from uxk.errors import InUse
from uxk.kernel.kernel import Kernel
from uxk.kernel.module import Module
from uxk.testing.kernels import Ledger, after_turns, crash, unload_all, usage
from uxk.testing.subject import (
    Subject,
    about,
    broken,
    check,
    expect,
    expect_healthy,
    expect_no_residue,
    last_words,
    patience_ns,
    process_usage,
    session,
)
from uxk.testing.traffic import ordinary

LOADS: Final = 50
"""How often a module is loaded and unloaded."""
POINTS: Final = 8
"""After how many turns at most an operation is cut short: the points at which it is cancelled or crashed."""


@check
def check_load_unload(examined: Subject) -> None:
    """Loads and unloads many times; each time the kernel and the process are as they were before."""

    async def body(kernel: Kernel) -> None:
        before = usage(kernel)
        process_before: dict[str, int] = {}
        for _ in range(LOADS):
            await examined.load(kernel)
            await after_turns(kernel, 1)
            await unload_all(kernel)
            expect_no_residue(kernel, before)
            process_before = process_before or process_usage(examined.cls)
        process = process_usage(examined.cls)
        expect(process == process_before, f"{process} after {LOADS} loads", f"{process_before}, as after the first")

    session(examined, body)


@check
def check_cancelled_load(examined: Subject) -> None:
    """A ``modprobe`` cancelled after each of the first turns (0 to 7) has loaded the module or leaves nothing."""
    for turns in range(POINTS):

        async def body(kernel: Kernel, turns: int = turns) -> None:
            loaded: list[Module] = []

            async def load() -> None:
                loaded.append(await examined.load(kernel))

            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(load)
                    await after_turns(kernel, turns)
                    scope.cancel()
            if loaded:
                with about(f"loaded, {turns} turns later"):
                    expect_healthy(examined, kernel)
            else:
                await unload_all(kernel)  # what it depends on
                expect_no_residue(kernel)

        session(examined, body)


@check
def check_removal_in_flight(examined: Subject) -> None:
    """``rmmod`` with requests in flight is refused, and the requests answered; it works when the client has gone."""
    for turns in range(POINTS):

        async def body(kernel: Kernel, turns: int = turns) -> None:
            ledger = await _under_way(examined, kernel, turns)
            if ledger.waiting:
                try:
                    await kernel.rmmod(examined.name)
                except InUse:
                    pass
                else:
                    broken(f"rmmod with {len(ledger.waiting)} requests in flight", "EBUSY")
            await ledger.settle(patience_ns(examined.manifest))
            expect(not ledger.problems(), ledger.problems()[:3], f"one answer to each after {turns} turns")
            expect_healthy(examined, kernel)

        async def gone(kernel: Kernel, turns: int = turns) -> None:
            ledger = await _under_way(examined, kernel, turns)
            ledger.port.close()

        session(examined, body)
        session(examined, gone)


@check
def check_shutdown_in_flight(examined: Subject) -> None:
    """A kernel that shuts down after each of the first turns (0 to 7) answers every request exactly once."""
    for turns in range(POINTS):

        async def body(kernel: Kernel, turns: int = turns) -> Ledger:
            return await _under_way(examined, kernel, turns)

        problems = session(examined, body, unload=False).problems()
        expect(not problems, f"shut down after {turns} turns: {problems[:3]}", "one answer to every request")


@check
def check_crash(examined: Subject) -> None:
    """Killed after each of the first turns (0 to 7), it comes back as its policy says, serves again, and loses no
    request without a word.
    """
    for turns in range(POINTS):

        async def body(kernel: Kernel, turns: int = turns) -> None:
            ledger = await _under_way(examined, kernel, turns)
            crash(kernel, examined.name)
            await _recover(examined, kernel, f"killed after {turns} turns")
            await ledger.settle(patience_ns(examined.manifest))
            expect(not ledger.problems(), ledger.problems()[:3], f"one answer to each, killed after {turns} turns")
            if examined.agent(kernel) is not None:
                again = Ledger(kernel, examined.name)
                again.submit(ordinary(1))
                await again.settle(patience_ns(examined.manifest))
                expect(not again.problems(), again.problems(), "an answer after the restart")
                faults = kernel.module(examined.name).account.faults
                expect(faults == 1, f"{faults} crashes; log: {last_words(kernel)}", "only the injected one")

        session(examined, body)


@check
def check_crash_loop(examined: Subject) -> None:
    """Killed again and again, it is live after each restart until its policy gives up, and leaves nothing."""

    async def body(kernel: Kernel) -> None:
        await examined.load(kernel)
        for _ in range(examined.manifest.restart.max_restarts + 1):
            if examined.agent(kernel) is None:
                break
            crash(kernel, examined.name)
            agent = examined.agent(kernel)
            if agent is not None:
                await until_up(examined, kernel)
                expect(agent.state in (ModuleState.LIVE, ModuleState.GONE), agent.state.name, "LIVE or GONE")
        if examined.agent(kernel) is None:
            await unload_all(kernel)
            expect_no_residue(kernel)

    session(examined, body)


async def _under_way(examined: Subject, kernel: Kernel, turns: int) -> Ledger:
    """Loads it, submits ordinary requests, and stops after some turns."""
    await examined.load(kernel)
    ledger = Ledger(kernel, examined.name)
    ledger.submit(ordinary(min(24, examined.manifest.budget.queue_depth)))
    await after_turns(kernel, turns)
    return ledger


async def until_up(examined: Subject, kernel: Kernel) -> None:
    """Waits until it is live again or gone for good."""
    restart = examined.manifest.restart
    await kernel.sleep_ns(restart.backoff_max_ns + examined.manifest.ready_timeout_ns)


async def _recover(examined: Subject, kernel: Kernel, when: str) -> None:
    """Its restart policy is kept."""
    await until_up(examined, kernel)
    agent, restart = examined.agent(kernel), examined.manifest.restart
    stays = restart.mode == "temporary" or restart.max_restarts == 0
    seen = "gone" if agent is None else agent.state.name
    if stays:
        expect(agent is None, f"{seen}, {when}", f"gone: policy {restart.mode}, {restart.max_restarts} restarts")
    else:
        live = agent is not None and agent.state is ModuleState.LIVE
        expect(live, f"{seen}, {when}; log: {last_words(kernel)}", f"LIVE: policy {restart.mode}")
