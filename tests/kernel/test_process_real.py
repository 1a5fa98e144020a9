"""Process placement on the real clock: the kernel sends, and takes what comes; it waits for nobody.

``UXK_SOAK=1`` kills the driver a hundred times under load; without it three times.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

import uxk
from uxk import limits
from uxk.actor import wire
from uxk.errors import RequestError
from uxk.kernel.process_host import TURNS_AHEAD

HERE = Path(__file__).resolve().parent
VICTIM, RUNNER, STEADY = (HERE / "hosted" / f"{name}.py" for name in ("victim", "runner", "steady"))
ATTACKS = HERE.parents[1] / "examples/attacks"
HONEST, HOSTILE = ATTACKS / "honest.py", ATTACKS / "hostile.py"
SOAK = bool(os.environ.get("UXK_SOAK"))


async def until(condition: Callable[[], bool]) -> None:
    """Looks again and again: what happens to a process is no event of this one's."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


def texts(kernel: uxk.Kernel) -> list[str]:
    return [record.text for record in kernel.kmsg.records()]


async def test_others_are_served_while_it_starts_and_goes() -> None:
    async with uxk.Kernel(clock="real") as kernel:
        here = await kernel.insmod(VICTIM, instance="here")
        served = 0

        async def load() -> None:
            nonlocal served
            while True:
                await here.submit(b"x")
                served += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            module = await kernel.insmod(VICTIM, placement="process")
            at_start = served
            assert at_start > 10
            assert (await module.submit(b"well")).payload == b"well"
            await kernel.rmmod("victim")
            nursery.cancel_scope.cancel()
        assert "goodbye: rmmod" in texts(kernel)
        await kernel.insmod(VICTIM, placement="process")
    assert "goodbye: shutdown" in texts(kernel)


async def test_tasks_of_the_extension_run_freely() -> None:
    async with uxk.Kernel(clock="real") as kernel:
        module = await kernel.insmod(RUNNER, placement="process")
        for number in range(1, 30):
            answer = await module.submit(b"")
            assert answer.payload.split()[0] == b"%d" % number
        assert int(answer.payload.split()[1]) <= kernel.now_ns  # both read the same clock
        assert kernel.sysfs.read("/sys/module/runner/attributes/count").strip() == "19"
        with pytest.raises(RequestError):
            await module.submit(b"raise")
        assert any(text.startswith("oops: ExceptionGroup in run") for text in texts(kernel))


async def test_a_child_that_does_not_read_holds_up_nobody() -> None:
    async with uxk.Kernel(clock="real") as kernel:
        module = await kernel.insmod(VICTIM, placement="process")
        here = await kernel.insmod(VICTIM, instance="here")
        agent = kernel.agents["victim"]
        answers: list[int] = []
        port = module.open_port(lambda done: answers.extend(each.status for each in done))
        port.submit_batch([uxk.Request(0, uxk.Op.CALL, b"hang")])
        for _ in range(2 * limits.QUEUE_DEPTH_DEFAULT):
            agent.event("news", value=bytes(200_000))
            await here.submit(b"well")
        host = agent.host
        assert host is not None and host.stalled
        assert agent.account.rejects["event_dropped"] > 0 and not agent.has_room  # back-pressure where it belongs
        assert agent.account.turns <= 1 + TURNS_AHEAD
        await until(lambda: bool(answers))  # the request's deadline, and with it the watchdog
        assert any(text.startswith("oops: Hung in watchdog") for text in texts(kernel))
        assert (await here.submit(b"well")).payload == b"well"


@pytest.mark.parametrize("kills", [100 if SOAK else 3])
async def test_no_request_is_lost_or_answered_twice_when_it_is_killed(kills: int) -> None:
    async with uxk.Kernel(clock="real") as kernel:
        module = await kernel.insmod(STEADY, placement="process")
        sent = 0
        seen: dict[bytes, int] = {}
        failures: list[int] = []

        def on_answers(done: list[uxk.Completion]) -> None:
            for each in done:
                if each.status:
                    failures.append(each.status)
                else:
                    seen[each.payload] = seen.get(each.payload, 0) + 1
            if not over:
                submit(len(done))

        def submit(count: int) -> None:
            nonlocal sent
            words = [b"request %d" % number for number in range(sent, sent + count)]
            sent += count
            port.submit_batch([uxk.Request(0, uxk.Op.CALL, word) for word in words])

        def more(than: int) -> bool:
            return len(seen) >= than + 100

        over = False
        port = module.open_port(on_answers)
        submit(32)
        for number in range(1, kills + 1):
            await until(partial(more, len(seen)))
            pid = kernel.lsmod()[0].pid
            assert pid > 0
            os.kill(pid, 9)
            await until(lambda number=number: module.account.restarts >= number)  # type: ignore[misc]
        await until(partial(more, len(seen)))
        over = True
        await until(lambda: len(seen) == sent)
        assert not failures
        assert set(seen.values()) == {1} and len(seen) == sent


async def test_a_flood_of_output_is_taken_in_turns() -> None:
    async with uxk.Kernel(clock="real") as kernel:
        module = await kernel.insmod(VICTIM, placement="process")
        requests = [uxk.Request(0, uxk.Op.CALL, b"answer 200000") for _ in range(limits.QUEUE_DEPTH_DEFAULT)]
        answers = await module.submit_batch(requests)
        assert [len(answer.payload) for answer in answers] == [200_000] * len(requests)


async def test_what_a_flood_costs_is_the_flooder_s_own() -> None:
    async with uxk.Kernel(clock="real") as kernel:
        honest = await kernel.insmod(HONEST, placement="process")
        hostile = await kernel.insmod(HOSTILE, placement="process", attack="wire_flood", cpu_ppm=10_000)
        agent, account = kernel.agents["hostile"], hostile.account
        before_ns = account.cpu_ns
        hostile.open_port(lambda answers: None).submit(uxk.Request(0))
        heard = False
        while not (account.throttled and heard):  # of a hundredth of the processor it has used up its share
            heard = heard or agent.unheard
            await honest.submit(b"well")
        assert account.cpu_ns > before_ns
        assert any("10000 ppm of the processor are used up" in text for text in texts(kernel))
        while agent.unheard:
            await honest.submit(b"well")
        assert honest.account.faults == honest.account.rejected == 0


async def test_a_share_is_what_the_kernel_spends_and_its_end_is_no_silence() -> None:
    async with uxk.Kernel(clock="real") as kernel:
        module = await kernel.insmod(VICTIM, placement="process", cpu_ppm=10_000)
        while module.account.throttled < 3:
            assert (await module.submit(b"answer 10000")).payload
        assert module.account.faults == 0
        await kernel.rmmod("victim")
        assert "goodbye: rmmod" in texts(kernel)


async def test_a_child_says_that_its_tasks_woke_only_if_the_clock_is_held() -> None:
    async with uxk.Kernel(clock="real") as kernel:
        module = await kernel.insmod(VICTIM, placement="process")
        with pytest.raises(RequestError):
            await module.submit(b"say " + wire.packed(wire.Dirty()).hex().encode())
        assert any("ProtocolError in process: Dirty, and the clock is not held" in text for text in texts(kernel))


PARENT = """
import os
import time

import uxk


class Parent(uxk.Extension):
    manifest = uxk.Manifest(
        name="parent", placement="process", sandbox=uxk.Sandbox(processes=True, write=("{file}",))
    )

    def on_batch(self, ctx, requests):
        pipe = os.open({file!r}, os.O_WRONLY)
        if os.fork() == 0:
            time.sleep(600)
        os.close(pipe)
        ctx.complete_batch(requests)
"""


async def test_what_a_process_has_started_ends_with_it(tmp_path: Path) -> None:
    pipe, file = tmp_path / "pipe", tmp_path / "parent.py"
    os.mkfifo(pipe)
    read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    file.write_text(PARENT.replace("{file!r}", repr(str(pipe))).replace("{file}", str(pipe)))
    async with uxk.Kernel(clock="real") as kernel:
        module = await kernel.insmod(file)
        await module.submit()
        with pytest.raises(BlockingIOError):  # somebody has it open for writing
            os.read(read, 1)
        await kernel.rmmod("parent")
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(read)
        assert os.read(read, 1) == b""
    os.close(read)
