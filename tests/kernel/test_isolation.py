"""What an extension in a process of its own cannot do to its kernel, its machine and its neighbours (R20).

docs/isolation.md lists the same; a measure that needs a package or a feature of Linux which is not there is skipped.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import uxk
from uxk import limits
from uxk.actor.sandbox import available
from uxk.testing.kernels import residue

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are confined on Linux only")
ATTACKER = Path(__file__).resolve().parent / "hosted/attacker.py"
PAGE = 4096
HERE = available()
needs_filters = pytest.mark.skipif(not all(HERE.values()), reason=f"needs uxk[sandbox] and Linux 6.12: {HERE}")


class Neighbour(uxk.Extension):
    """In the kernel's own process; the tests speak for it."""

    manifest = uxk.Manifest(name="neighbour", kind="ml-agent", capabilities=("device:*:submit",))
    ctx: uxk.Context

    def setup(self, ctx: uxk.Context) -> None:
        Neighbour.ctx = ctx

    async def run(self, ctx: uxk.Context) -> None:
        await trio.sleep_forever()  # so that the tests may speak for it between turns


class Bench:
    """A kernel with an attacker in a process and a neighbour."""

    def __init__(self, kernel: uxk.Kernel, attacker: uxk.Module) -> None:
        self.kernel = kernel
        self.attacker = attacker

    async def tell(self, *words: object, of: str = "attacker") -> str:
        """What the attacker says to that; an errno's name if something stopped it."""
        module = self.kernel.module(of)
        answer = await module.submit(" ".join(map(str, words)).encode(), check=False)
        return answer.payload.decode() if not answer.status else f"dead: {errno.errorcode[answer.status]}"

    async def ask(self, reply: uxk.Reply) -> int:
        await self.kernel.sleep_ns(0)
        assert reply.completion is not None and reply.completion.status == 0, reply.completion
        return reply.completion.result

    async def memory(self, rights: uxk.Rights, *, of: str = "attacker") -> tuple[int, memoryview, int]:
        """A region of the neighbour's, derived to an attacker: the neighbour's capability, its view, the attacker's."""
        cap = await self.ask(Neighbour.ctx.allocate(2 * PAGE))
        view = Neighbour.ctx.map(cap, writable=True)
        view[:4] = b"mine"
        return cap, view, await self.ask(Neighbour.ctx.derive(cap, of, rights))


@asynccontextmanager
async def bench(*more: str) -> AsyncIterator[Bench]:
    async with uxk.Kernel(seed=1) as kernel:
        attacker = await kernel.insmod(ATTACKER, placement="process")
        for name in more:
            await kernel.insmod(ATTACKER, placement="process", instance=name)
        await kernel.insmod(Neighbour)
        yield Bench(kernel, attacker)
        for name in ("neighbour", *more, "attacker"):
            await kernel.rmmod(name)
        assert residue(kernel) == {}
        assert kernel.machine.shared.files == 0


@pytest.fixture
def spare() -> Iterator[int]:
    """A descriptor that the kernel's process would hand down."""
    descriptor = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    yield descriptor
    os.close(descriptor)


# --- the process -----------------------------------------------------------------------------------------


BOMBS = {
    "memory_bomb": {"MemoryError"}, "shared_memory_bomb": {"ENOMEM", "MemoryError"}, "descriptor_bomb": {"EMFILE"},
    "thread_bomb": {"RuntimeError", "MemoryError"}, "raise_limit": {"ValueError", "EPERM"},
}  # fmt: skip


async def test_limits_hold_without_any_package(spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "1")
    async with bench() as b:
        for attack, expected in BOMBS.items():
            assert await b.tell(attack) in expected, attack
        assert await b.tell("inherited") == ""
        confined = b.kernel.sysfs.read("/sys/module/attacker/confined").split()
        assert confined == ["rlimits", "no_new_privs", *(name for name in sorted(HERE) if HERE[name])]
        assert b.kernel.sysfs.read("/sys/module/neighbour/confined").strip() == ""
        assert "SOME_SECRET" not in await b.tell("environ")
        status = (await b.tell("status", "CapEff", "CapPrm", "CapBnd", "NoNewPrivs")).split()
        assert status[1::2] == ["0" * 16, "0" * 16, "0" * 16, "1"] or os.geteuid()
        assert await b.tell("numpy") == "" == await b.tell("thread") == await b.tell("pair")
        assert b.attacker.account.restarts == 0


ANYWHERE = (
    "fork", "fork_bomb", "vfork", "exec", "memfd", "kill_group", "kill_all", "socket", "udp", "unix", "survive",
    "survive_by_trick", "mount", "namespace", "uring", "x32",
)  # fmt: skip
AT_THE_KERNEL = (
    "kill", "thread_kill", "pidfd", "signal_by_pipe", "ptrace", "vm_read", "limit_of", "slow_down", "pin",
)  # fmt: skip
AT_OTHERS = ("remove_memory 0", "remove_messages 0", "take_message 0", "remove_semaphore 0", "remove_queue /x")
AT_FILES = ("read", "write", "unlink", "chmod")


@needs_filters
async def test_system_calls_that_an_extension_has_no_business_with_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "private"
    file.write_text("secret")
    mine = os.getpid()
    async with bench() as b:
        said = {attack: await b.tell(attack) for attack in ANYWHERE}
        said |= {f"{attack} {mine}": await b.tell(attack, mine) for attack in AT_THE_KERNEL}
        said |= {attack: await b.tell(attack) for attack in AT_OTHERS}
        said |= {f"{attack} file": await b.tell(attack, file) for attack in AT_FILES}
        said |= {f"read {name}": await b.tell("read", f"/proc/{mine}/{name}") for name in ("mem", "maps", "environ")}
        said |= {"mkdir": await b.tell("mkdir", tmp_path / "new"), "read /etc": await b.tell("read", "/etc/passwd")}
        said |= {"write /dev": await b.tell("write", "/dev/shm/x")}
        assert {what: how for what, how in said.items() if how not in ("EPERM", "EACCES", "EFBIG")} == {}
        assert b.attacker.account.restarts == 0
    assert file.read_text() == "secret" and file.stat().st_mode & 0o777 != 0o777


@needs_filters
async def test_a_neighbour_in_another_process_is_as_far_away_as_the_kernel() -> None:
    async with bench("second") as b:
        pid = b.kernel.sysfs.read("/sys/module/second/pid").strip()
        said = {attack: await b.tell(attack, pid) for attack in AT_THE_KERNEL}
        assert {what: how for what, how in said.items() if how not in ("EPERM", "EACCES")} == {}
        assert await b.tell("read", f"/proc/{pid}/mem") == "EACCES"
        assert await b.tell("pair", of="second") == ""


# --- memory ----------------------------------------------------------------------------------------------


async def test_what_is_granted_for_reading_the_processor_protects() -> None:
    async with bench() as b:
        _, view, cap = await b.memory(uxk.Rights.READ)
        assert await b.tell("map", cap, "w") == "EACCES"
        assert await b.tell("map", cap) == ""
        assert await b.tell("see", cap) == "mine\0\0\0\0"
        view[:4] = b"ours"
        assert await b.tell("see", cap) == "ours\0\0\0\0"
        assert await b.tell("put", cap, "bad") == "TypeError"  # Python's own protection
        assert (await b.tell("poke", cap)).startswith("dead")  # and of code that goes around it
        await b.kernel.sleep_ns(20)
        oops = [record.text for record in b.kernel.kmsg.records() if "signal 11" in record.text]
        assert len(oops) == 1
        assert bytes(view[:4]) == b"ours"
        assert b.attacker.account.restarts == 1


@pytest.mark.skipif(os.geteuid() != 0 and not HERE["seccomp"], reason="the owner of a file changes its mode")
async def test_a_descriptor_for_reading_does_not_become_one_for_writing() -> None:
    async with bench("second") as b:
        mine, view, cap = await b.memory(uxk.Rights.READ)
        assert await b.tell("reopen", cap) in ("EPERM", "EACCES")  # sealed
        writer = await b.ask(Neighbour.ctx.derive(mine, "second", uxk.Rights.READ | uxk.Rights.WRITE))
        assert await b.tell("map", writer, "w", of="second") == ""
        another = await b.ask(Neighbour.ctx.derive(mine, "attacker", uxk.Rights.READ))
        assert await b.tell("reopen", another) == "EACCES"  # not sealed, as the second may write
        assert bytes(view[:4]) == b"mine"


async def test_both_sides_write_into_the_same_memory_and_it_ends_with_the_right() -> None:
    async with bench() as b:
        mine, view, cap = await b.memory(uxk.Rights.READ | uxk.Rights.WRITE)
        assert await b.tell("map", cap, "w") == ""
        assert await b.tell("put", cap, "both") == ""
        assert bytes(view[:4]) == b"both"
        where = await b.tell("address", cap)
        await b.ask(Neighbour.ctx.revoke(cap))
        view[:4] = b"next"
        assert await b.tell("see", cap) == "ValueError"  # the view is released
        assert await b.tell("map", cap) == "ESTALE"
        assert await b.tell("peek", where) == "both\0\0\0\0"  # who kept an address sees the past
        await b.ask(Neighbour.ctx.free(mine))
        assert await b.tell("peek", where) == "both\0\0\0\0"


async def test_revoking_from_one_leaves_the_others_where_they_are() -> None:
    async with bench("second", "third") as b:
        mine, view, cap = await b.memory(uxk.Rights.READ)
        second = await b.ask(Neighbour.ctx.derive(mine, "second", uxk.Rights.READ))
        third = await b.ask(Neighbour.ctx.derive(mine, "third", uxk.Rights.READ | uxk.Rights.WRITE))
        assert await b.tell("map", cap) == "" == await b.tell("map", second, of="second")
        where = await b.tell("address", second, of="second")
        assert await b.tell("map", third, "w", of="third") == ""  # the region leaves the file for readers
        assert await b.tell("put", third, "third", of="third") == ""
        assert bytes(view[:5]) == b"third"
        for name, known in (("attacker", cap), ("second", second)):
            assert await b.tell("see", known, of=name) == "third\0\0\0"
        await b.ask(Neighbour.ctx.revoke(cap))
        view[:5] = b"later"
        assert await b.tell("see", second, of="second") == "later\0\0\0" == await b.tell("see", third, of="third")
        assert await b.tell("address", second, of="second") == where
        assert await b.tell("put", third, "again", of="third") == ""
        assert bytes(view[:5]) == b"again"


async def test_memory_that_is_kept_outlives_the_process_and_nothing_else_does() -> None:
    async with bench() as b:
        mine, view, cap = await b.memory(uxk.Rights.READ | uxk.Rights.WRITE)
        assert await b.tell("map", cap, "w") == ""
        assert await b.tell("put", cap, "before") == ""
        assert (await b.tell("poke", "nothing")) == "KeyError"
        readonly = await b.ask(Neighbour.ctx.derive(mine, "attacker", uxk.Rights.READ))
        await b.tell("map", readonly)
        await b.tell("poke", readonly)
        await b.kernel.sleep_ns(20)
        assert bytes(view[:6]) == b"before"
        assert await b.tell("map", cap) == "ESTALE" or await b.tell("map", cap) == "EBADF"
        again = await b.ask(Neighbour.ctx.derive(mine, "attacker", uxk.Rights.READ))
        assert await b.tell("map", again) == ""
        assert await b.tell("see", again) == "before\0\0"


async def test_memory_of_a_request_reaches_a_driver_in_a_process_and_comes_back(tmp_path: Path) -> None:
    async with bench() as b:
        cap = await b.ask(Neighbour.ctx.allocate(2 * PAGE))
        view = Neighbour.ctx.map(cap, writable=True)
        view[:5] = b"first"
        device = await b.ask(Neighbour.ctx.open_device("attacker0"))
        for opcode, word, expected in (
            (uxk.Op.WRITE, "serve r", b"first"),  # lent for reading: sealed
            (uxk.Op.READ, "serve w", b"reply"),  # lent for writing: the region moves to another file
            (uxk.Op.WRITE, "serve r", b"reply"),
        ):
            await b.tell("next", *word.split())
            await b.ask(Neighbour.ctx.submit(device, opcode, region=cap, length=PAGE))
            assert (bytes(view[:5]), await b.tell("served")) == (expected, expected.decode())
        assert b.kernel.machine.shared.files == 1
        with b.kernel.dma_pool("pool", PAGE) as pool:
            pool.view[:5] = b"pool!"
            mine = pool.cap_for(b.kernel.agents["attacker"])
            assert await b.tell("map", mine, "w") == ""
            assert await b.tell("see", mine) == "pool!\0\0\0"
            await b.tell("put", mine, "theirs")
            assert bytes(pool.view[:6]) == b"theirs"
        assert await b.tell("see", mine) == "ValueError"
        assert await b.tell("map", mine) == "ESTALE"


async def test_nobody_uses_up_the_kernels_descriptors() -> None:
    async with bench() as b:
        assert await b.tell("hoard", 300) == "EMFILE"
        await b.kernel.run()
        assert b.kernel.machine.shared.files <= limits.HOST_REGIONS_MAX
        device = await b.ask(Neighbour.ctx.open_device("attacker0"))
        others = [await b.ask(Neighbour.ctx.allocate(PAGE)) for _ in range(70)]
        await b.tell("forget")
        before = b.kernel.machine.shared.files
        for each in others:  # loans: each region rests in its file when the request is over
            await b.ask(Neighbour.ctx.submit(device, uxk.Op.WRITE, region=each, length=PAGE))
        assert b.kernel.machine.shared.files <= before + 64


async def test_whoever_asks_for_memory_and_does_not_take_it_is_ended() -> None:
    async with bench() as b:
        _, _, cap = await b.memory(uxk.Rights.READ)
        before = len(os.listdir("/proc/self/fd"))
        assert (await b.tell("flood", cap)).startswith("dead")
        await b.kernel.sleep_ns(20)
        assert "MAP, and 8 answers to others are not read yet" in "".join(r.text for r in b.kernel.kmsg.records())
        assert len(os.listdir("/proc/self/fd")) <= before + 2
        assert await b.tell("pair") == ""


async def test_on_the_real_clock_memory_moves_under_those_who_read_it() -> None:
    async with uxk.Kernel(seed=1, clock="real") as kernel:
        for name in ("attacker", "second"):
            await kernel.insmod(ATTACKER, placement="process", instance=name)
        await kernel.insmod(Neighbour)
        b = Bench(kernel, kernel.module("attacker"))
        mine, view, cap = await b.memory(uxk.Rights.READ)
        second = await b.ask(Neighbour.ctx.derive(mine, "second", uxk.Rights.READ))
        assert await b.tell("map", cap) == "" == await b.tell("map", second, of="second")
        writer = await b.ask(Neighbour.ctx.derive(mine, "second", uxk.Rights.READ | uxk.Rights.WRITE))
        assert await b.tell("map", writer, "w", of="second") == ""
        await b.tell("put", writer, "second", of="second")
        assert await b.tell("see", cap) == "second\0\0" == await b.tell("see", second, of="second")
        (offset,) = kernel.agents["neighbour"].regions
        generation = kernel.machine.shared.generation(offset)
        assert generation
        await b.ask(Neighbour.ctx.revoke(cap))  # the second may be writing: nothing moves
        assert kernel.machine.shared.generation(offset) == generation
        where = await b.tell("address", writer, of="second")
        await b.ask(Neighbour.ctx.revoke(writer))
        assert kernel.machine.shared.generation(offset) > generation  # it may read there still
        view[:5] = b"alone"
        assert await b.tell("see", second, of="second") == "alone" + "d\0\0"
        assert (await b.tell("poke_at", where, of="second")).startswith("dead")
        assert bytes(view[:5]) == b"alone"
