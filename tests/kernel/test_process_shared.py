"""A process that several instances share: one life, one death, and otherwise as if each had its own.

``UXK_SOAK=1`` tries every kind of death, without it three.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import uxk
from uxk.actor import wire
from uxk.actor.sandbox import SPARE_FILES, available
from uxk.core.cost import ClockKind
from uxk.errors import ManifestError, ModuleError, RequestError

HERE = Path(__file__).resolve().parent
LODGER, WALKER = HERE / "hosted/lodger.py", HERE / "hosted/walker.py"
OOPS = re.compile(r"oops: [A-Z]\w+ in ")
SOAK = bool(os.environ.get("UXK_SOAK"))


def host_processes() -> set[str]:
    """Processes that this one has started and not reaped."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.fixture(autouse=True)
def nothing_is_left() -> object:
    """No process, not even a dead one, and no descriptor stays behind."""
    before, descriptors = host_processes(), set(os.listdir("/proc/self/fd"))
    yield
    assert host_processes() <= before
    assert set(os.listdir("/proc/self/fd")) <= descriptors


async def say(module: uxk.Module, word: str) -> bytes:
    return (await module.submit(word.encode())).payload


def texts(kernel: uxk.Kernel) -> list[str]:
    return [record.text for record in kernel.kmsg.records()]


def oopses(kernel: uxk.Kernel) -> list[tuple[str, str]]:
    return [(each.source, each.text) for each in kernel.kmsg.records() if OOPS.match(each.text)]


async def until(condition: Callable[[], bool]) -> None:
    """Looks again and again: what happens to a process is no event of this one's."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


async def load(kernel: uxk.Kernel, *names: str, **options: Any) -> list[uxk.Module]:
    return [await kernel.insmod(LODGER, instance=name, placement="process", **options) for name in names]


async def test_two_live_in_one_process_and_one_may_go() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        (one,) = await load(kernel, "one")
        pid = int(await say(one, "pid"))
        walker = await kernel.insmod(WALKER, placement="process")
        assert pid != os.getpid() and [row.pid for row in kernel.lsmod()] == [pid, pid]
        assert {kernel.sysfs.read(f"/sys/module/{name}/pid").strip() for name in ("one", "walker")} == {str(pid)}
        await kernel.run()
        assert await say(walker, "") == b"20"
        await kernel.rmmod("one")
        assert await say(walker, "") == b"20" and str(pid) in os.listdir("/proc")
        (two,) = await load(kernel, "two")
        assert int(await say(two, "pid")) == pid
        await kernel.rmmod("walker")
        assert int(await say(two, "pid")) == pid
        await kernel.rmmod("two")
        assert str(pid) not in os.listdir("/proc")
        (three,) = await load(kernel, "three")
        assert int(await say(three, "pid")) != pid


@pytest.mark.parametrize("clock", ["virtual", "charged"])
async def test_the_event_hash_is_that_of_tasks_and_of_processes_of_their_own(
    clock: ClockKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(placement: str, host: str) -> str:
        monkeypatch.setenv("UXK_TEST_HOST", host)
        async with uxk.Kernel(seed=3, clock=clock, costs_ns={"lodger": 700, "walker": 900}) as kernel:
            modules = [
                await kernel.insmod(file, instance=name, placement=placement)
                for file, name in ((LODGER, "one"), (WALKER, "walker"), (LODGER, "two"), (WALKER, "other"))
            ]
            words = [f"word {number}".encode() for number in range(40)]
            for module in modules:  # all at one instant
                module.open_port(lambda answers: None).submit_batch([uxk.Request(0, uxk.Op.CALL, w) for w in words])
            await kernel.run()
            with pytest.raises(RequestError):
                await say(modules[0], "raise")
            await modules[1].submit(b"raise", check=False)
            await modules[3].submit(b"end")
            await kernel.run()
            assert await say(modules[0], "again") == await say(modules[2], "again") == b"again"
            assert modules[0].account.restarts == 1 and modules[2].account.faults == 0
        return kernel.event_hash()

    assert len({await run("task", "house"), await run("process", ""), await run("process", "house")}) == 1


OUT_OF_TURN = wire.packed(wire.Out(77, [], [], None, False, 0)).hex()
DEATHS = (
    ("exit 3", "Exited in process: status 3", "Exited in process: status 3", False),
    ("shout ffffffff", "ProtocolError in process: a message of 429", "Killed in process: host house killed", False),
    ("hang", "Hung in turn: no answer within ", "Killed in process: host house killed for one: Hung", True),
    ("signal 9", "Killed in process: signal 9 (SIGKILL)", "Killed in process: signal 9 (SIGKILL)", True),
    ("fault", "Killed in process: signal 11 (SIGSEGV)", "Killed in process: signal 11 (SIGSEGV)", False),
    (f"shout {OUT_OF_TURN}", "ProtocolError in process: OUTPUT 77", "Killed in process: host house killed for", False),
    ("close", "Exited in process: it closed its connection", "Killed in process: host house killed for", False),
)


async def test_they_die_together_each_with_an_oops_and_come_back_by_their_own_policies() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        kernel.sysfs.write("/proc/sys/kernel/host_answer_ns", "300000000")
        one, two = await load(kernel, "one", "two")
        here = await kernel.insmod(LODGER, instance="here")
        for count, (word, told, others, chance) in enumerate(DEATHS if SOAK else DEATHS[:3], 1):
            walker = await kernel.insmod(WALKER, placement="process")
            before, pid = len(oopses(kernel)), int(await say(two, "pid"))
            told_before = len(texts(kernel))
            at_ns = kernel.now_ns
            with pytest.raises(RequestError):
                await say(one, word)
            assert kernel.now_ns == at_ns
            await kernel.run()
            found = {source: text.removeprefix("oops: ") for source, text in oopses(kernel)[before:]}
            assert sorted(found) == ["one", "two", "walker"]
            # Of what is shouted into all connections, the kernel may hear another's first.
            guilty = next(source for source, text in found.items() if text.startswith(told))
            assert guilty == "one" or word.startswith("shout")
            innocent = {text for source, text in found.items() if source != guilty}
            assert len(innocent) == 1 and innocent.pop().startswith(others)
            assert any("not reproducible" in text for text in texts(kernel)[told_before:]) == chance
            assert one.account.restarts == two.account.restarts == count
            assert walker.account.faults == 1 and {row.name for row in kernel.lsmod()} == {"one", "two", "here"}
            assert await say(one, "pid") == await say(two, "pid") != b"%d" % pid
            assert str(pid) not in os.listdir("/proc")
        assert await say(here, "well") == b"well" and here.account.faults == 0


async def test_a_death_of_their_own_making_comes_at_the_same_instant_every_time() -> None:
    async def run() -> str:
        async with uxk.Kernel(seed=4) as kernel:
            one, two = await load(kernel, "one", "two")
            await kernel.insmod(WALKER, placement="process")
            two.open_port(lambda answers: None).submit_batch([uxk.Request(0, uxk.Op.CALL, b"x") for _ in range(20)])
            await one.submit(b"exit 3", check=False)
            await kernel.run()
            await kernel.rmmod("one")
        return kernel.event_hash()

    assert await run() == await run()


async def test_only_those_with_the_same_sandbox_share_and_their_limits_add_up(tmp_path: Path) -> None:
    greedy = tmp_path / "greedy.py"
    text = LODGER.read_text().replace('name="lodger"', 'name="greedy"').replace("files=40", "files=40, network=True")
    greedy.write_text(text)
    async with uxk.Kernel(seed=1) as kernel:
        (one,) = await load(kernel, "one")
        assert int(await say(one, "limit")) == 40 + SPARE_FILES
        with pytest.raises(ModuleError, match=r"greedy: host 'house': its sandbox.network is not that of one"):
            await kernel.insmod(greedy, placement="process")
        walker = await kernel.insmod(WALKER, placement="process")
        assert int(await say(one, "limit")) == 40 + 30 + 2 * SPARE_FILES
        await kernel.rmmod("walker")
        await load(kernel, "two")
        assert int(await say(one, "limit")) == 40 + 40 + 2 * SPARE_FILES
        if available()["seccomp"]:
            assert await say(one, "raise_limit") == b"denied"
        assert walker.account.faults == 0


@pytest.mark.parametrize("clock", ["virtual", "real"])
async def test_a_process_that_takes_nobody_in_is_replaced(clock: ClockKind) -> None:
    async with uxk.Kernel(seed=1, clock=clock) as kernel:
        one, two = await load(kernel, "one", "two")
        pid = await say(one, "pid")
        await say(one, "close_door")
        (three,) = await load(kernel, "three")
        await kernel.sleep_ns(10_000_000)
        await until(lambda: one.account.faults == two.account.faults == 1)
        await until(lambda: one.state.name == two.state.name == "LIVE")
        assert await say(one, "pid") == await say(two, "pid") == await say(three, "pid") != pid
        assert three.account.faults == 0


async def test_a_name_that_is_none_is_refused() -> None:
    class Nameless(uxk.Extension):
        manifest = uxk.Manifest(name="nameless", host="No Name")

    async with uxk.Kernel() as kernel:
        with pytest.raises(ManifestError, match="host: name 'No Name': expected a-z"):
            await kernel.insmod(Nameless)


# --- on the real clock -------------------------------------------------------------------------------------


async def test_on_the_real_clock_they_share_as_well() -> None:
    async with uxk.Kernel(clock="real") as kernel:
        modules: list[uxk.Module] = []

        async def start(name: str) -> None:
            modules.extend(await load(kernel, name))

        async with trio.open_nursery() as nursery:  # the second joins while the first is on its way
            for name in ("one", "two"):
                nursery.start_soon(start, name)
        walker = await kernel.insmod(WALKER, placement="process")
        one, two = modules
        pid = int(await say(one, "pid"))
        assert pid == int(await say(two, "pid")) and {row.pid for row in kernel.lsmod()} == {pid}
        count = "/sys/module/walker/attributes/count"
        await until(lambda: kernel.sysfs.exists(count) and kernel.sysfs.read(count).strip() == "20")
        with pytest.raises(RequestError):
            await say(one, "raise")
        await until(lambda: one.account.restarts == 1 and one.state.name == "LIVE")
        assert int(await say(one, "pid")) == pid and two.account.faults == 0
        await kernel.rmmod("walker")
        assert walker.account.faults == 0 and int(await say(two, "pid")) == pid
        os.kill(pid, 9)
        await until(lambda: two.account.restarts == 1 and one.account.restarts == 2)
        await until(lambda: one.state.name == two.state.name == "LIVE")
        assert await say(one, "pid") == await say(two, "pid") != b"%d" % pid
        assert [text for _, text in oopses(kernel)[1:]] == ["oops: Killed in process: signal 9 (SIGKILL)"] * 2


@pytest.mark.parametrize("word", ["hang", "shout 01000000c1"])
async def test_on_the_real_clock_one_that_hangs_or_lies_takes_the_others_down(word: str) -> None:
    async with uxk.Kernel(clock="real") as kernel:
        one, two = await load(kernel, "one", "two")
        here = await kernel.insmod(LODGER, instance="here")
        with pytest.raises(RequestError):
            await say(one, word)
        assert await say(here, "well") == b"well"
        await until(lambda: one.account.restarts == two.account.restarts == 1)
        await until(lambda: one.state.name == two.state.name == "LIVE")
        assert await say(one, "pid") == await say(two, "pid")
        assert {source for source, _ in oopses(kernel)} == {"one", "two"} and here.account.faults == 0
