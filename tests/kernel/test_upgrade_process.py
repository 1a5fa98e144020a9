"""Hot restart of an extension in a process of its own: as in a task, on every clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import uxk
from uxk.errors import UpgradeError
from uxk.uapi.manifest import Placement

TALLY = Path(__file__).resolve().parent / "hosted/tally.py"


class Load:
    """``depth`` requests at a time, each of which must come back as it went."""

    def __init__(self, kernel: uxk.Kernel, depth: int) -> None:
        self.kernel = kernel
        self.answered = self.wrong = self.sent = 0
        self.waiting: dict[int, bytes] = {}
        self.stopped = False
        self.port = kernel.module("tally").open_port(self.on_completions)
        self.send(depth)

    def send(self, count: int) -> None:
        for _ in range(0 if self.stopped else count):
            self.sent += 1
            word = b"%d" % self.sent
            self.waiting[self.port.submit(uxk.Request(0, uxk.Op.CALL, word))] = word

    def on_completions(self, completions: list[uxk.Completion]) -> None:
        for completion in completions:
            self.answered += 1
            self.wrong += completion.status != 0 or completion.payload != self.waiting.pop(completion.cid)
        self.send(len(completions))


async def run(placement: Placement, clock: str) -> str:
    async with uxk.Kernel(seed=3, clock=clock) as kernel:  # type: ignore[arg-type]
        module = await kernel.insmod(TALLY, placement=placement)
        load = Load(kernel, 16)
        with pytest.raises(UpgradeError, match="ValueError in turn: as asked, later"):
            await kernel.restart("tally", fails="later", probation_ns=10**9)
        await kernel.restart("tally", fails="checkpoint", probation_ns=20_000)
        with pytest.raises(UpgradeError, match="ValueError in checkpoint: as asked, at the end"):
            await kernel.restart("tally")
        load.stopped = True
        while load.waiting:
            await kernel.sleep_ns(1000)
        assert load.wrong == 0 and load.answered == load.sent > 50
        assert module.account.failed == 0 and module.account.restarts == 0
        lines = [record.text for record in kernel.kmsg.records(source="tally")]
        assert sum(line.startswith("upgrade after ") for line in lines) == 2
        assert sum("live, requests were held" in line for line in lines) == 2
    return kernel.event_hash()


async def test_the_event_hash_is_that_of_task_placement() -> None:
    assert await run("task", "virtual") == await run("process", "virtual")


async def test_on_the_real_clock_nobody_waits() -> None:
    with trio.fail_after(120):
        await run("process", "real")
