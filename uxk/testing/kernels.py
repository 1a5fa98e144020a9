"""A kernel for tests: boot it, stop it after so many turns, crash a module from outside, see what is left over."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from uxk.actor.actor import Crash
from uxk.core.manifest import canonical
from uxk.errors import NoSuchModule, Stalled
from uxk.kernel.kernel import Kernel
from uxk.kernel.machine import Runnable
from uxk.limits import NS_PER_S
from uxk.uapi.entries import Completion, Request


@asynccontextmanager
async def boot(*, seed: int = 7, **options: Any) -> AsyncIterator[Kernel]:
    """A booted kernel on the virtual clock: ``async with boot() as kernel``.

    ``options`` are those of :class:`uxk.Kernel`.
    """
    async with Kernel(seed=seed, **options) as kernel:
        yield kernel


# --- what is left over --------------------------------------------------------------------------------


def usage(kernel: Kernel) -> dict[str, int]:
    """What all instances together hold of the kernel, by resource: counts, or bytes where the name says so.

    Versions of snapshots are not counted: what was published stays for its readers.
    """
    machine = kernel.machine
    tree, arena, locks = machine.tree, machine.arena.statistics(), machine.locks.statistics()
    return {
        "agents": len(kernel.agents),
        "devices": len(kernel.devices.devices),
        "chardevs": len(kernel.chardevs.devices),
        "kobjects": tree.kobject_count,
        "links": tree.link_count,
        "attributes": tree.attribute_count,
        "waiters": tree.waiter_count,
        "kmsg_followers": machine.kmsg.statistics().followers,
        "capabilities": machine.caps.statistics().live,
        "arena_bytes": arena.used_bytes,
        "granted_bytes": machine.granted_bytes,
        "locks": locks.locks,
        "pins": machine.snapshots.statistics().readers,
        "wait_edges": len(machine.waits),
        "hints": sum(site.held for site in machine.sites.values()),
        "models": len(kernel.models),
        "runnable": sum(getattr(each, "host", None) is not None for each in machine.runnable),
        "dirty": len(machine.dirty),
        "outstanding": machine.outstanding,
        "timers": machine.heap.lasting,
    }


def residue(kernel: Kernel, since: Mapping[str, int] | None = None) -> dict[str, int]:
    """By how much each figure of :func:`usage` differs from ``since``; empty when nothing is left over.

    Without ``since``, compares with a kernel that was just booted.
    """
    before = _fresh() if since is None else since
    return {name: value - before[name] for name, value in usage(kernel).items() if value != before[name]}


@cache
def _fresh() -> dict[str, int]:
    return usage(Kernel(arena_bytes=1 << 20))


# --- interventions ------------------------------------------------------------------------------------


class _RunQueue(deque[Runnable]):
    """The kernel's run queue, with a count of turns to go until somebody is told."""

    def __init__(self, items: Iterable[Runnable]) -> None:
        super().__init__(items)
        self.turns = 0
        self.tell: Callable[[], None] | None = None

    def popleft(self) -> Runnable:
        """Takes the next instance to run; tells at the last turn that was asked for."""
        self.turns -= 1
        if self.turns == 0 and self.tell is not None:
            self.tell()
        return super().popleft()


async def after_turns(kernel: Kernel, turns: int) -> None:
    """Lets the kernel run ``turns`` turns of instances; fewer if then nothing is left to do."""
    if turns <= 0:
        return
    machine, dispatcher = kernel.machine, kernel.dispatcher
    queue = machine.runnable
    if not isinstance(queue, _RunQueue):
        machine.runnable = _RunQueue(queue)
        queue.clear()
        queue = machine.runnable
    goal = dispatcher.goal(f"{turns} turns", until_idle=True)
    queue.turns, queue.tell = turns, goal.reach
    try:
        await dispatcher.wait(goal)
    except Stalled:
        pass  # nothing is left to do, though somebody waits
    finally:
        queue.tell = None


def crash(kernel: Kernel, name: str, why: str = "injected by a test") -> None:
    """Kills the present incarnation of instance ``name``, as an exception in its code would.

    Its restart policy and the fate of its requests apply.  Raises :class:`NoSuchModule` if it is not loaded.
    """
    agent = kernel.agents.get(canonical(name))
    if agent is None:
        raise NoSuchModule(f"crash: {name!r} is not loaded")
    kernel._incarnations.supervisor.crashed(agent, Crash("outside", "Injected", why, ""))


async def unload_all(kernel: Kernel) -> None:
    """Removes every instance, the newest first, as ``rmmod`` would."""
    for row in kernel.lsmod():
        if row.name in kernel.agents:
            await kernel.rmmod(row.name)


# --- requests and their answers -----------------------------------------------------------------------


class Ledger:
    """Requests asked of an instance and the answers that came: each must be answered exactly once."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        self._kernel = kernel
        self._goal = kernel.dispatcher.goal("answers")
        self._asked: dict[int, Request] = {}
        self.answers: dict[int, list[Completion]] = {}
        self.port = kernel.module(name).open_port(self._on_completions)

    def submit(self, requests: Iterable[Request]) -> None:
        """Submits all or none; raises as :meth:`uxk.Port.submit_batch`."""
        batch = list(requests)
        self.port.submit_batch(batch)
        self._asked.update((request.cid, request) for request in batch)

    @property
    def waiting(self) -> list[Request]:
        """Requests without an answer."""
        return [request for cid, request in self._asked.items() if cid not in self.answers]

    @property
    def asked(self) -> int:
        """How many requests were accepted."""
        return len(self._asked)

    def problems(self) -> list[str]:
        """Every request that was not answered exactly once, in words."""
        found = [f"no answer to {request!r}" for request in self.waiting]
        for cid, answers in self.answers.items():
            if cid not in self._asked:
                found.append(f"an answer to command {cid}, which nobody gave")
            elif len(answers) > 1:
                found.append(f"{len(answers)} answers to {self._asked[cid]!r}")
        return found

    async def settle(self, limit_ns: int = 3600 * NS_PER_S) -> None:
        """Runs the kernel until everything is answered, at most for ``limit_ns`` of virtual time."""
        if not self.waiting:
            return
        until_ns = self._kernel.now_ns + limit_ns
        self._goal = self._kernel.dispatcher.goal(f"{len(self.waiting)} answers", until_ns=until_ns)
        await self._kernel.dispatcher.wait(self._goal)

    def _on_completions(self, completions: list[Completion]) -> None:
        for completion in completions:
            self.answers.setdefault(completion.cid, []).append(completion)
        if not self.waiting:
            self._goal.reach()
