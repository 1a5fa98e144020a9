"""Process placement while the kernel holds its clock: as task placement in everything, but that deaths are real.

A process takes 0.3 s to start, so each test here makes do with one to three of them, and restarts count; with
``UXK_SOAK=1`` every kind of death is tried, without it four.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import uxk
from uxk.actor import wire
from uxk.errors import ModuleError, ProbeError, RequestError, UsageError
from uxk.uapi.manifest import Placement

HERE = Path(__file__).resolve().parent
VICTIM, RUNNER = HERE / "hosted/victim.py", HERE / "hosted/runner.py"
PLACEMENTS: tuple[Placement, ...] = ("task", "process")


async def say(module: uxk.Module, word: str) -> bytes:
    return (await module.submit(word.encode())).payload


def oopses(kernel: uxk.Kernel) -> list[str]:
    return [record.text for record in kernel.kmsg.records() if record.text.startswith("oops: ")]


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


async def test_it_runs_elsewhere_and_says_so() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        module = await kernel.insmod(VICTIM, placement="process")
        pid = int(await say(module, "pid"))
        assert pid != os.getpid() and int(await say(module, "parent")) == os.getpid()
        assert kernel.sysfs.read("/sys/module/victim/placement").strip() == "process"
        assert kernel.sysfs.read("/sys/module/victim/pid").strip() == str(pid)
        row = kernel.lsmod()[0]
        assert (row.placement, row.pid) == ("process", pid)
        await kernel.rmmod("victim")
        assert "goodbye: rmmod" in [record.text for record in kernel.kmsg.records()]
        assert str(pid) not in os.listdir("/proc")


async def equal(run: Callable[[Placement], object]) -> None:
    hashes = [await run(placement) for placement in PLACEMENTS]  # type: ignore[misc]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("clock", ["virtual", "charged"])
async def test_the_event_hash_is_that_of_task_placement(clock: str) -> None:
    async def run(placement: Placement) -> str:
        async with uxk.Kernel(seed=3, clock=clock, costs_ns={"victim": 700}) as kernel:  # type: ignore[arg-type]
            module = await kernel.insmod(VICTIM, placement=placement)
            for number in range(20):
                assert await say(module, f"word {number}") == b"word %d" % number
            words = [f"answer {100_000 + n}".encode() for n in range(60)]  # several frames, and several messages
            requests = [uxk.Request(0, uxk.Op.CALL, word) for word in words]
            answers = await module.submit_batch(requests)
            assert [len(answer.payload) for answer in answers] == [100_000 + n for n in range(60)]
            await kernel.rmmod("victim")
        return kernel.event_hash()

    await equal(run)


async def test_tasks_run_when_the_kernel_lets_them() -> None:
    async def run(placement: Placement) -> str:
        async with uxk.Kernel(seed=5) as kernel:
            first = await kernel.insmod(RUNNER, placement=placement)
            second = await kernel.insmod(RUNNER, placement=placement, instance="second")
            requests = [uxk.Request(0, uxk.Op.CALL, b"") for _ in range(10)]
            for module in (first, second):  # no tasks of the test's own, whose order would be Trio's to decide
                module.open_port(lambda answers: None).submit_batch(requests)
            await kernel.run()
            await first.submit(b"raise", check=False)
            await kernel.run()
            assert first.account.restarts == 1
            await first.submit(b"end")
            await kernel.run()
            assert [kernel.sysfs.read(f"/sys/module/{name}/attributes/count").strip() for name in ("runner", "second")]
        return kernel.event_hash()

    await equal(run)


async def test_what_processes_print_and_when_they_die_orders_nobody_else() -> None:
    async def run() -> str:
        async with uxk.Kernel(seed=2) as kernel:
            module = await kernel.insmod(VICTIM, placement="process")

            async def race(number: int) -> None:  # tasks of one's own: Trio's to order, by the seed
                for count in range(6):
                    await module.submit(f"print {1000 * number}".encode() if count % 2 else b"x")
                    await kernel.sleep_ns(10)

            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(race, number)
            with pytest.raises(RequestError):
                await say(module, "raise")
            await kernel.run()
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(race, number)
        return kernel.event_hash()

    assert await run() == await run()


SOAK = bool(os.environ.get("UXK_SOAK"))
DEATHS = (
    ("signal 9", "Killed in process: signal 9 (SIGKILL)", True),
    ("hang", "Hung in turn: no answer within 300000000 ns of host time", True),
    ("say ffffffff", "ProtocolError in process: a message of 4294967295 bytes", False),
    (f"say {wire.packed(wire.Out(77, [], [], None, False, 0)).hex()}", "ProtocolError in process: OUTPUT 77, ", False),
    ("exit 3", "Exited in process: status 3", False),
    ("fault", "Killed in process: signal 11 (SIGSEGV)", False),
    ("raise", "ValueError in turn: as asked", False),
    ("hang up", "Exited in process: it closed its connection", False),
    ("say 01000000c1", "ProtocolError in process: 1 bytes that are no message", False),
    (f"say {wire.packed(wire.Hello('uxk', 1, 1)).hex()}", "ProtocolError in process: a second Hello", False),
)


async def test_whatever_it_does_only_it_dies() -> None:
    async with uxk.Kernel(seed=1) as kernel:
        kernel.sysfs.write("/proc/sys/kernel/host_answer_ns", "300000000")
        other = await kernel.insmod(VICTIM, placement="process", instance="other")
        module = await kernel.insmod(VICTIM, placement="process")
        for count, (word, told, chance) in enumerate(DEATHS if SOAK else DEATHS[:4], 1):
            before = len(list(kernel.kmsg.records()))
            with pytest.raises(RequestError):
                await say(module, word)
            assert await say(other, "well") == b"well"
            await kernel.run()
            assert module.account.restarts == count, word
            assert await say(module, "back") == b"back"
            texts = [record.text for record in list(kernel.kmsg.records())[before:]]
            assert any(text.startswith(f"oops: {told}") for text in texts), (word, texts)
            assert any("this run is not reproducible" in text for text in texts) is chance, (word, texts)
        assert other.account.restarts == 0


async def test_the_last_that_it_printed_is_in_the_oops() -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(VICTIM, placement="process")
        assert await say(module, "print 1000000")  # more than a pipe holds
        with pytest.raises(RequestError):
            await say(module, "exit 1")
        assert oopses(kernel)[-1] == "oops: | the last line"


async def test_a_kill_between_two_turns_is_noticed() -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(VICTIM, placement="process")
        os.kill(kernel.lsmod()[0].pid, 9)
        while not oopses(kernel):
            await kernel.run()
            await trio.sleep(0.001)
        await kernel.run()
        assert await say(module, "back") == b"back"


async def test_memory_without_a_right_to_it_is_refused_in_words() -> None:
    async with uxk.Kernel() as kernel:
        module = await kernel.insmod(VICTIM, placement="process")
        with pytest.raises(RequestError):
            await say(module, "map 12345")
        assert oopses(kernel)[0].startswith("oops: CapabilityError in turn: ")


def make() -> type[uxk.Extension]:
    class Local(uxk.Extension):
        manifest = uxk.Manifest(name="local")

    return Local


async def test_what_no_process_could_import_is_refused_at_once() -> None:
    async with uxk.Kernel() as kernel:
        with pytest.raises(ModuleError, match=r"make\.<locals>\.Local is made inside a function"):
            await kernel.insmod(make(), placement="process")
        with pytest.raises(UsageError, match="placement='thread', expected task or process"):
            await kernel.insmod(VICTIM, placement="thread")  # type: ignore[arg-type]
        assert kernel.lsmod() == []


async def test_a_module_that_breaks_when_imported_there_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "fickle.py"
    file.write_text(VICTIM.read_text().replace('"""A driver', f'import os\nassert os.getpid() == {os.getpid()}\n"""A'))
    file.write_text(file.read_text().replace("from __future__ import annotations\n", ""))
    async with uxk.Kernel() as kernel:
        with pytest.raises(ProbeError, match="AssertionError in import"):
            await kernel.insmod(file, placement="process")
        assert kernel.lsmod() == []


async def test_options_of_modprobe_d_may_say_where(tmp_path: Path) -> None:
    (tmp_path / "here.conf").write_text("options echo placement=process\n")
    async with uxk.Kernel(modprobe_d=tmp_path) as kernel:
        await kernel.modprobe("echo")
        assert kernel.lsmod()[0].placement == "process"
